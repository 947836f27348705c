//! A full disk: the data of one node is on a small file system, which is filled up.
//!
//! The node must end with an error that says why, before anything that it could not write is
//! acknowledged; the others go on; and with space again it comes back and has everything.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::time::sleep;

use crate::Failure;
use crate::client::Client;
use crate::clients::{perform, read};
use crate::cluster::{Cluster, PATIENCE};
use crate::history::{History, Op, Outcome, save};
use crate::patience::Patience;
use crate::verdict::judge;

const SIZE: &str = "size=4m";
const ROUNDS: usize = 2;
/// A node that has taken part in so many rounds of writes with a full disk has written nothing.
const ROUNDS_FULL: usize = 100;
/// Writes before, during and after.
const WRITES: usize = 300;

/// A small file system in memory; unmounted when dropped.
#[derive(Debug)]
pub(crate) struct Small(PathBuf);

impl Small {
    /// Mounts one on a new directory.
    ///
    /// # Errors
    /// When that is not allowed.
    pub(crate) fn mount(dir: &Path) -> Result<Self, Failure> {
        std::fs::create_dir_all(dir)?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", SIZE, "tmpfs"]).arg(dir).stdin(Stdio::null());
        let output = mount.output().map_err(|e| format!("cannot run mount: {e}"))?;
        if output.status.success() {
            return Ok(Self(dir.to_owned()));
        }
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned().into())
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    /// Leaves no byte free.
    fn fill(&self) -> Result<(), Failure> {
        use std::io::Write;
        let mut file = std::fs::File::create(self.ballast())?;
        for size in [64 << 10, 4 << 10] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
        Ok(())
    }

    fn free(&self) -> Result<(), Failure> {
        Ok(std::fs::remove_file(self.ballast())?)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Fills the disk of one node, a few times; tells how it went.
///
/// # Errors
/// When a promise was broken.
pub(crate) async fn run(
    cluster: &mut Cluster,
    victim: u64,
    disk: &Small,
    dir: &Path,
) -> Result<String, Failure> {
    cluster.found().await?;
    let history = History::new();
    let (mut written, mut tried) = (0, 0);
    for round in 0..ROUNDS {
        write(cluster, &history, &mut written, &mut tried).await?;
        disk.fill()?;
        let mut ended = None;
        let mut rounds = 0;
        while ended.is_none() {
            if rounds == ROUNDS_FULL {
                return Err("the node with the full disk goes on".into());
            }
            rounds += 1;
            // The others are a majority: every write must go through.
            write(cluster, &history, &mut written, &mut tried).await?;
            ended = match cluster.alive() {
                Ok(()) => None,
                Err(_) => Some(cluster.wait_for_end(victim).await?),
            };
        }
        let (success, log) = ended.unwrap_or_default();
        if success {
            return Err("the node with the full disk ended as if nothing had happened".into());
        }
        if !log.to_lowercase().contains("no space left") {
            return Err(format!("node {victim} does not say that its disk is full").into());
        }
        disk.free()?;
        if round % 2 == 1 {
            write(cluster, &history, &mut written, &mut tried).await?;
        }
        cluster.start(victim)?;
        cluster.wait_for_leader(PATIENCE).await?;
    }
    write(cluster, &history, &mut written, &mut tried).await?;
    let read = read_back(cluster, &history).await;
    let records = history.records();
    save(&records, &dir.join("history.jsonl"))?;
    read?;
    let verdict = judge(&records)?;
    Ok(format!("{ROUNDS} times full, {written} writes acknowledged, all there; {verdict}"))
}

/// Writes through the nodes in turn until so many were acknowledged. Each try is a client of its own,
/// with a value of its own.
async fn write(
    cluster: &Cluster,
    history: &History,
    written: &mut usize,
    tried: &mut usize,
) -> Result<(), Failure> {
    let faces = cluster.faces();
    let mut clients: Vec<_> = faces.iter().map(|(_, addr)| Client::new(addr.as_str())).collect();
    let (mut done, mut patience) = (0, Patience::new(PATIENCE));
    while done < WRITES {
        for (client, (node, _)) in clients.iter_mut().zip(&faces) {
            if client.open().await.is_err() {
                continue;
            }
            *tried += 1;
            let op = Op::Put { value: format!("w{tried}.") };
            let key = format!("key-{}", *written / 40);
            let outcome = perform(history, client, *tried, *node, &key, op).await?;
            if matches!(outcome, Outcome::Written { .. }) {
                *written += 1;
                done += 1;
                patience.renew();
            }
        }
        if patience.is_over() {
            return Err("the nodes with space left do not take writes".into());
        }
        sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// Reads every key through every node.
async fn read_back(cluster: &mut Cluster, history: &History) -> Result<(), Failure> {
    let mut keys: Vec<_> = history.records().into_iter().map(|r| r.key).collect();
    keys.sort();
    keys.dedup();
    let mut number = usize::MAX;
    for (node, addr) in cluster.faces() {
        cluster.wait_until(node, "in touch with a leader", |s| s["leader_id"] != 0).await?;
        let mut client = Client::new(addr);
        for key in &keys {
            read(history, &mut client, &mut number, node, key).await?;
        }
    }
    Ok(())
}
