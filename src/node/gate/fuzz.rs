//! Whatever the gate admits, the engine survives: random damage to plausible messages, in every
//! role, with the disk behind, and with whatever the messages before have led to.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use raft_rs::StateRole;
use raft_rs::eraftpb::{Entry, EntryType, Message, MessageType as T};

use super::bench::{Engine, NEXT_RAFT_ID, NONCE, Rng, entry, message, snapshot};
use super::*;
use crate::node::context::ReadContext;

const MESSAGES: u64 = 200_000;

const TYPES: [T; 19] = [
    T::MsgHup,
    T::MsgBeat,
    T::MsgPropose,
    T::MsgAppend,
    T::MsgAppendResponse,
    T::MsgRequestVote,
    T::MsgRequestVoteResponse,
    T::MsgSnapshot,
    T::MsgHeartbeat,
    T::MsgHeartbeatResponse,
    T::MsgUnreachable,
    T::MsgSnapStatus,
    T::MsgCheckQuorum,
    T::MsgTransferLeader,
    T::MsgTimeoutNow,
    T::MsgReadIndex,
    T::MsgReadIndexResp,
    T::MsgRequestPreVote,
    T::MsgRequestPreVoteResponse,
];

fn engine(rng: &mut Rng) -> Engine {
    match rng.below(9) {
        8 => Engine::hasty(),
        0 => Engine::joiner(1),
        1 => Engine::founded(1),
        2 => Engine::pre_candidate(),
        3 => Engine::candidate(),
        4 => Engine::writing(),
        5 => Engine::installing(),
        6 => Engine::follower(),
        _ => Engine::leader(),
    }
}

/// Numbers around `near`, rarely far away.
fn number(rng: &mut Rng, near: u64) -> u64 {
    match rng.below(16) {
        0 => 0,
        1 => rng.pick(&[1, MAX_INDEX - 1, MAX_INDEX, MAX_INDEX + 1, u64::MAX - 1, u64::MAX]),
        2..=4 => near.saturating_sub(rng.below(4)),
        5..=7 => near.saturating_add(rng.below(4)),
        _ => near,
    }
}

fn bytes(rng: &mut Rng) -> Bytes {
    match rng.below(6) {
        0 => (0..rng.below(40)).map(|_| rng.next() as u8).collect(),
        1 => Bytes::from_static(raft_rs::CAMPAIGN_TRANSFER),
        2 => Bytes::from_static(&[0x08, 2, 0x12, 4, 0x08, 1, 0x10, 3]),
        3 => Bytes::from_static(&[0x12, 4, 0x08, 2, 0x10, 9]),
        4 => Bytes::new(),
        _ => {
            let (raft_id, counter) = (rng.below(4), rng.below(3));
            ReadContext { raft_id, nonce: NONCE, counter }.encode().to_vec().into()
        }
    }
}

/// Entries that follow `m.index` correctly, with the terms that the engine's own log has.
fn entries(rng: &mut Rng, view: &GateView<'_>, m: &Message) -> Vec<Entry> {
    let mut term = m.log_term.max(1);
    (0..rng.below(5))
        .map(|i| {
            let index = m.index.saturating_add(1 + i);
            let raised = if rng.one_in(4) { m.term } else { term };
            term = view.terms.term_at(index).filter(|_| rng.below(8) > 0).unwrap_or(raised);
            let mut e = entry(index, term, b"e");
            if rng.one_in(4) {
                e.set_entry_type(EntryType::EntryConfChangeV2);
                e.data = bytes(rng);
            }
            e
        })
        .collect()
}

/// A message as a correct peer might send it, as far as one can tell from here.
fn plausible(rng: &mut Rng, view: &GateView<'_>) -> Message {
    let leader = if view.leader == 0 || view.leader == view.id { 2 } else { view.leader };
    let from = if rng.one_in(6) { rng.pick(&[3, 9]) } else { leader };
    let term = if rng.one_in(4) { view.term + rng.below(2) } else { view.term }.max(1);
    let kind = rng.pick(&TYPES);
    let mut m = message(kind, from, view.id, term);
    let held = |index| view.terms.term_at(index).unwrap_or(view.term.max(1));
    let near = rng.pick(&[view.commit, view.last_index]);
    let read = |rng: &mut Rng, raft_id| {
        let context = ReadContext { raft_id, nonce: NONCE, counter: rng.below(3) };
        vec![entry(0, 0, &context.encode())]
    };
    match kind {
        T::MsgAppend => {
            m.index = near;
            m.log_term = held(near);
            m.commit = number(rng, view.commit);
            m.set_entries(entries(rng, view, &m).into());
        }
        T::MsgAppendResponse => {
            (m.index, m.commit) = (near, view.commit);
            m.reject = rng.one_in(3);
            if m.reject {
                m.reject_hint = near.saturating_sub(rng.below(3));
                m.log_term = held(m.reject_hint);
            }
        }
        T::MsgRequestVote | T::MsgRequestPreVote => {
            m.term = view.term + 1;
            (m.index, m.log_term) = (view.last_index, held(view.last_index));
            (m.commit, m.commit_term) = (near, held(near));
        }
        T::MsgRequestVoteResponse | T::MsgRequestPreVoteResponse => {
            m.term = view.term + u64::from(kind == T::MsgRequestPreVoteResponse);
            m.reject = rng.one_in(2);
            if m.reject {
                (m.commit, m.commit_term) = (near, held(near));
            }
        }
        T::MsgSnapshot => {
            let index = near + rng.below(5);
            let position = held(index).min(term);
            m.set_snapshot(snapshot(index, position, rng.pick(&[&[1, 2, 3][..], &[1], &[1, 9]])));
        }
        T::MsgHeartbeat | T::MsgHeartbeatResponse => m.commit = near,
        T::MsgReadIndex => {
            m.term = 0;
            m.set_entries(read(rng, from).into());
        }
        T::MsgReadIndexResp => {
            m.index = near;
            m.set_entries(read(rng, view.id).into());
        }
        _ => {}
    }
    m
}

