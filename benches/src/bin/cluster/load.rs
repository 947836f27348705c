//! Closed-loop clients: each has one call in flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use raftline::Mailbox;
use tokio::task::JoinSet;

use crate::Failure;
use crate::procfs::cpu_seconds;
use crate::protocol::{Load, Loaded};
use crate::recorder::Recorder;
use crate::store::put;

const WARM_UP: Duration = Duration::from_secs(1);
const KEYS: u64 = 100_000;
/// A client whose call failed waits this long: it would only spin otherwise.
const PAUSE: Duration = Duration::from_millis(1);

const WARMING: u8 = 0;
const MEASURING: u8 = 1;
const OVER: u8 = 2;

#[derive(Default)]
struct Seen {
    latencies: Recorder,
    failed: u64,
    first_failure: Option<String>,
}

pub(crate) async fn run(mailbox: &Mailbox, load: &Load) -> Result<Loaded, Failure> {
    let phase = Arc::new(AtomicU8::new(WARMING));
    let mut clients = JoinSet::new();
    for n in 0..load.clients {
        clients.spawn(client(mailbox.clone(), load.clone(), phase.clone(), n as u64));
    }
    tokio::time::sleep(WARM_UP).await;
    let before = cpu_of(&load.pids)?;
    let started = Instant::now();
    phase.store(MEASURING, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(load.seconds)).await;
    phase.store(OVER, Ordering::Relaxed);
    let seconds = started.elapsed().as_secs_f64();
    let after = cpu_of(&load.pids)?;

    let mut all = Seen::default();
    while let Some(seen) = clients.join_next().await {
        let seen = seen?;
        all.latencies.add(&seen.latencies);
        all.failed += seen.failed;
        all.first_failure = all.first_failure.or(seen.first_failure);
    }
    Ok(Loaded {
        operations: all.latencies.total(),
        failed: all.failed,
        first_failure: all.first_failure,
        seconds,
        p50_us: all.latencies.quantile_us(0.5),
        p99_us: all.latencies.quantile_us(0.99),
        p999_us: all.latencies.quantile_us(0.999),
        cpu_seconds: after.iter().zip(before).map(|(after, before)| after - before).collect(),
    })
}

fn cpu_of(pids: &[u32]) -> Result<Vec<f64>, Failure> {
    pids.iter().map(|pid| cpu_seconds(*pid)).collect()
}

async fn client(mailbox: Mailbox, load: Load, phase: Arc<AtomicU8>, n: u64) -> Seen {
    let value = vec![b'v'; load.payload];
    let mut seen = Seen::default();
    let mut random = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    loop {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let is_read = random % 100 < load.percent_reads;
        let key = (random >> 8) % KEYS;
        let began_in = phase.load(Ordering::Relaxed);
        let began = Instant::now();
        let failure = if is_read {
            mailbox.query(key.to_le_bytes().to_vec()).await.err()
        } else if load.batch == 1 {
            mailbox.propose(put(key, &value)).await.err()
        } else {
            let puts = (0..load.batch as u64).map(|i| put((key + i) % KEYS, &value));
            mailbox.propose_many(puts).await.into_iter().find_map(Result::err)
        };
        let nanos = began.elapsed().as_nanos() as u64;
        // A call counts when all of it fell into the measured time.
        let counts = began_in == MEASURING && phase.load(Ordering::Relaxed) == MEASURING;
        if counts && failure.is_none() {
            seen.latencies.record(nanos, if is_read { 1 } else { load.batch as u64 });
        }
        if let Some(e) = failure {
            seen.failed += u64::from(counts);
            seen.first_failure.get_or_insert_with(|| e.to_string());
            tokio::time::sleep(PAUSE).await;
        }
        if phase.load(Ordering::Relaxed) == OVER {
            return seen;
        }
    }
}
