//! A proxy in front of every node, with a state of its own for every directed link.
//!
//! Nodes advertise the addresses of their proxies, so that all that one node says to another
//! passes here. Who dialled is told by the owner of the connection's other end, which the kernel
//! lists: nodes need no knowledge of being proxied.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use raftline::testing::rng::Rng;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};

use crate::Failure;
use crate::link::{Mode, State, carry};

/// Process ids of the running nodes, by node id.
pub(crate) type Pids = Arc<Mutex<HashMap<u64, u32>>>;

/// One directed link.
#[derive(Debug, Default)]
struct Link {
    state: watch::Sender<State>,
    connections: AtomicUsize,
    /// Chunks delivered after the connection that carried them was reset.
    late: AtomicUsize,
}

type Links = Arc<HashMap<(u64, u64), Arc<Link>>>;

/// All links between the nodes.
#[derive(Debug)]
pub(crate) struct Proxies {
    links: Links,
    /// Aborted when dropped.
    _tasks: JoinSet<()>,
}

/// Where one node listens, and where the others believe it to.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    pub(crate) id: u64,
    pub(crate) proxy: String,
    pub(crate) target: String,
}

impl Proxies {
    /// Listens in front of every node.
    ///
    /// # Errors
    /// When an address is taken.
    pub(crate) async fn start(doors: &[Door], pids: &Pids, seed: u64) -> Result<Self, Failure> {
        let ids: Vec<_> = doors.iter().map(|d| d.id).collect();
        let pairs = ids.iter().flat_map(|a| ids.iter().map(|b| (*a, *b))).filter(|(a, b)| a != b);
        let links: Links = Arc::new(pairs.map(|pair| (pair, Arc::default())).collect());
        let mut tasks = JoinSet::new();
        for door in doors {
            let listener = TcpListener::bind(door.proxy.as_str()).await?;
            let rng = Rng::new(seed ^ door.id);
            tasks.spawn(accept(listener, door.clone(), pids.clone(), Arc::clone(&links), rng));
        }
        Ok(Self { links, _tasks: tasks })
    }

    /// Changes what a link does.
    pub(crate) fn set(&self, from: u64, to: u64, mode: Mode) {
        if let Some(link) = self.links.get(&(from, to)) {
            link.state.send_modify(|s| s.mode = mode);
        }
    }

    /// Resets the connections of a link.
    pub(crate) fn reset(&self, from: u64, to: u64) {
        if let Some(link) = self.links.get(&(from, to)) {
            link.state.send_modify(|s| s.resets += 1);
        }
    }

    /// The links that never carried a connection.
    pub(crate) fn unused(&self) -> Vec<(u64, u64)> {
        let unused = |(_, link): &(_, &Arc<Link>)| link.connections.load(Ordering::Relaxed) == 0;
        self.links.iter().filter(unused).map(|(pair, _)| *pair).collect()
    }

    /// Chunks that were delivered late, see [`Mode::Late`].
    pub(crate) fn late(&self) -> usize {
        self.links.values().map(|link| link.late.load(Ordering::Relaxed)).sum()
    }
}

async fn accept(listener: TcpListener, door: Door, pids: Pids, links: Links, mut rng: Rng) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // Out of descriptors, or gone before it was accepted: the node will dial again.
                let Ok((stream, _)) = accepted else { continue };
                let source = dialler(&stream, &pids);
                let Some(link) = source.and_then(|id| links.get(&(id, door.id))) else { continue };
                let rng = Rng::new(rng.next_u64());
                let (target, link) = (door.target.clone(), Arc::clone(link));
                link.connections.fetch_add(1, Ordering::Relaxed);
                connections.spawn(async move {
                    // What fails here fails at both ends, who must cope.
                    let late = carry(stream, &target, link.state.subscribe(), rng).await;
                    link.late.fetch_add(late.unwrap_or(0), Ordering::Relaxed);
                });
            }
            Some(ended) = connections.join_next() => {
                if let Some(panic) = ended.err().filter(JoinError::is_panic) {
                    // Nothing is accepted any more: the run fails, as it must.
                    std::panic::resume_unwind(panic.into_panic());
                }
            }
        }
    }
}

/// The node at the other end of a connection; None when its process has ended meanwhile.
fn dialler(stream: &TcpStream, pids: &Pids) -> Option<u64> {
    let port = stream.peer_addr().ok()?.port();
    let own = stream.local_addr().ok()?.port();
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let inode = table.lines().skip(1).find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let ends = (fields.get(1)?.rsplit_once(':')?.1, fields.get(2)?.rsplit_once(':')?.1);
        let ends = (u16::from_str_radix(ends.0, 16).ok()?, u16::from_str_radix(ends.1, 16).ok()?);
        (ends == (port, own)).then(|| fields.get(9).map(|inode| (*inode).to_owned())).flatten()
    })?;
    let wanted = format!("socket:[{inode}]");
    let pids = pids.lock().unwrap_or_else(PoisonError::into_inner).clone();
    pids.into_iter().find(|(_, pid)| owns(*pid, &wanted)).map(|(id, _)| id)
}

fn owns(pid: u32, socket: &str) -> bool {
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    descriptors
        .flatten()
        .filter_map(|d| std::fs::read_link(d.path()).ok())
        .any(|link| link.as_os_str() == socket)
}
