//! Joining, leaving, removing, handing over; crashes and partitions in memory.

use futures::StreamExt;
use raftline::testing::cluster::{Cluster, addr};
use raftline::{Error, Mailbox, Member, Progress, Role};

use crate::support::{Journal, Put, config, insist, logger, number};

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
    rest.put("x").await;
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
        mailbox.put("x").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_voter_cannot_leave() {
    let cluster = cluster(1).await;
    let error = cluster.mailbox(1).unwrap().leave().await.unwrap_err();
    assert!(matches!(&error, Error::Membership(m) if m.contains("last voter")), "{error}");
    cluster.mailbox(1).unwrap().put("still here").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_ends_and_says_so() {
    let mut cluster = cluster(3).await;
    let leader = cluster.leader().await.unwrap();
    let removed = (1..=3).find(|id| *id != leader).unwrap();
    let led = cluster.mailbox(leader).unwrap();
    insist(|| led.remove(removed)).await;
    let error = cluster.ended(removed).await.unwrap_err();
    assert!(matches!(error, Error::Removed { node } if node == removed), "{error}");
}

/// Nothing of its removal reaches it, and it has led: its way to the others is open since before.
#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_that_did_not_hear_of_it_is_told_when_it_speaks() {
    let mut cluster = cluster(3).await;
    let removed = cluster.leader().await.unwrap();
    let leader = (1..=3).find(|id| *id != removed).unwrap();
    cluster.mailbox(removed).unwrap().transfer_leadership(leader).await.unwrap();
    let led = cluster.mailbox(leader).unwrap();
    led.wait_for(|s| s.role == Role::Leader).await.unwrap();
    cluster.network().cut_one_way(&addr(leader), &addr(removed));
    insist(|| led.remove(removed)).await;
    cluster.heal();
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
    cluster.mailbox(leader).unwrap().put("before").await;
    cluster.partition(&[&[leader], &others]);
    for id in &others {
        let follows = |s: &raftline::Status| s.leader_id != 0 && s.leader_id != leader;
        cluster.mailbox(*id).unwrap().wait_for(follows).await.unwrap();
    }
    let majority = cluster.mailbox(others[0]).unwrap();
    assert_eq!(number(&majority.put("beyond").await), 2);
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
        mailbox.put(format!("{i}")).await;
    }
    mailbox.wait_for(|s| s.snapshot > 60).await.unwrap();
    let back = cluster.restart(down).unwrap();
    assert_eq!(number(&back.query(Vec::new()).await.unwrap()), 100);
    assert_eq!(back.query(b"57".to_vec()).await.unwrap(), b"57");
}

/// What a refused call says; nothing was changed by it.
fn refusal(outcome: raftline::Result<()>) -> String {
    let error = outcome.expect_err("refused");
    assert!(matches!(error, Error::Membership(_)), "{error}");
    error.to_string()
}

async fn member(mailbox: &Mailbox, id: u64) -> Option<Member> {
    mailbox.members().await.unwrap().into_iter().find(|m| m.node_id == id)
}

