//! The conformance suite of [`LogStorage`]: any log that a node is given must pass it.
//!
//! Each call is followed by opening the log again, now after a clean `close`, now after a mere
//! drop (as after `kill -9`), and by a comparison with a plain `Vec` model. What it cannot check
//! from outside is a loss of power; a log with files of its own needs tests for that.

use bytes::Bytes;

use super::rng::Rng;
use crate::error::StorageError;
use crate::log::{LogBatch, LogStorage, Recovered, SnapshotRecord};
use crate::types::{
    ClusterId, Entry, EntryKind, HardState, Identity, Incarnation, Index, Position, Term,
};

/// How thorough [`run_with`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Where the random walk starts; printed when it fails.
    pub seed: u64,
    /// Steps of the random walk.
    pub steps: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { seed: 1, steps: 300 }
    }
}

/// Runs the suite with default options. `open` opens the same storage at each call; it must be
/// empty at the first.
///
/// ```
/// use raftline::log::memory::MemoryLog;
///
/// let log = MemoryLog::new();
/// raftline::testing::log_suite::run(|| Box::new(log.clone()));
/// ```
///
/// # Panics
/// When the log breaks its contract; the message says how, and with which seed.
pub fn run(open: impl FnMut() -> Box<dyn LogStorage>) {
    run_with(Options::default(), open);
}

/// Runs the suite; see [`run`].
///
/// # Panics
/// When the log breaks its contract; the message says how, and with which seed.
pub fn run_with(options: Options, open: impl FnMut() -> Box<dyn LogStorage>) {
    let mut suite = Suite { open, log: None, model: Recovered::default(), step: String::new() };
    suite.reopen(false);
    suite.starts_empty();
    suite.keeps_records();
    suite.replaces_a_conflicting_suffix();
    suite.refuses_gaps();
    suite.takes_several_batches_at_once();
    suite.compacts();
    suite.resets();
    suite.walks(options);
}

/// A batch as a node would write it, made from a seed; it fits the log that `model` describes.
pub(crate) fn random_batch(rng: &mut Rng, model: &Recovered, largest: u64) -> LogBatch {
    let mut batch = LogBatch::default();
    let mut compacted = model.compacted;
    let mut last = compacted.index + model.entries.len() as u64;
    let term = model.hard_state.term.max(1);
    if rng.one_in(12) {
        let position = Position { index: compacted.index + rng.below(20), term };
        batch.reset = Some(position);
        batch.snapshot = Some(SnapshotRecord { position, installing: true });
        compacted = position;
        last = position.index;
    }
    if !rng.one_in(5) {
        let first = match rng.one_in(4) {
            true => compacted.index + 1 + rng.below(last - compacted.index + 1),
            false => last + 1,
        };
        batch.entries =
            (0..1 + rng.below(4)).map(|i| random_entry(rng, first + i, term, largest)).collect();
        last = first - 1 + batch.entries.len() as u64;
    }
    if rng.one_in(3) {
        let term = term + rng.below(2);
        batch.hard_state = Some(HardState { term, vote: rng.below(4), commit: last });
    }
    if rng.one_in(6) {
        let length = rng.below(64) as usize;
        batch.membership = Some(Bytes::from(vec![rng.next_u64() as u8; length]));
    }
    if batch.reset.is_none() && rng.one_in(6) && last > compacted.index {
        let index = compacted.index + 1 + rng.below(last - compacted.index);
        let position = Position { index, term };
        batch.snapshot = Some(SnapshotRecord { position, installing: false });
    }
    batch
}

fn random_entry(rng: &mut Rng, index: Index, term: Term, largest: u64) -> Entry {
    let kind = match rng.below(5) {
        0 => EntryKind::ConfChangeV2,
        1 => EntryKind::ConfChange,
        _ => EntryKind::Normal,
    };
    let length = if rng.one_in(10) { rng.below(largest) } else { rng.below(40) } as usize;
    let data = (0..length).map(|i| (index as u8).wrapping_add(i as u8)).collect::<Vec<_>>();
    let context = if rng.one_in(4) { Bytes::from_static(b"context") } else { Bytes::new() };
    Entry { term, index, kind, data: data.into(), context }
}

/// What the log must hold after a batch.
pub(crate) fn apply(model: &mut Recovered, batch: &LogBatch) {
    if let Some(position) = batch.reset {
        model.compacted = position;
        model.entries.clear();
    }
    if let Some(first) = batch.entries.first() {
        model.entries.retain(|e| e.index < first.index);
        model.entries.extend(batch.entries.iter().cloned());
    }
    model.hard_state = batch.hard_state.unwrap_or(model.hard_state);
    model.membership = batch.membership.clone().or(model.membership.take());
    model.snapshot = batch.snapshot.or(model.snapshot);
}

