//! Nodes as child processes, and three of them as a cluster.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::Failure;
use crate::protocol::{Answer, Request};

const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(2);
/// Below the ports that systems hand out for outgoing connections: while a node is down, nothing
/// takes its port.
const FIRST_PORT: u16 = 10_000;
const PORTS: u16 = 20_000;

/// A free address on loopback that was not given before.
pub(crate) fn free_addr() -> Result<String, Failure> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let offset = (std::process::id().wrapping_mul(131) % u32::from(PORTS)) as u16;
    for _ in 0..PORTS {
        let n = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(offset) % PORTS;
        let addr = format!("127.0.0.1:{}", FIRST_PORT + n);
        if TcpListener::bind(&addr).is_ok() {
            return Ok(addr);
        }
    }
    Err("no free port on 127.0.0.1".into())
}

/// A node.
pub(crate) struct Node {
    pub(crate) id: u64,
    pub(crate) addr: String,
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Node {
    fn start(
        id: u64,
        addr: &str,
        dir: &Path,
        memory: bool,
        member: Option<&str>,
    ) -> Result<Self, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["node", "--id", &id.to_string(), "--addr", addr, "--dir"]).arg(dir);
        command.args(memory.then_some("--memory"));
        command.args(member.iter().flat_map(|m| ["--member", m]));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (to, from) = child.stdin.take().zip(child.stdout.take()).ok_or("no pipes")?;
        let from = BufReader::new(from);
        let mut node = Self { id, addr: addr.to_owned(), child, to, from };
        match node.hear()? {
            Answer::Ready => Ok(node),
            other => Err(format!("node {id} began with {other:?}").into()),
        }
    }

    /// Sends a request and waits for the answer.
    pub(crate) fn ask(&mut self, request: &Request) -> Result<Answer, Failure> {
        writeln!(self.to, "{}", serde_json::to_string(request)?)?;
        self.to.flush()?;
        match self.hear()? {
            Answer::Failed(reason) => Err(format!("node {}: {reason}", self.id).into()),
            answer => Ok(answer),
        }
    }

    fn hear(&mut self) -> Result<Answer, Failure> {
        let mut line = String::new();
        if self.from.read_line(&mut line)? == 0 {
            return Err(format!("node {} has ended", self.id).into());
        }
        Ok(serde_json::from_str(&line)?)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Commit index, applied index.
    pub(crate) fn indices(&mut self) -> Result<(u64, u64), Failure> {
        match self.ask(&Request::Status)? {
            Answer::Status { commit, applied, .. } => Ok((commit, applied)),
            other => Err(format!("no status: {other:?}").into()),
        }
    }

    /// Waits until this node has a vote among `voters` and has applied up to `index`.
    pub(crate) fn wait_until_caught_up(
        &mut self,
        voters: usize,
        index: u64,
    ) -> Result<(), Failure> {
        let started = Instant::now();
        loop {
            let answer = self.ask(&Request::Status)?;
            if let Answer::Status { leader, applied, voters: seen, role, .. } = &answer {
                let ready = *leader != 0 && role != "learner" && role != "starting";
                if ready && *seen == voters && *applied >= index {
                    return Ok(());
                }
            }
            if started.elapsed() > PATIENCE {
                return Err(format!("node {} does not catch up: {answer:?}", self.id).into());
            }
            thread::sleep(PAUSE);
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Nodes on one machine, and where their data is.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    dir: tempfile::TempDir,
    memory: bool,
}

impl Cluster {
    /// `count` nodes, all voters, in a fresh directory below `root`.
    pub(crate) fn start(count: u64, memory: bool, root: &Path) -> Result<Self, Failure> {
        let mut cluster = Self { nodes: Vec::new(), dir: tempfile::tempdir_in(root)?, memory };
        for id in 1..=count {
            cluster.add(id)?;
        }
        Ok(cluster)
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn home(&self, id: u64) -> PathBuf {
        self.dir.path().join(id.to_string())
    }

    /// Starts one more node, and waits until it votes and holds what is committed now.
    pub(crate) fn add(&mut self, id: u64) -> Result<(), Failure> {
        let index = self.nodes.first_mut().map(Node::indices).transpose()?.map_or(1, |i| i.0);
        let member = self.nodes.first().map(|n| n.addr.clone());
        let addr = free_addr()?;
        let node = Node::start(id, &addr, &self.home(id), self.memory, member.as_deref())?;
        self.nodes.push(node);
        let voters = self.nodes.len();
        self.nodes.iter_mut().try_for_each(|n| n.wait_until_caught_up(voters, index))
    }

    /// Position of the leader.
    pub(crate) fn leader(&mut self) -> Result<usize, Failure> {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if let Some(Answer::Status { leader, .. }) =
                self.nodes.first_mut().map(|n| n.ask(&Request::Status)).transpose()?
                && let Some(at) = self.nodes.iter().position(|n| n.id == leader)
            {
                return Ok(at);
            }
            thread::sleep(PAUSE);
        }
        Err("no leader".into())
    }

    /// Ends a node with SIGKILL. Gives back what starts it again.
    pub(crate) fn kill(&mut self, at: usize) -> Result<(u64, String), Failure> {
        let mut node = self.nodes.remove(at);
        node.child.kill()?;
        node.child.wait()?;
        Ok((node.id, node.addr.clone()))
    }

    /// Starts a killed node again on its own data.
    pub(crate) fn resume(&mut self, (id, addr): (u64, String)) -> Result<(), Failure> {
        let member = self.nodes.first().map(|n| n.addr.clone());
        let index = self.nodes.first_mut().map(Node::indices).transpose()?.map_or(1, |i| i.0);
        let mut node = Node::start(id, &addr, &self.home(id), self.memory, member.as_deref())?;
        node.wait_until_caught_up(self.nodes.len() + 1, index)?;
        self.nodes.push(node);
        Ok(())
    }
}
