//! Empty nodes that are started at once and killed while they found: there is one cluster, and it
//! takes writes.

use std::path::Path;
use std::time::Duration;

use raftline::testing::rng::Rng;
use tokio::time::{Instant, sleep_until};

use crate::Failure;
use crate::client::Client;
use crate::cluster::Cluster;
use crate::patience::Patience;
use crate::places;

/// An election timeout of 200 ms.
const SETTINGS: &str =
    r#"{ "heartbeat": "20ms", "election_tick": 10, "request_timeout": "1500ms" }"#;
/// Every node is started within this, in any order.
const STARTS: u64 = 400;
/// Nodes are killed within this.
const KILLS: u64 = 900;
/// A killed node is started again within this.
const AGAIN: u64 = 250;
/// A write that is not taken within this never will be.
const PATIENCE: Duration = Duration::from_secs(60);

/// What came of so many foundings.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) clusters: usize,
    pub(crate) kills: usize,
    /// Kills of nodes that did not belong to a cluster yet.
    pub(crate) before: usize,
    /// The longest time from the last start to a cluster of all.
    pub(crate) longest: Duration,
}

/// What happens to a node, and when: milliseconds from the beginning.
#[derive(Clone, Copy, Debug)]
enum Happening {
    Start(u64),
    Kill(u64),
}

/// Starts and kills, in the order of their times. In the end every node has been started.
fn deal(rng: &mut Rng, nodes: u64) -> Vec<(u64, Happening)> {
    let mut all = Vec::new();
    for id in 1..=nodes {
        let mut at = rng.below(STARTS);
        all.push((at, Happening::Start(id)));
        // None, or one after the other.
        while rng.below(5) < 2 {
            at += 1 + rng.below(KILLS / 2);
            if at > KILLS {
                break;
            }
            all.push((at, Happening::Kill(id)));
            at += rng.below(AGAIN);
            all.push((at, Happening::Start(id)));
        }
    }
    all.sort_by_key(|(at, _)| *at);
    all
}

/// Founds one cluster of so many nodes.
///
/// # Errors
/// When there is none, or more than one, or it loses a write; in words.
pub(crate) async fn run(
    nodes: u64,
    program: &Path,
    dir: &Path,
    rng: &mut Rng,
    told: &mut Told,
) -> Result<(), Failure> {
    std::fs::create_dir_all(dir)?;
    let mut cluster = places::with_settings(nodes, program, dir, SETTINGS)?;
    let begun = Instant::now();
    for (at, what) in deal(rng, nodes) {
        sleep_until(begun + Duration::from_millis(at)).await;
        match what {
            Happening::Start(id) => cluster.start(id)?,
            Happening::Kill(id) => {
                cluster.kill(id)?;
                told.kills += 1;
                told.before += usize::from(!belongs(&cluster, id));
            }
        }
    }
    let started = Instant::now();
    cluster.wait_for_voters().await?;
    told.longest = told.longest.max(started.elapsed());
    let mut ids = Vec::new();
    for id in cluster.ids() {
        let status = cluster.wait_until(id, "following a leader", |s| s["leader_id"] != 0).await?;
        ids.push(status["cluster_id"].as_str().unwrap_or_default().to_owned());
    }
    if ids.iter().any(|id| *id != ids[0] || id.is_empty()) {
        return Err(format!("there is more than one cluster: {ids:?}").into());
    }
    write_and_read(&cluster).await?;
    told.clusters += 1;
    Ok(())
}

/// Whether the directory of a node says that it belongs to a cluster (docs/wal-format.md).
fn belongs(cluster: &Cluster, id: u64) -> bool {
    let node = cluster.nodes.iter().find(|n| n.id == id);
    let bytes = node.and_then(|n| std::fs::read(n.data.join("identity")).ok());
    bytes.and_then(|b| b.get(12).copied()).is_some_and(|flags| flags & 1 == 1)
}

/// What was written through each node is read from all.
async fn write_and_read(cluster: &Cluster) -> Result<(), Failure> {
    for (writer, http) in cluster.faces() {
        let (path, value) = (format!("/kv/from-{writer}"), format!("value {writer}"));
        let mut client = Client::new(http);
        let mut patience = Patience::new(PATIENCE);
        while !client.request("PUT", &path, value.as_bytes()).await.is_ok_and(|r| r.status == 200) {
            if patience.is_over() {
                return Err(format!("node {writer} takes no write").into());
            }
        }
        for (reader, http) in cluster.faces() {
            let mut client = Client::new(http);
            let mut patience = Patience::new(PATIENCE);
            loop {
                match client.request("GET", &path, b"").await {
                    Ok(read) if read.status == 200 && read.body == value.as_bytes() => break,
                    Ok(read) if read.status == 200 || read.status == 404 => {
                        return Err(
                            format!("node {reader} does not have what {writer} wrote").into()
                        );
                    }
                    last if patience.is_over() => {
                        return Err(format!("node {reader} answers no read: {last:?}").into());
                    }
                    _ => {}
                }
            }
        }
    }
    Ok(())
}
