//! The log thread: owns the log, takes everything that is queued, writes and syncs it as one, or
//! in groups when it is much.
//!
//! A write that nothing else has to wait for is done by the event loop itself, where that is
//! quick: on a follower, two of the hand-overs between threads that make up the latency of a
//! lone client. Invariants:
//! - batches reach the log in the order in which they were queued, and `Persisted` names the last
//!   one of a synced group, through the inbox, whoever wrote it;
//! - a compaction runs after every batch queued before it (R10: the snapshot's record first), and
//!   on the log thread;
//! - after an error nothing is written any more, ever: the node stops (R5);
//! - the queue is bounded: proposals by their permits, appends of a leader by `max_apply_lag` (R19).

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::inbox::Inbox;
use super::shared::Shared;
use crate::error::{Error, StorageError};
use crate::log::{LogBatch, LogStorage, MUCH_TO_WRITE};
use crate::node::event::Event;
use crate::store::panic_text;
use crate::types::Position;

/// Work for the log.
#[derive(Debug)]
enum Job {
    Append { number: u64, batch: LogBatch },
    Compact(Position),
}

/// How the log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Close {
    /// Writes what is queued, then seals.
    Seal,
    /// Drops what is queued and does not seal, as after a crash.
    Abandon,
}

/// A write that took longer than this is not for the event loop.
const SLOW: Duration = Duration::from_millis(10);
/// So long after a slow write the log thread does them all; longer each time, up to the second.
const SLOW_FOR: Duration = Duration::from_secs(1);
const SLOW_AT_MOST: Duration = Duration::from_secs(60);
/// A write that is quicker than this waits for no disk.
const INSTANT: Duration = Duration::from_micros(20);
/// Bytes of entries that are not for the event loop: there is load, and it has more to do.
const MUCH: usize = 64 << 10;

#[derive(Debug)]
struct State {
    jobs: Vec<Job>,
    close: Option<Close>,
    /// Jobs are there, and the thread may be waiting.
    asleep: bool,
    /// Somebody writes what was taken; nothing else may be written before that is done.
    writing: bool,
    /// Since when the event loop does.
    here_since: Option<Instant>,
    /// What the jobs cost.
    bytes: usize,
    /// How long the last write took.
    took: Duration,
    slow_until: Option<Instant>,
    slow_for: Duration,
    /// Emptied, for the next jobs.
    spare: Vec<Job>,
}

impl State {
    fn take(&mut self) -> Vec<Job> {
        (self.asleep, self.bytes) = (false, 0);
        self.writing = !self.jobs.is_empty();
        mem::replace(&mut self.jobs, mem::take(&mut self.spare))
    }

    /// Whether the event loop may write what is queued: `idle` when nothing waits for it.
    fn suits_the_loop(&self, idle: bool) -> bool {
        if self.jobs.is_empty() || self.writing || self.close.is_some() || self.bytes >= MUCH {
            return false;
        }
        let slow = || self.slow_until.is_some_and(|until| until > Instant::now());
        self.took < INSTANT || (idle && !slow())
    }

    fn written(&mut self, took: Option<Duration>, emptied: Vec<Job>) {
        (self.writing, self.here_since, self.spare) = (false, None, emptied);
        let Some(took) = took else { return };
        self.took = took;
        if took > SLOW {
            let now = Instant::now();
            let again = self.slow_until.is_some_and(|until| now < until + 10 * self.slow_for);
            self.slow_for = if again { SLOW_AT_MOST.min(2 * self.slow_for) } else { SLOW_FOR };
            self.slow_until = Some(now + self.slow_for);
        }
    }
}

/// The way to the log; pushing never blocks.
#[derive(Debug)]
pub(crate) struct LogQueue {
    state: Mutex<State>,
    wake: Condvar,
    /// See [`LogStorage::is_local`].
    local: bool,
    /// None once the log thread has ended.
    writer: Mutex<Option<Writer>>,
}

impl LogQueue {
    pub(crate) fn new(log: Box<dyn LogStorage>, inbox: Arc<Inbox>) -> Self {
        let state = State {
            jobs: Vec::new(),
            close: None,
            asleep: false,
            writing: false,
            here_since: None,
            bytes: 0,
            took: SLOW,
            slow_until: None,
            slow_for: SLOW_FOR,
            spare: Vec::new(),
        };
        let local = log.is_local();
        let writer = Writer { log, inbox, batches: Vec::new() };
        Self {
            state: Mutex::new(state),
            wake: Condvar::new(),
            local,
            writer: Mutex::new(Some(writer)),
        }
    }

    /// Queues a batch; `Persisted` with its number, or a later one, follows, once
    /// [`LogQueue::wake`] was called.
    pub(crate) fn append(&self, number: u64, batch: LogBatch) {
        let bytes = cost(&batch);
        self.push(Job::Append { number, batch }, bytes);
    }

    /// Queues a compaction, which waits for [`LogQueue::wake`], too.
    pub(crate) fn compact(&self, through: Position) {
        self.push(Job::Compact(through), MUCH);
    }

    /// Whether something was queued that the log thread has not been woken for.
    pub(crate) fn is_asleep(&self) -> bool {
        self.lock().asleep
    }

