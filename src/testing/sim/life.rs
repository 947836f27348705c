//! How nodes begin and end: founding, starts from whatever the disk holds, crashes.

use super::disk_model::Contents;
use super::machine::{Life, LogJob, Machine, Running, addr, incarnation};
use super::marks::Mark;
use super::plan::Knob;
use super::schedule::{MS, SECOND, Time};
use super::stopping::Refusal;
use super::world::{What, World};
use crate::driver::boot::Opened;
use crate::driver::hints::Hints;
use crate::driver::whereabouts::Search;
use crate::error::Result;
use crate::log::LogBatch;
use crate::node::Node;
use crate::node::effect::Effect;
use crate::testing::vfs::{CrashStyle, FaultyVfs};
use crate::types::{
    ClusterId, ConfState, HardState, Identity, Member, Membership, NodeId, Position,
};

pub(super) const CLUSTER: ClusterId = ClusterId::from_u128(0xc105);
const FOUNDING: Position = Position { index: 1, term: 1 };

/// The membership of a disk that belongs to no cluster.
pub(super) fn nobody() -> Membership {
    Membership {
        cluster_id: CLUSTER,
        index: 0,
        conf_state: ConfState::default(),
        members: Vec::new(),
        next_raft_id: 0,
    }
}

/// How a machine stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Crash {
    /// The process ends; what it wrote is still in the kernel's cache.
    Kill,
    /// What was not synced is anybody's guess.
    Power,
}

impl World {
    /// Nodes 1 to n as the founding leaves them on their disks, and machines that may join.
    pub(super) fn found(&mut self) {
        let n = self.plan.get(Knob::Nodes);
        let members: Vec<Member> = (1..=n)
            .map(|id| Member {
                node_id: id,
                raft_id: id,
                incarnation: incarnation(id, 0),
                addr: addr(id, 0),
                metadata: bytes::Bytes::new(),
                learner_only: false,
            })
            .collect();
        let membership = Membership {
            cluster_id: CLUSTER,
            index: FOUNDING.index,
            conf_state: ConfState { voters: (1..=n).collect(), ..ConfState::default() },
            members,
            next_raft_id: n + 1,
        };
        for id in 1..=n + self.plan.get(Knob::Spares) {
            let tick = self.clock_of_a_machine();
            let mut machine = Machine::new(id, tick);
            if id <= n {
                machine.raft_id = Some(id);
                self.net.homes.insert(id, id);
                self.oracle.new_disk(id, machine.incarnation());
                self.write_founding(&machine, &membership);
            } else {
                machine.life = Life::Out;
            }
            self.machines.insert(id, machine);
        }
        self.oracle.membership(&membership, &mut self.marks);
        self.churn.learn(&membership);
        (1..=n).for_each(|id| self.boot(id));
    }

    fn clock_of_a_machine(&mut self) -> Time {
        let tick = self.config.heartbeat.as_micros() as Time;
        let skew = self.plan.get(Knob::Skew);
        let percent = 100 + self.chance.fault.below(2 * skew + 1) - skew;
        tick * percent / 100
    }

    fn write_founding(&mut self, machine: &Machine, membership: &Membership) {
        let storage = machine.storage(&self.plan).expect("an empty disk opens");
        let mut log = storage.log;
        log.load().expect("an empty log loads");
        let identity = Identity {
            node_id: machine.id,
            incarnation: machine.incarnation(),
            cluster: machine.raft_id.map(|raft_id| (CLUSTER, raft_id)),
            boot: 0,
        };
        log.identify(&identity).expect("no fault yet");
        if machine.raft_id.is_none() {
            return;
        }
        let batch = LogBatch {
            reset: Some(FOUNDING),
            hard_state: Some(HardState { term: 1, vote: 0, commit: 1 }),
            membership: Some(membership.encode()),
            ..LogBatch::default()
        };
        let job = LogJob::Append { number: 0, batch };
        self.oracle.write_begins(machine.id, &job, &mut self.marks);
        if let LogJob::Append { batch, .. } = job {
            log.append(&[batch]).expect("no fault yet");
        }
        self.oracle.write_is_done(machine.id, 1);
    }

    /// A disk without anything on it, that asks to be let in.
    pub(super) fn empty_disk(&mut self, id: NodeId) {
        let m = self.at(id);
        m.vfs = FaultyVfs::new();
        m.generation += 1;
        m.raft_id = None;
        m.wiped = true;
        m.rotten = false;
        m.rolled_back = false;
        m.boots = 0;
        m.epoch += 1;
        m.life = Life::Joining;
        m.sealed = false;
        let incarnation = m.incarnation();
        self.oracle.new_disk(id, incarnation);
        let machine = self.machines.remove(&id).expect("invariant: it was just used");
        self.write_founding(&machine, &nobody());
        self.machines.insert(id, machine);
    }

