//! Driver
pub(crate) mod applier;
mod batch;
mod capture;
pub(crate) mod fatal;
pub(crate) mod inbox;
mod patience;
pub(crate) mod queue;
pub(crate) mod snapshotter;
#[cfg(test)]
pub(crate) mod wait_for;
