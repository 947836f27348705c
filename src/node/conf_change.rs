//! Decodes membership entries with our own prost messages, so that the engine's protobuf 2
//! parser never sees bytes that came from elsewhere.
//!
//! An entry of kind `ConfChangeV2` has two parts: its data is raft's change of the configuration,
//! its context says what the change means for the address book. Both are decoded here, bounded,
//! and the data is written again in its one canonical form before the engine or the log gets it:
//! by the gate when an entry arrives, and by the loader when it comes back from the disk (rule 8).
//!
//! - Empty data is the entry that leaves a joint configuration.
//! - The old single-step form (`ConfChange`) is never written by this crate and refused.
//! - Canonical bytes are those that raft-rs itself writes for the same change.

use bytes::{Buf, Bytes};
use prost::Message as _;

use crate::pb;
use crate::types::{RaftId, eraftpb};

/// Single changes in one entry.
pub(crate) const MAX_CHANGES: usize = 64;
/// Bytes of the data of a membership entry.
pub(crate) const MAX_DATA: usize = 64 << 10;
/// Members in the context of a membership entry.
pub(crate) const MAX_MEMBERS: usize = 64;
/// Bytes of a member's address.
pub(crate) const MAX_ADDR: usize = 1 << 10;
/// Bytes of a member's metadata.
pub(crate) const MAX_METADATA: usize = 64 << 10;
/// Bytes of the context of a membership entry: the largest members, with room for their ids.
pub(crate) const MAX_CONTEXT: usize = MAX_MEMBERS * (MAX_ADDR + MAX_METADATA + 128);
/// The largest raft id. Ids count up from 1, so a larger one is damage; none overflows by adding.
pub(crate) const MAX_RAFT_ID: RaftId = 1 << 62;

/// The change in the data of a `ConfChangeV2` entry.
///
/// # Errors
/// A sentence that says what is wrong with the bytes.
pub(crate) fn decode(data: &Bytes) -> Result<eraftpb::ConfChangeV2, String> {
    if data.len() > MAX_DATA {
        return Err(format!("membership change of {} bytes, above {MAX_DATA}", data.len()));
    }
    let change =
        pb::ConfChangeV2::decode(data.clone()).map_err(|e| format!("membership change: {e}"))?;
    if change.changes.len() > MAX_CHANGES {
        return Err(format!(
            "membership change with {} steps, above {MAX_CHANGES}",
            change.changes.len()
        ));
    }
    let transition = transition(change.transition)?;
    // Without changes only the plain form has a meaning: leave the joint configuration.
    if change.changes.is_empty() && transition != eraftpb::ConfChangeTransition::Auto {
        return Err(
            "membership change that enters a joint configuration and changes nothing".into()
        );
    }
    let singles = change.changes.iter().map(single).collect::<Result<Vec<_>, _>>()?;
    let mut out = eraftpb::ConfChangeV2::default();
    out.set_transition(transition);
    out.set_changes(singles.into());
    out.set_context(change.context);
    Ok(out)
}

/// The canonical bytes of a change; those that raft-rs writes.
pub(crate) fn encode(change: &eraftpb::ConfChangeV2) -> Bytes {
    use eraftpb::{ConfChangeTransition as Transition, ConfChangeType as Type};
    let singles = change.get_changes().iter().map(|c| pb::ConfChangeSingle {
        change_type: match c.get_change_type() {
            Type::AddNode => 0,
            Type::RemoveNode => 1,
            Type::AddLearnerNode => 2,
        },
        node_id: c.node_id,
    });
    let out = pb::ConfChangeV2 {
        transition: match change.get_transition() {
            Transition::Auto => 0,
            Transition::Implicit => 1,
            Transition::Explicit => 2,
        },
        changes: singles.collect(),
        context: change.context.clone(),
    };
    out.encode_to_vec().into()
}

/// The canonical form of the data of a `ConfChangeV2` entry.
///
/// # Errors
/// As [`decode`].
pub(crate) fn canonical(data: &Bytes) -> Result<Bytes, String> {
    Ok(encode(&decode(data)?))
}

/// Brings a membership entry into canonical form and checks its context; leaves normal entries
/// as they are.
///
/// # Errors
/// A sentence that says what is wrong; the entry is unchanged then.
pub(crate) fn canonicalize(entry: &mut eraftpb::Entry) -> Result<(), String> {
    match entry.get_entry_type() {
        eraftpb::EntryType::EntryNormal => Ok(()),
        eraftpb::EntryType::EntryConfChange => Err(format!(
            "entry {} is a membership change of the old single-step form, which no release writes",
            entry.index
        )),
        eraftpb::EntryType::EntryConfChangeV2 => {
            let data = canonical(&entry.data)?;
            decode_context(&entry.context)?;
            entry.data = data;
            Ok(())
        }
    }
}

