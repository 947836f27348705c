//! Snapshot files on their way to and from peers, off the hot path.
//!
//! Its tasks run in the node's own runtime; every touch of the disk happens on a blocking thread.
//! It never decides who needs a snapshot or which one is restored, and a full or failing disk
//! never ends the node from here: the transfer fails, and raft asks again.
//!
//! Invariants:
//! - exactly one `SnapshotSent` for every [`Snapshotter::send`], however the transfer ends (H7); it
//!   says so when it was the own file that could not be read;
//! - a transfer without progress ends after [`STALL`], in either direction;
//! - a file that is being sent, or waits to be, is not removed;
//! - a received snapshot has its name, is verified and durable, before the node hears of it (R11).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use slog::{Logger, info, warn};
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, spawn_blocking};

use super::inbox::Inbox;
use crate::error::StorageError;
use crate::node::event::{Event, Transferred};
use crate::snapshot::SnapshotReader;
use crate::snapshot::dir::{SnapshotDir, SnapshotWriter};
use crate::transport::{Refusal, SnapshotStream, Transport};
use crate::types::{Index, Message, RaftId, SnapshotMeta};

/// Transfers that leave this node at a time; more wait.
const MAX_SENDING: usize = 2;
/// Transfers that this node takes at a time; more are refused.
const MAX_RECEIVING: usize = 2;
/// Bytes of one chunk on the wire.
const CHUNK: usize = 256 << 10;
/// The longest pause of a transfer: a peer's last step is to sync the whole file.
const STALL: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Snapshotter {
    snapshots: SnapshotDir,
    inbox: Arc<Inbox>,
    transport: Arc<dyn Transport>,
    logger: Logger,
    slots: Arc<Semaphore>,
    in_use: Arc<Mutex<InUse>>,
    tasks: Mutex<JoinSet<()>>,
}

