//! What must hold, looked at after every event. A violation is a panic that names the invariant:
//! the run catches it and says which plan replays it.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::disk_model::{self, Contents, DiskModel};
use super::ledger::Ledger;
use super::machine::LogJob;
use super::marks::{Mark, Marks};
use super::schedule::Time;
use super::subject::{DIGEST, mix};
use crate::driver::batch::{Answers, Batch};
use crate::error::Error;
use crate::node::Node;
use crate::node::probe::Probe;
use crate::testing::text::{Answer, shown};
use crate::types::{
    ConfState, Incarnation, Index, Membership, Message, MessageType, NodeId, Position, RaftId,
    SnapshotMeta, Term,
};

/// A committed entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) term: Term,
    digest: u64,
}

/// Everything that was ever seen of the cluster.
#[derive(Default)]
pub(super) struct Oracle {
    leaders: BTreeMap<Term, RaftId>,
    candidates: BTreeMap<Term, RaftId>,
    /// The union of what was committed anywhere.
    pub(super) committed: BTreeMap<Index, Entry>,
    /// The term of the node that first knew of each that it is committed: no leader of an earlier
    /// one need hold it, however late its votes arrive.
    known_in: BTreeMap<Index, Term>,
    /// The commands of each committed entry that a Store was given.
    pub(super) log: BTreeMap<Index, Vec<Bytes>>,
    /// What a Store answered to each, and whose it was.
    answers: BTreeMap<Index, (NodeId, Vec<Answer>)>,
    /// The state of a Store that has applied everything up to an index.
    states: BTreeMap<Index, u64>,
    /// Every entry that came to any disk.
    written: BTreeMap<(Index, Term), u64>,
    pub(super) memberships: BTreeMap<Index, Membership>,
    pub(super) ledger: Ledger,
    pub(super) names: BTreeMap<RaftId, (NodeId, Incarnation)>,
    /// Whose disk is in each machine.
    pub(super) incarnations: BTreeMap<NodeId, Incarnation>,
    pub(super) disks: BTreeMap<NodeId, DiskModel>,
    /// What the disks of removed members held when they were given up.
    pub(super) given_up: BTreeMap<RaftId, Contents>,
    /// The configuration that each node counted by at the last look.
    confs: BTreeMap<NodeId, ConfState>,
    /// Each node at the last look, by the life it was in.
    pub(super) last: BTreeMap<NodeId, (u64, Probe)>,
    /// An older copy of a disk was put back.
    pub(super) put_back: bool,
    /// Since when a leader has waited for a snapshot's transfer (I16).
    snapshot_waits: BTreeMap<(NodeId, RaftId), Time>,
}

impl Oracle {
    /// A node after an event.
    pub(super) fn look(
        &mut self,
        now: Time,
        id: NodeId,
        epoch: u64,
        node: &Node,
        marks: &mut Marks,
    ) {
        let new = node.probe();
        let old = self.last.insert(id, (epoch, new)).filter(|(e, _)| *e == epoch).map(|(_, p)| p);
        if let Some(old) = old {
            self.forward_only(id, &old, &new);
            let deposed = old.leads && !new.leads && old.term == new.term;
            marks.hit_if(Mark::StepsDown, deposed);
        }
        self.bounds(id, &new);
        Self::refuses_nobody(id, &new);
        if new.leads {
            self.leads(id, &new, node, marks);
        }
        // Who does not lead any more waits for nobody.
        self.waits_for_snapshots(now, id, node);
        if new.candidate {
            let first = *self.candidates.entry(new.term).or_insert(new.raft_id);
            marks.hit_if(Mark::Contested, first != new.raft_id);
        }
        let before = old.map_or(new.compacted, |o| o.commit.max(new.compacted));
        if new.commit > before {
            self.commits(id, before, &new, node);
        }
        if old.is_none() || new.emitted != old.map_or(0, |o| o.emitted) {
            self.confs.insert(id, node.conf());
        }
    }

    /// I7.
    pub(super) fn forward_only(&self, id: NodeId, old: &Probe, new: &Probe) {
        assert!(new.term >= old.term, "I7: node {id}: term {} after {}", new.term, old.term);
        assert!(
            new.commit >= old.commit,
            "I7: node {id}: commit {} after {}",
            new.commit,
            old.commit
        );
        assert!(new.emitted >= old.emitted, "I7: node {id} emits again: {old:?} then {new:?}");
        assert!(new.compacted >= old.compacted, "I7: node {id}: compacted entries come back");
    }

    /// Every member is a correct one, and frames on the way are whole: none of their messages may
    /// look like an attack. What came late is stale, which is not counted.
    fn refuses_nobody(id: NodeId, p: &Probe) {
        assert_eq!(p.refused, 0, "gate: node {id} calls a message of a correct member hostile");
    }

