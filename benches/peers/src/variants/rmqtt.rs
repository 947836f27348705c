//! rmqtt-raft, through its `Mailbox`, as shipped. Its log is always in memory.

use peers::Result;
use rmqtt_raft::{Config, Mailbox, Raft, Store};

use crate::kv::{self, Kv};
use crate::node::{Peer, Setup, View};

#[derive(Clone)]
struct Map(Kv);

#[tonic::async_trait]
impl Store for Map {
    async fn apply(&mut self, command: &[u8]) -> rmqtt_raft::Result<Vec<u8>> {
        self.0.apply(command);
        Ok(Vec::new())
    }

    async fn query(&self, query: &[u8]) -> rmqtt_raft::Result<Vec<u8>> {
        Ok(self.0.get(kv::parts(query).0))
    }

    async fn snapshot(&self) -> rmqtt_raft::Result<Vec<u8>> {
        Ok(self.0.snapshot())
    }

    async fn restore(&mut self, snapshot: &[u8]) -> rmqtt_raft::Result<()> {
        self.0.restore(snapshot);
        Ok(())
    }
}

#[derive(Clone)]
pub struct Node(Mailbox);

pub fn start(setup: &Setup) -> Result<Node> {
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let raft = Raft::new(setup.addr(), Map(Kv::default()), logger, Config::default())
        .map_err(|e| e.to_string())?;
    let mailbox = raft.mailbox();
    let (id, addr) = (setup.id, setup.addr().to_owned());
    let first = setup.addrs.first().cloned().unwrap_or_default();
    tokio::spawn(async move {
        let ended = match id {
            1 => raft.lead(id, addr).await,
            _ => raft.join(id, addr, None, first).await,
        };
        eprintln!("rmqtt-raft node {id} ended: {:?}", ended.map_err(|e| e.to_string()));
        std::process::exit(1);
    });
    Ok(Node(mailbox))
}

impl Peer for Node {
    async fn put(&self, command: Vec<u8>) -> Result<()> {
        match self.0.send_proposal(command).await {
            Ok(_) => Ok(()),
            Err(e) => Err(e.to_string().into()),
        }
    }

    async fn get(&self, _: u64) -> Result<Vec<u8>> {
        Err("its query asks the leader's state without making sure that it still leads".into())
    }

    async fn view(&self) -> Result<View> {
        let status = self.0.status().await.map_err(|e| e.to_string())?;
        let voters = status.peers.len();
        Ok(View { id: status.id, leader: status.leader_id, term: 0, voters })
    }
}
