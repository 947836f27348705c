//! Where a node takes up: from what the disk holds to a running engine (R7, R8, H8).

use raft_rs::{RawNode, ReadOnlyOption};

use super::effect::Effect;
use super::{Limits, Node, ready};
use crate::config::Config;
use crate::error::{Error, StorageError};
use crate::log::SnapshotRecord;
use crate::log::cache::LogCache;
use crate::status::Status;
use crate::types::{
    ConfState, Entry, HardState, Identity, Index, Membership, Position, SnapshotMeta,
};
use crate::zoo::{self, Bug};

/// What a node starts from.
#[derive(Debug)]
pub(crate) struct Boot {
    /// Who it is; `cluster` is Some.
    pub(crate) identity: Identity,
    pub(crate) hard_state: HardState,
    pub(crate) compacted: Position,
    pub(crate) entries: Vec<Entry>,
    /// The newest membership record; None for a joiner that has not received its snapshot yet.
    pub(crate) membership: Option<Membership>,
    /// The newest snapshot record and the meta of its file.
    pub(crate) snapshot: Option<(SnapshotRecord, SnapshotMeta)>,
    /// What `Store::applied` said.
    pub(crate) store_applied: Option<Index>,
    pub(crate) dropped_tail: Option<String>,
}

impl Boot {
    fn last(&self) -> Position {
        self.entries.last().map_or(self.compacted, |e| Position { index: e.index, term: e.term })
    }

    /// The snapshot that the Store must restore before anything is applied.
    fn install(&self) -> Option<SnapshotMeta> {
        let (record, meta) = self.snapshot.as_ref()?;
        let held = self.store_applied.unwrap_or(0);
        if zoo::has(Bug::RestoreForgotten) && record.installing {
            return None;
        }
        (record.installing || held < meta.position.index).then(|| meta.clone())
    }

    /// The index up to which the Store will hold everything once `install` is done.
    fn store_floor(&self, install: Option<&SnapshotMeta>) -> Result<Index, Error> {
        let floor = match install {
            Some(meta) => meta.position.index,
            // The founding (index 1) holds nothing of the Store: an empty one has it already.
            None => self.store_applied.unwrap_or(0).max(self.compacted.index.min(1)),
        };
        if floor < self.compacted.index {
            return Err(Error::Storage(StorageError::Contract(format!(
                "the log begins above index {}, but the state reaches to index {floor} only: a \
                 snapshot is missing. Restore the whole data directory, or remove this node from \
                 the cluster and let it join again empty",
                self.compacted.index
            ))));
        }
        Ok(floor)
    }

    /// The hard state, with everything that is known to be committed (R4).
    fn loaded(&self, known: Index) -> HardState {
        let mut hs = self.hard_state;
        if !zoo::has(Bug::CommitBelowApplied) {
            hs.commit = hs.commit.max(known).max(self.compacted.index);
        }
        if zoo::has(Bug::VoteForgotten) {
            hs.vote = 0;
        }
        hs
    }
}

/// What no other start of any directory has.
fn nonce(identity: &Identity) -> u64 {
    let bytes = identity.incarnation.to_bytes();
    let incarnation = u64::from_le_bytes(bytes.first_chunk::<8>().copied().unwrap_or_default());
    incarnation ^ identity.boot.rotate_left(32)
}

