//! The world: machines, links, disks, clients, and what happens next. One thread, virtual time.
//!
//! Nothing here decides what is right: the oracle does, after every event. Everything is drawn
//! from the seed, nothing from a clock, a thread or the order of a hash map.

use std::collections::BTreeMap;

use super::caller::Caller;
use super::calls::Calls;
use super::churn::Churn;
use super::clients::Clients;
use super::machine::{Life, LogJob, Machine, Running, config};
use super::marks::{Mark, Marks};
use super::nemesis::Nemesis;
use super::net::{Net, Packet};
use super::oracle::Oracle;
use super::plan::{Knob, Plan};
use super::report::Stats;
use super::schedule::{MS, Schedule, Time};
use super::stopping::Cause;
use super::subject::Subject;
use super::trace::Trace;
use super::transfers::Transfers;
use crate::config::Config;
use crate::node::effect::Effect;
use crate::node::event::Event;
use crate::testing::rng::Rng;
use crate::testing::watch;
use crate::types::{Index, Membership, NodeId, Position, RaftId};

/// Something that is going to happen.
#[derive(Debug)]
pub(super) enum What {
    /// The event loop of a node takes its turn.
    Turn(NodeId, u64),
    Tick(NodeId, u64),
    /// The log thread is done with what it took.
    Written(NodeId, u64),
    /// The Store is done with the job in front.
    Stored(NodeId, u64),
    /// A captured snapshot gets its turn on the disk.
    Captured(NodeId, u64, Position, Box<Membership>, Vec<u8>),
    /// Old snapshot files are removed.
    Retain(NodeId, u64, Index),
    Packet(Packet),
    /// The next chunk of a snapshot's transfer.
    Chunk(u64),
    /// A forwarded request that is handed back to its node.
    GiveBack(u64),
    /// A forwarded request whose answer does not come.
    CallDeadline(u64),
    Client(usize),
    ClientDeadline(u64),
    Fault(Knob),
    Restart(NodeId, u64),
    Resume(NodeId),
    Mend(u64),
    Churn,
    /// An admin's request that is not answered.
    AdminDeadline(u64),
    /// A node that was removed ends.
    Depart(NodeId, u64),
}

/// Independent streams of chance, so that a fault that is left out changes little else.
pub(super) struct Chances {
    pub(super) net: Rng,
    pub(super) disk: Rng,
    pub(super) client: Rng,
    pub(super) fault: Rng,
}

pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) config: Config,
    pub(super) schedule: Schedule<What>,
    pub(super) chance: Chances,
    pub(super) machines: BTreeMap<NodeId, Machine>,
    pub(super) net: Net,
    pub(super) calls: Calls,
    pub(super) transfers: Transfers,
    pub(super) clients: Clients,
    pub(super) churn: Churn,
    pub(super) nemesis: Nemesis,
    pub(super) oracle: Oracle,
    pub(super) marks: Marks,
    pub(super) stats: Stats,
    pub(super) trace: Trace,
    pub(super) subject: Subject,
    pub(super) caller: Caller,
    /// The second phase: no faults any more.
    pub(super) healed: bool,
    /// Nobody is gone for good in it.
    pub(super) whole: bool,
}

impl World {
    pub(super) fn new(plan: &Plan, subject: Subject, trace: Trace, watched: watch::Calls) -> Self {
        let mut seeds = Rng::new(plan.seed);
        let mut next = || Rng::new(seeds.next_u64());
        Self {
            config: config(plan),
            schedule: Schedule::new(),
            chance: Chances { net: next(), disk: next(), client: next(), fault: next() },
            machines: BTreeMap::new(),
            net: Net::default(),
            calls: Calls::default(),
            transfers: Transfers::default(),
            clients: Clients::new(plan.get(Knob::Clients) as usize),
            churn: Churn::default(),
            nemesis: Nemesis::default(),
            oracle: Oracle::default(),
            marks: Marks::default(),
            stats: Stats::default(),
            trace,
            subject,
            caller: Caller::new(watched),
            healed: false,
            whole: false,
            plan: plan.clone(),
        }
    }

    pub(super) fn now(&self) -> Time {
        self.schedule.now()
    }

    pub(super) fn at(&mut self, id: NodeId) -> &mut Machine {
        self.machines.get_mut(&id).expect("invariant: machines are never taken away")
    }

    /// A node, if the life that `epoch` names still lasts.
    pub(super) fn alive(&mut self, id: NodeId, epoch: u64) -> Option<&mut Running> {
        self.machines.get_mut(&id).filter(|m| m.epoch == epoch)?.running()
    }

