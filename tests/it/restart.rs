//! What survives crashes and restarts, over real files and real sockets.

use std::time::Duration;

use raftline::{Config, Error, Raft, Role};
use tokio::time::timeout;

use crate::grpc::{Node, three};
use crate::support::{Journal, Lines, Put, config, logger, number};

#[tokio::test(flavor = "multi_thread")]
async fn a_crashed_leader_is_replaced_and_comes_back_with_everything() {
    let root = tempfile::tempdir().unwrap();
    let mut nodes = three(root.path()).await;
    for i in 0..50 {
        nodes[i % 3].mailbox.put(format!("{i}")).await;
    }
    let leader = nodes[0].mailbox.status().await.unwrap().leader_id;
    let at = nodes.iter().position(|n| n.id == leader).unwrap();
    let peers: Vec<String> =
        nodes.iter().filter(|n| n.id != leader).map(|n| n.addr.clone()).collect();
    let (id, addr) = nodes.remove(at).crash().await;
    for node in &nodes {
        node.mailbox.wait_for(|s| s.leader_id != 0 && s.leader_id != leader).await.unwrap();
    }
    assert_eq!(number(&nodes[0].mailbox.put("after").await), 51);
    let back = Node::start(id, &addr, root.path(), peers).await;
    assert_eq!(number(&back.mailbox.query(Vec::new()).await.unwrap()), 51);
    nodes.push(back);
    for node in nodes {
        node.mailbox.shutdown().await.unwrap();
        node.task.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_data_does_not_wait_for_a_leader_that_needs_it() {
    let root = tempfile::tempdir().unwrap();
    let mut nodes = three(root.path()).await;
    let (_, down) = nodes.pop().unwrap().crash().await;
    let back = nodes.pop().unwrap();
    let data_dir = Some(back.dir.clone());
    let (_, addr) = back.crash().await;
    let left = nodes.pop().unwrap();
    left.mailbox.wait_for(|s| s.leader_id == 0).await.unwrap();
    // It would wait for this long.
    let request_timeout = Duration::from_secs(3600);
    let config = Config { data_dir, request_timeout, ..config() };
    let raft = Raft::new(addr.as_str(), Journal::default(), logger(), config).unwrap();
    let asked = raft.find_leader_info(vec![down, left.addr.clone()]);
    let found = timeout(Duration::from_secs(60), asked).await.expect("it waits for itself");
    assert_eq!(found.unwrap(), Some((left.id, left.addr.clone())));
    left.mailbox.shutdown().await.unwrap();
    left.task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn all_three_crash_and_resume_with_everything_acknowledged() {
    let root = tempfile::tempdir().unwrap();
    let nodes = three(root.path()).await;
    for i in 0..30 {
        nodes[i % 3].mailbox.put(format!("{i}")).await;
    }
    let mut known = Vec::new();
    for node in nodes {
        known.push(node.crash().await);
    }
    let mut back = Vec::new();
    for (id, addr) in &known {
        back.push(resume(*id, addr, root.path()));
    }
    for node in &back {
        assert_eq!(number(&node.mailbox.query(Vec::new()).await.unwrap()), 30);
    }
    for node in back {
        node.mailbox.shutdown().await.unwrap();
        node.task.await.unwrap().unwrap();
    }
}

/// Starts a node on its old directory without asking anybody first.
fn resume(id: u64, addr: &str, root: &std::path::Path) -> Node {
    let dir = root.join(format!("n{id}"));
    let config = Config { data_dir: Some(dir.clone()), ..config() };
    let raft = Raft::new(addr, Journal::default(), logger(), config).unwrap();
    let mailbox = raft.mailbox();
    let task = tokio::spawn(raft.lead(id));
    Node { id, addr: addr.to_owned(), dir, mailbox, task }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_address_is_announced_to_the_others() {
    let root = tempfile::tempdir().unwrap();
    let mut nodes = three(root.path()).await;
    let (id, old) = nodes.pop().unwrap().crash().await;
    let moved = resume(id, "127.0.0.1:0", root.path());
    for node in nodes.iter().chain([&moved]) {
        let known = |s: &raftline::Status| {
            s.members.iter().any(|m| m.id == id && m.addr != old && !m.addr.is_empty())
        };
        node.mailbox.wait_for(known).await.unwrap();
    }
    assert_eq!(number(&moved.mailbox.put("from there").await), 1);
}

#[tokio::test]
async fn a_directory_of_another_node_is_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let node = Node::start(1, "127.0.0.1:0", root.path(), Vec::new()).await;
    node.mailbox.put("x").await;
    let dir = node.dir.clone();
    let locked = Config { data_dir: Some(dir.clone()), ..config() };
    let other = Raft::new("127.0.0.1:0", Journal::default(), logger(), locked.clone()).unwrap();
    let error = other.lead(1).await.unwrap_err();
    assert!(error.to_string().contains("locked by another process"), "{error}");
    node.mailbox.shutdown().await.unwrap();
    node.task.await.unwrap().unwrap();
    let other = Raft::new("127.0.0.1:0", Journal::default(), logger(), locked).unwrap();
    let error = other.lead(2).await.unwrap_err();
    assert!(matches!(error, Error::DataDir { .. }), "{error}");
    assert!(error.to_string().contains("belongs to node 1, not 2"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_node_does_not_found_a_second_cluster() {
    let root = tempfile::tempdir().unwrap();
    let node = Node::start(1, "127.0.0.1:0", root.path(), Vec::new()).await;
    node.mailbox.put("x").await;
    let config = Config {
        data_dir: Some(root.path().join("other")),
        peers: vec![node.addr.clone()],
        ..config()
    };
    let other = Raft::new("127.0.0.1:0", Journal::default(), logger(), config).unwrap();
    let error = other.lead(2).await.unwrap_err();
    assert!(matches!(&error, Error::ClusterExists { addr, .. } if *addr == node.addr), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_data_warns_when_it_is_sent_to_another_cluster() {
    let root = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Node::start(1, "127.0.0.1:0", elsewhere.path(), Vec::new()).await;
    other.mailbox.wait_for(|s| s.leader_id == 1).await.unwrap();
    let node = Node::start(2, "127.0.0.1:0", root.path(), Vec::new()).await;
    node.mailbox.put("x").await;
    let dir = node.dir.clone();
    let (id, addr) = node.crash().await;

    let lines = Lines::default();
    let config = Config { data_dir: Some(dir), ..config() };
    let logger = slog::Logger::root(lines.clone(), slog::o!());
    let raft = Raft::new(addr.as_str(), Journal::default(), logger, config).unwrap();
    let mailbox = raft.mailbox();
    let task = tokio::spawn(raft.start(id, [addr, other.addr.clone()]));
    // It resumes its own, and says that this may not be what was meant.
    assert_eq!(number(&mailbox.query(Vec::new()).await.unwrap()), 1);
    let warned = async {
        while !lines.has(slog::Level::Warning, "belongs to another cluster") {
            tokio::task::yield_now().await;
        }
    };
    timeout(crate::support::config().request_timeout, warned).await.unwrap();
    let says = mailbox.wait_for(|s| !s.elsewhere.is_empty()).await.unwrap().elsewhere;
    assert!(says.contains("the data directory belongs to cluster"), "{says}");
    assert!(says.contains(&format!("and {}, which was given, to cluster", other.addr)), "{says}");
    assert_eq!(mailbox.status().await.unwrap().elsewhere, says);
    mailbox.shutdown().await.unwrap();
    task.await.unwrap().unwrap();
    other.crash().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lost_its_directory_is_let_in_again_and_votes() {
    let root = tempfile::tempdir().unwrap();
    let mut nodes = three(root.path()).await;
    nodes[0].mailbox.put("kept").await;
    let lost = nodes.pop().unwrap();
    let dir = lost.dir.clone();
    let (id, addr) = lost.crash().await;
    std::fs::remove_dir_all(&dir).unwrap();
    let peers: Vec<String> = nodes.iter().map(|n| n.addr.clone()).collect();
    let again = Node::start(id, &addr, root.path(), peers).await;
    again.mailbox.wait_for(|s| matches!(s.role, Role::Follower | Role::Leader)).await.unwrap();
    assert_eq!(number(&again.mailbox.query(Vec::new()).await.unwrap()), 1);
    nodes.push(again);
    for node in nodes {
        node.mailbox.shutdown().await.unwrap();
        node.task.await.unwrap().unwrap();
    }
}
