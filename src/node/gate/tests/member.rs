//! Rules 6 and 7: votes, answers, reads.

use super::*;

#[test]
fn rule_6_refuses_malformed_votes() {
    for kind in [T::MsgRequestVote, T::MsgRequestPreVote] {
        rule(
            6,
            &Engine::follower(),
            &vote(kind),
            &[
                ("commit beyond the log", |m| m.commit = 7, is!(Reject::Beyond { .. })),
                ("log of the campaign", |m| m.log_term = 3, is!(Reject::FutureTerm { .. })),
                ("commit of the future", |m| m.commit_term = 4, is!(Reject::FutureTerm { .. })),
            ],
        );
        let mut m = vote(kind);
        m.log_term = 0;
        let verdict = admit(&mut m, 3, &Engine::follower().view(3));
        assert_eq!(verdict, Err(Reject::Position { index: 6, log_term: 0 }));
    }
    let mut empty = message(T::MsgRequestVote, 3, 1, 3);
    assert_eq!(admit(&mut empty, 3, &Engine::follower().view(3)), Ok(()));
    let mut no = message(T::MsgRequestVoteResponse, 3, 1, 3);
    (no.reject, no.commit, no.commit_term) = (true, 5, 2);
    let future = is!(Reject::FutureTerm { .. });
    rule(6, &Engine::candidate(), &no, &[("future", |m| m.commit_term = 4, future)]);
}

#[test]
fn rule_6_refuses_votes_that_were_not_asked_for() {
    let mut e = Engine::writing();
    e.node.campaign().unwrap();
    for (kind, term) in [(T::MsgRequestPreVoteResponse, 3), (T::MsgRequestPreVoteResponse, 2)] {
        let verdict = admit(&mut message(kind, 2, 1, term), 2, &e.view(2));
        assert_eq!(verdict, Err(Reject::VoteNotAsked));
    }
    e.sync();
    let mut granted = message(T::MsgRequestPreVoteResponse, 2, 1, 3);
    assert_eq!(admit(&mut granted, 2, &e.view(2)), Ok(()));
    e.node.step(granted).unwrap();
    assert_eq!(e.node.raft.state, StateRole::Candidate);
    assert_eq!(admit(&mut message(T::MsgRequestVoteResponse, 2, 1, 3), 2, &e.view(2)), Ok(()));
}

#[test]
fn rule_6_refuses_impossible_answers() {
    let e = Engine::leader();
    let mut ack = message(T::MsgAppendResponse, 2, 1, 3);
    (ack.index, ack.commit) = (8, 7);
    let beyond = is!(Reject::Beyond { .. });
    rule(6, &e, &ack, &[("index", |m| m.index = 9, beyond), ("commit", |m| m.commit = 9, beyond)]);
    rule(
        6,
        &e,
        &reject_of(8, 6, 2),
        &[
            ("hint", |m| m.reject_hint = 9, beyond),
            ("term of the hint", |m| m.log_term = 4, is!(Reject::FutureTerm { .. })),
        ],
    );
    let mut beat = message(T::MsgHeartbeatResponse, 2, 1, 3);
    beat.commit = 7;
    rule(6, &e, &beat, &[("commit", |m| m.commit = 9, beyond)]);
    // What an answer of an earlier term says is not heeded: it was about another log.
    (ack.term, ack.index) = (2, 50);
    assert_eq!(admit(&mut ack, 2, &e.view(2)), Ok(()));
    // Nor does a node judge by its log who answers another term than the one it leads.
    for (engine, term) in [(Engine::leader(), 2), (Engine::leader(), 4), (Engine::follower(), 2)] {
        (beat.term, beat.commit) = (term, 50);
        assert_eq!(admit(&mut beat, 2, &engine.view(2)), Ok(()));
    }
}

#[test]
fn rule_6_drops_stale_rejections() {
    let e = Engine::leader();
    for (index, hint) in [(7, 6), (6, 6), (8, 6)] {
        let mut m = reject_of(index, hint, 2);
        m.from = 2;
        let reject = admit(&mut m, 2, &e.view(2)).unwrap_err();
        assert_eq!(reject, Reject::StaleRejection { index, matched: 7 });
        assert_eq!(reject.severity(), Severity::Stale);
    }
}

#[test]
fn rule_7_refuses_foreign_contexts_and_features() {
    let foreign = is!(Reject::Context { .. });
    let odd: fn(&mut Message) = |m| m.context = Bytes::from_static(b"odd");
    let mut beat = message(T::MsgHeartbeat, 2, 1, 2);
    beat.context = context(3, 1);
    rule(7, &Engine::follower(), &beat, &[("heartbeat", odd, foreign)]);
    let mut answer = message(T::MsgHeartbeatResponse, 2, 1, 3);
    answer.context = context(1, NONCE);
    rule(7, &Engine::leader(), &answer, &[("answer", odd, foreign)]);
    let mut forced = vote(T::MsgRequestVote);
    forced.context = raft_rs::CAMPAIGN_TRANSFER.into();
    let priority = is!(Reject::Priority);
    let mutations: [Mutation; 5] = [
        ("vote", odd, foreign),
        ("request snapshot", |m| m.request_snapshot = 1, is!(Reject::RequestsSnapshot)),
        ("priority", |m| m.priority = -1, priority),
        ("old priority", |m| m.deprecated_priority = 1, priority),
        ("pre-election", |m| m.context = raft_rs::CAMPAIGN_PRE_ELECTION.into(), foreign),
    ];
    rule(7, &Engine::follower(), &forced, &mutations);
}

#[test]
fn rule_7_refuses_malformed_reads() {
    let malformed = is!(Reject::ReadContext { .. });
    let mutations: [Mutation; 6] = [
        ("no entry", |m| m.clear_entries(), malformed),
        ("two entries", |m| m.mut_entries().push(entry(0, 0, &[1; 24])), malformed),
        ("short", |m| m.mut_entries()[0].data.truncate(23), malformed),
        ("index", |m| m.mut_entries()[0].index = 1, malformed),
        ("type", |m| m.mut_entries()[0].set_entry_type(EntryType::EntryConfChangeV2), malformed),
        (
            "of another",
            |m| m.mut_entries()[0].data = context(3, NONCE),
            is!(Reject::ForeignRead { named: 3, .. }),
        ),
    ];
    rule(7, &Engine::leader(), &read(T::MsgReadIndex, 2, 0), &mutations);
    rule(7, &Engine::follower(), &read(T::MsgReadIndexResp, 1, 2), &mutations);
    let earlier: Mutation =
        ("start", |m| m.mut_entries()[0].data = context(1, NONCE + 1), is!(Reject::EarlierStart));
    rule(7, &Engine::follower(), &read(T::MsgReadIndexResp, 1, 2), &[earlier]);
    let mut ask = read(T::MsgReadIndex, 2, 0);
    assert_eq!(admit(&mut ask, 2, &Engine::follower().view(2)), Err(Reject::ReadNotLeader));
    let e = Engine::leader();
    let full = GateView { pending_reads: MAX_PENDING_READS, ..e.view(2) };
    let refused = Reject::TooManyReads { pending: MAX_PENDING_READS };
    assert_eq!(admit(&mut ask, 2, &full), Err(refused));
}
