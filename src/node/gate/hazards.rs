//! What the bare engine does with hostile messages (H9-H11), and that the gate stands before it.
//!
//! A case whose bare engine no longer panics means that raft changed: look at the rule again.

use std::panic::{AssertUnwindSafe, catch_unwind};

use raft_rs::StateRole;
use raft_rs::eraftpb::{Entry, Message, MessageType as T};

use super::admit;
use super::bench::{Engine, entry, message, snapshot};

struct Case {
    name: &'static str,
    engine: fn() -> Engine,
    message: Message,
    rule: u8,
}

fn case(name: &'static str, engine: fn() -> Engine, rule: u8, message: Message) -> Case {
    Case { name, engine, message, rule }
}

fn append(term: u64, index: u64, log_term: u64, entries: Vec<Entry>) -> Message {
    let mut m = message(T::MsgAppend, 2, 1, term);
    (m.index, m.log_term) = (index, log_term);
    m.set_entries(entries.into());
    m
}

fn with(mut m: Message, change: impl FnOnce(&mut Message)) -> Message {
    change(&mut m);
    m
}

fn panics() -> Vec<Case> {
    let follower = Engine::follower as fn() -> Engine;
    let leader = Engine::leader as fn() -> Engine;
    let install = |index, voters: &[u64], learners: Vec<u64>| {
        with(message(T::MsgSnapshot, 2, 1, 2), |m| {
            m.set_snapshot(snapshot(index, 2, voters));
            m.mut_snapshot().mut_metadata().mut_conf_state().set_learners(learners);
        })
    };
    let unversed = |kind| with(message(kind, 2, 1, 0), |m| (m.index, m.log_term) = (99, 9));
    vec![
        case(
            "heartbeat commits beyond the log",
            follower,
            5,
            with(message(T::MsgHeartbeat, 2, 1, 2), |m| m.commit = 9),
        ),
        // A vote without a term is answered in term 0 by a node that was never in one.
        case("vote of term 0", Engine::unborn, 3, unversed(T::MsgRequestVote)),
        case("pre-vote of term 0", Engine::unborn, 3, unversed(T::MsgRequestPreVote)),
        case("proposal without entries", leader, 1, message(T::MsgPropose, 2, 1, 0)),
        case("read without context", leader, 7, message(T::MsgReadIndex, 2, 1, 0)),
        case("append beyond the log", follower, 4, append(2, 50, 0, vec![entry(51, 2, b"")])),
        case("append with a hole", follower, 4, append(2, 6, 2, vec![entry(13, 2, b"")])),
        case("voter and learner at once", follower, 9, install(10, &[1, 2], vec![1])),
        case("no voters", follower, 9, install(10, &[], vec![1])),
        case("snapshot at the largest index", follower, 3, install(u64::MAX, &[1, 2], vec![])),
        case("campaign after the largest term", follower, 3, append(u64::MAX, 0, 0, vec![])),
        case(
            "largest index acknowledged",
            leader,
            3,
            with(message(T::MsgAppendResponse, 2, 1, 3), |m| m.index = u64::MAX),
        ),
    ]
}

fn harms() -> Vec<Case> {
    let follower = Engine::follower as fn() -> Engine;
    vec![
        case("phantom acknowledgement", follower, 4, append(2, 1000, 0, vec![])),
        case("append of term 0", follower, 3, append(0, 6, 2, vec![entry(7, 2, b"evil")])),
        case("campaign ordered by a stranger", follower, 5, message(T::MsgTimeoutNow, 99, 1, 2)),
        case("removed member leads", Engine::leader, 2, message(T::MsgHeartbeat, 5, 1, 1003)),
    ]
}

fn refused(case: &Case) {
    let engine = (case.engine)();
    let mut m = case.message.clone();
    let sender = m.from;
    let reject = admit(&mut m, sender, &engine.view(sender)).expect_err(case.name);
    assert_eq!(reject.rule(), case.rule, "{}: {reject}", case.name);
}

#[test]
fn twelve_messages_panic_the_bare_engine_and_the_gate_refuses_each() {
    let cases = panics();
    assert_eq!(cases.len(), 12);
    for c in &cases {
        // The arithmetic of these overflows silently where overflow is not checked.
        let checked_only = c.name.contains("largest");
        let mut engine = (c.engine)();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let _ = engine.node.step(c.message.clone());
            engine.sync();
            for _ in 0..40 {
                engine.node.tick();
                engine.sync();
            }
        }));
        let overflow_checks = cfg!(debug_assertions);
        assert!(outcome.is_err() || checked_only && !overflow_checks, "{}: no panic", c.name);
        refused(c);
    }
}

#[test]
fn four_messages_harm_the_bare_engine_and_the_gate_refuses_each() {
    let cases = harms();
    let step = |c: &Case| {
        let mut engine = (c.engine)();
        engine.node.step(c.message.clone()).expect(c.name);
        engine.write();
        engine.sync_once();
        engine
    };
    let acked = step(&cases[0]);
    assert!(acked.sent.iter().any(|m| m.index == 1000 && !m.reject), "{}", cases[0].name);
    assert_eq!(step(&cases[1]).last(), 7, "{}", cases[1].name);
    assert_eq!(step(&cases[2]).node.raft.state, StateRole::Candidate, "{}", cases[2].name);
    assert_eq!(step(&cases[3]).node.raft.leader_id, 5, "{}", cases[3].name);
    cases.iter().for_each(refused);
}

/// Beyond the list: damage that panics only while the log is being written.
#[test]
fn a_campaign_in_the_middle_of_an_install_panics_the_bare_engine_and_is_refused() {
    let order = message(T::MsgTimeoutNow, 2, 1, 2);
    let mut engine = Engine::installing();
    let outcome = catch_unwind(AssertUnwindSafe(|| engine.node.step(order.clone())));
    assert!(outcome.is_err(), "no panic");
    refused(&case("campaign in an install", Engine::installing, 5, order));
}

#[test]
fn a_vote_before_the_log_is_durable_panics_the_bare_engine_and_is_refused() {
    fn campaigns() -> Engine {
        let mut engine = Engine::writing();
        let order = message(T::MsgTimeoutNow, 2, 1, 2);
        let _ = engine.node.step(order);
        assert_eq!(engine.node.raft.state, StateRole::Candidate);
        engine
    }
    let grant = message(T::MsgRequestVoteResponse, 2, 1, 3);
    let mut engine = campaigns();
    let outcome = catch_unwind(AssertUnwindSafe(|| engine.node.step(grant.clone())));
    assert!(outcome.is_err(), "no panic");
    refused(&case("early vote", campaigns, 6, grant));
}
