//! Closed-loop clients, each with one call in flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use raftline::Mailbox;
use serde::{Deserialize, Serialize};

const KEYS: u64 = 100_000;

#[derive(Clone, Serialize, Deserialize)]
pub struct Cell {
    pub clients: usize,
    pub payload: usize,
    /// Percent of the calls that read.
    pub reads: u64,
    /// Proposals per call; 1: `propose`, more: `propose_many`.
    pub batch: usize,
    pub warm_ms: u64,
    pub run_ms: u64,
}

#[derive(Serialize, Deserialize, Default)]
pub struct Outcome {
    pub ops: u64,
    pub ops_s: f64,
    pub p50_us: u32,
    pub p99_us: u32,
    pub p999_us: u32,
    pub max_us: u32,
    pub errors: u64,
    pub first_error: String,
}

pub fn command(key: u64, len: usize) -> Vec<u8> {
    let mut out = vec![b'x'; len];
    out[..8].copy_from_slice(&key.to_le_bytes());
    out
}

struct Client {
    mailbox: Mailbox,
    cell: Cell,
    state: u64,
    latencies: Vec<u32>,
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
                Ok(()) if counts => self.latencies.push((after - before).as_micros() as u32),
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

pub async fn run(mailbox: &Mailbox, cell: &Cell) -> Outcome {
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

pub fn quantile(sorted: &[u32], q: f64) -> u32 {
    let at = (sorted.len() as f64 * q).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or(0)
}
