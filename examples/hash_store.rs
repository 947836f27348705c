//! The getting-started program that users of rmqtt-raft 0.4 know, on raftline: a map of strings,
//! replicated, behind a small web server. Only the crate's name in the imports is another.
//!
//! ```text
//! hash_store --id 1 --raft-laddr 127.0.0.1:5001 --peer-addr 127.0.0.1:5002 \
//!     --peer-addr 127.0.0.1:5003 --web-server 127.0.0.1:8001
//! curl http://127.0.0.1:8001/put/name/value
//! curl http://127.0.0.1:8001/get/name
//! ```
//!
//! NB: a node that finds no leader leads. Start the first node alone, and the others once it
//! runs; two empty nodes started at the same moment would otherwise found a cluster each. The kv
//! example shows a start that cannot go wrong this way.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use bincode::{deserialize, serialize};
use raftline::{Config, Mailbox, Raft, Result as RaftResult, Status, Store};
use serde::{Deserialize, Serialize};
use slog::{Drain, info, o};
use structopt::StructOpt;
use tokio::task::JoinHandle;

/// The flags.
#[derive(Debug, StructOpt)]
pub(crate) struct Options {
    /// This node's id, not 0.
    #[structopt(long)]
    pub(crate) id: u64,
    /// The address that the other nodes reach this one at.
    #[structopt(name = "raft-laddr", long, default_value = "127.0.0.1:5003")]
    pub(crate) raft_laddr: String,
    /// The addresses of the other nodes.
    #[structopt(name = "peer-addr", long)]
    pub(crate) peer_addrs: Vec<String>,
    /// The address of the web server.
    #[structopt(name = "web-server", long)]
    pub(crate) web_server: Option<String>,
}

/// What is replicated, and what is asked.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Message {
    Insert { key: String, value: String },
    Get { key: String },
}

/// The state machine; its clones share one map.
#[derive(Clone, Debug, Default)]
pub(crate) struct HashStore(Arc<RwLock<HashMap<String, String>>>);

impl HashStore {
    /// The value on this node, right now, without asking anybody.
    pub(crate) fn get(&self, key: &str) -> Option<String> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }
}

#[async_trait]
impl Store for HashStore {
    async fn apply(&mut self, message: &[u8]) -> RaftResult<Vec<u8>> {
        match deserialize(message)? {
            Message::Insert { key, value } => {
                let reply = serialize(&value)?;
                self.0.write().unwrap_or_else(PoisonError::into_inner).insert(key, value);
                Ok(reply)
            }
            Message::Get { .. } => Ok(Vec::new()),
        }
    }

    async fn query(&self, query: &[u8]) -> RaftResult<Vec<u8>> {
        match deserialize(query)? {
            Message::Get { key } => Ok(serialize(&self.get(&key))?),
            Message::Insert { .. } => Err("an insert is no query".into()),
        }
    }

    async fn snapshot(&self) -> RaftResult<Vec<u8>> {
        Ok(serialize(&*self.0.read().unwrap_or_else(PoisonError::into_inner))?)
    }

    async fn restore(&mut self, snapshot: &[u8]) -> RaftResult<()> {
        let map: HashMap<String, String> = deserialize(snapshot)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = map;
        Ok(())
    }
}

/// The settings of the getting-started program.
pub(crate) fn config() -> Config {
    Config { reuseaddr: true, reuseport: true, ..Default::default() }
}

/// Joins the cluster that a peer belongs to, or leads a new one.
pub(crate) async fn start(
    options: &Options,
    store: HashStore,
    logger: slog::Logger,
    cfg: Config,
) -> RaftResult<(JoinHandle<RaftResult<()>>, Mailbox)> {
    let raft = Raft::new(options.raft_laddr.clone(), store, logger.clone(), cfg)?;
    let mailbox = raft.mailbox();
    let leader_info = raft.find_leader_info(options.peer_addrs.clone()).await?;
    info!(logger, "asked the peers"; "leader" => ?leader_info);
    let handle = match leader_info {
        Some((leader_id, leader_addr)) => {
            info!(logger, "running in follower mode");
            let laddr = options.raft_laddr.clone();
            tokio::spawn(raft.join(options.id, laddr, Some(leader_id), leader_addr))
        }
        None => {
            info!(logger, "running in leader mode");
            tokio::spawn(raft.lead(options.id))
        }
    };
    Ok((handle, mailbox))
}

type Shared = State<(Mailbox, HashStore)>;
type Answer<T> = Result<T, (StatusCode, String)>;

fn failed(e: impl std::fmt::Display) -> (StatusCode, String) {
    (StatusCode::SERVICE_UNAVAILABLE, e.to_string())
}

async fn put(
    State((mailbox, _)): Shared,
    Path((key, value)): Path<(String, String)>,
) -> Answer<String> {
    let message = serialize(&Message::Insert { key, value }).map_err(failed)?;
    let reply = mailbox.send(message).await.map_err(failed)?;
    deserialize(&reply).map_err(failed)
}

async fn read(
    State((mailbox, _)): Shared,
    Path(key): Path<String>,
) -> Answer<Json<Option<String>>> {
    let query = serialize(&Message::Get { key }).map_err(failed)?;
    let reply = mailbox.query(query).await.map_err(failed)?;
    deserialize(&reply).map(Json).map_err(failed)
}

async fn local(State((_, store)): Shared, Path(key): Path<String>) -> Json<Option<String>> {
    Json(store.get(&key))
}

async fn leave(State((mailbox, _)): Shared) -> Answer<&'static str> {
    mailbox.leave().await.map(|_| "left").map_err(failed)
}

async fn status(State((mailbox, _)): Shared) -> Answer<Json<Status>> {
    mailbox.status().await.map(Json).map_err(failed)
}

#[cfg_attr(test, expect(dead_code, reason = "tests call start"))]
#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let decorator = slog_term::TermDecorator::new().build();
    let drain = slog_term::FullFormat::new(decorator).build().fuse();
    let drain = slog_async::Async::new(drain).build().fuse();
    let logger = slog::Logger::root(drain, o!());

    let options = Options::from_args();
    let store = HashStore::default();
    let (raft, mailbox) = start(&options, store.clone(), logger.clone(), config()).await?;

    if let Some(addr) = options.web_server {
        let app = Router::new()
            .route("/put/{key}/{value}", get(put))
            .route("/get/{key}", get(read))
            .route("/local/{key}", get(local))
            .route("/leave", get(leave))
            .route("/status", get(status))
            .with_state((mailbox, store));
        let listener = tokio::net::TcpListener::bind(addr.as_str()).await?;
        info!(logger, "web server"; "addr" => addr);
        tokio::spawn(async move { axum::serve(listener, app).await });
    }
    raft.await??;
    Ok(())
}
