//! The apply task: owns the Store, and does what the node emits for it, strictly in order.
//!
//! It runs in the user's runtime, so that user code can neither stall heartbeats nor take the node
//! down. It answers the callers itself; the event loop only hears how far it is.
//!
//! Invariants:
//! - jobs are done in the order they were pushed; an `apply` is never cancelled, timed out or
//!   skipped, and none is given to the Store twice;
//! - a batch ends with the last proposal of a log entry; an entry counts as applied, and its
//!   proposers are answered, only when the Store has answered for all of it;
//! - queries run with each other, never beside an apply: an apply waits for those before it, those
//!   behind it wait for it. No query holds an apply up for longer than `Config::request_timeout`;
//! - a snapshot is captured between two entries, so that position, membership and data are one
//!   cut; its bytes are written while applies go on;
//! - when the task ends other than by [`Applier::finish`], the node ends too: the fatal sink is
//!   told, also when the user's runtime is dropped under it.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt;
use slog::{Logger, info, warn};
use tokio::runtime::Handle;
use tokio::task::{JoinHandle, JoinSet};

use super::batch::{Batch, Panic, answer, judge, panicked, reason_of};
use super::capture::Pending;
use super::fatal::FatalSink;
use super::inbox::Inbox;
use super::patience::{Limiter, Patience};
use super::queue::SwapQueue;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::node::effect::Committed;
use crate::node::event::{Applied, Event, Read};
use crate::reply::Reply;
use crate::snapshot::dir::SnapshotDir;
use crate::store::Store;
use crate::types::{Index, Membership, Position, SnapshotMeta};

/// Proposals and queries after which the task lets others of its runtime run.
const WORK_PER_TURN: usize = 4096;

const RESTORE_REMEDY: &str =
    "Mend the Store and restart: the snapshot is kept and will be restored again";

/// What the apply task does; the effects of the same names.
#[derive(Debug)]
pub(crate) enum Job {
    Apply(Vec<Committed>),
    Query(Vec<Read>),
    Capture { position: Position, membership: Membership },
    Install { meta: SnapshotMeta },
}

/// What the apply task works with.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) snapshots: SnapshotDir,
    pub(crate) fatal: FatalSink,
    pub(crate) logger: Logger,
}

/// The handle of the apply task; cheap to clone, knows nothing of the Store's type.
#[derive(Clone, Debug)]
pub(crate) struct Applier {
    queue: Arc<SwapQueue<Job>>,
    lag: Arc<Lag>,
}

/// Work that was pushed and is not applied yet.
#[derive(Debug, Default)]
struct Lag {
    entries: AtomicU64,
    bytes: AtomicU64,
}

impl Applier {
    /// Starts the task in this runtime, with a Store that holds everything up to `applied`.
    ///
    /// The task gives the Store back after [`Applier::finish`], and None after a failure, which
    /// the fatal sink has been told.
    pub(crate) fn spawn<S: Store>(
        runtime: &Handle,
        store: S,
        applied: Index,
        config: &Config,
        parts: Parts,
    ) -> (Self, JoinHandle<Option<S>>) {
        let applier = Self { queue: Arc::default(), lag: Arc::default() };
        // Made here, so that a runtime that never polls the task is noticed as well.
        let ending =
            Ending { queue: applier.queue.clone(), fatal: parts.fatal.clone(), finished: false };
        let task = Task {
            store: Arc::new(store),
            applied,
            skip: config.skip_apply.iter().copied().collect(),
            request_timeout: config.request_timeout,
            queries: JoinSet::new(),
            writes: JoinSet::new(),
            patience: Patience::new(config.slow_apply, parts.logger.clone()),
            cancelled: Limiter::default(),
            work: 0,
            lag: applier.lag.clone(),
            parts,
        };
        let handle = runtime.spawn(supervise(task, ending));
        (applier, handle)
    }

