//! Concurrent clients: a few on every node, all on the same few keys, which are retired one after
//! another so that a checker copes.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use raftline::testing::rng::Rng;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::Failure;
use crate::client::{Client, Response};
use crate::history::{History, Op, Outcome, Record};
use crate::patience::Patience;

/// Keys in use at a time.
const KEYS: u64 = 8;
/// Operations on a key before another takes its place.
const PER_KEY: usize = 100;
/// Clients on every node.
pub(crate) const PER_NODE: usize = 4;
/// Longer than a node's own deadline for a request.
const PATIENCE: Duration = Duration::from_millis(2_500);
/// A read must have been answered within this, after however many tries.
const PATIENT: Duration = Duration::from_secs(60);
/// Before a node that cannot be reached is tried again.
const PAUSE: Duration = Duration::from_millis(50);

/// One key in use, and what was last seen there: the guess of comparisons.
#[derive(Clone, Debug, Default)]
struct Slot {
    generation: usize,
    operations: usize,
    seen: Option<String>,
}

/// What the clients of a run share.
#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) history: History,
    slots: Mutex<Vec<Slot>>,
    keys: Mutex<Vec<String>>,
    values: AtomicU64,
    /// Operations done.
    pub(crate) done: AtomicUsize,
    /// Writes acknowledged.
    pub(crate) acknowledged: AtomicUsize,
    stop: AtomicBool,
    /// Between two operations of one client, in microseconds.
    think_us: AtomicU64,
}

impl Workload {
    pub(crate) fn new(think: Duration) -> Self {
        Self {
            history: History::new(),
            slots: Mutex::new(vec![Slot::default(); KEYS as usize]),
            keys: Mutex::default(),
            values: AtomicU64::new(0),
            done: AtomicUsize::new(0),
            acknowledged: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            think_us: AtomicU64::new(crate::history::micros(think)),
        }
    }

    /// Changes the pace.
    pub(crate) fn think(&self, think: Duration) {
        self.think_us.store(crate::history::micros(think), Ordering::Relaxed);
    }

    /// Ends the clients after what they are doing.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Every key ever used.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts the clients: some on every node.
    pub(crate) fn spawn(
        self: &Arc<Self>,
        nodes: &[(u64, String)],
        rng: &mut Rng,
    ) -> JoinSet<Result<(), Failure>> {
        let mut clients = JoinSet::new();
        for n in 0..nodes.len() * PER_NODE {
            let (node, addr) = nodes[n % nodes.len()].clone();
            let rng = Rng::new(rng.next_u64());
            // NB: half of the clients of a node read only. A client with a write soon waits on a
            // leader that was cut off, and then nobody would be left to see it answer stale reads.
            // And often: such a leader soon finds out.
            let reader = (n / nodes.len()).is_multiple_of(2);
            let (reads, pace) = if reader { (100, 0.625) } else { (20, 2.5) };
            let client = Numbered { number: n, node, reads, pace, client: Client::new(addr) };
            clients.spawn(run(Arc::clone(self), client, rng));
        }
        clients
    }

    /// A key in use, and what was last seen there.
    fn pick(&self, rng: &mut Rng) -> (usize, String, Option<String>) {
        let slot = usize::try_from(rng.below(KEYS)).unwrap_or(0);
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let s = &mut slots[slot];
        if s.operations == PER_KEY {
            *s = Slot { generation: s.generation + 1, ..Slot::default() };
        }
        let key = format!("k{slot}-{}", s.generation);
        if s.operations == 0 {
            self.keys.lock().unwrap_or_else(PoisonError::into_inner).push(key.clone());
        }
        s.operations += 1;
        (slot, key, s.seen.clone())
    }

    fn saw(&self, slot: usize, key: &str, value: Option<String>) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let s = &mut slots[slot];
        if key == format!("k{slot}-{}", s.generation) {
            s.seen = value;
        }
    }

    fn fresh(&self) -> String {
        format!("v{}.", self.values.fetch_add(1, Ordering::Relaxed))
    }

    fn draw(&self, rng: &mut Rng, reads: u64, seen: Option<String>) -> Op {
        if rng.below(100) < reads {
            return Op::Get;
        }
        match rng.below(100) {
            0..35 => Op::Put { value: self.fresh() },
            35..45 => Op::Delete,
            45..65 => Op::Append { value: self.fresh() },
            _ => Op::CompareAndSet { expected: seen, value: self.fresh() },
        }
    }
}

/// A client and what it does.
struct Numbered {
    number: usize,
    node: u64,
    /// How many of a hundred operations are reads.
    reads: u64,
    /// How long it thinks, as a share of what clients think on average.
    pace: f64,
    client: Client,
}

