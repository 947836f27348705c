//! Three nodes over gRPC with durable logs, in one process.

use std::path::{Path, PathBuf};

use raftline::{Config, Consistency, Mailbox, Raft, Result};
use tokio::task::JoinHandle;

use crate::support::{Journal, config, logger, number};

/// A running node.
pub(crate) struct Node {
    pub(crate) id: u64,
    pub(crate) addr: String,
    pub(crate) dir: PathBuf,
    pub(crate) mailbox: Mailbox,
    pub(crate) task: JoinHandle<Result<()>>,
}

impl Node {
    /// Starts a node at an address; it leads when nobody else does.
    pub(crate) async fn start(id: u64, addr: &str, root: &Path, peers: Vec<String>) -> Self {
        let dir = root.join(format!("n{id}"));
        let config = Config { data_dir: Some(dir.clone()), ..config() };
        let raft = Raft::new(addr, Journal::default(), logger(), config).unwrap();
        let addr = raft.listen_addr().unwrap().to_owned();
        let mailbox = raft.mailbox();
        let task = match raft.find_leader_info(peers).await.unwrap() {
            Some((leader, at)) => tokio::spawn(raft.join(id, addr.clone(), Some(leader), at)),
            None => tokio::spawn(raft.lead(id)),
        };
        Self { id, addr, dir, mailbox, task }
    }

    /// Ends it as a crash would, and waits until its directory and port are free.
    pub(crate) async fn crash(self) -> (u64, String) {
        self.task.abort();
        let _ = self.task.await;
        self.mailbox.shutdown().await.unwrap();
        (self.id, self.addr)
    }
}

/// Three voters.
pub(crate) async fn three(root: &Path) -> Vec<Node> {
    let first = Node::start(1, "127.0.0.1:0", root, Vec::new()).await;
    let seed = vec![first.addr.clone()];
    first.mailbox.wait_for(|s| s.leader_id == 1).await.unwrap();
    let mut nodes = vec![first];
    for id in 2..=3 {
        nodes.push(Node::start(id, "127.0.0.1:0", root, seed.clone()).await);
    }
    for node in &nodes {
        let voters = |s: &raftline::Status| s.members.iter().filter(|m| m.voter).count();
        node.mailbox.wait_for(|s| voters(s) == 3).await.unwrap();
    }
    nodes
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_of_three_proposes_and_reads_its_own_writes() {
    let root = tempfile::tempdir().unwrap();
    let nodes = three(root.path()).await;
    for (i, node) in nodes.iter().enumerate() {
        let answer = node.mailbox.propose_indexed(format!("from {i}")).await.unwrap();
        assert_eq!(number(&answer.data), i as u64 + 1);
        for reader in &nodes {
            let read = reader.mailbox.query(i.to_string().into_bytes()).await.unwrap();
            assert_eq!(read, format!("from {i}").into_bytes());
        }
        let own = node.mailbox.query_with(Vec::new(), Consistency::AtLeast(answer.index));
        assert_eq!(number(&own.await.unwrap().data), i as u64 + 1);
    }
    for node in nodes {
        node.mailbox.shutdown().await.unwrap();
        node.task.await.unwrap().unwrap();
    }
}
