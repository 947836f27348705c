//! Snapshots and compaction: when to take one, what may be dropped, who is being sent one.
//!
//! Invariants:
//! - the log is compacted only below a snapshot whose file and record are durable (R10), and a
//!   trailing window stays for followers that lag a little;
//! - every MsgSnapshot is reported exactly once (H7); a peer in Snapshot state has an active
//!   transfer, or is reported as failed on the next tick (I16);
//! - a snapshot whose file turns out to be unreadable is not sent again, and another is taken, at
//!   the same index if need be. Until that one is durable and recorded, the old file, its record
//!   and the log above it stay as they are.

use std::collections::BTreeMap;

use raft_rs::{ProgressState, SnapshotStatus};

use super::Node;
use super::effect::Effect;
use super::event::Transferred;
use crate::log::{LogBatch, SnapshotRecord};
use crate::types::{Index, Message, Position, RaftId, SnapshotMeta};
use crate::zoo::{self, Bug};

/// Ticks before a snapshot that failed, or was lost, is taken again, in election timeouts.
const RETRY_TIMEOUTS: u64 = 5;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
    /// Whether the Store is being captured, or the record of its snapshot is not durable yet.
    capturing: bool,
    /// No capture before this tick.
    not_before: u64,
    /// No capture in place of one that was lost before this tick: a disk that loses one after the
    /// other must not keep the Store busy.
    mend_after: u64,
    /// Position of the newest durable snapshot of the own Store, as decided last.
    newest: Index,
    /// Its size: a large state waits until the log has grown by as much.
    newest_size: u64,
    /// Peers that are being sent a snapshot, and which.
    transfers: BTreeMap<RaftId, Sending>,
    /// How many snapshots have been the newest: one that takes the place of another that was lost
    /// may stand at the same position.
    taken: u64,
}

/// A snapshot on its way to a peer.
#[derive(Clone, Copy, Debug)]
struct Sending {
    index: Index,
    /// `Snapshots::taken` when it left.
    taken: u64,
    /// How much of it has left, once that is known.
    percent: Option<u8>,
}

impl Snapshots {
    /// Another snapshot is the newest one.
    pub(super) fn resume(&mut self, meta: &SnapshotMeta) {
        self.taken += 1;
        self.newest = meta.position.index;
        self.newest_size = meta.size;
    }

    /// How much of the snapshot that is being sent to a peer has left.
    pub(super) fn percent(&self, to: RaftId) -> Option<u8> {
        self.transfers.get(&to)?.percent
    }

    pub(super) fn newest(&self) -> Index {
        self.newest
    }

    /// How many snapshots have been the newest.
    #[cfg(test)]
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }
}

impl Node {
    /// Asks for a snapshot of the Store when the log has grown enough, or a peer needs one.
    pub(super) fn maybe_capture(&mut self) {
        if self.snapshots.capturing || self.tick < self.snapshots.not_before {
            return;
        }
        let newest = self.snapshots.newest.max(self.cache().compacted().index);
        let grown = self.emitted.saturating_sub(newest);
        let bytes = self.cache().bytes_between(newest, self.emitted);
        let enough = self.limits.snapshot_bytes.max(self.snapshots.newest_size);
        let due = grown >= self.limits.snapshot_entries || bytes >= enough;
        let Some(membership) = self.membership.clone() else { return };
        let low = u64::from(zoo::has(Bug::SnapshotIndexLow));
        let index = self.emitted.saturating_sub(low) + u64::from(zoo::has(Bug::SnapshotIndexHigh));
        let Some(term) = self.cache().term_at(index) else { return };
        let lost = self.cache().snapshot_is_lost();
        let mend = lost && self.tick >= self.snapshots.mend_after && self.emitted >= newest;
        let wanted = self.cache().take_wanted() && self.is_leader() && !lost;
        // The founding is index 1: there is nothing of the Store in it, and it is never sent.
        if self.installing.is_some() || self.emitted < 2 || !(due && grown > 0 || wanted || mend) {
            return;
        }
        self.snapshots.capturing = true;
        if lost {
            self.snapshots.mend_after = self.tick + RETRY_TIMEOUTS * self.limits.election_tick;
        }
        let position = Position { index, term };
        self.fifo(Effect::Capture { position, membership });
    }

    /// A snapshot of the own Store is a file now: record it, then compact.
    pub(super) fn snapshot_built(&mut self, meta: SnapshotMeta) {
        self.cache().take_wanted();
        if self.is_superseded(&meta) {
            self.snapshots.capturing = false;
            return;
        }
        if zoo::has(Bug::CompactUnrecorded) {
            self.snapshot_recorded(meta.clone());
        }
        let record = SnapshotRecord { position: meta.position, installing: false };
        let batch = LogBatch { snapshot: Some(record), ..LogBatch::default() };
        self.persist_own(batch, Some(meta));
    }

    /// Whether a snapshot as new is known and can be read, or the log begins above this one.
    fn is_superseded(&self, meta: &SnapshotMeta) -> bool {
        let index = meta.position.index;
        let known = self.snapshots.newest.max(self.cache().compacted().index);
        index < known || (index == known && !self.cache().snapshot_is_lost())
    }

