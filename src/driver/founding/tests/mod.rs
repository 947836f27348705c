//! What a node decides, case by case; `model` tries the orders of events.
#![expect(clippy::unwrap_used, reason = "tests")]

mod model;
mod orders;

use super::decide::*;
use super::terms::Terms;
use crate::types::{ClusterId, Incarnation, Membership, NodeId};

const FRESH: ClusterId = ClusterId::from_u128(77);

fn addr(n: u64) -> String {
    format!("n{n}:1")
}

fn all(n: u64) -> Vec<String> {
    (1..=n).map(addr).collect()
}

/// Node `n` of three that are listed.
fn node(n: NodeId) -> Candidate {
    with(n, &all(3), None)
}

fn with(n: NodeId, given: &[String], expect: Option<usize>) -> Candidate {
    Candidate {
        node_id: n,
        incarnation: Incarnation::from_u128(u128::from(n)),
        addr: addr(n),
        terms: Terms::new(&addr(n), given, expect).unwrap(),
        agreed: None,
        heard: Vec::new(),
    }
}

fn answers<const N: usize>(of: [Candidate; N]) -> Answers {
    of.into_iter().map(|c| (c.addr.clone(), Answer::Empty(c))).collect()
}

fn of(cluster: u128, founders: &[&Candidate]) -> Membership {
    let founders = founders.iter().map(|c| (c.node_id, c.incarnation, c.addr.as_str()));
    record(ClusterId::from_u128(cluster), founders)
}

fn waits(step: Step) -> String {
    match step {
        Step::Wait(words) => words,
        other => panic!("{other:?}"),
    }
}

fn refused(step: Step) -> String {
    match step {
        Step::Refuse(e) => e.to_string(),
        other => panic!("{other:?}"),
    }
}

fn member(cluster: u128, membership: Option<Membership>) -> Answer {
    Answer::Member { node_id: 9, cluster: ClusterId::from_u128(cluster), membership }
}

#[test]
fn nobody_founds_while_a_founding_member_is_missing_and_all_say_for_whom() {
    let words = waits(decide(&node(1), &answers([node(2)]), FRESH));
    assert!(words.contains("2 of 3 founding members are here"), "{words}");
    assert!(words.contains("n3:1 (no answer)"), "{words}");
    let mut idle = answers([node(2)]);
    idle.insert(addr(3), Answer::Other);
    let words = waits(decide(&node(1), &idle, FRESH));
    assert!(words.contains("n3:1 (answers, but does not found"), "{words}");
}

#[test]
fn the_lowest_id_proposes_and_founds_once_all_have_agreed() {
    let words = waits(decide(&node(2), &answers([node(1), node(3)]), FRESH));
    assert!(words.contains("waiting for node 1 at n1:1"), "{words}");
    let step = decide(&node(1), &answers([node(2), node(3)]), FRESH);
    let Step::Propose(proposed) = step else { panic!("{step:?}") };
    let (first, second, third) = (node(1), node(2), node(3));
    assert_eq!(proposed, of(77, &[&first, &second, &third]));
    let agreed = |n| Candidate { agreed: Some(proposed.clone()), ..node(n) };
    let words = waits(decide(&agreed(1), &answers([agreed(2), node(3)]), FRESH));
    assert!(words.contains("waiting for n3:1 to agree"), "{words}");
    let step = decide(&agreed(1), &answers([agreed(2), agreed(3)]), FRESH);
    assert!(matches!(&step, Step::Found(r) if *r == proposed), "{step:?}");
}

#[test]
fn a_member_that_was_wiped_before_its_answer_was_used_is_asked_again() {
    let (first, second, third) = (node(1), node(2), node(3));
    let proposed = of(5, &[&first, &second, &third]);
    let agreed = |n| Candidate { agreed: Some(proposed.clone()), ..node(n) };
    let wiped = Candidate { incarnation: Incarnation::from_u128(33), ..node(3) };
    let step = decide(&agreed(1), &answers([agreed(2), wiped]), FRESH);
    let Step::Propose(again) = step else { panic!("{step:?}") };
    assert_eq!(again.cluster_id, FRESH);
    assert!(again.members.iter().any(|m| m.incarnation == Incarnation::from_u128(33)));
}

