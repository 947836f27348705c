//! Faults: when the next one of each kind comes, what it does, and when it ends.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::life::Crash;
use super::machine::{DATA, Life, Machine, Mischief};
use super::marks::Mark;
use super::plan::{FAULTS, Knob};
use super::schedule::{MS, SECOND, Time};
use super::world::{What, World};
use crate::testing::rng::Rng;
use crate::testing::vfs::Fault;
use crate::types::{ConfState, Membership, NodeId, RaftId};
use crate::vfs::Vfs;

/// What the faults have done that is not over.
#[derive(Default)]
pub(super) struct Nemesis {
    count: u64,
    /// Disks that are going to fail, or have.
    armed: BTreeMap<NodeId, Knob>,
    /// Disks on which a bit has flipped since they were new.
    rotten: BTreeSet<NodeId>,
    /// The next write, or the next turn, of anybody ends in a loss of power.
    after_write: bool,
    after_send: bool,
    /// The next node that is between the commit of a membership change and its record ends so.
    in_change: bool,
    /// Disks are lost as soon as no change of the members is under way.
    to_lose: Option<Time>,
    /// No fault before: an older disk waits for its first contact.
    quiet_until: Time,
    /// Leaders whose disk stalls: node, its life, the fault.
    stalled: Vec<(NodeId, u64, u64)>,
}

impl Nemesis {
    pub(super) fn crashes_after_write(&mut self, rng: &mut Rng) -> bool {
        self.after_write && rng.one_in(3) && std::mem::take(&mut self.after_write)
    }

    pub(super) fn crashes_after_send(&mut self, rng: &mut Rng) -> bool {
        self.after_send && rng.one_in(5) && std::mem::take(&mut self.after_send)
    }

    pub(super) fn waits_to_lose(&self) -> bool {
        self.to_lose.is_some()
    }

    pub(super) fn crashes_in_change(&mut self) -> bool {
        self.in_change
    }

    pub(super) fn crashed_in_change(&mut self) {
        self.in_change = false;
    }

    /// The fault that a disk is going to show, or has shown.
    pub(super) fn armed(&self, id: NodeId) -> Option<Knob> {
        self.armed.get(&id).copied()
    }

    pub(super) fn is_rotten(&self, id: NodeId) -> bool {
        self.rotten.contains(&id)
    }

    /// A process has ended: what was meant for it is over.
    pub(super) fn forget(&mut self, id: NodeId) {
        self.armed.remove(&id);
    }

    pub(super) fn new_disk(&mut self, id: NodeId) {
        self.rotten.remove(&id);
    }

    pub(super) fn heal(&mut self) {
        (self.after_write, self.after_send, self.in_change) = (false, false, false);
    }
}

impl World {
    pub(super) fn start_nemesis(&mut self) {
        for &knob in FAULTS {
            if self.plan.get(knob) > 0 && is_event(knob) {
                self.plan_fault(knob);
            }
        }
        self.schedule.after(300 * MS, What::Churn);
    }

    fn plan_fault(&mut self, knob: Knob) {
        let mean = self.plan.get(knob) * MS;
        let gap = mean / 4 + self.chance.fault.below(mean * 3 / 2);
        self.schedule.after(gap, What::Fault(knob));
    }

