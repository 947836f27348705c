//! Every error of the crate: what happened, what to do, and whether the command took effect.
//!
//! One enum, because a caller handles one question first: *did my command happen?* It has three
//! answers ([`Error::outcome`]), and every variant gives one of them.

use std::path::PathBuf;

use crate::types::{ClusterId, Index, NodeId};

/// The result of every fallible call of the crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What is known about a command whose call returned an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was applied: the Store refused it, alike on every replica.
    Applied,
    /// It was not applied and never will be: trying again is safe.
    NotApplied,
    /// It may have been applied, or may be later.
    Unknown,
}

/// The leader, as far as this node knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// Its node id.
    pub id: NodeId,
    /// Its address, `host:port`.
    pub addr: String,
}

/// Anything that a call of this crate can fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The Store refused the command; it counts as applied on every replica. Or it refused a
    /// query, which changed nothing. Build it with
    /// [`Error::rejected`], or by `?` from `String`, `&str` and `bincode::Error`.
    #[error("rejected by the store: {0}")]
    Rejected(String),
    /// `Store::check` refused the command before anything was appended, or a query panicked.
    /// Not applied. Correct the bytes.
    #[error("invalid: {0}")]
    Invalid(String),
    /// This replica's Store is broken. From `apply` or `restore` it stops the node. Build it with
    /// [`Error::fatal`], or by `?` from `std::io::Error` and boxed errors.
    #[error("the store failed: {0}")]
    Fatal(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Another node leads. Not applied; calls of the `Mailbox` follow the hint by themselves and
    /// give this only when the leader changed again on the way. Try again.
    #[error("not the leader{}", hint(.leader))]
    NotLeader {
        /// The leader, where known.
        leader: Option<Leader>,
    },
    /// No leader was known until the deadline. Not applied. Try again; if it persists, a majority
    /// of the voters cannot reach each other.
    #[error("no leader is known; a majority of the voters may be unreachable")]
    NoLeader,
    /// The node is not, or not yet, a member that can serve: it has not found its cluster, or waits
    /// for its first snapshot. Not applied. Try again; the text says for what it waits.
    #[error("not ready: {reason}")]
    NotReady {
        /// [`crate::Status::waiting`], or the node's health in words.
        reason: String,
    },
    /// Another entry was committed in this one's place. Not applied, and never will be. Try again.
    #[error("the proposal was replaced by another leader's entry and did not take effect")]
    Dropped,
    /// More work is waiting than the configured bounds allow. Not applied. Slow down, then try
    /// again.
    #[error("overloaded: {what} is at its bound of {bound}; try again later")]
    Overloaded {
        /// What is full.
        what: &'static str,
        /// Its bound.
        bound: u64,
    },
    /// The command is larger than `Config::max_entry_size`. Not applied. Split it or raise the
    /// bound on every node.
    #[error(
        "a command of {size} bytes is over the limit of {limit} bytes; split it, or raise \
         max_entry_size on every node"
    )]
    TooLarge {
        /// Its size in bytes.
        size: u64,
        /// The bound in bytes.
        limit: u64,
    },
    /// The node is shutting down. Not applied.
    #[error("the node is shutting down")]
    ShuttingDown,
    /// The deadline passed before the request was handed to the log. Not applied. Try again; if it
    /// persists, `Status::health` may tell why.
    #[error("timed out before anything was appended; it did not take effect")]
    Timeout,
    /// The command was appended, and then its fate was lost sight of. It may take effect. Read
    /// the state before trying again.
    #[error("outcome unknown: {reason}")]
    Unknown {
        /// Why it is not known.
        reason: String,
    },
    /// A membership change or leadership transfer was refused. Nothing was changed.
    #[error("membership: {0}")]
    Membership(String),
    /// This node is no member of the cluster any more.
    #[error(
        "node {node} was removed from the cluster, by a call or because another data directory took \
         its place (its leader's log tells); to enter again, start it with an empty data directory"
    )]
    Removed {
        /// This node's id.
        node: NodeId,
    },
    /// An address of a peer belongs to a cluster that is not ours.
    #[error("wrong cluster: {0}")]
    WrongCluster(String),
    /// `lead` on an empty directory found a running cluster.
    #[error(
        "{addr} belongs to cluster {cluster}; an empty node must not found a second one. Use \
         join, or give this node its data directory back"
    )]
    ClusterExists {
        /// The address that answered.
        addr: String,
        /// The cluster that it belongs to.
        cluster: ClusterId,
    },
    /// `Config` has a value that cannot work.
    #[error("config: {field}: {reason}")]
    Config {
        /// The field.
        field: &'static str,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// The listener could not be set up.
    #[error("cannot listen on {addr}: {source}. {hint}")]
    Listen {
        /// The address.
        addr: String,
        /// What to do.
        hint: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The data directory cannot be used. Nothing was changed.
    #[error("data directory {}: {reason}", .dir.display())]
    DataDir {
        /// The directory.
        dir: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The durable log, or a snapshot, is damaged or could not be written. The node has stopped
    /// before anything that depended on the write was sent.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A request to a peer failed before it was sent.
    #[error("cannot reach {addr}: {reason}")]
    Unreachable {
        /// The address.
        addr: String,
        /// Why.
        reason: String,
    },
    /// The Store failed or panicked while it applied, or restored; the node has stopped.
    #[error("the store failed at index {index}: {reason}. {remedy}")]
    StoreFailed {
        /// The log index.
        index: Index,
        /// The error or the panic's message.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A part of the node failed; the node has stopped. Please report it.
    #[error("internal failure in the {part}: {reason}")]
    Internal {
        /// The part that failed.
        part: &'static str,
        /// The panic's message, or what was found broken.
        reason: String,
    },
}

/// What can be wrong with files.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// An operation of the file system failed. After a failed write or sync the file is never
    /// touched again.
    #[error("{op} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        op: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// Acknowledged data is damaged. Nothing was dropped.
    #[error("{} is damaged at offset {offset}: {reason}. {remedy}", .path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Another process uses the directory.
    #[error("{} is locked by another process; stop it, or use another directory", .0.display())]
    Locked(PathBuf),
    /// The directory was written by something else, or belongs to another node.
    #[error("{}: {reason}", .path.display())]
    Foreign {
        /// The file that told.
        path: PathBuf,
        /// What was found and what to do.
        reason: String,
    },
    /// The log has failed before; it takes nothing more.
    #[error("the log has failed before and takes nothing more; restart the node")]
    Poisoned,
    /// A call broke the contract of the log.
    #[error("the log cannot go on: {0}")]
    Contract(String),
}

impl Error {
    /// A deterministic refusal by the Store: the command counts as applied, its proposer gets
    /// this.
    pub fn rejected(reason: impl Into<String>) -> Self {
        Self::Rejected(reason.into())
    }

    /// A failure of this replica's Store: the node stops without counting the entry as applied.
    pub fn fatal(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Fatal(source.into())
    }

    pub(crate) fn unknown(reason: impl Into<String>) -> Self {
        Self::Unknown { reason: reason.into() }
    }

    /// Whether the command of the failed call took effect.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Rejected(_) => Outcome::Applied,
            Self::Unknown { .. }
            | Self::Fatal(_)
            | Self::Storage(_)
            | Self::StoreFailed { .. }
            | Self::Internal { .. } => Outcome::Unknown,
            Self::NotLeader { .. }
            | Self::NoLeader
            | Self::NotReady { .. }
            | Self::Invalid(_)
            | Self::Dropped
            | Self::Overloaded { .. }
            | Self::TooLarge { .. }
            | Self::ShuttingDown
            | Self::Timeout
            | Self::Membership(_)
            | Self::Removed { .. }
            | Self::WrongCluster(_)
            | Self::ClusterExists { .. }
            | Self::Config { .. }
            | Self::Listen { .. }
            | Self::DataDir { .. }
            | Self::Unreachable { .. } => Outcome::NotApplied,
        }
    }

    /// Whether the command may have taken effect although the call failed.
    pub fn outcome_unknown(&self) -> bool {
        self.outcome() == Outcome::Unknown
    }

    /// Whether the same call is safe to repeat and may succeed then.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::NotLeader { .. }
                | Self::NoLeader
                | Self::NotReady { .. }
                | Self::Dropped
                | Self::Overloaded { .. }
                | Self::Timeout
                | Self::Unreachable { .. }
        )
    }

    /// The leader, where the error knows it.
    pub fn leader(&self) -> Option<&Leader> {
        match self {
            Self::NotLeader { leader } => leader.as_ref(),
            _ => None,
        }
    }
}

fn hint(leader: &Option<Leader>) -> String {
    match leader {
        Some(l) => format!("; node {} at {} is", l.id, l.addr),
        None => String::new(),
    }
}

impl From<bincode::Error> for Error {
    fn from(e: bincode::Error) -> Self {
        Self::Rejected(e.to_string())
    }
}

impl From<String> for Error {
    fn from(e: String) -> Self {
        Self::Rejected(e)
    }
}

impl From<&str> for Error {
    fn from(e: &str) -> Self {
        Self::Rejected(e.to_owned())
    }
}

impl From<std::io::Error> for Error {
    fn from(e: std::io::Error) -> Self {
        Self::Fatal(Box::new(e))
    }
}

impl From<Box<dyn std::error::Error + Send + Sync>> for Error {
    fn from(e: Box<dyn std::error::Error + Send + Sync>) -> Self {
        Self::Fatal(e)
    }
}
