//! Closed-loop clients, each with one call in flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use raftline::Mailbox;
use serde::{Deserialize, Serialize};

use crate::open;

pub(crate) const KEYS: u64 = 100_000;

#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct Cell {
    pub(crate) clients: usize,
    pub(crate) payload: usize,
    /// Percent of the calls that read.
    pub(crate) reads: u64,
    /// Proposals per call; 1: `propose`, more: `propose_many`.
    pub(crate) batch: usize,
    /// Calls that begin each second, by nobody's leave; 0: `clients` with one call in flight each.
    pub(crate) rate: u64,
    pub(crate) warm_ms: u64,
    pub(crate) run_ms: u64,
}

#[derive(Serialize, Deserialize, Default)]
pub(crate) struct Outcome {
    pub(crate) ops: u64,
    pub(crate) ops_s: f64,
    pub(crate) p50_us: u32,
    pub(crate) p99_us: u32,
    pub(crate) p999_us: u32,
    pub(crate) max_us: u32,
    pub(crate) errors: u64,
    pub(crate) first_error: String,
    /// Of an open loop: calls that were begun each second, and those that were refused as overload.
    pub(crate) offered_s: f64,
    pub(crate) refusals: u64,
    pub(crate) refusal_p99_us: u32,
    /// What came back well in each second.
    pub(crate) per_second: Vec<u64>,
}

pub(crate) fn command(key: u64, len: usize) -> Vec<u8> {
    let mut out = vec![b'x'; len];
    out[..8].copy_from_slice(&key.to_le_bytes());
    out
}

struct Client {
    mailbox: Mailbox,
    cell: Cell,
    state: u64,
    latencies: Vec<u32>,
    per_second: Vec<u64>,
    errors: u64,
    first_error: String,
}

impl Client {
    /// Spread, not randomness: xorshift.
    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    async fn call(&mut self) -> Result<(), raftline::Error> {
        let draw = self.next();
        let key = draw % KEYS;
        if (draw >> 32) % 100 < self.cell.reads {
            return self.mailbox.query(key.to_le_bytes().to_vec()).await.map(|_| ());
        }
        if self.cell.batch == 1 {
            return self.mailbox.propose(command(key, self.cell.payload)).await.map(|_| ());
        }
        let commands: Vec<_> =
            (0..self.cell.batch as u64).map(|i| command(key + i, self.cell.payload)).collect();
        let outcomes = self.mailbox.propose_many(commands).await;
        outcomes.into_iter().find_map(Result::err).map_or(Ok(()), Err)
    }

    async fn run(mut self, begin: Instant, end: Instant, stop: Arc<AtomicBool>) -> Self {
        while !stop.load(Ordering::Relaxed) {
            let before = Instant::now();
            let result = self.call().await;
            let after = Instant::now();
            let counts = after >= begin && after < end;
            match result {
                Ok(()) if counts => {
                    self.latencies.push((after - before).as_micros() as u32);
                    let second = (after - begin).as_secs() as usize;
                    self.per_second.resize(self.per_second.len().max(second + 1), 0);
                    self.per_second[second] += self.cell.batch.max(1) as u64;
                }
                Ok(()) => {}
                Err(e) => {
                    self.errors += u64::from(counts);
                    if self.first_error.is_empty() {
                        self.first_error = e.to_string();
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
        self
    }
}

pub(crate) async fn run(mailbox: &Mailbox, cell: &Cell) -> Outcome {
    if cell.rate > 0 {
        return open::run(mailbox, cell).await;
    }
    let begin = Instant::now() + Duration::from_millis(cell.warm_ms);
    let end = begin + Duration::from_millis(cell.run_ms);
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (1..=cell.clients as u64)
        .map(|n| {
            let client = Client {
                mailbox: mailbox.clone(),
                cell: cell.clone(),
                state: n.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
                latencies: Vec::new(),
                per_second: Vec::new(),
                errors: 0,
                first_error: String::new(),
            };
            tokio::spawn(client.run(begin, end, stop.clone()))
        })
        .collect();
    tokio::time::sleep_until(end.into()).await;
    stop.store(true, Ordering::Relaxed);
    let mut all = Vec::new();
    let mut out = Outcome::default();
    for client in clients {
        let client = client.await.unwrap();
        all.extend(client.latencies);
        out.per_second.resize(out.per_second.len().max(client.per_second.len()), 0);
        for (sum, n) in out.per_second.iter_mut().zip(client.per_second) {
            *sum += n;
        }
        out.errors += client.errors;
        if out.first_error.is_empty() {
            out.first_error = client.first_error;
        }
    }
    all.sort_unstable();
    out.ops = all.len() as u64 * cell.batch.max(1) as u64;
    out.ops_s = out.ops as f64 / (cell.run_ms as f64 / 1e3);
    out.p50_us = quantile(&all, 0.5);
    out.p99_us = quantile(&all, 0.99);
    out.p999_us = quantile(&all, 0.999);
    out.max_us = all.last().copied().unwrap_or(0);
    out
}

pub(crate) fn quantile(sorted: &[u32], q: f64) -> u32 {
    let at = (sorted.len() as f64 * q).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or(0)
}
