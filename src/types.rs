//! The vocabulary that every layer shares: ids, entries, hard state, members.
//!
//! Nothing here decides anything. Two kinds of id exist and never mix: a [`NodeId`] is the user's
//! name for a machine, a `RaftId` is fresh for every data directory and never reused, so that an
//! empty disk can never speak for the full one that it replaces. The API, the logs and the status
//! speak node ids; `Ready`, messages and votes speak raft ids.

mod membership;

use std::fmt;

use bytes::Bytes;
pub(crate) use raft_rs::eraftpb;
#[cfg(any(test, feature = "testing"))]
pub(crate) use raft_rs::eraftpb::MessageType;

use crate::pb;
pub use membership::{ConfState, Member, MemberRole, Membership, Progress};

/// The user's name for a machine; not 0.
pub type NodeId = u64;
/// A raft term (Raft paper, section 5.1).
pub type Term = u64;
/// A log index; the first entry of a cluster has index 2, index 1 is its founding.
pub type Index = u64;
/// Raft's own id of a data directory; never reused within a cluster.
pub type RaftId = u64;

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(u128);

        impl $name {
            /// A fresh random id.
            ///
            /// # Errors
            /// When the operating system's random generator fails.
            pub fn random() -> std::io::Result<Self> {
                let mut bytes = [0u8; 16];
                getrandom::fill(&mut bytes)
                    .map_err(|e| std::io::Error::other(format!("random generator: {e}")))?;
                Ok(Self(u128::from_be_bytes(bytes)))
            }

            /// The id with these 128 bits.
            pub const fn from_u128(bits: u128) -> Self {
                Self(bits)
            }

            /// The 16 bytes of the wire and the disk.
            pub fn to_bytes(self) -> [u8; 16] {
                self.0.to_be_bytes()
            }

            /// The id in these bytes; None unless there are exactly 16.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                Some(Self(u128::from_be_bytes(bytes.try_into().ok()?)))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }
    };
}

random_id! {
    /// The random name that a cluster gets when it is founded.
    ClusterId
}
random_id! {
    /// The random name that a data directory gets when it is made: an empty directory under a
    /// known node id is another incarnation.
    Incarnation
}

/// What an entry of the log is (raft-rs `EntryType`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// A packed envelope of proposals, or the empty entry of a new leader.
    #[default]
    Normal,
    /// A membership change in the old single-step form; never written by this crate.
    ConfChange,
    /// A membership change (raft-rs `ConfChangeV2`).
    ConfChangeV2,
}

/// One entry of the replicated log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The term of the leader that appended it.
    pub term: Term,
    /// Its place in the log.
    pub index: Index,
    /// What it is.
    pub kind: EntryKind,
    /// Its payload.
    pub data: Bytes,
    /// For membership changes: what they mean for the address book.
    pub context: Bytes,
}

impl Entry {
    /// Bytes that this entry costs in memory and on disk, roughly.
    pub fn size(&self) -> usize {
        self.data.len() + self.context.len() + 32
    }
}

impl From<&eraftpb::Entry> for Entry {
    fn from(e: &eraftpb::Entry) -> Self {
        let kind = match e.get_entry_type() {
            eraftpb::EntryType::EntryNormal => EntryKind::Normal,
            eraftpb::EntryType::EntryConfChange => EntryKind::ConfChange,
            eraftpb::EntryType::EntryConfChangeV2 => EntryKind::ConfChangeV2,
        };
        Self {
            term: e.term,
            index: e.index,
            kind,
            data: e.data.clone(),
            context: e.context.clone(),
        }
    }
}

impl From<Entry> for eraftpb::Entry {
    fn from(e: Entry) -> Self {
        let mut out = Self::default();
        out.set_entry_type(match e.kind {
            EntryKind::Normal => eraftpb::EntryType::EntryNormal,
            EntryKind::ConfChange => eraftpb::EntryType::EntryConfChange,
            EntryKind::ConfChangeV2 => eraftpb::EntryType::EntryConfChangeV2,
        });
        out.term = e.term;
        out.index = e.index;
        out.data = e.data;
        out.context = e.context;
        out
    }
}

/// Term, vote and commit: what raft must not forget (Raft paper, figure 2, persistent state).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The latest term this node has seen.
    pub term: Term,
    /// The raft id that got this node's vote in `term`; 0: none.
    pub vote: RaftId,
    /// An index known to be committed; may lag behind the truth.
    pub commit: Index,
}

/// A place in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The index.
    pub index: Index,
    /// The term of the entry at that index.
    pub term: Term,
}

/// Who a data directory is. Written before the first vote or acknowledgement, checked at each
/// start and in every handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user's name for this machine.
    pub node_id: NodeId,
    /// This data directory's own random name.
    pub incarnation: Incarnation,
    /// The cluster it belongs to and its raft id there; None until it has founded or joined one.
    pub cluster: Option<(ClusterId, RaftId)>,
    /// How often this directory has been started.
    pub boot: u64,
}

/// What a snapshot file holds, beside the Store's own bytes. Index, membership and data are one
/// cut of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// The last entry whose effect is in it.
    pub position: Position,
    /// The membership at that entry.
    pub membership: Membership,
    /// Length of the body in bytes.
    pub size: u64,
    /// CRC-32 of the body.
    pub crc32: u32,
}

impl SnapshotMeta {
    /// The header of the wire and the file.
    pub fn to_pb(&self) -> pb::SnapshotHeader {
        pb::SnapshotHeader {
            index: self.position.index,
            term: self.position.term,
            membership: Some(self.membership.to_pb()),
            size: self.size,
            crc32: self.crc32,
        }
    }

    /// The meta in a header.
    ///
    /// # Errors
    /// A sentence that says which field is wrong.
    pub fn from_pb(p: pb::SnapshotHeader) -> Result<Self, String> {
        let membership = Membership::from_pb(p.membership.ok_or("snapshot without membership")?)?;
        if p.index == 0 || p.term == 0 {
            return Err("snapshot at index or term 0".to_owned());
        }
        Ok(Self {
            position: Position { index: p.index, term: p.term },
            membership,
            size: p.size,
            crc32: p.crc32,
        })
    }
}

/// One raft message on its way to or from a peer; what is inside is the engine's affair.
///
/// A `MsgSnapshot` carries the meta of its snapshot beside it: the body travels as a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    pub(crate) inner: eraftpb::Message,
    pub(crate) snapshot: Option<Box<SnapshotMeta>>,
}

impl Message {
    pub(crate) fn new(inner: eraftpb::Message) -> Self {
        Self { inner, snapshot: None }
    }

    /// Raft id of the receiver.
    pub fn to(&self) -> RaftId {
        self.inner.to
    }

    /// Raft id of the sender.
    pub fn from(&self) -> RaftId {
        self.inner.from
    }

    /// Term of the sender.
    pub fn term(&self) -> Term {
        self.inner.term
    }

    /// Bytes that it costs in a queue, roughly.
    pub fn size(&self) -> usize {
        let entries: usize =
            self.inner.entries.iter().map(|e| e.data.len() + e.context.len() + 32).sum();
        entries + self.inner.context.len() + 64
    }

    /// Whether it carries entries of the log, so that it must not delay votes and heartbeats.
    pub fn is_bulk(&self) -> bool {
        use eraftpb::MessageType as T;
        matches!(
            self.inner.get_msg_type(),
            T::MsgAppend | T::MsgAppendResponse | T::MsgSnapshot | T::MsgTimeoutNow
        )
    }
}
