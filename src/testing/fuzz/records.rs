//! The records that stand inside others: payloads of entries, membership, changes of it, read
//! contexts.
//!
//! Checked: no bytes make a decoder panic, and what was decoded is the same after encoding and
//! decoding again.

use bytes::Bytes;
use prost::Message as _;

use crate::node::conf_change;
use crate::node::context::ReadContext;
use crate::node::envelope::{self, Envelope, Packer};
use crate::pb;
use crate::types::{Membership, SnapshotMeta};

/// See the module. The first byte says what the rest is taken for.
pub fn records(data: &[u8]) {
    let Some((kind, record)) = data.split_first() else { return };
    let record = Bytes::copy_from_slice(record);
    match kind % 6 {
        0 => payload(&record),
        1 => membership(record),
        2 => change(&record),
        3 => address_change(&record),
        4 => snapshot_header(record),
        _ => read_context(&record),
    }
}

fn payload(data: &Bytes) {
    match envelope::open(data) {
        Ok(Envelope::Commands(body)) => {
            let mut packer = Packer::new(body.len());
            envelope::commands(&body).for_each(|command| packer.push(command));
            assert_eq!(packer.finish(), data, "packed in two ways");
        }
        Ok(Envelope::Membership(body)) => {
            assert_eq!(envelope::membership(&body), data);
            address_change(&body);
        }
        Ok(Envelope::Empty) => assert!(data.is_empty()),
        Err(_) => {}
    }
}

fn membership(record: Bytes) {
    let Ok(members) = Membership::decode(record) else { return };
    assert_eq!(Membership::decode(members.encode()).as_ref(), Ok(&members));
    for member in &members.members {
        assert!(members.by_node(member.node_id).is_some());
        assert!(!members.was_removed(member.raft_id));
    }
}

fn change(data: &Bytes) {
    let Ok(canonical) = conf_change::canonical(data) else { return };
    // NB: the same content; the bytes may be fewer, never others the second time.
    assert_eq!(conf_change::canonical(&canonical).as_ref(), Ok(&canonical));
    assert_eq!(conf_change::decode(&canonical), conf_change::decode(data));
}

fn address_change(context: &Bytes) {
    let Ok(change) = conf_change::decode_context(context) else { return };
    let again = conf_change::decode_context(&change.encode_to_vec().into());
    assert_eq!(again.as_ref(), Ok(&change), "changed on its way");
}

fn snapshot_header(record: Bytes) {
    let Ok(header) = pb::SnapshotHeader::decode(record) else { return };
    let Ok(meta) = SnapshotMeta::from_pb(header) else { return };
    assert_eq!(SnapshotMeta::from_pb(meta.to_pb()).as_ref(), Ok(&meta));
}

fn read_context(bytes: &Bytes) {
    if let Some(context) = ReadContext::decode(bytes) {
        assert_eq!(context.encode()[..], bytes[..]);
    }
}
