//! What is measured: each peer behind the same three calls.

pub mod etcd;
mod omnipaxos;
mod openraft;
mod raftline;
mod rmqtt;

use std::fmt;

use clap::ValueEnum;
use peers::Result;

use crate::node::{Setup, serve};

/// A peer, and how it is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Variant {
    /// Every write synced on a majority before it is answered.
    RaftlineDurable,
    /// The log in memory.
    RaftlineMemory,
    /// rmqtt-raft; its log is always in memory.
    Rmqtt,
    /// openraft with a log in memory, over bare TCP.
    Openraft,
    /// omnipaxos with its memory storage, over bare TCP.
    Omnipaxos,
    /// Three etcd servers, from a client process beside them.
    Etcd,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RaftlineDurable => "raftline-durable",
            Self::RaftlineMemory => "raftline-memory",
            Self::Rmqtt => "rmqtt",
            Self::Openraft => "openraft",
            Self::Omnipaxos => "omnipaxos",
            Self::Etcd => "etcd",
        })
    }
}

/// Version of a package in this workspace's lock file.
fn locked(package: &str) -> &'static str {
    const LOCK: &str = include_str!("../../Cargo.lock");
    let named = format!("name = \"{package}\"\nversion = \"");
    let rest = LOCK.split_once(&named).map_or("", |(_, rest)| rest);
    rest.split_once('"').map_or("?", |(version, _)| version)
}

impl Variant {
    /// Name, version and kind, for the table.
    pub fn title(self) -> Result<String> {
        Ok(match self {
            Self::RaftlineDurable => format!("raftline {}, fdatasync", locked("raftline")),
            Self::RaftlineMemory => format!("raftline {}, RAM", locked("raftline")),
            Self::Rmqtt => format!("rmqtt-raft {}, RAM", locked("rmqtt-raft")),
            Self::Openraft => format!("openraft {}, RAM, bare TCP", locked("openraft")),
            Self::Omnipaxos => format!("omnipaxos {}, RAM, bare TCP", locked("omnipaxos")),
            Self::Etcd => format!("etcd {}, fdatasync", etcd::version()?),
        })
    }

    /// Whether it has linearizable reads that are measured.
    pub fn reads(self) -> bool {
        match self {
            Self::RaftlineDurable | Self::RaftlineMemory | Self::Openraft | Self::Etcd => true,
            Self::Rmqtt | Self::Omnipaxos => false,
        }
    }

    /// Whether its nodes must enter one after the other.
    pub fn one_by_one(self) -> bool {
        self == Self::Rmqtt
    }
}

/// Starts a node of it and obeys.
pub async fn run(setup: Setup) -> Result<()> {
    match setup.variant {
        Variant::RaftlineDurable | Variant::RaftlineMemory => serve(raftline::start(&setup)?).await,
        Variant::Rmqtt => serve(rmqtt::start(&setup)?).await,
        Variant::Openraft => serve(openraft::start(&setup).await?).await,
        Variant::Omnipaxos => serve(omnipaxos::start(&setup).await?).await,
        Variant::Etcd => serve(etcd::start(&setup).await?).await,
    }
}
