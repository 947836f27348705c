//! Comparing what is left of a cluster: who is there, who has most, and what may be lost.
//!
//! It compares as voters do (Raft paper, section 5.4.1): the higher last term, then the longer log.
//! It only reads.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use super::inspect::inspect;
use super::listed;
use super::report::Report;
use crate::error::Result;
use crate::types::{Membership, NodeId, RaftId};
use crate::vfs::Vfs;

/// What several data directories of one cluster hold; [`super::survey`] makes it. `Display` tells
/// it to a person.
#[derive(Debug)]
#[non_exhaustive]
pub struct Survey {
    /// What each holds, in the order in which they were named.
    pub reports: Vec<Report>,
    /// The newest membership among them.
    pub membership: Option<Membership>,
    /// The majorities that the cluster needs: one, or two in the middle of a change.
    pub quorums: Vec<Quorum>,
    /// The directory with the most advanced log, as a place in `reports`: the one to recover from.
    /// None when the directories do not fit together, or none can be used.
    pub best: Option<usize>,
    /// Why the directories do not fit together. Empty: they do.
    pub conflicts: Vec<String>,
}

/// A majority that the cluster needs, and who of it is at hand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Quorum {
    /// The voters whose directory is at hand and whole.
    pub present: Vec<NodeId>,
    /// The others.
    pub missing: Vec<NodeId>,
}

/// What to do with the directories that are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Advice {
    /// They are a majority: start these nodes, nothing is lost.
    Start,
    /// The majority is missing. If it is lost for good, recover from this directory, a place in
    /// `reports`.
    Recover(usize),
    /// Neither: they do not fit together, or none can be used.
    Neither,
}

impl Quorum {
    /// How many voters are needed.
    pub fn needed(&self) -> usize {
        (self.present.len() + self.missing.len()) / 2 + 1
    }

    /// Whether enough are at hand.
    pub fn is_met(&self) -> bool {
        self.present.len() >= self.needed()
    }
}

/// See [`super::survey`].
pub(super) fn survey<'a>(
    vfs: &Arc<dyn Vfs>,
    first: &Path,
    others: impl Iterator<Item = &'a Path>,
) -> Result<Survey> {
    let mut reports = vec![inspect(vfs, first)?];
    for dir in others {
        reports.push(inspect(vfs, dir)?);
    }
    Ok(Survey::of(reports))
}

impl Survey {
    pub(super) fn of(reports: Vec<Report>) -> Self {
        let conflicts = conflicts(&reports);
        let memberships =
            reports.iter().filter(|r| r.is_sound()).filter_map(|r| r.membership.as_ref());
        let membership = memberships.max_by_key(|m| m.index).cloned();
        let mut survey = Self { reports, membership, quorums: Vec::new(), best: None, conflicts };
        let Some(m) = survey.membership.clone().filter(|_| survey.conflicts.is_empty()) else {
            return survey;
        };
        let groups = [&m.conf_state.voters, &m.conf_state.voters_outgoing];
        let groups = groups.into_iter().filter(|group| !group.is_empty());
        survey.quorums = groups.map(|group| survey.quorum(&m, group)).collect();
        let usable = (0..survey.reports.len()).filter(|i| survey.is_usable(*i, &m));
        // Of equals the first.
        survey.best = usable.rev().max_by_key(|i| survey.rank(*i));
        survey
    }

    fn quorum(&self, m: &Membership, voters: &[RaftId]) -> Quorum {
        let mut quorum = Quorum::default();
        for id in voters {
            let node = m.by_raft(*id).map_or(*id, |member| member.node_id);
            let at_hand = (0..self.reports.len()).any(|i| self.is_usable(i, m) && self.is(i, *id));
            if at_hand { &mut quorum.present } else { &mut quorum.missing }.push(node);
        }
        quorum
    }

    fn is(&self, i: usize, id: RaftId) -> bool {
        self.reports.get(i).and_then(Report::place).is_some_and(|(_, raft_id)| raft_id == id)
    }

    /// Whether a directory is whole and that of a member.
    fn is_usable(&self, i: usize, m: &Membership) -> bool {
        let Some(report) = self.reports.get(i).filter(|r| r.is_sound()) else { return false };
        let member = report.place().and_then(|(_, raft_id)| m.by_raft(raft_id));
        report.membership.is_some()
            && member.map(|known| known.incarnation) == report.identity.map(|i| i.incarnation)
    }

    fn rank(&self, i: usize) -> (u64, u64, u64, u64) {
        let Some(report) = self.reports.get(i) else { return (0, 0, 0, 0) };
        let (last, commit) = (report.log.last, report.log.hard_state.commit);
        (last.term, last.index, commit, report.membership.as_ref().map_or(0, |m| m.index))
    }

    /// Whether the directory at this place has a log as advanced as the best.
    pub(super) fn is_best(&self, i: usize) -> bool {
        let position = |i: usize| self.reports.get(i).map(|r| (r.log.last.term, r.log.last.index));
        self.best.is_some_and(|best| position(best) == position(i))
    }

