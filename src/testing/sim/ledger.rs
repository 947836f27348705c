//! What the oracle knows of the members: every membership that was in force, every change that a
//! log may still bring into force, and whose disk is in which machine.

use std::collections::{BTreeMap, BTreeSet};

use super::disk_model::DiskModel;
use super::machine::Machine;
use super::marks::{Mark, Marks};
use super::oracle::Oracle;
use super::plan::Knob;
use super::schedule::Time;
use super::world::World;
use crate::node::Node;
use crate::pb;
use crate::types::{
    ConfState, Entry, EntryKind, Incarnation, Index, Member, MemberRole, Membership, NodeId,
    RaftId, Term,
};

/// How raft numbers the entries that change the configuration.
const CONF_CHANGE_V2: u8 = 2;
/// How raft numbers the steps of a change; what is left removes.
const ADD_VOTER: u32 = 0;
const ADD_LEARNER: u32 = 2;
/// The incarnation of a member that was added and has not joined.
const EXPECTED: Incarnation = Incarnation::from_u128(0);

/// Entries that change the configuration, wherever they stand.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Where each leads that a leader has appended.
    appended: BTreeMap<(Index, Term), ConfState>,
    /// Those that were committed; whether they are more than the leaving of a joint one.
    committed: BTreeMap<Index, bool>,
    /// Joint configurations whose leader has crashed in them.
    orphans: BTreeSet<Index>,
    /// Machines that somebody has asked to make voters.
    promoted: BTreeSet<NodeId>,
    /// Machines whose removal somebody has asked for, and it may still happen.
    removed: BTreeSet<NodeId>,
}

impl Ledger {
    /// Somebody asks to make this machine a voter.
    pub(super) fn asks_to_promote(&mut self, id: NodeId) {
        self.promoted.insert(id);
    }

    /// Somebody asks to remove this machine.
    pub(super) fn asks_to_remove(&mut self, id: NodeId) {
        self.removed.insert(id);
    }

    /// No removal that anybody has asked for can happen any more.
    pub(super) fn no_removal_is_asked(&mut self) {
        self.removed.clear();
    }

    pub(super) fn commits(&mut self, index: Index, kind: u8, data: &[u8]) {
        if kind == CONF_CHANGE_V2 {
            self.committed.insert(index, !data.is_empty());
        }
    }

    /// Changes that were committed; a joint one counts once.
    pub(super) fn changes(&self) -> u64 {
        self.committed.values().filter(|whole| **whole).count() as u64
    }
}

impl Oracle {
    /// A node writes an entry: the first to write a change is the leader that has appended it, and
    /// counts by the configuration that it starts from.
    /// Where it starts and leads to, if it is new.
    pub(super) fn appends(&mut self, entry: &Entry, node: &Node) -> Option<[ConfState; 2]> {
        let at = (entry.index, entry.term);
        if entry.kind != EntryKind::ConfChangeV2 || self.ledger.appended.contains_key(&at) {
            return None;
        }
        let change: pb::ConfChangeV2 =
            prost::Message::decode(entry.data.clone()).expect("invariant: a leader encodes it");
        let base = node.conf();
        let next = after(&base, &change);
        self.ledger.appended.insert(at, next.clone());
        Some([base, next])
    }

    /// Whether a learner's disk holds the entry with which its directory came to be a member: else it
    /// cannot have caught up. An older copy of a disk may have been put back since.
    pub(super) fn may_have_caught_up(&self, learner: RaftId) -> bool {
        let joined = |m: &&Membership| m.by_raft(learner).is_some_and(Member::has_joined);
        let since = self.memberships.values().find(joined).map_or(0, |m| m.index);
        // Who has lost its disk a moment ago had caught up with it.
        let disk = self.disk_of(learner).map(|d| &d.durable);
        let mut held = disk.into_iter().chain(self.given_up.get(&learner));
        held.any(|contents| contents.last_index() >= since) || self.put_back
    }

    /// Configurations that some log, or a message, may still bring into force.
    pub(super) fn possible(&self) -> impl Iterator<Item = &ConfState> {
        let last = self.last_committed();
        let settled = self.memberships.last_key_value().map_or(0, |(index, _)| *index);
        let open = move |index: Index, term| match self.committed.get(&index) {
            Some(entry) => entry.term == term,
            None => index > last,
        };
        let above = self.ledger.appended.range((settled + 1, 0)..);
        above.filter(move |((index, term), _)| open(*index, *term)).map(|(_, conf)| conf)
    }

