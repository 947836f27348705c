//! The gate never refuses a correct member: a cluster of bare engines behind gates, over a network
//! that drops, delays, duplicates and reorders, with slow disks, restarts, snapshots, membership
//! changes, transfers and reads. A refusal may call a message stale, never hostile or fatal.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use raft_rs::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};
use raft_rs::{SnapshotStatus, StateRole};

use super::bench::{Engine, NONCE, Rng};
use super::*;
use crate::node::context::ReadContext;

const RUNS: u64 = 30;
const STEPS: u64 = 6_000;

struct Cluster {
    rng: Rng,
    engines: BTreeMap<RaftId, Engine>,
    wire: Vec<Message>,
    /// Nobody hears this node, nor does it hear anybody: its messages wait.
    cut: Option<RaftId>,
    reads: u64,
    admitted: BTreeMap<String, u64>,
    restarts: u64,
}

impl Cluster {
    fn new(seed: u64) -> Self {
        let mut engines: BTreeMap<_, _> = (1..=3).map(|id| (id, Engine::founded(id))).collect();
        engines.insert(4, Engine::joiner(4));
        for e in engines.values_mut() {
            e.membership = None;
        }
        let admitted = BTreeMap::new();
        Self {
            rng: Rng(seed),
            engines,
            wire: Vec::new(),
            cut: None,
            reads: 0,
            admitted,
            restarts: 0,
        }
    }

    fn step(&mut self) -> Result<(), String> {
        let id = 1 + self.rng.below(4);
        match self.rng.below(100) {
            0..=54 => return self.deliver(),
            55..=64 => self.engine(id).tick(),
            65..=76 => self.engine(id).write(),
            77..=87 => self.engine(id).sync_once(),
            88..=94 => self.propose(id),
            95 => self.read(id),
            96 => self.change(id),
            97 => self.compact(id),
            98 => self.transfer(id),
            _ if self.rng.one_in(8) => self.restart(id),
            _ if self.rng.one_in(3) => self.cut = self.rng.pick(&[None, Some(id)]),
            _ => {}
        }
        for e in self.engines.values_mut() {
            self.wire.append(&mut e.sent);
        }
        Ok(())
    }

    fn engine(&mut self, id: RaftId) -> &mut Engine {
        self.engines.get_mut(&id).unwrap()
    }

    fn deliver(&mut self) -> Result<(), String> {
        if self.wire.is_empty() {
            return Ok(());
        }
        // Mostly the oldest: a network that only reorders elects nobody.
        let place = if self.rng.one_in(4) { self.rng.below(self.wire.len() as u64) } else { 0 };
        let mut m = self.wire.remove(place as usize);
        if self.cut == Some(m.from) || self.cut == Some(m.to) {
            self.wire.push(m);
            return Ok(());
        }
        let kind = m.get_msg_type();
        let (from, to) = (m.from, m.to);
        let lost = self.rng.one_in(25);
        if kind == MessageType::MsgSnapshot {
            let status = if lost { SnapshotStatus::Failure } else { SnapshotStatus::Finish };
            self.engine(from).node.report_snapshot(to, status);
        }
        if lost {
            return Ok(());
        }
        if self.rng.one_in(25) {
            self.wire.push(m.clone());
        }
        let e = self.engines.get_mut(&to).unwrap();
        let before = m.clone();
        match admit(&mut m, from, &e.view(from)) {
            Ok(()) => {
                // Canonical bytes are what the leader wrote: nothing changes on the way.
                assert_eq!(m, before);
                *self.admitted.entry(format!("{kind:?}")).or_default() += 1;
                let _ = e.node.step(m);
            }
            Err(reject) if reject.severity() == Severity::Stale => {}
            Err(reject) => return Err(format!("{before:?} was refused: {reject}")),
        }
        Ok(())
    }

    fn propose(&mut self, id: RaftId) {
        let node = &mut self.engine(id).node;
        if node.raft.state == StateRole::Leader {
            let _ = node.propose(vec![], vec![7; 40]);
        }
    }

