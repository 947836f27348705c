//! The apply task against Stores that are slow, broken, hanging or wrong.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use async_trait::async_trait;
use bytes::Bytes;
use slog::{Discard, Drain, o};
use tokio::sync::{Barrier, Semaphore};

use super::*;
use crate::node::envelope::{Envelope, Packer, open};
use crate::node::event::Freshness;
use crate::reply::{Waiter, reply};
use crate::snapshot::fake_disk::{Failing, FakeDisk};
use crate::store::Committed as Proposal;
use crate::types::{ClusterId, ConfState};

const LONG: Duration = Duration::from_secs(3600);

/// What a Store's `apply_batch` does with the answers it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Batching {
    Right,
    OneShort,
    OneMore,
    Panic,
}

/// A Store that does what its commands say.
#[derive(Clone, Debug)]
struct Scripted {
    state: Vec<String>,
    batching: Batching,
    /// The indices of each batch.
    batches: Arc<Mutex<Vec<Vec<Index>>>>,
    barrier: Arc<Barrier>,
    /// `apply` of "gated" takes one.
    gate: Arc<Semaphore>,
    snapshot: Option<&'static str>,
    running: Arc<AtomicUsize>,
}

impl Default for Scripted {
    fn default() -> Self {
        Self {
            state: Vec::new(),
            batching: Batching::Right,
            batches: Arc::default(),
            barrier: Arc::new(Barrier::new(2)),
            gate: Arc::new(Semaphore::new(0)),
            snapshot: None,
            running: Arc::default(),
        }
    }
}

#[async_trait]
impl Store for Scripted {
    async fn apply(&mut self, message: &[u8]) -> Result<Vec<u8>> {
        assert_eq!(self.running.load(Ordering::SeqCst), 0, "a query ran beside an apply");
        let text = String::from_utf8_lossy(message).into_owned();
        match text.as_str() {
            "reject" => return Err("no".into()),
            "fatal" => return Err(Error::fatal("disk on fire")),
            "panic" => panic!("poison"),
            "slow" => tokio::time::sleep(Duration::from_secs(40)).await,
            "gated" => self.gate.acquire().await.unwrap().forget(),
            _ => {}
        }
        self.state.push(text.clone());
        Ok(format!("{text}={}", self.state.len()).into_bytes())
    }

    async fn query(&self, query: &[u8]) -> Result<Vec<u8>> {
        self.running.fetch_add(1, Ordering::SeqCst);
        let _running = Running(self.running.clone());
        match query {
            b"meet" => drop(self.barrier.wait().await),
            b"hang" => std::future::pending().await,
            b"panic" => panic!("bad query"),
            b"late panic" => {
                tokio::task::yield_now().await;
                panic!("bad query");
            }
            b"refuse" => return Err("unknown key".into()),
            _ => {}
        }
        Ok(self.state.join(",").into_bytes())
    }

    async fn snapshot(&self) -> Result<Vec<u8>> {
        match self.snapshot {
            Some("panic") => panic!("no snapshot"),
            Some(reason) => Err(Error::fatal(reason)),
            None => Ok(self.state.join(",").into_bytes()),
        }
    }

    async fn restore(&mut self, snapshot: &[u8]) -> Result<()> {
        match snapshot {
            b"panic" => panic!("poisoned state"),
            b"error" => Err("not mine".into()),
            other => {
                let text = String::from_utf8_lossy(other);
                self.state = text.split(',').map(str::to_owned).collect();
                Ok(())
            }
        }
    }

    async fn apply_batch(&mut self, batch: &[Proposal<'_>]) -> Vec<Result<Vec<u8>>> {
        self.batches.lock().unwrap().push(batch.iter().map(|p| p.index).collect());
        let mut answers = Vec::new();
        for proposal in batch {
            let call = AssertUnwindSafe(self.apply(proposal.data)).catch_unwind().await;
            let answer = call.unwrap_or_else(|panic| {
                Err(Error::StoreFailed {
                    index: proposal.index,
                    reason: panicked("apply", &*panic),
                    remedy: crate::store::SKIP_REMEDY,
                })
            });
            let stop = !matches!(answer, Ok(_) | Err(Error::Rejected(_)));
            answers.push(answer);
            if stop {
                return answers;
            }
        }
        match self.batching {
            Batching::Right => {}
            Batching::OneShort => drop(answers.pop()),
            Batching::OneMore => answers.push(Ok(Vec::new())),
            Batching::Panic => panic!("batch"),
        }
        answers
    }
}

struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Rig {
    applier: Applier,
    task: JoinHandle<Option<Scripted>>,
    parts: Parts,
    disk: FakeDisk,
    events: Vec<Event>,
}

impl Rig {
    fn new(store: Scripted) -> Self {
        Self::with(store, &Config::default(), Logger::root(Discard, o!()))
    }

