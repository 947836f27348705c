//! x
/// x
#[derive(Debug)]
pub struct MemVfs;
