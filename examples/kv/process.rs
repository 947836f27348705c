//! Nodes as child processes of this program.

use std::fs::{File, OpenOptions};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Failure;
use crate::client::Client;

/// A node that is not where it should be after this long has failed.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);
/// Below the ports that systems hand out for outgoing connections, so that nothing takes the port
/// of a node while it is down.
const PORTS: std::ops::Range<u16> = 10_000..30_000;

/// Where a node of the drill lives.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) id: u64,
    pub(crate) raft: String,
    pub(crate) http: String,
    peers: Vec<String>,
    dir: PathBuf,
}

/// Places for nodes 1 to `n` on free loopback ports.
///
/// # Errors
/// When there are not enough free ports.
pub(crate) fn places(n: u64, dir: &Path) -> Result<Vec<Place>, Failure> {
    let mut ports = free_ports().map(|port| format!("127.0.0.1:{port}"));
    let mut pair = || Some((ports.next()?, ports.next()?));
    let mut places = Vec::new();
    for id in 1..=n {
        let (raft, http) = pair().ok_or("no free ports on 127.0.0.1")?;
        let dir = dir.join(format!("node-{id}"));
        places.push(Place { id, raft, http, peers: Vec::new(), dir });
    }
    let all: Vec<_> = places.iter().map(|p| p.raft.clone()).collect();
    for place in &mut places {
        place.peers.clone_from(&all);
    }
    Ok(places)
}

fn free_ports() -> impl Iterator<Item = u16> {
    let span = u32::from(PORTS.end - PORTS.start);
    let first = std::process::id().wrapping_mul(97) % span;
    (0..span)
        .filter_map(move |n| u16::try_from((first + n) % span).ok())
        .map(|n| PORTS.start + n)
        .filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
}

/// A running node; killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) place: Place,
    child: Child,
}

impl Process {
    /// Starts the node of a place: the same command line at every start.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub(crate) fn start(place: &Place) -> Result<Self, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("node").args(["--id", &place.id.to_string()]);
        command.args(["--raft-addr", &place.raft, "--http-addr", &place.http]);
        command.arg("--data-dir").arg(&place.dir);
        for peer in &place.peers {
            command.args(["--peer", peer]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log_file(place)?);
        Ok(Self { place: place.clone(), child: command.spawn()? })
    }

    /// Ends the process at once (SIGKILL): nothing of it gets a chance to finish.
    ///
    /// # Errors
    /// When it had ended already.
    pub(crate) fn kill(mut self) -> Result<Place, Failure> {
        if let Some(status) = self.child.try_wait()? {
            return Err(format!("node {} ended by itself: {status}", self.place.id).into());
        }
        self.child.kill()?;
        self.child.wait()?;
        Ok(self.place.clone())
    }

    /// Waits until the node's status satisfies a condition.
    ///
    /// # Errors
    /// When it never does, or the process has ended; with the last status.
    pub(crate) async fn wait_until(
        &mut self,
        what: &str,
        condition: impl Fn(&Value) -> bool,
    ) -> Result<Value, Failure> {
        let started = Instant::now();
        let mut client = Client::new(self.place.http.as_str());
        loop {
            if let Some(status) = self.child.try_wait()? {
                let log = log_path(&self.place);
                let id = self.place.id;
                return Err(format!("node {id} ended ({status}); see {}", log.display()).into());
            }
            let status = client.status().await;
            match status {
                Ok(status) if condition(&status) => return Ok(status),
                last if started.elapsed() > PATIENCE => {
                    let id = self.place.id;
                    return Err(format!("node {id} is not {what} in time: {last:?}").into());
                }
                _ => tokio::time::sleep(PAUSE).await,
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn log_path(place: &Place) -> PathBuf {
    place.dir.with_extension("log")
}

fn log_file(place: &Place) -> Result<File, Failure> {
    let path = log_path(place);
    let file = OpenOptions::new().create(true).append(true).open(&path);
    Ok(file.map_err(|e| format!("{}: {e}", path.display()))?)
}