/// What the log must hold after a compaction.
pub(crate) fn apply_compaction(model: &mut Recovered, through: Position) {
    if through.index > model.compacted.index {
        model.compacted = through;
        model.entries.retain(|e| e.index > through.index);
    }
}

fn entry(index: Index, term: Term, data: &'static str) -> Entry {
    Entry { index, term, data: Bytes::from_static(data.as_bytes()), ..Entry::default() }
}

fn entries(from: Index, to: Index, term: Term) -> LogBatch {
    let entries = (from..=to).map(|i| entry(i, term, "entry")).collect();
    LogBatch { entries, ..LogBatch::default() }
}

struct Suite<F> {
    open: F,
    log: Option<Box<dyn LogStorage>>,
    model: Recovered,
    step: String,
}

#[expect(clippy::expect_used, clippy::panic, reason = "a suite tells what failed by panicking")]
impl<F: FnMut() -> Box<dyn LogStorage>> Suite<F> {
    fn log(&mut self) -> &mut dyn LogStorage {
        self.log.as_deref_mut().expect("the suite holds an open log")
    }

    /// Closes or drops the log, opens it again and compares it with the model.
    fn reopen(&mut self, close: bool) {
        if let (true, Some(log)) = (close, &mut self.log) {
            log.close().unwrap_or_else(|e| panic!("{}: close failed: {e}", self.step));
        }
        self.log = None;
        let mut log = (self.open)();
        let found = log.load().unwrap_or_else(|e| panic!("{}: load failed: {e}", self.step));
        assert_eq!(found, self.model, "{}: the log differs, reopened", self.step);
        self.log = Some(log);
    }

    fn reopen_both_ways(&mut self, step: &str) {
        self.step = step.to_owned();
        self.reopen(false);
        self.reopen(true);
    }

    fn append(&mut self, batches: &[LogBatch]) {
        let result = self.log().append(batches);
        result.unwrap_or_else(|e| panic!("{}: append failed: {e}", self.step));
        for batch in batches {
            apply(&mut self.model, batch);
        }
    }

    fn compact(&mut self, through: Position) {
        let result = self.log().compact(through);
        result.unwrap_or_else(|e| panic!("{}: compact failed: {e}", self.step));
        apply_compaction(&mut self.model, through);
    }

    fn identify(&mut self, identity: Identity) {
        let result = self.log().identify(&identity);
        result.unwrap_or_else(|e| panic!("{}: identify failed: {e}", self.step));
        self.model.identity = Some(identity);
    }

    fn refuses(&mut self, what: &str, call: impl FnOnce(&mut dyn LogStorage) -> Refusal) {
        let result = call(self.log());
        assert!(
            matches!(result, Err(StorageError::Contract(_))),
            "{what} must be refused as against the contract: {result:?}"
        );
        self.reopen_both_ways(what);
    }

    /// An identity survives, and so does the one that replaces it.
    fn starts_empty(&mut self) {
        let incarnation = Incarnation::from_u128(77);
        let mut identity = Identity { node_id: 3, incarnation, cluster: None, boot: 1 };
        self.identify(identity);
        self.reopen_both_ways("identify");
        identity.cluster = Some((ClusterId::from_u128(5), 9));
        identity.boot = 2;
        self.identify(identity);
        self.reopen_both_ways("identify again");
    }

    /// Each record is kept on its own, and stays until it is replaced.
    fn keeps_records(&mut self) {
        let hard_state = HardState { term: 1, vote: 2, commit: 0 };
        self.append(&[LogBatch { hard_state: Some(hard_state), ..LogBatch::default() }]);
        self.reopen_both_ways("hard state");
        let membership = Some(Bytes::from_static(b"members"));
        self.append(&[LogBatch { membership, ..LogBatch::default() }]);
        self.reopen_both_ways("membership");
        self.append(&[entries(1, 3, 1)]);
        self.reopen_both_ways("entries");
        let snapshot =
            SnapshotRecord { position: Position { index: 2, term: 1 }, installing: false };
        self.append(&[LogBatch { snapshot: Some(snapshot), ..LogBatch::default() }]);
        self.reopen_both_ways("snapshot");
        self.append(&[LogBatch { membership: Some(Bytes::new()), ..LogBatch::default() }]);
        self.reopen_both_ways("empty membership");
        self.append(&[LogBatch::default()]);
        self.append(&[]);
        self.reopen_both_ways("nothing");
    }

