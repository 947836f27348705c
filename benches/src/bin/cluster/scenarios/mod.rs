//! What is measured, one file each.

pub(crate) mod big_proposal;
pub(crate) mod bigstate;
pub(crate) mod failover;
pub(crate) mod idle;
pub(crate) mod load;

use std::path::PathBuf;

use clap::Args;

/// Where the nodes of a run keep their data.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// A directory on the disk to be measured.
    #[arg(long, default_value = ".")]
    pub(crate) dir: PathBuf,
}
