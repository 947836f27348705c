//! What the nodes use, sampled while they are mistreated, and who led.
//!
//! Descriptors are told apart by what they are for, as the kernel lists them, so that each kind has
//! a limit of its own ([`limits`]), made of what the configuration allows.
//!
//! NB: a process that was just started is still a copy of the one that started it: until the
//! kernel has closed what is not to be inherited, it shows all descriptors and the memory of this
//! program. A sample counts only while the process runs the program of a node.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::client::Client;
use crate::clients::PER_NODE;
use crate::proxy::Pids;

const BETWEEN: Duration = Duration::from_millis(150);
/// A node that does not tell its status within this is paused or busy; the next sample asks again.
const STATUS: Duration = Duration::from_millis(300);
/// The state of a listening socket in the kernel's table.
const LISTEN: &str = "0A";

/// The most that any node used, or may use at any time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Peak {
    /// Resident memory in bytes.
    pub(crate) resident: u64,
    /// Bytes of the data directory.
    pub(crate) disk: u64,
    pub(crate) descriptors: Descriptors,
}

/// Open file descriptors, by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Descriptors {
    /// Connections that other nodes opened.
    pub(crate) raft_in: u64,
    /// Connections to other nodes.
    pub(crate) raft_out: u64,
    /// Connections of HTTP clients.
    pub(crate) http: u64,
    /// Sockets that the kernel does not list as connected: just made, or reset and not yet let go
    /// of; and the few that are not of TCP.
    pub(crate) loose: u64,
    /// Files of the data directory, and the log.
    pub(crate) files: u64,
    /// Listeners, and what the runtime needs.
    pub(crate) other: u64,
}

/// What no node of a cluster of so many may exceed at any time.
///
/// To each peer a node has two lanes, one connection for the requests that it forwards and, now
/// and then, one for a snapshot: four; and its peers have as many to it. Towards a peer there may
/// be two generations of them, one that broke and is being let go of, and its successor. From a
/// peer there may be three: a link that resets connections and delivers late what they carried
/// has an abandoned one on its way while the last one stands and the next one is being made. What
/// breaks is loose for a moment, at worst all of it at once.
///
/// Beside that there are the clients of this program, each with one connection, the sampler and
/// whoever asks for the status; a node that was paused finds a few generations of those at its
/// door. Files: standard input, output and error, the lock, the directory, some segments of the
/// log, written, read or about to be removed, and a snapshot to or from each peer.
///
/// The state is a few hundred KiB, a log segment 256 KiB.
pub(crate) fn limits(nodes: usize) -> Peak {
    const PER_PEER: u64 = 2 + 1 + 1;
    let peers = nodes.saturating_sub(1) as u64;
    let (raft_in, raft_out) = (3 * PER_PEER * peers, 2 * PER_PEER * peers);
    let descriptors = Descriptors {
        raft_in,
        raft_out,
        http: 8 * (PER_NODE as u64 + 2),
        loose: 8 + raft_in + raft_out,
        files: 12 + 2 * peers,
        other: 16,
    };
    Peak { resident: 96 << 20, disk: 8 << 20, descriptors }
}

impl Peak {
    /// The most of both, of each figure.
    fn max(self, other: Self) -> Self {
        let (a, b) = (self.descriptors, other.descriptors);
        Self {
            resident: self.resident.max(other.resident),
            disk: self.disk.max(other.disk),
            descriptors: Descriptors {
                raft_in: a.raft_in.max(b.raft_in),
                raft_out: a.raft_out.max(b.raft_out),
                http: a.http.max(b.http),
                loose: a.loose.max(b.loose),
                files: a.files.max(b.files),
                other: a.other.max(b.other),
            },
        }
    }

    /// Whether no figure exceeds that of the limits.
    pub(crate) fn is_within(self, limits: Self) -> bool {
        self.max(limits) == limits
    }
}

impl fmt::Display for Peak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let (resident, disk, d) = (mib(self.resident), mib(self.disk), self.descriptors);
        write!(
            f,
            "{resident:.0} MiB resident, {disk:.1} MiB disk, descriptors: {} from peers, {} to \
             peers, {} http, {} loose, {} files, {} other",
            d.raft_in, d.raft_out, d.http, d.loose, d.files, d.other
        )
    }
}

/// What was seen over a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) peak: Peak,
    pub(crate) samples: u64,
    /// The leader of every term that a sample saw one of.
    pub(crate) leaders: BTreeMap<u64, u64>,
    /// Two leaders in one term, in words.
    pub(crate) rivals: Vec<String>,
}

impl Seen {
    /// How often leadership went to another node.
    pub(crate) fn leader_changes(&self) -> usize {
        let ids: Vec<_> = self.leaders.values().collect();
        ids.windows(2).filter(|w| w[0] != w[1]).count()
    }
}

