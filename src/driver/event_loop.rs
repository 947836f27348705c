//! The event loop: world in, node, world out.
//!
//! It runs on a thread of its own with a current-thread runtime that also hosts the tasks of the
//! transport and the snapshotter, so that neither user code nor another runtime's load can stall
//! a heartbeat. Invariants:
//! - it awaits the inbox alone, which ends at the tick at the latest (R13), and yields once
//!   between what it hands to the network and its wake-ups of the log and the Store;
//! - per turn: completions, messages, requests, and last at most one tick, if due (H15); but for
//!   those that were overdue before the messages came ([`Ticks`]);
//! - every effect is dispatched, none is awaited: network and Store are elsewhere, and the disk,
//!   but for what it does at once while nothing else waits (R12: a non-leader that waits for its
//!   disk need not tick);
//! - requests beyond a turn's budget wait here, in order, bounded by their permits.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::applier::{Applier, Job};
use super::forwarder::Forwarder;
use super::inbox::{Classes, Stop};
use super::leave;
use super::log_writer::{Close, LogQueue};
use super::shared::Shared;
use super::snapshotter::Snapshotter;
use super::ticks::Ticks;
use crate::error::Error;
use crate::node::Node;
use crate::node::effect::{Committed, Effect};
use crate::node::event::Event;
use crate::transport::Transport;
use crate::types::Membership;

/// Requests that the node takes in one turn; the rest waits for the next.
const REQUESTS_PER_TURN: usize = 8192;

/// How long a follower may keep what is committed from its Store when nobody asks it: to wake
/// the Store's runtime costs more than the rest of a small write.
const UNASKED: Duration = Duration::from_millis(2);
/// Bytes of entries that it does not keep.
const MUCH: usize = 64 << 10;

/// Where effects go. Dropping it ends the log and the apply task: what that was given is applied,
/// and the log is left unsealed unless it was sealed before.
#[derive(Debug)]
pub(crate) struct Ports {
    transport: Arc<dyn Transport>,
    log: Arc<LogQueue>,
    apply: Applier,
    forwarder: Forwarder,
    snapshotter: Arc<Snapshotter>,
}

impl Ports {
    pub(crate) fn new(
        transport: Arc<dyn Transport>,
        log: Arc<LogQueue>,
        apply: Applier,
        forwarder: Forwarder,
        snapshotter: Arc<Snapshotter>,
    ) -> Self {
        Self { transport, log, apply, forwarder, snapshotter }
    }
}

impl Drop for Ports {
    fn drop(&mut self) {
        self.log.close(Close::Abandon);
        self.apply.finish();
    }
}

/// Owns the node.
pub(crate) struct EventLoop {
    node: Node,
    shared: Arc<Shared>,
    ports: Ports,
    ticks: Ticks,
    taken: Classes,
    backlog: VecDeque<Event>,
    effects: Vec<Effect>,
    drain_until: Option<Instant>,
    /// Jobs that the Store was not woken for yet, in order.
    for_store: Vec<Job>,
    /// When it will be at the latest.
    store_due: Option<Instant>,
    /// This thread has written the log in the last turn: they were not offered to the Store.
    kept: bool,
    /// Something was handed to tasks of this runtime, which wait for this one.
    sent: bool,
}

impl EventLoop {
    pub(crate) fn new(node: Node, shared: Arc<Shared>, ports: Ports) -> Self {
        let ticks = Ticks::new(shared.config.heartbeat, Instant::now());
        Self {
            node,
            shared,
            ports,
            ticks,
            taken: Classes::default(),
            backlog: VecDeque::new(),
            effects: Vec::new(),
            drain_until: None,
            for_store: Vec::new(),
            store_due: None,
            kept: false,
            sent: false,
        }
    }

    /// Runs until it is told to stop, or cannot go on, which it reports.
    pub(crate) async fn run(mut self) {
        let end = self.turns().await;
        self.wake_store();
        match end {
            Ok(Stop::Drain) => self.ports.log.close(Close::Seal),
            Ok(Stop::Now) => {}
            Err(error) => self.shared.fatal.report(error),
        }
        // A transfer must not touch the disk once the directory's lock is gone.
        self.ports.snapshotter.close().await;
    }

    /// Turn after turn, until the order to stop was carried out.
    async fn turns(&mut self) -> Result<Stop, Error> {
        self.dispatch()?;
        self.follow_up().await?;
        loop {
            let tick = self.ticks.timer(self.node.is_leader());
            let until = self.store_due.into_iter().chain(self.drain_until).fold(tick, Instant::min);
            // NB: a tick may be due at once; what is in the sockets counts before it (H15).
            let busy = !self.backlog.is_empty() || until <= Instant::now();
            self.shared.inbox.turn(until, busy).await;
            self.shared.inbox.take(&mut self.taken);
            match self.taken.stop {
                Some(Stop::Now) => return Ok(Stop::Now),
                Some(Stop::Drain) => self.drain(),
                None => {}
            }
            self.feed_completions();
            self.overdue_ticks()?;
            self.feed();
            self.dispatch()?;
            // NB: before a write that takes long, or the tick would come before what the peers sent
            // meanwhile (H15).
            let tick = self.ticks.is_due(Instant::now(), self.node.is_leader());
            self.follow_up().await?;
            if tick {
                self.node.handle(Event::Tick);
                self.dispatch()?;
                self.follow_up().await?;
            }
            if self.is_drained() {
                return Ok(Stop::Drain);
            }
        }
    }

