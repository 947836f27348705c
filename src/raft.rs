//! The builder of a node, and the only place that names defaults: log, transport, directory.
//!
//! It opens, checks and wires; what runs then is the driver's affair. Nothing here runs before
//! `find_leader_info`, `lead` or `join` is polled, except that the listener is bound by
//! [`Raft::new`], so that a busy port is known at once.

use std::fmt;
use std::future::Future;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use slog::{Logger, error, info, warn};

use crate::config::{Config, Durability};
use crate::driver::boot::{Opened, Storage};
use crate::driver::caller::Caller;
use crate::driver::handler::PeerHandler;
use crate::driver::host::Host;
use crate::driver::joining;
use crate::driver::shared::{Lifetime, Phase, Shared};
use crate::driver::{self, AbortOnDrop};
use crate::error::{Error, Result};
use crate::log::LogStorage;
use crate::log::memory::MemoryLog;
use crate::log::wal::{Wal, WalOptions};
use crate::mailbox::Mailbox;
use crate::offline;
use crate::pb::raft_server::RaftServer;
use crate::snapshot::dir::SnapshotDir;
use crate::store::Store;
use crate::transport::Transport;
use crate::transport::grpc::{GrpcOptions, GrpcTransport, RaftService};
use crate::types::{ClusterId, Membership, NodeId};
use crate::vfs::{MemVfs, RealVfs, Vfs};

/// Where snapshots are kept, inside the data directory.
const SNAPSHOTS: &str = SnapshotDir::NAME;

/// A node that is about to start: [`Raft::lead`] or [`Raft::join`] runs it.
pub struct Raft<S: Store> {
    store: S,
    core: Core,
    /// Where the transport is reached when nobody says otherwise; None: unknown.
    listen: Option<String>,
    log: Option<(Box<dyn LogStorage>, Arc<dyn Vfs>)>,
    /// What `find_leader_info` was given; `lead` asks them again before it founds a cluster.
    asked: Mutex<Vec<String>>,
}

/// The parts that do not depend on the Store.
struct Core {
    shared: Arc<Shared>,
    transport: Arc<dyn Transport>,
    handler: Arc<PeerHandler>,
    lifetime: Arc<Lifetime>,
    host: Mutex<Option<Host>>,
}

impl<S: Store> fmt::Debug for Raft<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Raft")
            .field("listen", &self.listen)
            .field("transport", &self.core.transport)
            .finish_non_exhaustive()
    }
}

/// How a node starts when its directory is empty.
enum Entry {
    Found,
    Join { known: Vec<String> },
}

impl<S: Store> Raft<S> {
    /// A node that listens on this address, over gRPC, with its log in `Config::data_dir`. The
    /// listener is bound at once; nothing is served yet. Needs no runtime.
    ///
    /// # Errors
    /// `Config` for a value that cannot work; `Listen` when the address does not resolve or
    /// cannot be bound.
    pub fn new<A: ToSocketAddrs>(
        listen: A,
        store: S,
        logger: Logger,
        config: Config,
    ) -> Result<Self> {
        config.validate()?;
        let addr = resolve(listen)?;
        let transport = GrpcTransport::bind(addr, GrpcOptions::from(&config))?;
        let listen = transport.local_addr().filter(|a| !a.ip().is_unspecified());
        Self::build(Arc::new(transport), listen.map(|a| a.to_string()), store, logger, config)
    }

    /// A node whose gRPC service is carried by the user's own tonic server, which listens where
    /// `Config::advertise_addr` says. Add the service to a `Router` and serve it before `lead` or
    /// `join`.
    ///
    /// # Errors
    /// `Config` for a value that cannot work, a missing `advertise_addr` among them.
    pub fn mounted(
        store: S,
        logger: Logger,
        config: Config,
    ) -> Result<(Self, RaftServer<RaftService>)> {
        let Some(addr) = config.advertise_addr.clone() else {
            return Err(Error::Config {
                field: "advertise_addr",
                reason: "a mounted node must be told where its server listens".to_owned(),
            });
        };
        config.validate()?;
        let transport = GrpcTransport::mounted(GrpcOptions::from(&config));
        let service = transport.service();
        Ok((Self::build(Arc::new(transport), Some(addr), store, logger, config)?, service))
    }

    /// A node over another transport, reached by its peers at `addr`.
    ///
    /// # Errors
    /// `Config` for a value that cannot work.
    pub fn with_transport(
        transport: Arc<dyn Transport>,
        addr: impl Into<String>,
        store: S,
        logger: Logger,
        config: Config,
    ) -> Result<Self> {
        config.validate()?;
        Self::build(transport, Some(addr.into()), store, logger, config)
    }

