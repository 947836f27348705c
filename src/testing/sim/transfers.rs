//! Snapshots on their way to peers: chunk by chunk, through the real files of both sides. However
//! a transfer ends, its sender is told exactly once (H7).

use std::collections::{BTreeMap, BTreeSet};

use super::marks::Mark;
use super::schedule::Time;
use super::world::{What, World};
use crate::node::event::Event;
use crate::snapshot::SnapshotReader;
use crate::snapshot::dir::SnapshotWriter;
use crate::types::{Index, Message, NodeId, RaftId};

/// Bytes of a chunk; small, so that transfers take several steps.
const CHUNK: usize = 512;

pub(super) struct Transfer {
    pub(super) from: NodeId,
    from_epoch: u64,
    to: NodeId,
    to_epoch: u64,
    peer: RaftId,
    sender: RaftId,
    message: Message,
    index: Index,
    reader: SnapshotReader,
    writer: Option<SnapshotWriter>,
    /// It broke silently: its sender gives up then.
    gives_up: Option<Time>,
}

#[derive(Default)]
pub(super) struct Transfers {
    open: BTreeMap<u64, Transfer>,
    count: u64,
}

impl Transfers {
    /// Indices of the files that a machine is sending.
    pub(super) fn in_use(&self, id: NodeId) -> BTreeSet<Index> {
        self.open.values().filter(|t| t.from == id).map(|t| t.index).collect()
    }

    /// Whether a machine is receiving.
    pub(super) fn receiving(&self, id: NodeId) -> bool {
        self.open.values().any(|t| t.to == id && t.writer.is_some())
    }

    /// Whether one is under way from a node to a peer (I16).
    pub(super) fn is_open(&self, from: NodeId, peer: RaftId) -> bool {
        self.open.values().any(|t| t.from == from && t.peer == peer)
    }
}

impl World {
    pub(super) fn send_snapshot(&mut self, id: NodeId, peer: RaftId, message: Message) {
        self.oracle.leaves(id, &message, self.is_stalled(id), None);
        let epoch = self.at(id).epoch;
        let opened = self.open_transfer(id, peer, message);
        let Some(transfer) = opened else {
            return self.complete(id, epoch, Event::SnapshotSent { to: peer, ok: false });
        };
        self.hit(Mark::SnapshotSent);
        self.transfers.count += 1;
        let number = self.transfers.count;
        let latency = self.latency(id, transfer.to);
        self.transfers.open.insert(number, transfer);
        self.schedule.after(latency, What::Chunk(number));
    }

    fn open_transfer(&mut self, id: NodeId, peer: RaftId, message: Message) -> Option<Transfer> {
        let to = self.route(id, peer)?;
        let to_epoch = self.machines.get(&to).filter(|m| m.raft_id == Some(peer))?.epoch;
        let meta = message.snapshot.clone()?;
        let from_epoch = self.at(id).epoch;
        let sender = self.at(id).raft_id?;
        let r = self.at(id).running()?;
        let reader = r.snapshots.open_snapshot(meta.position).ok()?;
        let index = meta.position.index;
        Some(Transfer {
            from: id,
            from_epoch,
            to,
            to_epoch,
            peer,
            sender,
            message,
            index,
            reader,
            writer: None,
            gives_up: None,
        })
    }

    /// One more chunk arrives, or the transfer ends.
    pub(super) fn chunk(&mut self, number: u64) {
        let Some(mut transfer) = self.transfers.open.remove(&number) else { return };
        match self.step_transfer(&mut transfer) {
            Some(true) => {
                let latency = self.latency(transfer.from, transfer.to);
                self.transfers.open.insert(number, transfer);
                self.schedule.after(latency, What::Chunk(number));
            }
            Some(false) => {
                let Transfer { from, from_epoch, peer, .. } = transfer;
                self.complete(from, from_epoch, Event::SnapshotSent { to: peer, ok: true });
            }
            None if self.waits_on(&mut transfer) => {
                let at = transfer.gives_up.unwrap_or(0);
                self.transfers.open.insert(number, transfer);
                self.schedule.at(at, What::Chunk(number));
            }
            None => {
                self.hit(Mark::TransferBroken);
                let Transfer { from, from_epoch, peer, .. } = transfer;
                self.complete(from, from_epoch, Event::SnapshotSent { to: peer, ok: false });
            }
        }
    }

    /// Whether the sender of a broken transfer has yet to notice: on a silent link it only learns
    /// of it as its deadline passes.
    fn waits_on(&mut self, t: &mut Transfer) -> bool {
        let silent = self.is_silent(t.from, t.to);
        let sends = self.alive(t.from, t.from_epoch).is_some();
        if !silent || !sends || t.gives_up.is_some() {
            return false;
        }
        t.writer = None;
        let patience = self.config.request_timeout.as_micros() as Time;
        t.gives_up = Some(self.now() + patience);
        true
    }

    /// Some(true): it goes on; Some(false): it is through; None: it broke.
    fn step_transfer(&mut self, t: &mut Transfer) -> Option<bool> {
        let cut = self.net.is_cut(t.from, t.to) || self.net.is_cut(t.to, t.from);
        self.alive(t.from, t.from_epoch)?;
        if cut || t.gives_up.is_some() {
            return None;
        }
        let chunk = t.reader.next_chunk(CHUNK).ok()?;
        let to = self.alive(t.to, t.to_epoch)?;
        if t.writer.is_none() {
            let meta = t.message.snapshot.clone()?;
            t.writer = Some(to.snapshots.receive(*meta).ok()?);
        }
        if let Some(bytes) = chunk {
            t.writer.as_mut()?.write(&bytes).ok()?;
            return Some(true);
        }
        t.writer.take()?.finish().ok()?;
        to.messages.push((t.sender, t.message.clone()));
        self.wake(t.to);
        Some(false)
    }

    /// A process has ended: what it was writing is gone, what it was sending or receiving breaks.
    pub(super) fn transfers_break(&mut self, id: NodeId) {
        for t in self.transfers.open.values_mut().filter(|t| t.to == id) {
            t.writer = None;
        }
    }
}
