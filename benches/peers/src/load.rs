//! Closed-loop clients, each with one operation in flight.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use peers::results::{Measured, Op};
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, sleep_until};

use crate::histogram::Histogram;
use crate::kv::{self, KEYS};
use crate::node::Peer;
use crate::procfs;

/// What is still unanswered so long after the measured window counts as failed.
const GRACE: Duration = Duration::from_secs(1);
/// A client whose operation failed waits so long, or it would only spin.
const BACKOFF: Duration = Duration::from_millis(1);

/// How much, of what, for how long.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Load {
    /// What clients do.
    pub op: Op,
    /// How many.
    pub clients: usize,
    /// Bytes of a value.
    pub payload: usize,
    /// Before anything counts.
    pub warmup: Duration,
    /// While it counts.
    pub window: Duration,
    /// Whose processor time and memory are told.
    pub pids: Vec<u32>,
}

#[derive(Default)]
struct Tally {
    latencies: Histogram,
    errors: u64,
    first_error: String,
}

struct Client<P> {
    peer: P,
    op: Op,
    payload: usize,
    /// Spread, not randomness: xorshift.
    state: u64,
    tally: Arc<Mutex<Tally>>,
}

impl<P: Peer> Client<P> {
    fn key(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % KEYS
    }

    async fn run(mut self, begin: Instant, end: Instant, stop: Arc<AtomicBool>) {
        while !stop.load(Ordering::Relaxed) {
            let key = self.key();
            let before = Instant::now();
            let outcome = match self.op {
                Op::Put => self.peer.put(kv::put(key, self.payload)).await,
                Op::Get => self.peer.get(key).await.map(|_| ()),
            };
            let after = Instant::now();
            let failed = outcome.is_err();
            if after >= begin && after < end {
                let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
                match outcome {
                    Ok(()) => tally.latencies.add((after - before).as_micros() as u64),
                    Err(e) => {
                        tally.errors += 1;
                        if tally.first_error.is_empty() {
                            tally.first_error = e.to_string();
                        }
                    }
                }
            }
            if failed {
                sleep(BACKOFF).await;
            }
        }
    }
}

/// Runs the clients; an operation counts when its answer comes inside the window.
pub async fn run<P: Peer>(peer: &P, load: &Load) -> Measured {
    let begin = Instant::now() + load.warmup;
    let end = begin + load.window;
    let stop = Arc::new(AtomicBool::new(false));
    load.pids.iter().for_each(|pid| procfs::forget_peak(*pid));
    let clients: Vec<_> = (1..=load.clients as u64)
        .map(|n| {
            let tally = Arc::new(Mutex::new(Tally::default()));
            let client = Client {
                peer: peer.clone(),
                op: load.op,
                payload: load.payload,
                state: n.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
                tally: tally.clone(),
            };
            (tokio::spawn(client.run(begin, end, stop.clone())), tally)
        })
        .collect();
    let cpu = || load.pids.iter().map(|pid| procfs::cpu_seconds(*pid)).collect::<Vec<_>>();
    sleep_until(begin.into()).await;
    let before = cpu();
    sleep_until(end.into()).await;
    let late = end.elapsed();
    let spent = cpu().iter().zip(before).map(|(after, before)| after - before).collect();
    stop.store(true, Ordering::Relaxed);
    let mut all = Tally::default();
    for (mut task, tally) in clients {
        if tokio::time::timeout_at((end + late + GRACE).into(), &mut task).await.is_err() {
            task.abort();
            all.errors += 1;
            all.first_error = format!("no answer {} s after the window", GRACE.as_secs());
        }
        let one = tally.lock().unwrap_or_else(PoisonError::into_inner);
        all.latencies.merge(&one.latencies);
        all.errors += one.errors;
        if all.first_error.is_empty() {
            all.first_error.clone_from(&one.first_error);
        }
    }
    Measured { late_ms: late.as_millis() as u64, ..told(&all, load, spent) }
}

fn told(all: &Tally, load: &Load, spent: Vec<f64>) -> Measured {
    let ops = all.latencies.total() as f64;
    Measured {
        ops_s: ops / load.window.as_secs_f64(),
        p50_us: all.latencies.quantile(0.5),
        p99_us: all.latencies.quantile(0.99),
        p999_us: all.latencies.quantile(0.999),
        max_us: all.latencies.quantile(1.0),
        errors: all.errors,
        first_error: all.first_error.clone(),
        cpu_us_per_op: spent.iter().map(|seconds| seconds * 1e6 / ops.max(1.0)).collect(),
        peak_mib: load.pids.iter().map(|pid| procfs::peak_mib(*pid)).collect(),
        ..Measured::default()
    }
}
