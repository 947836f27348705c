//! Messages of peers on their way into the engine: judged first, then stepped.

use super::Node;
use super::gate::{self, GateView, Severity};
use crate::error::{Error, StorageError};
use crate::log::cache;
use crate::types::{Index, Message, Position, RaftId, SnapshotMeta, Term, eraftpb::MessageType};
use crate::zoo::{self, Bug};

/// Refused messages that are logged one by one; behind them only every hundredth is.
const LOGGED_REFUSALS: u64 = 10;

/// How far the log is that of the leader of a term: acknowledged to it, or about to be. A leader
/// never takes back what it has sent in its term (Raft paper, 5.3); the acknowledgement may be on
/// its way already when it tries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Agreed {
    term: Term,
    index: Index,
}

impl Agreed {
    /// The end of what a message of a leader makes the log agree with, if it is taken in.
    fn after(message: &Message) -> Option<(Term, Position)> {
        let m = &message.inner;
        if m.get_msg_type() != MessageType::MsgAppend {
            return None;
        }
        let before = Position { index: m.index, term: m.log_term };
        let end = m.entries.last().map_or(before, |e| Position { index: e.index, term: e.term });
        Some((m.term, end))
    }

    /// Refuses what contradicts it.
    fn keeps(
        self,
        message: &Message,
        ours: impl Fn(Index) -> Option<Term>,
    ) -> Result<(), gate::Reject> {
        let m = &message.inner;
        let cut = match m.get_msg_type() {
            MessageType::MsgAppend => Some((m.index, m.log_term)),
            MessageType::MsgSnapshot => {
                let cut = m.get_snapshot().get_metadata();
                Some((cut.index, cut.term))
            }
            _ => None,
        };
        let Some(cut) = cut.filter(|_| m.term == self.term) else { return Ok(()) };
        let all = std::iter::once(cut).chain(m.entries.iter().map(|e| (e.index, e.term)));
        for (index, term) in all.take_while(|(index, _)| *index <= self.index) {
            // An entry that was compacted is committed; its term is no longer known.
            if ours(index).is_some_and(|ours| ours != 0 && ours != term) {
                return Err(gate::Reject::RewritesOwnTerm { index, term: m.term });
            }
        }
        Ok(())
    }
}

impl Node {
    /// Steps a message of an authenticated peer, if it passes the gate.
    pub(super) fn on_message(&mut self, from: RaftId, mut message: Message) {
        let limits = self.limits.gate;
        let view = GateView::new(
            &self.raw.raft,
            from,
            self.membership.as_ref(),
            self.reads.nonce(),
            limits,
        );
        if let Err(reject) = gate::admit(&mut message.inner, from, &view) {
            return self.refuse(from, &message, reject);
        }
        if let Err(reject) = self.agreed.keeps(&message, |index| self.term_of(index)) {
            return self.refuse(from, &message, reject);
        }
        self.hear(from);
        let mut snapshot = None;
        match message.inner.get_msg_type() {
            // R19: a Store or a disk that hangs must not fill memory.
            MessageType::MsgAppend if !message.inner.entries.is_empty() && self.is_behind() => {
                return;
            }
            // H6b: a sole voter must not campaign with unsynced entries.
            MessageType::MsgTimeoutNow if !self.may_tick() => return,
            MessageType::MsgSnapshot => {
                // The meta of the verified file is what counts; the header must agree.
                let Some(meta) = message.snapshot.take() else { return };
                if cache::header(&meta) != *message.inner.get_snapshot() {
                    return;
                }
                let (ours, commit) = (self.membership.as_ref(), self.raw.raft.raft_log.committed);
                if let Err(reject) = gate::membership_goes_on(&meta, ours, commit) {
                    return self.refuse(from, &message, reject);
                }
                snapshot = Some(meta);
            }
            // All others go as they are.
            _ => {}
        }
        let told = Agreed::after(&message);
        use MessageType as T;
        let asks = matches!(message.inner.get_msg_type(), T::MsgRequestVote | T::MsgRequestPreVote);
        if zoo::has(Bug::VoteForAnyLog) && asks {
            (message.inner.index, message.inner.log_term) = (gate::MAX_INDEX, gate::MAX_INDEX);
        }
        // An error means that the sender is no member as far as the engine knows: ignored.
        let _ = self.raw.step(message.inner);
        self.agree(told);
        // The engine ignores a snapshot that tells it nothing new; one it took in before stays.
        // Position and members: another one at the same place is another one.
        let taken = |m: &SnapshotMeta| self.raw.snap().is_some_and(|s| *s == cache::header(m));
        if let Some(meta) = snapshot.filter(|m| taken(m)) {
            self.incoming = Some(*meta);
        }
    }

    /// Notes how far the log is that of the term's leader, if what it sent was taken in.
    fn agree(&mut self, told: Option<(Term, Position)>) {
        let Some((term, end)) = told.filter(|(term, _)| *term == self.raw.raft.term) else {
            return;
        };
        if self.term_of(end.index) == Some(end.term) {
            let before = if self.agreed.term == term { self.agreed.index } else { 0 };
            self.agreed = Agreed { term, index: before.max(end.index) };
        }
    }

    fn term_of(&self, index: Index) -> Option<Term> {
        self.raw.raft.raft_log.term(index).ok()
    }

    /// Whether the Store, or the disk, was given more than it may lag behind. Of what is durable
    /// the entries that are not committed do not count: only further appends can tell what becomes
    /// of them.
    fn is_behind(&self) -> bool {
        let given = self.cache().bytes_between(self.store_applied, self.emitted);
        given.max(self.pipeline.bytes()) > self.limits.max_apply_lag
    }

    fn refuse(&mut self, from: RaftId, message: &Message, reject: gate::Reject) {
        match reject.severity() {
            Severity::Stale if !zoo::has(Bug::StaleIsHostile) => {}
            Severity::Stale | Severity::Hostile => {
                self.refused_messages += 1;
                let n = self.refused_messages;
                if n <= LOGGED_REFUSALS || n.is_multiple_of(100) {
                    slog::warn!(self.logger, "message refused"; "from" => self.node_of(from),
                        "raft_id" => from, "type" => ?message.inner.get_msg_type(), "reason" => %reject, "so_far" => n);
                }
            }
            Severity::Fatal => {
                self.fail(Error::Storage(StorageError::Contract(reject.to_string())));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::eraftpb;

    fn append(term: Term, (index, log_term): (Index, Term), terms: &[Term]) -> Message {
        let mut m = eraftpb::Message::default();
        m.set_msg_type(MessageType::MsgAppend);
        (m.term, m.index, m.log_term) = (term, index, log_term);
        for (term, index) in terms.iter().zip(index + 1..) {
            m.entries.push(eraftpb::Entry { term: *term, index, ..eraftpb::Entry::default() });
        }
        Message::new(m)
    }

    #[test]
    fn a_leader_takes_nothing_back_that_it_sent_in_its_term() {
        let log = |index: Index| [0, 1, 1, 1, 2].get(index as usize).copied();
        let agreed = Agreed { term: 3, index: 3 };
        for (message, kept) in [
            (append(3, (1, 1), &[1, 1, 3]), true),
            (append(3, (1, 1), &[3]), false),
            (append(3, (3, 2), &[3]), false),
            (append(3, (3, 1), &[3]), true),
            (append(4, (1, 1), &[4]), true),
        ] {
            assert_eq!(agreed.keeps(&message, log).is_ok(), kept, "{message:?}");
        }
        assert_eq!(
            Agreed::after(&append(3, (1, 1), &[1, 3])),
            Some((3, Position { index: 3, term: 3 }))
        );
    }
}
