//! Three processes of a variant: started, asked, and killed in the end.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command as Process, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use peers::Result;
use peers::results::Measured;
use serde::de::DeserializeOwned;
use tempfile::TempDir;

use crate::load::Load;
use crate::node::{Command, View};
use crate::variants::{Variant, etcd};

/// How many nodes.
pub const NODES: u64 = 3;
/// A cluster that is not ready by then never will be.
const START: Duration = Duration::from_secs(60);
/// What a node may take to answer, beside the time of a load.
const ANSWER: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);

/// A process that dies with its handle.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process that obeys.
struct Node {
    stdin: ChildStdin,
    answers: Receiver<String>,
    process: Killed,
}

/// See the module.
pub struct Cluster {
    nodes: Vec<Node>,
    /// Processes that hold the data when the nodes are clients only.
    servers: Vec<Killed>,
    variant: Variant,
    addrs: Vec<String>,
    dir: TempDir,
}

/// Addresses that were free a moment ago.
pub fn free_addrs(count: u64) -> Result<Vec<String>> {
    let held = (0..count).map(|_| TcpListener::bind("127.0.0.1:0"));
    let held = held.collect::<std::io::Result<Vec<_>>>()?;
    held.iter().map(|listener| Ok(listener.local_addr()?.to_string())).collect()
}

/// A fresh directory beside the program, on the disk that is to be measured.
pub fn data_dir() -> Result<TempDir> {
    let exe = std::env::current_exe()?;
    let beside = exe.parent().unwrap_or(Path::new("."));
    Ok(tempfile::Builder::new().prefix("peers-data-").tempdir_in(beside)?)
}

/// Only JSON objects are answers: libraries print, too.
fn read(stdout: ChildStdout) -> Receiver<String> {
    let (answer, answers) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(std::io::Result::ok) {
            if line.starts_with('{') && answer.send(line).is_err() {
                return;
            }
        }
    });
    answers
}

impl Node {
    fn start(variant: Variant, id: u64, addrs: &[String], dir: &Path) -> Result<Self> {
        let mut process = Process::new(std::env::current_exe()?);
        process.args(["node", &variant.to_string(), "--id", &id.to_string()]);
        process.args(["--addrs", &addrs.join(",")]).arg("--dir").arg(dir);
        let mut child = process.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let pipes = (child.stdin.take(), child.stdout.take());
        let process = Killed(child);
        let (Some(stdin), Some(stdout)) = pipes else { return Err("a node without pipes".into()) };
        Ok(Self { stdin, answers: read(stdout), process })
    }

    fn ask<T: DeserializeOwned>(&mut self, command: &Command, patience: Duration) -> Result<T> {
        writeln!(self.stdin, "{}", serde_json::to_string(command)?)?;
        self.stdin.flush()?;
        let answer = self.answers.recv_timeout(patience);
        let answer = answer.map_err(|_| "a node has ended, or hangs")?;
        Ok(serde_json::from_str(&answer)?)
    }

    fn view(&mut self) -> Result<View> {
        self.ask(&Command::View, ANSWER)
    }
}

impl Cluster {
    /// Starts it and waits until every node sees the same leader of three voters.
    pub fn start(variant: Variant) -> Result<Self> {
        let (addrs, dir) = (free_addrs(NODES)?, data_dir()?);
        let mut cluster = Self { nodes: Vec::new(), servers: Vec::new(), variant, addrs, dir };
        if variant == Variant::Etcd {
            let clients = free_addrs(NODES)?;
            cluster.servers = etcd::servers(&cluster.addrs, &clients, cluster.dir.path())?;
            cluster.addrs = clients;
            cluster.spawn(1)?;
        } else {
            for id in 1..=NODES {
                cluster.spawn(id)?;
                if variant.one_by_one() {
                    cluster.leader_of(id as usize)?;
                }
            }
        }
        cluster.leader_of(NODES as usize)?;
        Ok(cluster)
    }

    fn spawn(&mut self, id: u64) -> Result<()> {
        let dir = self.dir.path().join(id.to_string());
        std::fs::create_dir_all(&dir)?;
        self.nodes.push(Node::start(self.variant, id, &self.addrs, &dir)?);
        Ok(())
    }

    /// Whom all see as the leader of so many voters, and since which term.
    fn leader_of(&mut self, voters: usize) -> Result<(u64, u64)> {
        let begin = Instant::now();
        loop {
            let views = self.nodes.iter_mut().map(Node::view).collect::<Result<Vec<_>>>()?;
            let leader = views.first().map_or(0, |view| view.leader);
            let agreed = |view: &View| view.leader == leader && view.voters >= voters;
            if leader != 0 && views.iter().all(agreed) {
                return Ok((leader, views.iter().map(|view| view.term).max().unwrap_or(0)));
            }
            if begin.elapsed() > START {
                return Err(format!("no agreement on a leader of {voters}: {views:?}").into());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Loads the leader, from within its process where that is possible. Tells, too, whether there
    /// was an election meanwhile.
    pub fn load(&mut self, load: &Load) -> Result<(Measured, bool)> {
        let before = self.leader_of(NODES as usize)?;
        let leader = before.0 as usize - 1;
        let holders: Vec<&Killed> = match self.servers.is_empty() {
            true => self.nodes.iter().map(|node| &node.process).collect(),
            false => self.servers.iter().collect(),
        };
        let mut pids: Vec<u32> = holders.iter().map(|process| process.0.id()).collect();
        pids.rotate_left(leader);
        let asked = if self.servers.is_empty() { leader } else { 0 };
        let node = self.nodes.get_mut(asked).ok_or("a leader that is no node")?;
        if !self.servers.is_empty() {
            pids.push(node.process.0.id());
        }
        let patience = ANSWER + load.warmup + load.window;
        let measured = node.ask(&Command::Load(Load { pids, ..load.clone() }), patience)?;
        Ok((measured, self.leader_of(NODES as usize)? != before))
    }
}
