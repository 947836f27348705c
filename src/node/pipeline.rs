//! What waits for the disk: every Ready from the moment it is taken until it is durable.
//!
//! Invariants (R2):
//! - persisted messages of a Ready leave after its own batch *and all earlier ones* are durable,
//!   also when the Ready itself wrote nothing;
//! - from a batch that changes term or vote on, nothing leaves until it is durable (H6);
//! - batches become durable in the order of their numbers;
//! - what a later batch replaces is not durable before that batch is: the disk has had the same
//!   entries, but is about to lose them for a while (H16).

use std::collections::VecDeque;

use crate::types::{Index, Message, SnapshotMeta, eraftpb::MessageType};
use crate::zoo::{self, Bug};

/// Bytes that any disk writes and syncs in a heartbeat interval: a disk that does more of them at a
/// time may take longer.
const AT_ONCE: u64 = 256 << 10;

/// One Ready, or one batch of our own, on its way to the disk.
#[derive(Debug)]
pub(super) struct Pending {
    /// Number of our batch; `Effect::Persist` and `Event::Persisted` name it.
    pub(super) number: u64,
    /// Number of the Ready it came from; 0: a batch of our own.
    pub(super) ready: u64,
    /// Whether anything is written at all.
    pub(super) writes: bool,
    /// The first entry that it writes; 0: it replaces the whole log by a snapshot.
    pub(super) first: Option<Index>,
    /// Whether it changes term or vote, or installs a snapshot.
    pub(super) vote: bool,
    /// The tick it was issued at.
    pub(super) tick: u64,
    /// What the disk had finished then; [`Pipeline::push`] fills it in.
    pub(super) behind: u64,
    /// Bytes of the entries that it writes.
    pub(super) bytes: u64,
    /// What leaves when it is durable.
    pub(super) messages: Vec<Message>,
    /// The snapshot that it installs.
    pub(super) install: Option<SnapshotMeta>,
    /// The snapshot of the own Store that it records.
    pub(super) built: Option<SnapshotMeta>,
}

/// What became durable.
#[derive(Debug, Default)]
pub(super) struct Released {
    /// The newest Ready that is durable now; 0: none.
    pub(super) ready: u64,
    pub(super) messages: Vec<Message>,
    pub(super) install: Option<SnapshotMeta>,
    pub(super) built: Option<SnapshotMeta>,
}

/// The queue of what is not durable yet.
#[derive(Debug, Default)]
pub(super) struct Pipeline {
    pending: VecDeque<Pending>,
    last_number: u64,
    durable: u64,
    /// How often the disk has finished something, one batch or several; much at once counts as
    /// several times.
    finished: u64,
    /// The tick at which it did last.
    progress: u64,
    /// Bytes of the entries that are not durable yet.
    bytes: u64,
}

impl Pipeline {
    /// The number for the next batch.
    pub(super) fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// The number of the newest batch that is durable, with all before it.
    pub(super) fn durable(&self) -> u64 {
        self.durable
    }

    /// Whether a change of term or vote, or an installing snapshot, is not durable yet.
    pub(super) fn holds_vote(&self) -> bool {
        self.pending.iter().any(|p| p.vote)
    }

    /// Whether an installing snapshot is not durable yet.
    pub(super) fn holds_install(&self) -> bool {
        self.pending.iter().any(|p| p.install.is_some())
    }

    /// Whether any write is not durable yet.
    pub(super) fn holds_writes(&self) -> bool {
        self.pending.iter().any(|p| p.writes)
    }

    /// The first entry that a write on its way replaces or adds; 0: all of them.
    pub(super) fn first_unsynced(&self) -> Option<Index> {
        self.pending.iter().filter_map(|p| p.first).min()
    }

    /// Ticks for which the oldest unsynced batch has been waiting while none became durable (R12):
    /// a disk that works through a backlog is slow, and does not hang.
    pub(super) fn stalled_for(&self, now: u64) -> u64 {
        let oldest = self.pending.iter().find(|p| p.writes);
        oldest.map_or(0, |p| now.saturating_sub(p.tick.max(self.progress)))
    }

    /// Bytes of the entries that wait for the disk.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether the oldest unsynced batch has been waiting for more than `limit` ticks, in which the
    /// disk took more than `each` of them to finish something (R12): it is slow even for the little
    /// that it does at a time, and not only loaded.
    pub(super) fn crawls(&self, now: u64, limit: u64, each: u64) -> bool {
        self.pending.iter().find(|p| p.writes).is_some_and(|p| {
            let age = now.saturating_sub(p.tick);
            let done = self.finished.saturating_sub(p.behind);
            // What it is at counts as done.
            age > limit && (done + 1).saturating_mul(each) < age
        })
    }

    /// Queues a Ready. Gives back what may leave at once: everything when it writes nothing and
    /// nothing is before it; otherwise heartbeat responses that overtake entries only.
    pub(super) fn push(&mut self, mut pending: Pending) -> Released {
        if self.pending.is_empty() && !pending.writes {
            self.durable = self.durable.max(pending.number);
            return Released {
                ready: pending.ready,
                messages: std::mem::take(&mut pending.messages),
                ..Released::default()
            };
        }
        let behind_vote = pending.vote || self.holds_vote();
        let messages = std::mem::take(&mut pending.messages).into_iter();
        let (now, held) = messages.partition(|m| may_overtake(m, behind_vote));
        (pending.messages, pending.behind) = (held, self.finished);
        self.bytes += pending.bytes;
        self.pending.push_back(pending);
        Released { messages: now, ..Released::default() }
    }

