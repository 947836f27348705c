//! One node in a process of its own, driven by JSON lines on stdin, answering on stdout.

use std::collections::HashMap;
use std::io::Write;
use std::time::{Duration, Instant};

use raftline::{Config, Durability, Mailbox, Raft, Result, Store, async_trait};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::load;

#[derive(clap::Args)]
pub(crate) struct NodeArgs {
    #[arg(long)]
    id: u64,
    #[arg(long)]
    addr: String,
    #[arg(long)]
    dir: String,
    /// The leader to join; without one the node founds, or resumes.
    #[arg(long)]
    via: Option<String>,
    #[arg(long)]
    memory: bool,
    /// The Store keeps nothing.
    #[arg(long)]
    no_store: bool,
    #[arg(long)]
    single_thread: bool,
    /// Takes no snapshot, so that a restart has all of the log before it.
    #[arg(long)]
    keep_log: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "cmd")]
pub(crate) enum Command {
    Status,
    Load(load::Cell),
    /// Writes until one succeeds; answers the number of tries.
    Probe,
    /// Writes `count` values of `size` bytes, `batch` per call.
    Fill {
        count: u64,
        size: usize,
        batch: usize,
    },
    /// One proposal of this size; answers what came of it.
    Big {
        size: usize,
    },
}

/// A map of numbers to bytes; the first eight bytes of a command are its key.
#[derive(Default)]
struct Kv {
    values: HashMap<u64, Vec<u8>>,
    keeps_nothing: bool,
}

fn key(message: &[u8]) -> Result<u64> {
    let (key, _) = message.split_first_chunk::<8>().ok_or("a command begins with its key")?;
    Ok(u64::from_le_bytes(*key))
}

#[async_trait]
impl Store for Kv {
    async fn apply(&mut self, message: &[u8]) -> Result<Vec<u8>> {
        let key = key(message)?;
        if !self.keeps_nothing {
            self.values.insert(key, message.to_vec());
        }
        Ok(Vec::new())
    }

    async fn query(&self, query: &[u8]) -> Result<Vec<u8>> {
        Ok(self.values.get(&key(query)?).cloned().unwrap_or_default())
    }

    async fn snapshot(&self) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(self.values.values().map(|v| v.len() + 4).sum());
        for value in self.values.values() {
            out.extend_from_slice(&(value.len() as u32).to_le_bytes());
            out.extend_from_slice(value);
        }
        Ok(out)
    }

    async fn restore(&mut self, snapshot: &[u8]) -> Result<()> {
        self.values.clear();
        let mut rest = snapshot;
        while let Some((len, tail)) = rest.split_first_chunk::<4>() {
            let (value, tail) = tail.split_at(u32::from_le_bytes(*len) as usize);
            self.values.insert(key(value)?, value.to_vec());
            rest = tail;
        }
        Ok(())
    }
}

pub(crate) fn run(args: NodeArgs) {
    let mut builder = if args.single_thread {
        tokio::runtime::Builder::new_current_thread()
    } else {
        tokio::runtime::Builder::new_multi_thread()
    };
    builder.enable_all().build().unwrap().block_on(serve(args));
}

async fn serve(args: NodeArgs) {
    let durability = if args.memory { Durability::Volatile } else { Durability::Fsync };
    let config = Config {
        data_dir: Some(args.dir.into()),
        durability,
        request_timeout: Duration::from_secs(30),
        ..Config::default()
    };
    let config = match args.keep_log {
        true => Config { snapshot_entries: u64::MAX, snapshot_bytes: u64::MAX, ..config },
        false => config,
    };
    let store = Kv { keeps_nothing: args.no_store, ..Kv::default() };
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let raft = Raft::new(args.addr.as_str(), store, logger, config).unwrap();
    let mailbox = raft.mailbox();
    let ended = match args.via {
        Some(via) => tokio::spawn(raft.join(args.id, args.addr, None, via)),
        None => tokio::spawn(raft.lead(args.id)),
    };
    tokio::spawn(async move {
        let how = ended.await;
        // The controller reads this from stderr.
        let _ = writeln!(std::io::stderr(), "node {} ended: {how:?}", args.id);
        std::process::exit(1);
    });
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let answer = obey(&mailbox, serde_json::from_str(&line).unwrap()).await;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{answer}").and_then(|()| out.flush()).unwrap();
    }
}

async fn obey(mailbox: &Mailbox, command: Command) -> serde_json::Value {
    match command {
        Command::Status => match mailbox.status().await {
            Ok(status) => serde_json::to_value(status).unwrap(),
            Err(e) => serde_json::json!({ "error": e.to_string() }),
        },
        Command::Load(cell) => serde_json::to_value(load::run(mailbox, &cell).await).unwrap(),
        Command::Probe => probe(mailbox).await,
        Command::Fill { count, size, batch } => fill(mailbox, count, size, batch).await,
        Command::Big { size } => {
            let outcome = mailbox.propose(vec![7u8; size]).await;
            serde_json::json!({ "outcome": match outcome {
                Ok(_) => "applied".to_owned(),
                Err(e) => e.to_string(),
            }})
        }
    }
}

async fn probe(mailbox: &Mailbox) -> serde_json::Value {
    let begin = Instant::now();
    for tries in 1u64.. {
        if mailbox.propose(vec![0u8; 16]).await.is_ok() {
            let ms = begin.elapsed().as_secs_f64() * 1e3;
            return serde_json::json!({ "tries": tries, "ms": ms });
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    serde_json::Value::Null
}

async fn fill(mailbox: &Mailbox, count: u64, size: usize, batch: usize) -> serde_json::Value {
    let begin = Instant::now();
    let mut next = 0;
    while next < count {
        let end = (next + batch as u64).min(count);
        let calls = (next..end).map(|key| load::command(key, size.max(8)));
        for outcome in mailbox.propose_many(calls).await {
            outcome.unwrap();
        }
        next = end;
    }
    serde_json::json!({ "seconds": begin.elapsed().as_secs_f64() })
}