    /// Entries at and above the first of a batch are replaced (Raft paper, section 5.3).
    fn replaces_a_conflicting_suffix(&mut self) {
        self.append(&[entries(4, 9, 1)]);
        self.append(&[entries(6, 7, 2)]);
        self.reopen_both_ways("shorter suffix");
        self.append(&[entries(8, 8, 2)]);
        self.append(&[entries(8, 12, 3)]);
        self.reopen_both_ways("longer suffix");
    }

    /// A gap is refused, and the log goes on as before.
    fn refuses_gaps(&mut self) {
        self.refuses("a gap", |log| log.append(&[entries(14, 14, 3)]));
        let mut holed = entries(13, 14, 3);
        holed.entries[1].index = 15;
        self.refuses("a gap inside a batch", |log| log.append(&[holed]));
        let second = [entries(13, 13, 3), entries(15, 15, 3)];
        self.refuses("a gap in a second batch", |log| log.append(&second));
        self.append(&[entries(13, 13, 3)]);
        self.reopen_both_ways("after refusals");
    }

    /// Batches of one call take effect in order.
    fn takes_several_batches_at_once(&mut self) {
        let mut first = entries(14, 16, 3);
        first.hard_state = Some(HardState { term: 4, vote: 1, commit: 10 });
        let mut second = entries(15, 20, 4);
        second.hard_state = Some(HardState { term: 4, vote: 3, commit: 14 });
        second.membership = Some(Bytes::from_static(b"more members"));
        self.append(&[first, LogBatch::default(), second, entries(18, 18, 4)]);
        self.reopen_both_ways("several batches");
    }

    /// What was compacted stays away; compaction ends at the snapshot.
    fn compacts(&mut self) {
        self.refuses("above the snapshot", |log| log.compact(Position { index: 5, term: 1 }));
        let position = Position { index: 17, term: 4 };
        let snapshot = SnapshotRecord { position, installing: false };
        self.append(&[LogBatch { snapshot: Some(snapshot), ..LogBatch::default() }]);
        self.compact(Position { index: 5, term: 1 });
        self.reopen_both_ways("compact");
        self.compact(Position { index: 5, term: 1 });
        self.compact(Position { index: 3, term: 1 });
        self.reopen_both_ways("compact below");
        self.refuses("compacted entries", |log| log.append(&[entries(5, 5, 4)]));
        self.compact(position);
        self.append(&[entries(18, 30, 4)]);
        self.reopen_both_ways("compact to the snapshot");
    }

    /// A reset drops everything; the log continues above it.
    fn resets(&mut self) {
        let position = Position { index: 100, term: 5 };
        let mut batch = entries(101, 104, 5);
        batch.reset = Some(position);
        batch.snapshot = Some(SnapshotRecord { position, installing: true });
        self.append(&[batch]);
        self.reopen_both_ways("reset");
        let snapshot = SnapshotRecord { position, installing: false };
        self.append(&[LogBatch { snapshot: Some(snapshot), ..LogBatch::default() }]);
        self.append(&[LogBatch { reset: Some(position), ..LogBatch::default() }]);
        self.reopen_both_ways("reset below the last entry");
        let low = LogBatch { reset: Some(Position { index: 1, term: 1 }), ..LogBatch::default() };
        self.refuses("a reset below", |log| log.append(&[low]));
    }

    /// Whatever a node may do, in any order.
    fn walks(&mut self, options: Options) {
        let mut rng = Rng::new(options.seed);
        for step in 0..options.steps {
            self.step = format!("log_suite seed {} step {step}", options.seed);
            match self.model.snapshot {
                Some(s) if rng.one_in(6) && s.position.index <= self.last() => {
                    let below = s.position.index.saturating_sub(rng.below(4));
                    self.compact(Position { index: below, term: s.position.term });
                }
                Some(_) | None => {
                    let mut after = self.model.clone();
                    let mut batches = Vec::new();
                    for _ in 0..=rng.below(3) {
                        batches.push(random_batch(&mut rng, &after, 3000));
                        apply(&mut after, &batches[batches.len() - 1]);
                    }
                    self.append(&batches);
                }
            }
            if rng.one_in(3) {
                let close = rng.one_in(2);
                self.reopen(close);
            }
        }
        self.reopen(true);
    }

    fn last(&self) -> Index {
        self.model.compacted.index + self.model.entries.len() as u64
    }
}

type Refusal = Result<(), StorageError>;