    /// Wakes the log thread for what was queued.
    pub(crate) fn wake(&self) {
        if mem::take(&mut self.lock().asleep) {
            self.wake.notify_one();
        }
    }

    /// Writes what is queued on the caller's thread, if that is quick, and if the caller has
    /// nothing else to do (`idle`) or need not wait at all; whether it did.
    ///
    /// # Errors
    /// Those of the log, which is not written any more; `Internal` when it panicked.
    pub(crate) fn write_here(&self, idle: bool) -> Result<bool, Error> {
        let jobs = {
            let mut state = self.lock();
            if !self.local || !state.suits_the_loop(idle) {
                return Ok(false);
            }
            state.here_since = Some(Instant::now());
            state.take()
        };
        self.write(jobs)?;
        Ok(true)
    }

    /// Whether the event loop has been waiting for a write of its own for longer than this. It
    /// cannot say so itself.
    pub(crate) fn holds_up(&self, limit: Duration) -> bool {
        self.lock().here_since.is_some_and(|since| since.elapsed() > limit)
    }

    fn write(&self, mut jobs: Vec<Job>) -> Result<(), Error> {
        let written = {
            let mut writer = self.writer();
            let Some(writer) = writer.as_mut() else { return Ok(()) };
            contained(|| writer.write(&mut jobs))
        };
        match written {
            Ok(took) => self.lock().written(took, jobs),
            Err(e) => {
                self.close(Close::Abandon);
                return Err(e);
            }
        }
        Ok(())
    }

    /// Ends the log thread; the first order counts.
    pub(crate) fn close(&self, how: Close) {
        self.lock().close.get_or_insert(how);
        self.wake.notify_one();
    }

    fn push(&self, job: Job, bytes: usize) {
        let mut state = self.lock();
        if state.close.is_some() {
            return;
        }
        state.asleep |= state.jobs.is_empty();
        state.bytes += bytes;
        state.jobs.push(job);
    }

    /// Waits for work; the order to close comes with the last of it.
    fn wait(&self) -> (Vec<Job>, Option<Close>) {
        let mut state = self.lock();
        while state.jobs.is_empty() && state.close.is_none() {
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        (state.take(), state.close)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self) -> MutexGuard<'_, Option<Writer>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a batch counts for; a reset removes files.
fn cost(batch: &LogBatch) -> usize {
    let entries: usize = batch.entries.iter().map(|e| e.data.len()).sum();
    entries + if batch.reset.is_some() { MUCH } else { 0 }
}

#[derive(Debug)]
struct Writer {
    log: Box<dyn LogStorage>,
    inbox: Arc<Inbox>,
    batches: Vec<LogBatch>,
}

impl Writer {
    /// How long the disk took, if it had to do anything.
    fn write(&mut self, jobs: &mut Vec<Job>) -> Result<Option<Duration>, StorageError> {
        let start = Instant::now();
        let mut wrote = false;
        let (mut last, mut bytes) = (None, 0);
        for job in jobs.drain(..) {
            match job {
                Job::Append { number, batch } => {
                    last = Some(number);
                    bytes += cost(&batch);
                    if !batch.is_empty() {
                        self.batches.push(batch);
                    }
                    if bytes as u64 >= MUCH_TO_WRITE {
                        wrote |= self.flush(last.take())?;
                        bytes = 0;
                    }
                }
                Job::Compact(through) => {
                    wrote |= self.flush(last.take())?;
                    self.log.compact(through)?;
                }
            }
        }
        wrote |= self.flush(last)?;
        Ok(wrote.then(|| start.elapsed()))
    }

    /// Whether there was anything to write.
    fn flush(&mut self, last: Option<u64>) -> Result<bool, StorageError> {
        let Some(number) = last else { return Ok(false) };
        let wrote = !self.batches.is_empty();
        if wrote {
            self.log.append(&self.batches)?;
            self.batches.clear();
        }
        self.inbox.complete(Event::Persisted { number });
        Ok(wrote)
    }
}

/// Starts the log thread.
///
/// # Errors
/// When the operating system gives no thread.
pub(crate) fn spawn(queue: Arc<LogQueue>, shared: Arc<Shared>) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("raftline-log".to_owned()).spawn(move || {
        let ran = run(&queue);
        // The directory's lock goes with the log.
        let gone = contained(|| {
            drop(queue.writer().take());
            Ok(())
        });
        if let Err(error) = ran.and(gone) {
            shared.fatal.report(error);
        }
    })
}

fn run(queue: &LogQueue) -> Result<(), Error> {
    loop {
        let (jobs, close) = queue.wait();
        if close == Some(Close::Abandon) {
            return Ok(());
        }
        queue.write(jobs)?;
        if close == Some(Close::Seal) {
            let mut writer = queue.writer();
            return contained(|| writer.as_mut().map_or(Ok(()), |writer| writer.log.close()));
        }
    }
}

fn contained<T>(call: impl FnOnce() -> Result<T, StorageError>) -> Result<T, Error> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(done) => Ok(done?),
        Err(panic) => Err(Error::Internal { part: "log writer", reason: panic_text(&*panic) }),
    }
}

#[cfg(test)]
mod tests;
