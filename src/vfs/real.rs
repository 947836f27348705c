//! x
/// x
#[derive(Debug)]
pub struct RealVfs;
