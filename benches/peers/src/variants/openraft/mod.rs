//! openraft with a log in memory, over frames on bare TCP.
//!
//! Not as shipped: an election timeout of one to two seconds, because that of 150 to 300 ms elects
//! again and again while all cores are full; and no snapshots, because one per 5000 entries would
//! copy the whole map each time.

mod machine;
mod store;

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use openraft::error::{
    InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Unreachable,
};
use openraft::network::{RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{BasicNode, Config, Raft, SnapshotPolicy};
use peers::Result;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::kv::Kv;
use crate::node::{Peer, Setup, View};
use crate::wire::{self, Caller};
use machine::Machine;
use store::Log;

const APPEND: u8 = 1;
const VOTE: u8 = 2;
const SNAPSHOT: u8 = 3;

/// What is replicated.
#[derive(Clone, Debug, Serialize, serde::Deserialize)]
pub struct Command(#[serde(with = "serde_bytes")] Vec<u8>);

openraft::declare_raft_types!(
    /// The types that openraft is generic in.
    pub Types:
        D = Command,
        R = (),
        NodeId = u64,
        Node = BasicNode,
        SnapshotData = Cursor<Vec<u8>>,
);

struct Network;

struct Link {
    target: u64,
    caller: Caller,
}

type Failed<E> = RPCError<u64, BasicNode, E>;

impl RaftNetworkFactory<Types> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Link {
        Link { target, caller: Caller::new(&node.addr) }
    }
}

impl Link {
    async fn call<Q, A, E>(&self, kind: u8, request: Q) -> std::result::Result<A, Failed<E>>
    where
        Q: Serialize,
        A: DeserializeOwned,
        E: DeserializeOwned + std::error::Error,
    {
        let unsent = |e: postcard::Error| RPCError::Network(NetworkError::new(&e));
        let bytes = postcard::to_stdvec(&request).map_err(unsent)?;
        let answer = self.caller.call(kind, bytes).await;
        let answer = answer.map_err(|e| RPCError::Unreachable(Unreachable::new(&e)))?;
        let outcome: std::result::Result<A, E> = postcard::from_bytes(&answer).map_err(unsent)?;
        outcome.map_err(|e| RPCError::RemoteError(RemoteError::new(self.target, e)))
    }
}

impl RaftNetwork<Types> for Link {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _: RPCOption,
    ) -> std::result::Result<AppendEntriesResponse<u64>, Failed<RaftError<u64>>> {
        self.call(APPEND, request).await
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<Types>,
        _: RPCOption,
    ) -> std::result::Result<
        InstallSnapshotResponse<u64>,
        Failed<RaftError<u64, InstallSnapshotError>>,
    > {
        self.call(SNAPSHOT, request).await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<u64>,
        _: RPCOption,
    ) -> std::result::Result<VoteResponse<u64>, Failed<RaftError<u64>>> {
        self.call(VOTE, request).await
    }
}

/// What a node answers to its peers' frames; nothing to bytes that make no sense.
async fn handle(raft: Raft<Types>, kind: u8, body: Vec<u8>) -> Vec<u8> {
    let answer = match kind {
        APPEND => match postcard::from_bytes(&body) {
            Ok(request) => postcard::to_stdvec(&raft.append_entries(request).await),
            Err(e) => Err(e),
        },
        VOTE => match postcard::from_bytes(&body) {
            Ok(request) => postcard::to_stdvec(&raft.vote(request).await),
            Err(e) => Err(e),
        },
        _ => match postcard::from_bytes(&body) {
            Ok(request) => postcard::to_stdvec(&raft.install_snapshot(request).await),
            Err(e) => Err(e),
        },
    };
    answer.unwrap_or_default()
}

#[derive(Clone)]
pub struct Node {
    id: u64,
    kv: Kv,
    raft: Raft<Types>,
}

pub async fn start(setup: &Setup) -> Result<Node> {
    let config = Config {
        heartbeat_interval: 100,
        election_timeout_min: 1000,
        election_timeout_max: 2000,
        snapshot_policy: SnapshotPolicy::Never,
        ..Config::default()
    };
    let (kv, config) = (Kv::default(), Arc::new(config.validate()?));
    let machine = Machine::new(kv.clone());
    let raft = Raft::new(setup.id, config, Network, Log::default(), machine).await?;
    let served = raft.clone();
    wire::answer(setup.addr(), move |kind, body| handle(served.clone(), kind, body)).await?;
    if setup.id == 1 {
        let members: BTreeMap<u64, BasicNode> =
            setup.members().map(|(id, addr)| (id, BasicNode::new(addr))).collect();
        let raft = raft.clone();
        tokio::spawn(async move {
            // Until the others listen: a refused connection is tried again late.
            tokio::time::sleep(Duration::from_millis(300)).await;
            if let Err(e) = raft.initialize(members).await {
                eprintln!("openraft cannot found a cluster: {e}");
            }
        });
    }
    Ok(Node { id: setup.id, kv, raft })
}

impl Peer for Node {
    async fn put(&self, command: Vec<u8>) -> Result<()> {
        self.raft.client_write(Command(command)).await?;
        Ok(())
    }

    async fn get(&self, key: u64) -> Result<Vec<u8>> {
        self.raft.ensure_linearizable().await?;
        Ok(self.kv.get(key))
    }

    async fn view(&self) -> Result<View> {
        let metrics = self.raft.metrics().borrow().clone();
        let voters = metrics.membership_config.membership().voter_ids().count();
        let (leader, term) = (metrics.current_leader.unwrap_or(0), metrics.current_term);
        Ok(View { id: self.id, leader, term, voters })
    }
}
