//! What is judged at the end of a run, or as a node stops, against records and causes that are made
//! up: each check must fail by itself.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use bytes::Bytes;

use super::forged::{fires, membership};
use super::{Flaw, Sum, flawed};
use crate::error::{Error, StorageError};
use crate::node::event::{Applied, Freshness};
use crate::store::{Committed, SKIP_REMEDY, Store};
use crate::testing::rng::Rng;
use crate::testing::sim::clients::{Ask, Came, Record};
use crate::testing::sim::machine::Mischief;
use crate::testing::sim::plan::{Knob, Plan};
use crate::testing::sim::run_with;
use crate::testing::sim::schedule::SECOND;
use crate::testing::sim::stopping::{Cause, Refusal};
use crate::testing::sim::subject::{Act, Op, Subject, mixed};
use crate::testing::sim::trace::Trace;
use crate::testing::sim::world::World;
use crate::testing::watch::Calls;
use crate::types::NodeId;

/// A world in which nothing has happened, and which expects faults.
fn world(subject: Subject) -> World {
    let plan = Plan::calm(1).with(Knob::Nodes, 1).with(Knob::DiskFull, 1000).with(Knob::Rot, 1000);
    World::new(&plan, subject, Trace::default(), Calls::default())
}

/// An operation that took so many events, and what came of it.
fn record(ask: Ask, began: u64, ended: u64, came: Came) -> Record {
    Record { client: 0, ask, invoked: began, began, ended, came }
}

fn write(command: &'static [u8]) -> Ask {
    Ask::Write(Bytes::from_static(command))
}

fn read(freshness: Freshness) -> Ask {
    Ask::Read { query: b"sum".to_vec(), freshness }
}

/// The sum of lengths, as the Store of these tests answers.
fn sum(sum: u64, index: u64) -> Came {
    Came::Ok(Applied { index, data: sum.to_le_bytes().to_vec() })
}

