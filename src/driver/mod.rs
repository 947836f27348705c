//! The driver does: it starts the parts of a node, watches over them, and ends them.
//!
//! ```text
//! user's runtime   lead/join future (supervisor)   apply task (owns the Store)
//! node thread      event loop, transport tasks, snapshot transfers
//! log thread       owns the log and the directory's lock
//! ```
//!
//! Invariants:
//! - whatever part fails or panics, the node stops, every waiter is answered, and the cause is
//!   returned by `lead` or `join`; nothing unwinds into the host program;
//! - the supervisor waits for no part for ever: a disk or a Store that hangs delays the end, and
//!   cannot prevent it;
//! - dropping the supervisor's future ends every part, too; the node has not ended before the Store
//!   is gone, so that it can be opened again.

pub(crate) mod applier;
pub(crate) mod batch;
pub(crate) mod boot;
pub(crate) mod caller;
pub(crate) mod capture;
pub(crate) mod changes;
mod event_loop;
pub(crate) mod fatal;
mod forwarder;
pub(crate) mod founding;
pub(crate) mod handler;
pub(crate) mod hints;
pub(crate) mod host;
pub(crate) mod inbox;
pub(crate) mod joining;
pub(crate) mod leave;
mod log_writer;
mod patience;
pub(crate) mod queue;
pub(crate) mod shared;
mod snapshotter;
pub(crate) mod starts;
mod ticks;
#[cfg(test)]
pub(crate) mod wait_for;
pub(crate) mod whereabouts;
pub(crate) mod wire;

use std::pin::pin;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use futures::FutureExt;
use slog::warn;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};

use crate::error::{Error, Result};
use crate::node::event::Event;
use crate::node::{Boot, Node};
use crate::reply::reply;
use crate::store::Store;
use crate::transport::Transport;
use applier::Applier;
use boot::Storage;
use event_loop::{EventLoop, Ports};
use forwarder::Forwarder;
use handler::PeerHandler;
use host::{Host, Order};
use inbox::Stop;
use log_writer::LogQueue;
use shared::{Phase, Shared};
use snapshotter::Snapshotter;

/// How long a part that hangs may delay the end, beyond `Config::request_timeout`.
const GRACE: Duration = Duration::from_secs(5);

/// Ends every part when the supervisor goes away, however it does.
#[derive(Debug)]
pub(crate) struct AbortOnDrop(pub(crate) Arc<Shared>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a node is started from.
pub(crate) struct Start<S> {
    pub(crate) shared: Arc<Shared>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) handler: Arc<PeerHandler>,
    pub(crate) store: S,
    pub(crate) boot: Boot,
    pub(crate) storage: Storage,
    /// Where peers reach this node.
    pub(crate) addr: String,
}

/// Runs a node that belongs to a cluster, until it ends.
///
/// # Errors
/// What ended it, unless it was told to stop or to leave.
pub(crate) async fn run<S: Store>(start: Start<S>, host: Host) -> Result<()> {
    let shared = start.shared.clone();
    let _abort = AbortOnDrop(shared.clone());
    let addr = start.addr.clone();
    let (order, applying, log) = match launch(start) {
        Ok(parts) => parts,
        Err(e) => return host.cancel().await.and(Err(e)),
    };
    let ended = host.run(order);
    let result = watch(&shared, &addr, &log).await;
    match &result {
        Ok(()) => drain(&shared).await,
        Err(_) => shared.abort(),
    }
    settle(&shared, ended, applying).await;
    // A failure on the way down is a failure.
    let result = result.and_then(|()| shared.fatal.wait().now_or_never().map_or(Ok(()), Err));
    match result {
        Err(Error::Removed { .. }) if shared.is_leaving() => Ok(()),
        result => result,
    }
}

