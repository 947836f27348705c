//! Founding a new cluster from the directory of one member of a lost one.
//!
//! Two writes make it: one atomic batch of the log holds the new membership, in which this node is
//! the only voter, and the hard state that commits the whole log; then the identity names the new
//! cluster. The batch decides. Before it, the directory is that of the old cluster; after it, the
//! membership names a cluster that the identity does not: whoever opens the directory next, a
//! start or another `recover`, writes the identity.
//!
//! Invariants:
//! - nothing is written unless the log and its snapshot are whole;
//! - the new raft id is above every one that the directory has heard of, so that no member of the
//!   old cluster is taken for one of the new;
//! - the membership's index is that of the last entry: no change of the old membership that stands
//!   in the log is applied again.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::Message as _;

use super::addresses::check_addr;
use super::report::Report;
use super::survey::{Survey, nodes};
use super::{inspect, refuse};
use crate::error::{Error, Result};
use crate::log::wal::{Wal, WalOptions};
use crate::log::{LogBatch, LogStorage, Recovered as Log};
use crate::pb;
use crate::types::{
    ClusterId, ConfState, EntryKind, HardState, Identity, Member, Membership, NodeId, Position,
    RaftId, Term,
};
use crate::vfs::Vfs;

/// How far the term goes up: above every term that lost members can have reached by elections, so
/// that the fencing tokens that they handed out stay lower. At one election a second it takes them
/// twelve days to get there.
const TERM_STEP: Term = 1 << 20;
/// No more room than needed: the disk may be full.
const WAL: WalOptions = WalOptions { segment_size: 64 << 10, prepare_ahead: false };

/// How [`super::recover`] goes about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoverOptions {
    /// The other data directories that are left of the cluster. They are only read: to make sure
    /// that the most advanced one is chosen, and that the majority is lost indeed.
    pub others: Vec<PathBuf>,
    /// Where the node will be reached; None: where it was.
    pub addr: Option<String>,
    /// Recover although a majority is at hand, or although another directory is more advanced.
    pub force: bool,
}

/// What [`super::recover`] is going to do. `Display` tells it to a person, the losses included.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plan {
    /// The directory.
    pub dir: PathBuf,
    /// The node, which keeps its id.
    pub node_id: NodeId,
    /// The cluster that it belongs to so far.
    pub cluster: ClusterId,
    /// The last entry that it has.
    pub last: Position,
    /// The members that will be gone.
    pub dismissed: Vec<NodeId>,
    /// What may be lost, and what may come back.
    pub losses: Vec<String>,
    /// A recovery was interrupted: it is only finished, and the options say nothing any more.
    pub unfinished: bool,
}

/// What [`super::recover`] did. `Display` tells it to a person.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovered {
    /// What was to be done.
    pub plan: Plan,
    /// The new cluster.
    pub cluster: ClusterId,
    /// The node's raft id in it.
    pub raft_id: RaftId,
}

/// Where a directory goes whose recovery was interrupted: its log names the new cluster already,
/// its identity does not. None: there was none.
///
/// # Errors
/// The reason when log and identity belong to different clusters for no good reason.
pub(crate) fn unfinished(
    identity: &Identity,
    membership: Option<&Membership>,
) -> std::result::Result<Option<(ClusterId, RaftId)>, String> {
    let (Some((cluster, _)), Some(m)) = (identity.cluster, membership) else { return Ok(None) };
    if m.cluster_id == cluster {
        return Ok(None);
    }
    match m.by_node(identity.node_id).filter(|known| known.incarnation == identity.incarnation) {
        Some(own) => Ok(Some((m.cluster_id, own.raft_id))),
        None => Err(format!(
            "its log belongs to cluster {}, its identity to cluster {cluster}: files of two \
             directories are mixed. Restore the whole directory from one moment, or let this node \
             join with an empty one",
            m.cluster_id
        )),
    }
}

