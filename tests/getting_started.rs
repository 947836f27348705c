//! The getting-started program works: its own code, three nodes in this process.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../examples/hash_store.rs"]
mod hash_store;

use bincode::{deserialize, serialize};
use hash_store::{HashStore, Message, Options, config, start};
use raftline::{Config, Mailbox, Role};
use slog::Logger;

struct Program {
    running: tokio::task::JoinHandle<raftline::Result<()>>,
    mailbox: Mailbox,
    store: HashStore,
}

fn free_addrs(n: usize) -> Vec<String> {
    let listeners: Vec<_> =
        (0..n).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect()
}

async fn run(id: u64, addrs: &[String], dir: &std::path::Path) -> Program {
    let own = addrs[id as usize - 1].clone();
    let peer_addrs = addrs.iter().filter(|a| **a != own).cloned().collect();
    let options = Options { id, raft_laddr: own, peer_addrs, web_server: None };
    let store = HashStore::default();
    let cfg = Config { data_dir: Some(dir.join(id.to_string())), ..config() };
    let logger = Logger::root(slog::Discard, slog::o!());
    let (running, mailbox) = start(&options, store.clone(), logger, cfg).await.unwrap();
    Program { running, mailbox, store }
}

fn insert(key: &str, value: &str) -> Vec<u8> {
    serialize(&Message::Insert { key: key.to_owned(), value: value.to_owned() }).unwrap()
}

async fn read(mailbox: &Mailbox, key: &str) -> Option<String> {
    let query = serialize(&Message::Get { key: key.to_owned() }).unwrap();
    deserialize(&mailbox.query(query).await.unwrap()).unwrap()
}

/// A write through any of three nodes is read from each of them, also after one has left and
/// after the rest was started again.
#[tokio::test(flavor = "multi_thread")]
async fn the_getting_started_program_replicates_leaves_and_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let addrs = free_addrs(3);
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(run(id, &addrs, dir.path()).await);
        // The first write through a node waits until it belongs to the cluster.
        let reply = nodes.last().unwrap().mailbox.send(insert(&id.to_string(), "v")).await.unwrap();
        assert_eq!(deserialize::<String>(&reply).unwrap(), "v");
    }
    for node in &nodes {
        for key in ["1", "2", "3"] {
            assert_eq!(read(&node.mailbox, key).await.as_deref(), Some("v"));
            assert_eq!(node.store.get(key).as_deref(), Some("v"), "the read was served locally");
        }
    }
    let rejected = nodes[1].mailbox.send_proposal(vec![1, 2]).await.unwrap_err();
    assert!(matches!(rejected, raftline::Error::Rejected(_)), "{rejected}");

    let left = nodes.pop().unwrap();
    left.mailbox.leave().await.unwrap();
    left.running.await.unwrap().unwrap();
    let status = nodes[0].mailbox.status().await.unwrap();
    assert_eq!(status.members.iter().map(|m| m.id).collect::<Vec<_>>(), [1, 2]);
    assert_ne!(status.role, Role::Starting);

    for node in nodes {
        node.mailbox.shutdown().await.unwrap();
        node.running.await.unwrap().unwrap();
    }
    // One after the other, as a person starts them: the first finds nobody, and the second finds
    // a member that waits for it. On a directory with data both resume.
    let first = run(1, &addrs, dir.path()).await;
    first.mailbox.wait_for(|s| s.role != Role::Starting).await.unwrap();
    let again = [first, run(2, &addrs, dir.path()).await];
    for node in &again {
        assert_eq!(read(&node.mailbox, "3").await.as_deref(), Some("v"));
    }
    for node in again {
        node.mailbox.shutdown().await.unwrap();
        node.running.await.unwrap().unwrap();
    }
}