#[test]
fn a_cluster_that_exists_is_entered() {
    let (first, second, third) = (node(1), node(2), node(3));
    let founding = of(5, &[&first, &second, &third]);
    let mut seen = answers([node(1)]);
    seen.insert(addr(3), member(5, Some(founding.clone())));
    let step = decide(&node(2), &seen, FRESH);
    assert!(matches!(&step, Step::Adopt(r) if *r == founding), "{step:?}");
    // What is no record to found with is none to begin a log with, whoever tells it.
    let mut broken = founding.clone();
    broken.conf_state.voters.push(1);
    seen.insert(addr(3), member(5, Some(broken)));
    let step = decide(&node(2), &seen, FRESH);
    assert!(matches!(&step, Step::Join(at) if *at == addr(3)), "{step:?}");
    seen.insert(addr(3), member(5, Some(founding.clone())));
    // A wiped founding member is another than the record names.
    let wiped = Candidate { incarnation: Incarnation::from_u128(22), ..node(2) };
    let step = decide(&wiped, &seen, FRESH);
    assert!(matches!(&step, Step::Join(at) if *at == addr(3)), "{step:?}");
    seen.insert(addr(1), member(6, None));
    let error = refused(decide(&wiped, &seen, FRESH));
    assert!(error.contains("n1:1 belongs to cluster") && error.contains("leave"), "{error}");
}

#[test]
fn what_was_agreed_to_is_settled_before_another_cluster_is_joined() {
    let (first, second, third) = (node(1), node(2), node(3));
    let agreed = of(5, &[&first, &second, &third]);
    let me = Candidate { agreed: Some(agreed.clone()), ..node(2) };
    let mut seen = Answers::from([(addr(3), member(6, None))]);
    let words = waits(decide(&me, &seen, FRESH));
    assert!(words.contains("waiting for that node to say whether it did"), "{words}");
    seen.insert(addr(1), Answer::Empty(Candidate { agreed: Some(agreed), ..node(1) }));
    waits(decide(&me, &seen, FRESH));
    seen.insert(addr(1), Answer::Empty(node(1)));
    let step = decide(&me, &seen, FRESH);
    assert!(matches!(&step, Step::Join(at) if *at == addr(3)), "{step:?}");
}

#[test]
fn other_lists_are_refused_with_both_of_them() {
    let other = with(2, &all(4), None);
    let error = refused(decide(&node(1), &answers([other, node(3)]), FRESH));
    assert!(error.contains("node 1 at n1:1 founds with [n1:1, n2:1, n3:1]"), "{error}");
    assert!(error.contains("node 2 at n2:1 founds with [n1:1, n2:1, n3:1, n4:1]"), "{error}");
    assert!(error.contains("Start every node with the same list"), "{error}");
    let other = with(2, &all(3), Some(3));
    let error = refused(decide(&node(1), &answers([other]), FRESH));
    assert!(error.contains("expects 3 founding members"), "{error}");
    // Whoever stands in nobody's list hinders nobody.
    let mut seen = answers([node(2)]);
    seen.insert(addr(9), Answer::Empty(with(9, &all(2), None)));
    waits(decide(&node(1), &seen, FRESH));
}

#[test]
fn two_nodes_with_one_id_are_refused_with_both_addresses() {
    let twin = Candidate { node_id: 1, ..node(2) };
    let error = refused(decide(&node(1), &answers([twin.clone(), node(3)]), FRESH));
    assert!(error.contains("node id 1"), "{error}");
    assert!(error.contains("n1:1") && error.contains("n2:1"), "{error}");
    // A third one waits until that is mended.
    let words = waits(decide(&node(3), &answers([node(1), twin]), FRESH));
    assert!(words.contains("node id 1 is used by the node at n1:1 and by the one at n2:1"));
}

#[test]
fn one_node_under_two_names_is_refused_with_the_remedy() {
    let mut seen = answers([node(3)]);
    seen.insert(addr(2), Answer::Empty(node(1)));
    let error = refused(decide(&node(1), &seen, FRESH));
    assert!(error.contains("n2:1 is this node itself"), "{error}");
    assert!(error.contains("set advertise_addr to n2:1"), "{error}");
    let mut seen = answers([node(3)]);
    seen.insert(addr(2), Answer::Empty(node(3)));
    let error = refused(decide(&node(1), &seen, FRESH));
    assert!(error.contains("are the same node"), "{error}");
}