    /// After a dispatch: the network, then the log, then the Store. A wake-up of another thread
    /// costs as much as sending to all peers; and a leader's own disk is nearer than theirs. What a
    /// follower has written itself is acknowledged first, in the turn that follows at once.
    async fn follow_up(&mut self) -> Result<(), Error> {
        let sent = std::mem::take(&mut self.sent);
        if sent && (self.ports.log.is_asleep() || !self.for_store.is_empty()) {
            tokio::task::yield_now().await;
        }
        if self.node.is_leader() || self.kept || self.is_store_due() {
            self.offer_to_store();
        }
        self.kept = self.ports.log.write_here(!sent && !self.node.leads_others())?;
        if !self.kept {
            self.ports.log.wake();
            self.offer_to_store();
        }
        Ok(())
    }

    /// Wakes the Store where somebody waits for it, and on a follower otherwise a moment later, for
    /// whatever has come until then.
    fn offer_to_store(&mut self) {
        let weighs = |job: &Job| match job {
            Job::Apply(entries) => entries.iter().map(weight).sum(),
            Job::Query(_) | Job::Capture { .. } | Job::Install { .. } => MUCH,
        };
        let much = || self.for_store.iter().map(weighs).sum::<usize>() >= MUCH;
        if self.node.is_leader() || much() || self.is_store_due() {
            self.wake_store();
        }
    }

    /// Whether jobs have been kept from the Store for long enough.
    fn is_store_due(&mut self) -> bool {
        if self.for_store.is_empty() {
            return false;
        }
        let now = Instant::now();
        now >= *self.store_due.get_or_insert(now + UNASKED)
    }

    fn wake_store(&mut self) {
        self.store_due = None;
        for job in self.for_store.drain(..) {
            self.ports.apply.push(job);
        }
    }

    fn feed_completions(&mut self) {
        for event in self.taken.completions.drain(..) {
            self.node.handle(event);
        }
    }

    /// Ticks that were left to the messages of this turn count before them, as if they had come when
    /// they were due.
    fn overdue_ticks(&mut self) -> Result<(), Error> {
        if self.taken.messages.is_empty() {
            return Ok(());
        }
        for _ in 0..self.ticks.overdue(Instant::now(), self.node.is_leader()) {
            self.dispatch()?;
            self.node.handle(Event::Tick);
            self.dispatch()?;
        }
        Ok(())
    }

    fn feed(&mut self) {
        for (from, message) in self.taken.messages.drain(..) {
            self.node.handle(Event::Message { from, message });
        }
        self.backlog.extend(self.taken.requests.drain(..));
        let budget = self.backlog.len().min(REQUESTS_PER_TURN);
        for event in self.backlog.drain(..budget) {
            self.node.handle(event);
        }
    }

    fn drain(&mut self) {
        self.node.handle(Event::Stop);
        self.drain_until.get_or_insert(Instant::now() + self.shared.config.request_timeout);
    }

    /// Whether a drain is over. Looked at once per turn: answers free permits without waking the
    /// loop, which wakes up by itself at the deadline.
    fn is_drained(&self) -> bool {
        let Some(until) = self.drain_until else { return false };
        self.shared.admission.in_flight().0 == 0 || Instant::now() >= until
    }

    fn dispatch(&mut self) -> Result<(), Error> {
        self.node.poll(&mut self.effects);
        let mut effects = std::mem::take(&mut self.effects);
        for effect in effects.drain(..) {
            self.carry_out(effect)?;
        }
        self.effects = effects;
        Ok(())
    }

    fn carry_out(&mut self, effect: Effect) -> Result<(), Error> {
        let ports = &self.ports;
        match effect {
            Effect::Send(messages) => {
                self.sent = true;
                ports.transport.send(messages);
            }
            Effect::Persist { number, batch } => ports.log.append(number, batch),
            Effect::Apply(entries) => self.for_store.push(Job::Apply(entries)),
            Effect::Query(reads) => self.for_store.push(Job::Query(reads)),
            Effect::Capture { position, membership } => {
                self.for_store.push(Job::Capture { position, membership });
            }
            Effect::Install { meta } => self.for_store.push(Job::Install { meta }),
            Effect::SendSnapshot { to, message } => {
                self.sent = true;
                ports.snapshotter.send(to, message);
            }
            Effect::Compact { through, keep_snapshot } => {
                ports.log.compact(through);
                ports.snapshotter.retain(keep_snapshot);
            }
            Effect::Forward { leader, work } => {
                self.sent = true;
                let leader = self.shared.view().reach(leader);
                ports.forwarder.forward(leader, work);
            }
            Effect::SetPeers(membership) => self.set_peers(membership),
            Effect::Publish(mut status) => {
                self.shared.complete(&mut status);
                self.shared.status.send_replace(*status);
            }
            Effect::Fatal(error) => return Err(error),
        }
        Ok(())
    }

    fn set_peers(&mut self, membership: Membership) {
        let identity = self.shared.view().identity;
        let me = identity.and_then(|i| i.cluster).map(|(_, me)| me);
        if me.is_some_and(|me| membership.was_removed(me)) {
            tokio::spawn(leave::depart(self.shared.clone()));
        }
        self.shared.update_view(|view| {
            view.said += 1;
            view.hints.settle(&membership);
            view.membership = Some(membership);
        });
        if let Some(peers) = self.shared.view().peers() {
            self.ports.transport.set_peers(peers);
        }
    }
}

/// Bytes of an entry, or as many as are not kept, when somebody waits for it.
fn weight(entry: &Committed) -> usize {
    if entry.replies.is_empty() { entry.data.len() } else { MUCH }
}

#[cfg(test)]
mod tests;