    pub(super) fn fault(&mut self, knob: Knob) {
        if self.healed {
            return;
        }
        self.plan_fault(knob);
        self.nemesis.count += 1;
        let number = self.nemesis.count;
        if self.plan.left_out.contains(&number) || self.now() < self.nemesis.quiet_until {
            return;
        }
        self.stats.fault(knob);
        self.note(|| format!("fault {number}: {}", knob.name()));
        match knob {
            Knob::Cut | Knob::OneWay | Knob::Bridge | Knob::Clog => self.partition(knob, number),
            Knob::Kill | Knob::Power | Knob::KillLeader | Knob::Blackout => self.kill(knob),
            Knob::Pause | Knob::Stall | Knob::StoreHang => self.slow_down(knob, number),
            Knob::DiskError | Knob::DiskFull => self.arm_disk(knob),
            Knob::Rot => self.rot(),
            Knob::Wipe => self.wipe(),
            Knob::Rollback => self.roll_back(),
            Knob::StoreError | Knob::StorePanic => self.make_mischief(knob),
            Knob::Transfer
            | Knob::Join
            | Knob::Add
            | Knob::Promote
            | Knob::Demote
            | Knob::Remove
            | Knob::RemoveLeader
            | Knob::Replace
            | Knob::Set
            | Knob::Move
            | Knob::Swap => self.change_members(knob),
            Knob::InChange => self.nemesis.in_change = true,
            Knob::Shutdown => self.shut_down(),
            Knob::Burst => {
                let count = 20 + self.chance.fault.below(200);
                if let Some(id) = self.any_up() {
                    self.burst(id, count);
                }
            }
            other => unreachable!("{} is a rate", other.name()),
        }
    }

    pub(super) fn any_up(&mut self) -> Option<NodeId> {
        let up = self.up();
        up.get(self.chance.fault.below(up.len() as u64) as usize).copied()
    }

    fn any(&mut self) -> NodeId {
        let ids: Vec<NodeId> = self.machines.keys().copied().collect();
        ids[self.chance.fault.below(ids.len() as u64) as usize]
    }

    fn while_it_lasts(&mut self, longest: Time) -> Time {
        let shortest = 100 * MS;
        let span = [SECOND, longest][self.chance.fault.below(2) as usize];
        shortest + self.chance.fault.below(span)
    }

    fn partition(&mut self, knob: Knob, number: u64) {
        let ids: Vec<NodeId> = self.machines.keys().copied().collect();
        let lasts = self.while_it_lasts(10 * SECOND);
        match knob {
            Knob::Cut => {
                let inside: BTreeSet<NodeId> =
                    ids.iter().copied().filter(|_| self.chance.fault.one_in(2)).collect();
                for &a in &ids {
                    for &b in ids.iter().filter(|b| inside.contains(b) != inside.contains(&a)) {
                        self.net.cut(a, b, number);
                    }
                }
            }
            Knob::OneWay => {
                let a = self.any();
                let all = self.chance.fault.one_in(2);
                let outgoing = self.chance.fault.one_in(2);
                let b = self.any();
                for &other in ids.iter().filter(|o| all || **o == b) {
                    let (from, to) = if outgoing { (a, other) } else { (other, a) };
                    self.net.cut(from, to, number);
                    self.hit(Mark::OneWayCut);
                }
            }
            Knob::Bridge => {
                let hub = self.any();
                for &a in ids.iter().filter(|a| **a != hub) {
                    for &b in ids.iter().filter(|b| **b != hub) {
                        self.net.cut(a, b, number);
                    }
                }
                self.hit(Mark::Bridged);
            }
            _ => {
                let (a, b) = (self.any(), self.any());
                let until = self.now() + lasts.min(3 * SECOND);
                self.net.clog(a, b, until);
            }
        }
        self.schedule.after(lasts, What::Mend(number));
    }

    pub(super) fn mend(&mut self, fault: u64) {
        self.net.mend(fault);
        let over = |s: &&(NodeId, u64, u64)| s.2 == fault;
        let stalled: Vec<_> = self.nemesis.stalled.iter().filter(over).copied().collect();
        for (id, epoch, _) in stalled {
            let deposed = self.alive(id, epoch).is_some_and(|r| !r.node.probe().leads);
            self.marks.hit_if(Mark::StallDeposes, deposed);
        }
        self.nemesis.stalled.retain(|s| s.2 != fault);
    }