    fn with(store: Scripted, config: &Config, logger: Logger) -> Self {
        let disk = FakeDisk::default();
        let snapshots = SnapshotDir::open(Arc::new(disk.clone()), "/snap").unwrap();
        let parts = Parts { inbox: Arc::default(), snapshots, fatal: FatalSink::default(), logger };
        let (applier, task) = Applier::spawn(&Handle::current(), store, 1, config, parts.clone());
        Self { applier, task, parts, disk, events: Vec::new() }
    }

    /// Pushes one entry; the waiters of its proposals.
    fn apply(&self, index: Index, commands: &[&str]) -> Vec<Waiter<Applied>> {
        let (entry, waiters) = entry(index, commands);
        self.applier.push(Job::Apply(vec![entry]));
        waiters
    }

    fn query(&self, query: Option<&str>) -> Waiter<Applied> {
        let (reply, waiter) = reply(None);
        let query = query.map(|q| q.as_bytes().to_vec());
        let read = Read { query, freshness: Freshness::Stale, reply };
        self.applier.push(Job::Query(vec![read]));
        waiter
    }

    fn capture(&self, index: Index) {
        let membership = membership();
        self.applier.push(Job::Capture { position: Position { index, term: 2 }, membership });
    }

    fn install(&self, index: Index, body: &[u8]) -> SnapshotMeta {
        let position = Position { index, term: 2 };
        let meta = write_snapshot(&self.parts.snapshots, position, membership(), body).unwrap();
        self.applier.push(Job::Install { meta: meta.clone() });
        meta
    }

    /// The next completion, in order; for ever if there is none.
    async fn event(&mut self) -> Event {
        while self.events.is_empty() {
            let mut classes = super::super::inbox::Classes::default();
            self.parts.inbox.take(&mut classes);
            self.events = classes.completions;
            tokio::task::yield_now().await;
        }
        self.events.remove(0)
    }

    async fn finish(self) -> Option<Scripted> {
        self.applier.finish();
        self.task.await.unwrap()
    }

