//! A cluster in one process, over a network in memory, for the tests of programs that embed the
//! crate: start nodes, crash and restart them, cut them off from each other.
//!
//! Nodes are real: event loop, log thread, apply task, real time. Only their disks and their
//! network are memory. A crashed node keeps what it had synced; a restarted one gets it back, and a
//! new Store from the closure, to be filled by snapshot and log.
//!
//! Faults last until they are ended: [`Cluster::partition`] until [`Cluster::heal`],
//! [`Cluster::crash`] until [`Cluster::restart`]. What was asked of a node before stays asked: a
//! proposal to a leader in the minority waits for its deadline and ends as unknown.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use slog::Logger;
use tokio::task::JoinHandle;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::log::memory::MemoryLog;
use crate::mailbox::Mailbox;
use crate::raft::Raft;
use crate::status::{Role, Status};
use crate::store::Store;
use crate::transport::memory::MemoryNetwork;
use crate::types::NodeId;
use crate::vfs::MemVfs;

/// What a crashed node leaves behind.
#[derive(Clone, Debug, Default)]
struct Disk {
    log: MemoryLog,
    files: MemVfs,
}

/// A node of a [`Cluster`], running or not.
#[derive(Debug)]
struct Slot {
    disk: Disk,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    mailbox: Mailbox,
    task: JoinHandle<Result<()>>,
}

/// Nodes in one process, by node id.
pub struct Cluster<S: Store> {
    network: MemoryNetwork,
    config: Config,
    logger: Logger,
    store: Box<dyn Fn(NodeId) -> S + Send + Sync>,
    nodes: BTreeMap<NodeId, Slot>,
}

impl<S: Store> fmt::Debug for Cluster<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("network", &self.network)
            .field("nodes", &self.nodes)
            .finish_non_exhaustive()
    }
}

impl<S: Store> Cluster<S> {
    /// No nodes yet. The seed draws the faults of the network; `store` makes the Store of a node
    /// at each of its starts.
    pub fn new(
        seed: u64,
        config: Config,
        store: impl Fn(NodeId) -> S + Send + Sync + 'static,
    ) -> Self {
        Self {
            network: MemoryNetwork::new(seed),
            config,
            logger: Logger::root(slog::Discard, slog::o!()),
            store: Box::new(store),
            nodes: BTreeMap::new(),
        }
    }

    /// The same with a logger for its nodes.
    #[must_use]
    pub fn with_logger(mut self, logger: Logger) -> Self {
        self.logger = logger;
        self
    }

    /// Starts nodes 1 to `count` and waits until each of them knows that all vote.
    ///
    /// # Errors
    /// When they do not come up within `Config::request_timeout`.
    pub async fn start(&mut self, count: u64) -> Result<()> {
        for id in 1..=count {
            self.add(id)?;
            if id == 1 {
                self.leader().await?;
            }
        }
        let voters = |s: &Status| s.members.iter().filter(|m| m.voter).count() as u64;
        for id in 1..=count {
            self.mailbox(id)?.wait_for(|s| voters(s) == count && s.leader_id != 0).await?;
        }
        Ok(())
    }

    /// Starts a node with an empty disk: the first one founds the cluster, others join it.
    ///
    /// # Errors
    /// When the node was added before, or the configuration cannot work.
    pub fn add(&mut self, id: NodeId) -> Result<Mailbox> {
        if self.nodes.contains_key(&id) {
            return Err(Error::Membership(format!("node {id} was added before; restart it")));
        }
        self.nodes.insert(id, Slot { disk: Disk::default(), running: None });
        self.restart(id)
    }

    /// Starts a node that has stopped, with the disk that it had.
    ///
    /// # Errors
    /// When it is unknown or runs, or the configuration cannot work.
    pub fn restart(&mut self, id: NodeId) -> Result<Mailbox> {
        let first = self.nodes.keys().copied().find(|n| *n != id);
        let slot = self.nodes.get_mut(&id).ok_or_else(|| unknown(id))?;
        if slot.running.is_some() {
            return Err(Error::Membership(format!("node {id} runs already")));
        }
        let raft = Raft::with_transport(
            Arc::new(self.network.endpoint(addr(id))),
            addr(id),
            (self.store)(id),
            self.logger.new(slog::o!("node" => id)),
            self.config.clone(),
        )?
        .with_log(Box::new(slot.disk.log.clone()), Arc::new(slot.disk.files.clone()));
        let mailbox = raft.mailbox();
        let task = match first {
            Some(first) => tokio::spawn(raft.join(id, addr(id), Some(first), addr(first))),
            None => tokio::spawn(raft.lead(id)),
        };
        slot.running = Some(Running { mailbox: mailbox.clone(), task });
        Ok(mailbox)
    }