    /// Queues a job. After the task has ended it is dropped, which answers its callers.
    pub(crate) fn push(&self, job: Job) {
        if let Job::Apply(entries) = &job {
            let bytes: usize = entries.iter().map(|e| e.data.len()).sum();
            self.lag.entries.fetch_add(entries.len() as u64, Ordering::Relaxed);
            self.lag.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        drop(self.queue.push(job));
    }

    #[cfg(test)]
    /// Entries and bytes of proposals that the Store has not applied yet.
    pub(crate) fn lag(&self) -> (u64, u64) {
        (self.lag.entries.load(Ordering::Relaxed), self.lag.bytes.load(Ordering::Relaxed))
    }

    /// The stop mark: what was pushed before is done, then the task ends; what comes later is
    /// dropped.
    pub(crate) fn finish(&self) {
        self.queue.close();
    }
}

/// Notices every end of the task: when it is dropped unfinished, user's runtime or our own code
/// has ended it.
#[derive(Debug)]
struct Ending {
    queue: Arc<SwapQueue<Job>>,
    fatal: FatalSink,
    finished: bool,
}

impl Drop for Ending {
    fn drop(&mut self) {
        if !self.finished {
            let reason = if std::thread::panicking() {
                "it panicked"
            } else {
                "the runtime that the node was started in was shut down under it; shut the node \
                 down first"
            };
            self.fatal.report(Error::Internal { part: "applier", reason: reason.to_owned() });
        }
        drop(self.queue.close_and_clear());
    }
}

async fn supervise<S: Store>(mut task: Task<S>, mut ending: Ending) -> Option<S> {
    let result = task.run(&ending.queue).await;
    if let Err(error) = result {
        ending.fatal.report(error);
        ending.finished = true;
        // A file that is being written must not outlive the lock of its directory.
        while task.writes.join_next().await.is_some() {}
        return None;
    }
    match task.finish().await {
        Ok(store) => {
            ending.finished = true;
            Some(store)
        }
        Err(error) => {
            ending.fatal.report(error);
            None
        }
    }
}

struct Task<S> {
    /// Shared with the queries that wait for something; alone whenever those are drained.
    store: Arc<S>,
    applied: Index,
    skip: BTreeSet<Index>,
    request_timeout: Duration,
    /// Queries that did not answer at once; true: cancelled at the timeout.
    queries: JoinSet<bool>,
    /// Snapshots on their way to the disk.
    writes: JoinSet<()>,
    patience: Patience,
    cancelled: Limiter,
    /// Proposals and queries since the task last let others run.
    work: usize,
    lag: Arc<Lag>,
    parts: Parts,
}

impl<S: Store> Task<S> {
    async fn run(&mut self, queue: &SwapQueue<Job>) -> Result<()> {
        let mut jobs = Vec::new();
        let mut entries = Vec::new();
        while queue.take(&mut jobs).await {
            for job in jobs.drain(..) {
                // Neighbouring applies become one; anything else sees all of them done.
                if !matches!(job, Job::Apply(_)) {
                    self.apply(&mut entries).await?;
                }
                match job {
                    Job::Apply(mut more) => entries.append(&mut more),
                    Job::Query(reads) => self.query(reads).await,
                    Job::Capture { position, membership } => {
                        self.capture(position, membership).await;
                    }
                    Job::Install { meta } => self.install(meta).await?,
                }
            }
            self.apply(&mut entries).await?;
        }
        Ok(())
    }

    /// Waits for everything that still runs and gives the Store back.
    async fn finish(mut self) -> Result<S> {
        self.drain_queries().await;
        while self.writes.join_next().await.is_some() {}
        Arc::try_unwrap(self.store).map_err(|_| still_shared())
    }

    async fn apply(&mut self, entries: &mut Vec<Committed>) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        self.drain_queries().await;
        let mut rest = entries.as_mut_slice();
        while !rest.is_empty() {
            let done = self.apply_batch(rest).await?;
            rest = rest.get_mut(done..).unwrap_or_default();
        }
        entries.clear();
        Ok(())
    }

    /// Applies one batch off the front; the number of entries in it.
    async fn apply_batch(&mut self, entries: &mut [Committed]) -> Result<usize> {
        let batch = Batch::new(entries, &self.skip, self.applied)?;
        let Batch { proposals, counts, last, bytes } = batch;
        let answers = match proposals.first() {
            None => Ok(Vec::new()),
            Some(first) => {
                let store = Arc::get_mut(&mut self.store).ok_or_else(still_shared)?;
                let call = async { store.apply_batch(&proposals).await };
                let call = AssertUnwindSafe(call).catch_unwind();
                self.patience.watch("apply", first.index, proposals.len(), call).await
            }
        };
        let (answers, failure) = judge(&proposals, answers);
        self.work += proposals.len();
        drop(proposals);
        let failed = failure.as_ref().map(|(index, _)| *index);
        answer(entries, &counts, answers, &self.skip, failed);
        if let Some((_, error)) = failure {
            return Err(error);
        }
        self.applied = last;
        self.lag.entries.fetch_sub(counts.len() as u64, Ordering::Relaxed);
        self.lag.bytes.fetch_sub(bytes as u64, Ordering::Relaxed);
        self.parts.inbox.applied(last);
        self.breathe().await;
        Ok(counts.len())
    }

    async fn query(&mut self, reads: Vec<Read>) {
        while let Some(ended) = self.queries.try_join_next() {
            self.note_query(ended.unwrap_or(false));
        }
        for read in reads {
            if !read.reply.is_closed() {
                self.start_query(read);
            }
            self.work += 1;
            self.breathe().await;
        }
    }