    /// The node's end: the error, and that nobody gets the Store any more.
    async fn fatal(self) -> Error {
        let error = self.parts.fatal.wait().await;
        assert!(self.task.await.unwrap().is_none());
        let (entry, mut waiters) = entry(99, &["late"]);
        self.applier.push(Job::Apply(vec![entry]));
        assert_unknown(waiters.remove(0)).await;
        error
    }
}

fn membership() -> Membership {
    let conf_state = ConfState { voters: vec![1], ..ConfState::default() };
    let cluster_id = ClusterId::from_u128(7);
    Membership { cluster_id, index: 1, conf_state, members: Vec::new(), next_raft_id: 2 }
}

fn body(commands: &[&str]) -> Bytes {
    let mut packer = Packer::new(0);
    for command in commands {
        packer.push(command.as_bytes());
    }
    let Ok(Envelope::Commands(body)) = open(&packer.finish()) else { panic!("not commands") };
    body
}

fn entry(index: Index, commands: &[&str]) -> (Committed, Vec<Waiter<Applied>>) {
    let (replies, waiters) = commands
        .iter()
        .map(|_| {
            let (reply, waiter) = reply(None);
            assert!(reply.begin());
            (reply, waiter)
        })
        .unzip();
    (Committed { index, data: body(commands), replies }, waiters)
}

async fn answers(waiters: Vec<Waiter<Applied>>) -> Vec<(Index, String)> {
    let mut answers = Vec::new();
    for waiter in waiters {
        answers.push(text(waiter.wait(LONG).await.unwrap()));
    }
    answers
}

fn text(applied: Applied) -> (Index, String) {
    (applied.index, String::from_utf8(applied.data).unwrap())
}

async fn assert_unknown(waiter: Waiter<Applied>) {
    let error = waiter.wait(LONG).await.unwrap_err();
    assert!(error.outcome_unknown(), "{error}");
}

fn applied(event: Event) -> Index {
    let Event::Applied { index } = event else { panic!("{event:?} is not Applied") };
    index
}

#[tokio::test(start_paused = true)]
async fn waiting_entries_become_one_batch_and_are_answered_in_order() {
    let store = Scripted::default();
    let batches = store.batches.clone();
    let mut rig = Rig::new(store);
    let (a, b, c) = (rig.apply(2, &["a", "", "b"]), rig.apply(4, &["c"]), rig.apply(5, &["d"]));
    assert_eq!(rig.applier.lag(), (3, 24));
    assert_eq!(answers(a).await, [(2, "a=1".into()), (2, "=2".into()), (2, "b=3".into())]);
    assert_eq!(answers(b).await, [(4, "c=4".into())]);
    assert_eq!(answers(c).await, [(5, "d=5".into())]);
    assert_eq!(applied(rig.event().await), 5, "one event for the batch");
    assert_eq!(*batches.lock().unwrap(), [[2, 2, 2, 4, 5]]);
    assert_eq!(rig.applier.lag(), (0, 0));
    assert_eq!(rig.finish().await.unwrap().state, ["a", "", "b", "c", "d"]);
}

#[tokio::test(start_paused = true)]
async fn a_full_batch_ends_with_a_whole_entry() {
    let store = Scripted::default();
    let batches = store.batches.clone();
    let mut rig = Rig::new(store);
    let many = ["x"; 3000];
    for index in 2..5 {
        drop(rig.apply(index, &many));
    }
    assert_eq!(applied(rig.event().await), 3);
    assert_eq!(applied(rig.event().await), 4);
    let sizes: Vec<_> = batches.lock().unwrap().iter().map(Vec::len).collect();
    assert_eq!(sizes, [6000, 3000]);
}

#[tokio::test(start_paused = true)]
async fn a_large_entry_ends_its_batch() {
    let store = Scripted::default();
    let batches = store.batches.clone();
    let mut rig = Rig::new(store);
    let large = "x".repeat(4 << 20);
    drop((rig.apply(2, &[&large]), rig.apply(3, &["b"])));
    assert_eq!(applied(rig.event().await), 2);
    assert_eq!(applied(rig.event().await), 3);
    assert_eq!(*batches.lock().unwrap(), [[2], [3]]);
}

#[tokio::test(start_paused = true)]
async fn a_rejection_is_an_answer_and_counts_as_applied() {
    let mut rig = Rig::new(Scripted::default());
    let mut waiters = rig.apply(2, &["a", "reject", "b"]);
    let last = waiters.pop().unwrap();
    let error = waiters.pop().unwrap().wait(LONG).await.unwrap_err();
    assert!(matches!(error, Error::Rejected(ref why) if why == "no"), "{error}");
    assert_eq!(text(last.wait(LONG).await.unwrap()), (2, "b=2".into()));
    assert_eq!(applied(rig.event().await), 2);
}

#[tokio::test(start_paused = true)]
async fn a_skipped_entry_is_rejected_without_asking_the_store() {
    let config = Config { skip_apply: vec![3], ..Config::default() };
    let store = Scripted::default();
    let batches = store.batches.clone();
    let mut rig = Rig::with(store, &config, Logger::root(Discard, o!()));
    let (a, poison, b) =
        (rig.apply(2, &["a"]), rig.apply(3, &["panic", "x"]), rig.apply(4, &["b"]));
    for waiter in poison {
        let error = waiter.wait(LONG).await.unwrap_err();
        assert!(matches!(error, Error::Rejected(ref why) if why.contains("entry 3")), "{error}");
    }
    assert_eq!(answers(a).await, [(2, "a=1".into())]);
    assert_eq!(answers(b).await, [(4, "b=2".into())]);
    assert_eq!(applied(rig.event().await), 4);
    assert_eq!(*batches.lock().unwrap(), [[2, 4]]);
}

/// Entries before the failing one are answered; it and those behind it are undecided, also the
/// proposals of it that went well.
#[tokio::test(start_paused = true)]
async fn a_panic_or_fatal_error_ends_the_node_and_names_the_index() {
    for (command, said) in [("panic", "apply panicked: poison"), ("fatal", "disk on fire")] {
        let mut rig = Rig::new(Scripted::default());
        let (a, bad, c) =
            (rig.apply(2, &["a"]), rig.apply(7, &["b", command, "c"]), rig.apply(8, &["d"]));
        let read = rig.query(Some("state"));
        assert_eq!(answers(a).await, [(2, "a=1".into())]);
        for waiter in bad.into_iter().chain(c) {
            assert_unknown(waiter).await;
        }
        assert!(matches!(read.wait(LONG).await.unwrap_err(), Error::ShuttingDown));
        let mut classes = super::super::inbox::Classes::default();
        rig.parts.inbox.take(&mut classes);
        assert!(classes.completions.is_empty(), "the batch does not count as applied");
        rig.events.clear();
        let error = rig.fatal().await;
        let Error::StoreFailed { index, reason, remedy } = error else { panic!("{error}") };
        assert_eq!((index, reason.as_str()), (7, said));
        assert!(remedy.contains("skip_apply"), "{remedy}");
    }
}

/// A Store of the four methods only.
struct Plain(usize);

#[async_trait]
impl Store for Plain {
    async fn apply(&mut self, message: &[u8]) -> Result<Vec<u8>> {
        assert_ne!(message, b"panic", "poison");
        self.0 += 1;
        Ok(vec![])
    }