    /// I8.
    pub(super) fn bounds(&self, id: NodeId, p: &Probe) {
        assert!(p.compacted <= p.emitted, "I8: node {id}: compacted above emitted: {p:?}");
        assert!(p.emitted <= p.commit, "I8: node {id}: emitted above commit: {p:?}");
        assert!(p.commit <= p.last, "I8: node {id}: commit above the log: {p:?}");
    }

    /// I1, I4, H1.
    fn leads(&mut self, id: NodeId, p: &Probe, node: &Node, marks: &mut Marks) {
        let known = self.leaders.insert(p.term, p.raft_id);
        assert!(
            known.is_none_or(|k| k == p.raft_id),
            "I1: {known:?} and {} lead term {}",
            p.raft_id,
            p.term
        );
        if known.is_some() {
            return;
        }
        let conf = node.conf();
        let votes = conf.voters.contains(&p.raft_id) || conf.voters_outgoing.contains(&p.raft_id);
        assert!(votes, "H1: node {id} leads term {} and is no voter", p.term);
        self.require_votes(id, p, &conf);
        let others = self.last.iter().any(|(other, (_, q))| *other != id && q.leads);
        marks.hit_if(Mark::TwoLeaders, others);
        for (index, entry) in self.committed.range(p.compacted + 1..) {
            if self.known_in.get(index).is_some_and(|term| *term > p.term) {
                continue;
            }
            let found = node.term_at(*index);
            assert_eq!(
                found,
                Some(entry.term),
                "I4: node {id} leads term {} without committed entry {index}",
                p.term
            );
        }
    }

    /// I1: who leads has durable votes of a majority, of both halves of a joint configuration. Its own
    /// may be on its way to the disk; a disk that was put back has forgotten what it voted.
    pub(super) fn require_votes(&self, id: NodeId, p: &Probe, conf: &ConfState) {
        let voted = |voter: &&RaftId| {
            let disk = self.disk_of(**voter).map(|d| &d.durable);
            let mut held = disk.into_iter().chain(self.given_up.get(voter)).map(|c| c.hard_state);
            let mine = **voter == p.raft_id;
            mine || held.any(|hs| hs.term > p.term || (hs.term, hs.vote) == (p.term, p.raft_id))
        };
        let majority = |voters: &Vec<RaftId>| {
            voters.is_empty() || voters.iter().filter(voted).count() > voters.len() / 2
        };
        let before = self.confs.get(&id).filter(|conf| !conf.voters.is_empty());
        let elected = before
            .into_iter()
            .chain([conf])
            .any(|c| majority(&c.voters) && majority(&c.voters_outgoing));
        assert!(
            elected || self.put_back,
            "I1: node {id} leads term {} without the votes of a majority of {conf:?}",
            p.term
        );
    }

    /// I16: whoever is waited for with a snapshot gets one, or the watchdog ends the wait. One who
    /// leads no more waits for nobody.
    fn waits_for_snapshots(&mut self, now: Time, id: NodeId, node: &Node) {
        let peers = node.peers_in_snapshot();
        self.snapshot_waits.retain(|(who, peer), _| *who != id || peers.contains(peer));
        for peer in peers {
            self.snapshot_waits.entry((id, peer)).or_insert(now);
        }
    }

    /// I3, I6: what is committed is on a quorum's disks, and never changes.
    fn commits(&mut self, id: NodeId, before: Index, p: &Probe, node: &Node) {
        // An entry that changes the configuration is committed by the one before.
        let confs = [self.confs.get(&id).cloned().unwrap_or_default(), node.conf()];
        for index in before + 1..=p.commit {
            let (Some(term), Some((kind, data))) = (node.term_at(index), node.entry_at(index))
            else {
                continue;
            };
            let entry = Entry { term, digest: mix(DIGEST ^ u64::from(kind), &data) };
            match self.committed.get(&index) {
                Some(known) => {
                    assert_eq!(*known, entry, "I6: node {id} commits another entry {index}");
                }
                None => {
                    self.require_quorum(&confs, index, term);
                    self.committed.insert(index, entry);
                    self.known_in.insert(index, p.term);
                    self.ledger.commits(index, kind, &data);
                }
            }
        }
    }

    fn require_quorum(&self, confs: &[ConfState], index: Index, term: Term) {
        // A leader that has not heard yet that a member's removal is durable counts that member. It
        // may: whoever is left of such a majority meets every majority of those that are left.
        let holds = |raft_id: &&RaftId| {
            let disk = self.disk_of(**raft_id).map(|d| &d.durable);
            let held = disk.into_iter().chain(self.given_up.get(raft_id));
            held.into_iter().any(|contents| contents.holds(index, term))
        };
        let majority = |voters: &Vec<RaftId>| {
            voters.is_empty() || voters.iter().filter(holds).count() > voters.len() / 2
        };
        let held = confs
            .iter()
            .any(|c| !c.voters.is_empty() && majority(&c.voters) && majority(&c.voters_outgoing));
        assert!(
            held,
            "I6: entry {index} of term {term} is committed and on no quorum of {confs:?}"
        );
    }

