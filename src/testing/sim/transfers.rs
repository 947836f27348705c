//! Snapshots on their way to peers: chunk by chunk, through the real files of both sides. However
//! a transfer ends, its sender is told exactly once (H7), and whether its own file was the reason.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::marks::Mark;
use super::schedule::Time;
use super::world::{What, World};
use crate::node::event::{Event, Transferred};
use crate::snapshot::SnapshotReader;
use crate::snapshot::dir::SnapshotWriter;
use crate::types::{Index, Message, NodeId, Position, RaftId};

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
    position: Position,
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
        self.open.values().filter(|t| t.from == id).map(|t| t.position.index).collect()
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
        let transfer = match self.open_transfer(id, peer, message) {
            Ok(transfer) => transfer,
            Err(how) => return self.transferred(id, epoch, peer, how),
        };
        self.hit(Mark::SnapshotSent);
        self.transfers.count += 1;
        let number = self.transfers.count;
        let latency = self.latency(id, transfer.to);
        self.transfers.open.insert(number, transfer);
        self.schedule.after(latency, What::Chunk(number));
    }

    fn transferred(&mut self, id: NodeId, epoch: u64, to: RaftId, how: Transferred) {
        self.marks.hit_if(Mark::SnapshotLost, matches!(how, Transferred::Unreadable(_)));
        self.complete(id, epoch, Event::SnapshotSent { to, how });
    }

    fn open_transfer(
        &mut self,
        id: NodeId,
        peer: RaftId,
        mut message: Message,
    ) -> Result<Transfer, Transferred> {
        let broken = || Transferred::Broken;
        let to = self.route(id, peer).ok_or_else(broken)?;
        let there = self.machines.get(&to).filter(|m| m.raft_id == Some(peer));
        let to_epoch = there.ok_or_else(broken)?.epoch;
        let position = message.snapshot.as_deref().ok_or_else(broken)?.position;
        let from_epoch = self.at(id).epoch;
        let sender = self.at(id).raft_id.ok_or_else(broken)?;
        let r = self.at(id).running().ok_or_else(broken)?;
        let unreadable = |_| Transferred::Unreadable(position);
        let reader = r.snapshots.open_snapshot(position).map_err(unreadable)?;
        // What is in the file is what is announced, as the driver does it.
        message.snapshot = Some(Box::new(reader.meta().clone()));
        Ok(Transfer {
            from: id,
            from_epoch,
            to,
            to_epoch,
            peer,
            sender,
            message,
            position,
            reader,
            writer: None,
            gives_up: None,
        })
    }

    /// One more chunk arrives, or the transfer ends.
    pub(super) fn chunk(&mut self, number: u64) {
        let Some(mut transfer) = self.transfers.open.remove(&number) else { return };
        let how = match self.step_transfer(&mut transfer) {
            Ok(true) => {
                let latency = self.latency(transfer.from, transfer.to);
                self.transfers.open.insert(number, transfer);
                return self.schedule.after(latency, What::Chunk(number));
            }
            Ok(false) => Transferred::Arrived,
            Err(Transferred::Broken) if self.waits_on(&mut transfer) => {
                let at = transfer.gives_up.unwrap_or(0);
                self.transfers.open.insert(number, transfer);
                return self.schedule.at(at, What::Chunk(number));
            }
            Err(how) => {
                self.hit(Mark::TransferBroken);
                how
            }
        };
        let Transfer { from, from_epoch, peer, .. } = transfer;
        self.transferred(from, from_epoch, peer, how);
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

    /// Whether it goes on, or is through; an error: how it ended otherwise.
    fn step_transfer(&mut self, t: &mut Transfer) -> Result<bool, Transferred> {
        let cut = self.net.is_cut(t.from, t.to) || self.net.is_cut(t.to, t.from);
        let sends = self.alive(t.from, t.from_epoch).is_some();
        if cut || !sends || t.gives_up.is_some() {
            return Err(Transferred::Broken);
        }
        let unreadable = |_| Transferred::Unreadable(t.position);
        let chunk = t.reader.next_chunk(CHUNK).map_err(unreadable)?;
        self.take_chunk(t, chunk).ok_or(Transferred::Broken)
    }

    /// The receiver's half; None: it broke off.
    fn take_chunk(&mut self, t: &mut Transfer, chunk: Option<Bytes>) -> Option<bool> {
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
