//! The Ready protocol of the engine, in one function, and what follows once a batch is durable.

use raft_rs::eraftpb;

use super::Node;
use super::effect::{Committed, Effect};
use super::envelope::{self, Envelope};
use super::pipeline::{Pending, Released};
use crate::error::{Error, StorageError};
use crate::log::cache::ENTRY_OVERHEAD;
use crate::log::{LogBatch, SnapshotRecord};
use crate::types::{
    Entry, EntryKind, HardState, Index, Membership, Message, NodeId, Position, RaftId, SnapshotMeta,
};
use crate::zoo::{self, Bug};

impl Node {
    /// Takes one Ready, in this order:
    /// 1. the storage gets snapshot and entries (R9: between calls of the engine only);
    /// 2. the engine advances, without waiting for the disk;
    /// 3. committed entries are folded: membership first (R6), the rest goes to the Store;
    /// 4. the leader's messages leave, unless term or vote are not durable yet (R2, H6);
    /// 5. the batch goes to the disk; everything else waits for it.
    pub(super) fn take_ready(&mut self) {
        if zoo::has(Bug::CommitAhead) {
            let hard_state = Some(self.hard_state());
            self.persist_own(LogBatch { hard_state, ..LogBatch::default() }, None);
        }
        let mut rd = self.raw.ready();
        let number = self.pipeline.next_number();
        let ready = rd.number();
        let mut batch = LogBatch::default();
        let mut install = None;
        if !rd.snapshot().is_empty() {
            install = self.take_incoming(rd.snapshot());
            let Some(meta) = &install else {
                return self.fail(internal("a snapshot appeared that nobody sent"));
            };
            fold_snapshot(&mut batch, meta);
            self.raw.mut_store().reset(meta.position);
            self.raw.mut_store().set_snapshot(meta.clone());
        }
        let entries = rd.take_entries();
        let overwrites = || entries.first().is_some_and(|e| e.index <= self.cache().last());
        if zoo::has(Bug::OverwriteMeansDropped) && overwrites() {
            self.proposals.decide(0, Index::MAX);
        }
        batch.entries = entries.iter().map(Entry::from).collect();
        self.raw.mut_store().append(entries);
        let leader_messages = rd.take_messages();
        let persisted_messages = rd.take_persisted_messages();
        let committed = rd.take_committed_entries();
        let answers = rd.take_read_states();
        self.raw.advance_append_async(rd);
        if zoo::has(Bug::CountUnsynced) {
            self.raw.on_persist_ready(ready);
        }

        if let Some(meta) = &install {
            self.adopt_snapshot(meta, number);
        }
        self.emit(committed, number, &mut batch);
        for answer in answers {
            if let Some(context) = super::context::ReadContext::decode(&answer.request_ctx) {
                self.reads.answered(&context, answer.index, self.tick);
                self.answers_confirmed(&context);
            }
        }
        let vote = self.log_hard_state(&mut batch) || install.is_some();
        let mut messages = wrap(persisted_messages);
        if (vote || self.pipeline.holds_vote()) && !zoo::has(Bug::NewTermAtOnce) {
            messages.extend(wrap(leader_messages));
        } else {
            self.route(wrap(leader_messages));
        }
        self.persist(
            batch,
            Pending {
                number,
                ready,
                writes: false,
                first: None,
                vote,
                tick: self.tick,
                behind: 0,
                bytes: 0,
                messages,
                install,
                built: None,
            },
        );
    }

    /// Puts the hard state into a batch if it must be there: always when term or vote changed,
    /// and the commit index along with anything else (R4). True when term or vote changed.
    fn log_hard_state(&mut self, batch: &mut LogBatch) -> bool {
        let now = self.hard_state();
        let vote = (now.term, now.vote) != (self.logged.term, self.logged.vote);
        if vote || (!batch.is_empty() && now != self.logged) {
            batch.hard_state = Some(now);
            self.logged = now;
        }
        vote
    }

    /// Queues a batch for the disk. What may leave at once leaves.
    fn persist(&mut self, batch: LogBatch, mut pending: Pending) {
        pending.writes = !batch.is_empty();
        let entry = batch.entries.first().map(|e| e.index);
        pending.first = if batch.reset.is_some() { Some(0) } else { entry };
        pending.bytes = batch.entries.iter().map(|e| e.data.len() as u64 + ENTRY_OVERHEAD).sum();
        let number = pending.number;
        let released = self.pipeline.push(pending);
        self.release(released);
        if !batch.is_empty() {
            self.out.push(Effect::Persist { number, batch });
        }
    }

