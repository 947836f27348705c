//! Tools for data directories that no node uses: look into them, recover from a lost majority,
//! say where the members are after every address has changed.
//!
//! | call | what it does |
//! | --- | --- |
//! | [`inspect`] | what a directory holds, every checksum verified; changes nothing |
//! | [`survey`] | what several hold, which is the most advanced, and what may be lost; changes nothing |
//! | [`plan_recovery`] | what [`recover`] would do; changes nothing |
//! | [`recover`] | founds a new cluster from one directory, when the majority of the old one is gone for good |
//! | [`set_addresses`] | notes where the members are reached now, for a cluster whose every address changed |
//!
//! Every call takes the lock of each directory while it reads or writes there, and refuses one that
//! a node uses. All of them block on the disk. `examples/admin` is a program around them, and
//! `docs/operations.md` says when to use which.
//!
//! Invariants:
//! - what only looks writes nothing: neither a start is counted nor a torn tail dropped;
//! - a recovery that is interrupted anywhere leaves the old cluster or the new one. What tells the
//!   clusters apart are the cluster id and the raft id; the directory stays the same one, under the
//!   same incarnation, which salts every record of its log.

mod addresses;
mod inspect;
mod recover;
mod report;
mod survey;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

pub use self::addresses::Moved;
pub(crate) use self::addresses::live as live_addresses;
pub(crate) use self::recover::unfinished;
pub use self::recover::{Plan, RecoverOptions, Recovered};
pub use self::report::{LogReport, Report, SnapshotFile, TermRange};
pub use self::survey::{Advice, Quorum, Survey};
use crate::error::{Error, Result};
use crate::types::NodeId;
use crate::vfs::{RealVfs, Vfs};

fn real() -> Arc<dyn Vfs> {
    Arc::new(RealVfs)
}

/// Looks into a data directory: identity, membership, log, snapshots; every checksum is verified.
/// It changes nothing. Damage is part of the report, and what is readable beside it is, too.
///
/// # Errors
/// `Storage` when a node uses the directory, `DataDir` when it holds nothing of a node.
pub fn inspect(dir: impl AsRef<Path>) -> Result<Report> {
    inspect::inspect(&real(), dir.as_ref())
}

/// Looks into the data directories that are left of one cluster and compares them.
///
/// # Errors
/// As [`inspect`], for any of them; `DataDir` without a directory.
pub fn survey<P: AsRef<Path>>(dirs: &[P]) -> Result<Survey> {
    let Some(first) = dirs.first() else {
        return Err(refuse(Path::new("."), "name the data directories that are left"));
    };
    survey::survey(&real(), first.as_ref(), dirs.iter().skip(1).map(AsRef::as_ref))
}

/// What [`recover`] would do with this directory, and what may be lost. It changes nothing.
///
/// # Errors
/// As [`recover`].
pub fn plan_recovery(dir: impl AsRef<Path>, options: &RecoverOptions) -> Result<Plan> {
    recover::plan(&real(), dir.as_ref(), options)
}

/// Founds a new cluster from the directory of one member, because the majority of the old cluster
/// is lost for good. The node is its only voter, under the same node id; it keeps its state and its
/// log, and others join it with empty directories.
///
/// **Data may be lost, and may come back.** What only lost members had is gone, acknowledged or
/// not. Every entry of this directory's log counts as committed from now on: a command whose
/// proposer was told that it failed, or nothing, may take effect.
///
/// The new cluster has a new random id, so that members of the old one can never meet it as their
/// own; they must be emptied before they join. Terms go on far above those of the old cluster:
/// fencing tokens that lost leaders have handed out stay lower.
///
/// Interrupted anywhere, it leaves the old cluster or the new one; called again, or at the next
/// start of the node, it is finished. Copy the directory before, all the same.
///
/// # Errors
/// `DataDir` when the directory cannot be recovered from, or need not be: the text says what to do.
/// `Storage` for errors of the file system.
pub fn recover(dir: impl AsRef<Path>, options: &RecoverOptions) -> Result<Recovered> {
    recover::recover(&real(), dir.as_ref(), options)
}

/// Notes in a data directory where members are reached now, so that a cluster whose every address
/// changed can find itself. Do it in the directory of each member, with the same list; then start
/// the nodes at their new addresses. None at all takes back what was noted.
///
/// What is noted serves until the cluster has recorded the new addresses itself: each node
/// announces its own once there is a leader. The replicated membership is not touched, and a note
/// counts only while the membership still has the member at the address that it had then.
///
/// # Errors
/// `DataDir` for a node that is no member and an address that is none, `Storage` when a node uses
/// the directory, or it is damaged.
pub fn set_addresses(dir: impl AsRef<Path>, addresses: &[(NodeId, String)]) -> Result<Vec<Moved>> {
    addresses::set(&real(), dir.as_ref(), addresses)
}

fn refuse(dir: &Path, reason: impl Into<String>) -> Error {
    Error::DataDir { dir: dir.to_path_buf(), reason: reason.into() }
}

/// `1`, `1 and 2`, `1, 2 and 3`.
fn listed<T: ToString>(all: impl IntoIterator<Item = T>) -> String {
    let mut all: Vec<String> = all.into_iter().map(|one| one.to_string()).collect();
    match all.pop() {
        None => "none".to_owned(),
        Some(last) if all.is_empty() => last,
        Some(last) => format!("{} and {last}", all.join(", ")),
    }
}
