//! Starts, commands, kills and measures node processes.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command as Process, Stdio};
use std::time::{Duration, Instant};

use raftline::NodeId;

use crate::node::Command;

pub(crate) struct Proc {
    pub(crate) id: NodeId,
    pub(crate) addr: String,
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Proc>,
    dir: tempfile::TempDir,
    flags: Vec<&'static str>,
}

pub(crate) fn free_addr() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

impl Proc {
    /// Sends a command; [`Proc::answer`] reads what comes back.
    pub(crate) fn tell(&mut self, command: &Command) {
        writeln!(self.stdin, "{}", serde_json::to_string(command).unwrap()).unwrap();
        self.stdin.flush().unwrap();
    }

    pub(crate) fn answer(&mut self) -> serde_json::Value {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        serde_json::from_str(&line)
            .unwrap_or_else(|e| panic!("node {} answered {line:?}: {e}", self.id))
    }

    pub(crate) fn ask(&mut self, command: &Command) -> serde_json::Value {
        self.tell(command);
        self.answer()
    }

    pub(crate) fn status(&mut self) -> serde_json::Value {
        self.ask(&Command::Status)
    }

    /// Seconds of processor time so far.
    pub(crate) fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
        let ticks = |i: usize| fields[i].parse::<f64>().unwrap();
        (ticks(11) + ticks(12)) / 100.0
    }

    /// How often its threads gave the processor away themselves, and how often it called `write`
    /// or one of its like, so far.
    pub(crate) fn counters(&self) -> [u64; 2] {
        let dir = format!("/proc/{}", self.child.id());
        let number = |text: &str, name: &str| -> u64 {
            let line = text.lines().find(|l| l.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        let threads = std::fs::read_dir(format!("{dir}/task")).unwrap();
        // NB: a thread that ends while it is looked at has nothing more to say.
        let status =
            threads.filter_map(|t| std::fs::read_to_string(t.unwrap().path().join("status")).ok());
        let switches = status.map(|s| number(&s, "voluntary_ctxt_switches:")).sum();
        let io = std::fs::read_to_string(format!("{dir}/io")).unwrap();
        [switches, number(&io, "syscw:")]
    }

    /// Peak memory in MiB.
    pub(crate) fn peak_mib(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Cluster {
    /// Three nodes, all voters.
    pub(crate) fn start(flags: &[&'static str]) -> Self {
        Self::of(3, flags)
    }

    /// So many nodes, all voters.
    pub(crate) fn of(nodes: u64, flags: &[&'static str]) -> Self {
        let dir = tempfile::tempdir_in(data_root()).unwrap();
        let mut cluster = Self { nodes: Vec::new(), dir, flags: flags.to_vec() };
        for id in 1..=nodes {
            let via = cluster.nodes.first().map(|n: &Proc| n.addr.clone());
            let node = cluster.spawn(id, free_addr(), via);
            cluster.nodes.push(node);
            cluster.wait("every node votes", |s| {
                let members = s["members"].as_array().unwrap();
                members.len() == id as usize && members.iter().all(|m| m["voter"] == true)
            });
        }
        cluster
    }

    pub(crate) fn spawn(&self, id: NodeId, addr: String, via: Option<String>) -> Proc {
        let dir: PathBuf = self.dir.path().join(id.to_string());
        let mut process = Process::new(std::env::current_exe().unwrap());
        process.args(["node", "--id", &id.to_string(), "--addr", &addr]);
        process.arg("--dir").arg(dir).args(&self.flags);
        if let Some(via) = &via {
            process.args(["--via", via]);
        }
        let mut child = process.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Proc { id, addr, child, stdin, stdout }
    }

    /// Waits until every node's status is as wanted.
    pub(crate) fn wait(&mut self, what: &str, wanted: impl Fn(&serde_json::Value) -> bool) {
        let begin = Instant::now();
        for node in &mut self.nodes {
            while !wanted(&node.status()) {
                assert!(begin.elapsed() < Duration::from_secs(120), "{what}: {}", node.status());
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// Place of the leader in `nodes`, once everybody agrees.
    pub(crate) fn leader(&mut self) -> usize {
        let begin = Instant::now();
        loop {
            let said: Vec<u64> =
                self.nodes.iter_mut().map(|n| n.status()["leader_id"].as_u64().unwrap()).collect();
            if said[0] != 0 && said.iter().all(|l| *l == said[0]) {
                return self.nodes.iter().position(|n| n.id == said[0]).unwrap();
            }
            assert!(begin.elapsed() < Duration::from_secs(60), "no leader: {said:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Where data is written: beside the build, on the disk that is to be measured.
pub(crate) fn data_root() -> PathBuf {
    let root = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    std::fs::create_dir_all(&root).unwrap();
    root
}