    /// Starts a node from what its disk holds.
    pub(super) fn boot(&mut self, id: NodeId) {
        match self.try_boot(id) {
            Ok(()) => {
                let epoch = self.at(id).epoch;
                let tick = self.at(id).tick;
                let phase = self.chance.fault.below(tick);
                self.schedule.after(phase, What::Tick(id, epoch));
                self.stats.starts += 1;
                self.note(|| format!("node {id} starts"));
                // Who has no record yet is told by whoever let it in.
                let told = self.churn.newest();
                if let Some(r) = self.at(id).running() {
                    r.view = told;
                }
                self.dispatch(id, epoch);
            }
            Err(refusal) => self.refused_start(id, &refusal),
        }
    }

    fn try_boot(&mut self, id: NodeId) -> Result<(), Refusal> {
        let mut opened = self.at_ref(id).open(&self.plan)?;
        let found = Contents::of(&opened.recovered);
        if self.at(id).rolled_back {
            self.oracle.rolled_back(id, found.clone());
        }
        let sealed = std::mem::take(&mut self.at(id).sealed);
        let survived = self.oracle.recovered(id, &found).map_err(|what| {
            let explained = !sealed && self.oracle.lacks_the_last_only(id, &found);
            Refusal::Contents { what, explained }
        })?;
        self.sealed_again(id, sealed, survived, opened.recovered.dropped_tail.as_deref());
        let torn = opened.recovered.dropped_tail.is_some();
        self.marks.hit_if(Mark::TornTail, torn);
        self.marks.hit_if(Mark::UnsyncedKept, survived > 0);
        let resumes = opened.recovered.snapshot.is_some_and(|s| s.installing);
        self.marks.hit_if(Mark::InstallResumed, resumes);
        let m = self.at(id);
        if m.rotten {
            m.rotten = false;
            self.hit(Mark::RotHarmless);
        }
        self.at(id).boots = opened.identity.boot;
        let raft_id = self.at(id).raft_id.expect("invariant: only a member starts");
        if opened.identity.cluster.is_none() {
            opened.belong(CLUSTER, raft_id)?;
        }
        let running = self.assemble(id, opened)?;
        self.at(id).life = Life::Running(Box::new(running));
        Ok(())
    }

    fn at_ref(&self, id: NodeId) -> &Machine {
        &self.machines[&id]
    }

    fn assemble(&mut self, id: NodeId, opened: Opened) -> Result<Running> {
        let wiped = std::mem::take(&mut self.at(id).wiped);
        let store = self.caller.make(&self.subject, id, wiped);
        let applied = store.applied();
        let snapshot = opened.recovered.snapshot.map_or(0, |s| s.position.index);
        let behind = applied.is_some_and(|a| a < snapshot && a > 0);
        self.marks.hit_if(Mark::DurableBehind, behind);
        self.marks.hit_if(Mark::DurableAhead, applied.is_some_and(|a| a > snapshot.max(1)));
        let (raft_id, boots) = (opened.identity.cluster.map_or(0, |c| c.1), opened.identity.boot);
        let (boot, storage) = opened.into_boot(applied)?;
        let seed = self.plan.seed.wrapping_mul(31) + id * 1000 + boots;
        let node = Node::new(&self.config, boot, seed, &self.trace.logger(id))?;
        let seeds = self.churn.seeds(id);
        Ok(Running {
            node,
            raft_id,
            snapshots: storage.snapshots,
            completions: Vec::new(),
            messages: Vec::new(),
            message_bytes: 0,
            seen_boots: std::collections::BTreeMap::new(),
            requests: Vec::new(),
            tick_due: false,
            woken: false,
            log: storage.log,
            log_queue: Vec::new(),
            writing: Vec::new(),
            writing_since: 0,
            store,
            jobs: std::collections::VecDeque::new(),
            store_busy: false,
            applied: applied.unwrap_or(0),
            captures: 0,
            mischief: None,
            view: None,
            hints: Hints::default(),
            said: std::collections::BTreeMap::new(),
            seeds,
            search: Search::default(),
            next_look: 0,
            removed: None,
            status: crate::status::Status::default(),
            drain: None,
        })
    }

    /// A machine crashes, and comes back after a while.
    pub(super) fn crash(&mut self, id: NodeId, how: Crash) {
        if !self.at(id).is_up() {
            return;
        }
        self.mark_crash(id);
        if how == Crash::Power && self.chance.fault.one_in(2) {
            self.tear_write(id);
        }
        let style = CrashStyle::Seeded(self.chance.fault.next_u64());
        let m = self.at(id);
        m.vfs = match how {
            Crash::Kill => m.vfs.duplicate(),
            Crash::Power => m.vfs.crash(style),
        };
        self.note(|| format!("node {id} crashes: {how:?}"));
        self.end_process(id);
        self.restart_later(id);
    }