fn judge(log: &[(u64, &'static [u8])], done: &[Record]) {
    judge_in(world(flawed(Flaw::None)), log, done);
}

fn judge_in(mut world: World, log: &[(u64, &'static [u8])], done: &[Record]) {
    for (index, command) in log {
        world.oracle.log.entry(*index).or_default().push(Bytes::from_static(command));
    }
    world.clients.done = done.to_vec();
    world.clients.before_healing = done.len();
    world.verdict();
}

#[test]
fn every_write_is_in_the_log_as_its_caller_was_told() {
    let (log, unknown) = ([(2, &b"aa"[..])], || Came::Unknown(String::new()));
    let never = || Came::NotApplied(String::new());
    judge(&log, &[record(write(b"aa"), 1, 2, sum(2, 2))]);
    judge(&log, &[record(write(b"aa"), 1, 2, unknown()), record(write(b"b"), 1, 2, unknown())]);
    fires("I10: \"aa\" was acknowledged at 3, where it is not", || {
        judge(&log, &[record(write(b"aa"), 1, 2, sum(2, 3))]);
    });
    fires("I10: \"aa\" was never proposed", || judge(&log, &[]));
    fires("I10: \"b\" was acknowledged and is lost", || {
        let rejected = record(write(b"b"), 1, 2, Came::Rejected(String::new()));
        judge(&log, &[record(write(b"aa"), 1, 2, sum(2, 2)), rejected]);
    });
    fires("I10: \"aa\" was applied too often", || {
        judge(&log, &[record(write(b"aa"), 1, 2, never())]);
    });
    let twice = [(2, &b"aa"[..]), (3, &b"aa"[..])];
    fires("I10: \"aa\" was applied too often", || {
        judge(&twice, &[record(write(b"aa"), 1, 2, unknown())]);
    });
}

#[test]
fn indices_respect_real_time() {
    let log = [(2, &b"aa"[..]), (3, &b"b"[..])];
    let later = record(write(b"aa"), 5, 6, sum(2, 2));
    let first = record(write(b"b"), 1, 2, sum(3, 3));
    fires("I12: a write of client 0 got index 2, 3 was answered before it began", || {
        judge(&log, &[first.clone(), later.clone()]);
    });
    let reads = |began| record(read(Freshness::Linearizable), began, 9, sum(2, 2));
    let overlapping = record(write(b"aa"), 1, 6, sum(2, 2));
    judge(&log, &[first.clone(), overlapping.clone(), reads(2)]);
    fires("I12: a read of client 0 saw 2, 3 was answered before it began", || {
        judge(&log, &[first.clone(), overlapping.clone(), reads(3)]);
    });
    let stale = record(read(Freshness::Stale), 3, 9, sum(2, 2));
    judge(&log, &[first, overlapping, stale]);
}

#[test]
fn answers_are_those_of_one_replica() {
    let log = [(2, &b"aa"[..])];
    fires("I12: the write \"aa\" at index 2 was answered with", || {
        judge(&log, &[record(write(b"aa"), 1, 2, sum(3, 2))]);
    });
    let good = record(write(b"aa"), 1, 2, sum(2, 2));
    judge(&log, &[good.clone(), record(read(Freshness::Stale), 3, 4, sum(0, 1))]);
    fires("I12: client 0 read \"sum\" at index 2 and got", || {
        judge(&log, &[good.clone(), record(read(Freshness::Stale), 3, 4, sum(0, 2))]);
    });
    fires("a read at 2 was to see 3", || {
        judge(&log, &[good, record(read(Freshness::AtLeast(3)), 3, 4, sum(2, 2))]);
    });
}

#[test]
fn answers_are_judged_by_their_values_alone() {
    let op =
        |id, act| -> Bytes { bincode::serialize(&Op { id, key: 1, act }).expect("bytes").into() };
    let judged = |seen: u64| {
        let mut world = world(mixed(&Plan::calm(1)));
        let put = op(1, Act::Put(4));
        world.oracle.log.insert(2, vec![put.clone()]);
        // The search looks at the value; what follows it is the replay's to judge.
        let mut replica = world.caller.make(&world.subject, 0, true);
        let batch = [Committed { index: 2, data: &put }];
        let call = replica.apply_batch(&batch);
        let answer = world.caller.call(0, "apply_batch", [], call).expect("no panic").remove(0);
        let applied = Applied { index: 2, data: answer.expect("it is taken") };
        let query = Ask::Read { query: vec![0, 1], freshness: Freshness::Linearizable };
        world.clients.done = vec![
            record(Ask::Write(put), 1, 2, Came::Ok(applied)),
            record(query, 3, 4, Came::Ok(Applied { index: 2, data: seen.to_le_bytes().to_vec() })),
        ];
        world.verdict();
    };
    judged(4);
    fires("I12: by their values alone:", || judged(3));
}

#[test]
fn without_faults_nothing_is_lost_sight_of() {
    let calm = || {
        let plan = Plan::calm(1).with(Knob::Nodes, 1);
        World::new(&plan, flawed(Flaw::None), Trace::default(), Calls::default())
    };
    let log = [(2, &b"aa"[..])];
    let good = record(write(b"aa"), 3, 5, sum(2, 2));
    let lost = |began| record(write(b"b"), began, 9, Came::Unknown(String::new()));
    judge_in(calm(), &log, &[good.clone(), lost(4)]);
    fires("I15: without any fault", || judge_in(calm(), &log, &[good.clone(), lost(5)]));
    judge(&log, &[good, lost(5)]);
}

/// A Store that is right whenever its clients ask, and wrong when it is asked often.
struct Tired {
    sum: Sum,
    asked: std::sync::atomic::AtomicU64,
    honest: bool,
}

#[async_trait::async_trait]
impl Store for Tired {
    async fn apply(&mut self, m: &[u8]) -> crate::error::Result<Vec<u8>> {
        self.sum.apply(m).await
    }

    async fn query(&self, q: &[u8]) -> crate::error::Result<Vec<u8>> {
        let asked = self.asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let tired = !self.honest && asked == 10;
        if tired { Ok(vec![0; 8]) } else { self.sum.query(q).await }
    }

    async fn snapshot(&self) -> crate::error::Result<Vec<u8>> {
        self.sum.snapshot().await
    }

    async fn restore(&mut self, s: &[u8]) -> crate::error::Result<()> {
        self.sum.restore(s).await
    }
}

#[test]
fn at_the_end_every_store_answers_as_the_reference_does() {
    let subject = || {
        let open = |id, _| Tired { sum: Sum::default(), asked: 0.into(), honest: id == 0 };
        let command = |rng: &mut Rng| vec![b'+'; 1 + rng.below(9) as usize];
        Subject::durable(open, command, |_| b"sum".to_vec())
    };
    let plan = Plan::calm(1).with(Knob::Reads, 0).with(Knob::Seconds, 5);
    let failure = run_with(&plan, subject()).expect_err("it is noticed");
    let text = "I5: at the end the Store of node 1 answers the query \"sum\" with";
    assert!(failure.reason.contains(text), "{failure}");
}

fn io_error(code: i32) -> Error {
    let (op, path) = ("write", PathBuf::from("wal"));
    StorageError::Io { op, path, source: io::Error::from_raw_os_error(code) }.into()
}

/// A world with one node that runs.
fn running() -> World {
    let mut world = world(flawed(Flaw::None));
    world.found();
    world
}

#[test]
fn a_node_stops_for_the_fault_that_its_disk_was_to_show_and_for_no_other() {
    let unexplained = "node 1 stops without a fault that explains it";
    let full = io::Error::from_raw_os_error(28).raw_os_error().unwrap_or(0);
    let stop = |armed: bool, cause: Cause| {
        let mut world = running();
        if armed {
            world.fault(Knob::DiskFull);
        }
        world.stopped(1, &cause);
    };
    stop(true, Cause::Files(io_error(full)));
    fires(unexplained, || stop(false, Cause::Files(io_error(full))));
    // A disk that is full is no disk that fails.
    fires(unexplained, || stop(true, Cause::Files(io_error(5))));
    // Nor does it excuse anything else.
    fires(unexplained, || stop(true, Cause::Node(io_error(full))));
    let lost = || Error::Storage(StorageError::Contract("no".to_owned()));
    fires(unexplained, || stop(true, Cause::Files(lost())));
    let damaged = || {
        let (path, reason) = (PathBuf::from("wal"), "no".to_owned());
        StorageError::Corrupt { path, offset: 0, reason, remedy: "" }.into()
    };
    fires(unexplained, || stop(true, Cause::Files(damaged())));
}

#[test]
fn a_store_stops_its_node_when_it_was_told_to_and_not_otherwise() {
    let unexplained = "node 1 stops without a fault that explains it";
    let failed = |reason: &str| Error::StoreFailed {
        index: 2,
        reason: reason.to_owned(),
        remedy: SKIP_REMEDY,
    };
    for told in [Mischief::Fail, Mischief::Panic] {
        running().stopped(1, &Cause::Store(failed("as told"), Some(told)));
        fires(unexplained, || {
            running().stopped(1, &Cause::Store(failed("of its own"), Some(told)));
        });
    }
    fires(unexplained, || running().stopped(1, &Cause::Store(failed("as told"), None)));
}

#[test]
fn a_start_is_refused_for_a_flipped_bit_alone() {
    let refused = "node 1 refuses to start";
    fires(refused, || running().refused_start(1, &Refusal::Files(io_error(5))));
    let (what, explained) = (String::new(), true);
    fires(refused, || running().refused_start(1, &Refusal::Contents { what, explained }));
}

#[test]
fn a_sealed_log_comes_back_whole() {
    running().sealed_again(1, true, 0, None);
    running().sealed_again(1, false, 2, Some("a tail"));
    fires("node 1: its log was sealed with writes under way", || {
        running().sealed_again(1, true, 1, None);
    });
    fires("node 1: Some(\"a tail\") is gone from its sealed log", || {
        running().sealed_again(1, true, 0, Some("a tail"));
    });
}

/// The nodes whose disks are copied sooner or later, of so many that have come to rest.
fn copied(nodes: u64, prepare: impl FnOnce(&mut World)) -> BTreeSet<NodeId> {
    let plan = Plan::calm(1).with(Knob::Nodes, nodes).with(Knob::Rollback, 1000);
    let mut world = World::new(&plan, flawed(Flaw::None), Trace::default(), Calls::default());
    world.found();
    world.run_until(5 * SECOND);
    prepare(&mut world);
    let mut copied = BTreeSet::new();
    for _ in 0..10 * nodes {
        world.fault(Knob::Rollback);
        copied.extend(world.machines.values().filter(|m| m.backup.is_some()).map(|m| m.id));
    }
    copied
}

#[test]
fn a_disk_that_could_decide_alone_is_not_copied() {
    assert_eq!(copied(3, |_| ()), BTreeSet::from([1, 2, 3]));
    assert!(copied(1, |_| ()).is_empty());
    // Nor one that will be the only voter's when it applies what it has committed.
    let alone = copied(3, |world| {
        let raft_id = world.machines[&1].raft_id.expect("it was let in");
        let newest = world.oracle.memberships.keys().next_back().expect("they founded");
        let next = newest + 1;
        world.oracle.memberships.insert(next, membership(next, &[raft_id]));
    });
    assert_eq!(alone, BTreeSet::from([2, 3]));
}