    /// Answers a query that needs not wait at once, without a task of its own.
    fn start_query(&mut self, Read { query, reply, .. }: Read) {
        let index = self.applied;
        let Some(query) = query else {
            reply.send(Ok(Applied { index, data: Vec::new() }));
            return;
        };
        let store = self.store.clone();
        let call = AssertUnwindSafe(async move { store.query(&query).await }).catch_unwind();
        let mut call = Box::pin(call);
        // Whoever polls it next registers its own waker, so this one need not wake anybody.
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        if let Poll::Ready(answer) = call.as_mut().poll(&mut context) {
            send_query_answer(reply, index, answer);
            return;
        }
        let limit = self.request_timeout;
        self.queries.spawn(async move {
            match tokio::time::timeout(limit, call).await {
                Ok(answer) => {
                    send_query_answer(reply, index, answer);
                    false
                }
                Err(_) => {
                    reply.send(Err(Error::Timeout));
                    true
                }
            }
        });
    }

    async fn drain_queries(&mut self) {
        while let Some(ended) = self.queries.join_next().await {
            self.note_query(ended.unwrap_or(false));
        }
    }

    fn note_query(&mut self, cancelled: bool) {
        if cancelled && let Some(unsaid) = self.cancelled.admit() {
            warn!(self.parts.logger, "query cancelled: it took longer than request_timeout";
                "limit" => ?self.request_timeout, "applied" => self.applied, "unsaid" => unsaid);
        }
    }

    async fn capture(&mut self, position: Position, membership: Membership) {
        self.applied = self.applied.max(position.index);
        while self.writes.try_join_next().is_some() {}
        let index = position.index;
        let call = async { self.store.snapshot().await };
        let call = AssertUnwindSafe(call).catch_unwind();
        let data = match self.patience.watch("snapshot", index, 0, call).await {
            Ok(Ok(data)) => data,
            Ok(Err(error)) => return self.capture_failed(index, &reason_of(error)),
            Err(panic) => return self.capture_failed(index, &panicked("snapshot", &*panic)),
        };
        let parts = &self.parts;
        let pending =
            Pending::new(&parts.snapshots, position, membership, &parts.inbox, &parts.logger);
        self.writes.spawn_blocking(move || pending.write(&data));
    }

    fn capture_failed(&self, index: Index, reason: &str) {
        warn!(self.parts.logger, "the store gave no snapshot; it will be asked again";
            "index" => index, "error" => reason);
        self.parts.inbox.complete(Event::SnapshotFailed);
    }

    async fn install(&mut self, meta: SnapshotMeta) -> Result<()> {
        self.drain_queries().await;
        let index = meta.position.index;
        let dir = self.parts.snapshots.clone();
        let read = move || dir.open_snapshot(meta.position)?.read_all();
        let data = match tokio::task::spawn_blocking(read).await {
            Ok(data) => data?,
            Err(error) => {
                let reason = format!("reading the snapshot at index {index}: {error}");
                return Err(Error::Internal { part: "applier", reason });
            }
        };
        let store = Arc::get_mut(&mut self.store).ok_or_else(still_shared)?;
        let call = AssertUnwindSafe(async { store.restore(&data).await }).catch_unwind();
        let reason = match self.patience.watch("restore", index, 0, call).await {
            Ok(Ok(())) => {
                info!(self.parts.logger, "snapshot restored"; "index" => index,
                    "term" => meta.position.term, "bytes" => meta.size);
                self.applied = index;
                self.parts.inbox.complete(Event::Installed { index });
                return Ok(());
            }
            Ok(Err(error)) => format!("restore failed: {}", reason_of(error)),
            Err(panic) => panicked("restore", &*panic),
        };
        Err(Error::StoreFailed { index, reason, remedy: RESTORE_REMEDY })
    }

    /// Lets the other tasks of the user's runtime run when much was done in one go.
    async fn breathe(&mut self) {
        if self.work >= WORK_PER_TURN {
            self.work = 0;
            tokio::task::yield_now().await;
        }
    }
}

fn send_query_answer(reply: Reply<Applied>, index: Index, answer: Result<Result<Vec<u8>>, Panic>) {
    // A query changes nothing, so a panic in one concerns its caller only.
    let answer = answer.unwrap_or_else(|panic| Err(Error::Rejected(panicked("query", &*panic))));
    reply.send(answer.map(|data| Applied { index, data }));
}

fn still_shared() -> Error {
    let reason = "a query was still running when the store was to change".to_owned();
    Error::Internal { part: "applier", reason }
}

#[cfg(test)]
mod tests;