/// See [`super::plan_recovery`].
pub(super) fn plan(vfs: &Arc<dyn Vfs>, dir: &Path, options: &RecoverOptions) -> Result<Plan> {
    if let Some(addr) = &options.addr {
        check_addr(addr).map_err(|reason| refuse(dir, reason))?;
    }
    let report = inspect::inspect(vfs, dir)?;
    let (identity, membership) = usable(&report)?;
    let Some((cluster, _)) = identity.cluster else {
        return Err(refuse(dir, "it belongs to no cluster yet: there is nothing to recover"));
    };
    let found = unfinished(identity, Some(membership)).map_err(|reason| refuse(dir, reason))?;
    let members = membership.members.iter().map(|m| m.node_id);
    let mut plan = Plan {
        dir: dir.to_path_buf(),
        node_id: identity.node_id,
        cluster,
        last: report.log.last,
        dismissed: members.filter(|id| *id != identity.node_id).collect(),
        losses: Vec::new(),
        unfinished: found.is_some(),
    };
    if plan.unfinished {
        return Ok(plan);
    }
    let mut reports = vec![report];
    for other in &options.others {
        reports.push(inspect::inspect(vfs, other)?);
    }
    let survey = Survey::of(reports);
    judge(&survey, dir, options.force)?;
    plan.losses = survey.losses(0);
    Ok(plan)
}

/// Identity and membership of a directory that a node could start on.
fn usable(report: &Report) -> Result<(&Identity, &Membership)> {
    let dir = &report.dir;
    if let Some(damage) = report.damage.first() {
        return Err(refuse(
            dir,
            format!(
                "recover from another directory if there is one; this one is damaged: {damage}"
            ),
        ));
    }
    let Some(identity) = &report.identity else {
        return Err(refuse(dir, "it holds no identity of a node; check the path"));
    };
    match &report.membership {
        Some(membership) => Ok((identity, membership)),
        None if identity.cluster.is_none() => {
            Err(refuse(dir, "it belongs to no cluster yet: there is nothing to recover"))
        }
        None => Err(refuse(
            dir,
            "its node has joined a cluster and received nothing of it yet: there is nothing to \
             recover. Choose the directory of another member",
        )),
    }
}

/// Refuses what would lose more than it must.
fn judge(survey: &Survey, dir: &Path, force: bool) -> Result<()> {
    if let Some(conflict) = survey.conflicts.first() {
        return Err(refuse(dir, conflict.clone()));
    }
    let Some(best) = survey.best.and_then(|best| survey.reports.get(best)) else {
        return Err(removed(dir));
    };
    if let Some(own) = survey.reports.first()
        && let Some((_, raft_id)) = own.place()
        && survey.membership.as_ref().is_none_or(|m| m.by_raft(raft_id).is_none())
    {
        return Err(removed(dir));
    }
    if survey.has_majority() && !force {
        let present = unique(survey.quorums.iter().flat_map(|q| q.present.clone()).collect());
        let them = if present.len() == 1 { "it" } else { "them" };
        return Err(refuse(
            dir,
            format!(
                "{} can elect a leader without anybody else: start {them}, then nothing is lost. To \
                 recover from this directory alone all the same, force it",
                nodes(&present)
            ),
        ));
    }
    if !survey.is_best(0) && !force {
        return Err(refuse(
            dir,
            format!(
                "{} is more advanced: its log ends at index {} of term {}. Recover from that one; to \
                 lose what this one lacks, force it",
                best.dir.display(),
                best.log.last.index,
                best.log.last.term
            ),
        ));
    }
    Ok(())
}

fn removed(dir: &Path) -> Error {
    refuse(
        dir,
        "its node is no member of the cluster any more; recover from the directory of a member",
    )
}

