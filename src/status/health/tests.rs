//! What health says, word by word.

use super::*;

fn member(id: NodeId) -> MemberStatus {
    MemberStatus {
        id,
        addr: format!("n{id}:1"),
        incarnation: format!("{id:032x}"),
        role: VotingRole::Voter,
        voter: true,
        replication: Some(Replication::Replicate),
        last_contact_ms: Some(100),
        acknowledges: Some(true),
        reachable: Some(true),
        ..MemberStatus::default()
    }
}

fn silent(id: NodeId, ms: u64) -> MemberStatus {
    MemberStatus { last_contact_ms: Some(ms), reachable: Some(false), ..member(id) }
}

fn learner(m: MemberStatus) -> MemberStatus {
    MemberStatus { role: VotingRole::Learner, voter: false, ..m }
}

/// Node 1, which leads these.
fn leads(members: Vec<MemberStatus>) -> Status {
    Status {
        id: 1,
        cluster_id: "c".to_owned(),
        role: Role::Leader,
        leader_id: 1,
        leader_addr: "n1:1".to_owned(),
        leader_ms: 8_000,
        members,
        ..Status::default()
    }
}

/// Node 1, which knows no leader of these.
fn knows_none(members: Vec<MemberStatus>) -> Status {
    let leader_addr = String::new();
    Status { role: Role::PreCandidate, leader_id: 0, leader_addr, ..leads(members) }
}

fn judged(s: &Status) -> (Level, Option<usize>, String) {
    let health = s.health();
    (health.level, health.spare, health.to_string())
}

#[test]
fn a_whole_cluster_tells_how_many_may_fail() {
    for (voters, spare) in [(3, 1), (4, 1), (5, 2), (7, 3)] {
        let (level, told, words) = judged(&leads((1..=voters).map(member).collect()));
        assert_eq!((level, told), (Level::Healthy, Some(spare)));
        let expected = format!("healthy: every member is reachable; voters that may fail: {spare}");
        assert_eq!(words, expected);
    }
    for voters in [1, 2] {
        let (level, told, words) = judged(&leads((1..=voters).map(member).collect()));
        assert_eq!((level, told), (Level::Healthy, Some(0)));
        assert!(
            words.contains("may fail: 0, with three of them 1 (Mailbox::add_voter)"),
            "{words}"
        );
    }
}

#[test]
fn a_silent_voter_is_named_with_what_to_do() {
    let (level, spare, words) = judged(&leads(vec![member(1), member(2), silent(3, 12_345)]));
    assert_eq!((level, spare), (Level::AtRisk, Some(0)));
    assert_eq!(
        words,
        "at risk: voters that may fail besides: 0; not heard from node 3 at n3:1 for 12 s (start it \
         again, with an empty data directory if its disk is lost; if the machine does not come \
         back, Mailbox::replace(3, another) or Mailbox::remove(3))"
    );
    let five = leads((1..=4).map(member).chain([silent(5, 200_000)]).collect());
    let (level, spare, words) = judged(&five);
    assert_eq!((level, spare), (Level::Degraded, Some(1)));
    assert!(words.contains("node 5 at n5:1 for 3 min"), "{words}");
    let never = MemberStatus { last_contact_ms: None, ..silent(3, 0) };
    let (.., words) = judged(&leads(vec![member(1), member(2), never]));
    assert!(words.contains("n3:1 since this node leads, for 8.0 s"), "{words}");
}

#[test]
fn a_lost_majority_is_not_offered_a_removal() {
    let (level, spare, words) =
        judged(&leads(vec![member(1), silent(2, 1500), silent(3, 7_300_000)]));
    assert_eq!((level, spare), (Level::Unavailable, Some(0)));
    assert!(
        words.contains("a majority of the voters is missing: 1 more must be reached"),
        "{words}"
    );
    assert!(words.contains("for 1.5 s") && words.contains("for 2 h"), "{words}");
    assert!(words.contains("offline::recover") && !words.contains("Mailbox::"), "{words}");
}

/// Both halves must commit: the weaker one counts, though the members together look well.
#[test]
fn a_joint_configuration_is_as_strong_as_its_weaker_half() {
    let part = |role, m| MemberStatus { role, ..m };
    let (new, old) = (VotingRole::Incoming, VotingRole::Outgoing);
    // From 1, 2, 3 to 1, 4, 5.
    let members = |two, three| {
        vec![
            member(1),
            part(old, two),
            part(old, three),
            part(new, member(4)),
            part(new, member(5)),
        ]
    };
    let (level, spare, words) = judged(&leads(members(member(2), member(3))));
    assert_eq!((level, spare), (Level::Healthy, Some(1)));
    assert!(words.contains("the old and the new voters each need a majority"), "{words}");
    let (level, spare, words) = judged(&leads(members(member(2), silent(3, 20_000))));
    assert_eq!((level, spare), (Level::AtRisk, Some(0)));
    assert!(words.contains("it goes with the change") && !words.contains("Mailbox"), "{words}");
    let (level, ..) = judged(&leads(members(silent(2, 20_000), silent(3, 20_000))));
    assert_eq!(level, Level::Unavailable, "three of five are there, but one of three old ones");
}

