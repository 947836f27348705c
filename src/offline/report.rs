//! What a data directory holds, as values and in words.

use std::fmt;
use std::path::PathBuf;

use super::addresses::Moved;
use super::{listed, recover};
use crate::error::StorageError;
use crate::log::SnapshotRecord;
use crate::log::wal::SegmentFile;
use crate::types::{
    ClusterId, HardState, Identity, Index, MemberRole, Membership, Position, RaftId, SnapshotMeta,
    Term,
};

/// Ranges of terms that are printed; of more, the first and the last ones.
const MAX_TERMS: usize = 8;

/// What a data directory holds; [`super::inspect`] makes it. `Display` tells it to a person.
#[derive(Debug)]
#[non_exhaustive]
pub struct Report {
    /// The directory.
    pub dir: PathBuf,
    /// Who it is; None when the identity file is missing or damaged.
    pub identity: Option<Identity>,
    /// The newest membership that it holds.
    pub membership: Option<Membership>,
    /// What it has agreed to found, and does not know to have been founded.
    pub agreed: Option<Membership>,
    /// The log.
    pub log: LogReport,
    /// The snapshots that are whole, newest first.
    pub snapshots: Vec<SnapshotFile>,
    /// Addresses that were noted with [`super::set_addresses`].
    pub moved: Vec<Moved>,
    /// Everything that is wrong, each with its file and with what to do. Empty: every checksum is
    /// right, and a node would start here.
    pub damage: Vec<StorageError>,
}

/// What a log holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogReport {
    /// Whether all of it could be read. If not, the rest is the newest that could be, file by
    /// file.
    pub whole: bool,
    /// Term, vote and the commit index that was known last.
    pub hard_state: HardState,
    /// The entry below the first one.
    pub compacted: Position,
    /// The last entry; the compaction point when there is none.
    pub last: Position,
    /// The entries by term.
    pub terms: Vec<TermRange>,
    /// Bytes of the entries, roughly.
    pub bytes: u64,
    /// Entries above the membership that change voters or learners.
    pub pending_changes: Vec<Index>,
    /// The snapshot that the log relies on.
    pub snapshot: Option<SnapshotRecord>,
    /// Whether it was closed by a clean shutdown: then nothing is missing at its end.
    pub sealed: bool,
    /// What an unclean end left behind and the next start drops: a write that was never
    /// acknowledged.
    pub dropped_tail: Option<String>,
    /// Its files.
    pub segments: Vec<SegmentFile>,
}

/// Entries that follow each other and have the same term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TermRange {
    /// The term.
    pub term: Term,
    /// The first of them.
    pub first: Index,
    /// The last of them.
    pub last: Index,
}

/// A snapshot file whose head and body are right.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotFile {
    /// Where it is.
    pub path: PathBuf,
    /// What it says about itself.
    pub meta: SnapshotMeta,
    /// Whether it is the one that the log relies on.
    pub relied: bool,
}

impl Report {
    pub(super) fn of(dir: &std::path::Path) -> Self {
        Self {
            dir: dir.to_path_buf(),
            identity: None,
            membership: None,
            agreed: None,
            log: LogReport::default(),
            snapshots: Vec::new(),
            moved: Vec::new(),
            damage: Vec::new(),
        }
    }