/// What a membership entry means for the address book. Empty bytes mean nothing: so does the
/// entry that leaves a joint configuration.
///
/// # Errors
/// A sentence that says what is wrong with the bytes.
pub(crate) fn decode_context(context: &Bytes) -> Result<pb::MembershipChange, String> {
    if context.len() > MAX_CONTEXT {
        return Err(format!("address change of {} bytes, above {MAX_CONTEXT}", context.len()));
    }
    // Counted before anything is allocated: a member takes two bytes here and a hundred decoded.
    let members = count_members(context).ok_or("address change ends early")?;
    if members > MAX_MEMBERS {
        return Err(format!("address change with {members} members, above {MAX_MEMBERS}"));
    }
    let change = pb::MembershipChange::decode(context.clone())
        .map_err(|e| format!("address change: {e}"))?;
    if change.next_raft_id > MAX_RAFT_ID {
        return Err(format!("next raft id {} is out of range", change.next_raft_id));
    }
    for member in &change.upsert {
        check_member(member)?;
    }
    Ok(change)
}

fn check_member(member: &pb::Member) -> Result<(), String> {
    let node = member.node_id;
    if member.addr.len() > MAX_ADDR {
        return Err(format!("address of node {node} is longer than {MAX_ADDR} bytes"));
    }
    if member.metadata.len() > MAX_METADATA {
        return Err(format!("metadata of node {node} is longer than {MAX_METADATA} bytes"));
    }
    check_raft_id(member.raft_id)
}

fn transition(number: u32) -> Result<eraftpb::ConfChangeTransition, String> {
    match number {
        0 => Ok(eraftpb::ConfChangeTransition::Auto),
        1 => Ok(eraftpb::ConfChangeTransition::Implicit),
        2 => Ok(eraftpb::ConfChangeTransition::Explicit),
        _ => Err(format!("membership change with unknown transition {number}")),
    }
}

fn single(change: &pb::ConfChangeSingle) -> Result<eraftpb::ConfChangeSingle, String> {
    check_raft_id(change.node_id)?;
    let kind = match change.change_type {
        0 => eraftpb::ConfChangeType::AddNode,
        1 => eraftpb::ConfChangeType::RemoveNode,
        2 => eraftpb::ConfChangeType::AddLearnerNode,
        number => return Err(format!("membership change of unknown type {number}")),
    };
    let mut out = eraftpb::ConfChangeSingle::default();
    out.set_change_type(kind);
    out.set_node_id(change.node_id);
    Ok(out)
}

fn check_raft_id(id: RaftId) -> Result<(), String> {
    if (1..=MAX_RAFT_ID).contains(&id) {
        Ok(())
    } else {
        Err(format!("raft id {id} is out of range"))
    }
}