    /// Whether every majority that is needed is at hand.
    pub fn has_majority(&self) -> bool {
        !self.quorums.is_empty() && self.quorums.iter().all(Quorum::is_met)
    }

    /// What to do.
    pub fn advice(&self) -> Advice {
        match self.best {
            _ if !self.conflicts.is_empty() => Advice::Neither,
            Some(_) if self.has_majority() => Advice::Start,
            Some(best) => Advice::Recover(best),
            None => Advice::Neither,
        }
    }

    /// What may be lost, and what may come back, when the cluster is recovered from the directory
    /// at this place.
    pub fn losses(&self, i: usize) -> Vec<String> {
        let Some(report) = self.reports.get(i) else { return Vec::new() };
        let (last, commit) = (report.log.last, report.log.hard_state.commit);
        let mut losses = Vec::new();
        let missing = self.missing();
        if !missing.is_empty() {
            losses.push(format!(
                "What only {} had beyond index {} (term {}) is lost for good, acknowledged or not.",
                nodes(&missing),
                last.index,
                last.term
            ));
        }
        for other in self.reports.iter().enumerate().filter(|(at, _)| *at != i).map(|(_, r)| r) {
            let dir = other.dir.display();
            if !other.is_sound() {
                losses.push(format!("{dir} is damaged; whatever it holds beyond that is lost."));
            } else if (other.log.last.term, other.log.last.index) > (last.term, last.index) {
                losses.push(format!(
                    "{dir} is more advanced: its log ends at index {} of term {}. What it holds \
                     beyond this one is lost.",
                    other.log.last.index, other.log.last.term
                ));
            } else if other.log.last.index > last.index {
                losses.push(format!(
                    "{dir} holds entries up to index {}, of the older term {}; those that this one \
                     lacks are lost.",
                    other.log.last.index, other.log.last.term
                ));
            }
        }
        if commit < last.index {
            losses.push(format!(
                "Entries {} to {} of this directory are not known to be committed. They count as \
                 committed from now on: commands whose proposers were told nothing, or that they \
                 failed, may take effect.",
                commit + 1,
                last.index
            ));
        }
        if let Some(tail) = &report.log.dropped_tail {
            losses.push(format!("The unfinished end of its log is dropped: {tail}."));
        }
        losses
    }

    fn missing(&self) -> Vec<NodeId> {
        let mut missing: Vec<_> = self.quorums.iter().flat_map(|q| q.missing.clone()).collect();
        missing.sort_unstable();
        missing.dedup();
        missing
    }
}

/// Why directories do not fit together.
fn conflicts(reports: &[Report]) -> Vec<String> {
    let mut found = Vec::new();
    for (i, a) in reports.iter().enumerate() {
        for b in reports.iter().take(i) {
            let (dir, other) = (b.dir.display(), a.dir.display());
            let incarnation = |r: &Report| r.identity.map(|identity| identity.incarnation);
            if a.identity.is_some() && incarnation(a) == incarnation(b) {
                found.push(format!(
                    "{dir} and {other} are copies of one directory: name the newer one only"
                ));
            }
            if let (Some((ours, _)), Some((theirs, _))) = (b.place(), a.place())
                && ours != theirs
            {
                found.push(format!(
                    "{dir} belongs to cluster {ours}, {other} to {theirs}: name directories of one \
                     cluster only"
                ));
            }
        }
    }
    found
}

pub(super) fn nodes(ids: &[NodeId]) -> String {
    format!("{} {}", if ids.len() == 1 { "node" } else { "nodes" }, listed(ids))
}

impl fmt::Display for Survey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for report in &self.reports {
            writeln!(f, "{report}\n")?;
        }
        for conflict in &self.conflicts {
            writeln!(f, "{conflict}.")?;
        }
        for quorum in &self.quorums {
            write!(
                f,
                "At hand are {} of {} voters, {} are needed",
                quorum.present.len(),
                quorum.present.len() + quorum.missing.len(),
                quorum.needed()
            )?;
            match quorum.missing.as_slice() {
                [] => writeln!(f, ".")?,
                missing => writeln!(f, "; {} {} missing.", nodes(missing), is_are(missing))?,
            }
        }
        match self.advice() {
            Advice::Start => write!(
                f,
                "They are a majority: start these nodes. Nothing is lost, and the others can be \
                 replaced afterwards."
            ),
            Advice::Recover(best) => {
                let Some(report) = self.reports.get(best) else { return Ok(()) };
                writeln!(
                    f,
                    "They are no majority. If the missing ones can come back, wait for them: then \
                     nothing is lost.\nIf they are lost for good, recover from {}, the most \
                     advanced (its log ends at index {} of term {}). Then:",
                    report.dir.display(),
                    report.log.last.index,
                    report.log.last.term
                )?;
                let losses = self.losses(best);
                let lines: Vec<String> = losses.iter().map(|loss| format!("  - {loss}")).collect();
                write!(f, "{}", lines.join("\n"))
            }
            Advice::Neither => write!(f, "No cluster can be recovered from these as they are."),
        }
    }
}

fn is_are(ids: &[NodeId]) -> &'static str {
    if ids.len() == 1 { "is" } else { "are" }
}