fn damage(rng: &mut Rng, m: &mut Message) {
    match rng.below(19) {
        0 => m.set_msg_type(rng.pick(&TYPES)),
        1 => m.to = number(rng, m.to),
        2 => m.from = rng.below(NEXT_RAFT_ID + 4),
        3 => m.term = number(rng, m.term),
        4 => m.log_term = number(rng, m.log_term),
        5 => m.index = number(rng, m.index),
        6 => m.commit = number(rng, m.commit),
        7 => m.commit_term = number(rng, m.commit_term),
        8 => m.request_snapshot = number(rng, 0),
        9 => m.reject = !m.reject,
        10 => m.reject_hint = number(rng, m.reject_hint),
        11 => m.context = bytes(rng),
        12 => m.priority = rng.pick(&[0, 1, -1, i64::MIN]),
        13 => m.clear_entries(),
        14 => {
            let (index, term) = (number(rng, m.index.saturating_add(1)), number(rng, m.term));
            m.mut_entries().push(entry(index, term, b"d"));
        }
        15 => {
            if let Some(e) = m.mut_entries().last_mut() {
                e.data = bytes(rng);
                e.set_entry_type(rng.pick(&[
                    EntryType::EntryNormal,
                    EntryType::EntryConfChange,
                    EntryType::EntryConfChangeV2,
                ]));
            }
        }
        16 => {
            if let Some(e) = m.mut_entries().first_mut() {
                (e.index, e.term) = (number(rng, e.index), number(rng, e.term));
            }
        }
        17 => {
            // Well-formed, but beyond the end of the log, where raft knows term 0.
            let gap = 1 + rng.below(9);
            m.log_term = 0;
            m.index = m.index.saturating_add(gap);
            m.mut_entries().iter_mut().for_each(|e| e.index = e.index.saturating_add(gap));
        }
        _ => {
            let meta = m.mut_snapshot().mut_metadata();
            (meta.index, meta.term) = (number(rng, meta.index), number(rng, meta.term));
            let conf = meta.mut_conf_state();
            match rng.below(3) {
                0 => conf.set_learners(vec![rng.below(5)]),
                1 => conf.set_voters_outgoing(vec![rng.below(5), rng.below(5)]),
                _ => conf.set_learners_next(vec![rng.below(5)]),
            }
        }
    }
}

/// What else happens to a node between two messages.
fn meanwhile(rng: &mut Rng, engine: &mut Engine) {
    match rng.below(8) {
        0 => engine.write(),
        1..=3 => engine.sync(),
        4 => {
            engine.write();
            engine.sync_once();
        }
        5 => (0..rng.below(12)).for_each(|_| engine.tick()),
        6 if engine.node.raft.state == StateRole::Leader => {
            let _ = engine.node.propose(vec![], b"p".to_vec());
            engine.node.read_index(bytes(rng).to_vec());
        }
        _ => {}
    }
}

#[test]
fn engine_survives_whatever_the_gate_admits() {
    let seed = Rng::seed();
    let mut rng = Rng(seed);
    let mut admitted = [0u64; TYPES.len()];
    let (mut count, mut refused) = (0, 0);
    while count < MESSAGES {
        let mut engine = engine(&mut rng);
        let mut story = Vec::new();
        for _ in 0..1 + rng.below(24) {
            count += 1;
            let mut m = plausible(&mut rng, &engine.view(2));
            for _ in 0..rng.below(3) {
                damage(&mut rng, &mut m);
            }
            let sender = if rng.one_in(50) { 3 } else { m.from };
            match admit(&mut m, sender, &engine.view(sender)) {
                // The node stops.
                Err(reject) if reject.severity() == Severity::Fatal => break,
                Err(_) => {
                    refused += 1;
                    continue;
                }
                Ok(()) => {
                    let place = TYPES.iter().position(|t| *t == m.get_msg_type());
                    admitted[place.expect("every type is listed")] += 1;
                }
            }
            story.push(m.clone());
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                // An answer of a stranger is no member's: raft says so, and that is all.
                let _ = engine.node.step(m);
                meanwhile(&mut rng, &mut engine);
            }));
            assert!(outcome.is_ok(), "RAFTLINE_SEED={seed}: panic after {story:#?}");
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| engine.sync()));
        assert!(outcome.is_ok(), "RAFTLINE_SEED={seed}: panic at the end of {story:#?}");
    }
    assert!(refused > MESSAGES / 20, "RAFTLINE_SEED={seed}: only {refused} refused");
    for (kind, count) in TYPES.iter().zip(admitted) {
        let local = admit(&mut message(*kind, 2, 1, 1), 2, &Engine::founded(1).view(2))
            .is_err_and(|r| matches!(r, Reject::LocalType { .. }));
        assert_eq!(count == 0, local, "RAFTLINE_SEED={seed}: {kind:?} admitted {count} times");
    }
}