/// Starts the log thread and the apply task; the order is for the node's thread.
fn launch<S: Store>(start: Start<S>) -> Result<(Order, JoinHandle<()>, Arc<LogQueue>)> {
    let Start { shared, transport, handler, store, boot, storage, addr: _ } = start;
    let Storage { log, snapshots, dir: _ } = storage;
    let seed = match shared.config.seed {
        Some(seed) => seed,
        None => boot::random_seed()?,
    };
    let queue = Arc::new(LogQueue::new(log, shared.inbox.clone()));
    let log_thread = log_writer::spawn(queue.clone(), shared.clone())
        .map_err(|e| Error::Internal { part: "log writer", reason: e.to_string() })?;
    let parts = applier::Parts {
        inbox: shared.inbox.clone(),
        snapshots: snapshots.clone(),
        fatal: shared.fatal.clone(),
        logger: shared.logger.clone(),
    };
    let held = boot.store_applied.unwrap_or(0);
    let (apply, applying) = Applier::spawn(&Handle::current(), store, held, &shared.config, parts);
    // Nobody awaits this when the supervisor is dropped; the node's thread hears of it all the same.
    let (held, store_gone) = mpsc::channel::<()>();
    let applying = tokio::spawn(async move {
        drop(applying.await);
        drop(held);
    });
    let snapshotter = Arc::new(Snapshotter::new(
        snapshots,
        shared.inbox.clone(),
        transport.clone(),
        shared.logger.clone(),
    ));
    handler.take_snapshots(snapshotter.clone());
    let forwarder = Forwarder::new(shared.clone(), transport.clone());
    let ports = Ports::new(transport, queue.clone(), apply, forwarder, snapshotter);
    let main = Box::new(move || main(shared, boot, seed, ports).boxed_local());
    Ok((Order { main, log_thread, store_gone }, applying, queue))
}

/// The event loop, on the node's thread.
async fn main(shared: Arc<Shared>, boot: Boot, seed: u64, ports: Ports) -> Result<()> {
    let node = Node::new(&shared.config, boot, seed, &shared.logger)?;
    EventLoop::new(node, shared, ports).run().await;
    Ok(())
}

/// Waits for what ends the node: a failure, or an order.
async fn watch(shared: &Arc<Shared>, addr: &str, log: &LogQueue) -> Result<()> {
    let period = shared.config.election_timeout();
    // Both at the same times: the user's runtime wakes up once for them.
    let start = Instant::now() + period;
    let pace = || {
        let mut pace = interval_at(start, period);
        pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
        pace
    };
    let mut whereabouts = pin!(whereabouts::keep(shared, addr, pace()));
    let mut held_up = pin!(tell_of_the_disk(shared, log, pace()));
    loop {
        tokio::select! {
            biased;
            error = shared.fatal.wait() => return Err(error),
            () = shared.reached(Phase::Stopping) => return Ok(()),
            () = &mut whereabouts => {}
            () = &mut held_up => {}
        }
    }
}

/// Says that the disk hangs while the event loop, which waits for it, cannot. Never ends.
async fn tell_of_the_disk(shared: &Shared, log: &LogQueue, mut pace: Interval) {
    let mut told = false;
    loop {
        pace.tick().await;
        let hangs = log.holds_up(shared.config.heartbeat);
        if hangs != told {
            told = hangs;
            shared.say_stalled(hangs);
        }
    }
}

/// Ends the node in good order: nothing new, leadership elsewhere, what is in flight finished.
async fn drain(shared: &Arc<Shared>) {
    shared.inbox.close();
    if shared.leads() && has_other_voters(shared) {
        let (reply, waiter) = reply(None);
        shared.inbox.complete(Event::Transfer { to: None, reply });
        if let Err(e) = waiter.wait(shared.config.election_timeout() * 2).await {
            warn!(shared.logger, "leadership could not be handed over"; "reason" => %e);
        }
    }
    shared.inbox.stop(Stop::Drain);
}

fn has_other_voters(shared: &Shared) -> bool {
    shared.view().membership.as_ref().is_some_and(|m| m.conf_state.voters.len() > 1)
}

/// How long a part that hangs is waited for.
fn patience(shared: &Shared) -> Duration {
    shared.config.request_timeout + GRACE
}

/// Waits until the parts are gone; a part that hangs is left behind with a warning.
async fn settle(shared: &Arc<Shared>, ended: oneshot::Receiver<()>, applying: JoinHandle<()>) {
    let patience = patience(shared);
    if timeout(patience, ended).await.is_err() {
        warn!(shared.logger, "the node's threads hang in the disk and are left behind");
    }
    if timeout(patience, applying).await.is_err() {
        warn!(shared.logger, "the store hangs and is left behind");
    }
}
