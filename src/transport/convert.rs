//! Between our wire messages and the engine's.
//!
//! The engine's own protobuf code never sees bytes of a peer: prost decodes them, and this file
//! copies field by field. Invariants:
//! - every field that raft uses survives both ways;
//! - any decoded wire message gives a message or a [`Refusal::Malformed`], never a panic;
//! - payloads are shared, not copied;
//! - the body of a snapshot is never in a message: its header is, and the engine's view of the
//!   snapshot is rebuilt from that.

use crate::pb;
use crate::transport::Refusal;
use crate::types::{Message, SnapshotMeta, eraftpb};
use eraftpb::{EntryType, MessageType};

/// The wire form of a message.
pub(crate) fn to_wire(message: Message) -> pb::Message {
    let Message { inner, snapshot } = message;
    pb::Message {
        msg_type: inner.get_msg_type() as u32,
        to: inner.to,
        from: inner.from,
        term: inner.term,
        log_term: inner.log_term,
        index: inner.index,
        entries: inner.entries.into_iter().map(entry_to_wire).collect(),
        commit: inner.commit,
        commit_term: inner.commit_term,
        snapshot: snapshot.map(|meta| meta.to_pb()),
        request_snapshot: inner.request_snapshot,
        reject: inner.reject,
        reject_hint: inner.reject_hint,
        context: inner.context,
        priority: inner.priority,
    }
}

/// The message in a wire form.
///
/// # Errors
/// `Malformed` when a type is unknown, or a snapshot and its header do not go together.
pub(crate) fn from_wire(wire: pb::Message) -> Result<Message, Refusal> {
    let msg_type = message_type(wire.msg_type)?;
    let entries =
        wire.entries.into_iter().map(entry_from_wire).collect::<Result<Vec<_>, Refusal>>()?;
    let mut inner = eraftpb::Message::default();
    inner.set_msg_type(msg_type);
    inner.to = wire.to;
    inner.from = wire.from;
    inner.term = wire.term;
    inner.log_term = wire.log_term;
    inner.index = wire.index;
    inner.entries = entries.into();
    inner.commit = wire.commit;
    inner.commit_term = wire.commit_term;
    inner.request_snapshot = wire.request_snapshot;
    inner.reject = wire.reject;
    inner.reject_hint = wire.reject_hint;
    inner.context = wire.context;
    inner.priority = wire.priority;
    let snapshot = match (msg_type == MessageType::MsgSnapshot, wire.snapshot) {
        (true, Some(header)) => {
            let meta = SnapshotMeta::from_pb(header).map_err(Refusal::Malformed)?;
            inner.set_snapshot(engine_snapshot(&meta));
            Some(Box::new(meta))
        }
        (false, None) => None,
        (true, None) => return Err(malformed("snapshot message without a header")),
        (false, Some(_)) => return Err(malformed("snapshot header on another message")),
    };
    Ok(Message { inner, snapshot })
}

/// What the engine wants to know about a snapshot; the data stays in its file.
fn engine_snapshot(meta: &SnapshotMeta) -> eraftpb::Snapshot {
    let mut snapshot = eraftpb::Snapshot::default();
    let metadata = snapshot.mut_metadata();
    metadata.index = meta.position.index;
    metadata.term = meta.position.term;
    metadata.set_conf_state((&meta.membership.conf_state).into());
    snapshot
}

fn entry_to_wire(entry: eraftpb::Entry) -> pb::Entry {
    pb::Entry {
        entry_type: entry.get_entry_type() as u32,
        term: entry.term,
        index: entry.index,
        data: entry.data,
        context: entry.context,
    }
}

fn entry_from_wire(wire: pb::Entry) -> Result<eraftpb::Entry, Refusal> {
    let entry_type = match wire.entry_type {
        0 => EntryType::EntryNormal,
        1 => EntryType::EntryConfChange,
        2 => EntryType::EntryConfChangeV2,
        other => return Err(malformed(format!("entry type {other}"))),
    };
    let mut entry = eraftpb::Entry::default();
    entry.set_entry_type(entry_type);
    entry.term = wire.term;
    entry.index = wire.index;
    entry.data = wire.data;
    entry.context = wire.context;
    Ok(entry)
}

