//! A good Store of each kind passes; a Store that breaks one law is caught, by the name of it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;

use super::*;
use crate::error::{Error, Result};
use crate::store::Committed;
use crate::types::Index;

/// What is wrong with a Store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    Panics,
    Fatal,
    SharedState,
    AnswersFromAClock,
    BatchForgetsALast,
    BatchStopsAtARejection,
    QueryCounts,
    QueryInterleaves,
    SnapshotClears,
    SnapshotMisses,
    RestoreMerges,
    RestoreLosesTheCounter,
    SnapshotOfRestoredIsEmpty,
    RejectionByReplica,
    AnswersFromTimers,
    NeverAnswers,
    Blocks,
    /// None: it sleeps for an hour.
    Sleeps,
    // Of durable Stores.
    AppliedAhead,
    AppliedRegresses,
    NotAtomic,
    NeverDurable,
}

type State = BTreeMap<u8, u64>;

/// A disk: the state and the index up to which it holds it.
type Disk = Arc<Mutex<(State, Index)>>;

static CLOCK: AtomicU64 = AtomicU64::new(0);

struct Sums {
    flaw: Flaw,
    replica: usize,
    sums: Mutex<State>,
    /// Changes with each command, and shows in answers.
    counter: u64,
    restored: bool,
    busy: AtomicU64,
    disk: Option<Disk>,
    applied: Index,
    made: tokio::time::Instant,
}

impl Sums {
    fn new(flaw: Flaw, replica: usize, disk: Option<Disk>) -> Self {
        let (mut sums, mut applied) = (State::new(), 0);
        if let Some(disk) = &disk {
            (sums, applied) = disk.lock().unwrap().clone();
        }
        if flaw == Flaw::SharedState {
            sums.insert(0, CLOCK.load(Ordering::Relaxed));
        }
        let counter = sums.get(&255).copied().unwrap_or(0);
        let (restored, busy) = (false, AtomicU64::new(0));
        let made = tokio::time::Instant::now();
        let sums = Mutex::new(sums);
        Self { flaw, replica, sums, counter, restored, busy, disk, applied, made }
    }

    fn add(&mut self, message: &[u8]) -> Result<Vec<u8>> {
        let &[key, amount] = message else { return Err("two bytes, please".into()) };
        self.counter += 1;
        self.sums.lock().unwrap().insert(255, self.counter);
        match self.flaw {
            Flaw::Panics if amount == 7 => panic!("seven"),
            Flaw::Fatal if amount == 7 => return Err(Error::fatal("seven")),
            Flaw::SharedState | Flaw::AnswersFromAClock => {
                _ = CLOCK.fetch_add(1, Ordering::Relaxed)
            }
            _ => {}
        }
        let by_replica = self.flaw == Flaw::RejectionByReplica && self.replica % 2 == 1;
        if amount == 0 {
            let who = if by_replica { "odd" } else { "" };
            return Err(Error::rejected(format!("nothing to add{who}")));
        }
        let sum = {
            let mut sums = self.sums.lock().unwrap();
            let sum = sums.entry(key % 4).or_default();
            *sum += u64::from(amount);
            *sum
        };
        let extra = match self.flaw {
            Flaw::AnswersFromAClock => CLOCK.load(Ordering::Relaxed),
            Flaw::AnswersFromTimers => self.made.elapsed().as_micros() as u64,
            _ => self.counter,
        };
        Ok(format!("{sum} {extra}").into_bytes())
    }

    fn write_disk(&mut self, last: Index) {
        let Some(disk) = &self.disk else { return };
        let state = self.sums.lock().unwrap().clone();
        let index = match self.flaw {
            Flaw::AppliedAhead => last + 1,
            Flaw::AppliedRegresses if last > 6 => last - 5,
            _ => last,
        };
        let mut disk = disk.lock().unwrap();
        match self.flaw {
            // The index is written, the state is not.
            Flaw::NotAtomic if last.is_multiple_of(3) => disk.1 = index,
            Flaw::NeverDurable => {}
            _ => *disk = (state, index),
        }
        self.applied = index;
    }
}

#[async_trait]
impl Store for Sums {
    async fn apply(&mut self, message: &[u8]) -> Result<Vec<u8>> {
        self.add(message)
    }