    fn build(
        transport: Arc<dyn Transport>,
        listen: Option<String>,
        store: S,
        logger: Logger,
        config: Config,
    ) -> Result<Self> {
        let shared = Arc::new(Shared::new(config, logger, S::check));
        let core = Core {
            transport,
            handler: Arc::new(PeerHandler::new(shared.clone())),
            lifetime: Lifetime::new(shared.clone()),
            host: Mutex::default(),
            shared,
        };
        Ok(Self { store, core, listen, log: None, asked: Mutex::default() })
    }

    /// Keeps the log elsewhere than in the default write-ahead log, and the snapshots in a
    /// directory of this file layer.
    #[must_use]
    pub fn with_log(mut self, log: Box<dyn LogStorage>, vfs: Arc<dyn Vfs>) -> Self {
        self.log = Some((log, vfs));
        self
    }

    /// Where this node is reached when nobody says otherwise, `host:port`; None when it listens on
    /// every interface.
    pub fn listen_addr(&self) -> Option<&str> {
        self.listen.as_deref()
    }

    /// The handle of this node; usable before and after the start.
    pub fn mailbox(&self) -> Mailbox {
        Mailbox::new(self.core.shared.clone())
    }

    /// Asks these addresses, all at once, who leads: the leader's id and address. None when no
    /// cluster exists behind any of them; `lead` asks them again before it founds one. With data
    /// in `Config::data_dir` it waits for no leader: the others may be waiting for this node.
    ///
    /// # Errors
    /// None that a caller must expect: a cluster that names no leader within
    /// `Config::request_timeout` is told by one of its members instead, which leads a joiner on.
    pub async fn find_leader_info(&self, peers: Vec<String>) -> Result<Option<(u64, String)>> {
        let caller = self.core.serve("raftline".to_owned())?;
        locked(&self.asked).extend(peers.iter().cloned());
        let config = &self.core.shared.config;
        let (timeout, pause) = (config.request_timeout, config.heartbeat);
        joining::find_leader(&caller, &peers, timeout, pause, has_data(config)).await
    }

    /// Runs this node until it is told to stop or fails. An empty directory becomes the first
    /// member of a new cluster; one with data resumes, whatever cluster it belongs to.
    ///
    /// # Errors
    /// `ClusterExists` when the directory is empty and a known address belongs to a cluster;
    /// else what the node could not start or go on with.
    ///
    /// # Cancel safety
    /// Dropping the future stops the node as a crash would: nothing acknowledged is lost.
    pub fn lead(self, id: NodeId) -> impl Future<Output = Result<()>> + Send + 'static {
        self.run(id, None, Entry::Found)
    }

    /// Runs this node until it is told to stop, leaves or fails. An empty directory enters the
    /// cluster through any of its members, as a learner that is promoted once it has caught up;
    /// one with data resumes. `addr` is where peers reach this node.
    ///
    /// # Errors
    /// `Membership` when the cluster refuses it for good; `Config` when an empty node is given no
    /// address but its own; else what the node could not start or
    /// go on with. While nobody answers, it asks again.
    ///
    /// # Cancel safety
    /// As for [`Raft::lead`].
    pub fn join(
        self,
        id: NodeId,
        addr: String,
        leader_id: Option<NodeId>,
        leader_addr: String,
    ) -> impl Future<Output = Result<()>> + Send + 'static {
        // The address finds the leader; its id says nothing more.
        let _ = leader_id;
        self.run(id, Some(addr), Entry::Join { known: vec![leader_addr] })
    }

    /// Runs the node and logs how it ended: the future is often spawned and looked at late.
    async fn run(self, id: NodeId, addr: Option<String>, entry: Entry) -> Result<()> {
        let logger = self.core.shared.logger.clone();
        let ended = self.run_to_end(id, addr, entry).await;
        match &ended {
            Ok(()) => info!(logger, "ended"; "node" => id),
            Err(e) => error!(logger, "ended by a failure"; "node" => id, "error" => %e),
        }
        ended
    }

    async fn run_to_end(self, id: NodeId, addr: Option<String>, entry: Entry) -> Result<()> {
        let core = self.core;
        let shared = core.shared.clone();
        let _abort = AbortOnDrop(shared.clone());
        if shared.phase() >= Phase::Stopping {
            return Ok(());
        }
        shared.enter(Phase::Running);
        require_runtime()?;
        check_id(id)?;
        let addr = own_addr(&shared.config, addr, self.listen)?;
        let (opening, log) = (shared.clone(), self.log);
        let opened = blocking(move || open(&opening, log, id)).await?;
        shared.status.send_modify(|s| s.id = id);
        shared.update_view(|view| view.addr.clone_from(&addr));
        shared.know(opened.identity, opened.membership()?);
        let caller = core.serve(format!("raftline-{id}"))?;
        let known = [locked(&self.asked).clone(), shared.config.peers.clone()].concat();
        let applied = self.store.applied();
        let entering = async {
            let opened = enter(&shared, &caller, opened, &addr, entry, known).await?;
            blocking(move || opened.into_boot(applied)).await
        };
        let entered = tokio::select! {
            biased;
            () = shared.reached(Phase::Stopping) => Ok(None),
            entered = entering => entered.map(Some),
        };
        let Some(host) = locked(&core.host).take() else { return Err(Error::ShuttingDown) };
        let (boot, storage) = match entered {
            Ok(Some(entered)) => entered,
            Ok(None) => return host.cancel().await,
            Err(e) => return host.cancel().await.and(Err(e)),
        };
        info!(shared.logger, "starts"; "node" => id, "addr" => &addr,
            "cluster" => boot.identity.cluster.map(|(c, _)| c.to_string()),
            "boot" => boot.identity.boot);
        let start = driver::Start {
            shared: shared.clone(),
            transport: core.transport.clone(),
            handler: core.handler.clone(),
            store: self.store,
            boot,
            storage,
            addr,
        };
        driver::run(start, host).await
    }
}