    /// Whether a change is committed that a node holds, and whose record is not on its disk.
    pub(super) fn is_between_commit_and_apply(&self, id: NodeId, commit: Index) -> bool {
        let newest = self.ledger.committed.range(..=commit).next_back();
        newest.is_some_and(|(index, _)| self.membership_record(id) < *index)
    }

    /// A leader crashes.
    pub(super) fn leader_crashes(&mut self, members: Option<&Membership>) {
        if let Some(m) = members.filter(|m| m.is_joint()) {
            self.ledger.orphans.insert(m.index);
        }
    }

    /// I13: the same index brings the same membership everywhere, the one that its entry leads to;
    /// ids are never used again.
    pub(super) fn membership(&mut self, m: &Membership, marks: &mut Marks) {
        for member in &m.members {
            let name = (member.node_id, member.incarnation);
            let known = self.names.entry(member.raft_id).or_insert(name);
            if *known == (member.node_id, EXPECTED) {
                *known = name;
            }
            // A membership from before it joined says so, too.
            let same = *known == name || name == (known.0, EXPECTED);
            assert!(same, "I13: raft id {} is used again", member.raft_id);
        }
        if let Some(known) = self.memberships.get(&m.index) {
            assert_eq!(known, m, "I13: two memberships at index {}", m.index);
            return;
        }
        self.require_fold(m);
        if let Some((_, before)) = self.memberships.range(..m.index).next_back() {
            self.ledger.mark(before, m, marks);
            let term = |index: Index| self.committed.get(&index).map(|e| e.term);
            let inherited = term(before.index) != term(m.index)
                && !m.is_joint()
                && self.ledger.orphans.remove(&before.index);
            marks.hit_if(Mark::JointInherited, inherited);
        }
        self.memberships.insert(m.index, m.clone());
    }

    fn require_fold(&self, m: &Membership) {
        let term = self.committed.get(&m.index).map(|e| e.term);
        let leads_to = term.and_then(|term| self.ledger.appended.get(&(m.index, term)));
        if let Some(conf) = leads_to {
            let found = &m.conf_state;
            assert_eq!(found, conf, "I13: the change at {} leads elsewhere", m.index);
        }
    }
    /// Index of the durable membership record.
    pub(super) fn membership_record(&self, id: NodeId) -> Index {
        let record = self.disks.get(&id).and_then(|d| d.durable.membership.clone());
        record.and_then(|r| Membership::decode(r).ok()).map_or(0, |m| m.index)
    }

    /// Whether a majority of the voters of the newest membership has it on its disk that this one
    /// was removed: before, its vote may be needed.
    pub(super) fn knows_removal(&self, raft_id: RaftId) -> bool {
        let Some((_, newest)) = self.memberships.last_key_value() else { return false };
        let knows = |voter: &&RaftId| {
            let record = self.disk_of(**voter).and_then(|d| d.durable.membership.clone());
            record.and_then(|r| Membership::decode(r).ok()).is_some_and(|m| m.was_removed(raft_id))
        };
        let voters = &newest.conf_state.voters;
        newest.was_removed(raft_id) && voters.iter().filter(knows).count() > voters.len() / 2
    }

    /// The disk of a member, unless its machine has lost it: what is in there now is another's.
    pub(super) fn disk_of(&self, raft_id: RaftId) -> Option<&DiskModel> {
        let (home, incarnation) = self.names.get(&raft_id)?;
        let there = self.incarnations.get(home) == Some(incarnation);
        self.disks.get(home).filter(|_| there)
    }

    /// The data directory of a member that some membership has named.
    pub(super) fn incarnation(&self, raft_id: RaftId) -> Option<Incarnation> {
        self.names.get(&raft_id).map(|(_, incarnation)| *incarnation)
    }

    /// A machine gets another disk. What the old one held still counts where its member does: it
    /// never votes again, and every majority without it meets those that it was part of.
    pub(super) fn new_disk(&mut self, id: NodeId, incarnation: Incarnation) {
        let before = self.incarnations.insert(id, incarnation);
        let old = self.disks.remove(&id);
        let named = |name: &(NodeId, Incarnation)| Some(name.1) == before && name.0 == id;
        // One that was removed before it heard of its raft id has been let in again under another.
        let lost = self.names.iter().filter(|(_, name)| named(name)).map(|(raft_id, _)| *raft_id);
        if let Some(old) = old {
            for raft_id in lost {
                self.given_up.entry(raft_id).or_insert_with(|| old.durable.clone());
            }
        }
        self.last.remove(&id);
    }
}