    fn kill(&mut self, knob: Knob) {
        match knob {
            Knob::Blackout => {
                self.hit(Mark::Blackout);
                self.up().into_iter().for_each(|id| self.crash(id, Crash::Power));
            }
            Knob::KillLeader => {
                let how = [Crash::Kill, Crash::Power][self.chance.fault.below(2) as usize];
                if let Some(id) = self.leader() {
                    self.crash(id, how);
                }
            }
            Knob::Power => match self.chance.fault.below(4) {
                0 => self.nemesis.after_write = true,
                1 => self.nemesis.after_send = true,
                _ => self.any_up().into_iter().for_each(|id| self.crash(id, Crash::Power)),
            },
            _ => self.any_up().into_iter().for_each(|id| self.crash(id, Crash::Kill)),
        }
    }

    fn slow_down(&mut self, knob: Knob, number: u64) {
        let leader = self.leader().filter(|_| self.chance.fault.one_in(2));
        let Some(id) = leader.or_else(|| self.any_up()) else { return };
        let lasts = self.while_it_lasts(6 * SECOND);
        let until = self.now() + lasts;
        let leads = self.at(id).leads();
        let election = self.config.election_timeout().as_micros() as Time;
        match knob {
            Knob::Pause => {
                self.at(id).paused_until = until;
                self.marks.hit_if(Mark::PausedLeader, leads && lasts > 2 * election);
                self.schedule.at(until, What::Resume(id));
            }
            Knob::Stall => {
                self.at(id).stalled_until = until;
                if leads {
                    let epoch = self.at(id).epoch;
                    self.nemesis.stalled.push((id, epoch, number));
                }
                self.schedule.at(until, What::Mend(number));
            }
            _ => {
                self.at(id).store_hangs_until = until;
                self.hit(Mark::StoreHangs);
            }
        }
    }

    pub(super) fn resume(&mut self, id: NodeId) {
        self.wake(id);
    }

    fn arm_disk(&mut self, knob: Knob) {
        let Some(id) = self.any_up() else { return };
        let fault = match knob {
            Knob::DiskFull => Fault::Full,
            _ => [Fault::Io, Fault::Short][self.chance.fault.below(2) as usize],
        };
        let nth = 1 + self.chance.fault.below(12);
        self.at(id).vfs.fail_at(nth, fault);
        self.nemesis.armed.insert(id, knob);
    }

    fn make_mischief(&mut self, knob: Knob) {
        let Some(id) = self.any_up() else { return };
        let what = if knob == Knob::StorePanic { Mischief::Panic } else { Mischief::Fail };
        if let Some(r) = self.at(id).running() {
            r.mischief = Some(what);
        }
    }

    /// Whether the cluster can do without this disk for good: a majority of the others' disks is
    /// intact, whatever comes of the changes under way.
    pub(super) fn can_lose(&self, id: NodeId) -> bool {
        // A leader may remove whom it has not heard of, up to the moment in which it misses this one.
        let removes = self.plan.get(Knob::RemoveDead) > 0;
        self.is_settled()
            && (!removes || self.all_reach_each_other(id))
            && self.possible_voters().iter().all(|v| self.intact(v, id) > v.len() / 2)
    }

    /// Whether no change is under way that was asked for.
    pub(super) fn is_settled(&self) -> bool {
        // Whoever has it forgets it when its own deadline is over.
        let doubt = self.churn.last_doubt();
        (doubt == 0 || doubt + 6 * SECOND < self.now()) && !self.churn.is_busy()
    }

    fn all_reach_each_other(&self, but: NodeId) -> bool {
        let now = self.now();
        let fine = |m: &Machine| {
            let held = m.paused_until.max(m.stalled_until) > now;
            m.id == but || !takes_part(m) || (m.is_up() && !held)
        };
        self.net.is_calm(now) && self.machines.values().all(fine)
    }

    /// Whether the voters that are left can go on when this one votes no more.
    pub(super) fn can_remove(&self, id: NodeId) -> bool {
        self.possible_voters().iter().all(|voters| {
            let is_other = |v: &&u64| self.net.homes.get(*v) != Some(&id);
            let others = voters.iter().filter(is_other).count();
            self.intact(voters, id) > others / 2
        })
    }