#[test]
fn learners_and_newcomers_do_not_count() {
    let quiet = learner(silent(4, 20_000));
    let (level, spare, words) = judged(&leads(vec![member(1), member(2), member(3), quiet]));
    assert_eq!((level, spare), (Level::Degraded, Some(1)));
    assert!(words.contains("(start it again, or Mailbox::remove(4))"), "{words}");
    let named = MemberStatus { incarnation: String::new(), ..learner(silent(4, 0)) };
    let (level, _, words) = judged(&leads(vec![member(1), member(2), member(3), named]));
    assert_eq!(level, Level::Degraded);
    assert!(words.contains("node 4 at n4:1 was added, and its data directory has not"), "{words}");
    assert!(words.contains("(start it, or Mailbox::remove(4))"), "{words}");
    // Another directory takes the place of the one that was lost.
    let again = MemberStatus { incarnation: "another".to_owned(), ..learner(member(3)) };
    let (.., words) = judged(&leads(vec![member(1), member(2), silent(3, 20_000), again]));
    assert!(words.contains("the data directory that node 3 had before is lost"), "{words}");
    assert!(!words.contains("Mailbox::remove"), "{words}");
}

#[test]
fn a_voter_that_waits_for_a_snapshot_does_not_count() {
    let waits = |percent| MemberStatus {
        replication: Some(Replication::Snapshot),
        snapshot_percent: percent,
        ..member(3)
    };
    let (level, spare, words) = judged(&leads(vec![member(1), member(2), waits(Some(40))]));
    assert_eq!((level, spare), (Level::AtRisk, Some(0)));
    assert!(words.contains("receives a snapshot, 40 % are sent"), "{words}");
    let (.., words) = judged(&leads(vec![member(1), member(2), waits(None)]));
    assert!(words.contains("receives a snapshot (it counts again"), "{words}");
}

#[test]
fn who_does_not_lead_says_what_it_knows() {
    let unknown = |id| MemberStatus { reachable: None, ..member(id) };
    let follows = Status {
        role: Role::Follower,
        leader_id: 2,
        leader_addr: "n2:1".to_owned(),
        ..leads(vec![member(1), member(2), unknown(3)])
    };
    let (level, spare, words) = judged(&follows);
    assert_eq!((level, spare), (Level::Healthy, None));
    let expected =
        "healthy: follows node 2 at n2:1, which knows who else is reachable: ask its status";
    assert_eq!(words, expected);
    let deaf = Status { members: vec![member(1), silent(2, 5_000), unknown(3)], ..follows };
    let (level, _, words) = judged(&deaf);
    assert_eq!(level, Level::Degraded);
    assert!(words.contains("not heard from node 2 at n2:1 for 5.0 s"), "{words}");
}

#[test]
fn a_voter_that_acknowledges_nothing_does_not_count() {
    let hangs = MemberStatus { acknowledges: Some(false), lag: Some(7), ..member(3) };
    let (level, spare, words) = judged(&leads(vec![member(1), member(2), hangs]));
    assert_eq!((level, spare), (Level::AtRisk, Some(0)));
    assert!(words.contains("is heard, but does not acknowledge new entries, and is 7"), "{words}");
    assert!(words.contains("look at its disk and its Store"), "{words}");
}

#[test]
fn a_new_leader_does_not_say_that_all_is_well() {
    let unheard = |id| MemberStatus { acknowledges: None, ..member(id) };
    let (level, spare, words) = judged(&leads(vec![member(1), member(2), unheard(3)]));
    assert_eq!((level, spare), (Level::AtRisk, Some(0)));
    assert!(words.contains("node 3 at n3:1 has not answered yet since this node leads"), "{words}");
    let (level, ..) = judged(&leads(vec![member(1), unheard(2), unheard(3)]));
    assert_eq!(level, Level::AtRisk, "it may still be that nobody is lost");
}

#[test]
fn without_a_leader_it_says_who_is_missing() {
    let (level, _, words) =
        judged(&knows_none(vec![member(1), silent(2, 9_000), silent(3, 60_000)]));
    assert_eq!(level, Level::Unavailable);
    assert!(words.starts_with("unavailable: no leader is known for 8.0 s;"), "{words}");
    assert!(words.contains("too few voters answer this node, by 1"), "{words}");
    assert!(words.contains("a leader that this node cannot hear"), "it cannot tell: {words}");
    assert!(words.contains("not heard from node 2 at n2:1 for 9.0 s"), "{words}");
    assert!(words.contains("not heard from node 3 at n3:1 for 60 s"), "{words}");
    let (level, _, words) = judged(&knows_none(vec![member(1), member(2), silent(3, 60_000)]));
    assert_eq!(level, Level::Unavailable);
    assert!(words.contains("an election is under way"), "{words}");
    let lost = Status { elsewhere: "elsewhere".to_owned(), ..knows_none(vec![member(1)]) };
    assert_eq!(judged(&lost).2.matches("elsewhere").count(), 1, "once");
    let (.., words) = judged(&lost);
    assert!(words.contains("; elsewhere (start it on the right directory"), "{words}");
    let held = Status { awaits_members: 3, ..knows_none(vec![member(1)]) };
    let (.., words) = judged(&held);
    assert!(words.contains("waits for 3 members (Config::min_members)"), "{words}");
    let learner = Status { role: Role::Learner, ..knows_none(vec![learner(member(1)), member(2)]) };
    let (.., words) = judged(&learner);
    assert!(words.contains("ask a voter for its status"), "{words}");
}