    fn read(&mut self, raft_id: RaftId) {
        self.reads += 1;
        let context = ReadContext { raft_id, nonce: NONCE, counter: self.reads };
        self.engine(raft_id).node.read_index(context.encode().to_vec());
    }

    fn change(&mut self, id: RaftId) {
        let single = |kind, id| {
            let mut c = ConfChangeSingle::default();
            c.set_change_type(kind);
            c.set_node_id(id);
            c
        };
        let target = self.rng.pick(&[3, 4, 4]);
        let kind = self.rng.pick(&[ConfChangeType::AddNode, ConfChangeType::AddLearnerNode]);
        let joint = self.rng.one_in(3);
        let node = &mut self.engine(id).node;
        if node.raft.state != StateRole::Leader || node.raft.has_pending_conf() {
            return;
        }
        let mut change = ConfChangeV2::default();
        if node.raft.prs().conf().to_conf_state().voters_outgoing.is_empty() {
            change.mut_changes().push(single(kind, target));
            if joint {
                change.mut_changes().push(single(ConfChangeType::AddNode, 7 - target));
                change.set_transition(ConfChangeTransition::Explicit);
            }
        }
        let _ = node.propose_conf_change(vec![], change);
    }

    fn compact(&mut self, id: RaftId) {
        let e = self.engine(id);
        let applied = e.node.raft.raft_log.applied;
        // Nothing is compacted under a ready that is on its way (R9).
        if e.unsynced.is_empty()
            && !e.node.has_ready()
            && applied > e.storage.first_index().unwrap()
        {
            e.storage.wl().compact(applied).unwrap();
        }
    }

    fn transfer(&mut self, id: RaftId) {
        let to = 1 + self.rng.below(4);
        let node = &mut self.engine(id).node;
        if node.raft.state == StateRole::Leader && self.rng.one_in(4) {
            self.engine(id).node.transfer_leader(to);
        }
    }

    /// Everything that was written is on the disk; what was not sent yet is lost.
    fn restart(&mut self, id: RaftId) {
        self.restarts += 1;
        let mut e = self.engines.remove(&id).unwrap();
        e.write();
        self.engines.insert(id, e.restart());
    }

    fn committed(&self) -> Index {
        self.engines.values().map(Engine::commit).max().unwrap_or(0)
    }
}

#[test]
fn a_seed_repeats_its_walk() {
    let walk = || {
        let mut cluster = Cluster::new(7);
        (0..STEPS).for_each(|_| cluster.step().unwrap());
        let last = cluster.engines.values().map(|e| (e.node.raft.term, e.commit(), e.last()));
        (last.collect::<Vec<_>>(), cluster.admitted, cluster.wire)
    };
    assert_eq!(walk(), walk());
}

#[test]
fn no_message_of_a_correct_member_is_called_hostile() {
    let seed = Rng::seed();
    let mut seeds = Rng(seed);
    let mut admitted = BTreeMap::<String, u64>::new();
    let (mut committed, mut restarts) = (0, 0);
    for run in 0..RUNS {
        let mut cluster = Cluster::new(seeds.next());
        for step in 0..STEPS {
            if let Err(refusal) = cluster.step() {
                panic!("RAFTLINE_SEED={seed}, run {run}, step {step}: {refusal}");
            }
        }
        committed += cluster.committed();
        restarts += cluster.restarts;
        for (kind, count) in cluster.admitted {
            *admitted.entry(kind).or_default() += count;
        }
    }
    // The clusters lived: every type of message was seen, and work was done.
    assert_eq!(admitted.len(), 12, "RAFTLINE_SEED={seed}: {admitted:?}");
    assert!(committed > RUNS * 20, "RAFTLINE_SEED={seed}: {committed} committed");
    assert!(restarts > RUNS, "RAFTLINE_SEED={seed}: {restarts} restarts");
}
