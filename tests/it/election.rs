//! Election only: no Store, a minimum of members, resigning; over every kind of transport.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use raftline::testing::cluster::Cluster;
use raftline::transport::memory::MemoryNetwork;
use raftline::{Config, Durability, Error, Mailbox, Outcome, Raft, Result, Role};
use tokio::task::JoinHandle;

use crate::support::{config, insist, logger};

#[expect(dead_code, reason = "its main is not called")]
#[path = "../../examples/election.rs"]
mod example;

/// Longer than anything takes here.
const PATIENCE: Duration = Duration::from_secs(60);

struct Node {
    mailbox: Mailbox,
    task: JoinHandle<Result<()>>,
}

impl Node {
    async fn stop(self) {
        self.mailbox.shutdown().await.unwrap();
        self.task.await.unwrap().unwrap();
    }
}

fn volatile(min_members: usize) -> Config {
    Config { durability: Durability::Volatile, min_members, ..config() }
}

fn addrs(n: u64) -> Vec<String> {
    (1..=n).map(|id| format!("n{id}:1")).collect()
}

fn in_memory(network: &MemoryNetwork, id: u64, config: Config) -> Raft<()> {
    let addr = format!("n{id}:1");
    let transport = Arc::new(network.endpoint(addr.clone()));
    Raft::with_transport(transport, addr, (), logger(), config).unwrap()
}

fn start(raft: Raft<()>, id: u64, peers: &[String]) -> Node {
    Node { mailbox: raft.mailbox(), task: tokio::spawn(raft.start(id, peers.to_vec())) }
}

/// What a node that does not start says.
async fn error(node: Node) -> String {
    let ended = tokio::time::timeout(PATIENCE, node.task).await.expect("it goes on");
    ended.unwrap().unwrap_err().to_string()
}

/// A port that is free right now: to found over gRPC, the addresses are needed first.
fn ports(n: usize) -> Vec<String> {
    let held: Vec<_> =
        (0..n).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    held.iter().map(|l| l.local_addr().unwrap().to_string()).collect()
}

async fn over_grpc(root: &Path) -> Vec<Node> {
    let addrs = ports(3);
    let node = |id: u64| {
        let data_dir = Some(root.join(id.to_string()));
        let config = Config { data_dir, min_members: 3, ..config() };
        let raft = Raft::election(&*addrs[id as usize - 1], logger(), config).unwrap();
        start(raft, id, &addrs)
    };
    (1..=3).map(node).collect()
}

/// Over gRPC: one is elected, resigns, another follows in a higher term; none takes commands.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_without_a_store_elect_a_leader_that_resigns() {
    let root = tempfile::tempdir().unwrap();
    let nodes = over_grpc(root.path()).await;
    let led = nodes[0].mailbox.wait_for(|s| s.leader_id != 0).await.unwrap();
    let mut changes = nodes[1].mailbox.leader_changes();
    let first = changes.next().await.unwrap();
    assert!(first.leader_id != 0 && first.term >= led.term);

    let leader = &nodes[first.leader_id as usize - 1].mailbox;
    let before = leader.wait_for(|s| s.role == Role::Leader).await.unwrap();
    leader.resign().await.unwrap();
    let after = leader.status().await.unwrap();
    assert_ne!(after.role, Role::Leader);
    let second = changes.next().await.unwrap();
    let second = if second.leader_id == 0 { changes.next().await.unwrap() } else { second };
    assert_ne!(second.leader_id, first.leader_id);
    assert!(second.term > before.term, "the token of the next leader is higher");
    leader.resign().await.unwrap();

    for node in &nodes {
        let refused = node.mailbox.propose("command").await.unwrap_err();
        assert!(refused.to_string().contains("no Store"), "{refused}");
        assert_eq!(refused.outcome(), Outcome::NotApplied);
        let refused = node.mailbox.query(b"query".to_vec()).await.unwrap_err();
        assert!(refused.to_string().contains("no Store"), "{refused}");
        node.mailbox.read_index().await.unwrap();
    }
    let last = nodes[0].mailbox.status().await.unwrap().last_index;
    nodes[0].mailbox.propose("command").await.unwrap_err();
    assert_eq!(nodes[0].mailbox.status().await.unwrap().last_index, last);
    for node in nodes {
        node.stop().await;
    }
}

