//! What waits to be sent to one peer on one lane: a swap queue, bounded in bytes.
//!
//! Invariants:
//! - a push never blocks; above the bound it drops, and says so once per burst;
//! - a message counts towards the bound until it is handed to the connection;
//! - messages leave in the order they came; what waited when a connection broke is dropped, so
//!   that a peer never sees old messages behind a gap;
//! - only the newest session takes messages: the stream of a broken connection, which the HTTP
//!   stack may keep a little longer, gets nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{mem, vec};

use prost::Message as _;
use tokio::sync::Notify;

use crate::pb;
use crate::transport::convert;
use crate::types::Message;

/// Bytes of one batch, unless a single message is larger: small enough that the receiver works on
/// one while the next is on its way.
const BATCH_TARGET: usize = 1 << 20;
/// Most messages of one batch, far below what the receiver's codec admits.
const BATCH_MESSAGES: usize = 16 << 10;
/// Tags and lengths around a message of a batch.
const FRAMING: usize = 16;

/// What became of a pushed message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Push {
    /// It waits.
    Queued,
    /// The queue is full: dropped; `first` of this burst.
    Dropped { first: bool },
}

#[derive(Debug)]
pub(super) struct Outbox {
    queue: Mutex<Queue>,
    bound: usize,
}

#[derive(Debug, Default)]
struct Queue {
    messages: Vec<Message>,
    bytes: usize,
    overflowing: bool,
    /// The peer has welcomed the newest session.
    open: bool,
    /// Wakes the newest session; another session has another one.
    wake: Arc<Notify>,
}

impl Outbox {
    pub(super) fn new(bound: usize) -> Self {
        Self { queue: Mutex::default(), bound }
    }

    /// Queues a message. One that is alone always fits.
    pub(super) fn push(&self, message: Message) -> Push {
        let size = message.size();
        let mut q = self.lock();
        if q.bytes > 0 && q.bytes + size > self.bound {
            let first = !mem::replace(&mut q.overflowing, true);
            return Push::Dropped { first };
        }
        q.bytes += size;
        q.messages.push(message);
        if q.open && q.messages.len() == 1 {
            q.wake.notify_one();
        }
        Push::Queued
    }

    /// Ends the last session and begins another: what waits stays for it.
    pub(super) fn begin(self: &Arc<Self>, hello: pb::Hello, lane: u32, limit: usize) -> Session {
        let mut q = self.lock();
        let wake = Arc::new(Notify::new());
        mem::replace(&mut q.wake, wake.clone()).notify_one();
        q.open = false;
        Session {
            first: Some(pb::Batch { hello: Some(hello), messages: Vec::new(), lane }),
            outbox: self.clone(),
            wake,
            pending: Vec::new().into_iter(),
            next: None,
            limit,
            oversized: Arc::default(),
        }
    }

    /// The newest session may send.
    pub(super) fn open(&self) {
        let mut q = self.lock();
        q.open = true;
        q.wake.notify_one();
    }

    /// Whether the newest session may send.
    pub(super) fn is_open(&self) -> bool {
        self.lock().open
    }

    /// Ends the session and drops what waits.
    pub(super) fn reset(&self) {
        let mut q = self.lock();
        let dropped = mem::take(&mut *q);
        drop(q);
        dropped.wake.notify_one();
    }

    fn take(&self, session: &Session) -> Taken {
        let mut q = self.lock();
        if !Arc::ptr_eq(&q.wake, &session.wake) {
            return Taken::Ended;
        }
        if !q.open || q.messages.is_empty() {
            return Taken::Nothing;
        }
        Taken::Messages(mem::take(&mut q.messages))
    }