    /// Every set of voters that some node goes by, that a log may bring into force, or that comes
    /// next when a leader promotes a learner.
    pub(super) fn possible_voters(&self) -> Vec<Vec<RaftId>> {
        let held = self.machines.values().filter_map(|m| m.node()?.members());
        let newest = self.oracle.memberships.values().rev().take(2);
        let confs = held.chain(newest).map(|m| &m.conf_state).chain(self.oracle.possible());
        let mut all = Vec::new();
        for conf in confs {
            // One that has not joined is at home nowhere.
            for learner in conf.learners.iter().filter(|l| self.net.homes.contains_key(*l)) {
                all.push([conf.voters.as_slice(), &[*learner]].concat());
            }
            all.extend([conf.voters.clone(), conf.voters_outgoing.clone()]);
        }
        all.retain(|voters| !voters.is_empty());
        all
    }

    /// How many of these voters have an intact disk, leaving one machine out.
    pub(super) fn intact(&self, voters: &[RaftId], but: NodeId) -> usize {
        let intact = |raft_id: &&u64| {
            let home = self.net.homes.get(*raft_id).and_then(|home| self.machines.get(home));
            home.is_some_and(|m| {
                let lost = matches!(m.life, Life::Out | Life::Joining) || m.rotten;
                m.id != but && m.raft_id == Some(**raft_id) && !lost
            })
        };
        voters.iter().filter(intact).count()
    }

    /// A disk is lost for good.
    fn wipe(&mut self) {
        let id = self.any();
        if !self.is_settled() {
            let until = self.now() + 15 * SECOND;
            self.nemesis.to_lose.get_or_insert(until);
            return;
        }
        if !takes_part(&self.machines[&id]) || !self.can_lose(id) {
            return;
        }
        self.nemesis.to_lose = None;
        let anew = self.chance.fault.below(100) < self.plan.get(Knob::Readmit);
        if anew && self.at(id).is_up() && self.chance.fault.one_in(2) {
            self.ask_too_early(id);
            return;
        }
        self.note(|| format!("node {id} loses its disk"));
        self.lose_disk(id);
        if anew {
            self.empty_disk(id);
        }
    }

    /// A loss that had to wait for the changes under way; after a while it is not waited for.
    pub(super) fn lose_what_waits(&mut self) {
        let Some(until) = self.nemesis.to_lose else { return };
        if self.now() > until {
            self.nemesis.to_lose = None;
        } else if self.now() >= self.nemesis.quiet_until && self.is_settled() {
            self.wipe();
        }
    }

    /// A disk is gone; its machine comes back with another one.
    pub(super) fn lose_disk(&mut self, id: NodeId) {
        self.end_process(id);
        let m = self.at(id);
        m.life = Life::Out;
        m.lost = true;
    }

    /// An older copy of a disk is taken, or put back while a majority that holds every committed
    /// entry runs and can be reached: they notice. Before that, nobody can.
    fn roll_back(&mut self) {
        let id = self.any();
        if !takes_part(&self.machines[&id]) || self.at(id).rotten {
            return;
        }
        let generation = self.at(id).generation;
        let backup = self.at(id).backup.take().filter(|(g, _)| *g == generation);
        let Some((_, copy)) = backup.filter(|_| self.can_lose(id) && self.all_run_but(id)) else {
            let copy = (!self.decides_alone(id)).then(|| self.at(id).vfs.fork());
            self.at(id).backup = copy.map(|copy| (generation, copy));
            return;
        };
        self.note(|| format!("node {id} gets an older copy of its disk"));
        self.end_process(id);
        let m = self.at(id);
        m.vfs = copy;
        m.rolled_back = true;
        m.sealed = false;
        m.wiped = true;
        self.nemesis.quiet_until = self.now() + 10 * SECOND;
        self.boot(id);
    }