impl Core {
    /// Starts the node's thread, which serves peers, if it does not run yet.
    fn serve(&self, name: String) -> Result<Caller> {
        let mut host = locked(&self.host);
        if host.is_none() {
            *host = Some(Host::start(
                name,
                &self.shared,
                self.transport.clone(),
                self.handler.clone(),
                self.lifetime.clone(),
            )?);
        }
        self.shared.caller().ok_or(Error::ShuttingDown)
    }
}

/// Where peers reach this node: as configured, as told, or where it listens.
fn own_addr(config: &Config, told: Option<String>, listen: Option<String>) -> Result<String> {
    let Some(addr) = config.advertise_addr.clone().or(told).or(listen) else {
        return Err(Error::Config {
            field: "advertise_addr",
            reason: "the node listens on every interface; say at which address its peers reach it"
                .to_owned(),
        });
    };
    if is_wildcard(&addr) {
        return Err(Error::Config {
            field: "advertise_addr",
            reason: format!("{addr} cannot be reached by peers; name one of this machine's"),
        });
    }
    Ok(addr)
}

/// Makes sure that the directory belongs to a cluster: it does, it founds one, or it joins one.
async fn enter(
    shared: &Arc<Shared>,
    caller: &Caller,
    mut opened: Opened,
    addr: &str,
    entry: Entry,
    mut known: Vec<String>,
) -> Result<Opened> {
    if let Some((cluster, _)) = opened.identity.cluster {
        if let Entry::Join { known: first } = &entry {
            let asked = unique(first.iter().cloned(), addr);
            drop(tokio::spawn(warn_of_another(shared.clone(), caller.clone(), asked, cluster)));
        }
        if opened.recovered.membership.is_none() {
            if let Entry::Join { known: first } = entry {
                known.extend(first);
            }
            let known = unique(known.into_iter(), addr);
            if known.is_empty() {
                return Err(unmet(opened.storage.dir, cluster));
            }
            let membership = joining::find_membership(caller, &known, cluster).await;
            meet(shared, caller, &opened, membership);
        }
        return Ok(opened);
    }
    let opened = match entry {
        Entry::Found => {
            known.retain(|a| a != addr);
            let timeout = shared.config.request_timeout;
            if let Some((addr, cluster)) = joining::find_cluster(caller, &known, timeout).await {
                return Err(Error::ClusterExists { addr, cluster });
            }
            let addr = addr.to_owned();
            blocking(move || opened.found(addr).map(|()| opened)).await?
        }
        Entry::Join { known: first } => {
            if opened.interrupted_founding()?.is_some() {
                return Err(Error::DataDir {
                    dir: opened.storage.dir,
                    reason: "it was about to found a cluster of its own and holds nothing yet; \
                             empty it, then join"
                        .to_owned(),
                });
            }
            let known = unique(first.into_iter().chain(known), addr);
            if known.is_empty() {
                let reason = format!(
                    "{addr} is where this node itself is reached; give the address of another \
                     member, or found a cluster with lead"
                );
                return Err(Error::Config { field: "leader_addr", reason });
            }
            let joined = joining::join(shared, caller, &opened.identity, addr, &known).await?;
            let (cluster, raft_id) = (joined.cluster_id, joined.raft_id);
            let opened = blocking(move || opened.belong(cluster, raft_id).map(|()| opened)).await?;
            // The transport can answer the others before the first snapshot has come.
            meet(shared, caller, &opened, joined.membership);
            return Ok(opened);
        }
    };
    shared.know(opened.identity, opened.membership()?);
    Ok(opened)
}

