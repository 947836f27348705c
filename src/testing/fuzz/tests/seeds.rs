//! The seeds of the corpus: valid inputs of each kind, for the fuzzers to begin with.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;

use super::random;
use crate::node::envelope::{self, Packer};
use crate::pb;
use crate::testing::fuzz::wire::ours;
use crate::types::{ClusterId, ConfState, Incarnation, Member, Membership, Position, SnapshotMeta};

/// Seeds by file name.
pub(super) fn of(target: &str) -> BTreeMap<String, Vec<u8>> {
    let all = match target {
        "wire" => wire(),
        "gate" => gate(),
        "log_open" => log_open(),
        "snapshot_stream" => snapshot_stream(),
        "identity" => identity(),
        "records" => records(),
        other => panic!("no seeds for {other}"),
    };
    all.into_iter().enumerate().map(|(n, data)| (format!("seed-{n:02}"), data)).collect()
}

fn tagged(kind: u8, message: &impl prost::Message) -> Vec<u8> {
    [vec![kind], message.encode_to_vec()].concat()
}

fn membership() -> Membership {
    let member = |n: u64| Member {
        node_id: n,
        raft_id: n,
        incarnation: Incarnation::from_u128(n.into()),
        addr: format!("n{n}:1"),
        metadata: Bytes::from_static(b"m"),
        learner_only: false,
    };
    Membership {
        cluster_id: ClusterId::from_u128(9),
        index: 5,
        conf_state: ConfState {
            voters: vec![1, 2],
            learners: vec![3],
            voters_outgoing: vec![1, 4],
            learners_next: vec![4],
            auto_leave: false,
        },
        members: (1..=4).map(member).collect(),
        next_raft_id: 6,
    }
}

fn header() -> pb::SnapshotHeader {
    let position = Position { index: 9, term: 2 };
    SnapshotMeta { position, membership: membership(), size: 3, crc32: 7 }.to_pb()
}

fn message(msg_type: u32) -> pb::Message {
    let entry = |index| pb::Entry { index, term: 2, data: Bytes::from_static(b"e"), ..entry0() };
    pb::Message {
        msg_type,
        to: 1,
        from: 2,
        term: 3,
        log_term: 2,
        index: 7,
        entries: vec![entry(8), entry(9)],
        commit: 7,
        snapshot: (msg_type == 7).then(header),
        ..pb::Message::default()
    }
}

fn entry0() -> pb::Entry {
    pb::Entry::default()
}

fn wire() -> Vec<Vec<u8>> {
    use pb::request::Kind as Ask;
    use pb::response::Kind as Answer;
    let cluster_id = ours().cluster_id;
    let batch = |messages| pb::Batch { hello: Some(ours()), messages, lane: 1 };
    let start = pb::SnapshotStart { hello: Some(ours()), message: Some(message(7)) };
    let chunk = |part| pb::Chunk { part: Some(part) };
    let ask = |kind| pb::Request { cluster_id: cluster_id.clone(), kind: Some(kind) };
    let answer = |kind| pb::Response { kind: Some(kind) };
    let join = pb::Join {
        node_id: 5,
        incarnation: cluster_id.clone(),
        addr: "n5:1".into(),
        learner_only: false,
    };
    let commands = vec![Bytes::from_static(b"one"), Bytes::new()];
    let update = pb::change::Kind::Update(membership().members[0].to_pb());
    let refused =
        pb::Refused { code: 1, message: "no".into(), leader_id: 2, leader_addr: "b:1".into() };
    let outcome = |kind| pb::Outcome { index: 4, kind: Some(kind) };
    let outcomes = vec![
        outcome(pb::outcome::Kind::Reply(Bytes::from_static(b"ok"))),
        outcome(pb::outcome::Kind::Rejected("no".into())),
        outcome(pb::outcome::Kind::Refused(refused.clone())),
    ];
    let info = pb::InfoAnswer {
        node_id: 1,
        cluster_id: cluster_id.clone(),
        membership: Some(membership().to_pb()),
        ..pb::InfoAnswer::default()
    };
    let joined = pb::Joined {
        cluster_id: cluster_id.clone(),
        raft_id: 5,
        membership: info.membership.clone(),
    };
    let removed = pb::Refusal { kind: Some(pb::refusal::Kind::Removed(4)) };
    vec![
        tagged(0, &batch((3..10).map(message).collect())),
        tagged(7, &batch((14..19).map(message).collect())),
        tagged(1, &pb::Welcome { hello: Some(ours()) }),
        tagged(2, &chunk(pb::chunk::Part::Start(start))),
        tagged(2, &chunk(pb::chunk::Part::Data(Bytes::from_static(b"body")))),
        tagged(3, &ask(Ask::Info(pb::Info {}))),
        tagged(3, &ask(Ask::Join(join))),
        tagged(3, &ask(Ask::Propose(pb::Propose { commands }))),
        tagged(3, &ask(Ask::Change(pb::Change { kind: Some(update), boot: 0 }))),
        tagged(3, &ask(Ask::Transfer(pb::Transfer { to: 2 }))),
        tagged(4, &answer(Answer::Proposed(pb::Proposed { outcomes }))),
        tagged(4, &answer(Answer::Refused(refused))),
        tagged(4, &answer(Answer::Info(info))),
        tagged(4, &answer(Answer::Joined(joined))),
        tagged(4, &answer(Answer::Done(pb::Done { index: 8, waits: None }))),
        tagged(6, &removed),
    ]
}