    pub(super) fn snapshot_failed(&mut self) {
        self.snapshots.capturing = false;
        self.raw.mut_store().try_snapshot_again();
        self.snapshots.not_before = self.tick + RETRY_TIMEOUTS * self.limits.election_tick;
    }

    /// The record of a snapshot is durable: it may be sent, and the log below it may go (R10).
    pub(super) fn snapshot_recorded(&mut self, meta: SnapshotMeta) {
        self.snapshots.capturing = false;
        if self.is_superseded(&meta) {
            // An incoming snapshot came while the record was being written.
            return;
        }
        self.snapshots.resume(&meta);
        let keep_snapshot = meta.position.index;
        self.raw.mut_store().set_snapshot(meta);
        let through = self.compaction_point(keep_snapshot);
        if through > self.cache().compacted().index {
            let through = self.raw.mut_store().compact(through);
            self.out.push(Effect::Compact { through, keep_snapshot });
        }
    }

    /// The last entry that nobody needs any more.
    fn compaction_point(&self, snapshot: Index) -> Index {
        if zoo::has(Bug::CompactToApplied) {
            return self.emitted;
        }
        let cache = self.cache();
        let mut through = snapshot.saturating_sub(self.limits.snapshot_trailing_entries);
        let floor = cache.compacted().index.max(through);
        // The trailing window is also bounded in bytes: halve the search by bisection.
        let (mut low, mut high) = (floor, snapshot);
        while low < high {
            let middle = low + (high - low) / 2;
            if cache.bytes_between(middle, snapshot) > self.limits.snapshot_trailing_bytes {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        through = through.max(low);
        // Entries above a snapshot that is on its way are kept, up to a bound.
        let sending = self.snapshots.transfers.values().map(|s| s.index).min().unwrap_or(through);
        if cache.bytes_between(sending, snapshot) <= self.limits.snapshot_bytes {
            through = through.min(sending);
        }
        through
    }

    /// A MsgSnapshot leaves: its file is streamed aside.
    pub(super) fn send_snapshot(&mut self, mut message: Message) {
        let to = message.to();
        let index = message.inner.get_snapshot().get_metadata().index;
        let meta = self.cache().snapshot_meta().filter(|m| m.position.index == index).cloned();
        let Some(meta) = meta else {
            self.raw.report_snapshot(to, SnapshotStatus::Failure);
            return;
        };
        if self.snapshots.transfers.contains_key(&to) {
            // The transfer that runs already will report for both.
            return;
        }
        let taken = self.snapshots.taken;
        self.snapshots.transfers.insert(to, Sending { index, taken, percent: None });
        slog::info!(self.logger, "sending snapshot"; "to" => self.node_of(to),
            "raft_id" => to, "index" => index);
        message.snapshot = Some(Box::new(meta));
        self.out.push(Effect::SendSnapshot { to, message });
    }

    pub(super) fn snapshot_progress(&mut self, to: RaftId, percent: u8) {
        if let Some(sending) = self.snapshots.transfers.get_mut(&to) {
            sending.percent = Some(percent.min(100));
            self.status_changed = true;
        }
    }

    pub(super) fn snapshot_sent(&mut self, to: RaftId, how: Transferred) {
        if zoo::has(Bug::TransferUnreported) {
            return;
        }
        let Some(sent) = self.snapshots.transfers.remove(&to) else { return };
        let status = match how {
            Transferred::Arrived => SnapshotStatus::Finish,
            Transferred::Broken => SnapshotStatus::Failure,
            Transferred::Unreadable(position) => {
                self.snapshot_unreadable(position, sent);
                SnapshotStatus::Failure
            }
        };
        self.raw.report_snapshot(to, status);
    }

    /// The file of a snapshot cannot be read. If it is the newest one, whoever needs a snapshot
    /// waits for another: in a cluster without new writes none would ever be due. A report that
    /// comes late may be about one whose place was taken meanwhile, at the same position.
    fn snapshot_unreadable(&mut self, position: Position, sent: Sending) {
        let same = sent.taken == self.snapshots.taken;
        let newest = same && self.cache().snapshot_meta().is_some_and(|m| m.position == position);
        if !newest || self.cache().snapshot_is_lost() {
            return;
        }
        slog::error!(self.logger, "the newest snapshot cannot be read; another is taken";
            "index" => position.index, "term" => position.term);
        self.raw.mut_store().lose_snapshot();
    }

    /// The watchdog of H7: whoever is in Snapshot state without a transfer is probed again.
    pub(super) fn watch_transfers(&mut self) {
        if !self.is_leader() {
            return;
        }
        let lost: Vec<RaftId> = self
            .raw
            .raft
            .prs()
            .iter()
            .filter(|(_, p)| p.state == ProgressState::Snapshot)
            .map(|(id, _)| *id)
            .filter(|id| !self.snapshots.transfers.contains_key(id))
            .collect();
        for id in lost {
            self.raw.report_snapshot(id, SnapshotStatus::Failure);
        }
    }
}
