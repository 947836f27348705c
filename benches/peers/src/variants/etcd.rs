//! etcd: three servers of the `etcd` that is installed, and one client process beside them.
//!
//! The few messages that are needed of its interface stand here, so that nothing must be generated.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use peers::Result;
use prost::Message;
use tonic::Request;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use crate::cluster::Killed;
use crate::kv;
use crate::node::{Peer, Setup, View};

/// Connections of the client process to the leader, taken in turn.
const CONNECTIONS: usize = 4;
/// While the servers begin to listen.
const PAUSE: Duration = Duration::from_millis(200);
const TRIES: u32 = 100;

#[derive(Clone, PartialEq, Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// An answer of which only its coming matters.
#[derive(Clone, PartialEq, Message)]
struct PutResponse {}

/// One key; linearizable, as its flag for less is not set.
#[derive(Clone, PartialEq, Message)]
struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(bytes = "vec", tag = "5")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct RangeResponse {
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct StatusRequest {}

#[derive(Clone, PartialEq, Message)]
struct Header {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}

#[derive(Clone, PartialEq, Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(uint64, tag = "4")]
    leader: u64,
    #[prost(uint64, tag = "6")]
    raft_term: u64,
}

/// What the installed one says of its version.
///
/// # Errors
/// When there is none.
pub fn version() -> Result<String> {
    let said = Command::new("etcd").arg("--version").stderr(Stdio::null()).output();
    let said = said.map_err(|_| "there is no `etcd` in the PATH")?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let version = said.lines().find_map(|line| line.strip_prefix("etcd Version: "));
    Ok(version.ok_or("`etcd --version` does not say its version")?.trim().to_owned())
}

/// Starts three servers; `addrs` for each other, `clients` for whoever uses them.
pub fn servers(addrs: &[String], clients: &[String], dir: &Path) -> Result<Vec<Killed>> {
    let url = |addr: &String| format!("http://{addr}");
    let all: Vec<_> = (1..).zip(addrs).map(|(id, addr)| format!("n{id}={}", url(addr))).collect();
    let start = |(id, (addr, client)): (u64, (&String, &String))| {
        let mut server = Command::new("etcd");
        server.args(["--name", &format!("n{id}"), "--initial-cluster", &all.join(",")]);
        server.arg("--data-dir").arg(dir.join(format!("etcd-{id}")));
        server.args(["--initial-cluster-state", "new", "--log-level", "error"]);
        server.args(["--listen-peer-urls", &url(addr)]);
        server.args(["--initial-advertise-peer-urls", &url(addr)]);
        server.args(["--listen-client-urls", &url(client)]);
        server.args(["--advertise-client-urls", &url(client)]);
        server.stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Killed(server.spawn()?))
    };
    (1..).zip(addrs.iter().zip(clients)).map(start).collect()
}

#[derive(Clone)]
pub struct Node {
    /// One list of connections per server.
    servers: Arc<Vec<Vec<Channel>>>,
    leader: Arc<AtomicUsize>,
    turn: Arc<AtomicUsize>,
}

async fn connect(addr: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{addr}"))?.tcp_nodelay(true);
    for _ in 0..TRIES {
        if let Ok(channel) = endpoint.connect().await {
            return Ok(channel);
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(format!("no etcd answers at {addr}").into())
}

pub async fn start(setup: &Setup) -> Result<Node> {
    let mut servers = Vec::new();
    for addr in &setup.addrs {
        let mut channels = Vec::new();
        for _ in 0..CONNECTIONS {
            channels.push(connect(addr).await?);
        }
        servers.push(channels);
    }
    Ok(Node { servers: Arc::new(servers), leader: Arc::default(), turn: Arc::default() })
}

async fn ask<Q, A>(channel: &Channel, path: &'static str, request: Q) -> Result<A>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await?;
    let (path, codec) = (PathAndQuery::from_static(path), ProstCodec::<Q, A>::default());
    Ok(client.unary(Request::new(request), path, codec).await?.into_inner())
}

impl Node {
    fn to_leader(&self) -> Result<&Channel> {
        let server = self.servers.get(self.leader.load(Ordering::Relaxed)).ok_or("no leader")?;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        Ok(server.get(turn % CONNECTIONS).ok_or("no connection")?)
    }
}

impl Peer for Node {
    async fn put(&self, command: Vec<u8>) -> Result<()> {
        let (key, value) = kv::parts(&command);
        let put = PutRequest { key: key.to_le_bytes().to_vec(), value: value.to_vec() };
        let _: PutResponse = ask(self.to_leader()?, "/etcdserverpb.KV/Put", put).await?;
        Ok(())
    }

    async fn get(&self, key: u64) -> Result<Vec<u8>> {
        let range = RangeRequest { key: key.to_le_bytes().to_vec() };
        let found: RangeResponse = ask(self.to_leader()?, "/etcdserverpb.KV/Range", range).await?;
        Ok(found.kvs.into_iter().next().map(|kv| kv.value).unwrap_or_default())
    }

    async fn view(&self) -> Result<View> {
        let mut seen = Vec::new();
        for channel in self.servers.iter().filter_map(|channels| channels.first()) {
            let path = "/etcdserverpb.Maintenance/Status";
            seen.push(ask::<_, StatusResponse>(channel, path, StatusRequest {}).await?);
        }
        let is_leader =
            |s: &StatusResponse| s.header.as_ref().map(|h| h.member_id) == Some(s.leader);
        let leader = seen.iter().position(|status| status.leader != 0 && is_leader(status));
        let agreed = seen.iter().all(|status| status.leader != 0);
        let term = seen.iter().map(|status| status.raft_term).max().unwrap_or(0);
        let Some(leader) = leader.filter(|_| agreed) else { return Ok(View::default()) };
        self.leader.store(leader, Ordering::Relaxed);
        Ok(View { id: 1, leader: leader as u64 + 1, term, voters: seen.len() })
    }
}