/// Every kind of member and of past, each with steps of its own.
fn gate() -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    for kind in 0..8u8 {
        for past in [0x00, 0x13, 0x51, 0x54] {
            let steps = random(u64::from(kind) << 8 | u64::from(past));
            let start = vec![kind, past, 7];
            out.push([start, steps].concat());
        }
    }
    out.push(election());
    // A sole voter that writes until it takes snapshots.
    let write = [21, 0, 3, b'a', b'b', b'c', 29];
    out.push([vec![1, 0x40, 7], write.repeat(30)].concat());
    // A follower whose tail a new leader replaces.
    let entry = [0x43, b'a', b'b', b'c'];
    let append = [&[8, 0, 0, 4, 1, 2][..], &entry, &entry, &[0, 29]].concat();
    out.push([vec![0, 1, 7], append].concat());
    out
}

/// A follower that campaigns step by step, writes, and is overruled.
fn election() -> Vec<u8> {
    let answers = [3u8, 0, 29].repeat(4);
    let write = [21u8, 1, 3, b'a', b'b', b'c', 1, b'd', 29];
    let mut out = vec![0, 1, 7, 0, 20, 29];
    out.extend(answers.iter().copied().chain(write).chain([23, 2, 29]));
    out.extend(answers);
    out.extend([30, 1, 2, 0, 5, 3, 1, 29, 28, 1]);
    out
}

fn log_open() -> Vec<Vec<u8>> {
    let mut out: Vec<Vec<u8>> = (0..5).map(|base| vec![base]).collect();
    for base in 0..4u8 {
        // A flipped bit; a number changed and signed; a cut; a copy; bytes moved and signed.
        out.push(vec![base, 0, 1, 100, 0]);
        out.push(vec![base, 8, 1, 120, 0, 5, 12, 1, 0, 0]);
        out.push(vec![base, 2, 1, 200, 0]);
        out.push(vec![base, 5, 1, 0, 0, 7]);
        out.push(vec![base, 10, 1, 80, 0, 20, 0, 1, 12, 1, 0, 0]);
    }
    out
}

fn snapshot_stream() -> Vec<Vec<u8>> {
    vec![
        vec![0, 0, 0, 0, 8, 3, b'a', b'b', b'c', 8, 1, b'd'],
        vec![0, 1, 0xb5, 0, 8, 3, b'a', b'b', b'c'],
        vec![0, 2, 0, 0, 7, b'x', 0, 4],
        vec![0, 0, 0, 0, 4, 5, 0x12, 3, b'a', b'b', b'c'],
        vec![0, 0, 0, 0, 8, 1, b'a', 3, 2, 1],
        vec![2, 3, b'a', b'b', b'c'],
        vec![2, 3, b'a', b'b', b'c', 4, 30, 0, 1, 1],
        vec![2, 3, b'a', b'b', b'c', 4, 16, 0, 1, 1, 2, 0, 0],
        vec![2, 0, 0, 10, 0],
        [vec![3], b"RAFTSNAP".to_vec(), vec![1, 0, 0, 0, 64, 0, 0, 0, 20, 0, 0, 0]].concat(),
    ]
}

fn identity() -> Vec<Vec<u8>> {
    let mut file = [0u8; 80];
    file[..8].copy_from_slice(b"RAFTLID\0");
    (file[8], file[12], file[16], file[24], file[40], file[56], file[64]) = (1, 1, 3, 4, 5, 6, 7);
    let mut with_log = file;
    with_log[12] = 3;
    let mut alone = file;
    alone[12] = 0;
    let signed = |file: &[u8]| [vec![1], file.to_vec()].concat();
    vec![signed(&file), signed(&with_log), signed(&alone), [vec![0], file.to_vec()].concat()]
}

fn records() -> Vec<Vec<u8>> {
    let mut packer = Packer::new(16);
    packer.push(b"one");
    packer.push(b"");
    let address =
        pb::MembershipChange { upsert: vec![membership().members[0].to_pb()], next_raft_id: 7 };
    let single = |change_type, node_id| pb::ConfChangeSingle { change_type, node_id };
    let change = pb::ConfChangeV2 {
        transition: 2,
        changes: vec![single(0, 4), single(1, 2), single(2, 3)],
        context: Bytes::new(),
    };
    vec![
        [vec![0], packer.finish().to_vec()].concat(),
        [vec![0], envelope::membership(&address.encode_to_vec()).to_vec()].concat(),
        tagged(1, &membership().to_pb()),
        tagged(2, &change),
        tagged(3, &address),
        tagged(4, &header()),
        vec![5, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0],
    ]
}