/// A node that joined and was stopped before its first snapshot came must ask who the others are.
fn unmet(dir: PathBuf, cluster: ClusterId) -> Error {
    let reason = format!(
        "it has joined cluster {cluster} and holds nothing of it yet; start it with join, or name \
         members in Config::peers"
    );
    Error::DataDir { dir, reason }
}

/// Makes the others known, so that the transport can answer them before the first snapshot.
fn meet(shared: &Arc<Shared>, caller: &Caller, opened: &Opened, membership: Membership) {
    shared.know(opened.identity, Some(membership));
    caller.set_peers(shared.clone());
}

/// Says so when a node with data was told to join another cluster than its own: it resumes its
/// own, which may be one that was founded by mistake.
async fn warn_of_another(shared: Arc<Shared>, caller: Caller, addrs: Vec<String>, own: ClusterId) {
    let found = tokio::select! {
        () = shared.reached(Phase::Stopping) => return,
        found = joining::find_cluster(&caller, &addrs, shared.config.request_timeout) => found,
    };
    if let Some((addr, theirs)) = found.filter(|(_, theirs)| *theirs != own) {
        warn!(shared.logger, "the data directory belongs to another cluster than the address given \
            to join; it resumes its own. To enter the other, start with an empty data directory";
            "addr" => addr, "own" => %own, "other" => %theirs);
    }
}

fn unique(addrs: impl Iterator<Item = String>, own: &str) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for addr in addrs {
        if addr != own && !out.contains(&addr) {
            out.push(addr);
        }
    }
    out
}

/// Whether the configured directory holds anything. False where it cannot be told: the node's id
/// is part of the default directory, and not known before it starts.
fn has_data(config: &Config) -> bool {
    let dir = config.data_dir.as_ref().filter(|_| config.durability == Durability::Fsync);
    dir.is_some_and(|dir| RealVfs.list(dir).is_ok_and(|names| !names.is_empty()))
}

/// Opens log and snapshots where the configuration says.
fn open(
    shared: &Shared,
    log: Option<(Box<dyn LogStorage>, Arc<dyn Vfs>)>,
    id: NodeId,
) -> Result<Opened> {
    let config = &shared.config;
    let dir = config.data_dir.clone().unwrap_or_else(|| PathBuf::from(format!("raftline-{id}")));
    let (log, vfs): (Box<dyn LogStorage>, Arc<dyn Vfs>) = match (log, config.durability) {
        (Some((log, vfs)), _) => (log, vfs),
        (None, Durability::Volatile) => (Box::new(MemoryLog::new()), Arc::new(MemVfs::default())),
        (None, Durability::Fsync) => durable(&dir, config)?,
    };
    let snapshots = SnapshotDir::open(vfs.clone(), dir.join(SNAPSHOTS))?;
    let opened = Opened::open(Storage { log, snapshots, dir: dir.clone() }, id)?;
    let membership = opened.membership()?;
    let moved = offline::live_addresses(&*vfs, &dir, membership.as_ref())?;
    shared.assume(membership.as_ref(), moved);
    Ok(opened)
}

fn durable(dir: &Path, config: &Config) -> Result<(Box<dyn LogStorage>, Arc<dyn Vfs>)> {
    let vfs: Arc<dyn Vfs> = Arc::new(RealVfs);
    let options = WalOptions { segment_size: config.log_segment_size, ..WalOptions::default() };
    Ok((Box::new(Wal::open(vfs.clone(), dir, options)?), vfs))
}

/// Runs work that waits for the disk away from the runtime's own threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(e) => Err(Error::Internal { part: "start", reason: e.to_string() }),
    }
}

fn require_runtime() -> Result<()> {
    match tokio::runtime::Handle::try_current() {
        Ok(_) => Ok(()),
        Err(e) => Err(Error::Internal {
            part: "start",
            reason: format!("lead and join must be awaited in a tokio runtime: {e}"),
        }),
    }
}

fn check_id(id: NodeId) -> Result<()> {
    if id != 0 {
        return Ok(());
    }
    Err(Error::Config { field: "id", reason: "a node id must not be 0".to_owned() })
}

fn resolve<A: ToSocketAddrs>(listen: A) -> Result<SocketAddr> {
    let failed = |source| Error::Listen {
        addr: "the given address".to_owned(),
        hint: "Give a host:port that this machine has",
        source,
    };
    listen.to_socket_addrs().map_err(failed)?.next().ok_or_else(|| {
        failed(std::io::Error::new(std::io::ErrorKind::NotFound, "it resolves to nothing"))
    })
}

fn is_wildcard(addr: &str) -> bool {
    addr.parse::<SocketAddr>().is_ok_and(|a| a.ip().is_unspecified())
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
