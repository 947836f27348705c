//! One node in a process of its own, which does what it is told on stdin and answers on stdout.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use raftline::{Config, Durability, Mailbox, Raft};

use crate::Failure;
use crate::load;
use crate::protocol::{Answer, Request};
use crate::store::{Numbered, put};

/// Between two attempts of a probe. They overlap, so that one that is stuck delays none.
const PROBE_EVERY: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(crate) struct Flags {
    #[arg(long)]
    id: u64,
    #[arg(long)]
    addr: String,
    #[arg(long)]
    dir: PathBuf,
    #[arg(long)]
    memory: bool,
    /// A member of the cluster; without it this node leads.
    #[arg(long)]
    member: Option<String>,
}

pub(crate) fn run(flags: &Flags) -> Result<(), Failure> {
    let runtime = tokio::runtime::Runtime::new()?;
    let durability = if flags.memory { Durability::Volatile } else { Durability::Fsync };
    let config = Config { data_dir: Some(flags.dir.clone()), durability, ..Config::default() };
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let raft = Raft::new(flags.addr.as_str(), Numbered::default(), logger, config)?;
    let mailbox = raft.mailbox();
    let id = flags.id;
    let ended = match flags.member.clone() {
        None => runtime.spawn(raft.lead(id)),
        Some(member) => runtime.spawn(raft.join(id, flags.addr.clone(), None, member)),
    };
    runtime.spawn(async move {
        // Nobody asks a node that has failed; the driver finds its process gone.
        if let Ok(Err(e)) = ended.await {
            eprintln!("node {id}: {e}");
        }
        std::process::exit(1);
    });
    say(&Answer::Ready)?;
    for line in std::io::stdin().lock().lines() {
        let answer = runtime.block_on(answer(&mailbox, serde_json::from_str(&line?)?));
        say(&answer.unwrap_or_else(|e| Answer::Failed(e.to_string())))?;
    }
    std::process::exit(0)
}

fn say(answer: &Answer) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(answer)?)?;
    Ok(out.flush()?)
}

async fn answer(mailbox: &Mailbox, request: Request) -> Result<Answer, Failure> {
    match request {
        Request::Status => {
            let s = mailbox.status().await?;
            Ok(Answer::Status {
                leader: s.leader_id,
                commit: s.commit,
                applied: s.applied,
                voters: s.members.iter().filter(|m| m.voter).count(),
                role: s.role.to_string(),
            })
        }
        Request::Load(load) => Ok(Answer::Loaded(load::run(mailbox, &load).await?)),
        Request::Fill { count, size, batch } => fill(mailbox, count, size, batch).await,
        Request::Probe => probe(mailbox).await,
        Request::Propose { size } => {
            let proposed = mailbox.propose(put(0, &vec![0; size])).await;
            let outcome = match &proposed {
                Ok(_) => "Applied".to_owned(),
                Err(e) => format!("{:?}", e.outcome()),
            };
            Ok(Answer::Proposed { error: proposed.err().map(|e| e.to_string()), outcome })
        }
    }
}

/// Writes until everything is acknowledged. An unknown outcome is written again: the same value
/// under the same key.
async fn fill(mailbox: &Mailbox, count: u64, size: usize, batch: usize) -> Result<Answer, Failure> {
    let value = vec![7; size];
    let keys: Vec<u64> = (0..count).collect();
    for some in keys.chunks(batch) {
        let started = Instant::now();
        let mut left = some.to_vec();
        while !left.is_empty() {
            let outcomes = mailbox.propose_many(left.iter().map(|key| put(*key, &value))).await;
            let failed = |(key, outcome): (u64, _)| match outcome {
                Ok::<Vec<u8>, raftline::Error>(_) => None,
                Err(_) => Some(key),
            };
            left = left.into_iter().zip(outcomes).filter_map(failed).collect();
            if started.elapsed() > PATIENCE {
                return Err("the cluster does not take the state".into());
            }
        }
    }
    Ok(Answer::Done)
}

async fn probe(mailbox: &Mailbox) -> Result<Answer, Failure> {
    let mut attempts = tokio::task::JoinSet::new();
    let mut every = tokio::time::interval(PROBE_EVERY);
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        tokio::select! {
            Some(Ok(Ok(_))) = attempts.join_next() => return Ok(Answer::Done),
            _ = every.tick() => {
                let mailbox = mailbox.clone();
                attempts.spawn(async move { mailbox.propose(put(u64::MAX, b"probe")).await });
            }
        }
    }
    Err("no write was taken".into())
}
