//! What a call that is asked again and again says in the end, whatever was answered before.

use std::collections::VecDeque;
use std::sync::Arc;

use super::*;
use crate::config::Config;
use crate::driver::inbox::Classes;
use crate::driver::shared::Shared;
use crate::error::Outcome;
use crate::types::{ClusterId, ConfState, Membership};

/// One answer.
type Says = fn() -> Result<Progress>;

/// A leader that gives these answers, one after the other; for ever the last.
async fn answer(shared: Arc<Shared>, mut answers: VecDeque<Says>) {
    let mut taken = Classes::default();
    let mut added = false;
    loop {
        shared.inbox.take(&mut taken);
        for event in taken.requests.drain(..) {
            let Event::Change { change, reply } = event else { panic!("{event:?}") };
            if let Change::AddVoter { added: says, .. } = change {
                assert_eq!(says, added, "whether it was a member when it was asked for before");
            }
            let next = answers.front().copied().expect("an answer");
            if answers.len() > 1 {
                answers.pop_front();
            }
            let answer = next();
            added |= answer.is_ok();
            reply.send(answer.map(|progress| Changed { membership: members(), progress }));
        }
        sleep(Duration::from_millis(1)).await;
    }
}

fn members() -> Membership {
    Membership {
        cluster_id: ClusterId::from_u128(9),
        index: 5,
        conf_state: ConfState::default(),
        members: Vec::new(),
        next_raft_id: 3,
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
    Demote,
}

async fn outcome(call: Call, answers: &[Says]) -> Result<()> {
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let shared = Arc::new(Shared::new(Config::default(), logger, |_| Ok(())));
    let mailbox = Mailbox::new(shared.clone()).with_timeout(Duration::from_secs(2));
    let leader = tokio::spawn(answer(shared, answers.iter().copied().collect()));
    let told = match call {
        Call::Add => mailbox.add_voter(4, "n4:1").await,
        Call::Replace => mailbox.replace(1, 4).await,
        Call::Demote => mailbox.demote(4).await,
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
    for call in [Call::Add, Call::Replace, Call::Demote] {
        // Nothing but the two that wait for a node is told of progress.
        let fit = if matches!(call, Call::Demote) { 3 } else { cases.len() };
        for (i, answers) in cases.iter().take(fit).enumerate() {
            let error = outcome(call, answers).await.expect_err("refused in the end");
            assert_eq!(error.outcome(), Outcome::Unknown, "{call:?}, case {i}: {error}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_definite_while_nothing_was_done() {
    for (call, answers, outcome_is) in [
        (Call::Add, [no_leader as Says, refused], Outcome::NotApplied),
        (Call::Replace, [no_leader, refused], Outcome::NotApplied),
        (Call::Demote, [no_leader, no_leader], Outcome::NotApplied),
        (Call::Demote, [refused, refused], Outcome::NotApplied),
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
    outcome(Call::Demote, &[lost, no_leader, done]).await.expect("done in the end");
}