async fn run(work: Arc<Workload>, client: Numbered, mut rng: Rng) -> Result<(), Failure> {
    let Numbered { number, node, reads, pace, mut client } = client;
    let mut life = 0;
    while !work.stop.load(Ordering::Relaxed) {
        // Before the operation begins: what cannot be sent is no operation.
        match timeout(PATIENCE, client.open()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => {
                sleep(PAUSE).await;
                continue;
            }
        }
        let (slot, key, seen) = work.pick(&mut rng);
        let op = work.draw(&mut rng, reads, seen);
        let name = number + life * 1000;
        let outcome = perform(&work.history, &mut client, name, node, &key, op.clone()).await?;
        if matches!(outcome, Outcome::Written { .. }) {
            work.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        match (&outcome, op) {
            (Outcome::Read { value, .. }, _) => work.saw(slot, &key, value.clone()),
            (Outcome::Written { changed: true, .. }, Op::Put { value })
            | (Outcome::Written { changed: true, .. }, Op::CompareAndSet { value, .. }) => {
                work.saw(slot, &key, Some(value));
            }
            (Outcome::Written { changed: true, .. }, Op::Delete) => work.saw(slot, &key, None),
            (Outcome::Unknown, _) => life += 1,
            (Outcome::NotApplied, _) => sleep(PAUSE).await,
            (Outcome::Written { .. }, _) => {}
        }
        work.done.fetch_add(1, Ordering::Relaxed);
        let think = work.think_us.load(Ordering::Relaxed);
        let think = Duration::from_micros(think / 2 + rng.below(think.max(1)));
        sleep(think.mul_f64(pace)).await;
    }
    Ok(())
}

/// Reads a key until there is an answer, through a node that has nothing against it: a machine
/// that others use may well be late for once. Each try is a client of its own.
///
/// # Errors
/// When there never is an answer, or it makes no sense.
pub(crate) async fn read(
    history: &History,
    client: &mut Client,
    number: &mut usize,
    node: u64,
    key: &str,
) -> Result<Option<String>, Failure> {
    let mut patience = Patience::new(PATIENT);
    loop {
        *number -= 1;
        let last = match client.open().await {
            Ok(()) => match perform(history, client, *number, node, key, Op::Get).await? {
                Outcome::Read { value, .. } => return Ok(value),
                failed => format!("{failed:?}"),
            },
            Err(e) => e.to_string(),
        };
        if patience.is_over() {
            let what = format!("node {node} did not tell {key} within {PATIENT:?}: {last}");
            return Err(what.into());
        }
        sleep(PAUSE).await;
    }
}

/// What a node itself holds of a key, whatever the others do; no operation of the history.
///
/// # Errors
/// When it never tells.
pub(crate) async fn read_own(
    client: &mut Client,
    node: u64,
    key: &str,
) -> Result<Option<String>, Failure> {
    let mut patience = Patience::new(PATIENT);
    loop {
        let last = match client.request("GET", &format!("/kv/{key}?stale"), b"").await {
            Ok(response) if response.status == 200 => {
                return Ok(Some(String::from_utf8(response.body)?));
            }
            Ok(response) if response.status == 404 => return Ok(None),
            Ok(response) => response.text(),
            Err(e) => e.to_string(),
        };
        if patience.is_over() {
            return Err(format!("node {node} does not tell its {key}: {last}").into());
        }
        sleep(PAUSE).await;
    }
}

/// Does one operation and records it.
///
/// # Errors
/// When the answer makes no sense.
pub(crate) async fn perform(
    history: &History,
    client: &mut Client,
    number: usize,
    node: u64,
    key: &str,
    op: Op,
) -> Result<Outcome, Failure> {
    let (method, query, body) = match &op {
        Op::Get => ("GET", String::new(), ""),
        Op::Put { value } => ("PUT", String::new(), value.as_str()),
        Op::Delete => ("DELETE", String::new(), ""),
        Op::Append { value } => ("POST", String::new(), value.as_str()),
        Op::CompareAndSet { expected: Some(old), value } => {
            ("PUT", format!("?if={old}"), value.as_str())
        }
        Op::CompareAndSet { expected: None, value } => {
            ("PUT", "?if-absent".to_owned(), value.as_str())
        }
    };
    let path = format!("/kv/{key}{query}");
    let invoked = history.now();
    let answer = timeout(PATIENCE, client.request(method, &path, body.as_bytes())).await;
    let returned = history.now();
    let outcome = match answer {
        // Lost on the way there or back, or too late.
        Ok(Err(_)) | Err(_) => Outcome::Unknown,
        Ok(Ok(response)) => understand(&op, &response)
            .map_err(|e| format!("{method} {path} on node {node}: {e}"))?,
    };
    let record = Record {
        client: number,
        node,
        key: key.to_owned(),
        op,
        invoked,
        returned,
        outcome: outcome.clone(),
    };
    history.push(record);
    Ok(outcome)
}

fn understand(op: &Op, response: &Response) -> Result<Outcome, Failure> {
    let nonsense = || -> Failure { response.text().into() };
    if *op == Op::Get {
        return match response.status {
            200 | 404 if response.index == 0 => Err(nonsense()),
            200 => {
                let value = Some(String::from_utf8(response.body.clone())?);
                Ok(Outcome::Read { index: response.index, value })
            }
            404 => Ok(Outcome::Read { index: response.index, value: None }),
            // A read that failed told nothing, whatever the reason.
            429 | 503 | 504 => Ok(Outcome::NotApplied),
            _ => Err(nonsense()),
        };
    }
    match (response.outcome.as_str(), response.status) {
        ("applied", 200 | 412) if response.index > 0 => {
            let body: serde_json::Value = serde_json::from_slice(&response.body)?;
            let flag = |name: &str| body[name].as_bool().ok_or_else(nonsense);
            let (existed, changed) = (flag("existed")?, flag("changed")?);
            Ok(Outcome::Written { index: response.index, existed, changed })
        }
        ("not-applied", 429 | 503 | 504) => Ok(Outcome::NotApplied),
        ("unknown", 504) => Ok(Outcome::Unknown),
        _ => Err(nonsense()),
    }
}
