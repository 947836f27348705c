//! Messages of peers on their way into the engine: judged first, then stepped.

use super::Node;
use super::gate::{self, GateView, Severity};
use crate::error::{Error, StorageError};
use crate::log::cache;
use crate::types::{Message, RaftId, SnapshotMeta, eraftpb::MessageType};

/// Refused messages that are logged one by one; behind them only every hundredth is.
const LOGGED_REFUSALS: u64 = 10;

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
        self.hear(from);
        let mut snapshot = None;
        match message.inner.get_msg_type() {
            // R19: a Store that hangs must not fill memory and disk.
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
        // An error means that the sender is no member as far as the engine knows: ignored.
        let _ = self.raw.step(message.inner);
        // The engine ignores a snapshot that tells it nothing new; one it took in before stays.
        let taken = |m: &SnapshotMeta| {
            self.raw.snap().is_some_and(|s| s.get_metadata().index == m.position.index)
        };
        if let Some(meta) = snapshot.filter(|m| taken(m)) {
            self.incoming = Some(*meta);
        }
    }

    /// Whether the Store was given more than it may lag behind. Entries that are not committed
    /// do not count: only further appends can tell what becomes of them.
    fn is_behind(&self) -> bool {
        let given = self.cache().bytes_between(self.store_applied, self.emitted);
        given > self.limits.max_apply_lag
    }

    fn refuse(&mut self, from: RaftId, message: &Message, reject: gate::Reject) {
        match reject.severity() {
            Severity::Stale => {}
            Severity::Hostile => {
                self.refused_messages += 1;
                let n = self.refused_messages;
                if n <= LOGGED_REFUSALS || n.is_multiple_of(100) {
                    slog::warn!(self.logger, "message refused"; "peer" => from,
                        "type" => ?message.inner.get_msg_type(), "reason" => %reject, "so_far" => n);
                }
            }
            Severity::Fatal => {
                self.fail(Error::Storage(StorageError::Contract(reject.to_string())));
            }
        }
    }
}
