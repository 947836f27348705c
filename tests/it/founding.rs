//! `start`: empty nodes found one cluster together, whatever the order; later ones enter it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use raftline::log::memory::MemoryLog;
use raftline::transport::memory::MemoryNetwork;
use raftline::vfs::MemVfs;
use raftline::{Config, Error, Mailbox, Raft, Result, Status};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::support::{Journal, Lines, Put, config, logger, number};

/// Longer than anything takes here.
const PATIENCE: Duration = Duration::from_secs(60);

/// Machines with disks, and the network between them.
struct Room {
    network: MemoryNetwork,
    disks: BTreeMap<u64, (MemoryLog, MemVfs)>,
    config: Config,
}

struct Running {
    mailbox: Mailbox,
    task: JoinHandle<Result<()>>,
}

fn addr(machine: u64) -> String {
    format!("n{machine}:1")
}

fn all(n: u64) -> Vec<String> {
    (1..=n).map(addr).collect()
}

impl Room {
    fn new() -> Self {
        Self { network: MemoryNetwork::new(7), disks: BTreeMap::new(), config: config() }
    }

    /// A node with this id on a machine, not started yet.
    fn node(&mut self, machine: u64, logger: slog::Logger) -> Raft<Journal> {
        let (log, files) = self.disks.entry(machine).or_default().clone();
        let transport = Arc::new(self.network.endpoint(addr(machine)));
        let (store, config) = (Journal::default(), self.config.clone());
        Raft::with_transport(transport, addr(machine), store, logger, config)
            .unwrap()
            .with_log(Box::new(log), Arc::new(files))
    }

    /// Starts a node whose id is the machine's number.
    fn start(&mut self, machine: u64, list: &[String]) -> Running {
        self.start_as(machine, machine, list)
    }

    fn start_as(&mut self, id: u64, machine: u64, list: &[String]) -> Running {
        let raft = self.node(machine, logger());
        let mailbox = raft.mailbox();
        Running { mailbox, task: tokio::spawn(raft.start(id, list.to_vec())) }
    }
}

impl Running {
    async fn stop(self) {
        self.mailbox.shutdown().await.unwrap();
        self.task.await.unwrap().unwrap();
    }

    async fn crash(self) {
        self.task.abort();
        let _ = self.task.await;
        self.mailbox.shutdown().await.unwrap();
    }

    async fn error(self) -> String {
        timeout(PATIENCE, self.task).await.expect("it goes on").unwrap().unwrap_err().to_string()
    }

    /// Waits until so many members vote; the cluster.
    async fn voters(&self, n: usize) -> String {
        let voters = |s: &Status| s.members.iter().filter(|m| m.voter).count() == n;
        self.mailbox.wait_for(|s| voters(s) && s.leader_id != 0).await.unwrap().cluster_id
    }