    /// Everything of a process is gone.
    pub(super) fn end_process(&mut self, id: NodeId) {
        let now = self.now();
        let m = self.at(id);
        let old = std::mem::replace(&mut m.life, Life::Down);
        m.ended = if matches!(old, Life::Running(_)) { now } else { m.ended };
        m.epoch += 1;
        m.store_hangs_until = 0;
        m.stalled_until = 0;
        m.paused_until = 0;
        drop(old);
        // Nothing of an earlier life fails in the next.
        m.vfs.disarm();
        self.nemesis.forget(id);
        self.oracle.process_ends(id);
        self.transfers_break(id);
        self.calls_break(id);
        self.collect(id);
    }

    pub(super) fn restart_later(&mut self, id: NodeId) {
        if self.healed {
            return;
        }
        let delay = match self.chance.fault.below(4) {
            0 => 10 * MS,
            1 | 2 => self.chance.fault.below(2 * SECOND),
            _ => self.chance.fault.below(15 * SECOND),
        };
        let epoch = self.at(id).epoch;
        self.schedule.after(delay, What::Restart(id, epoch));
    }

    pub(super) fn restart(&mut self, id: NodeId, epoch: u64) {
        let m = self.at(id);
        if m.epoch == epoch && matches!(m.life, Life::Down) {
            self.boot(id);
        }
    }

    /// What a crash comes in the middle of.
    fn mark_crash(&mut self, id: NodeId) {
        let receiving = self.transfers.receiving(id);
        let leads = self.at(id).leads();
        let durable = self.oracle.durable(id);
        let noted = durable.snapshot.is_some_and(|s| s.installing);
        let membership = self.oracle.membership_record(id);
        let node = self.machines.get(&id).and_then(Machine::node);
        let commit = node.map_or(0, |n| n.probe().commit);
        let in_change = self.oracle.is_between_commit_and_apply(id, commit);
        if leads {
            self.oracle.leader_crashes(node.and_then(|n| n.members()));
        }
        let marks = &mut self.marks;
        let Some(r) = self.machines.get_mut(&id).and_then(Machine::running) else { return };
        marks.hit_if(Mark::LeaderKilled, leads);
        marks.hit_if(Mark::CrashInChange, in_change);
        marks.hit_if(Mark::CrashBeforeWrite, !(r.writing.is_empty() && r.log_queue.is_empty()));
        marks.hit_if(Mark::CrashInTransfer, receiving);
        marks.hit_if(Mark::CrashInCapture, r.captures > 0);
        let installing = |job: &LogJob| match job {
            LogJob::Append { batch, .. } => batch.snapshot.is_some_and(|s| s.installing),
            LogJob::Compact(_) => false,
        };
        let queued = r.writing.iter().chain(&r.log_queue).any(installing);
        let arrived = r.messages.iter().any(|(_, m)| m.snapshot.is_some());
        marks.hit_if(Mark::CrashBeforeRecord, queued || arrived);
        let front = r.jobs.front();
        let restores = matches!(front, Some(Effect::Install { .. }));
        marks.hit_if(Mark::CrashInRestore, restores && r.store_busy);
        let waits = r.jobs.iter().any(|j| matches!(j, Effect::Install { .. }));
        let snapshot = durable.snapshot.map_or(0, |s| s.position.index);
        let restored = r.applied >= snapshot;
        marks.hit_if(Mark::CrashBeforeRestore, noted && !waits && !restored);
        marks.hit_if(Mark::CrashAfterRestore, noted && !waits && restored);
        let applies = matches!(front, Some(Effect::Apply(_)));
        marks.hit_if(Mark::CrashInApply, applies && r.store_busy);
        let behind = membership > r.applied.max(1) && !r.jobs.is_empty();
        marks.hit_if(Mark::CrashBeforeApply, behind);
    }

    /// Sometimes a node ends between the commit of a membership change and its record.
    pub(super) fn crash_in_change(&mut self, id: NodeId, epoch: u64) {
        if !self.nemesis.crashes_in_change() {
            return;
        }
        let Some(r) = self.alive(id, epoch) else { return };
        let commit = r.node.probe().commit;
        if self.oracle.is_between_commit_and_apply(id, commit) && self.chance.fault.one_in(2) {
            self.nemesis.crashed_in_change();
            let how = [Crash::Kill, Crash::Power][self.chance.fault.below(2) as usize];
            self.crash(id, how);
        }
    }

    /// Sometimes power goes in the very moment in which persisted messages leave.
    pub(super) fn crash_after_send(&mut self, id: NodeId, epoch: u64) {
        if self.alive(id, epoch).is_some()
            && self.nemesis.crashes_after_send(&mut self.chance.fault)
        {
            self.hit(Mark::CrashAfterSend);
            self.crash(id, Crash::Power);
        }
    }
}