/// Fields number 1 of the message; None when it is no protobuf.
fn count_members(context: &Bytes) -> Option<usize> {
    let mut rest = context.clone();
    let mut members = 0;
    while rest.has_remaining() {
        let key = prost::decode_length_delimiter(&mut rest).ok()?;
        let skip = match key & 7 {
            0 => prost::decode_length_delimiter(&mut rest).ok().map(|_| 0)?,
            1 => 8,
            2 => prost::decode_length_delimiter(&mut rest).ok()?,
            5 => 4,
            _ => return None,
        };
        if skip > rest.remaining() {
            return None;
        }
        rest.advance(skip);
        members += usize::from(key >> 3 == 1);
    }
    Some(members)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use raft_rs::storage::MemStorage;
    use raft_rs::{Config, RawNode};

    /// What raft-rs logs for this change: its own protobuf's bytes.
    fn written_by_engine(change: &eraftpb::ConfChangeV2) -> eraftpb::Entry {
        let storage = MemStorage::new_with_conf_state((vec![1], vec![]));
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let mut node = RawNode::new(&Config::new(1), storage.clone(), &logger).unwrap();
        node.campaign().unwrap();
        let ready = node.ready();
        storage.wl().append(ready.entries()).unwrap();
        let _ = node.advance(ready);
        node.advance_apply();
        node.propose_conf_change(vec![], change.clone()).unwrap();
        node.raft.raft_log.unstable_entries().last().unwrap().clone()
    }

    fn change(transition: u32, steps: &[(u32, u64)], context: &[u8]) -> Bytes {
        let changes = steps
            .iter()
            .map(|&(change_type, node_id)| pb::ConfChangeSingle { change_type, node_id })
            .collect();
        let context = Bytes::copy_from_slice(context);
        pb::ConfChangeV2 { transition, changes, context }.encode_to_vec().into()
    }

    proptest! {
        /// Rule 8: canonical bytes are those of the engine, in both directions.
        #[test]
        fn bytes_are_those_of_the_engine(
            transition in 0u32..3,
            steps in prop::collection::vec((0u32..3, 1u64..=MAX_RAFT_ID), 1..8),
            context in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let data = change(transition, &steps, &context);
            let decoded = decode(&data).unwrap();
            let entry = written_by_engine(&decoded);
            prop_assert_eq!(entry.get_entry_type(), eraftpb::EntryType::EntryConfChangeV2);
            prop_assert_eq!(&entry.data, &data);
            prop_assert_eq!(decode(&entry.data).unwrap(), decoded);
            prop_assert_eq!(canonical(&data).unwrap(), data);
        }

        /// Hostile bytes end in an error or in a change that survives a round trip.
        #[test]
        fn any_bytes_are_decoded_or_refused(data in prop::collection::vec(any::<u8>(), 0..80)) {
            let data = Bytes::from(data);
            if let Ok(once) = canonical(&data) {
                prop_assert_eq!(canonical(&once).unwrap(), once);
            }
            if let Ok(c) = decode_context(&data) {
                prop_assert!(c.upsert.len() <= MAX_MEMBERS);
            }
        }
    }

    #[test]
    fn empty_data_leaves_the_joint_configuration() {
        let leave = decode(&Bytes::new()).unwrap();
        assert!(leave.leave_joint());
        assert!(encode(&leave).is_empty());
    }

    #[test]
    fn each_bound_of_a_change_is_enforced() {
        let many = vec![(0, 1); MAX_CHANGES];
        assert!(decode(&change(2, &many, &[])).is_ok());
        assert!(decode(&change(2, &[(0, MAX_RAFT_ID)], &[])).is_ok());
        let bad = [
            ("above 64", change(2, &[&many[..], &[(0, 1)]].concat(), &[])),
            ("raft id 0", change(0, &[(0, 0)], &[])),
            ("out of range", change(0, &[(0, MAX_RAFT_ID + 1)], &[])),
            ("unknown type 3", change(0, &[(3, 1)], &[])),
            ("unknown transition 3", change(3, &[(0, 1)], &[])),
            ("changes nothing", change(2, &[], &[])),
            ("above 65536", change(0, &[(0, 1)], &vec![0; MAX_DATA])),
            ("membership change", Bytes::from_static(&[0x12, 0x7f])),
        ];
        for (text, data) in bad {
            let error = decode(&data).unwrap_err();
            assert!(error.contains(text), "{text}: {error}");
        }
    }

    #[test]
    fn foreign_forms_of_a_change_become_canonical() {
        // Fields in another order, a default written out, an unknown field.
        let odd = Bytes::from_static(&[0x12, 4, 0x10, 7, 0x08, 0, 0x08, 2, 0x78, 9]);
        assert_eq!(canonical(&odd).unwrap(), change(2, &[(0, 7)], &[]));
    }

    #[test]
    fn old_form_is_refused_and_normal_entries_are_left_alone() {
        let data = Bytes::from_static(b"\xff\xff");
        let mut entry = eraftpb::Entry { data, ..Default::default() };
        canonicalize(&mut entry).unwrap();
        assert_eq!(entry.data, &b"\xff\xff"[..]);
        entry.set_entry_type(eraftpb::EntryType::EntryConfChangeV2);
        assert!(canonicalize(&mut entry).is_err());
        entry.data = Bytes::new();
        canonicalize(&mut entry).unwrap();
        entry.context = Bytes::from_static(&[0x0a, 9]);
        assert!(canonicalize(&mut entry).is_err());
        entry.set_entry_type(eraftpb::EntryType::EntryConfChange);
        assert!(canonicalize(&mut entry).is_err_and(|e| e.contains("old single-step form")));
    }

    #[test]
    fn each_bound_of_a_context_is_enforced() {
        let member = |addr: usize, metadata: usize, raft_id| pb::Member {
            node_id: 5,
            raft_id,
            addr: "a".repeat(addr),
            metadata: vec![0; metadata].into(),
            ..Default::default()
        };
        let context = |upsert: Vec<pb::Member>, next_raft_id| -> Bytes {
            pb::MembershipChange { upsert, next_raft_id }.encode_to_vec().into()
        };
        assert_eq!(decode_context(&Bytes::new()), Ok(pb::MembershipChange::default()));
        let largest = vec![member(MAX_ADDR, MAX_METADATA, MAX_RAFT_ID); MAX_MEMBERS];
        assert!(decode_context(&context(largest, MAX_RAFT_ID)).is_ok());
        let bad = [
            ("65 members", context(vec![member(1, 0, 1); MAX_MEMBERS + 1], 0)),
            ("address of node 5", context(vec![member(MAX_ADDR + 1, 0, 1)], 0)),
            ("metadata of node 5", context(vec![member(1, MAX_METADATA + 1, 1)], 0)),
            ("raft id 0", context(vec![member(1, 0, 0)], 0)),
            ("next raft id", context(vec![], MAX_RAFT_ID + 1)),
            ("bytes, above", vec![0; MAX_CONTEXT + 1].into()),
            ("2000000 members", Bytes::from([0x0a, 0].repeat(2_000_000))),
            ("ends early", Bytes::from_static(&[0x0a, 9, 0])),
        ];
        for (text, data) in bad {
            let error = decode_context(&data).unwrap_err();
            assert!(error.contains(text), "{text}: {error}");
        }
    }
}