    pub(super) fn up(&self) -> Vec<NodeId> {
        self.machines.values().filter(|m| m.is_up()).map(|m| m.id).collect()
    }

    pub(super) fn leader(&self) -> Option<NodeId> {
        let leads = |m: &Machine| m.node().map(|n| n.probe()).filter(|p| p.leads).map(|p| p.term);
        self.machines.values().filter_map(|m| Some((leads(m)?, m.id))).max().map(|(_, id)| id)
    }

    /// Runs until this moment.
    pub(super) fn run_until(&mut self, end: Time) {
        while let Some(what) = self.schedule.next_before(end) {
            self.happen(what);
            self.stats.events += 1;
        }
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Turn(id, epoch) => self.turn(id, epoch),
            What::Tick(id, epoch) => self.tick(id, epoch),
            What::Written(id, epoch) => self.written(id, epoch),
            What::Stored(id, epoch) => self.stored(id, epoch),
            What::Captured(id, epoch, position, membership, data) => {
                self.captured(id, epoch, position, *membership, &data);
            }
            What::Retain(id, epoch, keep) => self.retain(id, epoch, keep),
            What::Packet(packet) => self.arrive(packet),
            What::Chunk(transfer) => self.chunk(transfer),
            What::GiveBack(call) => self.give_back(call),
            What::CallDeadline(call) => self.call_is_lost(call, "no answer in time"),
            What::Client(client) => self.client_acts(client),
            What::ClientDeadline(op) => self.client_gives_up(op),
            What::Fault(knob) => self.fault(knob),
            What::Restart(id, epoch) => self.restart(id, epoch),
            What::Resume(id) => self.resume(id),
            What::Mend(fault) => self.mend(fault),
            What::Churn => self.admin_acts(),
            What::AdminDeadline(request) => self.admin_gives_up(request),
            What::Depart(id, epoch) => self.depart(id, epoch),
        }
    }

    /// A delay around this mean, in microseconds.
    pub(super) fn around(rng: &mut Rng, mean: Time) -> Time {
        mean / 2 + rng.below(mean.max(1))
    }

    /// Tells a node that something was done.
    pub(super) fn complete(&mut self, id: NodeId, epoch: u64, event: Event) {
        if let Some(r) = self.alive(id, epoch) {
            r.completions.push(event);
            self.wake(id);
        }
    }

    pub(super) fn request(&mut self, id: NodeId, event: Event) {
        let Some(r) = self.machines.get_mut(&id).and_then(Machine::running) else { return };
        r.requests.push(event);
        self.wake(id);
    }

    /// Plans a turn of a node's event loop, if none is.
    pub(super) fn wake(&mut self, id: NodeId) {
        let delay = 5 + self.chance.net.below(40);
        let Some(m) = self.machines.get_mut(&id) else { return };
        let (epoch, paused_until) = (m.epoch, m.paused_until);
        let Some(r) = m.running().filter(|r| !r.woken) else { return };
        r.woken = true;
        let at = (self.now() + delay).max(paused_until);
        self.schedule.at(at, What::Turn(id, epoch));
    }

    fn tick(&mut self, id: NodeId, epoch: u64) {
        let now = self.now();
        let m = self.at(id);
        let (period, paused_until) = (m.tick, m.paused_until);
        let Some(r) = self.alive(id, epoch) else { return };
        if paused_until > now {
            // However long the pause was, it is one tick (H15).
            self.schedule.at(paused_until, What::Tick(id, epoch));
            return;
        }
        r.tick_due = true;
        self.wake(id);
        self.schedule.after(period, What::Tick(id, epoch));
    }

    /// One turn of the event loop: completions, messages, requests, and last at most one tick.
    fn turn(&mut self, id: NodeId, epoch: u64) {
        let now = self.now();
        let paused_until = self.at(id).paused_until;
        let Some(r) = self.alive(id, epoch) else { return };
        if paused_until > now {
            self.schedule.at(paused_until, What::Turn(id, epoch));
            return;
        }
        r.woken = false;
        if let Some(drain) = r.drain.as_mut().filter(|d| !d.told) {
            drain.told = true;
            r.node.handle(Event::Stop);
        }
        let tick = std::mem::take(&mut r.tick_due);
        for event in std::mem::take(&mut r.completions) {
            r.node.handle(event);
        }
        r.message_bytes = 0;
        for (from, message) in std::mem::take(&mut r.messages) {
            r.node.handle(Event::Message { from, message });
        }
        for event in std::mem::take(&mut r.requests) {
            r.node.handle(event);
        }
        self.dispatch(id, epoch);
        if tick && let Some(r) = self.alive(id, epoch) {
            r.node.handle(Event::Tick);
            self.dispatch(id, epoch);
        }
        self.crash_after_send(id, epoch);
        self.crash_in_change(id, epoch);
        self.collect(id);
        self.end_drained(id, epoch);
    }

    /// Answers that a node has given since the last time.
    pub(super) fn collect(&mut self, id: NodeId) {
        self.collect_calls(id);
        self.collect_ops(id);
        self.collect_admin(id);
    }

    /// Carries out what a node wants, then looks at it.
    pub(super) fn dispatch(&mut self, id: NodeId, epoch: u64) {
        let Some(r) = self.alive(id, epoch) else { return };
        let mut effects = Vec::new();
        r.node.poll(&mut effects);
        for effect in effects {
            self.carry_out(id, epoch, effect);
        }
        let now = self.now();
        let Some(m) = self.machines.get(&id).filter(|m| m.epoch == epoch) else { return };
        if let Some(node) = m.node() {
            self.oracle.look(now, id, epoch, node, &mut self.marks);
            self.stats.digest(now, id, &node.probe());
            self.require_transfers(id);
        }
    }

    /// I16: a peer in Snapshot state has a transfer under way, or soon the watchdog's attention.
    fn require_transfers(&self, id: NodeId) {
        let patience = 20 * self.config.heartbeat.as_micros() as Time;
        for (peer, since) in self.oracle.snapshot_waits(id) {
            let waits = self.now().saturating_sub(since);
            let under_way = self.transfers.is_open(id, peer) || self.is_to_be_told(id, peer);
            let cared_for = waits < patience || under_way;
            assert!(
                cared_for,
                "I16: node {id} waits for {peer} in Snapshot state, and nothing is sent"
            );
        }
    }

    /// Whether a node has yet to take the news that its transfer to a peer has ended. One that was
    /// paused hears in one turn that the last one broke, and that the peer answers: it sends the
    /// next one, which breaks at once if the peer is down by now, before anybody has looked.
    fn is_to_be_told(&self, id: NodeId, peer: RaftId) -> bool {
        let Life::Running(r) = &self.machines[&id].life else { return false };
        let ended = |e: &Event| matches!(e, Event::SnapshotSent { to, .. } if *to == peer);
        r.completions.iter().any(ended)
    }

    fn carry_out(&mut self, id: NodeId, epoch: u64, effect: Effect) {
        if self.alive(id, epoch).is_none() {
            return;
        }
        match effect {
            Effect::Send(messages) => messages.into_iter().for_each(|m| self.send(id, m)),
            Effect::Persist { number, batch } => {
                self.log_job(id, LogJob::Append { number, batch });
            }
            Effect::Compact { through, keep_snapshot } => {
                self.log_job(id, LogJob::Compact(through));
                let delay = Self::around(&mut self.chance.disk, MS);
                self.schedule.after(delay, What::Retain(id, epoch, keep_snapshot));
            }
            Effect::Apply(_)
            | Effect::Query(_)
            | Effect::Capture { .. }
            | Effect::Install { .. } => {
                self.store_job(id, effect);
            }
            Effect::SendSnapshot { to, message } => self.send_snapshot(id, to, message),
            Effect::Forward { leader, work } => self.forward(id, &leader, work),
            Effect::SetPeers(membership) => self.set_peers(id, epoch, membership),
            Effect::Publish(status) => self.publish(id, *status),
            Effect::Fatal(error) => self.stopped(id, &Cause::Node(error)),
        }
    }

    fn set_peers(&mut self, id: NodeId, epoch: u64, membership: Membership) {
        let (told, recorded) = (membership.index, self.oracle.membership_record(id));
        assert!(recorded >= told, "node {id} tells of membership {told}, durable is {recorded}");
        self.oracle.membership(&membership, &mut self.marks);
        self.churn.learn(&membership);
        let now = self.now();
        let Some(r) = self.alive(id, epoch) else { return };
        let removed = membership.was_removed(r.raft_id) && r.removed.is_none();
        r.hints.settle(&membership);
        r.view = Some(membership);
        if removed {
            r.removed = Some(now);
            self.schedule.after(100 * MS, What::Depart(id, epoch));
        }
    }

    /// What the run came to.
    pub(super) fn stats(&self) -> Stats {
        let mut stats = self.stats.clone();
        stats.changes = self.oracle.ledger.changes();
        stats.cut_short = self.marks.count(Mark::CrashInChange);
        stats
    }

    pub(super) fn note(&mut self, text: impl FnOnce() -> String) {
        self.trace.line(self.schedule.now(), text);
    }

    /// Marks a situation.
    pub(super) fn hit(&mut self, mark: Mark) {
        self.marks.hit(mark);
    }
}
