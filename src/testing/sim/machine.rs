//! One machine: its disk, and the node that runs on it, if one does.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::plan::{Knob, Plan};
use super::schedule::Time;
use crate::config::Config;
use crate::driver::boot::{Opened, Storage};
use crate::driver::hints::Hints;
use crate::driver::whereabouts::Search;
use crate::error::Error;
use crate::log::LogStorage;
use crate::log::wal::{Wal, WalOptions};
use crate::node::Node;
use crate::node::effect::Effect;
use crate::node::event::Event;
use crate::snapshot::dir::SnapshotDir;
use crate::status::Status;
use crate::store::Store;
use crate::testing::vfs::FaultyVfs;
use crate::types::{Incarnation, Index, Membership, Message, NodeId, Position, RaftId};

pub(super) const DATA: &str = "/data";
const SNAPSHOTS: &str = "/data/snapshots";

/// Work of the log thread.
#[derive(Debug)]
pub(super) enum LogJob {
    Append { number: u64, batch: crate::log::LogBatch },
    Compact(Position),
}

/// A node that runs, with everything of it that a crash ends.
pub(super) struct Running {
    pub(super) node: Node,
    pub(super) raft_id: RaftId,
    pub(super) snapshots: SnapshotDir,
    pub(super) completions: Vec<Event>,
    pub(super) messages: Vec<(RaftId, Message)>,
    pub(super) message_bytes: u64,
    /// The highest boot counter that this process has seen of each peer.
    pub(super) seen_boots: BTreeMap<RaftId, u64>,
    pub(super) requests: Vec<Event>,
    pub(super) tick_due: bool,
    /// A turn of the event loop is planned.
    pub(super) woken: bool,
    pub(super) log: Box<dyn LogStorage>,
    pub(super) log_queue: Vec<LogJob>,
    /// What the log thread is busy with.
    pub(super) writing: Vec<LogJob>,
    /// Since when.
    pub(super) writing_since: Time,
    pub(super) store: Box<dyn Store>,
    pub(super) jobs: VecDeque<Effect>,
    pub(super) store_busy: bool,
    /// Applied by the Store in this life.
    pub(super) applied: Index,
    /// Captured snapshots on their way to the disk.
    pub(super) captures: u64,
    /// What the Store does instead at its next call.
    pub(super) mischief: Option<Mischief>,
    /// The membership that it goes by: whom it reaches, and where.
    pub(super) view: Option<Membership>,
    /// Where peers say that they are.
    pub(super) hints: Hints,
    /// What each peer has said when it connected: which start of it, and where it is.
    pub(super) said: BTreeMap<RaftId, (u64, String)>,
    /// Addresses that it was started with.
    pub(super) seeds: Vec<String>,
    /// When it looks for members.
    pub(super) search: Search,
    pub(super) next_look: Time,
    /// Since when it knows that it was removed.
    pub(super) removed: Option<Time>,
    /// What it has told about itself last.
    pub(super) status: Status,
    /// It was told to shut down.
    pub(super) drain: Option<Drain>,
}

/// A shutdown under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drain {
    pub(super) until: Time,
    /// The node knows.
    pub(super) told: bool,
}

/// What is wrong with a Store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mischief {
    Fail,
    Panic,
}

/// What a machine is up to.
pub(super) enum Life {
    Running(Box<Running>),
    /// No process.
    Down,
    /// An empty disk that asks to be let in.
    Joining,
    /// Its disk was lost or damaged, or it was removed: it comes back empty, once nobody counts
    /// on it any more.
    Out,
}

