//! raftline, through its `Mailbox`, as shipped but for the patience of the clients.

use std::time::Duration;

use peers::Result;
use raftline::{Config, Durability, Mailbox, Raft, Store, async_trait};

use super::Variant;
use crate::kv::{self, Kv};
use crate::node::{Peer, Setup, View};

struct Map(Kv);

#[async_trait]
impl Store for Map {
    async fn apply(&mut self, command: &[u8]) -> raftline::Result<Vec<u8>> {
        self.0.apply(command);
        Ok(Vec::new())
    }

    async fn query(&self, query: &[u8]) -> raftline::Result<Vec<u8>> {
        Ok(self.0.get(kv::parts(query).0))
    }

    async fn snapshot(&self) -> raftline::Result<Vec<u8>> {
        Ok(self.0.snapshot())
    }

    async fn restore(&mut self, snapshot: &[u8]) -> raftline::Result<()> {
        self.0.restore(snapshot);
        Ok(())
    }
}

#[derive(Clone)]
pub struct Node(Mailbox);

pub fn start(setup: &Setup) -> Result<Node> {
    let durability = match setup.variant {
        Variant::RaftlineMemory => Durability::Volatile,
        _ => Durability::Fsync,
    };
    let config = Config {
        data_dir: Some(setup.dir.join("data")),
        durability,
        request_timeout: Duration::from_secs(30),
        ..Config::default()
    };
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let raft = Raft::new(setup.addr(), Map(Kv::default()), logger, config)?;
    let mailbox = raft.mailbox();
    let (id, node) = (setup.id, raft.start(setup.id, setup.addrs.clone()));
    tokio::spawn(async move {
        let ended = node.await;
        eprintln!("raftline node {id} ended: {ended:?}");
        std::process::exit(1);
    });
    Ok(Node(mailbox))
}

impl Peer for Node {
    async fn put(&self, command: Vec<u8>) -> Result<()> {
        self.0.propose(command).await?;
        Ok(())
    }

    async fn get(&self, key: u64) -> Result<Vec<u8>> {
        Ok(self.0.query(key.to_le_bytes().to_vec()).await?)
    }

    async fn view(&self) -> Result<View> {
        let status = self.0.status().await?;
        let voters = status.members.iter().filter(|member| member.voter).count();
        Ok(View { id: status.id, leader: status.leader_id, term: status.term, voters })
    }
}
