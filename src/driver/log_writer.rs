//! The log thread: owns the log, takes everything that is queued, writes and syncs it as one.
//!
//! Invariants:
//! - batches reach the log in the order in which they were queued, and `Persisted` names the last
//!   one of a synced group;
//! - a compaction runs after every batch queued before it (R10: the snapshot's record first);
//! - after an error nothing is written any more, ever: the node stops (R5);
//! - the queue holds no more than what is in flight: proposals are bounded by their permits,
//!   appends of a leader by `max_inflight_msgs` times `max_size_per_msg`.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::shared::Shared;
use crate::error::{Error, StorageError};
use crate::log::{LogBatch, LogStorage};
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

#[derive(Debug, Default)]
struct State {
    jobs: Vec<Job>,
    close: Option<Close>,
    /// Jobs are there, and the thread may be waiting.
    asleep: bool,
}

/// The way to the log thread; pushing never blocks.
#[derive(Debug, Default)]
pub(crate) struct LogQueue {
    state: Mutex<State>,
    wake: Condvar,
}

impl LogQueue {
    /// Queues a batch; `Persisted` with its number, or a later one, follows, once
    /// [`LogQueue::wake`] was called.
    pub(crate) fn append(&self, number: u64, batch: LogBatch) {
        self.push(Job::Append { number, batch });
    }

    /// Queues a compaction, which waits for [`LogQueue::wake`], too.
    pub(crate) fn compact(&self, through: Position) {
        self.push(Job::Compact(through));
    }

    /// Whether something was queued that the log thread has not been woken for.
    pub(crate) fn is_asleep(&self) -> bool {
        self.lock().asleep
    }

    /// Wakes the log thread for what was queued; whether there was anything.
    pub(crate) fn wake(&self) -> bool {
        let asleep = mem::take(&mut self.lock().asleep);
        if asleep {
            self.wake.notify_one();
        }
        asleep
    }

    /// Ends the log thread; the first order counts.
    pub(crate) fn close(&self, how: Close) {
        self.lock().close.get_or_insert(how);
        self.wake.notify_one();
    }

    fn push(&self, job: Job) {
        let mut state = self.lock();
        if state.close.is_some() {
            return;
        }
        state.asleep |= state.jobs.is_empty();
        state.jobs.push(job);
    }

    /// Waits for work; the order to close comes with the last of it.
    fn take(&self, into: &mut Vec<Job>) -> Option<Close> {
        let mut state = self.lock();
        while state.jobs.is_empty() && state.close.is_none() {
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        mem::swap(&mut state.jobs, into);
        state.close
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the log thread.
///
/// # Errors
/// When the operating system gives no thread.
pub(crate) fn spawn(
    log: Box<dyn LogStorage>,
    queue: Arc<LogQueue>,
    shared: Arc<Shared>,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("raftline-log".to_owned()).spawn(move || {
        let ran = catch_unwind(AssertUnwindSafe(|| run(log, &queue, &shared)));
        let error = match ran {
            Ok(Ok(())) => return,
            Ok(Err(e)) => Error::Storage(e),
            Err(panic) => Error::Internal { part: "log writer", reason: panic_text(&*panic) },
        };
        queue.close(Close::Abandon);
        shared.fatal.report(error);
    })
}

fn run(
    mut log: Box<dyn LogStorage>,
    queue: &LogQueue,
    shared: &Shared,
) -> Result<(), StorageError> {
    let mut jobs = Vec::new();
    let mut batches = Vec::new();
    loop {
        let close = queue.take(&mut jobs);
        if close == Some(Close::Abandon) {
            return Ok(());
        }
        let mut last = None;
        for job in jobs.drain(..) {
            match job {
                Job::Append { number, batch } => {
                    last = Some(number);
                    if !batch.is_empty() {
                        batches.push(batch);
                    }
                }
                Job::Compact(through) => {
                    flush(&mut *log, &mut batches, last.take(), shared)?;
                    log.compact(through)?;
                }
            }
        }
        flush(&mut *log, &mut batches, last, shared)?;
        if close == Some(Close::Seal) {
            return log.close();
        }
    }
}

fn flush(
    log: &mut dyn LogStorage,
    batches: &mut Vec<LogBatch>,
    last: Option<u64>,
    shared: &Shared,
) -> Result<(), StorageError> {
    let Some(number) = last else { return Ok(()) };
    if !batches.is_empty() {
        log.append(batches)?;
        batches.clear();
    }
    shared.inbox.complete(Event::Persisted { number });
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::driver::inbox::Classes;
    use crate::log::memory::MemoryLog;
    use crate::log::{Recovered, SnapshotRecord};
    use crate::types::{Entry, Identity};

    /// Tells what was done, in order.
    #[derive(Debug)]
    struct Told {
        log: MemoryLog,
        calls: Arc<Mutex<Vec<String>>>,
    }

    impl Told {
        fn tell(&self, call: String) {
            self.calls.lock().unwrap().push(call);
        }
    }

    impl LogStorage for Told {
        fn load(&mut self) -> Result<Recovered, StorageError> {
            self.log.load()
        }

        fn identify(&mut self, identity: &Identity) -> Result<(), StorageError> {
            self.log.identify(identity)
        }

        fn append(&mut self, batches: &[LogBatch]) -> Result<(), StorageError> {
            self.tell(format!("append {}", batches.len()));
            self.log.append(batches)
        }

        fn compact(&mut self, through: Position) -> Result<(), StorageError> {
            self.tell(format!("compact {}", through.index));
            self.log.compact(through)
        }

        fn close(&mut self) -> Result<(), StorageError> {
            self.tell("close".to_owned());
            self.log.close()
        }
    }

    fn entry(index: u64) -> LogBatch {
        let entry = Entry { term: 1, index, ..Entry::default() };
        let position = Position { index, term: 1 };
        LogBatch {
            entries: vec![entry],
            snapshot: Some(SnapshotRecord { position, installing: false }),
            ..LogBatch::default()
        }
    }

    fn run_to_the_end(queue: LogQueue) -> (Vec<String>, Vec<Event>) {
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let shared = Arc::new(Shared::new(Config::default(), logger, |_| Ok(())));
        let calls = Arc::default();
        let log = Told { log: MemoryLog::new(), calls: Arc::clone(&calls) };
        spawn(Box::new(log), Arc::new(queue), shared.clone()).unwrap().join().unwrap();
        assert!(!shared.fatal.is_reported());
        let mut classes = Classes::default();
        shared.inbox.take(&mut classes);
        let calls = calls.lock().unwrap().clone();
        (calls, classes.completions)
    }

    #[test]
    fn what_is_queued_is_one_write_and_a_compaction_keeps_its_place() {
        let queue = LogQueue::default();
        queue.append(1, entry(1));
        queue.append(2, entry(2));
        queue.append(3, LogBatch::default());
        queue.compact(Position { index: 1, term: 1 });
        queue.append(4, entry(3));
        queue.close(Close::Seal);
        queue.append(5, entry(4));
        let (calls, told) = run_to_the_end(queue);
        assert_eq!(calls, ["append 2", "compact 1", "append 1", "close"]);
        assert!(matches!(
            told[..],
            [Event::Persisted { number: 3 }, Event::Persisted { number: 4 }]
        ));
    }

    #[test]
    fn an_abandoned_log_is_neither_written_nor_sealed() {
        let queue = LogQueue::default();
        queue.append(1, entry(1));
        queue.close(Close::Abandon);
        queue.close(Close::Seal);
        let (calls, told) = run_to_the_end(queue);
        assert!(calls.is_empty() && told.is_empty(), "{calls:?} {told:?}");
    }
}
