//! Many clients on every node at once; refusals at the bounds.

use std::time::Duration;

use raftline::testing::cluster::Cluster;
use raftline::transport::memory::Faults;
use raftline::{Config, Consistency, Error, Raft};
use tokio::task::JoinSet;
use tonic::transport::server::TcpIncoming;

use crate::support::{Journal, config, logger, number};

const CLIENTS: u64 = 60;
const EACH: u64 = 20;

#[tokio::test(flavor = "multi_thread")]
async fn every_write_of_many_clients_is_applied_once_on_every_node() {
    let mut cluster = Cluster::new(3, config(), |_| Journal::default()).with_logger(logger());
    cluster.start(3).await.unwrap();
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let mailbox = cluster.mailbox(client % 3 + 1).unwrap();
        clients.spawn(async move {
            let mut last = 0;
            for i in 0..EACH {
                let answer = mailbox.propose_indexed(format!("{client}/{i}")).await.unwrap();
                assert!(answer.index >= last, "later writes of a client come later");
                last = answer.index;
            }
            last
        });
    }
    let last = clients.join_all().await.into_iter().max().unwrap();
    for id in 1..=3 {
        let mailbox = cluster.mailbox(id).unwrap();
        let count = mailbox.query_with(Vec::new(), Consistency::AtLeast(last)).await.unwrap();
        assert_eq!(number(&count.data), CLIENTS * EACH);
        assert_eq!(number(&mailbox.query(Vec::new()).await.unwrap()), CLIENTS * EACH);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn outcomes_stay_true_on_a_network_that_loses_and_reorders() {
    let seed = u64::from(std::process::id());
    let config = Config { request_timeout: Duration::from_secs(2), ..config() };
    // Every assertion names the seed.
    let mut cluster = Cluster::new(seed, config, |_| Journal::default()).with_logger(logger());
    cluster.start(3).await.unwrap();
    cluster.network().set_faults(Faults {
        max_delay: Duration::from_millis(5),
        drop_percent: 5,
        duplicate_percent: 5,
        reorder_percent: 5,
        ..Faults::default()
    });
    let mut clients = JoinSet::new();
    for client in 0..30 {
        let mailbox = cluster.mailbox(client % 3 + 1).unwrap();
        clients.spawn(async move {
            let (mut sure, mut maybe) = (0u64, 0u64);
            for i in 0..10 {
                match mailbox.propose(format!("{client}/{i}")).await {
                    Ok(_) => sure += 1,
                    Err(e) if e.outcome_unknown() => maybe += 1,
                    Err(_) => {}
                }
            }
            (sure, maybe)
        });
    }
    let outcomes = clients.join_all().await;
    let sure: u64 = outcomes.iter().map(|o| o.0).sum();
    let maybe: u64 = outcomes.iter().map(|o| o.1).sum();
    cluster.heal();
    let patient = cluster.mailbox(1).unwrap().with_timeout(Duration::from_secs(20));
    let count =
        number(&patient.query(Vec::new()).await.unwrap_or_else(|e| panic!("seed {seed}: {e}")));
    assert!((sure..=sure + maybe).contains(&count), "seed {seed}: {sure} {count} {maybe}");
    assert!(sure > 0, "seed {seed}: nothing came through");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_over_the_limit_is_refused_and_the_cluster_goes_on() {
    let config = Config { max_entry_size: 1000, ..config() };
    let mut cluster = Cluster::new(3, config, |_| Journal::default()).with_logger(logger());
    cluster.start(3).await.unwrap();
    for id in 1..=3 {
        let mailbox = cluster.mailbox(id).unwrap();
        let error = mailbox.propose(vec![0; 1001]).await.unwrap_err();
        assert!(matches!(error, Error::TooLarge { size: 1001, limit: 1000 }), "{error}");
        assert_eq!(number(&mailbox.propose(vec![0; 1000]).await.unwrap()), id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_a_proposal_times_out_and_a_stale_read_still_answers() {
    let mut cluster = Cluster::new(3, config(), |_| Journal::default()).with_logger(logger());
    cluster.start(3).await.unwrap();
    let leader = cluster.leader().await.unwrap();
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    let follower = cluster.mailbox(others[0]).unwrap();
    let index = follower.propose_indexed("x").await.unwrap().index;
    follower.query_with(Vec::new(), Consistency::AtLeast(index)).await.unwrap();
    cluster.crash(leader).await.unwrap();
    cluster.crash(others[1]).await.unwrap();
    let alone = cluster.mailbox(others[0]).unwrap();
    alone.wait_for(|s| s.leader_id == 0).await.unwrap();
    let impatient = alone.with_timeout(Duration::from_millis(200));
    let error = impatient.propose("y").await.unwrap_err();
    assert!(!error.outcome_unknown(), "nothing was appended: {error}");
    assert!(impatient.query(Vec::new()).await.is_err());
    let stale = impatient.query_with(Vec::new(), Consistency::Stale).await.unwrap();
    assert_eq!(number(&stale.data), 1);
    cluster.restart(leader).unwrap();
    assert_eq!(number(&alone.query(Vec::new()).await.unwrap()), 1, "it was not applied later");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mounted_node_serves_through_the_users_own_server() {
    let root = tempfile::tempdir().unwrap();
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = incoming.local_addr().unwrap().to_string();
    let mounted = Config {
        advertise_addr: Some(addr.clone()),
        data_dir: Some(root.path().join("1")),
        ..config()
    };
    let (raft, service) = Raft::mounted(Journal::default(), logger(), mounted).unwrap();
    let server =
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming);
    let server = tokio::spawn(server);
    let first = raft.mailbox();
    let node = tokio::spawn(raft.lead(1));
    first.propose("x").await.unwrap();
    let plain = Config { data_dir: Some(root.path().join("2")), ..config() };
    let raft = Raft::new("127.0.0.1:0", Journal::default(), logger(), plain).unwrap();
    let found = raft.find_leader_info(vec![addr.clone()]).await.unwrap();
    assert_eq!(found, Some((1, addr.clone())));
    let second = raft.mailbox();
    let own = raft.listen_addr().unwrap().to_owned();
    let other = tokio::spawn(raft.join(2, own, Some(1), addr));
    assert_eq!(number(&second.query(Vec::new()).await.unwrap()), 1);
    second.leave().await.unwrap();
    other.await.unwrap().unwrap();
    first.shutdown().await.unwrap();
    node.await.unwrap().unwrap();
    server.abort();
}
