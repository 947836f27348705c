//! A captured state on its way to the disk, while the Store applies on.
//!
//! Invariant: exactly one `SnapshotBuilt` or `SnapshotFailed` for each, whatever ends it: a disk
//! that fails, a panic, a runtime that never gets to it.

use std::sync::Arc;

use slog::{Logger, info, warn};

use super::inbox::Inbox;
use crate::error::StorageError;
use crate::node::event::Event;
use crate::snapshot::dir::SnapshotDir;
use crate::types::{Membership, Position, SnapshotMeta};
use crate::zoo::{self, Bug};

#[derive(Debug)]
pub(crate) struct Pending {
    snapshots: SnapshotDir,
    position: Position,
    membership: Membership,
    logger: Logger,
    inbox: Arc<Inbox>,
    written: Option<SnapshotMeta>,
}

impl Pending {
    pub(crate) fn new(
        snapshots: &SnapshotDir,
        position: Position,
        membership: Membership,
        inbox: &Arc<Inbox>,
        logger: &Logger,
    ) -> Self {
        Self {
            snapshots: snapshots.clone(),
            position,
            membership,
            logger: logger.clone(),
            inbox: inbox.clone(),
            written: None,
        }
    }

    /// Makes it durable and tells. Blocks on the disk.
    pub(crate) fn write(mut self, data: &[u8]) {
        let Position { index, term } = self.position;
        match write_snapshot(&self.snapshots, self.position, self.membership.clone(), data) {
            Ok(meta) => {
                info!(self.logger, "snapshot taken"; "index" => index, "term" => term,
                    "bytes" => meta.size);
                self.written = Some(meta);
            }
            Err(error) => {
                warn!(self.logger, "snapshot could not be written; it will be tried again";
                    "index" => index, "error" => %error);
            }
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.inbox.complete(match self.written.take() {
            Some(meta) => Event::SnapshotBuilt { meta },
            None => Event::SnapshotFailed,
        });
    }
}

pub(crate) fn write_snapshot(
    dir: &SnapshotDir,
    position: Position,
    membership: Membership,
    data: &[u8],
) -> Result<SnapshotMeta, StorageError> {
    let mut writer = dir.create(position, membership)?;
    writer.write(data)?;
    if zoo::has(Bug::SnapshotDoubled) {
        writer.write(data)?;
    }
    writer.finish()
}