    fn release(&self, session: &Session, bytes: usize) {
        let mut q = self.lock();
        if Arc::ptr_eq(&q.wake, &session.wake) {
            q.bytes = q.bytes.saturating_sub(bytes);
            q.overflowing &= q.bytes > 0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Taken {
    Messages(Vec<Message>),
    Nothing,
    Ended,
}

/// One connection's share: its hello, then batches of what was queued.
#[derive(Debug)]
pub(super) struct Session {
    first: Option<pb::Batch>,
    outbox: Arc<Outbox>,
    wake: Arc<Notify>,
    pending: vec::IntoIter<Message>,
    /// Did not fit into the last batch; its cost in the queue and its wire form.
    next: Option<(usize, pb::Message)>,
    limit: usize,
    oversized: Arc<Notify>,
}

impl Session {
    /// Told when a message was dropped because no batch can hold it.
    pub(super) fn oversized(&self) -> Arc<Notify> {
        self.oversized.clone()
    }

    /// The next batch; None once the session has ended.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(super) async fn batch(&mut self) -> Option<pb::Batch> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        loop {
            if let Some(messages) = self.fill() {
                return Some(pb::Batch { messages, ..pb::Batch::default() });
            }
            match self.outbox.take(self) {
                Taken::Messages(messages) => self.pending = messages.into_iter(),
                Taken::Ended => return None,
                Taken::Nothing => self.wake.notified().await,
            }
        }
    }

    /// As many pending messages as go into one batch; None when there are none.
    fn fill(&mut self) -> Option<Vec<pb::Message>> {
        let mut messages = Vec::new();
        let (mut size, mut released) = (0, 0);
        while messages.len() < BATCH_MESSAGES {
            let next = self.next.take().or_else(|| {
                let message = self.pending.next()?;
                Some((message.size(), convert::to_wire(message)))
            });
            let Some((cost, message)) = next else { break };
            let bytes = message.encoded_len() + FRAMING;
            if bytes > self.limit {
                released += cost;
                self.oversized.notify_one();
                continue;
            }
            if size > 0 && size + bytes > BATCH_TARGET.min(self.limit) {
                self.next = Some((cost, message));
                break;
            }
            size += bytes;
            released += cost;
            messages.push(message);
        }
        self.outbox.release(self, released);
        (!messages.is_empty()).then_some(messages)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::types::eraftpb;

    const LIMIT: usize = 4 << 20;

    fn append(index: u64, bytes: usize) -> Message {
        let entry = eraftpb::Entry { data: vec![1; bytes].into(), ..eraftpb::Entry::default() };
        let mut inner = eraftpb::Message::default();
        inner.set_msg_type(eraftpb::MessageType::MsgAppend);
        inner.index = index;
        inner.entries = vec![entry].into();
        Message::new(inner)
    }

    async fn opened(outbox: &Arc<Outbox>) -> Session {
        let mut session = outbox.begin(pb::Hello::default(), 0, LIMIT);
        assert!(session.batch().await.unwrap().hello.is_some());
        outbox.open();
        session
    }

    fn indexes(batch: &pb::Batch) -> Vec<u64> {
        batch.messages.iter().map(|m| m.index).collect()
    }

    #[tokio::test]
    async fn everything_that_waits_leaves_in_one_batch_in_order() {
        let outbox = Arc::new(Outbox::new(1 << 20));
        let mut session = opened(&outbox).await;
        for i in 0..5 {
            assert_eq!(outbox.push(append(i, 10)), Push::Queued);
        }
        assert_eq!(indexes(&session.batch().await.unwrap()), [0, 1, 2, 3, 4]);
    }

    #[tokio::test]
    async fn nothing_leaves_before_the_welcome() {
        let outbox = Arc::new(Outbox::new(1 << 20));
        let mut session = outbox.begin(pb::Hello::default(), 0, LIMIT);
        outbox.push(append(7, 1));
        session.batch().await.unwrap();
        assert!(futures::poll!(Box::pin(session.batch())).is_pending());
        outbox.open();
        assert_eq!(indexes(&session.batch().await.unwrap()), [7]);
    }

    #[tokio::test]
    async fn large_queues_are_split_and_stay_in_order() {
        let outbox = Arc::new(Outbox::new(usize::MAX));
        let mut session = opened(&outbox).await;
        for i in 0..20 {
            outbox.push(append(i, 300 << 10));
        }
        let mut seen = Vec::new();
        while seen.len() < 20 {
            let batch = session.batch().await.unwrap();
            assert!(batch.encoded_len() <= BATCH_TARGET, "{}", batch.encoded_len());
            seen.extend(indexes(&batch));
        }
        assert_eq!(seen, (0..20).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_message_over_the_limit_is_dropped_alone_and_told() {
        let outbox = Arc::new(Outbox::new(usize::MAX));
        let mut session = opened(&outbox).await;
        for (i, size) in [(0, 1), (1, LIMIT), (2, LIMIT - 1000), (3, 1)] {
            outbox.push(append(i, size));
        }
        let oversized = session.oversized();
        assert_eq!(indexes(&session.batch().await.unwrap()), [0]);
        assert_eq!(indexes(&session.batch().await.unwrap()), [2]);
        assert_eq!(indexes(&session.batch().await.unwrap()), [3]);
        oversized.notified().await;
        assert_eq!(outbox.lock().bytes, 0, "what is dropped is released too");
    }

    #[tokio::test]
    async fn the_bound_drops_the_newest_once_told_until_it_drains() {
        let outbox = Arc::new(Outbox::new(1000));
        let mut session = opened(&outbox).await;
        assert_eq!(outbox.push(append(0, 5000)), Push::Queued, "alone it fits");
        assert_eq!(outbox.push(append(1, 1)), Push::Dropped { first: true });
        assert_eq!(outbox.push(append(2, 1)), Push::Dropped { first: false });
        assert_eq!(indexes(&session.batch().await.unwrap()), [0]);
        assert_eq!(outbox.push(append(3, 5000)), Push::Queued);
        assert_eq!(outbox.push(append(4, 1)), Push::Dropped { first: true });
    }

    #[tokio::test]
    async fn an_old_session_ends_and_takes_nothing() {
        let outbox = Arc::new(Outbox::new(1 << 20));
        let mut old = opened(&outbox).await;
        let mut waiting = Box::pin(old.batch());
        assert!(futures::poll!(&mut waiting).is_pending());
        let mut new = opened(&outbox).await;
        outbox.push(append(1, 1));
        assert!(waiting.await.is_none());
        assert_eq!(indexes(&new.batch().await.unwrap()), [1]);
        outbox.push(append(2, 1));
        outbox.reset();
        assert!(new.batch().await.is_none());
        let mut fresh = opened(&outbox).await;
        outbox.push(append(3, 1));
        assert_eq!(indexes(&fresh.batch().await.unwrap()), [3], "what waited was dropped");
    }
}