    async fn query(&self, query: &[u8]) -> Result<Vec<u8>> {
        let key = query.first().map_or(0, |key| key % 4);
        match self.flaw {
            Flaw::NeverAnswers => std::future::pending().await,
            // Until the process ends.
            Flaw::Blocks => loop {
                std::thread::park();
            },
            // By the clock of the suite, which does not wait.
            Flaw::Sleeps => tokio::time::sleep(Duration::from_secs(3600)).await,
            _ => {}
        }
        if self.flaw == Flaw::QueryCounts {
            *self.sums.lock().unwrap().entry(key).or_default() += 1;
        }
        if self.flaw == Flaw::QueryInterleaves {
            let others = self.busy.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            self.busy.fetch_sub(1, Ordering::Relaxed);
            if others > 0 {
                return Err("busy".into());
            }
        }
        Ok(format!("{:?}", self.sums.lock().unwrap().get(&key)).into_bytes())
    }

    async fn snapshot(&self) -> Result<Vec<u8>> {
        let mut sums = self.sums.lock().unwrap();
        let mut shown = sums.clone();
        match self.flaw {
            Flaw::SnapshotClears => drop(sums.remove(&1)),
            Flaw::SnapshotMisses => drop(shown.remove(&1)),
            Flaw::SnapshotOfRestoredIsEmpty if self.restored => shown.clear(),
            _ => {}
        }
        Ok(bincode::serialize(&(shown, self.counter, self.applied))?)
    }

    async fn restore(&mut self, snapshot: &[u8]) -> Result<()> {
        let (state, counter, applied): (State, u64, Index) = bincode::deserialize(snapshot)?;
        {
            let mut sums = self.sums.lock().unwrap();
            if self.flaw != Flaw::RestoreMerges {
                sums.clear();
            }
            sums.extend(state);
        }
        self.counter = if self.flaw == Flaw::RestoreLosesTheCounter { 0 } else { counter };
        self.restored = true;
        if self.disk.is_some() {
            self.write_disk(applied);
        }
        Ok(())
    }