    /// Whether a copy of this disk, as it is, could commit without asking anybody who remembers.
    fn decides_alone(&self, id: NodeId) -> bool {
        let record = self.oracle.durable(id).membership;
        let Some(record) = record.and_then(|r| Membership::decode(r).ok()) else { return true };
        // What it has committed, and not applied, it applies when it starts.
        let later = self.oracle.memberships.range(record.index..).map(|(_, m)| m);
        later.chain([&record]).any(|m| {
            let ConfState { voters, voters_outgoing, .. } = &m.conf_state;
            let mut all = voters.iter().chain(voters_outgoing);
            all.all(|voter| self.machines[&id].raft_id == Some(*voter))
        })
    }

    /// Whether everybody else runs, unhindered, and holds everything that was committed, and the
    /// leader remembers how often this disk was started.
    fn all_run_but(&self, id: NodeId) -> bool {
        let last = self.oracle.last_committed();
        let now = self.now();
        let fine = |m: &Machine| {
            let held = m.paused_until.max(m.stalled_until) > now;
            // What was acknowledged and is not committed yet could be committed by it later.
            let settled = |p: crate::node::probe::Probe| p.commit >= last && p.last == last;
            let knows = m.node().is_some_and(|n| settled(n.probe()));
            let holds = self.oracle.durable(m.id).last_index() >= last;
            m.id == id || !takes_part(m) || (!held && knows && holds)
        };
        let disk = &self.machines[&id];
        let remembers = |leader: NodeId| match &self.machines[&leader].life {
            Life::Running(r) => disk.raft_id.and_then(|r_id| r.seen_boots.get(&r_id)).copied(),
            Life::Down | Life::Joining | Life::Out => None,
        };
        let leader = self.leader().filter(|leader| *leader != id);
        leader.and_then(remembers) == Some(disk.boots)
            && self.net.is_calm(now)
            && self.nemesis.armed.is_empty()
            && self.machines.values().all(fine)
    }

    /// A bit flips on the disk of a machine that is down.
    fn rot(&mut self) {
        let id = self.any();
        let member = self.at(id).raft_id.is_some();
        if !member || matches!(self.at(id).life, Life::Out | Life::Joining) || !self.can_lose(id) {
            return;
        }
        self.crash(id, Crash::Kill);
        let m = self.at(id);
        let vfs = m.vfs.clone();
        let dirs = [PathBuf::from(DATA), PathBuf::from(DATA).join("snapshots")];
        let mut files: Vec<PathBuf> = Vec::new();
        for dir in dirs {
            let names = vfs.list(&dir).unwrap_or_default();
            files.extend(names.into_iter().map(|n| dir.join(n)));
        }
        let Some(path) = files.get(self.chance.fault.below(files.len() as u64) as usize) else {
            return;
        };
        let mut bytes = vfs.contents(path).unwrap_or_default();
        let at = self.chance.fault.below(bytes.len() as u64) as usize;
        let bit = self.chance.fault.below(8);
        let Some(byte) = bytes.get_mut(at) else { return };
        *byte ^= 1 << bit;
        vfs.set_contents(path, bytes);
        self.note(|| format!("node {id}: bit {bit} of byte {at} of {} flips", path.display()));
        self.at(id).rotten = true;
        self.nemesis.rotten.insert(id);
    }
}

/// Whether a knob gives times between faults, and not a rate.
fn is_event(knob: Knob) -> bool {
    let rates = [Knob::Loss, Knob::Duplicate, Knob::Reorder, Knob::SlowLink, Knob::Skew];
    !rates.contains(&knob)
}

/// Whether a machine takes part in the cluster, running or not.
pub(super) fn takes_part(m: &Machine) -> bool {
    m.raft_id.is_some() && matches!(m.life, Life::Running(_) | Life::Down)
}