#[derive(Debug, Default)]
struct InUse {
    /// How many transfers need the file at an index.
    sending: BTreeMap<Index, usize>,
    /// Peers that are sending to us.
    receiving: BTreeSet<RaftId>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Snapshotter {
    pub(crate) fn new(
        snapshots: SnapshotDir,
        inbox: Arc<Inbox>,
        transport: Arc<dyn Transport>,
        logger: Logger,
    ) -> Self {
        Self {
            snapshots,
            inbox,
            transport,
            logger,
            slots: Arc::new(Semaphore::new(MAX_SENDING)),
            in_use: Arc::default(),
            tasks: Mutex::new(JoinSet::new()),
        }
    }

    /// Streams a `MsgSnapshot` and the file it names to a peer, then posts `SnapshotSent`. Never
    /// blocks; must be called in the node's runtime.
    pub(crate) fn send(&self, to: RaftId, message: Message) {
        let index = message.snapshot.as_ref().map(|meta| meta.position.index);
        let sending = Sending::new(to, index, self.inbox.clone(), self.in_use.clone());
        let Some(meta) = message.snapshot.clone() else {
            warn!(self.logger, "a snapshot message without a snapshot is not sent"; "to" => to);
            return;
        };
        let transfer = Transfer {
            snapshots: self.snapshots.clone(),
            transport: self.transport.clone(),
            slots: self.slots.clone(),
            logger: self.logger.clone(),
        };
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(transfer.run(sending, *meta, message));
    }

    /// Takes a snapshot from a peer: temporary file, checks, rename; then the node gets the
    /// message. Its disk work is over when it returns, but not when its future is dropped: what
    /// was begun then removes itself.
    ///
    /// # Errors
    /// `Busy` when it can be tried again: another one is coming from this peer, the disk failed or
    /// is full, the node is behind. `Malformed` when the bytes are not what was announced.
    pub(crate) async fn receive(
        &self,
        from: RaftId,
        message: Message,
        body: SnapshotStream,
    ) -> Result<(), Refusal> {
        let Some(meta) = message.snapshot.as_deref().cloned() else {
            return Err(Refusal::Malformed("a snapshot message without a snapshot".to_owned()));
        };
        let _receiving = Receiving::claim(&self.in_use, from)?;
        let position = meta.position;
        match store_body(&self.snapshots, meta, body).await {
            Ok(meta) => {
                info!(self.logger, "snapshot received"; "from" => from,
                    "index" => position.index, "term" => position.term, "bytes" => meta.size);
            }
            Err(refusal) => {
                warn!(self.logger, "snapshot not taken"; "from" => from,
                    "index" => position.index, "error" => %refusal);
                return Err(refusal);
            }
        }
        if self.inbox.deliver(from, vec![message]) {
            Ok(())
        } else {
            Err(Refusal::Busy("too many messages are waiting".to_owned()))
        }
    }

    /// Removes the snapshots below `keep`, but for those that are being sent; they go next time.
    pub(crate) fn retain(&self, keep: Index) {
        let snapshots = self.snapshots.clone();
        let in_use = self.in_use.clone();
        let logger = self.logger.clone();
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn_blocking(move || {
            let sending = |index| lock(&in_use).sending.contains_key(&index);
            if let Err(error) = snapshots.retain(keep, sending) {
                warn!(logger, "old snapshots could not be removed; they will be tried again";
                    "below" => keep, "error" => %error);
            }
        });
    }

    /// Ends every transfer and waits until none touches the disk any more.
    pub(crate) async fn close(&self) {
        let mut tasks = std::mem::take(&mut *lock(&self.tasks));
        tasks.shutdown().await;
    }
}

/// Says how a transfer ended, exactly once, and lets its file go.
#[derive(Debug)]
struct Sending {
    to: RaftId,
    index: Option<Index>,
    how: Transferred,
    inbox: Arc<Inbox>,
    in_use: Arc<Mutex<InUse>>,
}

impl Sending {
    fn new(to: RaftId, index: Option<Index>, inbox: Arc<Inbox>, in_use: Arc<Mutex<InUse>>) -> Self {
        if let Some(index) = index {
            *lock(&in_use).sending.entry(index).or_default() += 1;
        }
        Self { to, index, how: Transferred::Broken, inbox, in_use }
    }
}

impl Sending {
    /// The same body, and the node hears how much of it has left: a hundred times at most.
    fn watch(&self, body: SnapshotStream, size: u64) -> SnapshotStream {
        let (to, inbox) = (self.to, self.inbox.clone());
        let (mut left, mut told) = (0, 0);
        let watched = body.inspect(move |chunk| {
            left += chunk.as_ref().map_or(0, |c| c.len() as u64);
            let percent = u8::try_from(left.saturating_mul(100) / size.max(1)).unwrap_or(100);
            if percent > told {
                told = percent;
                inbox.complete(Event::SnapshotProgress { to, percent });
            }
        });
        watched.boxed()
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if let Some(index) = self.index {
            let mut in_use = lock(&self.in_use);
            if let Some(count) = in_use.sending.get_mut(&index) {
                *count -= 1;
                if *count == 0 {
                    in_use.sending.remove(&index);
                }
            }
        }
        self.inbox.complete(Event::SnapshotSent { to: self.to, how: self.how });
    }
}

/// What a transfer to a peer needs.
struct Transfer {
    snapshots: SnapshotDir,
    transport: Arc<dyn Transport>,
    slots: Arc<Semaphore>,
    logger: Logger,
}

impl Transfer {
    async fn run(self, mut sending: Sending, meta: SnapshotMeta, message: Message) {
        let to = sending.to;
        // NB: a permit that cannot be had means that the semaphore was closed, which nobody does.
        let Ok(_slot) = self.slots.acquire().await else { return };
        let reading = Arc::new(Reading::default());
        match self.transfer(&meta, message, &reading, &sending).await {
            Ok(bytes) => {
                info!(self.logger, "snapshot sent"; "to" => to, "index" => meta.position.index,
                    "term" => meta.position.term, "bytes" => bytes);
                sending.how = Transferred::Arrived;
            }
            Err(reason) => {
                warn!(self.logger, "snapshot not sent; raft will ask again"; "to" => to,
                    "index" => meta.position.index, "error" => reason);
                if reading.failed.load(Ordering::Relaxed) {
                    sending.how = Transferred::Unreadable(meta.position);
                }
            }
        }
    }

