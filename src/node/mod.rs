//! The node: decides everything, does nothing. Events in, effects out.
//!
//! It is a value without task, clock, file or socket; time is `Event::Tick`, chance is a seed. A
//! simulator and the real driver run the very same code.
//!
//! It must never: wait, read a clock, look into a command or a query, or touch the engine between
//! `ready()` and `advance_append_async()` other than its storage (H14, R9).
//!
//! Flow: `handle` steps one event into the engine; `poll` proposes what is queued, drains every
//! Ready, and hands the effects over, in the order in which they are to be carried out.

pub(crate) mod conf_change;
pub(crate) mod context;
pub(crate) mod effect;
pub(crate) mod envelope;
pub(crate) mod event;
mod gate;
mod leadership;
mod membership;
mod messages;
mod pipeline;
#[cfg(any(test, feature = "testing"))]
pub(crate) mod probe;
mod proposals;
mod reads;
mod ready;
mod report;
mod snapshots;
mod start;
#[cfg(test)]
mod tests;

use raft_rs::RawNode;

use crate::config::Config;
use crate::error::Error;
use crate::log::cache::LogCache;
use crate::log::{LogBatch, MUCH_TO_WRITE};
use crate::status::{Role, Status};
use crate::types::{HardState, Identity, Index, Membership, RaftId, SnapshotMeta};
use crate::zoo::{self, Bug};
use effect::{Effect, Forward};
use event::Event;
pub(crate) use start::Boot;

/// The parts of the configuration that a node needs, in ticks and bytes.
#[derive(Clone, Debug)]
struct Limits {
    heartbeat: std::time::Duration,
    heartbeat_tick: u64,
    election_tick: u64,
    min_members: usize,
    max_size_per_msg: u64,
    /// Bytes of entries from which on a batch for the disk grows no more.
    max_batch: u64,
    max_apply_lag: u64,
    remove_dead_after: Option<u64>,
    snapshot_entries: u64,
    snapshot_bytes: u64,
    snapshot_trailing_entries: u64,
    snapshot_trailing_bytes: u64,
    gate: gate::Limits,
}

impl Limits {
    /// How long the answer to a round is waited for, in ticks: at least, and at most.
    fn round_timeout(&self) -> (u64, u64) {
        (2 * self.heartbeat_tick, self.election_tick)
    }

    fn new(c: &Config) -> Self {
        Self {
            heartbeat: c.heartbeat,
            heartbeat_tick: c.heartbeat_tick as u64,
            election_tick: c.election_tick as u64,
            min_members: c.min_members,
            max_size_per_msg: c.max_size_per_msg,
            max_batch: c.max_size_per_msg.saturating_mul(4).min(MUCH_TO_WRITE),
            max_apply_lag: c.max_apply_lag,
            remove_dead_after: c.remove_dead_after.map(|after| c.ticks(after)),
            snapshot_entries: c.snapshot_entries,
            snapshot_bytes: c.snapshot_bytes,
            snapshot_trailing_entries: c.snapshot_trailing_entries,
            snapshot_trailing_bytes: c.snapshot_trailing_bytes,
            gate: gate::Limits::new(c),
        }
    }
}

/// See the module.
pub(crate) struct Node {
    raw: RawNode<LogCache>,
    logger: slog::Logger,
    limits: Limits,
    identity: Identity,
    raft_id: RaftId,
    membership: Option<Membership>,
    /// Ticks since the start.
    tick: u64,
    /// The hard state that was last handed to the log.
    logged: HardState,
    pipeline: pipeline::Pipeline,
    proposals: proposals::Proposals,
    reads: reads::Reads,
    changes: membership::Changes,
    snapshots: snapshots::Snapshots,
    leadership: leadership::Leadership,
    /// The last index given to the Store's queue, or known to be in the Store.
    emitted: Index,
    /// The Store holds everything up to here already; it is not given again.
    store_floor: Index,
    /// What the Store said that it has applied.
    store_applied: Index,
    /// The snapshot that the Store is restoring.
    installing: Option<Index>,
    /// The meta of a MsgSnapshot that was stepped; its Ready follows.
    incoming: Option<SnapshotMeta>,
    /// Effects for the Store wait until this batch is durable (R7).
    gate: u64,
    held: Vec<Effect>,
    /// Effects for the Store: last in a poll, because the network and the disk go first and are
    /// not delayed by the wake-up of the Store.
    for_store: Vec<Effect>,
    out: Vec<Effect>,
    stopping: bool,
    failed: bool,
    /// How far the log is that of the present leader.
    agreed: messages::Agreed,
    refused_messages: u64,
    dropped_tail: String,
    status_changed: bool,
    /// Commit, last index, applied and refused messages at the last tick.
    progress: (Index, Index, Index, u64),
    published: Status,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("identity", &self.identity)
            .field("term", &self.raw.raft.term)
            .field("role", &self.raw.raft.state)
            .field("emitted", &self.emitted)
            .finish_non_exhaustive()
    }
}