#[test]
fn a_disk_that_hangs_is_said_first() {
    let stalled = Status { disk_stalled: true, ..leads((1..=3).map(member).collect()) };
    let health = stalled.health();
    assert_eq!((health.level, health.spare), (Level::AtRisk, Some(1)));
    assert_eq!(health.problems[0].node, 1);
    assert!(health.to_string().contains("the disk has not finished a write"), "{health}");
}

#[test]
fn another_cluster_at_a_given_address_is_said() {
    let elsewhere = "n9:1 belongs to cluster 7".to_owned();
    let health = Status { elsewhere, ..leads((1..=3).map(member).collect()) }.health();
    assert_eq!((health.level, health.spare), (Level::Degraded, Some(1)));
    let words = health.to_string();
    let said = "degraded: this node was given an address of another cluster; n9:1 belongs to \
        cluster 7 (start it on the right directory";
    assert!(words.starts_with(said), "{words}");
    let elsewhere = "n9:1 belongs to cluster 7".to_owned();
    let stopped = Status { elsewhere, role: Role::Stopped, ..Status::default() }.health();
    assert_eq!((stopped.level, &*stopped.summary), (Level::Unavailable, "stopped"));
}

#[test]
fn before_and_after_its_membership_it_says_so() {
    let waiting = "waiting for n3:1 (no answer)".to_owned();
    let founds = Status { waiting, ..Status::default() };
    assert_eq!(founds.health().to_string(), "unavailable: waiting for n3:1 (no answer)");
    let cluster_id = "c".to_owned();
    let joined = Status { cluster_id, ..Status::default() };
    let words = joined.health().to_string();
    assert_eq!(words, "unavailable: waiting for the first snapshot from the cluster");
    let removed = Status { role: Role::Starting, ..leads(vec![member(2)]) };
    let words = removed.health().to_string();
    assert!(words.contains("no member of its cluster any more"), "{words}");
    assert!(words.contains("start it with an empty data directory"), "{words}");
    let stopped = Status { role: Role::Stopped, ..leads(vec![member(1)]) };
    assert_eq!(stopped.health().to_string(), "unavailable: stopped");
}

#[test]
fn whoever_is_turned_away_says_so_and_why() {
    let refusing =
        |m: MemberStatus| MemberStatus { refusal: "n2:9 says: an older copy".to_owned(), ..m };
    let said = "this node is turned away where it looks for node 2: n2:9 says: an older copy";
    let follows = |members| Status { role: Role::Follower, leader_id: 2, ..leads(members) };

    let (level, _, words) = judged(&follows(vec![member(1), refusing(member(2)), member(3)]));
    assert_eq!(level, Level::Unavailable);
    assert_eq!(words, format!("unavailable: hears node 2, which leads and turns it away; {said}"));

    let status =
        Status { leader_id: 3, ..follows(vec![member(1), refusing(member(2)), member(3)]) };
    let (level, _, words) = judged(&status);
    assert_eq!(level, Level::Degraded);
    assert!(words.ends_with(said), "{words}");

    let (level, spare, words) = judged(&leads(vec![member(1), refusing(silent(2, 90)), member(3)]));
    assert_eq!((level, spare), (Level::AtRisk, Some(0)));
    assert!(words.contains(said) && words.contains("Mailbox::remove(2)"), "{words}");
    let (level, _, words) = judged(&leads(vec![member(1), refusing(member(2)), member(3)]));
    assert_eq!(level, Level::Degraded, "it is heard, and cannot be spoken to");
    assert!(words.ends_with(said), "{words}");

    let (_, _, words) = judged(&knows_none(vec![member(1), refusing(member(2)), member(3)]));
    assert!(words.ends_with(said), "{words}");
}

/// What is at the address of a lost data directory is its successor.
#[test]
fn a_lost_directory_that_turns_this_node_away_is_no_news() {
    let lost =
        |id| MemberStatus { refusal: "n2:1 says: another node".to_owned(), ..silent(id, 90) };
    let again = |id| MemberStatus { incarnation: "new".to_owned(), ..member(id) };
    let of = |s: Status| judged(&s).2;
    let follows = |members| Status { role: Role::Follower, leader_id: 3, ..leads(members) };
    for words in [
        of(follows(vec![member(1), lost(2), again(2), member(3)])),
        of(knows_none(vec![lost(1), member(1), member(2), member(3)])),
    ] {
        assert!(!words.contains("turned away"), "{words}");
    }
}