    /// A batch that comes from no Ready.
    pub(super) fn persist_own(&mut self, mut batch: LogBatch, built: Option<SnapshotMeta>) {
        // H6: it may carry a new term before the Ready that brought it about is taken.
        let now = self.hard_state();
        let vote = (now.term, now.vote) != (self.logged.term, self.logged.vote);
        if batch.hard_state.is_none() {
            self.log_hard_state(&mut batch);
        }
        self.logged = batch.hard_state.unwrap_or(self.logged);
        let number = self.pipeline.next_number();
        let tick = self.tick;
        self.persist(
            batch,
            Pending {
                number,
                ready: 0,
                writes: true,
                first: None,
                vote,
                tick,
                behind: 0,
                bytes: 0,
                messages: Vec::new(),
                install: None,
                built,
            },
        );
    }

    /// Everything up to this batch is durable.
    pub(super) fn on_persisted(&mut self, number: u64) {
        let told = self.leads_openly();
        let released = self.pipeline.persisted(number, self.tick);
        self.release(released);
        self.status_changed |= told != self.leads_openly();
    }

    /// What follows from durability; the engine is told before any message leaves.
    fn release(&mut self, released: Released) {
        if released.ready > 0 {
            let installed = released.install.as_ref().map_or(0, |m| m.position.index);
            self.engine_persisted(released.ready, installed);
        }
        if let Some(meta) = released.install {
            // R11: in the same turn; later, the engine would panic at the next campaign.
            self.raw.advance_apply_to(meta.position.index);
        }
        if let Some(meta) = released.built {
            self.snapshot_recorded(meta);
        }
        if self.gate <= self.pipeline.durable() {
            self.for_store.append(&mut self.held);
        }
        self.route(released.messages);
    }

    /// Tells the engine what is durable. It knows a durable entry by its index and term, and takes
    /// one that was written, then replaced, then written again for durable with the first write;
    /// the disk has yet to lose it and to get it back (H16). Entries from the first one on that is
    /// still being written do not count.
    fn engine_persisted(&mut self, ready: u64, installed: Index) {
        let before = self.raw.raft.raft_log.persisted.max(installed);
        self.raw.on_persist_ready(ready);
        if let Some(first) = self.pipeline.first_unsynced() {
            let log = &mut self.raw.raft.raft_log;
            log.persisted = log.persisted.min(before.max(first.saturating_sub(1)));
        }
    }

    /// Sends messages: snapshots go aside, and behind a stalled disk a leader falls silent (R12).
    fn route(&mut self, messages: Vec<Message>) {
        use eraftpb::MessageType as T;
        let silent = self.is_leader() && self.stalled() && !zoo::has(Bug::SendWhileStalled);
        let mut send = Vec::with_capacity(messages.len());
        for message in messages {
            match message.inner.get_msg_type() {
                T::MsgAppend | T::MsgHeartbeat | T::MsgSnapshot if silent => {}
                T::MsgSnapshot => self.send_snapshot(message),
                // Every other type is a small message of the protocol.
                _ => send.push(message),
            }
        }
        if !send.is_empty() {
            self.out.push(Effect::Send(send));
        }
    }

    /// Folds committed entries in, in order, and queues the Store's share.
    fn emit(&mut self, committed: Vec<eraftpb::Entry>, number: u64, batch: &mut LogBatch) {
        let Some(last) = committed.last().map(|e| e.index) else { return };
        let mut items = Vec::with_capacity(committed.len());
        for entry in committed {
            let entry = Entry::from(&entry);
            let position = Position { index: entry.index, term: entry.term };
            let replies = self.proposals.decide(position.term, position.index);
            let known = self.membership.as_ref().map_or(0, |m| m.index);
            let (changed, data) = match self.fold_entry(&entry, known) {
                Ok(folded) => folded,
                Err(error) => return self.fail(error),
            };
            if changed {
                // R7: the Store hears of this index once the record is durable.
                self.queue_apply(std::mem::take(&mut items));
                if !zoo::has(Bug::TellStoreFirst) {
                    self.gate = number;
                }
                if !zoo::has(Bug::MembershipUnrecorded) {
                    batch.membership = self.membership.as_ref().map(Membership::encode);
                }
                self.membership_changed(position);
            }
            // Nobody's vote depends on an address: that others know of it is not waited for.
            let votes = entry.kind != EntryKind::Normal;
            let late = self.tick + if votes { self.limits.election_tick } else { 0 };
            let members = self.membership.as_ref().filter(|_| changed);
            self.changes.decide(position, members, number, late);
            if entry.index > self.store_floor || zoo::has(Bug::ApplyAgain) {
                items.push(Committed { index: entry.index, data, replies });
            }
        }
        let given = if zoo::has(Bug::CountUncommitted) { self.last_index() } else { last };
        self.emitted = self.emitted.max(given);
        self.queue_apply(items);
        self.raw.advance_apply_to(last);
    }

