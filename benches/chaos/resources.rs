//! What the nodes use, sampled while they are mistreated, and who led.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::sleep;

use crate::cluster::status;
use crate::proxy::Pids;

const BETWEEN: Duration = Duration::from_millis(150);

/// What no node may exceed at any time. The state is a few hundred KiB, a log segment 256 KiB.
pub(crate) const LIMITS: Peak = Peak { resident: 96 << 20, descriptors: 128, disk: 8 << 20 };

/// The most that any node used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Peak {
    /// Resident memory in bytes.
    pub(crate) resident: u64,
    /// Open file descriptors.
    pub(crate) descriptors: u64,
    /// Bytes of the data directory.
    pub(crate) disk: u64,
}

impl fmt::Display for Peak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let (resident, disk) = (mib(self.resident), mib(self.disk));
        write!(
            f,
            "{resident:.0} MiB resident, {} descriptors, {disk:.1} MiB disk",
            self.descriptors
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
}

/// Samples until the receiver of `seen` says stop.
pub(crate) async fn watch(
    nodes: Vec<Watched>,
    pids: Pids,
    mut stop: tokio::sync::oneshot::Receiver<()>,
) -> Seen {
    let mut seen = Seen::default();
    while stop.try_recv() == Err(tokio::sync::oneshot::error::TryRecvError::Empty) {
        for node in &nodes {
            let pid = pids.lock().unwrap_or_else(PoisonError::into_inner).get(&node.id).copied();
            // Dead nodes use nothing but disk; paused ones tell nothing.
            if let Some(pid) = pid {
                seen.peak.resident = seen.peak.resident.max(resident(pid));
                seen.peak.descriptors = seen.peak.descriptors.max(descriptors(pid));
                seen.samples += 1;
            }
            seen.peak.disk = seen.peak.disk.max(size(&node.data));
            let Some(status) = status(&node.http).await else { continue };
            if status["role"] == "leader" {
                let term = status["term"].as_u64().unwrap_or(0);
                let known = *seen.leaders.entry(term).or_insert(node.id);
                if known != node.id {
                    seen.rivals.push(format!("{known} and {} both lead term {term}", node.id));
                }
            }
        }
        sleep(BETWEEN).await;
    }
    seen
}

fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).unwrap_or(0) << 10
}

fn descriptors(pid: u32) -> u64 {
    Path::new(&format!("/proc/{pid}/fd")).read_dir().map_or(0, |d| d.count() as u64)
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