    async fn apply_batch(&mut self, batch: &[Committed<'_>]) -> Vec<Result<Vec<u8>>> {
        let mut answers = Vec::new();
        for (n, proposal) in batch.iter().enumerate() {
            if self.flaw == Flaw::BatchForgetsALast && n == 9 {
                answers.push(Ok(Vec::new()));
                continue;
            }
            let answer = self.add(proposal.data);
            let stop = match &answer {
                Err(Error::Rejected(_)) => self.flaw == Flaw::BatchStopsAtARejection,
                Err(_) => true,
                Ok(_) => false,
            };
            answers.push(answer);
            if stop {
                break;
            }
        }
        self.write_disk(batch.last().map_or(0, |proposal| proposal.index));
        answers
    }

    fn applied(&self) -> Option<Index> {
        (self.disk.is_some() && self.flaw != Flaw::NeverDurable).then_some(self.applied)
    }
}

fn command(rng: &mut Rng) -> Vec<u8> {
    vec![rng.below(256) as u8, rng.below(9) as u8]
}

fn query(rng: &mut Rng) -> Vec<u8> {
    vec![rng.below(256) as u8]
}

fn find_in_memory(flaw: Flaw) -> std::result::Result<(), Broken> {
    let mut made = 0;
    let new = move || {
        made += 1;
        Sums::new(flaw, made, None)
    };
    find(new, command, query, 0..20)
}

fn find_on_disk(flaw: Flaw) -> std::result::Result<(), Broken> {
    let mut disks = BTreeMap::<usize, Disk>::new();
    let open =
        move |replica| Sums::new(flaw, replica, Some(disks.entry(replica).or_default().clone()));
    find_durable(open, command, query, 0..20)
}

#[test]
fn good_stores_pass() {
    find_in_memory(Flaw::None).unwrap();
    find_on_disk(Flaw::None).unwrap();
    // An hour of the suite's clock is nothing.
    find_in_memory(Flaw::Sleeps).unwrap();
}

#[test]
fn every_flaw_is_caught_by_its_law() {
    for (flaw, law) in [
        (Flaw::Panics, Law::Total),
        (Flaw::Fatal, Law::Total),
        (Flaw::SharedState, Law::StartsEmpty),
        (Flaw::AnswersFromAClock, Law::Deterministic),
        (Flaw::AnswersFromTimers, Law::Deterministic),
        (Flaw::RejectionByReplica, Law::Deterministic),
        (Flaw::BatchForgetsALast, Law::BatchIsOneByOne),
        (Flaw::BatchStopsAtARejection, Law::BatchIsOneByOne),
        (Flaw::QueryCounts, Law::QueryIsPure),
        (Flaw::QueryInterleaves, Law::QueriesRunTogether),
        (Flaw::SnapshotClears, Law::SnapshotIsPure),
        (Flaw::SnapshotMisses, Law::RestoreIsExact),
        (Flaw::RestoreMerges, Law::RestoreReplaces),
        (Flaw::RestoreLosesTheCounter, Law::RestoredGoesOn),
        (Flaw::SnapshotOfRestoredIsEmpty, Law::SnapshotAgain),
    ] {
        let broken = find_in_memory(flaw).expect_err("a flaw");
        assert_eq!(broken.law, law, "{flaw:?}: {broken}");
        let again = format!("RAFTLINE_SEED={} cargo test", broken.seed);
        assert!(broken.to_string().contains(&again), "{broken}");
    }
}

#[test]
fn every_flaw_of_a_durable_store_is_caught_by_its_law() {
    for (flaw, law) in [
        (Flaw::AppliedAhead, Law::AppliedIsTrue),
        (Flaw::AppliedRegresses, Law::AppliedIsTrue),
        (Flaw::NotAtomic, Law::CrashRecovers),
        (Flaw::NeverDurable, Law::AppliedIsTrue),
        (Flaw::RestoreMerges, Law::RestoreReplaces),
        (Flaw::BatchStopsAtARejection, Law::BatchIsOneByOne),
    ] {
        let broken = find_on_disk(flaw).expect_err("a flaw");
        assert_eq!(broken.law, law, "{flaw:?}: {broken}");
    }
}

#[test]
fn a_call_that_does_not_come_back_breaks_a_law() {
    for flaw in [Flaw::NeverAnswers, Flaw::Blocks] {
        // The very first call hangs: no other can be slow.
        let broken = bounded(Duration::from_secs(1), move |calls| {
            suite::run(|_| Sums::new(flaw, 1, None), false, command, |_| vec![b'a'], 7..8, calls)
        });
        let broken = broken.expect_err("it hangs");
        assert_eq!((broken.law, broken.seed, broken.step), (Law::Total, 7, 0), "{broken}");
        assert!(broken.detail.starts_with("query of \"a\" does not come back"), "{broken}");
    }
}

#[test]
fn a_failure_shows_what_was_asked_and_where_it_panicked() {
    let text = |_: &mut Rng| b"ab".to_vec();
    let new = |flaw| move || Sums::new(flaw, 1, None);
    let broken = find(new(Flaw::AnswersFromAClock), text, query, 0..20).expect_err("a flaw");
    assert!(broken.detail.starts_with("the command \"ab\" at "), "{broken}");
    assert!(broken.detail.contains(" gives \"") && broken.detail.contains(" instead of \""));
    let broken = find(new(Flaw::SnapshotMisses), command, |_| b"!".to_vec(), 0..20);
    let broken = broken.expect_err("a flaw");
    assert!(
        broken.detail.starts_with("the query \"!\" gives \"None\" instead of \"Some("),
        "{broken}"
    );
    let seven = |_: &mut Rng| vec![1, 7];
    let broken = find(new(Flaw::Panics), seven, query, 0..1).expect_err("a panic");
    let expected = "apply of b\"\\x01\\x07\" panicked: seven (at src/testing/store_suite/tests.rs:";
    assert!(broken.detail.starts_with(expected), "{broken}");
}

#[test]
fn a_durable_store_is_not_checked_as_one_in_memory() {
    let disk = Disk::default();
    let broken = find(move || Sums::new(Flaw::None, 1, Some(disk.clone())), command, query, 0..1);
    assert_eq!(broken.expect_err("durable").law, Law::AppliedIsTrue);
}

/// `check` that lets a command through now and then.
struct Fickle;

#[async_trait]
impl Store for Fickle {
    async fn apply(&mut self, _message: &[u8]) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }
    async fn query(&self, _query: &[u8]) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }
    async fn snapshot(&self) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }
    async fn restore(&mut self, _snapshot: &[u8]) -> Result<()> {
        Ok(())
    }
    fn check(_message: &[u8]) -> Result<()> {
        static CALLS: AtomicU64 = AtomicU64::new(0);
        match CALLS.fetch_add(1, Ordering::Relaxed) % 2 {
            0 => Ok(()),
            _ => Err("not now".into()),
        }
    }
}

#[test]
#[should_panic(expected = "breaks the law CheckIsPure")]
fn a_fickle_check_is_caught() {
    check(|| Fickle, command, query, 0..1);
}
