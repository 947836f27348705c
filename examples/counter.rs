//! A replicated counter: three nodes in one process, durable, in temporary directories.
//!
//! `cargo run --example counter`
#![expect(clippy::print_stdout, reason = "an example tells what happens")]

use std::net::TcpListener;

use raftline::{Config, Mailbox, Raft, Result, Store, async_trait};
use tokio::task::JoinHandle;

/// The state machine: a number that commands add to.
struct Counter(u64);

#[async_trait]
impl Store for Counter {
    async fn apply(&mut self, message: &[u8]) -> Result<Vec<u8>> {
        let step = std::str::from_utf8(message).ok().and_then(|text| text.parse::<u64>().ok());
        self.0 += step.ok_or("a command is a number")?;
        Ok(self.0.to_string().into_bytes())
    }

    async fn query(&self, _query: &[u8]) -> Result<Vec<u8>> {
        Ok(self.0.to_string().into_bytes())
    }

    async fn snapshot(&self) -> Result<Vec<u8>> {
        Ok(self.0.to_be_bytes().to_vec())
    }

    async fn restore(&mut self, snapshot: &[u8]) -> Result<()> {
        self.0 = u64::from_be_bytes(snapshot.try_into().map_err(|_| "a snapshot is 8 bytes")?);
        Ok(())
    }
}

/// Starts node `id`: on empty directories all three found a cluster together, later they resume.
fn start(
    id: u64,
    addrs: &[String],
    dir: &std::path::Path,
) -> Result<(Mailbox, JoinHandle<Result<()>>)> {
    let addr = addrs[id as usize - 1].as_str();
    let config = Config { data_dir: Some(dir.join(id.to_string())), ..Config::default() };
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let raft = Raft::new(addr, Counter(0), logger, config)?;
    let mailbox = raft.mailbox();
    let running = tokio::spawn(raft.start(id, addrs.to_vec()));
    Ok((mailbox, running))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let dir = tempfile::tempdir()?;
    let ports = (0..3).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
    let addrs: Vec<_> =
        ports.iter().map(|p| p.local_addr().map(|a| a.to_string())).collect::<Result<_, _>>()?;
    drop(ports);

    for round in ["started", "started again, on what the disks hold"] {
        let nodes = (1..=3).map(|id| start(id, &addrs, dir.path())).collect::<Result<Vec<_>>>()?;
        println!("three nodes {round}");
        for (n, (mailbox, _)) in nodes.iter().enumerate() {
            let sum = mailbox.send(b"10".to_vec()).await?;
            println!("  node {} added 10: {}", n + 1, String::from_utf8_lossy(&sum));
        }
        for (n, (mailbox, _)) in nodes.iter().enumerate() {
            let sum = mailbox.query(Vec::new()).await?;
            println!("  node {} reads {}", n + 1, String::from_utf8_lossy(&sum));
        }
        for (mailbox, running) in nodes {
            mailbox.shutdown().await?;
            running.await??;
        }
    }
    Ok(())
}