impl World {
    /// R17: a leader appends a change only if a majority of the voters that it leads to was there a
    /// moment ago, and promotes nobody who cannot have caught up.
    pub(super) fn change_is_appended(&self, id: NodeId, [base, next]: &[ConfState; 2]) {
        let promoted = |v: &&RaftId| base.learners.contains(v);
        for learner in next.voters.iter().filter(promoted) {
            let fit = self.oracle.may_have_caught_up(*learner);
            assert!(fit, "R17: node {id} promotes {learner}, which has not caught up");
        }
        // A leader that was paused has not counted the time.
        let leaves =
            base.voters_outgoing != next.voters_outgoing && next.voters_outgoing.is_empty();
        if leaves || base.voters == next.voters || self.plan.get(Knob::Pause) > 0 {
            return;
        }
        let patience = 4 * self.config.election_timeout().as_micros() as Time;
        let there = |v: &&RaftId| {
            let home = self.net.homes.get(*v).and_then(|home| self.machines.get(home));
            let up = |m: &Machine| m.is_up() && m.raft_id == Some(**v);
            home.is_some_and(|m| up(m) || m.ended + patience > self.now())
        };
        let count = next.voters.iter().filter(there).count();
        assert!(
            count > next.voters.len() / 2,
            "R17: node {id} appends a change to {next:?}, of whose voters {count} are there"
        );
    }
}

impl Ledger {
    /// What has happened from one membership to the next.
    fn mark(&self, before: &Membership, m: &Membership, marks: &mut Marks) {
        let (old, new) = (&before.conf_state.voters, &m.conf_state.voters);
        marks.hit_if(Mark::JointEntered, !before.is_joint() && m.is_joint());
        marks.hit_if(Mark::JointLeft, before.is_joint() && !m.is_joint());
        let node = |m: &Membership, v: &RaftId| m.by_raft(*v).map(|member| member.node_id);
        let gone: Vec<&RaftId> = old.iter().filter(|v| !new.contains(v)).collect();
        marks.hit_if(Mark::VoterRemoved, !gone.is_empty());
        let by_itself = |v: &&RaftId| {
            let id = node(before, v);
            id.is_some_and(|id| !self.removed.contains(&id) && m.by_node(id).is_none())
        };
        marks.hit_if(Mark::DeadRemoved, gone.into_iter().any(|v| by_itself(&v)));
        let promoted = |v: &&RaftId| before.role(**v) == Some(MemberRole::Learner);
        let came: Vec<&RaftId> = new.iter().filter(promoted).collect();
        marks.hit_if(Mark::Promoted, !came.is_empty());
        let asked = |v: &RaftId| node(m, v).is_some_and(|id| self.promoted.contains(&id));
        marks.hit_if(Mark::AutoPromoted, came.into_iter().any(|v| !asked(v)));
        let was = |n: &Member| before.by_raft(n.raft_id);
        let moved = |n: &Member| was(n).is_some_and(|o| o.addr != n.addr);
        marks.hit_if(Mark::AddressChanged, m.members.iter().any(moved));
        let joined = |n: &Member| n.has_joined() && was(n).is_some_and(|o| !o.has_joined());
        marks.hit_if(Mark::ExpectedJoins, m.members.iter().any(joined));
        let anew = |n: &Member| {
            let old = before.by_node(n.node_id);
            was(n).is_none() && old.is_some_and(Member::has_joined)
        };
        marks.hit_if(Mark::Readmitted, m.members.iter().any(anew));
    }
}

/// Where a change leads from a configuration, as raft's thesis has it (4.3) and raft does it.
fn after(base: &ConfState, change: &pb::ConfChangeV2) -> ConfState {
    let set = |ids: &[RaftId]| ids.iter().copied().collect::<BTreeSet<RaftId>>();
    let (mut voters, mut learners) = (set(&base.voters), set(&base.learners));
    let mut learners_next = BTreeSet::new();
    let steps = &change.changes;
    let outgoing = if steps.len() > 1 { set(&base.voters) } else { BTreeSet::new() };
    if steps.is_empty() {
        learners.extend(&base.learners_next);
    }
    for step in steps {
        let id = step.node_id;
        voters.remove(&id);
        learners.remove(&id);
        match step.change_type {
            ADD_VOTER => voters.insert(id),
            ADD_LEARNER if outgoing.contains(&id) => learners_next.insert(id),
            ADD_LEARNER => learners.insert(id),
            _ => true,
        };
    }
    let list = |ids: BTreeSet<RaftId>| ids.into_iter().collect();
    ConfState {
        voters: list(voters),
        learners: list(learners),
        voters_outgoing: list(outgoing),
        learners_next: list(learners_next),
        auto_leave: false,
    }
}