    async fn query(&self, _query: &[u8]) -> Result<Vec<u8>> {
        Ok(vec![])
    }

    async fn snapshot(&self) -> Result<Vec<u8>> {
        Ok(vec![])
    }

    async fn restore(&mut self, _snapshot: &[u8]) -> Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_poison_command_is_named_without_a_batch_of_the_stores_own() {
    let Rig { parts, .. } = Rig::new(Scripted::default());
    let (applier, task) =
        Applier::spawn(&Handle::current(), Plain(0), 1, &Config::default(), parts.clone());
    let ((a, good), (b, bad)) = (entry(2, &["a"]), entry(3, &["b", "panic"]));
    applier.push(Job::Apply(vec![a, b]));
    assert_eq!(answers(good).await, [(2, String::new())]);
    for waiter in bad {
        assert_unknown(waiter).await;
    }
    let error = parts.fatal.wait().await;
    assert!(matches!(error, Error::StoreFailed { index: 3, .. }), "{error}");
    assert!(error.to_string().contains("poison"), "{error}");
    assert!(task.await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_wrong_number_of_answers_ends_the_node() {
    for (batching, said) in [
        (Batching::OneShort, "gave 2 answers to 3 proposals"),
        (Batching::OneMore, "gave 4 answers to 3 proposals"),
        (Batching::Panic, "apply_batch panicked: batch (in the batch of entries 2 to 3)"),
    ] {
        let rig = Rig::new(Scripted { batching, ..Scripted::default() });
        for waiter in [rig.apply(2, &["a", "b"]), rig.apply(3, &["c"])].into_iter().flatten() {
            assert_unknown(waiter).await;
        }
        let error = rig.fatal().await;
        assert!(matches!(error, Error::StoreFailed { index: 2, .. }), "{error}");
        assert!(error.to_string().contains(said), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_entry_is_never_given_to_the_store_twice() {
    let rig = Rig::new(Scripted::default());
    drop((rig.apply(3, &["a"]), rig.apply(3, &["a"])));
    let error = rig.fatal().await;
    assert!(error.to_string().contains("entry 3 was to be applied behind 3"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn queries_run_beside_each_other_and_applies_wait_for_them() {
    let mut rig = Rig::new(Scripted::default());
    let before = rig.apply(2, &["a"]);
    let (one, two) = (rig.query(Some("meet")), rig.query(Some("meet")));
    let after = rig.apply(3, &["b"]);
    let later = rig.query(Some("state"));
    assert_eq!(answers(before).await.len(), 1);
    assert_eq!(text(one.wait(LONG).await.unwrap()), (2, "a".into()));
    assert_eq!(text(two.wait(LONG).await.unwrap()), (2, "a".into()));
    assert_eq!(answers(after).await, [(3, "b=2".into())]);
    assert_eq!(text(later.wait(LONG).await.unwrap()), (3, "a,b".into()));
    assert_eq!((applied(rig.event().await), applied(rig.event().await)), (2, 3));
}

#[tokio::test(start_paused = true)]
async fn a_hanging_query_is_cancelled_and_applies_go_on() {
    let rig = Rig::new(Scripted::default());
    let started = tokio::time::Instant::now();
    let hanging = rig.query(Some("hang"));
    let after = rig.apply(2, &["a"]);
    assert_eq!(answers(after).await, [(2, "a=1".into())]);
    assert_eq!(started.elapsed().as_secs(), Config::default().request_timeout.as_secs());
    assert!(matches!(hanging.wait(LONG).await.unwrap_err(), Error::Timeout));
    assert_eq!(rig.finish().await.unwrap().state, ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_query_that_fails_or_panics_concerns_its_caller_only() {
    let rig = Rig::new(Scripted::default());
    for (query, said) in [
        ("refuse", "unknown key"),
        ("panic", "query panicked: bad query"),
        ("late panic", "query panicked: bad query"),
    ] {
        let error = rig.query(Some(query)).wait(LONG).await.unwrap_err();
        assert!(matches!(error, Error::Rejected(ref why) if why == said), "{error}");
    }
    assert_eq!(answers(rig.apply(2, &["a"])).await, [(2, "a=1".into())]);
    assert!(!rig.parts.fatal.is_reported());
}

#[tokio::test(start_paused = true)]
async fn a_barrier_answers_with_the_applied_index() {
    let rig = Rig::new(Scripted::default());
    assert_eq!(text(rig.query(None).wait(LONG).await.unwrap()), (1, String::new()));
    drop(rig.apply(5, &["a"]));
    assert_eq!(text(rig.query(None).wait(LONG).await.unwrap()), (5, String::new()));
}

/// Index and data are one cut, and the disk, however slow, holds up no apply.
#[tokio::test(start_paused = true)]
async fn a_snapshot_is_one_cut_while_applies_go_on() {
    let mut rig = Rig::new(Scripted::default());
    rig.disk.hold(true);
    drop(rig.apply(2, &["a", "b"]));
    rig.capture(3);
    drop(rig.apply(4, &["c"]));
    let read = rig.query(Some("state"));
    assert_eq!(text(read.wait(LONG).await.unwrap()), (4, "a,b,c".into()));
    assert_eq!((applied(rig.event().await), applied(rig.event().await)), (2, 4));
    rig.disk.hold(false);
    let Event::SnapshotBuilt { meta } = rig.event().await else { panic!("not built") };
    assert_eq!((meta.position, &meta.membership), (Position { index: 3, term: 2 }, &membership()));
    let file = rig.parts.snapshots.open_snapshot(meta.position).unwrap();
    assert_eq!(file.meta(), &meta);
    assert_eq!(file.read_all().unwrap(), b"a,b");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_fails_is_told_and_the_node_goes_on() {
    for reason in ["panic", "out of memory"] {
        let mut rig = Rig::new(Scripted { snapshot: Some(reason), ..Scripted::default() });
        rig.capture(2);
        assert!(matches!(rig.event().await, Event::SnapshotFailed));
        assert_eq!(answers(rig.apply(3, &["a"])).await.len(), 1);
    }
    let mut rig = Rig::new(Scripted::default());
    rig.disk.fail(Some(Failing::Sync));
    rig.capture(2);
    assert!(matches!(rig.event().await, Event::SnapshotFailed));
    assert!(rig.disk.names().is_empty());
    assert!(!rig.parts.fatal.is_reported());
}

#[tokio::test(start_paused = true)]
async fn an_installed_snapshot_replaces_the_state_at_its_place_in_the_order() {
    let mut rig = Rig::new(Scripted::default());
    drop(rig.apply(2, &["a"]));
    let hanging = rig.query(Some("hang"));
    let meta = rig.install(9, b"x,y");
    let read = rig.query(Some("state"));
    drop(rig.apply(10, &["z"]));
    assert_eq!(text(read.wait(LONG).await.unwrap()), (9, "x,y".into()));
    assert!(hanging.wait(LONG).await.is_err());
    assert_eq!(applied(rig.event().await), 2);
    let Event::Installed { index } = rig.event().await else { panic!("not installed") };
    assert_eq!(index, meta.position.index);
    assert_eq!(applied(rig.event().await), 10);
    assert_eq!(rig.finish().await.unwrap().state, ["x", "y", "z"]);
}

#[tokio::test(start_paused = true)]
async fn a_restore_that_fails_ends_the_node_and_names_index_and_remedy() {
    for (state, said) in
        [(&b"panic"[..], "restore panicked: poisoned state"), (b"error", "restore failed: ")]
    {
        let rig = Rig::new(Scripted::default());
        rig.install(9, state);
        let error = rig.fatal().await;
        assert!(matches!(error, Error::StoreFailed { index: 9, .. }), "{error}");
        assert!(error.to_string().contains(said), "{error}");
        assert!(error.to_string().contains("restored again"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_snapshot_is_never_restored() {
    let rig = Rig::new(Scripted::default());
    let meta = rig.install(9, b"x,y");
    let name = rig.disk.names().remove(0);
    let mut bytes = rig.disk.bytes(&name);
    *bytes.last_mut().unwrap() ^= 1;
    rig.disk.put(format!("/snap/{name}"), bytes);
    assert_eq!(meta.size, 3);
    let error = rig.fatal().await;
    let Error::Storage(StorageError::Corrupt { path, .. }) = &error else { panic!("{error}") };
    assert!(path.ends_with(&name));
}

#[tokio::test(start_paused = true)]
async fn finishing_does_what_was_pushed_before_and_drops_the_rest() {
    let store = Scripted::default();
    let gate = store.gate.clone();
    let rig = Rig::new(store);
    let (slow, more) = (rig.apply(2, &["gated"]), rig.apply(3, &["b"]));
    tokio::task::yield_now().await;
    rig.applier.finish();
    let late = rig.apply(4, &["c"]);
    gate.add_permits(1);
    assert_eq!(answers(slow).await, [(2, "gated=1".into())]);
    assert_eq!(answers(more).await, [(3, "b=2".into())]);
    for waiter in late {
        assert_unknown(waiter).await;
    }
    assert!(!rig.parts.fatal.is_reported());
    assert_eq!(rig.task.await.unwrap().unwrap().state, ["gated", "b"]);
}

#[test]
fn the_end_of_the_users_runtime_is_told() {
    let users = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let rig = users.block_on(async { Rig::new(Scripted::default()) });
    let waiters = rig.apply(2, &["gated"]);
    users.block_on(tokio::task::yield_now());
    assert!(!rig.parts.fatal.is_reported());
    drop(users);
    let own = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    own.block_on(async {
        let error = rig.parts.fatal.wait().await;
        assert!(error.to_string().contains("runtime"), "{error}");
        for waiter in waiters.into_iter().chain(rig.apply(3, &["late"])) {
            assert_unknown(waiter).await;
        }
    });
}

/// Counts warnings by message.
#[derive(Clone, Debug, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl Drain for Warnings {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &slog::Record<'_>, _: &slog::OwnedKVList) -> Result<(), slog::Never> {
        self.0.lock().unwrap().push(record.msg().to_string());
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_store_is_warned_about_but_not_over_and_over() {
    let warnings = Warnings::default();
    let rig =
        Rig::with(Scripted::default(), &Config::default(), Logger::root(warnings.clone(), o!()));
    assert_eq!(answers(rig.apply(2, &["quick"])).await.len(), 1);
    assert!(warnings.0.lock().unwrap().is_empty());
    assert_eq!(answers(rig.apply(3, &["slow"])).await.len(), 1);
    // At 1 s, 15 s and 31 s; those at 3 s and 7 s, and the one at its end, are too many.
    assert_eq!(*warnings.0.lock().unwrap(), ["the store is still busy"; 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_never_go_back_on_a_multi_thread_runtime() {
    let rig = Rig::new(Scripted::default());
    let mut waiters = Vec::new();
    for index in 2..500 {
        waiters.extend(rig.apply(index, &["a", "b"]));
        waiters.push(rig.query(None));
        for _ in 0..2 {
            waiters.push(rig.query(Some("meet")));
        }
        tokio::task::yield_now().await;
    }
    let mut last = 0;
    for waiter in waiters {
        let index = waiter.wait(LONG).await.unwrap().index;
        assert!(index >= last, "{index} after {last}");
        last = index;
    }
    assert_eq!(rig.finish().await.unwrap().state.len(), 2 * 498);
}
