//! A random walk over the cluster: crashes, cuts, lost, doubled and reordered messages, held
//! disks and Stores, members that come and go. Then everything is healed, and the cluster must
//! lead, write, and agree.
//!
//! A failure names its seed; `RAFTLINE_SEED=n` repeats it alone, `RAFTLINE_SEEDS=n` runs more.

use std::collections::BTreeSet;

use super::calls::Answer;
use super::cluster::{Cluster, Load, Machine, addr, incarnation};
use super::text;
use crate::error::Outcome;
use crate::node::event::{Change, Event, Freshness};
use crate::node::leadership::Rng;
use crate::types::{Member, NodeId};

const SEEDS: u64 = 300;
const STEPS: usize = 250;
const MAX_MACHINES: u64 = 6;

struct Walk {
    c: Cluster,
    rng: Rng,
    proposed: u64,
    reads: u64,
    definite: BTreeSet<String>,
    durable: bool,
}

impl Walk {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut c = Cluster::new(seed);
        // Small bounds, so that snapshots, probes and full windows happen.
        c.config.snapshot_entries = 3 + rng.next() % 20;
        c.config.snapshot_trailing_entries = rng.next() % 6;
        c.config.max_inflight_msgs = 1 + (rng.next() % 8) as usize;
        c.config.max_size_per_msg = 1 + rng.next() % 200;
        c.config.max_apply_lag = 300 + rng.next() % 3000;
        let durable = rng.next().is_multiple_of(2);
        c.found(1 + rng.next() % 5, durable);
        Self { c, rng, proposed: 0, reads: 0, definite: BTreeSet::new(), durable }
    }

    fn below(&mut self, n: u64) -> u64 {
        self.rng.next() % n
    }

    fn any(&mut self) -> NodeId {
        let ids: Vec<NodeId> = self.c.machines.keys().copied().collect();
        ids[self.below(ids.len() as u64) as usize]
    }

    fn any_up(&mut self) -> Option<NodeId> {
        let up = self.c.up();
        if up.is_empty() { None } else { Some(up[self.below(up.len() as u64) as usize]) }
    }

    fn step(&mut self) {
        match self.below(100) {
            0..40 => self.network(),
            40..62 => self.clock(),
            62..78 => self.request(),
            78..84 => self.membership(),
            84..92 => self.storage(),
            _ => self.disaster(),
        }
        self.settle_calls();
    }

    fn network(&mut self) {
        for _ in 0..1 + self.below(8) {
            let len = self.c.net.len() as u64;
            if len == 0 {
                return;
            }
            let i = if self.below(3) == 0 { self.below(len) as usize } else { 0 };
            let lost = self.below(20) == 0;
            let twice = self.below(20) == 0;
            let late = self.below(4) == 0;
            if twice {
                let copy = text::copy(&self.c.net[i]);
                // A snapshot's transfer ends once.
                let copy = copy.filter(|p| !matches!(p.load, Load::Snapshot(..)));
                self.c.net.extend(copy);
            }
            let Some(packet) = self.c.net.remove(i) else { return };
            let (from, to) = (packet.from, packet.to);
            if lost {
                self.c.lose(packet)
            } else {
                self.c.deliver(packet)
            }
            // Sometimes several events come before the node is asked what it wants.
            if !late {
                self.c.drive(to);
                self.c.drive(from);
            }
        }
    }

    fn clock(&mut self) {
        let Some(id) = self.any_up() else { return };
        for _ in 0..1 + self.below(4) {
            self.c.tell(id, Event::Tick);
            if self.below(4) > 0 {
                self.c.drive(id);
            }
        }
    }

    fn request(&mut self) {
        let Some(id) = self.any_up() else { return };
        if self.below(3) > 0 {
            for _ in 0..1 + self.below(4) {
                self.proposed += 1;
                let command = format!("c{}", self.proposed);
                self.c.propose(id, &command);
            }
        } else {
            self.reads += 1;
            let freshness = match self.below(4) {
                0 => Freshness::AtLeast(self.below(40)),
                1 => Freshness::Stale,
                _ => Freshness::Linearizable,
            };
            let name = format!("{freshness:?}");
            self.c.read(id, freshness, name);
        }
        if self.below(3) > 0 {
            self.c.drive(id);
        }
    }

    fn membership(&mut self) {
        let Some(at) = self.any_up() else { return };
        match self.below(9) {
            0 | 1 => {
                let id = 1 + self.below(MAX_MACHINES);
                if !self.c.machines.contains_key(&id) {
                    let (incarnation, addr) = (incarnation(id, 0), addr(id));
                    let voter = self.below(4) > 0;
                    let change = Change::Join { node_id: id, incarnation, addr, voter };
                    self.c.change(at, change, format!("join {id}"));
                }
            }
            6..9 => {
                let change = self.any_change();
                self.c.change(at, change.clone(), format!("{change:?}"));
            }
            2 => {
                let id = self.any();
                self.c.change(at, Change::Remove { node_id: id }, format!("remove {id}"));
            }
            3 => {
                let id = self.any();
                let addr = format!("moved-{}:1", self.below(5));
                let incarnation = incarnation(id, 0);
                let change = Change::Update { node_id: id, incarnation, addr };
                self.c.change(at, change, format!("update {id}"));
            }
            _ => {
                let to = Some(self.any()).filter(|_| self.below(3) > 0);
                self.c.transfer(at, to, "transfer".to_owned());
            }
        }
        self.c.drive(at);
    }

    /// What an administrator may ask for, sensible or not.
    fn any_change(&mut self) -> Change {
        let (node_id, old, new) = (1 + self.below(MAX_MACHINES), self.any(), self.any());
        match self.below(7) {
            0 => Change::AddLearner { node_id, addr: addr(node_id) },
            1 => Change::AddVoter { node_id, addr: addr(node_id), added: false },
            2 => Change::Promote { node_id },
            3 => Change::Demote { node_id },
            4 => Change::Replace { old, new },
            _ => {
                let ids: Vec<NodeId> = self.c.machines.keys().copied().collect();
                let all: Vec<_> = ids.into_iter().map(|id| (id, self.below(3))).collect();
                let these = |role| {
                    all.iter().filter(|(_, r)| *r == role).map(|(id, _)| *id).collect::<Vec<_>>()
                };
                Change::Set { voters: these(0), learners: these(1) }
            }
        }
    }

    fn storage(&mut self) {
        let id = self.any();
        let count = 1 + self.below(3) as usize;
        match self.below(6) {
            0 => self.c.at(id).disk_held = true,
            1 => self.c.at(id).store_held = true,
            2 => self.c.at(id).disk_held = false,
            3 => self.c.at(id).store_held = false,
            4 if self.c.is_up(id) => drop(self.c.sync(id, count)),
            5 if self.c.is_up(id) => drop(self.c.run_store(id, count)),
            _ => {}
        }
        self.c.drive(id);
    }

    fn disaster(&mut self) {
        let (a, b) = (self.any(), self.any());
        match self.below(8) {
            0 | 1 => {
                if self.c.is_up(a) && self.c.up().len() > 1 {
                    // What was written may or may not have reached the disk.
                    let count = self.below(4) as usize;
                    self.c.at(a).disk.sync(count);
                    self.c.crash(a);
                }
            }
            2..5 => self.restart(a),
            5 | 6 => drop(self.c.cut.insert((a, b))),
            _ => self.c.cut.clear(),
        }
    }

    fn restart(&mut self, id: NodeId) {
        if !self.c.is_up(id) {
            self.c.start(id).unwrap_or_else(|e| panic!("node {id} refuses to start: {e}"));
        }
    }

    /// Judges what calls came to, and lets joiners in.
    fn settle_calls(&mut self) {
        for (id, m) in &self.c.machines {
            assert_eq!(m.fatal, None, "node {id} stopped");
        }
        for (call, answer) in self.c.answers() {
            if let Some(command) = call.name.strip_prefix("propose ") {
                match answer {
                    Ok(Answer::Applied(a)) => {
                        let there = &self.c.history[&a.index];
                        assert!(there.iter().any(|c| c == command), "acknowledged, not applied");
                        self.c.acknowledged.push(command.to_owned());
                    }
                    Ok(Answer::Members(..) | Answer::Done) => panic!("not a proposal's answer"),
                    Err(e) if e.outcome() == Outcome::NotApplied => {
                        self.definite.insert(command.to_owned());
                    }
                    Err(_) => {}
                }
                continue;
            }
            match (answer, call.joins) {
                (Ok(Answer::Members(m, _)), Some((id, incarnation))) => {
                    let raft_id = m.by_incarnation(id, incarnation).map(|m| m.raft_id);
                    if let Some(raft_id) = raft_id.filter(|_| !self.c.machines.contains_key(&id)) {
                        self.c.add(id, raft_id, incarnation, self.durable);
                    }
                }
                (Ok(Answer::Applied(a)), _) if call.name == "Linearizable" => {
                    let text = String::from_utf8(a.data).expect("text");
                    let seen: BTreeSet<&str> = text.split(' ').collect();
                    for write in &self.c.acknowledged[..call.sees] {
                        assert!(seen.contains(write.as_str()), "I12: a read misses {write}");
                    }
                }
                _ => {}
            }
        }
    }

    /// Everything works again: a leader, a fresh write, one state.
    fn heal(&mut self) {
        self.c.cut.clear();
        let ids: Vec<NodeId> = self.c.machines.keys().copied().collect();
        for id in ids {
            self.restart(id);
            self.c.at(id).disk_held = false;
            self.c.at(id).store_held = false;
            self.c.drive(id);
        }
        self.c.stabilize();
        self.settle_calls();
        // I15: ten election timeouts for a leader, as many again for the write.
        let mut ticks = 0;
        while self.ready_leader().is_none() {
            ticks += 1;
            assert!(ticks <= 200, "I15: no leader after healing: {}", self.picture());
            self.c.tick_all(1);
            self.settle_calls();
        }
        for tick in 0..200 {
            // A handover under way may refuse it; then it is tried again.
            if let Some(leader) = self.ready_leader().filter(|_| tick % 20 == 0) {
                self.c.propose(leader, &format!("fresh{tick}"));
                self.c.drive(leader);
            }
            self.c.tick_all(1);
            self.settle_calls();
            if self.at_rest() {
                break;
            }
        }
        assert!(self.has_fresh_write(), "I15: no write after healing: {}", self.picture());
        self.agree();
    }

    fn has_fresh_write(&self) -> bool {
        self.c.acknowledged.iter().any(|c| c.starts_with("fresh"))
    }

    fn ready_leader(&self) -> Option<NodeId> {
        let id = self.c.leader()?;
        let node = self.c.machines[&id].node.as_ref()?;
        node.raw.raft.commit_to_current_term().then_some(id)
    }

    /// Every member has applied the whole log of the leader, the fresh write included.
    fn at_rest(&self) -> bool {
        let leader = self.c.leader().and_then(|id| self.c.machines[&id].node.as_ref());
        let Some(leader) = leader else { return false };
        let joint = leader.membership.as_ref().is_some_and(crate::types::Membership::is_joint);
        let members = leader.membership.iter().flat_map(|m| &m.members);
        let mut stores = members.filter_map(|m| Some(&self.member(m)?.store));
        self.has_fresh_write()
            && !joint
            && self.c.calls.is_empty()
            && stores.all(|s| s.applied == leader.last_index())
    }

    /// The machine of a member; one under its node id may be another, which was removed before.
    fn member(&self, m: &Member) -> Option<&Machine> {
        let machine = self.c.machines.get(&m.node_id)?;
        let raft_id = machine.disk.identity.cluster.map(|(_, raft_id)| raft_id);
        Some(machine).filter(|_| raft_id == Some(m.raft_id))
    }

    fn agree(&mut self) {
        let leader = self.c.leader().expect("a leader");
        let members = self.c.node(leader).membership.clone().expect("members");
        let state = self.c.at(leader).store.state.clone();
        for m in &members.members {
            let Some(machine) = self.member(m) else { continue };
            assert_eq!(machine.store.state, state, "I5: node {}: {}", m.node_id, self.picture());
        }
        let counted: BTreeSet<&String> = state.iter().collect();
        assert_eq!(counted.len(), state.len(), "I10: a command was applied twice");
        for command in &self.c.acknowledged {
            assert!(counted.contains(command), "I10: {command} was acknowledged and is lost");
        }
        for command in &self.definite {
            assert!(!counted.contains(command), "I10: {command} never happened, but is there");
        }
    }

    fn picture(&self) -> String {
        let lines = self.c.machines.iter().map(|(id, m)| {
            let all = [text::status(*id, m), text::members(*id, m), text::log(*id, m)];
            format!("\n{}\n{}\n{}\n{}", all[0], all[1], all[2], text::disk(*id, m))
        });
        lines.collect()
    }
}

/// Safety at every step, and recovery at the end, whatever happens.
#[test]
fn random_walk() {
    let number = |name| std::env::var(name).ok().and_then(|v: String| v.parse::<u64>().ok());
    let seeds = match number("RAFTLINE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RAFTLINE_SEEDS").unwrap_or(SEEDS),
    };
    let mut writes = 0;
    for seed in seeds {
        let run = std::panic::catch_unwind(|| {
            let mut walk = Walk::new(seed);
            (0..STEPS).for_each(|_| walk.step());
            walk.heal();
            walk.c.acknowledged.len()
        });
        match run {
            Ok(n) => writes += n,
            Err(e) => {
                let text = e.downcast_ref::<String>().map(String::as_str);
                let text = text.or(e.downcast_ref::<&str>().copied()).unwrap_or("a panic");
                panic!("RAFTLINE_SEED={seed}: {text}");
            }
        }
    }
    assert!(writes > 0, "a walk that writes nothing shows nothing");
}
