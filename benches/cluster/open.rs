//! Open-loop clients: calls begin at a rate, whether earlier ones have come back or not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use raftline::{Error, Mailbox};

use crate::load::{Cell, KEYS, Outcome, command};

const STEP: Duration = Duration::from_millis(1);

/// Counts by duration: a bucket per microsecond up to a millisecond, then 1 % wide, up to a minute.
struct Histogram(Vec<AtomicU32>);

impl Histogram {
    fn new() -> Self {
        Self((0..2200).map(|_| AtomicU32::new(0)).collect())
    }

    fn add(&self, us: u64) {
        let at = match us {
            0..1000 => us as usize,
            _ => 1000 + ((us as f64 / 1000.0).ln() / 1.01f64.ln()) as usize,
        };
        self.0[at.min(self.0.len() - 1)].fetch_add(1, Ordering::Relaxed);
    }

    fn quantile(&self, q: f64) -> u32 {
        let counts: Vec<u64> = self.0.iter().map(|c| c.load(Ordering::Relaxed).into()).collect();
        let rank = (counts.iter().sum::<u64>() as f64 * q).ceil() as u64;
        let mut seen = 0;
        for (at, count) in counts.iter().enumerate() {
            seen += count;
            if seen >= rank.max(1) {
                return if at < 1000 {
                    at as u32
                } else {
                    (1000.0 * 1.01f64.powi(at as i32 - 999)) as u32
                };
            }
        }
        0
    }
}

struct Seen {
    accepted: Histogram,
    refused: Histogram,
    refusals: AtomicU64,
    failures: AtomicU64,
    per_second: Vec<AtomicU64>,
    first_error: std::sync::Mutex<String>,
}

/// Calls at `cell.rate` a second for `cell.run_ms` after `cell.warm_ms`.
pub(crate) async fn run(mailbox: &Mailbox, cell: &Cell) -> Outcome {
    let begin = Instant::now() + Duration::from_millis(cell.warm_ms);
    let end = begin + Duration::from_millis(cell.run_ms);
    let seen = Arc::new(Seen {
        accepted: Histogram::new(),
        refused: Histogram::new(),
        refusals: AtomicU64::new(0),
        failures: AtomicU64::new(0),
        per_second: (0..=cell.run_ms / 1000).map(|_| AtomicU64::new(0)).collect(),
        first_error: std::sync::Mutex::default(),
    });
    let over = Arc::new(AtomicBool::new(false));
    let (started, mut offered, mut key) = (Instant::now(), 0u64, 1u64);
    let mut steps = tokio::time::interval(STEP);
    while Instant::now() < end {
        steps.tick().await;
        let due = (started.elapsed().as_secs_f64() * cell.rate as f64) as u64;
        for _ in offered..due {
            key =
                key.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (mailbox, command) = (mailbox.clone(), command((key >> 33) % KEYS, cell.payload));
            let before = Instant::now();
            let mut call = Box::pin(async move { mailbox.propose(command).await.map(|_| ()) });
            // A refusal comes at once, or the runtime would be what is overloaded.
            let at_once = futures::poll!(call.as_mut());
            let (seen, over) = (seen.clone(), over.clone());
            let note = move |result| {
                if !over.load(Ordering::Relaxed) {
                    seen.note(result, before, begin);
                }
            };
            match at_once {
                Poll::Ready(result) => note(result),
                Poll::Pending => drop(tokio::spawn(async move { note(call.await) })),
            }
        }
        offered = due;
    }
    over.store(true, Ordering::Relaxed);
    let spent = started.elapsed().as_secs_f64();
    let per_second: Vec<u64> = seen
        .per_second
        .iter()
        .map(|n| n.load(Ordering::Relaxed))
        .take((cell.run_ms / 1000) as usize)
        .collect();
    let ops = per_second.iter().sum::<u64>();
    Outcome {
        ops,
        ops_s: ops as f64 / (cell.run_ms as f64 / 1e3),
        p50_us: seen.accepted.quantile(0.5),
        p99_us: seen.accepted.quantile(0.99),
        p999_us: seen.accepted.quantile(0.999),
        max_us: seen.accepted.quantile(1.0),
        errors: seen.failures.load(Ordering::Relaxed),
        first_error: seen.first_error.lock().unwrap().clone(),
        offered_s: offered as f64 / spent,
        refusals: seen.refusals.load(Ordering::Relaxed),
        refusal_p99_us: seen.refused.quantile(0.99),
        per_second,
    }
}

impl Seen {
    fn note(&self, result: Result<(), Error>, before: Instant, begin: Instant) {
        let now = Instant::now();
        // Answers count from then on, latencies of what began before do not.
        if result.is_ok()
            && let Some(since) = now.checked_duration_since(begin)
            && let Some(n) = self.per_second.get(since.as_secs() as usize)
        {
            n.fetch_add(1, Ordering::Relaxed);
        }
        if before < begin {
            return;
        }
        let us = (now - before).as_micros() as u64;
        match result {
            Ok(()) => self.accepted.add(us),
            Err(Error::Overloaded { .. }) => {
                self.refused.add(us);
                self.refusals.fetch_add(1, Ordering::Relaxed);
            }
            Err(e) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                let mut first = self.first_error.lock().unwrap();
                if first.is_empty() {
                    *first = e.to_string();
                }
            }
        }
    }
}