fn unique(mut ids: Vec<NodeId>) -> Vec<NodeId> {
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// See [`super::recover`].
pub(super) fn recover(
    vfs: &Arc<dyn Vfs>,
    dir: &Path,
    options: &RecoverOptions,
) -> Result<Recovered> {
    let plan = plan(vfs, dir, options)?;
    let mut wal = Wal::open(vfs.clone(), dir, WAL)?;
    let log = wal.load()?;
    // NB: read again, now under one lock with what follows.
    let record = log.membership.clone().map(Membership::decode);
    let (Some(identity), Some(Ok(membership))) = (log.identity, record) else {
        return Err(refuse(dir, "it was changed meanwhile; try again"));
    };
    let found = unfinished(&identity, Some(&membership)).map_err(|reason| refuse(dir, reason))?;
    let (cluster, raft_id) = match found {
        Some(place) => place,
        None => found_anew(&mut wal, dir, &log, &identity, &membership, options.addr.clone())?,
    };
    wal.identify(&Identity { cluster: Some((cluster, raft_id)), ..identity })?;
    wal.close()?;
    Ok(Recovered { plan, cluster, raft_id })
}

/// The batch that decides.
fn found_anew(
    wal: &mut Wal,
    dir: &Path,
    log: &Log,
    identity: &Identity,
    old: &Membership,
    addr: Option<String>,
) -> Result<(ClusterId, RaftId)> {
    let own = identity.cluster.and_then(|(_, raft_id)| old.by_raft(raft_id));
    let Some(own) = own else { return Err(removed(dir)) };
    let raft_id = highest_raft_id(log, old) + 1;
    let cluster_id = ClusterId::random()
        .map_err(|e| Error::Internal { part: "random generator", reason: e.to_string() })?;
    let last = log.entries.last();
    let last = last.map_or(log.compacted, |e| Position { index: e.index, term: e.term });
    let addr = addr.unwrap_or_else(|| own.addr.clone());
    let membership = Membership {
        cluster_id,
        index: last.index,
        conf_state: ConfState { voters: vec![raft_id], ..ConfState::default() },
        members: vec![Member { raft_id, addr, learner_only: false, ..own.clone() }],
        next_raft_id: raft_id + 1,
    };
    let term = log.hard_state.term.max(last.term).saturating_add(TERM_STEP);
    wal.append(&[LogBatch {
        hard_state: Some(HardState { term, vote: 0, commit: last.index }),
        membership: Some(membership.encode()),
        ..LogBatch::default()
    }])?;
    Ok((cluster_id, raft_id))
}

/// The highest raft id that a directory has heard of: changes in its log that it has not applied
/// may have handed out more than its membership knows.
fn highest_raft_id(log: &Log, membership: &Membership) -> RaftId {
    let changes = log.entries.iter().filter(|e| e.kind != EntryKind::Normal);
    let changes = changes.filter_map(|e| pb::MembershipChange::decode(e.context.clone()).ok());
    let handed_out = changes.flat_map(|change| {
        let members = change.upsert.into_iter().map(|m| m.raft_id);
        members.chain([change.next_raft_id.saturating_sub(1)])
    });
    let known = membership.members.iter().map(|m| m.raft_id);
    let known = known.chain([membership.next_raft_id.saturating_sub(1)]);
    // No honest id comes near the bound; a damaged one must not overflow.
    handed_out.chain(known).filter(|id| *id < 1 << 62).max().unwrap_or(0)
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dir, node_id, cluster, last, .. } = self;
        if self.unfinished {
            return write!(
                f,
                "{}: a recovery of node {node_id} was interrupted and is finished.",
                dir.display()
            );
        }
        writeln!(
            f,
            "Node {node_id} leaves cluster {cluster} and founds a new one from {}, with its state \
             and its log up to index {} of term {}.",
            dir.display(),
            last.index,
            last.term
        )?;
        match self.dismissed.as_slice() {
            [] => {}
            gone => writeln!(
                f,
                "Not part of it: {}. They belong to the old cluster for ever; to join the new one \
                 each needs an empty data directory.",
                nodes(gone)
            )?,
        }
        write!(f, "WHAT MAY BE LOST, AND WHAT MAY COME BACK:")?;
        if self.losses.is_empty() {
            write!(f, "\n  - nothing that is known of")?;
        }
        for loss in &self.losses {
            write!(f, "\n  - {loss}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Recovered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.plan)?;
        write!(
            f,
            "Done: node {} is the only voter of cluster {}, under raft id {}. Start it, then let the \
             others join with empty data directories.",
            self.plan.node_id, self.cluster, self.raft_id
        )
    }
}