impl Node {
    /// Takes one event in. Its effects come from [`Node::poll`].
    pub(crate) fn handle(&mut self, event: Event) {
        // These write the hard state: whatever its commit index speaks of goes to the log first,
        // or a crash in between leaves a commit index that the log does not bear out (H8).
        if matches!(event, Event::Installed { .. } | Event::SnapshotBuilt { .. } | Event::Stop) {
            self.drain();
        }
        if self.failed {
            return;
        }
        match event {
            Event::Tick => self.on_tick(),
            Event::Message { from, message } => {
                self.on_message(from, message);
                self.drain_much();
            }
            Event::Unreachable { peer } => self.raw.report_unreachable(peer),
            Event::Persisted { number } => self.on_persisted(number),
            Event::Applied { index } => self.store_applied = self.store_applied.max(index),
            Event::Installed { index } => self.on_installed(index),
            Event::SnapshotBuilt { meta } => self.snapshot_built(meta),
            Event::SnapshotFailed => self.snapshot_failed(),
            Event::SnapshotSent { to, how } => self.snapshot_sent(to, how),
            Event::SnapshotProgress { to, percent } => self.snapshot_progress(to, percent),
            Event::Status { reply } => reply.send(Ok(self.status())),
            Event::Stop => self.on_stop(),
            // A stopping node drops what follows, which answers it.
            Event::Propose(proposal) if !self.stopping => self.proposals.push(proposal),
            Event::Read(read) if !self.stopping => {
                if let Some(now) = self.reads.push(read, self.emitted) {
                    self.fifo(Effect::Query(vec![now]));
                }
            }
            Event::Change { change, reply } if !self.stopping => {
                self.changes.push(change, reply, self.tick);
            }
            Event::Transfer { to, reply } => self.on_transfer(to, reply),
            Event::Resign { reply } => self.resign(reply),
            Event::Propose(_) | Event::Read(_) | Event::Change { .. } => {}
        }
        self.settle();
    }

    /// Moves everything that is to be done now to the end of `out`, in order.
    pub(crate) fn poll(&mut self, out: &mut Vec<Effect>) {
        if !self.failed {
            self.route_requests();
            self.propose_queued();
            self.start_change();
            self.ask_for_answers();
            self.ask_reads();
            self.drain();
            self.answer_spread();
            self.serve_reads();
            self.maybe_capture();
            if self.status_changed {
                self.publish();
            }
        }
        out.append(&mut self.out);
        out.append(&mut self.for_store);
    }

    /// Takes everything that the engine has ready.
    fn drain(&mut self) {
        while !self.failed && self.raw.has_ready() {
            self.take_ready();
            self.settle();
        }
    }

    /// The same before it becomes too much for one write: a backlog reaches disk and network in
    /// pieces, so that they work at once, and that the disk shows that it works (R12).
    fn drain_much(&mut self) {
        if self.raw.raft.raft_log.unstable.entries_size as u64 >= self.limits.max_batch {
            self.settle();
            self.drain();
        }
    }

    fn on_tick(&mut self) {
        self.tick += 1;
        if self.may_tick() {
            self.raw.tick();
            self.settle();
        }
        // The engine's buffer of unstable entries never shrinks by itself.
        let unstable = &mut self.raw.raft.raft_log.unstable.entries;
        if unstable.is_empty() && unstable.capacity() > 1024 {
            unstable.shrink_to_fit();
        }
        self.proposals.sweep();
        self.reads.sweep();
        // A leader drops a round that reaches it before its first commit: asked again soon.
        let reads_late = self.reads.retry_late(self.tick);
        let changes_late = self.changes.sweep(self.tick, &self.reads.timeout);
        if reads_late || changes_late {
            self.reads.timeout.grow();
        }
        self.expire_transfer();
        self.watch_transfers();
        self.tend_members();
        self.notice_progress();
    }

    /// R12: behind a stalled disk a follower must not campaign; a leader ticks on, so that
    /// check-quorum ends it. H6b: a sole voter must not campaign with unsynced entries. R11: nor
    /// anybody while a snapshot is not durable yet, or before the members are enough for a first
    /// election.
    fn may_tick(&self) -> bool {
        let campaigns = matches!(self.role(), Role::PreCandidate | Role::Candidate);
        if zoo::has(Bug::CandidateWaits) && campaigns {
            return false;
        }
        let sole = self.raw.raft.prs().is_singleton() && self.pipeline.holds_writes();
        let hold = self.stalled()
            || sole
            || self.pipeline.holds_install()
            || self.awaits_members().is_some();
        self.is_leader() || !hold || zoo::has(Bug::TickAlways)
    }

    /// Whether the disk has finished nothing for longer than a heartbeat interval although it had
    /// something to write, or takes as long for each batch and is so far behind that another leader
    /// would do better (R12).
    fn stalled(&self) -> bool {
        let Limits { heartbeat_tick: each, election_tick, .. } = self.limits;
        let alone = || self.raw.raft.prs().is_singleton();
        self.pipeline.stalled_for(self.tick) > each
            || (self.pipeline.crawls(self.tick, 4 * election_tick, each) && !alone())
    }

