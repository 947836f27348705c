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

/// Messages on their way to one peer, delivered by a task that ends with it.
pub(super) struct Flight {
    air: Arc<Air>,
    task: AbortHandle,
}

/// What the flight shares with its task.
#[derive(Default)]
struct Air {
    queue: Mutex<Queue>,
    wake: Notify,
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
        self.task.abort();
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
    pub(super) fn take_off(way: Way) -> Self {
        let air = Arc::<Air>::default();
        let there = air.clone();
        let task = tokio::spawn(async move {
            loop {
                let landed = there.landed().await;
                let Some(served) = way.network.route(&way.here, &way.there) else { continue };
                // What was on its way when the link was cut, or the peer restarted, is lost.
                let messages =
                    landed.into_iter().filter(|(then, _)| then.same(&served)).map(|(_, m)| m);
                deliver(&served, way.from, way.to, messages.collect());
            }
        });
        Self { air, task: task.abort_handle() }
    }

    /// Whether nothing is on its way.
    pub(super) fn is_empty(&self) -> bool {
        lock(&self.air.queue).waiting.is_empty()
    }

    /// Takes messages, each with its delay and whether it may be overtaken.
    pub(super) fn board(&self, served: &Served, messages: Vec<((Duration, bool), Message)>) {
        let now = Instant::now();
        let mut queue = lock(&self.air.queue);
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
        self.air.wake.notify_one();
    }
}

impl Air {
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