    async fn transfer(
        &self,
        meta: &SnapshotMeta,
        mut message: Message,
        reading: &Arc<Reading>,
        sending: &Sending,
    ) -> Result<u64, String> {
        let snapshots = self.snapshots.clone();
        let position = meta.position;
        let opened = blocking(move || snapshots.open_snapshot(position)).await?;
        let reader = opened.map_err(|e| reading.fail(&e))?;
        // What is in the file is what is sent: one of the same position may have replaced that
        // which the message was made for, and its Store may have written other bytes.
        let meta = reader.meta().clone();
        let size = meta.size;
        message.snapshot = Some(Box::new(meta));
        let body = sending.watch(body_of(reader, reading.clone()), size);
        tokio::select! {
            biased;
            sent = self.transport.send_snapshot(message, body) => {
                sent.map(|()| size).map_err(|e| e.to_string())
            }
            () = stalled(&reading.progress) => Err(format!("no progress within {STALL:?}")),
        }
    }
}

/// How far a file was read.
#[derive(Debug, Default)]
struct Reading {
    /// Chunks that were asked for.
    progress: AtomicU64,
    /// The file itself could not be opened or read, or is damaged. A disk that fails only now and
    /// then counts, too: a new snapshot too many does no harm, a peer that waits for ever does.
    failed: AtomicBool,
}

impl Reading {
    fn fail(&self, error: &StorageError) -> String {
        self.failed.store(true, Ordering::Relaxed);
        error.to_string()
    }
}

/// Ends when no chunk was asked for within [`STALL`].
async fn stalled(progress: &AtomicU64) {
    let mut seen = progress.load(Ordering::Relaxed);
    loop {
        tokio::time::sleep(STALL).await;
        let now = progress.load(Ordering::Relaxed);
        if now == seen {
            return;
        }
        seen = now;
    }
}

/// The body of a file as a stream, read on demand. It ends with an error when the file turns out
/// to be damaged.
fn body_of(reader: SnapshotReader, reading: Arc<Reading>) -> SnapshotStream {
    let next = |(reader, reading): (Option<SnapshotReader>, Arc<Reading>)| async move {
        let mut reader = reader?;
        reading.progress.fetch_add(1, Ordering::Relaxed);
        let read = blocking(move || {
            let chunk = reader.next_chunk(CHUNK);
            (reader, chunk)
        });
        match read.await {
            Ok((reader, Ok(Some(chunk)))) => Some((Ok(chunk), (Some(reader), reading))),
            Ok((_, Ok(None))) => None,
            Ok((_, Err(e))) => Some((Err(io::Error::other(reading.fail(&e))), (None, reading))),
            Err(e) => Some((Err(io::Error::other(e)), (None, reading))),
        }
    };
    stream::unfold((Some(reader), reading), next).boxed()
}

/// A peer's place among those that send to us, given up on drop.
struct Receiving<'a> {
    in_use: &'a Mutex<InUse>,
    from: RaftId,
}

impl<'a> Receiving<'a> {
    fn claim(in_use: &'a Mutex<InUse>, from: RaftId) -> Result<Self, Refusal> {
        let mut state = lock(in_use);
        if state.receiving.contains(&from) {
            let reason = "a snapshot of this sender is being received".to_owned();
            return Err(Refusal::Busy(reason));
        }
        if state.receiving.len() >= MAX_RECEIVING {
            let reason = format!("{MAX_RECEIVING} snapshots are being received");
            return Err(Refusal::Busy(reason));
        }
        state.receiving.insert(from);
        Ok(Self { in_use, from })
    }
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        lock(self.in_use).receiving.remove(&self.from);
    }
}

async fn store_body(
    snapshots: &SnapshotDir,
    meta: SnapshotMeta,
    body: SnapshotStream,
) -> Result<SnapshotMeta, Refusal> {
    let snapshots = snapshots.clone();
    let mut writer = on_disk(move || snapshots.receive(meta)).await?;
    let mut body = pin!(body);
    loop {
        let chunk = match tokio::time::timeout(STALL, body.next()).await {
            Ok(Some(Ok(chunk))) => chunk,
            Ok(Some(Err(e))) => return Err(Refusal::Busy(format!("the transfer broke off: {e}"))),
            Ok(None) => break,
            Err(_) => return Err(Refusal::Busy(format!("no progress within {STALL:?}"))),
        };
        writer = on_disk(move || write_chunk(writer, &chunk)).await?;
    }
    on_disk(move || writer.finish()).await
}

fn write_chunk(mut writer: SnapshotWriter, chunk: &Bytes) -> Result<SnapshotWriter, StorageError> {
    writer.write(chunk)?;
    Ok(writer)
}

/// Does something to the disk for a sender, who gets to know why it failed.
async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, Refusal> {
    match blocking(work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(e @ (StorageError::Corrupt { .. } | StorageError::Contract(_)))) => {
            Err(Refusal::Malformed(e.to_string()))
        }
        Ok(Err(e)) => Err(Refusal::Busy(e.to_string())),
        Err(reason) => Err(Refusal::Busy(reason)),
    }
}

/// Runs blocking work on a thread for it; a panic becomes words.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    spawn_blocking(work).await.map_err(|e| format!("the disk thread failed: {e}"))
}

#[cfg(test)]
mod tests;