    /// Bytes of the log that the Store has not applied (R19).
    fn apply_lag(&self) -> u64 {
        self.cache().bytes_between(self.store_applied, self.last_index())
    }

    /// Sends requests to the leader when it is somebody else; they wait while there is none.
    fn route_requests(&mut self) {
        if self.is_leader() || !(self.proposals.has_queued() || self.changes.has_queued()) {
            return;
        }
        let Some(leader) = self.leader() else { return };
        let proposals = self.proposals.take_queued();
        if !proposals.is_empty() {
            let work = Forward::Propose(proposals);
            self.out.push(Effect::Forward { leader: leader.clone(), work });
        }
        for (change, reply) in self.changes.take_queued() {
            let work = Forward::Change { change, reply };
            self.out.push(Effect::Forward { leader: leader.clone(), work });
        }
    }

    /// Appends what is queued, packed; one message's worth of bytes at a time, because the engine
    /// sends one message per peer and proposal.
    fn propose_queued(&mut self) {
        if !self.is_leader() || self.raw.raft.lead_transferee.is_some() {
            return;
        }
        if self.proposals.has_queued() && self.apply_lag() > self.limits.max_apply_lag {
            let bound = self.limits.max_apply_lag;
            for p in self.proposals.take_queued() {
                p.reply.send(Err(Error::Overloaded { what: "the store's apply lag", bound }));
            }
            return;
        }
        while self.proposals.has_queued() && !self.failed {
            let packed = self.proposals.pack(self.limits.max_size_per_msg as usize);
            if packed.is_empty() {
                continue;
            }
            let (entries, replies): (Vec<_>, Vec<_>) =
                packed.into_iter().map(|p| (proposals::entry(p.data), p.replies)).unzip();
            let first = self.last_index() + 1;
            if let Err(error) = self.propose_entries(entries) {
                slog::debug!(self.logger, "proposals dropped"; "reason" => %error);
                for reply in replies.into_iter().flatten() {
                    reply.send(Err(Error::NotLeader { leader: None }));
                }
                return;
            }
            let term = self.raw.raft.term;
            for (index, replies) in (first..).zip(replies) {
                self.proposals.register(term, index, replies);
            }
            self.drain_much();
        }
    }

    fn ask_reads(&mut self) {
        // H4: the engine drops what it cannot answer; so it is not asked before it can.
        let can = if self.is_leader() {
            self.raw.raft.commit_to_current_term()
        } else {
            self.raw.raft.leader_id != 0 && self.membership.is_some()
        };
        if !can {
            return;
        }
        while let Some(context) = self.reads.ask(self.tick) {
            if zoo::has(Bug::ReadUnconfirmed) && self.is_leader() {
                self.reads.answered(&context, self.raw.raft.raft_log.committed, self.tick);
                continue;
            }
            self.raw.read_index(context.encode().to_vec());
        }
    }

    fn serve_reads(&mut self) {
        let commit = self.raw.raft.raft_log.committed;
        let given = if zoo::has(Bug::ReadAtCommit) { commit } else { self.emitted };
        let reads = self.reads.take_ready(given);
        if !reads.is_empty() {
            self.fifo(Effect::Query(reads));
        }
    }

    fn on_transfer(&mut self, to: Option<u64>, reply: crate::reply::Reply<()>) {
        let already = to.is_some() && self.leader().map(|l| l.id) == to;
        if already {
            reply.send(Ok(()));
        } else if self.is_leader() {
            self.transfer(to, reply);
        } else if let Some(leader) = self.leader() {
            self.out.push(Effect::Forward { leader, work: Forward::Transfer { to, reply } });
        } else {
            reply.send(Err(Error::NoLeader));
        }
    }

    /// No new requests; the commit index goes to disk with the seal (R4).
    fn on_stop(&mut self) {
        self.stopping = true;
        drop(self.proposals.take_queued());
        self.changes.stop();
        self.reads.clear();
        let now = self.hard_state();
        if now != self.logged {
            self.persist_own(LogBatch { hard_state: Some(now), ..LogBatch::default() }, None);
        }
    }

    /// The node cannot go on: says so once, and does nothing more.
    fn fail(&mut self, error: Error) {
        if !self.failed {
            self.failed = true;
            slog::error!(self.logger, "the node stops"; "reason" => %error);
            self.out.push(Effect::Fatal(error));
        }
    }

    /// An effect for the Store's queue, which is first-in, first-out; it waits while a membership
    /// record that belongs before it is not durable (R7).
    fn fifo(&mut self, effect: Effect) {
        let overtakes = zoo::has(Bug::ReadOvertakes) && matches!(effect, Effect::Query(_));
        if self.gate > self.pipeline.durable() && !overtakes {
            self.held.push(effect);
        } else {
            self.for_store.push(effect);
        }
    }

    fn cache(&self) -> &LogCache {
        self.raw.store()
    }

    fn last_index(&self) -> Index {
        self.raw.raft.raft_log.last_index()
    }

    fn hard_state(&self) -> HardState {
        let hs = self.raw.raft.hard_state();
        HardState { term: hs.term, vote: hs.vote, commit: hs.commit }
    }
}
