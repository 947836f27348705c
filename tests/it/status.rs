//! What nodes tell about themselves and each other, while members fail and come back.

use raftline::testing::cluster::{Cluster, addr};
use raftline::{Config, Level, MemberStatus, Replication, Role, Status, VotingRole};

use crate::support::{Journal, Put, config, insist, logger};

async fn cluster(count: u64, config: Config) -> Cluster<Journal> {
    let mut cluster = Cluster::new(7, config, |_| Journal::default()).with_logger(logger());
    cluster.start(count).await.unwrap();
    cluster
}

fn about(s: &Status, id: u64) -> &MemberStatus {
    s.members.iter().find(|m| m.id == id).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_tells_of_every_member_and_a_follower_of_its_leader() {
    let cluster = cluster(3, config()).await;
    let leader = cluster.leader().await.unwrap();
    let mailbox = cluster.mailbox(leader).unwrap();
    mailbox.put("x").await;
    let whole =
        |s: &Status| s.health().spare == Some(1) && s.members.iter().all(|m| m.lag == Some(0));
    let status = mailbox.wait_for(whole).await.unwrap();
    let health = status.health();
    assert_eq!(health.level, Level::Healthy);
    assert_eq!(health.to_string(), status.health);
    for id in 1..=3 {
        let m = about(&status, id);
        assert_eq!((m.addr.clone(), m.incarnation.len()), (addr(id), 32));
        assert_eq!((m.role, m.voter, m.reachable), (VotingRole::Voter, true, Some(true)));
        assert_eq!((m.matched, m.snapshot_percent), (Some(status.last_index), None));
        let contact = m.last_contact_ms.is_some_and(|ms| ms <= 1000);
        assert_eq!(contact, id != leader, "{m:?}");
        let replicates = m.replication == Some(Replication::Replicate);
        assert!(replicates || id == leader, "{m:?}");
    }
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    let third = (1..=3).find(|id| *id != leader && *id != follower).unwrap();
    let follows = |s: &Status| s.leader_id == leader && s.health().level == Level::Healthy;
    let status = cluster.mailbox(follower).unwrap().wait_for(follows).await.unwrap();
    assert_eq!(status.health().spare, None);
    assert!(status.health.contains(&format!("follows node {leader} at {}", addr(leader))));
    assert_eq!(about(&status, leader).reachable, Some(true));
    assert_eq!((about(&status, third).reachable, about(&status, third).lag), (None, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crashed_member_is_named_until_it_is_back() {
    let mut cluster = cluster(3, config()).await;
    let leader = cluster.leader().await.unwrap();
    let down = (1..=3).find(|id| *id != leader).unwrap();
    let mailbox = cluster.mailbox(leader).unwrap();
    cluster.crash(down).await.unwrap();
    // Of a new leader others have not answered either, for a moment.
    let named = |s: &Status| s.health().problems.iter().map(|p| p.node).collect::<Vec<_>>();
    let status = mailbox.wait_for(|s| named(s) == [down] && s.health.contains("not heard"));
    let status = status.await.unwrap();
    assert_eq!(status.health().level, Level::AtRisk);
    let problems = status.health().problems;
    assert_eq!(problems.iter().map(|p| p.node).collect::<Vec<_>>(), [down]);
    assert!(problems[0].what.contains(&format!("not heard from node {down}")), "{problems:?}");
    assert!(problems[0].remedy.contains(&format!("Mailbox::remove({down})")), "{problems:?}");
    let m = about(&status, down);
    assert!(m.reachable == Some(false) && m.last_contact_ms >= Some(100), "{m:?}");
    cluster.restart(down).unwrap();
    mailbox.wait_for(|s| s.health().level == Level::Healthy).await.unwrap();
    // What is done with the remedy, helps.
    cluster.crash(down).await.unwrap();
    mailbox.wait_for(|s| s.health().level == Level::AtRisk).await.unwrap();
    insist(|| mailbox.remove(down)).await;
    let status = mailbox.wait_for(|s| s.members.len() == 2).await.unwrap();
    assert_eq!(status.health().level, Level::Healthy, "{}", status.health);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_cut_off_says_whom_it_misses() {
    let cluster = cluster(3, config()).await;
    let leader = cluster.leader().await.unwrap();
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    cluster.partition(&[&[leader], &others]);
    let cut = cluster.mailbox(leader).unwrap();
    let missing = |s: &Status| s.health.contains("too few voters answer this node");
    let status = cut.wait_for(missing).await.unwrap();
    assert_ne!(status.role, Role::Leader);
    assert_eq!(status.health().level, Level::Unavailable);
    let named: Vec<u64> =
        status.health().problems.iter().map(|p| p.node).filter(|n| *n != 0).collect();
    assert_eq!(named, others);
    assert!(status.health.contains("offline::recover"), "{}", status.health);
    cluster.heal();
    cut.wait_for(|s| s.health().level == Level::Healthy).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_node_says_so() {
    let mut cluster = cluster(1, config()).await;
    let watch = cluster.mailbox(1).unwrap().watch();
    cluster.stop(1).await.unwrap();
    assert_eq!(watch.borrow().health, "unavailable: stopped");
}