impl Node {
    /// Takes up where the boot record left off.
    ///
    /// # Errors
    /// When the parts of the record contradict each other; the text says what to do.
    pub(crate) fn new(
        config: &Config,
        boot: Boot,
        seed: u64,
        logger: &slog::Logger,
    ) -> Result<Self, Error> {
        let Some((_, raft_id)) = boot.identity.cluster else {
            let reason = "a node was started without a cluster".to_owned();
            return Err(Error::Internal { part: "node", reason });
        };
        let install = boot.install();
        let store_floor = boot.store_floor(install.as_ref())?;
        let conf_index = boot.membership.as_ref().map_or(0, |m| m.index);
        let hs = boot.loaded(store_floor.max(conf_index));
        ready::check_loaded(&hs, boot.last(), hs.commit)?;
        // Emitted again from here; what membership and Store hold already is passed over.
        let applied = boot.compacted.index.max(store_floor.min(conf_index));
        let conf_state =
            boot.membership.as_ref().map_or_else(ConfState::default, |m| m.conf_state.clone());
        let meta = boot.snapshot.as_ref().map(|(_, meta)| meta.clone());
        let cache = LogCache::new(boot.compacted, boot.entries, hs, &conf_state, meta.clone());
        let raw = RawNode::new(
            &engine_config(config, raft_id, applied),
            cache,
            &crate::logger::for_engine(logger),
        )
        .map_err(|e| Error::Internal { part: "engine", reason: e.to_string() })?;
        let mut snapshots = super::snapshots::Snapshots::default();
        if let Some(meta) = &meta {
            snapshots.resume(meta);
        }
        let limits = Limits::new(config);
        let nonce = nonce(&boot.identity);
        let mut node = Self {
            raw,
            logger: logger.clone(),
            reads: super::reads::Reads::new(raft_id, nonce, limits.round_timeout()),
            limits,
            identity: boot.identity,
            raft_id,
            membership: boot.membership,
            tick: 0,
            logged: hs,
            pipeline: super::pipeline::Pipeline::default(),
            proposals: super::proposals::Proposals::default(),
            changes: super::membership::Changes::default(),
            snapshots,
            leadership: super::leadership::Leadership::new(seed),
            emitted: applied,
            store_floor,
            store_applied: if install.is_some() { 0 } else { store_floor },
            installing: None,
            incoming: None,
            gate: 0,
            held: Vec::new(),
            for_store: Vec::new(),
            out: Vec::new(),
            stopping: false,
            failed: false,
            agreed: super::messages::Agreed::default(),
            refused_messages: 0,
            dropped_tail: boot.dropped_tail.unwrap_or_default(),
            status_changed: true,
            progress: (0, 0, 0, 0),
            published: Status::default(),
        };
        node.first_steps(install);
        Ok(node)
    }

    fn first_steps(&mut self, install: Option<SnapshotMeta>) {
        if let Some(m) = self.membership.clone() {
            self.out.push(Effect::SetPeers(m));
        }
        if let Some(meta) = install {
            self.installing = Some(meta.position.index);
            self.for_store.push(Effect::Install { meta });
        }
        // What is committed already is applied before the first tick: a campaign looks at it. After
        // an entry that cannot be applied nothing follows: the Store would miss it.
        while !self.failed && self.raw.has_ready() {
            self.take_ready();
        }
        let sole = self.raw.raft.prs().is_singleton() && self.raw.raft.promotable();
        if sole && self.awaits_members().is_none() {
            // Nobody else can lead; waiting for the timeout would only delay the start.
            if let Err(error) = self.raw.campaign() {
                slog::warn!(self.logger, "cannot campaign yet"; "reason" => %error);
            }
        }
        self.settle();
    }
}

fn engine_config(c: &Config, id: u64, applied: Index) -> raft_rs::Config {
    raft_rs::Config {
        id,
        election_tick: c.election_tick,
        heartbeat_tick: c.heartbeat_tick,
        applied,
        max_size_per_msg: c.max_size_per_msg,
        max_inflight_msgs: c.max_inflight_msgs,
        check_quorum: true,
        pre_vote: true,
        read_only_option: match zoo::has(Bug::ReadByLease) {
            true => ReadOnlyOption::LeaseBased,
            false => ReadOnlyOption::Safe,
        },
        // Followers learn the commit index from the next append or heartbeat.
        skip_bcast_commit: true,
        // The engine's own limit refuses whole batches; admission permits bound what is queued.
        max_uncommitted_size: raft_rs::NO_LIMIT,
        max_committed_size_per_ready: c.max_committed_size_per_ready,
        ..raft_rs::Config::default()
    }
}