    /// Waits until it says something like this about its health.
    async fn says(&self, text: &str) {
        let said = self.mailbox.wait_for(|s| s.health.contains(text)).await;
        said.unwrap_or_else(|e| panic!("{e}: {:?}", self.mailbox.watch().borrow().health));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_that_start_at_once_found_one_cluster_and_resume_whatever_they_are_given() {
    let mut room = Room::new();
    let nodes: Vec<_> = (1..=3).map(|id| room.start(id, &all(3))).collect();
    let cluster = nodes[0].voters(3).await;
    for node in &nodes {
        assert_eq!(node.voters(3).await, cluster);
    }
    assert_eq!(number(&nodes[1].mailbox.put("x").await), 1);
    for node in nodes {
        node.stop().await;
    }
    let again = [room.start(1, &[]), room.start(2, &[addr(9)]), room.start(3, &all(5))];
    for node in again {
        assert_eq!(node.voters(3).await, cluster);
        assert_eq!(number(&node.mailbox.query(Vec::new()).await.unwrap()), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_founding_member_is_missing_the_others_wait_and_say_for_whom() {
    let mut room = Room::new();
    // Its own address may be left out.
    let first = room.start(1, &[addr(2), addr(3)]);
    let second = room.start(2, &all(3));
    for node in [&first, &second] {
        node.says("2 of 3 founding members are here").await;
        node.says("waiting for n3:1 (no answer)").await;
        assert_eq!(node.mailbox.watch().borrow().cluster_id, "");
        let hurried = node.mailbox.with_timeout(Duration::from_millis(1));
        let error = hurried.propose("x").await.unwrap_err();
        assert!(matches!(error, Error::NotReady { .. }) && error.is_retryable(), "{error}");
        assert!(error.to_string().contains("waiting for n3:1 (no answer)"), "{error}");
    }
    let third = room.start(3, &[addr(1), addr(2), addr(3)]);
    let cluster = third.voters(3).await;
    assert_eq!(first.voters(3).await, cluster);
    // A newcomer enters, whatever it would found with.
    let fourth = room.start(4, &all(4));
    assert_eq!(fourth.voters(4).await, cluster);
    assert_eq!(number(&fourth.mailbox.put("x").await), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_delays_founding_and_never_doubles_it() {
    let mut room = Room::new();
    room.network.cut(&addr(1), &addr(3));
    let nodes: Vec<_> = (1..=3).map(|id| room.start(id, &all(3))).collect();
    nodes[0].says("n3:1 (no answer)").await;
    nodes[2].says("n1:1 (no answer)").await;
    nodes[1].says("waiting for node 1 at n1:1").await;
    room.network.heal();
    let cluster = nodes[0].voters(3).await;
    for node in &nodes {
        assert_eq!(node.voters(3).await, cluster);
    }
}

/// Members exchange their machines while nobody leads, and need each other's votes: each looks for
/// another one where it is itself, or where a third is by now.
async fn members_find_each_other_after(exchange: &[(u64, u64)], of: u64, lagging: bool) {
    let mut room = Room::new();
    let mut nodes: Vec<_> = (1..=of).map(|id| room.start(id, &all(of))).collect();
    let cluster = nodes[0].voters(of as usize).await;
    for node in &nodes {
        assert_eq!(node.voters(of as usize).await, cluster);
    }
    if lagging {
        nodes.pop().unwrap().crash().await;
    }
    // On all that are left.
    nodes[0].mailbox.put("x").await;
    for node in nodes {
        node.crash().await;
    }
    let mut moved = BTreeMap::new();
    for (from, to) in exchange {
        moved.insert(*to, (*from, room.disks.remove(from).unwrap()));
    }
    let ids: Vec<(u64, u64)> = moved.iter().map(|(at, (id, _))| (*id, *at)).collect();
    room.disks.extend(moved.into_iter().map(|(at, (_, disk))| (at, disk)));
    let started: Vec<_> = ids.iter().map(|(id, at)| room.start_as(*id, *at, &[])).collect();
    for node in started {
        assert_eq!(node.voters(of as usize).await, cluster);
        assert_eq!(number(&node.mailbox.query(Vec::new()).await.unwrap()), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_exchanged_their_addresses_find_each_other() {
    members_find_each_other_after(&[(1, 2), (2, 1)], 2, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_that_exchanged_their_addresses_in_a_circle_find_each_other() {
    members_find_each_other_after(&[(1, 2), (2, 3), (3, 1)], 3, false).await;
}

/// The one that cannot lead is the third; one of the four is gone.
#[tokio::test(flavor = "multi_thread")]
async fn two_of_four_that_exchanged_their_addresses_elect_one_of_them() {
    members_find_each_other_after(&[(2, 3), (3, 2), (4, 4)], 4, true).await;
}

/// The only member that can lead joined while another one was away, whose vote it needs. That one
/// has moved, and does not know it; a third knows both.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_moved_is_found_by_one_that_joined_meanwhile() {
    let mut room = Room::new();
    let nodes: Vec<_> = (1..=3).map(|id| room.start(id, &all(3))).collect();
    let [first, second, third] = <[_; 3]>::try_from(nodes).ok().unwrap();
    for node in [&first, &second, &third] {
        node.voters(3).await;
    }
    third.crash().await;
    let fourth = room.start(4, &all(3));
    fourth.voters(4).await;
    let fifth = room.start(5, &all(3));
    for node in [&first, &second, &fourth] {
        node.voters(5).await;
    }
    first.crash().await;
    fourth.mailbox.put("x").await;
    for node in [second, fourth, fifth] {
        node.crash().await;
    }
    let disk = room.disks.remove(&3).unwrap();
    room.disks.insert(9, disk);
    let back = [room.start(1, &[]), room.start(4, &[]), room.start_as(3, 9, &[])];
    for node in back {
        node.voters(5).await;
        assert_eq!(number(&node.mailbox.query(Vec::new()).await.unwrap()), 1);
    }
}

/// A node of another cluster at a member's address: the others say what they find there.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_at_the_address_of_a_member_is_named_in_the_health() {
    let mut room = Room::new();
    let mut nodes: Vec<_> = (1..=3).map(|id| room.start(id, &all(3))).collect();
    for node in &nodes {
        node.voters(3).await;
    }
    nodes.pop().unwrap().crash().await;
    room.disks.remove(&3);
    let stranger = room.start(3, &[addr(3)]);
    let theirs = stranger.voters(1).await;
    let said =
        format!("turned away where it looks for node 3: n3:1 says: this is cluster {theirs}");
    // Whoever leads speaks to it.
    let leads = |s: &Status| [1, 2].contains(&s.leader_id);
    let leader = nodes[0].mailbox.wait_for(leads).await.unwrap().leader_id;
    nodes[leader as usize - 1].says(&said).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn those_that_crash_while_they_found_go_on_with_it() {
    let mut room = Room::new();
    let mut clusters = Vec::new();
    for round in 0..10u32 {
        room.disks.clear();
        let nodes: Vec<_> = (1..=3).map(|id| room.start(id, &all(3))).collect();
        // At some moment between the first question and the first entry.
        for _ in 0..round * 40 {
            tokio::task::yield_now().await;
        }
        for node in nodes {
            node.crash().await;
        }
        let nodes: Vec<_> = (1..=3).rev().map(|id| room.start(id, &all(3))).collect();
        let cluster = nodes[0].voters(3).await;
        // All are asked before the first one crashes: the last one alone would learn nothing more.
        for node in &nodes {
            assert_eq!(node.voters(3).await, cluster);
        }
        for node in nodes {
            node.crash().await;
        }
        assert!(!clusters.contains(&cluster));
        clusters.push(cluster);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_as_are_expected_found_although_a_seed_is_down() {
    let mut room = Room::new();
    room.config.bootstrap_expect = Some(3);
    let seeds = all(4);
    let nodes: Vec<_> = [2, 4].map(|id| room.start(id, &seeds)).into();
    nodes[0].says("2 of 3 founding members are here").await;
    let third = room.start(1, &seeds);
    let cluster = third.voters(3).await;
    for node in &nodes {
        assert_eq!(node.voters(3).await, cluster);
    }
    // It is late, and no founding member any more.
    let late = room.start(3, &seeds);
    assert_eq!(late.voters(4).await, cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn those_that_were_given_different_lists_refuse_each_other() {
    let mut room = Room::new();
    let first = room.start(1, &all(3));
    let second = room.start(2, &all(2));
    for error in [first.error().await, second.error().await] {
        assert!(error.contains("founds with [n1:1, n2:1, n3:1]"), "{error}");
        assert!(error.contains("founds with [n1:1, n2:1]"), "{error}");
        assert!(error.contains("Start every node with the same list"), "{error}");
    }
    let first = room.start(1, &all(3));
    room.config.bootstrap_expect = Some(3);
    let second = room.start(2, &all(3));
    for error in [first.error().await, second.error().await] {
        assert!(error.contains("config: bootstrap_expect: "), "{error}");
        assert!(error.contains("expects 3 founding members"), "{error}");
    }
    room.config.bootstrap_expect = Some(4);
    let error = room.start(3, &[addr(1)]).error().await;
    assert!(error.contains("name 3 to 5 seed addresses, not 1"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_with_one_id_are_refused_with_both_addresses() {
    let mut room = Room::new();
    let first = room.start(1, &all(3));
    let twin = room.start_as(1, 2, &all(3));
    for error in [first.error().await, twin.error().await] {
        assert!(error.contains("node id 1 is used by"), "{error}");
        assert!(error.contains("n1:1") && error.contains("n2:1"), "{error}");
        assert!(error.contains("give every node an id of its own"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_its_own_address_alone_founds_alone() {
    let mut room = Room::new();
    for list in [vec![], vec![addr(1)]] {
        room.disks.clear();
        let node = room.start(1, &list);
        node.voters(1).await;
        assert_eq!(number(&node.mailbox.put("x").await), 1);
        node.stop().await;
    }
}

/// `lead` beside nodes that found together gives them a cluster to enter: there is one all the same.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_leads_warns_of_those_that_did_not_answer() {
    let mut room = Room::new();
    room.config.peers = vec![addr(2), addr(3)];
    let second = room.start(2, &all(3));
    second.says("n1:1 (no answer)").await;
    let lines = Lines::default();
    let raft = room.node(1, slog::Logger::root(lines.clone(), slog::o!()));
    let mailbox = raft.mailbox();
    let first = Running { mailbox, task: tokio::spawn(raft.lead(1)) };
    let cluster = first.voters(2).await;
    assert_eq!(second.voters(2).await, cluster);
    assert!(lines.has(slog::Level::Warning, "although not every address answered"));
    assert!(lines.has(slog::Level::Warning, "although others are starting, too"));
    assert!(lines.has(slog::Level::Warning, "Raft::start"));
    // And the other way round it is refused.
    let error = room.node(3, logger()).lead(3).await.unwrap_err();
    assert!(matches!(error, Error::ClusterExists { .. }), "{error}");
}

/// Whoever agreed to found with others may be a member already: it does nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_agreed_to_found_with_others_is_bound_to_it() {
    let mut room = Room::new();
    let nodes: Vec<_> = (1..=3).map(|id| room.start(id, &all(3))).collect();
    nodes[0].voters(3).await;
    let (log, _) = &room.disks[&2];
    let mut before = log.clone();
    let founded = raftline::log::LogStorage::load(&mut before).unwrap();
    // The others move on, so that the record of the founding is not told any more.
    let fourth = room.start(4, &all(3));
    fourth.voters(4).await;
    for node in nodes.into_iter().chain([fourth]) {
        node.crash().await;
    }
    // As it was before it had heard that the others founded.
    let identity = raftline::Identity { cluster: None, ..founded.identity.unwrap() };
    let membership = raftline::Membership::decode(founded.membership.unwrap()).unwrap();
    let agreed = raftline::Membership { index: 0, ..membership }.encode();
    let mut log = MemoryLog::new();
    raftline::log::LogStorage::identify(&mut log, &identity).unwrap();
    let batch = raftline::log::LogBatch { membership: Some(agreed), ..Default::default() };
    raftline::log::LogStorage::append(&mut log, &[batch]).unwrap();
    room.disks.insert(2, (log, MemVfs::default()));
    let joined = room.node(2, logger()).join(2, addr(2), None, addr(1)).await;
    let led = room.node(2, logger()).lead(2).await;
    for error in [joined, led].map(|ended| ended.unwrap_err().to_string()) {
        assert!(error.contains("agreed to found a cluster together with n1:1, n3:1"), "{error}");
        assert!(error.contains("go on with start"), "{error}");
    }
    let nodes: Vec<_> = (1..=4).map(|id| room.start(id, &all(3))).collect();
    for node in &nodes {
        node.voters(4).await;
    }
    assert_eq!(number(&nodes[1].mailbox.put("x").await), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_none_is_refused_at_once() {
    for bad in ["127.0.0.1", "http://127.0.0.1:9301", ":5000"] {
        let config = Config { durability: raftline::Durability::Volatile, ..config() };
        let raft = Raft::new("127.0.0.1:0", Journal::default(), logger(), config).unwrap();
        let said = raft.start(1, ["127.0.0.1:9300", bad]).await.unwrap_err().to_string();
        assert!(said.contains("config: peers:") && said.contains("no host:port address"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_join_says_why_until_it_can() {
    let mut room = Room::new();
    let raft = room.node(2, logger());
    let mailbox = raft.mailbox();
    let joining = Running { mailbox, task: tokio::spawn(raft.join(2, addr(2), None, addr(1))) };
    joining.says("cannot join through n1:1 yet").await;
    let hurried = joining.mailbox.with_timeout(Duration::from_millis(1));
    let error = hurried.propose("x").await.unwrap_err().to_string();
    assert!(error.contains("cannot join through n1:1 yet"), "{error}");
    let founder = room.start(1, &[]);
    founder.voters(2).await;
    joining.voters(2).await;
    assert_eq!(joining.mailbox.watch().borrow().waiting, "");
}