fn message_type(wire: u32) -> Result<MessageType, Refusal> {
    use MessageType as T;
    Ok(match wire {
        0 => T::MsgHup,
        1 => T::MsgBeat,
        2 => T::MsgPropose,
        3 => T::MsgAppend,
        4 => T::MsgAppendResponse,
        5 => T::MsgRequestVote,
        6 => T::MsgRequestVoteResponse,
        7 => T::MsgSnapshot,
        8 => T::MsgHeartbeat,
        9 => T::MsgHeartbeatResponse,
        10 => T::MsgUnreachable,
        11 => T::MsgSnapStatus,
        12 => T::MsgCheckQuorum,
        13 => T::MsgTransferLeader,
        14 => T::MsgTimeoutNow,
        15 => T::MsgReadIndex,
        16 => T::MsgReadIndexResp,
        17 => T::MsgRequestPreVote,
        18 => T::MsgRequestPreVoteResponse,
        other => return Err(malformed(format!("message type {other}"))),
    })
}

fn malformed(reason: impl Into<String>) -> Refusal {
    Refusal::Malformed(reason.into())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::types::{ClusterId, ConfState, Incarnation, Member, Membership, Position};

    const TYPES: u32 = 19;

    fn meta() -> SnapshotMeta {
        SnapshotMeta {
            position: Position { index: 77, term: 6 },
            membership: Membership {
                cluster_id: ClusterId::from_u128(1),
                index: 70,
                conf_state: ConfState {
                    voters: vec![1, 2],
                    learners: vec![3],
                    voters_outgoing: vec![4],
                    learners_next: vec![4],
                    auto_leave: true,
                },
                members: vec![Member {
                    node_id: 10,
                    raft_id: 1,
                    incarnation: Incarnation::from_u128(9),
                    addr: "host:1".to_owned(),
                    metadata: Bytes::from_static(b"m"),
                    learner_only: false,
                }],
                next_raft_id: 5,
            },
            size: 1234,
            crc32: 99,
        }
    }

    fn entry(kind: u32, term: u64, index: u64, data: Bytes, context: Bytes) -> pb::Entry {
        pb::Entry { entry_type: kind, term, index, data, context }
    }

    /// Every field differs from its default and from every other.
    fn full(msg_type: u32) -> pb::Message {
        pb::Message {
            msg_type,
            to: 101,
            from: 102,
            term: 103,
            log_term: 104,
            index: 105,
            entries: (0..3)
                .map(|k| {
                    let data = Bytes::from(vec![k as u8; 5]);
                    entry(k, 106, 107 + u64::from(k), data, Bytes::from_static(b"entry"))
                })
                .collect(),
            commit: 110,
            commit_term: 111,
            snapshot: (msg_type == MessageType::MsgSnapshot as u32).then(|| meta().to_pb()),
            request_snapshot: 112,
            reject: true,
            reject_hint: 113,
            context: Bytes::from_static(b"context"),
            priority: -114,
        }
    }

    #[test]
    fn every_field_of_every_type_survives() {
        for msg_type in 0..TYPES {
            let wire = full(msg_type);
            let message = from_wire(wire.clone()).unwrap();
            assert_eq!(message.inner.get_msg_type() as u32, msg_type);
            let i = &message.inner;
            assert_eq!(
                (i.to, i.from, i.term, i.log_term, i.index, i.commit, i.commit_term),
                (101, 102, 103, 104, 105, 110, 111)
            );
            assert_eq!((i.request_snapshot, i.reject, i.reject_hint), (112, true, 113));
            assert_eq!((&i.context[..], i.priority), (&b"context"[..], -114));
            assert_eq!(i.entries[2].get_entry_type(), EntryType::EntryConfChangeV2);
            assert_eq!((i.entries[2].term, i.entries[2].index), (106, 109));
            assert_eq!(
                (&i.entries[2].data[..], &i.entries[2].context[..]),
                (&[2; 5][..], &b"entry"[..])
            );
            assert_eq!(message.snapshot.as_deref(), wire.snapshot.is_some().then(meta).as_ref());
            assert_eq!(to_wire(message), wire);
        }
    }

    #[test]
    fn the_engine_gets_its_snapshot_from_the_header() {
        let message = from_wire(full(MessageType::MsgSnapshot as u32)).unwrap();
        let snapshot = message.inner.get_snapshot();
        assert!(snapshot.data.is_empty());
        assert_eq!((snapshot.get_metadata().index, snapshot.get_metadata().term), (77, 6));
        assert_eq!(
            ConfState::from(snapshot.get_metadata().get_conf_state()),
            meta().membership.conf_state
        );
    }

    #[test]
    fn unknown_types_and_stray_headers_are_malformed() {
        let snapshot = MessageType::MsgSnapshot as u32;
        let mut bad_entry = full(3);
        bad_entry.entries[0].entry_type = 3;
        let mut bad_meta = full(snapshot);
        bad_meta.snapshot.as_mut().unwrap().membership = None;
        let cases = [
            full(TYPES),
            full(u32::MAX),
            bad_entry,
            bad_meta,
            pb::Message { snapshot: None, ..full(snapshot) },
            pb::Message { snapshot: Some(meta().to_pb()), ..full(3) },
        ];
        for wire in cases {
            let result = from_wire(wire.clone());
            assert!(matches!(result, Err(Refusal::Malformed(_))), "{wire:?}: {result:?}");
        }
    }

    #[test]
    fn entry_data_shares_the_receive_buffer() {
        let mut wire = full(3);
        wire.entries[1].data = Bytes::from(vec![7; 4096]);
        let batch = pb::Batch { messages: vec![wire], ..pb::Batch::default() };
        let buffer = Bytes::from(batch.encode_to_vec());
        let range = buffer.as_ptr_range();
        let decoded = pb::Batch::decode(buffer.clone()).unwrap();
        let message = from_wire(decoded.messages.into_iter().next().unwrap()).unwrap();
        let data = &message.inner.entries[1].data;
        assert_eq!(data.len(), 4096);
        assert!(range.contains(&data.as_ptr()), "the payload was copied");
        // And back: encoding starts from the same memory.
        let wire = to_wire(message);
        assert!(range.contains(&wire.entries[1].data.as_ptr()), "the payload was copied");
    }

    prop_compose! {
        fn any_entry()(
            kind in 0u32..3, term: u64, index: u64,
            data: Vec<u8>, context: Vec<u8>,
        ) -> pb::Entry {
            entry(kind, term, index, data.into(), context.into())
        }
    }

    prop_compose! {
        fn any_message()(
            msg_type in (0..TYPES),
            ids: [u64; 10],
            entries in prop::collection::vec(any_entry(), 0..5),
            reject: bool,
            context: Vec<u8>,
            priority: i64,
        ) -> pb::Message {
            let [to, from, term, log_term, index, commit, commit_term, request, hint, size] = ids;
            let snapshot = (msg_type == MessageType::MsgSnapshot as u32)
                .then(|| pb::SnapshotHeader { size, ..meta().to_pb() });
            pb::Message {
                msg_type, to, from, term, log_term, index, entries, commit, commit_term, snapshot,
                request_snapshot: request, reject, reject_hint: hint,
                context: context.into(), priority,
            }
        }
    }

    proptest! {
        #[test]
        fn any_message_survives_the_wire(wire in any_message()) {
            let bytes = Bytes::from(wire.encode_to_vec());
            let message = from_wire(pb::Message::decode(bytes).unwrap()).unwrap();
            prop_assert_eq!(to_wire(message), wire);
        }

        #[test]
        fn any_bytes_are_a_message_or_refused(bytes: Vec<u8>) {
            if let Ok(wire) = pb::Message::decode(Bytes::from(bytes)) {
                let known = wire.msg_type < TYPES;
                prop_assert!(from_wire(wire).is_err() || known);
            }
        }
    }
}
