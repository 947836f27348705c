//! A majority that is lost, and addresses that all change: mended offline, then started.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raftline::log::wal::{Wal, WalOptions};
use raftline::offline::{self, Advice, RecoverOptions};
use raftline::transport::memory::MemoryNetwork;
use raftline::vfs::RealVfs;
use raftline::{Config, Mailbox, Raft, Result, Status};
use slog::Logger;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::grpc::Node;
use crate::support::{Journal, Lines, Put, config, logger, number};

#[expect(dead_code, reason = "its main is not called")]
#[path = "../../examples/admin/main.rs"]
mod admin;

/// The exit code of the example program, and what it says.
fn admin(args: &[&str]) -> std::result::Result<(u8, String), String> {
    let args = ["admin"].iter().chain(args).map(OsString::from);
    let mut said = Vec::new();
    let code = admin::run(args, &mut said).map_err(|e| e.to_string())?;
    Ok((code, String::from_utf8(said).unwrap()))
}

/// Snapshots often, so that a directory holds both: a snapshot, and a log above it.
fn at(dir: PathBuf) -> Config {
    Config { data_dir: Some(dir), snapshot_entries: 10, snapshot_trailing_entries: 2, ..config() }
}

/// Founds or resumes without a leader to join, else joins it.
fn start(id: u64, addr: &str, root: &Path, leader: Option<&str>, logger: Logger) -> Node {
    let dir = root.join(format!("n{id}"));
    let raft = Raft::new(addr, Journal::default(), logger, at(dir.clone())).unwrap();
    let addr = raft.listen_addr().unwrap().to_owned();
    let mailbox = raft.mailbox();
    let task = match leader {
        Some(leader) => tokio::spawn(raft.join(id, addr.clone(), None, leader.to_owned())),
        None => tokio::spawn(raft.lead(id)),
    };
    Node { id, addr, dir, mailbox, task }
}

async fn voters(mailbox: &Mailbox, count: usize) -> Status {
    let voters = |s: &Status| s.members.iter().filter(|m| m.voter).count();
    mailbox.wait_for(|s| voters(s) == count && s.leader_id != 0).await.unwrap()
}