async fn voters(mailbox: &Mailbox) -> Vec<u64> {
    mailbox.read_index().await.unwrap();
    let status = mailbox.status().await.unwrap();
    status.members.iter().filter(|m| m.voter).map(|m| m.id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_is_added_in_one_call_that_tells_how_far_it_is() {
    let mut cluster = cluster(3).await;
    let leader = cluster.leader().await.unwrap();
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    let asked = cluster.mailbox(follower).unwrap();
    let told = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let heard = told.clone();
    let adding = tokio::spawn(async move {
        asked.add_voter_with(4, addr(4), move |p| heard.lock().unwrap().push(p)).await
    });
    // Its process is started only when it is expected already.
    let expected = |s: &raftline::Status| s.members.iter().any(|m| m.id == 4);
    cluster.mailbox(follower).unwrap().wait_for(expected).await.unwrap();
    cluster.add(4).unwrap();
    adding.await.unwrap().unwrap();
    assert_eq!(voters(&cluster.mailbox(4).unwrap()).await, [1, 2, 3, 4]);
    let told = told.lock().unwrap().clone();
    assert_eq!((told.first(), told.last()), (Some(&Progress::Expected), Some(&Progress::Done)));
    // Asked again it holds.
    cluster.mailbox(4).unwrap().add_voter(4, addr(4)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_for_good_is_promoted_and_demoted_by_calls_alone() {
    let mut cluster = cluster(1).await;
    let mailbox = cluster.mailbox(1).unwrap();
    mailbox.add_learner(2, addr(2)).await.unwrap();
    let said = refusal(mailbox.promote(2).await);
    assert!(said.contains("its data directory has not joined"), "{said}");
    let patience = std::time::Duration::from_millis(200);
    let error = mailbox.with_timeout(patience).replace(1, 2).await.unwrap_err();
    assert!(error.outcome_unknown() && error.to_string().contains("not joined yet"), "{error}");
    let learner = cluster.add(2).unwrap();
    learner.wait_for(|s| s.role == Role::Learner && s.applied > 1).await.unwrap();
    while let Err(e) = learner.promote(2).await {
        assert!(e.to_string().contains("has not caught up"), "{e}");
    }
    assert_eq!(voters(&mailbox).await, [1, 2]);
    insist(|| learner.demote(2)).await;
    assert_eq!(voters(&mailbox).await, [1]);
    assert!(member(&mailbox, 2).await.unwrap().learner_only);
    let said = refusal(mailbox.demote(1).await);
    assert!(said.contains("last voter"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_members_change_at_once_the_leader_among_them() {
    let mut cluster = cluster(3).await;
    for id in [4, 5] {
        let mailbox = cluster.mailbox(1).unwrap();
        mailbox.add_learner(id, addr(id)).await.unwrap();
        let learner = cluster.add(id).unwrap();
        learner.wait_for(|s| s.applied > 1).await.unwrap();
    }
    let leader = cluster.leader().await.unwrap();
    let stays = (1..=3).find(|id| *id != leader).unwrap();
    let third = 6 - leader - stays;
    let asked = cluster.mailbox(stays).unwrap();
    while let Err(e) = asked.change_membership(&[stays, 4, 5], &[third]).await {
        assert!(e.to_string().contains("has not caught up"), "{e}");
    }
    let mut wanted = [stays, 4, 5];
    wanted.sort_unstable();
    assert_eq!(voters(&asked).await, wanted);
    assert!(member(&asked, third).await.is_some_and(|m| m.learner_only));
    let error = cluster.ended(leader).await.unwrap_err();
    assert!(matches!(error, Error::Removed { node } if node == leader), "{error}");
    cluster.mailbox(third).unwrap().put("the rest goes on").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_is_replaced_by_another_in_one_call() {
    let mut cluster = cluster(3).await;
    let leader = cluster.leader().await.unwrap();
    let mailbox = cluster.mailbox(leader).unwrap();
    let old = (1..=3).find(|id| *id != leader).unwrap();
    mailbox.add_learner(4, addr(4)).await.unwrap();
    cluster.add(4).unwrap();
    insist(|| mailbox.replace(old, 4)).await;
    let mut wanted: Vec<u64> = (1..=4).filter(|id| *id != old).collect();
    wanted.sort_unstable();
    assert_eq!(voters(&mailbox).await, wanted);
    assert!(matches!(cluster.ended(old).await, Err(Error::Removed { .. })));
    insist(|| mailbox.replace(old, 4)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lost_its_disk_is_let_in_again() {
    let mut cluster = cluster(3).await;
    let leader = cluster.leader().await.unwrap();
    let mailbox = cluster.mailbox(leader).unwrap();
    let lost = (1..=3).find(|id| *id != leader).unwrap();
    mailbox.put("before").await;
    let before = member(&mailbox, lost).await.unwrap();
    cluster.crash(lost).await.unwrap();
    cluster.wipe(lost).unwrap();
    let back = cluster.restart(lost).unwrap();
    back.wait_for(|s| s.role == Role::Follower).await.unwrap();
    assert_eq!(number(&back.query(Vec::new()).await.unwrap()), 1);
    let after = member(&mailbox, lost).await.unwrap();
    assert!(after.raft_id > before.raft_id && after.incarnation != before.incarnation);
    assert_eq!(mailbox.members().await.unwrap().len(), 3);
    assert_eq!(voters(&mailbox).await, [1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_node_under_the_id_of_a_healthy_one_is_refused() {
    let mut cluster = cluster(2).await;
    let endpoint = std::sync::Arc::new(cluster.network().endpoint("elsewhere:1"));
    let place = "elsewhere:1".to_owned();
    let raft = raftline::Raft::with_transport(
        endpoint,
        place.clone(),
        Journal::default(),
        logger(),
        raftline::Config { durability: raftline::Durability::Volatile, ..config() },
    )
    .unwrap();
    let said = refusal(raft.join(2, place, Some(1), addr(1)).await);
    assert!(said.contains("its present data directory has just been let in or heard of"), "{said}");
    assert!(said.contains("If the id is a mistake, choose another"), "{said}");
    cluster.mailbox(2).unwrap().put("still here").await;
    cluster.stop(2).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_refusal_says_why_and_what_to_do() {
    let mut cluster = cluster(3).await;
    let leader = cluster.leader().await.unwrap();
    let down = (1..=3).find(|id| *id != leader).unwrap();
    let third = 6 - leader - down;
    // From a node that does not lead.
    let asked = cluster.mailbox(third).unwrap();
    let cases = [
        (asked.promote(9).await, "node 9 is no member; add it first"),
        (asked.demote(9).await, "node 9 is no member"),
        (asked.replace(1, 9).await, "node 9 is no member"),
        (asked.replace(2, 2).await, "cannot replace itself"),
        (asked.update_member(9, None, None).await, "node 9 is no member"),
        (asked.update_member(1, Some("nowhere".into()), None).await, "no host:port address"),
        (asked.update_member(1, None, Some(vec![0; 65_537].into())).await, "at most 65536 bytes"),
        (asked.add_learner(1, addr(1)).await, "node 1 is a voter already; demote"),
        (asked.add_voter(1, "else:1").await, "update_member gives it another address"),
        (asked.add_voter(0, addr(9)).await, "must not be 0"),
        (asked.change_membership(&[], &[1]).await, "no voters would be left"),
        (asked.change_membership(&[1, 2], &[2]).await, "to be voter and learner"),
        (asked.change_membership(&[1, 2, 9], &[]).await, "node 9 is no member"),
    ];
    for (outcome, text) in cases {
        let said = refusal(outcome);
        assert!(said.contains(text), "{text}: {said}");
    }
    cluster.crash(down).await.unwrap();
    cluster.mailbox(leader).unwrap().wait_for(|s| s.health.contains("not heard")).await.unwrap();
    let said = refusal(asked.change_membership(&[leader, down], &[]).await);
    assert!(said.contains("this would lose the quorum: of 2 voters only 1"), "{said}");
    assert!(said.contains("Bring the others back first"), "{said}");
    assert_eq!(voters(&asked).await, [1, 2, 3], "nothing was changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn address_and_metadata_of_a_member_are_replicated() {
    let mut cluster = cluster(2).await;
    let asked = cluster.mailbox(2).unwrap();
    asked.update_member(1, None, Some("rack 7".into())).await.unwrap();
    let there = member(&cluster.mailbox(1).unwrap(), 1).await.unwrap();
    assert_eq!((&there.metadata[..], there.addr), (&b"rack 7"[..], addr(1)));
    asked.update_member(1, None, None).await.unwrap();
    // It is in the log, and so in what a node holds that joins later.
    let late = cluster.add(3).unwrap();
    late.wait_for(|s| s.role == Role::Follower).await.unwrap();
    assert_eq!(&member(&late, 1).await.unwrap().metadata[..], b"rack 7");
}

/// The membership travels whole, with snapshots and answers: what would not fit is refused.
#[tokio::test(flavor = "multi_thread")]
async fn metadata_that_would_not_fit_into_a_message_is_refused() {
    let config = raftline::Config { max_entry_size: 64, max_size_per_msg: 64, ..config() };
    let mut cluster = Cluster::new(7, config, |_| Journal::default()).with_logger(logger());
    cluster.start(1).await.unwrap();
    let mailbox = cluster.mailbox(1).unwrap();
    let metadata = vec![0; 40 << 10];
    let said = mailbox.update_member(1, None, Some(metadata.into())).await.unwrap_err().to_string();
    assert!(said.contains("shorten the metadata, or raise Config::grpc_message_size"), "{said}");
    mailbox.update_member(1, None, Some(vec![0; 30 << 10].into())).await.unwrap();
    // Twice of it is above the bound, and it is no larger afterwards.
    mailbox.update_member(1, None, Some(vec![1; 30 << 10].into())).await.unwrap();
    let said = mailbox.add_learner(2, addr(2)).await;
    said.unwrap();
    mailbox.update_member(1, None, Some("rack 7".into())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_that_is_silent_for_long_is_removed_if_it_is_wanted() {
    let after = config().election_timeout() * 10;
    let config = raftline::Config { remove_dead_after: Some(after), ..config() };
    let mut cluster = Cluster::new(7, config, |_| Journal::default()).with_logger(logger());
    cluster.start(4).await.unwrap();
    let leader = cluster.leader().await.unwrap();
    let dead: Vec<u64> = (1..=4).filter(|id| *id != leader).take(1).collect();
    cluster.crash(dead[0]).await.unwrap();
    let mailbox = cluster.mailbox(leader).unwrap();
    mailbox.wait_for(|s| s.members.len() == 3).await.unwrap();
    assert!(member(&mailbox, dead[0]).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_does_not_want_to_vote_stays_a_learner() {
    let config = raftline::Config { auto_promote: false, ..config() };
    let mut cluster = Cluster::new(7, config, |_| Journal::default()).with_logger(logger());
    let first = cluster.add(1).unwrap();
    cluster.leader().await.unwrap();
    let second = cluster.add(2).unwrap();
    second.wait_for(|s| s.role == Role::Learner && s.applied > 1).await.unwrap();
    assert!(member(&first, 2).await.unwrap().learner_only);
    first.add_voter(2, addr(2)).await.unwrap();
    assert_eq!(voters(&second).await, [1, 2]);
}
