//! Messages that take their time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use super::hub::{MemoryNetwork, Served};
use super::{deliver, lock};
use crate::types::{Message, RaftId};

/// Messages on their way to one peer, delivered by a task.
#[derive(Default)]
pub(super) struct Flight {
    queue: Mutex<Queue>,
    wake: Notify,
    task: Mutex<Option<AbortHandle>>,
}

#[derive(Default)]
struct Queue {
    waiting: BTreeMap<(Instant, u64), (Served, Message)>,
    /// Later messages do not leave before this.
    last: Option<Instant>,
    count: u64,
}

impl Drop for Flight {
    fn drop(&mut self) {
        if let Some(task) = lock(&self.task).take() {
            task.abort();
        }
    }
}

/// A way from one address to another, for messages `from` -> `to`.
pub(super) struct Way {
    pub(super) network: MemoryNetwork,
    pub(super) here: String,
    pub(super) there: String,
    pub(super) from: RaftId,
    pub(super) to: RaftId,
}

impl Flight {
    /// Messages on this way are delivered as they are due, until the flight is dropped.
    pub(super) fn take_off(way: Way) -> Arc<Self> {
        let flight = Arc::<Self>::default();
        let weak = Arc::downgrade(&flight);
        let task = tokio::spawn(async move {
            loop {
                let Some(flight) = weak.upgrade() else { return };
                let landed = flight.landed().await;
                drop(flight);
                let Some(served) = way.network.route(&way.here, &way.there) else { continue };
                // What was on its way when the link was cut, or the peer restarted, is lost.
                let messages =
                    landed.into_iter().filter(|(then, _)| then.same(&served)).map(|(_, m)| m);
                deliver(&served, way.from, way.to, messages.collect());
            }
        });
        *lock(&flight.task) = Some(task.abort_handle());
        flight
    }

    /// Whether nothing is on its way.
    pub(super) fn is_empty(&self) -> bool {
        lock(&self.queue).waiting.is_empty()
    }

    /// Takes messages, each with its delay and whether it may be overtaken.
    pub(super) fn board(&self, served: &Served, messages: Vec<((Duration, bool), Message)>) {
        let now = Instant::now();
        let mut queue = lock(&self.queue);
        for ((delay, overtaken), message) in messages {
            let mut at = now + delay;
            if !overtaken {
                at = queue.last.map_or(at, |last| last.max(at));
                queue.last = Some(at);
            }
            queue.count += 1;
            let number = queue.count;
            queue.waiting.insert((at, number), (served.clone(), message));
        }
        drop(queue);
        self.wake.notify_one();
    }

    /// The next messages that are due.
    async fn landed(&self) -> Vec<(Served, Message)> {
        loop {
            let first = lock(&self.queue).waiting.first_key_value().map(|((at, _), _)| *at);
            match first {
                None => self.wake.notified().await,
                Some(at) if at <= Instant::now() => break,
                Some(at) => tokio::select! {
                    () = sleep_until(at) => {}
                    () = self.wake.notified() => {}
                },
            }
        }
        let mut queue = lock(&self.queue);
        let later = queue.waiting.split_off(&(Instant::now(), u64::MAX));
        std::mem::replace(&mut queue.waiting, later).into_values().collect()
    }
}