    /// A message leaves a node: R2, H6. What it says is durable there. R12: a leader falls silent
    /// behind a stalled disk, so that it loses its leadership.
    /// `term` is that of the node's entry at the message's index.
    pub(super) fn leaves(&self, id: NodeId, message: &Message, stalled: bool, term: Option<Term>) {
        use MessageType as T;
        let Some(disk) = self.disks.get(&id).map(|d| &d.durable) else { return };
        let m = &message.inner;
        let (hs, kind) = (disk.hard_state, m.get_msg_type());
        let leads = matches!(kind, T::MsgAppend | T::MsgHeartbeat | T::MsgSnapshot);
        assert!(!(stalled && leads), "R12: node {id}: {kind:?} leaves behind a stalled disk");
        if !matches!(kind, T::MsgRequestPreVote | T::MsgRequestPreVoteResponse) {
            assert!(
                m.term <= hs.term,
                "I9: node {id}: {kind:?} of term {} leaves, durable {hs:?}",
                m.term
            );
        }
        let vote = match kind {
            T::MsgRequestVoteResponse if !m.reject => Some(m.to),
            T::MsgRequestVote => Some(m.from),
            _ => None,
        };
        if let Some(vote) = vote.filter(|_| m.term == hs.term) {
            assert_eq!(hs.vote, vote, "I9: node {id}: its vote of term {} is not durable", m.term);
        }
        // One of an older term may wait for the very write that replaces its entries.
        if kind == T::MsgAppendResponse && !m.reject && m.term == hs.term {
            let last = disk.last_index();
            assert!(m.index <= last, "I9: node {id} acknowledges {}, durable {last}", m.index);
            let durable = term.is_none_or(|term| disk.holds(m.index, term));
            assert!(durable, "I9: node {id} acknowledges {} of {term:?}, durable another", m.index);
        }
    }

    pub(super) fn write_begins(&mut self, id: NodeId, job: &LogJob, marks: &mut Marks) {
        if let LogJob::Append { batch, .. } = job
            && let (Some(to), Some(disk)) = (batch.reset, self.disks.get(&id))
        {
            let (last, fits) = (disk.durable.last_index(), disk.durable.holds(to.index, to.term));
            marks.hit_if(Mark::SnapshotOverTail, last > to.index || (last == to.index && !fits));
        }
        self.disks.entry(id).or_default().begin(job.into());
    }

    /// I3: an index and a term name one entry on every disk. What never came to a disk, and was
    /// never sent (H6), is forgotten with its process.
    fn match_entries(&mut self, id: NodeId, count: usize) {
        let Some(disk) = self.disks.get(&id) else { return };
        for e in disk.batches(count).flat_map(|batch| &batch.entries) {
            let place = (e.index, e.term);
            let digest = disk_model::digest(e);
            let known = *self.written.entry(place).or_insert(digest);
            assert_eq!(known, digest, "I3: node {id} holds another entry at {place:?}");
        }
    }

    /// The log has said that the oldest writes are durable; true when it replaced entries.
    pub(super) fn write_is_done(&mut self, id: NodeId, count: usize) -> bool {
        self.match_entries(id, count);
        self.disks.entry(id).or_default().done(count)
    }

    /// What a recovery found; how much of what was under way has survived.
    ///
    /// # Errors
    /// When something acknowledged is missing, or something comes back that was never written.
    pub(super) fn recovered(&mut self, id: NodeId, found: &Contents) -> Result<usize, String> {
        self.disks.entry(id).or_default().recovered(found)
    }

    /// Whether a flipped bit cost no more than what was written last.
    pub(super) fn lacks_the_last_only(&self, id: NodeId, found: &Contents) -> bool {
        self.disks.get(&id).is_some_and(|d| d.lacks_the_last_only(found))
    }

    /// An older copy of a disk was put back: what it holds is what it holds.
    pub(super) fn rolled_back(&mut self, id: NodeId, found: Contents) {
        self.put_back = true;
        self.disks.insert(id, DiskModel::holding(found));
    }

    /// The highest index that anybody committed.
    pub(super) fn last_committed(&self) -> Index {
        self.committed.last_key_value().map_or(0, |(i, _)| *i)
    }

    /// Who was elected in the newest term, and that term.
    pub(super) fn newest_leader(&self) -> Option<(NodeId, Term)> {
        let (term, raft_id) = self.leaders.last_key_value()?;
        self.names.get(raft_id).map(|(id, _)| (*id, *term))
    }