    /// Every batch up to `number` is durable at the tick `now`, and with it what wrote nothing right
    /// behind.
    pub(super) fn persisted(&mut self, number: u64, now: u64) -> Released {
        let mut out = Released::default();
        let (mut wrote, mut bytes) = (false, 0);
        let done = |p: &Pending| p.number <= number || !p.writes;
        while self.pending.front().is_some_and(done) {
            let Some(p) = self.pending.pop_front() else { break };
            self.durable = self.durable.max(p.number);
            wrote |= p.writes;
            bytes += p.bytes;
            out.ready = out.ready.max(p.ready);
            out.messages.extend(p.messages);
            out.install = p.install.or(out.install);
            out.built = p.built.or(out.built);
        }
        if wrote {
            (self.finished, self.progress) = (self.finished + 1 + bytes / AT_ONCE, now);
        }
        self.bytes = self.bytes.saturating_sub(bytes);
        out
    }
}

/// Whether a message need not wait for the disk.
fn may_overtake(message: &Message, behind_vote: bool) -> bool {
    match message.inner.get_msg_type() {
        _ if zoo::has(Bug::SendBeforeDurable) => true,
        MessageType::MsgHeartbeatResponse => !behind_vote || zoo::has(Bug::OvertakeVote),
        MessageType::MsgRequestVoteResponse => zoo::has(Bug::VoteBeforeDurable),
        MessageType::MsgAppendResponse => zoo::has(Bug::AckBeforeDurable),
        // All others speak of what is not durable yet.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::eraftpb;

    fn message(t: MessageType) -> Message {
        let mut m = eraftpb::Message::default();
        m.set_msg_type(t);
        Message::new(m)
    }

    fn pending(p: &mut Pipeline, writes: bool, vote: bool, types: &[MessageType]) -> Pending {
        let number = p.next_number();
        Pending {
            number,
            ready: number,
            writes,
            first: None,
            vote,
            tick: 0,
            behind: 0,
            bytes: 0,
            messages: types.iter().copied().map(message).collect(),
            install: None,
            built: None,
        }
    }

    #[test]
    fn r2_a_ready_that_writes_nothing_waits_for_the_ones_before() {
        let mut p = Pipeline::default();
        let first = pending(&mut p, true, false, &[]);
        assert!(p.push(first).messages.is_empty());
        let second = pending(&mut p, false, false, &[MessageType::MsgAppendResponse]);
        assert!(p.push(second).messages.is_empty(), "acknowledges entries of the first");
        let out = p.persisted(1, 0);
        assert_eq!((out.ready, out.messages.len()), (2, 1));
        let third = pending(&mut p, false, false, &[MessageType::MsgAppendResponse]);
        assert_eq!(p.push(third).messages.len(), 1);
        assert_eq!(p.durable(), 3);
    }

    #[test]
    fn r2_heartbeat_responses_overtake_entries_but_not_votes() {
        let mut p = Pipeline::default();
        let entries = pending(&mut p, true, false, &[]);
        p.push(entries);
        let beat = pending(&mut p, false, false, &[MessageType::MsgHeartbeatResponse]);
        assert_eq!(p.push(beat).messages.len(), 1);
        let vote = pending(&mut p, true, true, &[MessageType::MsgHeartbeatResponse]);
        assert!(p.push(vote).messages.is_empty());
        let beat = pending(&mut p, false, false, &[MessageType::MsgHeartbeatResponse]);
        assert!(p.push(beat).messages.is_empty());
        assert_eq!(p.persisted(3, 0).messages.len(), 2);
    }

    #[test]
    fn r12_the_oldest_write_counts_from_when_the_disk_did_something_last() {
        let mut p = Pipeline::default();
        assert_eq!(p.stalled_for(9), 0);
        for _ in 0..2 {
            let write = pending(&mut p, true, false, &[]);
            p.push(write);
        }
        assert_eq!(p.stalled_for(9), 9);
        p.persisted(1, 9);
        assert_eq!((p.stalled_for(9), p.stalled_for(12)), (0, 3), "the second is still waiting");
        assert!(p.crawls(12, 11, 2), "one in twelve ticks");
        assert!(!p.crawls(12, 12, 2) && !p.crawls(12, 11, 12));
        p.persisted(2, 12);
        assert_eq!(p.stalled_for(20), 0);
        let mut write = pending(&mut p, true, false, &[]);
        write.tick = 20;
        p.push(write);
        assert_eq!(p.stalled_for(23), 3, "nothing was to be done before");
        assert!(p.crawls(23, 2, 1), "what was done before does not count");
    }

    #[test]
    fn r12_a_disk_that_does_much_at_a_time_does_not_crawl() {
        let mut p = Pipeline::default();
        for bytes in [2 * AT_ONCE, 0] {
            let write = Pending { bytes, ..pending(&mut p, true, false, &[]) };
            p.push(write);
        }
        assert_eq!(p.bytes(), 2 * AT_ONCE);
        p.persisted(1, 8);
        assert_eq!(p.bytes(), 0);
        assert!(!p.crawls(8, 7, 2), "three times, and at one more");
        assert!(p.crawls(9, 7, 2));
    }
}
