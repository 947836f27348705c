//! Embeddable Raft: implement a [`Store`], call `start`, get a replicated, durable,
//! linearizable service.

mod config;
mod error;
mod logger;
pub mod pb;
mod reply;
mod status;
mod store;
mod types;

mod driver;
pub mod log;
mod mailbox;
mod node;
pub mod offline;
mod raft;
mod snapshot;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod transport;
pub mod vfs;
mod zoo;

pub use async_trait::async_trait;
pub use config::{Config, Durability};
pub use error::{Error, Leader, Outcome, Result, StorageError};
pub use mailbox::{Answer, Consistency, Mailbox};
pub use raft::Raft;
pub use status::{
    Health, LeaderChange, Level, MemberStatus, Problem, Replication, Role, Status, VotingRole,
};
pub use store::{Committed, Store};
pub use types::{
    ClusterId, ConfState, Entry, EntryKind, HardState, Identity, Incarnation, Index, Member,
    MemberRole, Membership, Message, NodeId, Position, Progress, RaftId, SnapshotMeta, Term,
};

/// The README's example compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