    /// One committed entry: whether it changed the membership, and what the Store gets of it.
    fn fold_entry(&mut self, entry: &Entry, known: Index) -> Result<(bool, bytes::Bytes), Error> {
        let nothing = bytes::Bytes::new();
        let known = if zoo::has(Bug::ChangeTwice) { 0 } else { known };
        match entry.kind {
            EntryKind::ConfChangeV2 | EntryKind::ConfChange => {
                Ok((entry.index > known && self.apply_conf_change(entry), nothing))
            }
            EntryKind::Normal => match envelope::open(&entry.data) {
                Ok(Envelope::Empty) => Ok((false, nothing)),
                Ok(Envelope::Commands(body)) => Ok((false, body)),
                Ok(Envelope::Membership(body)) => Ok((
                    entry.index > known && self.apply_address_change(&body, entry.index),
                    nothing,
                )),
                Err(reason) => Err(Error::StoreFailed {
                    index: entry.index,
                    reason,
                    remedy: "Nothing was lost; start this node with the newer release",
                }),
            },
        }
    }

    fn membership_changed(&mut self, at: Position) {
        let Some(m) = self.membership.clone() else { return };
        // People know node ids only.
        let nodes = |ids: &[RaftId]| {
            let mut nodes: Vec<NodeId> = ids.iter().map(|id| self.node_of(*id)).collect();
            nodes.sort_unstable();
            nodes
        };
        slog::info!(self.logger, "membership changed"; "index" => at.index,
            "voters" => ?nodes(&m.conf_state.voters), "learners" => ?nodes(&m.conf_state.learners));
        // Others are told of it once it is durable here: a removed node may end when they are.
        if zoo::has(Bug::TellPeersFirst) {
            self.out.push(Effect::SetPeers(m));
        } else {
            self.fifo(Effect::SetPeers(m));
        }
        self.status_changed = true;
    }

    fn queue_apply(&mut self, items: Vec<Committed>) {
        if !items.is_empty() {
            self.fifo(Effect::Apply(items));
        }
    }

    fn take_incoming(&mut self, snapshot: &eraftpb::Snapshot) -> Option<SnapshotMeta> {
        let index = snapshot.get_metadata().index;
        self.incoming.take().filter(|m| m.position.index == index)
    }

    /// An incoming snapshot replaces everything up to its index. The Store restores it once its
    /// record is durable, and before anything that follows, reads included.
    fn adopt_snapshot(&mut self, meta: &SnapshotMeta, number: u64) {
        let index = meta.position.index;
        self.gate = if zoo::has(Bug::RestoreUnrecorded) { 0 } else { number };
        self.fifo(Effect::Install { meta: meta.clone() });
        slog::info!(self.logger, "installing snapshot"; "index" => index, "bytes" => meta.size);
        self.installing = Some(index);
        if !zoo::has(Bug::InstallUncounted) {
            self.emitted = index;
        }
        self.store_floor = index;
        self.snapshots.resume(meta);
        self.proposals.covered(meta.position);
        self.changes.covered(meta.position, &meta.membership);
        self.membership = Some(meta.membership.clone());
        self.fifo(Effect::SetPeers(meta.membership.clone()));
        self.status_changed = true;
    }

    /// The Store has restored a snapshot: it need not be done again.
    pub(super) fn on_installed(&mut self, index: Index) {
        self.store_applied = self.store_applied.max(index);
        if self.installing != Some(index) {
            return;
        }
        self.installing = None;
        let position = self.cache().snapshot_meta().map(|m| m.position);
        if let Some(position) = position.filter(|p| p.index == index) {
            let record = SnapshotRecord { position, installing: false };
            self.persist_own(LogBatch { snapshot: Some(record), ..LogBatch::default() }, None);
            self.out.push(Effect::Compact { through: position, keep_snapshot: index });
        }
    }
}

fn fold_snapshot(batch: &mut LogBatch, meta: &SnapshotMeta) {
    batch.reset = Some(meta.position);
    batch.membership = Some(meta.membership.encode());
    batch.snapshot = Some(SnapshotRecord { position: meta.position, installing: true });
}

fn wrap(messages: Vec<eraftpb::Message>) -> Vec<Message> {
    messages.into_iter().map(Message::new).collect()
}

fn internal(reason: &str) -> Error {
    Error::Internal { part: "node", reason: reason.to_owned() }
}

/// What a hard state and a log must be to each other when they are loaded.
pub(super) fn check_loaded(hs: &HardState, last: Position, commit: Index) -> Result<(), Error> {
    if commit > last.index {
        return Err(Error::Storage(StorageError::Contract(format!(
            "the log ends at index {}, but index {commit} is known to be committed: the log is \
             behind the state. Restore the whole data directory from one moment, or remove this \
             node from the cluster and let it join again empty",
            last.index
        ))));
    }
    if last.term > hs.term {
        return Err(Error::Storage(StorageError::Contract(format!(
            "the log holds term {}, but the recorded term is {}: the data directory is damaged. \
             Remove this node from the cluster and let it join again empty",
            last.term, hs.term
        ))));
    }
    Ok(())
}
