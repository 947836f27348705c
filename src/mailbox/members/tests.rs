//! What a call that is asked again and again says in the end, whatever was answered before.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::FutureExt;

use super::*;
use crate::config::Config;
use crate::driver::inbox::Classes;
use crate::driver::shared::Shared;
use crate::error::Outcome;
use crate::node::event::Applied;
use crate::types::{ClusterId, ConfState, Membership};

/// Nothing here takes so long.
const LONG: Duration = Duration::from_secs(3600);

/// One answer.
type Says = fn() -> Result<Progress>;

/// A leader that gives these answers, one after the other; for ever the last.
async fn answer(shared: Arc<Shared>, mut answers: VecDeque<Says>) {
    let mut taken = Classes::default();
    let mut added = false;
    loop {
        shared.inbox.turn(Instant::now() + LONG, false).await;
        shared.inbox.take(&mut taken);
        for event in taken.requests.drain(..) {
            let (change, reply) = match event {
                Event::Change { change, reply } => (change, reply),
                Event::Read(read) => {
                    read.reply.send(Ok(Applied { index: 5, data: Vec::new() }));
                    continue;
                }
                other => panic!("{other:?}"),
            };
            if let Change::AddVoter { added: says, .. } = change {
                assert_eq!(says, added, "whether it may have been added before");
            }
            let next = answers.front().copied().expect("an answer");
            if answers.len() > 1 {
                answers.pop_front();
            }
            let answer = next();
            added |= !matches!(&answer, Err(e) if !e.outcome_unknown());
            reply.send(answer.map(|progress| Changed { membership: members(), progress }));
        }
    }
}

/// Voters 1 and 2, and 4, a learner for good.
fn members() -> Membership {
    let member = |n: u64| Member { learner_only: n == 4, ..Member::numbered(n) };
    Membership {
        cluster_id: ClusterId::from_u128(9),
        index: 5,
        conf_state: ConfState { voters: vec![1, 2], learners: vec![4], ..ConfState::default() },
        members: [1, 2, 4].map(member).into(),
        next_raft_id: 5,
    }
}

fn lost() -> Result<Progress> {
    Err(Error::unknown("the connection broke"))
}

fn no_leader() -> Result<Progress> {
    Err(Error::NoLeader)
}

fn refused() -> Result<Progress> {
    Err(Error::Membership("no".to_owned()))
}

fn expected() -> Result<Progress> {
    Ok(Progress::Expected)
}

fn done() -> Result<Progress> {
    Ok(Progress::Done)
}

#[derive(Clone, Copy, Debug)]
enum Call {
    Add,
    Replace,
    /// Of the learner: in force already.
    Demote,
    Promote,
}

async fn outcome(call: Call, answers: &[Says]) -> Result<()> {
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let shared = Arc::new(Shared::new(Config::default(), logger, |_| Ok(())));
    shared.update_view(|view| view.membership = Some(members()));
    let mailbox = Mailbox::new(shared.clone()).with_timeout(Duration::from_secs(2));
    let leader = tokio::spawn(answer(shared, answers.iter().copied().collect()));
    let told = match call {
        Call::Add => mailbox.add_voter(4, "n4:1").await,
        Call::Replace => mailbox.replace(1, 4).await,
        Call::Demote => mailbox.demote(4).await,
        Call::Promote => mailbox.promote(4).await,
    };
    leader.abort();
    told
}

#[tokio::test(start_paused = true)]
async fn what_was_lost_sight_of_stays_unknown_whatever_is_answered_later() {
    let cases: [&[Says]; 5] = [
        &[lost, no_leader],
        &[lost, refused],
        &[lost, no_leader, refused],
        &[lost, expected, refused],
        &[no_leader, lost, expected],
    ];
    for call in [Call::Add, Call::Replace, Call::Promote] {
        // Nothing but the two that wait for a node is told of progress.
        let fit = if matches!(call, Call::Promote) { 3 } else { cases.len() };
        for (i, answers) in cases.iter().take(fit).enumerate() {
            let error = outcome(call, answers).await.expect_err("refused in the end");
            assert_eq!(error.outcome(), Outcome::Unknown, "{call:?}, case {i}: {error}");
        }
    }
}

