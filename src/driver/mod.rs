//! Driver
pub(crate) mod inbox;