#[test]
fn a_list_of_nothing_but_the_own_address_founds_alone() {
    let alone = with(1, &[], None);
    let step = decide(&alone, &Answers::new(), FRESH);
    let Step::Propose(proposed) = step else { panic!("{step:?}") };
    let agreed = Candidate { agreed: Some(proposed), ..alone };
    let step = decide(&agreed, &Answers::new(), FRESH);
    assert!(matches!(&step, Step::Found(r) if r.members.len() == 1), "{step:?}");
}

#[test]
fn of_more_nodes_than_expected_the_seeds_found_and_a_seed_may_be_down() {
    let of_three = |n| with(n, &all(4), Some(3));
    let step = decide(&of_three(1), &answers([of_three(2), of_three(4), of_three(7)]), FRESH);
    let Step::Propose(proposed) = step else { panic!("{step:?}") };
    let ids: Vec<_> = proposed.members.iter().map(|m| m.node_id).collect();
    assert_eq!(ids, [1, 2, 4]);
    waits(decide(&of_three(7), &answers([of_three(1), of_three(2), of_three(4)]), FRESH));
    // Too few of the seeds.
    let words = waits(decide(&of_three(1), &answers([of_three(2), of_three(7)]), FRESH));
    assert!(words.contains("n3:1 (no answer)"), "{words}");
}

#[test]
fn only_a_record_of_the_own_founding_is_agreed_to() {
    let (first, second, third) = (node(1), node(2), node(3));
    let good = of(5, &[&first, &second, &third]);
    may_agree(&second, &first, &good).unwrap();
    let spoilt: [(&str, Candidate, Membership); 6] = [
        ("not its sender's", node(3), good.clone()),
        ("malformed", node(1), Membership { next_raft_id: 9, ..good.clone() }),
        ("malformed", node(1), Membership { index: 2, ..good.clone() }),
        ("other founding members", node(1), of(5, &[&first, &second])),
        ("names another data directory", node(1), of(5, &[&first, &third])),
        ("Start every node with the same", with(1, &all(2), None), good.clone()),
    ];
    for (reason, from, proposed) in spoilt {
        let error = may_agree(&second, &from, &proposed).unwrap_err();
        assert!(error.contains(reason), "{reason}: {error}");
    }
    // Of the same founding members a newer record takes the older one's place, of others not.
    let second = Candidate { agreed: Some(of(4, &[&first, &second, &third])), ..second };
    may_agree(&second, &first, &good).unwrap();
    let seeds = |n| with(n, &all(4), Some(3));
    let (one, two, four) = (seeds(1), seeds(2), seeds(4));
    let two = Candidate { agreed: Some(of(4, &[&two, &seeds(3), &four])), ..two };
    let error = may_agree(&two, &one, &of(5, &[&one, &two, &four])).unwrap_err();
    assert!(error.contains("has agreed to found a cluster with [n2:1, n3:1, n4:1]"), "{error}");
}

#[test]
fn of_two_that_propose_to_overlapping_groups_the_later_one_gives_way() {
    let seeds = |n| with(n, &all(4), Some(3));
    let (one, two, three, four) = (seeds(1), seeds(2), seeds(3), seeds(4));
    let ahead = Candidate { agreed: Some(of(5, &[&one, &two, &three])), ..seeds(1) };
    let mine = Some(of(6, &[&two, &three, &four]));
    let me = Candidate { agreed: mine.clone(), ..seeds(2) };
    let step = decide(&me, &answers([ahead.clone(), seeds(3)]), FRESH);
    assert!(matches!(step, Step::Withdraw), "{step:?}");
    // One that had agreed to it is free then, and only then.
    let bound = Candidate { agreed: mine, ..seeds(4) };
    let words = waits(decide(&bound, &answers([ahead.clone(), me]), FRESH));
    assert!(words.contains("n3:1"), "{words}");
    let step = decide(&bound, &answers([ahead, seeds(2)]), FRESH);
    assert!(matches!(step, Step::Withdraw), "{step:?}");
}