#[tokio::test]
async fn no_deadline_is_too_late() {
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let shared = Arc::new(Shared::new(Config::default(), logger, |_| Ok(())));
    shared.update_view(|view| view.membership = Some(members()));
    let mailbox = Mailbox::new(shared).with_timeout(Duration::MAX);
    assert!(mailbox.propose_many(["a"]).now_or_never().is_none());
    assert!(mailbox.query(Vec::new()).now_or_never().is_none());
    assert!(mailbox.add_voter(4, "n4:1").now_or_never().is_none());
    assert!(mailbox.leave().now_or_never().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_definite_while_nothing_was_done() {
    for (call, answers, outcome_is) in [
        (Call::Add, [no_leader as Says, refused], Outcome::NotApplied),
        (Call::Replace, [no_leader, refused], Outcome::NotApplied),
        (Call::Promote, [no_leader, no_leader], Outcome::NotApplied),
        (Call::Promote, [refused, refused], Outcome::NotApplied),
        // The learner is there; a replacement that waits for its node has changed nothing.
        (Call::Add, [expected, refused], Outcome::Unknown),
        (Call::Replace, [expected, refused], Outcome::NotApplied),
    ] {
        let error = outcome(call, &answers).await.expect_err("refused in the end");
        assert_eq!(error.outcome(), outcome_is, "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn it_ends_when_it_is_done() {
    outcome(Call::Add, &[no_leader, expected, lost, done]).await.expect("done in the end");
    // Nothing is asked for again: it is in force, or not known to be.
    outcome(Call::Demote, &[lost, refused]).await.expect("in force");
}

#[test]
fn what_holds_is_told_from_what_does_not() {
    let m = members();
    let set = |voters: &[u64], learners: &[u64]| Change::Set {
        voters: voters.to_vec(),
        learners: learners.to_vec(),
    };
    let describe = |addr: &str| Change::Describe {
        node_id: 1,
        addr: Some(addr.to_owned()),
        metadata: Some(Bytes::new()),
    };
    let holds = [
        Change::Promote { node_id: 1 },
        Change::Demote { node_id: 4 },
        Change::Remove { node_id: 3 },
        Change::Replace { old: 3, new: 2 },
        Change::AddLearner { node_id: 4, addr: "n4:1".to_owned() },
        set(&[2, 1], &[4]),
        describe("n1:1"),
    ];
    let fails = [
        Change::Promote { node_id: 4 },
        Change::Demote { node_id: 1 },
        Change::Remove { node_id: 4 },
        Change::Replace { old: 3, new: 4 },
        Change::Replace { old: 1, new: 2 },
        Change::AddLearner { node_id: 3, addr: "n3:1".to_owned() },
        set(&[1, 2], &[]),
        set(&[1], &[2, 4]),
        describe("n1:2"),
    ];
    for change in &holds {
        assert!(is_in_force(change, &m), "{change:?}");
        let mut joint = m.clone();
        joint.conf_state.voters_outgoing = vec![1];
        assert!(!is_in_force(change, &joint), "half of it: {change:?}");
    }
    for change in &fails {
        assert!(!is_in_force(change, &m), "{change:?}");
    }
}

/// As many proposals as may be wait, and nobody has been answered.
#[tokio::test(start_paused = true)]
async fn load_keeps_nobody_from_asking_for_the_status_or_a_change() {
    let config = Config { max_pending_requests: 1, ..Config::default() };
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let shared = Arc::new(Shared::new(config, logger, |_| Ok(())));
    shared.status.send_modify(|s| s.role = crate::status::Role::Leader);
    let mailbox = Mailbox::new(shared);
    let waiting = mailbox.submit("a command".into()).expect("it is the first");
    let refused = mailbox.propose("another").await.expect_err("there is no place");
    assert!(matches!(refused, Error::Overloaded { .. }), "{refused}");
    let refused = mailbox.query(Vec::new()).await.expect_err("there is no place");
    assert!(matches!(refused, Error::Overloaded { .. }), "{refused}");
    // What is admitted waits for a node that is not there.
    for error in [
        mailbox.status().await.expect_err("nobody answers"),
        mailbox.transfer_leadership(None).await.expect_err("nobody answers"),
        mailbox.remove(4).await.expect_err("nobody answers"),
    ] {
        assert!(!matches!(error, Error::Overloaded { .. }), "{error}");
    }
    drop(waiting);
}
