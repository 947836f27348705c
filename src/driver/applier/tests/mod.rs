//! The apply task against Stores that are slow, broken, hanging or wrong: the Store that does what
//! its commands say, and the rig around it.
#![expect(clippy::unwrap_used, reason = "tests")]

mod applies;
mod ends;
mod reads;

use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use async_trait::async_trait;
use bytes::Bytes;
use slog::{Discard, Drain, o};
use tokio::sync::{Barrier, Semaphore};

use super::*;
use crate::driver::capture::write_snapshot;
use crate::driver::inbox::Classes;
use crate::driver::wait_for::wait_for;
use crate::error::StorageError;
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
            // Of the test's own clock, which is paused.
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
            b"meet" => _ = self.barrier.wait().await,
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

    /// The next completion, in order.
    async fn event(&mut self) -> Event {
        if self.events.is_empty() {
            let inbox = &self.parts.inbox;
            self.events = wait_for("a completion", || {
                let mut classes = Classes::default();
                inbox.take(&mut classes);
                Some(classes.completions).filter(|c| !c.is_empty())
            })
            .await;
        }
        self.events.remove(0)
    }

    async fn finish(self) -> Option<Scripted> {
        self.applier.finish();
        self.task.await.unwrap()
    }

    /// The node's end: the error, and that nobody gets the Store any more.
    async fn fatal(self) -> Error {
        let error = tokio::time::timeout(LONG, self.parts.fatal.wait()).await.unwrap();
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