/// Membership calls are those of any cluster; a snapshot of no Store is one, too.
#[tokio::test(flavor = "multi_thread")]
async fn members_come_and_go_without_a_store() {
    let config = Config { snapshot_entries: 2, snapshot_trailing_entries: 1, ..config() };
    let mut cluster = Cluster::new(7, config, |_| ()).with_logger(logger());
    cluster.start(2).await.unwrap();
    let leader = cluster.leader().await.unwrap();
    let mailbox = cluster.mailbox(leader).unwrap();
    mailbox.wait_for(|s| s.snapshot > 0).await.unwrap();
    cluster.add(3).unwrap();
    mailbox.wait_for(|s| s.members.iter().filter(|m| m.voter).count() == 3).await.unwrap();
    insist(|| mailbox.remove(3 - leader)).await;
    mailbox.wait_for(|s| s.members.len() == 2).await.unwrap();
    mailbox.resign().await.unwrap();
    cluster.mailbox(3).unwrap().wait_for(|s| s.role == Role::Leader).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_elected_before_enough_members_are_there() {
    let network = MemoryNetwork::new(7);
    let node = |id| start(in_memory(&network, id, volatile(3)), id, &addrs(3));
    let mut nodes = vec![node(1), node(2)];
    for node in &nodes {
        let waits = node.mailbox.wait_for(|s| s.health.contains("n3:1 (no answer)")).await;
        assert_eq!(waits.unwrap().leader_id, 0);
    }
    nodes.push(node(3));
    for node in &nodes {
        let led = node.mailbox.wait_for(|s| s.leader_id != 0).await.unwrap();
        assert_eq!(led.members.len(), 3);
    }
    // A fourth enters the cluster, whatever its list would found.
    let fourth = start(in_memory(&network, 4, volatile(3)), 4, &addrs(1));
    fourth.mailbox.wait_for(|s| s.leader_id != 0).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_would_found_with_too_few_is_told_what_to_do() {
    let network = MemoryNetwork::new(7);
    let raft = in_memory(&network, 1, volatile(3));
    let alone = Node { mailbox: raft.mailbox(), task: tokio::spawn(raft.lead(1)) };
    let refused = error(alone).await;
    assert!(refused.contains("min_members"), "{refused}");
    assert!(refused.contains("give start the addresses of at least 3 nodes"), "{refused}");

    let two = addrs(2);
    let first = start(in_memory(&network, 1, volatile(3)), 1, &two);
    let second = start(in_memory(&network, 2, volatile(3)), 2, &two);
    let refused = error(first).await;
    assert!(refused.contains("founded by 2 members could never elect"), "{refused}");
    // The other one, which would not have founded, waits and knows why.
    let waits = second.mailbox.wait_for(|s| s.health.contains("min_members")).await.unwrap();
    assert_eq!(waits.cluster_id, "");
    second.stop().await;
    let both = Config { bootstrap_expect: Some(2), ..volatile(3) };
    assert!(matches!(both.validate(), Err(Error::Config { field: "min_members", .. })));
}

/// Who wants more members than the proposer agrees to nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_wants_more_members_does_not_agree() {
    let network = MemoryNetwork::new(7);
    let two = addrs(2);
    let first = start(in_memory(&network, 1, volatile(0)), 1, &two);
    let second = start(in_memory(&network, 2, volatile(3)), 2, &two);
    second.mailbox.wait_for(|s| s.health.contains("min_members")).await.unwrap();
    assert_eq!(first.mailbox.watch().borrow().cluster_id, "");
    second.stop().await;
    let second = start(in_memory(&network, 2, volatile(2)), 2, &two);
    second.mailbox.wait_for(|s| s.leader_id != 0).await.unwrap();
}

/// The transport of the example is one of a user's own; stale tokens are refused.
#[tokio::test(flavor = "multi_thread")]
async fn the_example_runs() {
    let dir = tempfile::tempdir().unwrap();
    let mut said = Vec::new();
    let whole = example::run(dir.path(), |line| said.push(line));
    tokio::time::timeout(PATIENCE, whole).await.unwrap().unwrap();
    assert_eq!(said.len(), 4, "{said:?}");
    assert!(said[2].contains("is refused: token") && said[2].contains("is stale"), "{said:?}");
    let tokens: Vec<u64> =
        [0, 1, 3].iter().map(|i| said[*i].rsplit(' ').next().unwrap().parse().unwrap()).collect();
    assert!(tokens.is_sorted_by(|a, b| a < b), "{said:?}");
}
