//! Joining, leaving, removing, handing over; crashes and partitions in memory.

use futures::StreamExt;
use raftline::testing::cluster::Cluster;
use raftline::{Error, Role};

use crate::support::{Journal, config, logger, number};

async fn cluster(count: u64) -> Cluster<Journal> {
    let mut cluster = Cluster::new(7, config(), |_| Journal::default()).with_logger(logger());
    cluster.start(count).await.unwrap();
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_leaves_and_the_rest_goes_on() {
    let mut cluster = cluster(3).await;
    let leader = cluster.leader().await.unwrap();
    let leaver = (1..=3).find(|id| *id != leader).unwrap();
    cluster.mailbox(leaver).unwrap().leave().await.unwrap();
    cluster.ended(leaver).await.unwrap();
    let rest = cluster.mailbox(leader).unwrap();
    rest.propose("x").await.unwrap();
    let members = rest.members().await.unwrap();
    assert_eq!(members.len(), 2);
    assert!(members.iter().all(|m| m.node_id != leaver));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_hands_over_before_it_leaves() {
    let mut cluster = cluster(3).await;
    let leader = cluster.leader().await.unwrap();
    cluster.mailbox(leader).unwrap().leave().await.unwrap();
    cluster.ended(leader).await.unwrap();
    let rest = cluster.running();
    for id in rest {
        let mailbox = cluster.mailbox(id).unwrap();
        mailbox.wait_for(|s| s.members.len() == 2 && s.leader_id != 0).await.unwrap();
        mailbox.propose("x").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_voter_cannot_leave() {
    let cluster = cluster(1).await;
    let error = cluster.mailbox(1).unwrap().leave().await.unwrap_err();
    assert!(matches!(&error, Error::Membership(m) if m.contains("last voter")), "{error}");
    cluster.mailbox(1).unwrap().propose("still here").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_ends_and_says_so() {
    let mut cluster = cluster(3).await;
    let leader = cluster.leader().await.unwrap();
    let removed = (1..=3).find(|id| *id != leader).unwrap();
    cluster.mailbox(leader).unwrap().remove(removed).await.unwrap();
    let error = cluster.ended(removed).await.unwrap_err();
    assert!(matches!(error, Error::Removed { node } if node == removed), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_goes_where_it_is_sent() {
    let cluster = cluster(3).await;
    let leader = cluster.leader().await.unwrap();
    let to = (1..=3).find(|id| *id != leader).unwrap();
    let third = (1..=3).find(|id| *id != leader && *id != to).unwrap();
    let mut changes = cluster.mailbox(third).unwrap().leader_changes();
    assert_eq!(changes.next().await.unwrap().leader_id, leader);
    // From a follower, too: it is carried to the leader.
    cluster.mailbox(third).unwrap().transfer_leadership(to).await.unwrap();
    let led = cluster.mailbox(to).unwrap().wait_for(|s| s.role == Role::Leader).await.unwrap();
    assert_eq!(led.leader_id, to);
    while changes.next().await.unwrap().leader_id != to {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_off_leader_steps_down_and_the_majority_goes_on() {
    let cluster = cluster(3).await;
    let leader = cluster.leader().await.unwrap();
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    cluster.mailbox(leader).unwrap().propose("before").await.unwrap();
    cluster.partition(&[&[leader], &others]);
    for id in &others {
        let follows = |s: &raftline::Status| s.leader_id != 0 && s.leader_id != leader;
        cluster.mailbox(*id).unwrap().wait_for(follows).await.unwrap();
    }
    let majority = cluster.mailbox(others[0]).unwrap();
    assert_eq!(number(&majority.propose("beyond").await.unwrap()), 2);
    let old = cluster.mailbox(leader).unwrap();
    old.wait_for(|s| s.role != Role::Leader).await.unwrap();
    let patience = std::time::Duration::from_millis(100);
    let error = old.with_timeout(patience).query(Vec::new()).await.unwrap_err();
    assert!(matches!(error, Error::NoLeader), "{error}");
    let error = old.with_timeout(patience).propose("nobody leads").await.unwrap_err();
    assert!(matches!(error, Error::NoLeader), "{error}");
    cluster.heal();
    assert_eq!(number(&old.query(Vec::new()).await.unwrap()), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crashed_follower_catches_up_from_a_snapshot() {
    let config =
        raftline::Config { snapshot_entries: 20, snapshot_trailing_entries: 5, ..config() };
    let mut cluster = Cluster::new(7, config, |_| Journal::default()).with_logger(logger());
    cluster.start(3).await.unwrap();
    let leader = cluster.leader().await.unwrap();
    let down = (1..=3).find(|id| *id != leader).unwrap();
    cluster.crash(down).await.unwrap();
    let mailbox = cluster.mailbox(leader).unwrap();
    for i in 0..100 {
        mailbox.propose(format!("{i}")).await.unwrap();
    }
    mailbox.wait_for(|s| s.snapshot > 60).await.unwrap();
    let back = cluster.restart(down).unwrap();
    assert_eq!(number(&back.query(Vec::new()).await.unwrap()), 100);
    assert_eq!(back.query(b"57".to_vec()).await.unwrap(), b"57");
}
