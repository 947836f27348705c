//! What the log costs: one append is one write and one fdatasync, however many entries it holds; and
//! how long a start reads. In memory the same calls, as the floor.
//!
//! ```sh
//! cargo bench --bench log
//! ```
//!
//! Files are made in `target/`, on the disk that is to be measured.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group};
use peers::machine::Machine;
use raftline::log::memory::MemoryLog;
use raftline::log::wal::{Wal, WalOptions};
use raftline::log::{LogBatch, LogStorage, SnapshotRecord};
use raftline::vfs::RealVfs;
use raftline::{Entry, EntryKind, Identity, Incarnation, Position};
use tempfile::TempDir;

const PAYLOAD: usize = 128;
const TERM: u64 = 1;
/// Entries of a start.
const RECOVERED: u64 = 100_000;
/// Above so many entries the benchmark compacts, so that the log does not grow without end.
const LONG: u64 = 50_000;

fn dir() -> TempDir {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    tempfile::tempdir_in(target).expect("a directory in target/")
}

fn wal(dir: &Path) -> Wal {
    Wal::open(Arc::new(RealVfs), dir, WalOptions::default()).expect("an empty directory")
}

fn entries(first: u64, count: u64, data: &Bytes) -> LogBatch {
    let entry = |index| Entry {
        term: TERM,
        index,
        kind: EntryKind::Normal,
        data: data.clone(),
        context: Bytes::new(),
    };
    LogBatch { entries: (first..first + count).map(entry).collect(), ..LogBatch::default() }
}

/// A log that was made, and is ready to be appended to.
fn ready(mut log: impl LogStorage) -> Box<dyn LogStorage> {
    log.load().expect("an empty log loads");
    let identity = Identity {
        node_id: 1,
        incarnation: Incarnation::random().expect("random bytes"),
        cluster: None,
        boot: 1,
    };
    log.identify(&identity).expect("the disk works");
    Box::new(log)
}

/// A log, and how far it goes.
struct Growing {
    log: Box<dyn LogStorage>,
    last: u64,
    compacted: u64,
    data: Bytes,
}

impl Growing {
    fn append(&mut self, count: u64) {
        let batch = entries(self.last + 1, count, &self.data);
        self.log.append(&[batch]).expect("the disk works");
        self.last += count;
        if self.last - self.compacted > LONG {
            self.compact();
        }
    }

    fn compact(&mut self) {
        let position = Position { term: TERM, index: self.last - 1 };
        let snapshot = Some(SnapshotRecord { position, installing: false });
        let record = LogBatch { snapshot, ..LogBatch::default() };
        self.log.append(&[record]).expect("the disk works");
        self.log.compact(position).expect("the disk works");
        self.compacted = position.index;
    }
}

fn append_to(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    make: impl Fn() -> Box<dyn LogStorage>,
) {
    for count in [1, 64, 1024] {
        let data = Bytes::from(vec![7; PAYLOAD]);
        let mut growing = Growing { log: make(), last: 0, compacted: 0, data };
        group.throughput(Throughput::Elements(count));
        group.bench_function(format!("{name}/{count}"), |b| b.iter(|| growing.append(count)));
    }
}

fn append(c: &mut Criterion) {
    let mut group = c.benchmark_group("log/append");
    append_to(&mut group, "memory", || ready(MemoryLog::new()));
    let dir = dir();
    let mut made = 0..;
    let mut next = || dir.path().join(made.next().map_or(0, |n: u32| n).to_string());
    let dirs: Vec<_> = (0..3).map(|_| next()).collect();
    let dirs = std::cell::RefCell::new(dirs);
    append_to(&mut group, "fdatasync", || {
        ready(wal(&dirs.borrow_mut().pop().expect("one per count")))
    });
    group.finish();
}

fn load(c: &mut Criterion) {
    let dir = dir();
    let data = Bytes::from(vec![7; PAYLOAD]);
    let mut log = ready(wal(dir.path()));
    for first in (1..=RECOVERED).step_by(1000) {
        log.append(&[entries(first, 1000, &data)]).expect("the disk works");
    }
    log.close().expect("the disk works");
    drop(log);
    let mut group = c.benchmark_group("log/load");
    group.sample_size(10).throughput(Throughput::Elements(RECOVERED));
    group.bench_function(format!("fdatasync/{RECOVERED}"), |b| {
        b.iter(|| {
            let mut log = wal(dir.path());
            let found = log.load().expect("it was closed");
            assert_eq!(found.entries.len() as u64, RECOVERED, "entries are missing");
            log.close().expect("the disk works");
        });
    });
    group.finish();
}

criterion_group!(benches, append, load);

fn main() {
    println!("{}\n", Machine::look());
    benches();
    Criterion::default().configure_from_args().final_summary();
}
