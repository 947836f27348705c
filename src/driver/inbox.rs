//! The event loop's only door: a vector per class, swapped out whole, woken once (R13).
//!
//! Invariants:
//! - posting never blocks and never awaits;
//! - completions are never dropped: they free resources;
//! - messages of peers are bounded by bytes; above the bound they are dropped, raft sends again;
//! - requests are bounded by the permits that they carry.

use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::node::event::Event;
use crate::types::{Index, Message, RaftId};

/// Bytes of peers' messages that may wait for the loop.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

#[derive(Debug, Default)]
pub(crate) struct Inbox {
    classes: Mutex<Classes>,
    wake: Notify,
}

/// How the loop is told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stop {
    /// Once nothing is in flight, or a deadline has passed.
    Drain,
    /// At once.
    Now,
}

/// Everything that was posted since the last turn, by class.
#[derive(Debug, Default)]
pub(crate) struct Classes {
    pub(crate) stop: Option<Stop>,
    pub(crate) completions: Vec<Event>,
    pub(crate) messages: Vec<(RaftId, Message)>,
    pub(crate) requests: Vec<Event>,
    message_bytes: usize,
    closed: bool,
    /// Something is there that the loop must be awake for.
    news: bool,
}

impl Inbox {
    /// Posts something that was done.
    pub(crate) fn complete(&self, event: Event) {
        self.post(|c| c.completions.push(event));
    }

    /// Tells what the Store has applied. Does not wake the loop, which learns of it on its next
    /// turn, at the tick at the latest: a wake-up for every batch would cost more than it tells.
    pub(crate) fn applied(&self, index: Index) {
        self.lock().completions.push(Event::Applied { index });
    }

    /// Posts messages of an admitted peer; false when the bound dropped them.
    pub(crate) fn deliver(&self, from: RaftId, messages: Vec<Message>) -> bool {
        let bytes: usize = messages.iter().map(Message::size).sum();
        self.post(|c| {
            let fits = c.messages.is_empty() || c.message_bytes + bytes <= MAX_MESSAGE_BYTES;
            if fits {
                c.message_bytes += bytes;
                c.messages.extend(messages.into_iter().map(|m| (from, m)));
            }
            fits
        })
    }

    /// Posts a caller's request. After [`Inbox::close`] it is dropped, which answers its caller.
    pub(crate) fn request(&self, event: Event) {
        let refused = self.post(|c| {
            if c.closed {
                return Some(event);
            }
            c.requests.push(event);
            None
        });
        drop(refused);
    }

    /// Refuses further requests; those that wait are dropped, which answers their callers.
    pub(crate) fn close(&self) {
        let dropped = self.post(|c| {
            c.closed = true;
            mem::take(&mut c.requests)
        });
        drop(dropped);
    }

    /// Tells the loop to end; the more urgent order wins.
    pub(crate) fn stop(&self, how: Stop) {
        self.post(|c| c.stop = c.stop.max(Some(how)));
    }

    /// The loop's only await: until something is there or the tick is due. When there is work
    /// already (`busy`: the loop kept some), the other tasks of the runtime get one turn, so that
    /// every ready socket is served before the loop runs again.
    pub(crate) async fn turn(&self, tick: Instant, busy: bool) {
        if busy || self.lock().news {
            tokio::task::yield_now().await;
            return;
        }
        // NB: a timeout is the tick, not a failure.
        let _ = tokio::time::timeout_at(tick, self.wait()).await;
    }

    async fn wait(&self) {
        loop {
            let woken = self.wake.notified();
            if self.lock().news {
                return;
            }
            woken.await;
        }
    }

    /// Takes everything, leaving the emptied vectors of `into` behind for the next round.
    pub(crate) fn take(&self, into: &mut Classes) {
        let mut c = self.lock();
        into.stop = c.stop.take();
        mem::swap(&mut c.completions, &mut into.completions);
        mem::swap(&mut c.messages, &mut into.messages);
        mem::swap(&mut c.requests, &mut into.requests);
        c.message_bytes = 0;
        c.news = false;
    }

    fn post<R>(&self, put: impl FnOnce(&mut Classes) -> R) -> R {
        let mut c = self.lock();
        let result = put(&mut c);
        let asleep = !mem::replace(&mut c.news, true);
        drop(c);
        if asleep {
            self.wake.notify_one();
        }
        result
    }

    fn lock(&self) -> MutexGuard<'_, Classes> {
        self.classes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
