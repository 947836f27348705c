#![expect(clippy::unwrap_used, reason = "tests")]

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
    fn is_local(&self) -> bool {
        true
    }

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

struct World {
    queue: Arc<LogQueue>,
    shared: Arc<Shared>,
    calls: Arc<Mutex<Vec<String>>>,
}

impl World {
    fn new() -> Self {
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let shared = Arc::new(Shared::new(Config::default(), logger, |_| Ok(())));
        let calls = Arc::default();
        let log = Told { log: MemoryLog::new(), calls: Arc::clone(&calls) };
        let queue = Arc::new(LogQueue::new(Box::new(log), shared.inbox.clone()));
        Self { queue, shared, calls }
    }

    fn run_to_the_end(self) -> (Vec<String>, Vec<Event>) {
        spawn(self.queue, self.shared.clone()).unwrap().join().unwrap();
        assert!(!self.shared.fatal.is_reported());
        let mut classes = Classes::default();
        self.shared.inbox.take(&mut classes);
        let calls = self.calls.lock().unwrap().clone();
        (calls, classes.completions)
    }
}

#[test]
fn what_is_queued_is_one_write_and_a_compaction_keeps_its_place() {
    let world = World::new();
    let queue = &world.queue;
    queue.append(1, entry(1));
    queue.append(2, entry(2));
    queue.append(3, LogBatch::default());
    queue.compact(Position { index: 1, term: 1 });
    queue.append(4, entry(3));
    queue.close(Close::Seal);
    queue.append(5, entry(4));
    let (calls, told) = world.run_to_the_end();
    assert_eq!(calls, ["append 2", "compact 1", "append 1", "close"]);
    assert!(matches!(told[..], [Event::Persisted { number: 3 }, Event::Persisted { number: 4 }]));
}

#[test]
fn what_is_much_is_written_and_told_in_groups() {
    let world = World::new();
    let queue = &world.queue;
    for number in 1..=5 {
        let mut batch = entry(number);
        batch.entries[0].data = vec![0; MUCH_TO_WRITE as usize / 2].into();
        queue.append(number, batch);
    }
    queue.append(6, LogBatch::default());
    queue.close(Close::Seal);
    let (calls, told) = world.run_to_the_end();
    assert_eq!(calls, ["append 2", "append 2", "append 1", "close"]);
    let last = |event: &Event| matches!(event, Event::Persisted { number: 6 });
    assert!(told.len() == 3 && told.last().is_some_and(last), "{told:?}");
}

fn told(world: &World) -> Vec<u64> {
    let mut classes = Classes::default();
    world.shared.inbox.take(&mut classes);
    let numbers = classes.completions.into_iter().map(|event| match event {
        Event::Persisted { number } => number,
        other => panic!("{other:?}"),
    });
    numbers.collect()
}

#[test]
fn the_loop_writes_itself_what_nothing_waits_for() {
    let world = World::new();
    let queue = &world.queue;
    assert!(!queue.write_here(true).unwrap(), "nothing is queued");
    queue.append(1, entry(1));
    assert!(!queue.write_here(false).unwrap(), "the network waits for this thread");
    assert!(queue.write_here(true).unwrap());
    assert_eq!(told(&world), [1]);
    assert!(!queue.is_asleep() && !queue.holds_up(Duration::ZERO));

    queue.lock().took = Duration::ZERO;
    queue.append(3, entry(2));
    assert!(queue.write_here(false).unwrap(), "a log that never waits for a disk");
    assert_eq!(told(&world), [3]);

    queue.append(4, entry(3));
    queue.compact(Position { index: 1, term: 1 });
    assert!(!queue.write_here(true).unwrap(), "files are to be removed");
    queue.close(Close::Seal);
    let (calls, told) = world.run_to_the_end();
    assert_eq!(calls, ["append 1", "append 1", "append 1", "compact 1", "close"]);
    assert!(matches!(told[..], [Event::Persisted { number: 4 }]));
}

/// A disk that was slow once is left to the log thread for a while; and what it has taken is
/// written before anything else.
#[test]
fn the_loop_waits_for_no_slow_disk_and_overtakes_nobody() {
    let world = World::new();
    let queue = &world.queue;
    queue.append(1, entry(1));
    let taken = queue.lock().take();
    queue.append(2, entry(2));
    assert!(!queue.write_here(true).unwrap(), "the log thread is at it");
    queue.write(taken).unwrap();
    queue.lock().written(Some(SLOW * 2), Vec::new());
    assert!(!queue.write_here(true).unwrap(), "the disk was slow a moment ago");
    for _ in 0..9 {
        queue.lock().written(Some(SLOW * 2), Vec::new());
    }
    assert_eq!(queue.lock().slow_for, SLOW_AT_MOST);
    queue.lock().slow_until = Instant::now().checked_sub(Duration::from_millis(1));
    assert!(queue.write_here(true).unwrap());
    assert_eq!(told(&world), [1, 2]);

    let mut much = entry(3);
    much.entries[0].data = vec![0; MUCH].into();
    queue.append(3, much);
    assert!(!queue.write_here(true).unwrap(), "there is load");
    queue.close(Close::Abandon);
    let (calls, told) = world.run_to_the_end();
    assert_eq!((calls.len(), told.len()), (2, 0));
}

#[test]
fn after_an_error_nothing_is_written_any_more() {
    let world = World::new();
    let queue = &world.queue;
    queue.append(1, entry(5));
    queue.write_here(true).unwrap_err();
    queue.append(2, entry(1));
    assert!(!queue.write_here(true).unwrap());
    queue.close(Close::Seal);
    let (calls, told) = world.run_to_the_end();
    assert_eq!(calls, ["append 1"]);
    assert!(told.is_empty(), "{told:?}");
}

#[test]
fn an_abandoned_log_is_neither_written_nor_sealed() {
    let world = World::new();
    let queue = &world.queue;
    queue.append(1, entry(1));
    queue.close(Close::Abandon);
    queue.close(Close::Seal);
    let (calls, told) = world.run_to_the_end();
    assert!(calls.is_empty() && told.is_empty(), "{calls:?} {told:?}");
}
