//! Driver
pub(crate) mod applier;
mod batch;
pub(crate) mod fatal;
pub(crate) mod inbox;
mod patience;
pub(crate) mod queue;