/// Three nodes that wrote 45 commands and crashed; the most advanced first: it has them all.
async fn crashed(root: &Path) -> Vec<(u64, String, PathBuf)> {
    let mut nodes = vec![start(1, "127.0.0.1:0", root, None, logger())];
    let leader = nodes[0].addr.clone();
    for id in 2..=3 {
        nodes.push(start(id, "127.0.0.1:0", root, Some(&leader), logger()));
    }
    for node in &nodes {
        voters(&node.mailbox, 3).await;
    }
    for i in 0..45 {
        nodes[0].mailbox.put(i.to_string()).await;
    }
    let mut left = Vec::new();
    for node in nodes {
        let dir = node.dir.clone();
        let (id, addr) = node.crash().await;
        left.push((id, addr, dir));
    }
    let dirs: Vec<&PathBuf> = left.iter().map(|(_, _, dir)| dir).collect();
    let best = offline::survey(&dirs).unwrap().best.unwrap();
    left.swap(0, best);
    left
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_three_goes_on_alone_with_its_state_and_others_join_it() {
    let root = tempfile::tempdir().unwrap();
    let left = crashed(root.path()).await;
    let dirs: Vec<&str> = left.iter().map(|(_, _, dir)| dir.to_str().unwrap()).collect();
    let (id, addr, dir) = &left[0];
    assert_eq!(offline::survey(&dirs).unwrap().advice(), Advice::Start);
    assert_eq!(offline::survey(&dirs[..1]).unwrap().advice(), Advice::Recover(0));
    let refused = offline::recover(
        dir,
        &RecoverOptions { others: vec![left[1].2.clone()], ..RecoverOptions::default() },
    );
    assert!(refused.unwrap_err().to_string().contains("start them"));
    let done = offline::recover(dir, &RecoverOptions::default()).unwrap();
    assert_eq!((done.plan.node_id, done.plan.dismissed.len()), (*id, 2));

    let alone = start(*id, addr, root.path(), None, logger());
    assert_eq!(number(&alone.mailbox.query(Vec::new()).await.unwrap()), 45);
    assert_eq!(alone.mailbox.query(b"3".to_vec()).await.unwrap(), b"3");
    assert_eq!(number(&alone.mailbox.put("after").await), 46);
    let status = alone.mailbox.status().await.unwrap();
    assert_eq!((status.cluster_id, status.members.len()), (done.cluster.to_string(), 1));

    let second = start(4, "127.0.0.1:0", root.path(), Some(addr), logger());
    voters(&second.mailbox, 2).await;
    assert_eq!(number(&second.mailbox.query(Vec::new()).await.unwrap()), 46);

    // An old member comes back with its data: it is turned away, and finds no leader.
    let lines = Lines::default();
    let (old, old_addr, _) = &left[1];
    let logger_of_old = Logger::root(lines.clone(), slog::o!());
    let old = start(*old, old_addr, root.path(), None, logger_of_old);
    let turned_away = async {
        while !lines.has(slog::Level::Warning, "a peer turns this node away") {
            tokio::task::yield_now().await;
        }
    };
    timeout(config().request_timeout, turned_away).await.unwrap();
    let status = old.mailbox.status().await.unwrap();
    assert_eq!((status.leader_id, status.members.len()), (0, 3));
    old.crash().await;

    let (_, addr) = alone.crash().await;
    let again = start(*id, &addr, root.path(), None, logger());
    assert_eq!(number(&again.mailbox.query(Vec::new()).await.unwrap()), 46);
    let members = again.mailbox.members().await.unwrap();
    let known: Vec<u64> = members.iter().map(|m| m.node_id).collect();
    assert!(known.len() == 2 && known.contains(id) && known.contains(&4), "{known:?}");
    second.crash().await;
    again.crash().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_program_shows_plans_and_does_it() {
    let root = tempfile::tempdir().unwrap();
    let left = crashed(root.path()).await;
    let dirs: Vec<&str> = left.iter().map(|(_, _, dir)| dir.to_str().unwrap()).collect();
    let (code, text) = admin(&["inspect", dirs[0]]).unwrap();
    assert!(code == 0 && text.contains("Every checksum is right."), "{code} {text}");
    let (code, text) = admin(&["survey", dirs[0], dirs[1]]).unwrap();
    assert!(code == 0 && text.contains("start these nodes"), "{code} {text}");
    let (code, text) = admin(&["survey", dirs[0]]).unwrap();
    assert!(code == 3 && text.contains("is lost for good"), "{code} {text}");
    let refused = admin(&["recover", dirs[0], "--other", dirs[1], "--yes"]).unwrap_err();
    assert!(refused.contains("can elect a leader"), "{refused}");
    let (code, text) = admin(&["recover", dirs[0]]).unwrap();
    assert!(code == 3 && text.contains("WHAT MAY BE LOST"), "{code} {text}");
    assert!(text.contains("Nothing was changed"), "{text}");
    let (code, text) = admin(&["recover", dirs[0], "--yes"]).unwrap();
    assert!(code == 0 && text.contains("Done: node"), "{code} {text}");
    let refused = admin(&["addresses", dirs[0], "--set", "77=a:1"]).unwrap_err();
    assert!(refused.contains("node 77 is no member"), "{refused}");
    let set = format!("{}=moved:1", left[0].0);
    let (code, text) = admin(&["addresses", dirs[0], "--set", &set]).unwrap();
    assert!(code == 0 && text.contains("reached at moved:1"), "{code} {text}");
    assert_eq!(admin(&["recover"]).unwrap().0, 2);
}

/// A node over a network in memory, its log on a real disk.
struct Placed {
    mailbox: Mailbox,
    task: JoinHandle<Result<()>>,
}

fn place(network: &MemoryNetwork, id: u64, addr: &str, root: &Path, leader: &str) -> Placed {
    let dir = root.join(id.to_string());
    let log = Wal::open(Arc::new(RealVfs), &dir, WalOptions::default()).unwrap();
    let transport = Arc::new(network.endpoint(addr));
    let raft = Raft::with_transport(transport, addr, Journal::default(), logger(), at(dir));
    let raft = raft.unwrap().with_log(Box::new(log), Arc::new(RealVfs));
    let mailbox = raft.mailbox();
    let task = match leader == addr {
        true => tokio::spawn(raft.lead(id)),
        false => tokio::spawn(raft.join(id, addr.to_owned(), None, leader.to_owned())),
    };
    Placed { mailbox, task }
}

fn place_all(network: &MemoryNetwork, host: &str, root: &Path) -> Vec<Placed> {
    let addr = |id: u64| format!("{host}-{id}:1");
    (1..=3).map(|id| place(network, id, &addr(id), root, &addr(1))).collect()
}

async fn stop_all(nodes: Vec<Placed>) {
    // All at once: nobody finds a majority for a change on the way down.
    for node in &nodes {
        node.task.abort();
    }
    for node in nodes {
        let _ = node.task.await;
        node.mailbox.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_whose_every_address_changed_finds_itself_by_what_was_noted() {
    let root = tempfile::tempdir().unwrap();
    let network = MemoryNetwork::new(3);
    let nodes = place_all(&network, "old", root.path());
    for node in &nodes {
        voters(&node.mailbox, 3).await;
    }
    nodes[1].mailbox.put("before").await;
    stop_all(nodes).await;

    let all: Vec<(u64, String)> = (1..=3).map(|id| (id, format!("new-{id}:1"))).collect();
    for id in 1..=3u64 {
        let noted = offline::set_addresses(root.path().join(id.to_string()), &all).unwrap();
        assert_eq!(noted.len(), 3);
    }
    let moved = |s: &Status| s.members.iter().all(|m| m.addr == format!("new-{}:1", m.id));
    for round in 0..2 {
        let nodes = place_all(&network, "new", root.path());
        for node in &nodes {
            let status = node.mailbox.wait_for(|s| s.members.len() == 3 && moved(s)).await;
            assert_eq!(status.unwrap().members.len(), 3);
        }
        let count = number(&nodes[2].mailbox.put("there").await);
        assert_eq!(count, 2 + round);
        for node in &nodes {
            assert_eq!(number(&node.mailbox.query(Vec::new()).await.unwrap()), count);
        }
        stop_all(nodes).await;
    }
    // Recorded by the cluster: the notes of the second start were nobody's need.
    for id in 1..=3u64 {
        let report = offline::inspect(root.path().join(id.to_string())).unwrap();
        assert!(report.is_sound() && report.moved.is_empty(), "{report}");
    }
}