/// A node to watch.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    pub(crate) id: u64,
    pub(crate) http: String,
    pub(crate) data: PathBuf,
    /// What its process runs.
    pub(crate) program: PathBuf,
    /// Where it listens for other nodes.
    pub(crate) listen: String,
    /// Where it reaches them.
    pub(crate) peers: Vec<String>,
}

/// Samples until told to stop, and tells meanwhile how often the leader changed.
pub(crate) async fn watch(
    nodes: Vec<Watched>,
    pids: Pids,
    changes: Arc<AtomicUsize>,
    mut stop: tokio::sync::oneshot::Receiver<()>,
) -> Seen {
    let mut seen = Seen::default();
    let mut clients: Vec<_> = nodes.iter().map(|n| Client::new(n.http.as_str())).collect();
    while stop.try_recv() == Err(tokio::sync::oneshot::error::TryRecvError::Empty) {
        for (node, client) in nodes.iter().zip(&mut clients) {
            let pid = pids.lock().unwrap_or_else(PoisonError::into_inner).get(&node.id).copied();
            // Dead nodes use nothing but disk; paused ones tell nothing.
            if let Some(used) = pid.and_then(|pid| node.sample(pid)) {
                seen.peak = seen.peak.max(used);
                seen.samples += 1;
            }
            seen.peak.disk = seen.peak.disk.max(size(&node.data));
            let Ok(Ok(status)) = timeout(STATUS, client.status()).await else { continue };
            if status["role"] == "leader" {
                let term = status["term"].as_u64().unwrap_or(0);
                let known = *seen.leaders.entry(term).or_insert(node.id);
                if known != node.id {
                    seen.rivals.push(format!("{known} and {} both lead term {term}", node.id));
                }
            }
        }
        changes.store(seen.leader_changes(), Ordering::Relaxed);
        sleep(BETWEEN).await;
    }
    seen
}

impl Watched {
    /// What the process uses, without its disk; None unless it runs the program of a node all the
    /// while.
    fn sample(&self, pid: u32) -> Option<Peak> {
        let runs = || is_same(Path::new(&format!("/proc/{pid}/exe")), &self.program);
        if !runs() {
            return None;
        }
        let descriptors = self.descriptors(pid)?;
        let used = Peak { resident: resident(pid)?, disk: 0, descriptors };
        runs().then_some(used)
    }

    fn descriptors(&self, pid: u32) -> Option<Descriptors> {
        let open = Path::new(&format!("/proc/{pid}/fd")).read_dir().ok()?;
        let links: Vec<_> = open
            .flatten()
            .filter_map(|d| Some(d.path().read_link().ok()?.to_string_lossy().into_owned()))
            .collect();
        let sockets = sockets(pid)?;
        let (raft, http) = (port(&self.listen), port(&self.http));
        let mut d = Descriptors::default();
        for link in links {
            let inode = link.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
            let kind = match inode.map(|inode| sockets.get(inode)) {
                None if link.starts_with('/') => &mut d.files,
                None => &mut d.other,
                Some(None) => &mut d.loose,
                Some(Some(s)) if s.listens => &mut d.other,
                Some(Some(s)) if Some(s.local) == raft => &mut d.raft_in,
                Some(Some(s)) if Some(s.local) == http => &mut d.http,
                Some(Some(s)) if self.peers.iter().any(|p| port(p) == Some(s.remote)) => {
                    &mut d.raft_out
                }
                Some(Some(_)) => &mut d.other,
            };
            *kind += 1;
        }
        Some(d)
    }
}

/// A socket in the kernel's table: its ports.
#[derive(Clone, Copy, Debug)]
struct Socket {
    local: u16,
    remote: u16,
    listens: bool,
}

/// The TCP sockets that a process sees, by inode.
fn sockets(pid: u32) -> Option<HashMap<String, Socket>> {
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).ok()?;
    let socket = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let port = |n: usize| u16::from_str_radix(fields.get(n)?.rsplit_once(':')?.1, 16).ok();
        let listens = *fields.get(3)? == LISTEN;
        let socket = Socket { local: port(1)?, remote: port(2)?, listens };
        Some(((*fields.get(9)?).to_owned(), socket))
    };
    Some(table.lines().skip(1).filter_map(socket).collect())
}

fn port(addr: &str) -> Option<u16> {
    addr.rsplit_once(':')?.1.parse().ok()
}

fn is_same(one: &Path, other: &Path) -> bool {
    let id = |path: &Path| path.metadata().ok().map(|m| (m.dev(), m.ino()));
    id(one).is_some_and(|one| Some(one) == id(other))
}

fn resident(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

/// Bytes of the files of a directory; files come and go while it is read.
fn size(dir: &Path) -> u64 {
    let Ok(entries) = dir.read_dir() else { return 0 };
    let sizes = entries.flatten().filter_map(|entry| {
        let kind = entry.file_type().ok()?;
        if kind.is_dir() { Some(size(&entry.path())) } else { Some(entry.metadata().ok()?.len()) }
    });
    sizes.sum()
}
