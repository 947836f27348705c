//! The builder of a node, and the only place that names defaults: log, transport, directory.
//!
//! It opens, checks and wires; what runs then is the driver's affair. Nothing here runs before
//! `find_leader_info`, `start`, `lead` or `join` is polled, except that the listener is bound by
//! [`Raft::new`], so that a busy port is known at once.

mod entering;
mod opening;

use std::fmt;
use std::future::Future;
use std::net::ToSocketAddrs;
use std::sync::{Arc, Mutex, PoisonError};

use slog::{Logger, error, info, warn};

use crate::config::Config;
use crate::driver::boot::blocking;
use crate::driver::caller::Caller;
use crate::driver::handler::PeerHandler;
use crate::driver::host::Host;
use crate::driver::joining;
use crate::driver::shared::{Lifetime, Phase, Shared};
use crate::driver::{self, AbortOnDrop};
use crate::error::{Error, Result};
use crate::log::LogStorage;
use crate::mailbox::Mailbox;
use crate::pb::raft_server::RaftServer;
use crate::store::Store;
use crate::transport::Transport;
use crate::transport::grpc::{GrpcOptions, GrpcTransport, RaftService};
use crate::types::NodeId;
use crate::vfs::Vfs;
use entering::{Entry, enter};
use opening::{check_id, has_data, open, own_addr, require_runtime, resolve};

/// A node that is about to start: [`Raft::start`], [`Raft::lead`] or [`Raft::join`] runs it.
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

impl Raft<()> {
    /// A node without a Store: the members elect a leader among themselves, and that is all. Over
    /// gRPC, like [`Raft::new`]; over another transport, pass `()` as the Store to
    /// [`Raft::with_transport`].
    ///
    /// It is started, stopped and replaced as any other. [`Mailbox::leader_changes`] tells who
    /// leads, [`Mailbox::resign`] hands leadership over, [`Config::min_members`] keeps the first
    /// election back until there are enough.
    ///
    /// # Fencing
    /// A leader that is cut off, or paused, learns late that it leads no more: for a moment two
    /// nodes take themselves for the leader. What the leader does elsewhere (a write to a shared
    /// disk, an order to a machine) must therefore carry the *term* of its leadership as a token, and
    /// who receives it must remember the highest token seen, and refuse lower ones
    /// (`examples/election.rs`). Terms are made for it: each has one leader at most, a later leader
    /// has a higher one, and it is durable on a majority before this node says that it leads. They
    /// begin again when the cluster is founded again, after the loss of all disks, or of volatile
    /// nodes all stopped at once.
    ///
    /// # Errors
    /// As [`Raft::new`].
    pub fn election<A: ToSocketAddrs>(listen: A, logger: Logger, config: Config) -> Result<Self> {
        Self::new(listen, (), logger, config)
    }
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

    /// Runs this node until it is told to stop, leaves or fails: the call that is right on every
    /// start, with the same list of addresses on every node.
    ///
    /// - A directory with data resumes, whatever it is given.
    /// - An empty one enters the cluster that any of the addresses belongs to, as a learner that is
    ///   promoted once it has caught up.
    /// - Where there is no cluster, the nodes at these addresses found one together, once all of
    ///   them are there; until then they wait, and say for whom, in the log and in
    ///   [`Status::health`](crate::Status). Whether its own address is in the list makes no
    ///   difference; a list of nothing else, or none, founds a cluster of one.
    ///
    /// ```no_run
    /// # async fn on_node_1(raft: raftline::Raft<impl raftline::Store>) -> raftline::Result<()> {
    /// raft.start(1, ["10.0.0.1:5000", "10.0.0.2:5000", "10.0.0.3:5000"]).await
    /// # }
    /// ```
    ///
    /// All founding members are needed once, to found; afterwards a majority is enough. They must
    /// be listed under the addresses at which the others reach them
    /// ([`Config::advertise_addr`](crate::Config::advertise_addr), or where they listen). With
    /// [`Config::bootstrap_expect`](crate::Config::bootstrap_expect) the addresses are seeds, and
    /// so many nodes found, whichever come first.
    ///
    /// Any number of nodes may be started at once, in any order, killed and started again at any
    /// moment: there is never more than one cluster. A node that has lost its disk never founds
    /// while another founding member that has not can be waited for.
    ///
    /// # Errors
    /// `Config` when the nodes were given different lists, when two have the same id, or when the
    /// own address is not in the list under which the others know it; `WrongCluster` when two of
    /// the addresses belong to different clusters; those of [`Raft::join`]; else what the node
    /// could not start or go on with.
    ///
    /// # Cancel safety
    /// As for [`Raft::lead`].
    pub fn start<A: Into<String>>(
        self,
        id: NodeId,
        peers: impl IntoIterator<Item = A>,
    ) -> impl Future<Output = Result<()>> + Send + 'static {
        let given = peers.into_iter().map(Into::into).collect();
        self.run(id, None, Entry::Start { given })
    }

    /// Runs this node until it is told to stop or fails. An empty directory becomes the only
    /// member of a new cluster; one with data resumes, whatever cluster it belongs to.
    ///
    /// *Leading* an empty directory means: there is no cluster yet, and this node alone is to be
    /// the first of it; the others join. That is for a person to know. It is refused when any
    /// address in `Config::peers`, or one that `find_leader_info` was given, belongs to a cluster.
    /// An address that does not answer cannot say so: it may be down, or cut off, with the cluster
    /// behind it, and then there are two. The log warns and names it. Where a program decides,
    /// [`Raft::start`] is the call: it never founds while one of the others cannot be asked.
    ///
    /// # Errors
    /// `ClusterExists` when the directory is empty and a known address belongs to a cluster;
    /// `DataDir` when it has agreed to found one with others; else what the node could not start
    /// or go on with.
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
            Err(e @ Error::Removed { .. }) => {
                warn!(logger, "ended: no member any more"; "node" => id, "reason" => %e);
            }
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
        shared.update_view(|view| {
            view.addr.clone_from(&addr);
            view.seeds = [entry.given(), &shared.config.peers].concat();
        });
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

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