    /// Whether nothing is damaged.
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty()
    }

    /// The cluster that the directory belongs to, and its raft id there; an interrupted recovery
    /// counts as done.
    pub fn place(&self) -> Option<(ClusterId, RaftId)> {
        self.unfinished().or(self.identity?.cluster)
    }

    /// Where the directory goes when an interrupted recovery is finished.
    pub(super) fn unfinished(&self) -> Option<(ClusterId, RaftId)> {
        recover::unfinished(self.identity.as_ref()?, self.membership.as_ref()).ok().flatten()
    }

    fn node_of(&self, id: RaftId) -> String {
        match self.membership.as_ref().and_then(|m| m.by_raft(id)) {
            Some(member) => format!("node {}", member.node_id),
            None => format!("raft id {id}"),
        }
    }

    fn write_identity(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(identity) = self.identity else {
            return writeln!(f, "  no identity that can be read");
        };
        write!(f, "  node {}", identity.node_id)?;
        match identity.cluster {
            Some((cluster, raft_id)) => writeln!(f, " of cluster {cluster}, raft id {raft_id}")?,
            None => writeln!(f, ", of no cluster yet")?,
        }
        let times = if identity.boot == 1 { "once" } else { "times" };
        let count = if identity.boot == 1 { String::new() } else { format!("{} ", identity.boot) };
        writeln!(f, "  incarnation {}, started {count}{times}", identity.incarnation)?;
        if let Some((cluster, _)) = self.unfinished() {
            writeln!(
                f,
                "  A recovery was interrupted: the next start, or another recover, puts it into \
                 cluster {cluster}."
            )?;
        }
        Ok(())
    }

    fn write_membership(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(m) = &self.agreed {
            writeln!(
                f,
                "  it has agreed to found cluster {} with nodes {}, and does not know that it was \
                 founded: start it, and it finds out",
                m.cluster_id,
                listed(m.members.iter().map(|m| m.node_id))
            )?;
        }
        let Some(m) = &self.membership else { return writeln!(f, "  no membership yet") };
        writeln!(f, "  members as of index {}:", m.index)?;
        let own = self.place().map(|(_, raft_id)| raft_id);
        for member in &m.members {
            let role = match m.role(member.raft_id) {
                Some(MemberRole::Voter) => "voter",
                Some(MemberRole::Learner) | None => "learner",
            };
            let here = if own == Some(member.raft_id) { "  <- this directory" } else { "" };
            writeln!(
                f,
                "    node {:<4} {role:<7}  raft id {:<4} {}{here}",
                member.node_id, member.raft_id, member.addr
            )?;
        }
        if !m.conf_state.voters_outgoing.is_empty() {
            let name = |ids: &[RaftId]| listed(ids.iter().map(|id| self.node_of(*id)));
            writeln!(
                f,
                "    in the middle of a change: majorities both of {} and of {} are needed",
                name(&m.conf_state.voters_outgoing),
                name(&m.conf_state.voters)
            )?;
        }
        if !self.log.pending_changes.is_empty() {
            writeln!(
                f,
                "    changes that this node has not applied yet: at index {}",
                listed(&self.log.pending_changes)
            )?;
        }
        for moved in &self.moved {
            writeln!(f, "    noted: {moved}")?;
        }
        Ok(())
    }

    fn write_log(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let log = &self.log;
        let HardState { term, vote, commit } = log.hard_state;
        if !log.whole {
            writeln!(f, "  log: not whole; the newest that could be read, file by file:")?;
        } else if log.last == log.compacted {
            writeln!(f, "  log: no entries above index {}", log.compacted.index)?;
        } else {
            let first = log.compacted.index + 1;
            let count = log.last.index - log.compacted.index;
            writeln!(
                f,
                "  log: entries {first} to {}, {count} of them, {} bytes",
                log.last.index, log.bytes
            )?;
            self.write_terms(f)?;
        }
        let vote = match vote {
            0 => "no vote in it".to_owned(),
            id => format!("vote in it for {}", self.node_of(id)),
        };
        writeln!(f, "    term {term}, {vote}; known to be committed up to index {commit}")?;
        match (&log.dropped_tail, log.sealed) {
            _ if !log.whole => {}
            (Some(tail), _) => writeln!(
                f,
                "    It was not closed cleanly; the next start drops the unfinished end: {tail}"
            )?,
            (None, true) => writeln!(f, "    It was closed cleanly.")?,
            (None, false) => writeln!(f, "    It was not closed cleanly; nothing is torn.")?,
        }
        for file in &log.segments {
            let name = file.path.file_name().unwrap_or_default().to_string_lossy();
            match (file.generation, file.entries) {
                (None, _) => writeln!(f, "    {name}: spare, or without a valid header")?,
                (Some(_), None) => {
                    writeln!(f, "    {name}: {} records up to offset {}", file.records, file.end)?;
                }
                (Some(_), Some((from, to))) => writeln!(
                    f,
                    "    {name}: {} records up to offset {}, entries {from} to {to}",
                    file.records, file.end
                )?,
            }
        }
        Ok(())
    }

    fn write_terms(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let terms = &self.log.terms;
        let half = MAX_TERMS / 2;
        let skipped = terms.len().saturating_sub(MAX_TERMS);
        for (i, TermRange { term, first, last }) in terms.iter().enumerate() {
            if skipped > 0 && i == half {
                writeln!(f, "    .. and {skipped} terms more ..")?;
            }
            if skipped == 0 || i < half || i >= half + skipped {
                writeln!(f, "    term {term}: {first} to {last}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.dir.display())?;
        self.write_identity(f)?;
        self.write_membership(f)?;
        self.write_log(f)?;
        for snapshot in &self.snapshots {
            let SnapshotFile { meta, relied, .. } = snapshot;
            let why = if *relied { "the log relies on it" } else { "not needed" };
            writeln!(
                f,
                "  snapshot at index {} of term {}, {} bytes, membership of index {}: {why}",
                meta.position.index, meta.position.term, meta.size, meta.membership.index
            )?;
        }
        if self.log.snapshot.is_some_and(|record| record.installing) {
            writeln!(f, "    The Store had not finished restoring it; the next start does.")?;
        }
        if self.is_sound() {
            return write!(f, "  Every checksum is right.");
        }
        write!(f, "  DAMAGED:")?;
        for damage in &self.damage {
            write!(f, "\n    {damage}")?;
        }
        Ok(())
    }
}