    /// Takes the disk of a node that has stopped: when it is restarted it is empty, as after the loss
    /// of a machine, and is let in again under its id once the others have not heard of it for an
    /// election timeout.
    ///
    /// # Errors
    /// When it is unknown or runs.
    pub fn wipe(&mut self, id: NodeId) -> Result<()> {
        let slot = self.nodes.get_mut(&id).ok_or_else(|| unknown(id))?;
        if slot.running.is_some() {
            return Err(Error::Membership(format!("node {id} runs; crash or stop it first")));
        }
        slot.disk = Disk::default();
        Ok(())
    }

    /// Ends a node without warning, as a crash would, and waits until it is gone. What it had not
    /// synced is lost.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn crash(&mut self, id: NodeId) -> Result<()> {
        let running = self.take(id)?;
        running.task.abort();
        // NB: an aborted task has no result.
        let _ = running.task.await;
        running.mailbox.shutdown().await
    }

    /// Ends a node in good order; what its `lead` or `join` returned.
    ///
    /// # Errors
    /// When it does not run, or had failed.
    pub async fn stop(&mut self, id: NodeId) -> Result<()> {
        let running = self.take(id)?;
        running.mailbox.shutdown().await?;
        joined(running.task.await)
    }

    /// Waits until a node has ended by itself, after a `leave` or a failure; what its `lead` or
    /// `join` returned.
    ///
    /// # Errors
    /// When it does not run, or failed.
    pub async fn ended(&mut self, id: NodeId) -> Result<()> {
        let running = self.take(id)?;
        joined(running.task.await)
    }

    /// The handle of a running node.
    ///
    /// # Errors
    /// When it does not run.
    pub fn mailbox(&self, id: NodeId) -> Result<Mailbox> {
        let running = self.nodes.get(&id).and_then(|slot| slot.running.as_ref());
        running.map(|r| r.mailbox.clone()).ok_or_else(|| unknown(id))
    }

    /// The nodes that run.
    pub fn running(&self) -> Vec<NodeId> {
        self.nodes.iter().filter(|(_, slot)| slot.running.is_some()).map(|(id, _)| *id).collect()
    }

    /// Waits until one of the running nodes leads; its id.
    ///
    /// # Errors
    /// `NoLeader` when none does within `Config::request_timeout`.
    pub async fn leader(&self) -> Result<NodeId> {
        if self.running().is_empty() {
            return Err(Error::NoLeader);
        }
        let waits = self.nodes.iter().filter_map(|(id, slot)| {
            let mailbox = slot.running.as_ref()?.mailbox.clone();
            Some(Box::pin(async move {
                mailbox.wait_for(|s| s.role == Role::Leader).await.map(|_| *id)
            }))
        });
        match futures::future::select_ok(waits).await {
            Ok((id, _)) => Ok(id),
            Err(_) => Err(Error::NoLeader),
        }
    }

    /// Cuts the network into these groups: nobody reaches a node of another group, in either
    /// direction, from now on; what is on its way between them is lost.
    ///
    /// Nodes that no group names keep all their links. A further partition adds to what is cut,
    /// until [`Cluster::heal`]. A link belongs to the addresses: a node that is restarted, or added
    /// under an id that a group names, finds it cut. Clients are not cut off: a [`Mailbox`] reaches
    /// its node whatever the network does, as one in the same process would.
    pub fn partition(&self, groups: &[&[NodeId]]) {
        for (i, group) in groups.iter().enumerate() {
            for other in groups.iter().skip(i + 1) {
                for (a, b) in group.iter().flat_map(|a| other.iter().map(move |b| (*a, *b))) {
                    self.network.cut(&addr(a), &addr(b));
                }
            }
        }
    }

    /// Mends every link, whoever cut it, and ends every fault of [`Cluster::network`]. It returns at
    /// once; wait for what comes of it, [`Cluster::leader`] for example.
    pub fn heal(&self) {
        self.network.heal();
    }

    /// The network, for finer faults: cuts in one direction (`cut_one_way`), delay, loss,
    /// duplication (`set_faults`), single links mended (`mend`); node `n` is at [`addr`]`(n)`.
    pub fn network(&self) -> &MemoryNetwork {
        &self.network
    }

    fn take(&mut self, id: NodeId) -> Result<Running> {
        let slot = self.nodes.get_mut(&id).ok_or_else(|| unknown(id))?;
        slot.running.take().ok_or_else(|| unknown(id))
    }
}

/// The address of a node in a [`Cluster`].
pub fn addr(id: NodeId) -> String {
    format!("n{id}:1")
}

fn unknown(id: NodeId) -> Error {
    Error::Membership(format!("node {id} does not run in this cluster"))
}

fn joined(ended: std::result::Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    match ended {
        Ok(result) => result,
        Err(e) => Err(Error::Internal { part: "node task", reason: e.to_string() }),
    }
}
