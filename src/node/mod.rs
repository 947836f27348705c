//! Node
pub(crate) mod conf_change;
pub(crate) mod context;
pub(crate) mod effect;
pub(crate) mod envelope;
pub(crate) mod event;
pub(crate) mod gate;

use crate::config::Config;
use crate::error::Result;
use crate::log::SnapshotRecord;
use crate::types::{Entry, HardState, Identity, Index, Membership, Position, SnapshotMeta};
use effect::Effect;
use event::Event;

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

/// Decides; see `ARCHITECTURE.md`.
pub(crate) struct Node;

impl Node {
    /// Takes up where the boot record left off.
    pub(crate) fn new(
        _config: &Config,
        _boot: Boot,
        _seed: u64,
        _logger: &slog::Logger,
    ) -> Result<Self> {
        Ok(Self)
    }

    /// Takes one event in. Effects come from [`Node::poll`].
    pub(crate) fn handle(&mut self, _event: Event) {}

    /// Appends everything that is to be done now to `out`, in order.
    pub(crate) fn poll(&mut self, _out: &mut Vec<Effect>) {}
}