    pub(super) fn durable(&self, id: NodeId) -> Contents {
        self.disks.get(&id).map(|d| d.durable.clone()).unwrap_or_default()
    }

    pub(super) fn process_ends(&mut self, id: NodeId) {
        self.last.remove(&id);
        self.snapshot_waits.retain(|(who, _), _| *who != id);
    }

    /// A Store is about to be given these: R3, R7, R8.
    pub(super) fn emitted(&mut self, id: NodeId, batch: &Batch<'_>, marks: &mut Marks) {
        let recorded = self.membership_record(id);
        let mut entries: BTreeMap<Index, Vec<Bytes>> = BTreeMap::new();
        for p in &batch.proposals {
            entries.entry(p.index).or_default().push(Bytes::copy_from_slice(p.data));
        }
        for (index, commands) in entries {
            let Some(disk) = self.disks.get(&id) else { continue };
            let term = self.committed.get(&index).map(|e| e.term);
            let term = term
                .unwrap_or_else(|| panic!("I6: node {id} applies {index}, which nobody committed"));
            assert!(disk.keeps(index, term), "R3: node {id} applies {index} before it is durable");
            let changed = self.memberships.range(..=index).next_back().map_or(0, |(i, _)| *i);
            assert!(
                recorded >= changed,
                "R7: node {id}: record of {recorded}, the Store hears of {changed}"
            );
            marks.hit_if(Mark::Packed, commands.len() > 1);
            let known = self.log.entry(index).or_insert_with(|| commands.clone());
            assert_eq!(*known, commands, "I5: node {id} applies something else at {index}");
        }
    }

    /// The Store's answers: I5.
    pub(super) fn answered(
        &mut self,
        id: NodeId,
        batch: &Batch<'_>,
        answers: &Answers,
        marks: &mut Marks,
    ) {
        let answered = || batch.proposals.iter().zip(answers);
        let mut entries: BTreeMap<Index, Vec<Answer>> = BTreeMap::new();
        for (p, answer) in answered() {
            marks.hit_if(Mark::Rejected, matches!(answer, Err(Error::Rejected(_))));
            entries.entry(p.index).or_default().push(answer.into());
        }
        for (index, found) in entries {
            let (other, known) = self.answers.entry(index).or_insert_with(|| (id, found.clone()));
            let of_entry = answered().filter(|(p, _)| p.index == index);
            for ((p, _), (known, found)) in of_entry.zip(known.iter().zip(&found)) {
                let (known_text, found_text) =
                    if known == found { continue } else { known.pair(found) };
                let whose = match *other == id {
                    true => "before it was started again it answered".to_owned(),
                    false => format!("that of node {other} answered"),
                };
                panic!(
                    "I5: the Store of node {id} answers the command {} at index {index} with \
                     {found_text}; {whose} {known_text}",
                    shown(p.data)
                );
            }
            assert_eq!(known.len(), found.len(), "I5: node {id} answers a part of entry {index}");
        }
    }

    /// Index, membership and data of a snapshot are one cut.
    pub(super) fn captured(&self, position: Position, membership: &Membership) {
        let last = self.memberships.range(..=position.index).next_back().map(|(i, _)| *i);
        assert_eq!(
            Some(membership.index),
            last,
            "a snapshot at {position:?} has another membership"
        );
    }

    /// I5: Stores that were captured at the same index hold the same.
    pub(super) fn captured_state(&mut self, id: NodeId, index: Index, state: u64) {
        let known = *self.states.entry(index).or_insert(state);
        assert_eq!(known, state, "I5: the Store of node {id} differs in its snapshot at {index}");
    }

    /// I5: a snapshot that arrived, and the Store that it was restored to, hold what was captured.
    pub(super) fn restored(&self, id: NodeId, index: Index, states: [u64; 2]) {
        let captured = self.states.get(&index).copied();
        for state in states {
            assert_eq!(captured, Some(state), "I5: node {id} restores another state at {index}");
        }
    }

    /// R11: a snapshot is restored only after its record is durable.
    pub(super) fn installs(&self, id: NodeId, meta: &SnapshotMeta) {
        let record = self.disks.get(&id).and_then(|d| d.durable.snapshot);
        let durable = record.is_some_and(|r| r.position.index >= meta.position.index);
        assert!(durable, "R11: node {id} restores {:?}, its record is {record:?}", meta.position);
    }

    /// Peers that a node waits for in Snapshot state, and since when.
    pub(super) fn snapshot_waits(&self, id: NodeId) -> impl Iterator<Item = (RaftId, Time)> + '_ {
        let waits = self.snapshot_waits.range((id, 0)..=(id, RaftId::MAX));
        waits.map(|((_, peer), since)| (*peer, *since))
    }
}