pub(super) struct Machine {
    pub(super) id: NodeId,
    pub(super) vfs: FaultyVfs,
    pub(super) life: Life,
    /// Counts lives: what was planned for an earlier one is void.
    pub(super) epoch: u64,
    /// Counts disks.
    pub(super) generation: u64,
    /// The id that the cluster gave to this disk.
    pub(super) raft_id: Option<RaftId>,
    /// A new disk, so a durable Store is new as well.
    pub(super) wiped: bool,
    /// How often its disk was started.
    pub(super) boots: u64,
    /// An older copy of its disk, and the generation that it was taken from.
    pub(super) backup: Option<(u64, FaultyVfs)>,
    /// Its disk is such a copy, and nobody has noticed yet.
    pub(super) rolled_back: bool,
    /// Its log was sealed, and not opened since.
    pub(super) sealed: bool,
    /// A bit of its disk has flipped.
    pub(super) rotten: bool,
    /// Its disk is lost, and it is to be a member again with another one.
    pub(super) lost: bool,
    /// When its last process ended.
    pub(super) ended: Time,
    pub(super) paused_until: Time,
    pub(super) stalled_until: Time,
    pub(super) store_hangs_until: Time,
    /// Length of its tick in microseconds.
    pub(super) tick: Time,
}

/// The random name of a machine's disk.
pub(super) fn incarnation(id: NodeId, generation: u64) -> Incarnation {
    Incarnation::from_u128(u128::from(id) << 64 | u128::from(generation) << 32 | 0x77)
}

pub(super) fn addr(id: NodeId, moves: u64) -> String {
    format!("n{id}:{}", moves + 1)
}

/// The configuration that every node of a plan has.
pub(super) fn config(plan: &Plan) -> Config {
    let dead = Some(plan.get(Knob::RemoveDead));
    Config {
        snapshot_entries: plan.get(Knob::SnapshotEntries),
        snapshot_trailing_entries: plan.get(Knob::Trailing),
        max_size_per_msg: plan.get(Knob::MessageBytes),
        max_inflight_msgs: plan.get(Knob::Inflight) as usize,
        max_apply_lag: plan.get(Knob::ApplyLag),
        auto_promote: plan.get(Knob::AutoPromote) > 0,
        remove_dead_after: dead.filter(|s| *s > 0).map(Duration::from_secs),
        ..Config::default()
    }
}

impl Machine {
    pub(super) fn new(id: NodeId, tick: Time) -> Self {
        Self {
            id,
            vfs: FaultyVfs::new(),
            life: Life::Down,
            epoch: 0,
            generation: 0,
            raft_id: None,
            wiped: true,
            boots: 0,
            backup: None,
            rolled_back: false,
            sealed: false,
            rotten: false,
            lost: false,
            ended: 0,
            paused_until: 0,
            stalled_until: 0,
            store_hangs_until: 0,
            tick,
        }
    }

    pub(super) fn running(&mut self) -> Option<&mut Running> {
        match &mut self.life {
            Life::Running(r) => Some(r),
            Life::Down | Life::Joining | Life::Out => None,
        }
    }

    pub(super) fn node(&self) -> Option<&Node> {
        match &self.life {
            Life::Running(r) => Some(&r.node),
            Life::Down | Life::Joining | Life::Out => None,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.life, Life::Running(_))
    }

    pub(super) fn leads(&self) -> bool {
        self.node().is_some_and(|n| n.probe().leads)
    }

    pub(super) fn incarnation(&self) -> Incarnation {
        incarnation(self.id, self.generation)
    }

    /// The log and the snapshots of its disk, opened by the code that nodes start with.
    pub(super) fn open(&self, plan: &Plan) -> Result<Opened, Error> {
        Opened::open(self.storage(plan)?, self.id)
    }

    pub(super) fn storage(&self, plan: &Plan) -> Result<Storage, Error> {
        let vfs = Arc::new(self.vfs.clone());
        let segment_size = plan.get(Knob::SegmentKib).max(1) << 10;
        let options = WalOptions { segment_size, prepare_ahead: false };
        let log = Wal::open(vfs.clone(), Path::new(DATA), options)?;
        let snapshots = SnapshotDir::open(vfs, SNAPSHOTS)?;
        Ok(Storage { log: Box::new(log), snapshots, dir: DATA.into() })
    }
}
