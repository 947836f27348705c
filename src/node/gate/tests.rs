//! Each rule lets a correct message pass and refuses each damage to it; what raft does with the
//! worst of it stands beside.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use raft_rs::StateRole;
use raft_rs::eraftpb::{EntryType, Message, MessageType as T};

use super::bench::{Engine, LIMITS, NONCE, Rng, entry, membership, message, snapshot};
use super::*;
use crate::node::context::ReadContext;
use crate::types::{ClusterId, ConfState, Position, SnapshotMeta, eraftpb};

type Mutation = (&'static str, fn(&mut Message), fn(&Reject) -> bool);

/// `base` passes; each mutation of it is refused as it says, by that rule.
fn rule(number: u8, engine: &Engine, base: &Message, mutations: &[Mutation]) {
    let mut legal = base.clone();
    assert_eq!(admit(&mut legal, base.from, &engine.view(base.from)), Ok(()), "{base:?}");
    for (name, mutate, expected) in mutations {
        let mut m = base.clone();
        mutate(&mut m);
        let verdict = admit(&mut m, base.from, &engine.view(base.from));
        let reject = verdict.expect_err(name);
        assert!(expected(&reject), "{name}: {reject:?}");
        assert_eq!(reject.rule(), number, "{name}: {reject}");
    }
}

macro_rules! is {
    ($pattern:pat) => {
        |reject: &Reject| matches!(reject, $pattern)
    };
}

mod member;

fn append() -> Message {
    let mut m = message(T::MsgAppend, 2, 1, 2);
    (m.index, m.log_term, m.commit) = (6, 2, 5);
    m.set_entries(vec![entry(7, 2, b"a"), entry(8, 2, b"b")].into());
    m
}

fn context(raft_id: u64, nonce: u64) -> Bytes {
    ReadContext { raft_id, nonce, counter: 5 }.encode().to_vec().into()
}

fn read(kind: T, asker: u64, term: u64) -> Message {
    let mut m = message(kind, 2, 1, term);
    let mut e = entry(0, 0, b"");
    e.data = context(asker, NONCE);
    m.set_entries(vec![e].into());
    m
}

fn vote(kind: T) -> Message {
    let mut m = message(kind, 3, 1, 3);
    (m.index, m.log_term, m.commit, m.commit_term) = (6, 2, 4, 2);
    m
}

fn install() -> Message {
    let mut m = message(T::MsgSnapshot, 2, 1, 2);
    m.set_snapshot(snapshot(20, 2, &[1, 2, 3]));
    m
}

fn reject_of(index: u64, hint: u64, log_term: u64) -> Message {
    let mut m = message(T::MsgAppendResponse, 3, 1, 3);
    (m.reject, m.index, m.reject_hint, m.log_term) = (true, index, hint, log_term);
    m
}

#[test]
fn rule_1_refuses_local_orders() {
    let engines = [Engine::follower(), Engine::leader()];
    for kind in [
        T::MsgHup,
        T::MsgBeat,
        T::MsgPropose,
        T::MsgUnreachable,
        T::MsgSnapStatus,
        T::MsgCheckQuorum,
        T::MsgTransferLeader,
    ] {
        for e in &engines {
            for term in [0, 3] {
                let verdict = admit(&mut message(kind, 2, 1, term), 2, &e.view(2));
                assert_eq!(verdict, Err(Reject::LocalType { kind }));
            }
        }
    }
}

#[test]
fn rule_1_refuses_fields_of_other_types() {
    let foreign = |r: &Reject| matches!(r, Reject::ForeignField { .. });
    rule(
        1,
        &Engine::follower(),
        &message(T::MsgHeartbeat, 2, 1, 2),
        &[
            ("entries", |m| m.set_entries(vec![entry(7, 2, b"")].into()), foreign),
            ("index", |m| m.index = 1, foreign),
            ("log term", |m| m.log_term = 1, foreign),
            ("commit term", |m| m.commit_term = 1, foreign),
            ("reject", |m| m.reject = true, foreign),
            ("reject hint", |m| m.reject_hint = 1, foreign),
            ("snapshot", |m| m.set_snapshot(snapshot(9, 2, &[1])), foreign),
        ],
    );
    let set_context: fn(&mut Message) = |m| m.context = Bytes::from_static(b"CampaignTransfer");
    rule(1, &Engine::follower(), &append(), &[("context", set_context, foreign)]);
    rule(
        1,
        &Engine::follower(),
        &vote(T::MsgRequestPreVote),
        &[("forced pre-vote", set_context, foreign)],
    );
    let mut ack = message(T::MsgAppendResponse, 3, 1, 3);
    ack.index = 8;
    rule(1, &Engine::leader(), &ack, &[("hint of an ack", |m| m.reject_hint = 8, foreign)]);
}

#[test]
fn rule_2_refuses_wrong_addresses() {
    rule(
        2,
        &Engine::follower(),
        &append(),
        &[
            ("to another", |m| m.to = 3, is!(Reject::NotForUs { to: 3, id: 1 })),
            ("of another", |m| m.from = 3, is!(Reject::NotFromSender { from: 3, sender: 2 })),
        ],
    );
    let e = Engine::follower();
    for impossible in [0, 1] {
        let mut m = message(T::MsgHeartbeat, impossible, 1, 2);
        assert_eq!(admit(&mut m, impossible, &e.view(impossible)), Err(Reject::ImpossibleSender));
    }
    let mut removed = message(T::MsgHeartbeat, 5, 1, 9);
    assert_eq!(admit(&mut removed, 5, &e.view(5)), Err(Reject::RemovedSender { from: 5 }));
    // One whose joining this node has not applied yet.
    assert_eq!(admit(&mut message(T::MsgHeartbeat, 8, 1, 9), 8, &e.view(8)), Ok(()));
}

#[test]
fn rule_3_refuses_impossible_numbers() {
    let e = Engine::follower();
    let term = is!(Reject::Term { .. });
    let range = is!(Reject::OutOfRange { .. });
    rule(
        3,
        &e,
        &append(),
        &[
            ("term 0", |m| m.term = 0, term),
            ("term ahead", |m| m.term = 3 + MAX_TERM_AHEAD, term),
            ("largest term", |m| m.term = u64::MAX, term),
            ("index", |m| m.index = MAX_INDEX + 1, range),
            ("commit", |m| m.commit = u64::MAX, range),
            ("log term", |m| m.log_term = u64::MAX, range),
        ],
    );
    rule(
        3,
        &e,
        &install(),
        &[
            ("index", |m| m.mut_snapshot().mut_metadata().index = u64::MAX, range),
            ("term", |m| m.mut_snapshot().mut_metadata().term = MAX_INDEX + 1, range),
        ],
    );
    rule(3, &e, &vote(T::MsgRequestVote), &[("commit", |m| m.commit_term = u64::MAX, range)]);
    let mut last = append();
    (last.index, last.log_term) = (MAX_INDEX, 2);
    last.set_entries(vec![entry(MAX_INDEX + 1, 2, b"")].into());
    assert!(matches!(admit(&mut last, 2, &e.view(2)), Err(Reject::OutOfRange { .. })));
    let ask = read(T::MsgReadIndex, 2, 0);
    rule(3, &Engine::leader(), &ask, &[("term of a read", |m| m.term = 3, term)]);
}

#[test]
fn rule_4_refuses_malformed_appends() {
    let gap = is!(Reject::Gap { .. });
    let term = is!(Reject::EntryTerm { .. });
    let large = is!(Reject::TooLarge { .. });
    rule(
        4,
        &Engine::follower(),
        &append(),
        &[
            ("index without term", |m| m.log_term = 0, is!(Reject::Position { .. })),
            ("term without index", |m| m.index = 0, is!(Reject::Position { .. })),
            ("hole after index", |m| m.mut_entries()[0].index = 8, gap),
            ("hole between entries", |m| m.mut_entries()[1].index = 9, gap),
            ("entry 0", |m| m.mut_entries()[0].index = 0, gap),
            ("entry of term 0", |m| m.mut_entries()[0].term = 0, term),
            ("falling term", |m| m.mut_entries()[1].term = 1, term),
            ("future term", |m| m.mut_entries()[1].term = 3, term),
            ("large entry", |m| m.mut_entries()[0].data = vec![0; LIMITS.entry + 1].into(), large),
            (
                "large message",
                |m| {
                    let full = |i| entry(i, 2, &vec![0; LIMITS.entry]);
                    m.set_entries((7..12).map(full).collect::<Vec<_>>().into());
                },
                large,
            ),
            (
                "many entries",
                |m| {
                    let bare = (7..7 + 1025).map(|i| entry(i, 2, b""));
                    m.set_entries(bare.collect::<Vec<_>>().into());
                },
                large,
            ),
        ],
    );
}

#[test]
fn rule_4_refuses_what_contradicts_the_log() {
    let committed = is!(Reject::ContradictsCommitted { .. });
    let mut older = message(T::MsgAppend, 2, 1, 2);
    (older.index, older.log_term) = (2, 1);
    older.set_entries((3..=7).map(|i| entry(i, 2, b"x")).collect::<Vec<_>>().into());
    rule(
        4,
        &Engine::follower(),
        &older,
        &[
            ("committed entry", |m| m.mut_entries()[0].term = 1, committed),
            ("before a committed entry", |m| m.log_term = 2, committed),
            (
                "entry of the same term",
                |m| {
                    (m.index, m.log_term) = (5, 1);
                    m.set_entries(vec![entry(6, 2, b"")].into());
                },
                is!(Reject::RewritesOwnTerm { index: 5, term: 2 }),
            ),
        ],
    );
    // An old leader's entries were never committed; raft tells it so.
    let mut old = message(T::MsgAppend, 3, 1, 1);
    (old.index, old.log_term) = (2, 1);
    old.set_entries(vec![entry(3, 1, b"")].into());
    assert_eq!(admit(&mut old, 3, &Engine::follower().view(3)), Ok(()));
    // A later leader may replace what is not committed.
    let mut later = message(T::MsgAppend, 3, 1, 4);
    (later.index, later.log_term) = (4, 2);
    later.set_entries(vec![entry(5, 4, b"")].into());
    assert_eq!(admit(&mut later, 3, &Engine::follower().view(3)), Ok(()));
}

/// Entries 2 to 6 as a follower of 2 in term 2 has them, commit 4; and entry 7 of its leader 3 in
/// term 3, who thereby vouched for all that is below.
fn vouched_for() -> Engine {
    let mut e = Engine::follower();
    let mut m = message(T::MsgAppend, 3, 1, 3);
    (m.index, m.log_term, m.commit) = (6, 2, 4);
    m.set_entries(vec![entry(7, 3, b"c")].into());
    admit(&mut m, 3, &e.view(3)).unwrap();
    e.node.step(m).unwrap();
    e.sync();
    assert_eq!((e.last(), e.commit(), e.node.raft.term), (7, 4, 3));
    e
}

#[test]
fn rule_4_refuses_a_leader_that_contradicts_itself() {
    let contradicts = is!(Reject::RewritesOwnTerm { index: 6, term: 2 });
    let mut more = message(T::MsgAppend, 3, 1, 3);
    (more.index, more.log_term) = (5, 2);
    more.set_entries(vec![entry(6, 2, b"x"), entry(7, 3, b"c"), entry(8, 3, b"d")].into());
    let other_entry: fn(&mut Message) = |m| m.set_entries(vec![entry(6, 3, b"")].into());
    let other_past: fn(&mut Message) = |m| {
        (m.index, m.log_term) = (6, 3);
        m.set_entries(vec![entry(7, 3, b"c")].into());
    };
    let mutations: [Mutation; 2] =
        [("other entry", other_entry, contradicts), ("other past", other_past, contradicts)];
    rule(4, &vouched_for(), &more, &mutations);
    let mut install = message(T::MsgSnapshot, 3, 1, 3);
    install.set_snapshot(snapshot(6, 2, &[1, 2, 3]));
    let other_cut: fn(&mut Message) = |m| m.mut_snapshot().mut_metadata().term = 3;
    rule(4, &vouched_for(), &install, &[("other snapshot", other_cut, contradicts)]);
    // Nobody vouched for what the log ends with: the next leader replaces it, entry or snapshot.
    let follower = Engine::follower();
    (more.index, more.log_term) = (5, 2);
    other_entry(&mut more);
    assert_eq!(admit(&mut more, 3, &follower.view(3)), Ok(()));
    other_cut(&mut install);
    assert_eq!(admit(&mut install, 3, &follower.view(3)), Ok(()));
}

#[test]
fn rule_5_heartbeat_beyond_the_log_is_fatal() {
    let mut beat = message(T::MsgHeartbeat, 2, 1, 2);
    beat.commit = 6;
    for engine in [Engine::follower(), Engine::writing()] {
        rule(5, &engine, &beat, &[("lost", |m| m.commit = 8, is!(Reject::LostLog { .. }))]);
    }
    let e = Engine::follower();
    beat.commit = 7;
    let lost = admit(&mut beat, 2, &e.view(2)).unwrap_err();
    assert_eq!(lost, Reject::LostLog { from: 2, commit: 7, last_index: 6 });
    assert_eq!(lost.severity(), Severity::Fatal);
    assert!(lost.to_string().contains("empty the directory and start this node again"), "{lost}");
    // An old leader speaks of a log that a later one may have cut; raft does not heed it.
    beat.term = 1;
    assert_eq!(admit(&mut beat, 2, &e.view(2)), Ok(()));
    // A joiner has acknowledged nothing.
    let joiner = Engine::joiner(9);
    assert_eq!(admit(&mut message(T::MsgHeartbeat, 2, 9, 5), 2, &joiner.view(2)), Ok(()));
}

#[test]
fn rule_5_follows_one_leader_per_term() {
    let second = |r: &Reject| matches!(r, Reject::SecondLeader { .. });
    let mut answer = read(T::MsgReadIndexResp, 1, 2);
    answer.index = 4;
    for mut m in [append(), message(T::MsgHeartbeat, 2, 1, 2), install(), answer] {
        assert_eq!(admit(&mut m, 2, &Engine::follower().view(2)), Ok(()));
        m.from = 3;
        assert!(admit(&mut m, 3, &Engine::follower().view(3)).is_err_and(|r| second(&r)), "{m:?}");
        m.term = 3;
        assert!(admit(&mut m, 3, &Engine::leader().view(3)).is_err_and(|r| second(&r)), "{m:?}");
        assert_eq!(admit(&mut m, 3, &Engine::candidate().view(3)), Ok(()));
        m.term = 4;
        // In a later term it may lead; that it overwrites our commits is another rule's affair.
        let verdict = admit(&mut m, 3, &Engine::leader().view(3));
        assert!(verdict.err().is_none_or(|r| !second(&r)), "{m:?}");
    }
}

#[test]
fn rule_5_campaigns_only_for_the_present_leader() {
    let not_wanted = is!(Reject::CampaignNotWanted { .. });
    rule(
        5,
        &Engine::follower(),
        &message(T::MsgTimeoutNow, 2, 1, 2),
        &[("earlier", |m| m.term = 1, not_wanted), ("later", |m| m.term = 3, not_wanted)],
    );
    let mut m = message(T::MsgTimeoutNow, 3, 1, 2);
    assert!(admit(&mut m, 3, &Engine::follower().view(3)).is_err_and(|r| not_wanted(&r)));
    for engine in [Engine::writing(), Engine::installing()] {
        let mut m = message(T::MsgTimeoutNow, 2, 1, 2);
        assert_eq!(admit(&mut m, 2, &engine.view(2)), Err(Reject::CampaignTooEarly));
    }
}

#[test]
fn rule_8_rewrites_membership_entries_and_refuses_broken_ones() {
    let mut base = append();
    base.mut_entries()[1].set_entry_type(EntryType::EntryConfChangeV2);
    base.mut_entries()[1].data = Bytes::from_static(&[0x12, 4, 0x10, 7, 0x08, 0, 0x08, 2]);
    let broken = is!(Reject::Membership { .. });
    let mutations: [Mutation; 3] = [
        ("data", |m| m.mut_entries()[1].data = Bytes::from_static(b"\xff"), broken),
        ("context", |m| m.mut_entries()[1].context = Bytes::from_static(b"\xff"), broken),
        ("old form", |m| m.mut_entries()[1].set_entry_type(EntryType::EntryConfChange), broken),
    ];
    rule(8, &Engine::follower(), &base, &mutations);
    admit(&mut base, 2, &Engine::follower().view(2)).unwrap();
    assert_eq!(base.entries[1].data, &[0x08, 2, 0x12, 2, 0x10, 7][..]);
    assert_eq!(base.entries[0].data, &b"a"[..]);
}

#[test]
fn rule_9_refuses_malformed_snapshots() {
    fn meta(m: &mut Message) -> &mut eraftpb::SnapshotMetadata {
        m.mut_snapshot().mut_metadata()
    }
    let position = is!(Reject::SnapshotPosition { .. });
    let conf = is!(Reject::ConfState { .. });
    rule(
        9,
        &Engine::follower(),
        &install(),
        &[
            ("none", |m| m.clear_snapshot(), position),
            ("index 0", |m| meta(m).index = 0, position),
            ("term 0", |m| meta(m).term = 0, position),
            ("future term", |m| meta(m).term = 3, position),
            (
                "data",
                |m| m.mut_snapshot().data = Bytes::from_static(b"x"),
                is!(Reject::SnapshotData { size: 1 }),
            ),
            ("without us", |m| meta(m).mut_conf_state().set_voters(vec![2, 3]), conf),
        ],
    );
    // Rule 4 holds for the position of a snapshot, too; an old one tells the leader our commit.
    let e = Engine::follower();
    for (index, term, ok) in [(4, 2, true), (3, 2, true), (4, 1, false), (3, 1, false)] {
        let mut m = install();
        m.set_snapshot(snapshot(index, term, &[1, 2, 3]));
        let verdict = admit(&mut m, 2, &e.view(2));
        assert_eq!(verdict.is_ok(), ok, "{index}, {term}: {verdict:?}");
    }
}

#[test]
fn rule_9_refuses_a_membership_that_goes_back() {
    let ours = Membership { index: 8, ..membership() };
    let position = Position { index: 20, term: 2 };
    let judge = |membership: Membership, commit: u64| {
        let meta = SnapshotMeta { position, membership, size: 0, crc32: 0 };
        membership_goes_on(&meta, Some(&ours), commit)
    };
    let refused = |theirs| Err(Reject::OlderMembership { theirs, ours: 8 });
    assert_eq!(judge(ours.clone(), 19), Ok(()));
    assert_eq!(judge(Membership { index: 9, next_raft_id: 9, ..ours.clone() }, 19), Ok(()));
    assert_eq!(judge(Membership { index: 7, ..ours.clone() }, 19), refused(7));
    assert_eq!(judge(Membership { next_raft_id: 7, ..ours.clone() }, 19), refused(8));
    let other = ClusterId::from_u128(2);
    assert_eq!(judge(Membership { cluster_id: other, ..ours.clone() }, 19), refused(8));
    // One that tells us nothing new is ignored, and says so to the leader; a joiner knows nothing.
    assert_eq!(judge(Membership { index: 7, ..ours.clone() }, 20), Ok(()));
    let meta = SnapshotMeta { position, membership: membership(), size: 0, crc32: 0 };
    assert_eq!(membership_goes_on(&meta, None, 0), Ok(()));
    assert_eq!(Reject::OlderMembership { theirs: 7, ours: 8 }.severity(), Severity::Hostile);
}

#[test]
fn rule_9_admits_exactly_what_raft_restores() {
    let seed = Rng::seed();
    let mut rng = Rng(seed);
    let (mut good, mut bad) = (0, 0);
    for _ in 0..20_000 {
        let mut list = |most: u64| -> Vec<u64> {
            (0..rng.below(most + 1)).map(|_| rng.below(30) / 5).collect()
        };
        let mut conf = ConfState {
            voters: list(3),
            learners: list(2),
            voters_outgoing: list(3),
            learners_next: list(1),
            auto_leave: false,
        };
        if rng.one_in(2) {
            conf.voters_outgoing.clear();
            conf.learners_next.clear();
        }
        conf.auto_leave = rng.one_in(10);
        let mut e = Engine::follower();
        let mut m = install();
        *m.mut_snapshot().mut_metadata().mut_conf_state() = (&conf).into();
        let restored = catch_unwind(AssertUnwindSafe(|| {
            e.node.step(m).unwrap();
            e.node.snap().is_some()
        }));
        let admitted = check_conf_state(&conf, 1);
        match restored {
            Ok(true) => good += 1,
            Ok(false) | Err(_) => {
                bad += 1;
                assert!(admitted.is_err(), "seed {seed}: raft cannot restore {conf:?}");
            }
        }
        // Beyond what raft asks for, only these are refused.
        let stricter = conf.auto_leave || {
            let lists = [&conf.voters, &conf.learners, &conf.voters_outgoing, &conf.learners_next];
            lists.iter().any(|l| {
                let unique: std::collections::HashSet<_> = l.iter().collect();
                unique.len() < l.len() || l.contains(&0)
            })
        };
        if matches!(restored, Ok(true)) && !stricter {
            assert_eq!(admitted, Ok(()), "seed {seed}: {conf:?}");
        }
    }
    assert!(good > 100 && bad > 100, "seed {seed}: {good} good, {bad} bad");
}
