//! From a data directory to a node's boot record: who it is, what it holds, founding.
//!
//! Every call blocks on the disk; the caller keeps it off the runtimes. Invariants:
//! - the identity is durable before anything is sent in its name, and its boot counter grows at
//!   each start;
//! - a directory belongs to one node id for ever, and to one cluster once it has one;
//! - founding writes the founding snapshot before the identity that names the cluster: what was
//!   interrupted in between has acknowledged nothing;
//! - a record that was agreed to, but is not in force, has index 0: it is no membership.

use std::io::ErrorKind;
use std::path::PathBuf;

use bytes::Bytes;

use crate::error::{Error, Result, StorageError};
use crate::log::{LogBatch, LogStorage, Recovered};
use crate::node::Boot;
use crate::offline;
use crate::snapshot::dir::SnapshotDir;
use crate::types::{
    ClusterId, HardState, Identity, Incarnation, Index, Membership, NodeId, Position, RaftId,
    SnapshotMeta,
};

/// Where a cluster begins: before its first entry.
pub(crate) const FOUNDING: Position = Position { index: 1, term: 1 };

/// Where a node keeps what it must not forget.
#[derive(Debug)]
pub(crate) struct Storage {
    pub(crate) log: Box<dyn LogStorage>,
    pub(crate) snapshots: SnapshotDir,
    /// For error messages.
    pub(crate) dir: PathBuf,
}

/// A directory that was read, and counted this start.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) storage: Storage,
    pub(crate) recovered: Recovered,
    pub(crate) identity: Identity,
}

impl Opened {
    /// Reads the directory, checks that it is this node's, and counts the start.
    ///
    /// # Errors
    /// Those of the log; `DataDir` when it belongs to another node.
    pub(crate) fn open(mut storage: Storage, node_id: NodeId) -> Result<Self> {
        let recovered = storage.log.load()?;
        let mut identity = match recovered.identity {
            Some(identity) => identity,
            None if holds_data(&recovered) => {
                return Err(refuse(
                    &storage,
                    "the log has entries but no identity; it is not a directory of this program",
                ));
            }
            None => Identity {
                node_id,
                incarnation: Incarnation::random().map_err(random_failed)?,
                cluster: None,
                boot: 0,
            },
        };
        if identity.node_id != node_id {
            let found = identity.node_id;
            return Err(refuse(
                &storage,
                &format!("it belongs to node {found}, not {node_id}; correct the id or the path"),
            ));
        }
        identity.boot += 1;
        let mut opened = Self { storage, recovered, identity };
        opened.finish_recovery()?;
        opened.storage.log.identify(&opened.identity)?;
        Ok(opened)
    }

    /// A recovery that was interrupted before its identity was written is finished by the start:
    /// the log decides which cluster it is.
    fn finish_recovery(&mut self) -> Result<()> {
        let membership = self.membership()?;
        let found = offline::unfinished(&self.identity, membership.as_ref());
        if let Some(place) = found.map_err(|reason| refuse(&self.storage, &reason))? {
            self.identity.cluster = Some(place);
        }
        Ok(())
    }

    /// Makes this directory a founding member of the cluster of this record, from its first index
    /// on.
    ///
    /// # Errors
    /// Those of the log; `DataDir` when the record does not name this directory.
    pub(crate) fn found(&mut self, record: &Membership) -> Result<()> {
        let incarnation = self.identity.incarnation;
        let own = record.members.iter().find(|m| m.incarnation == incarnation);
        let Some(raft_id) = own.map(|m| m.raft_id) else {
            return Err(refuse(
                &self.storage,
                "the founding record does not name it: it was copied from another node; empty it",
            ));
        };
        if self.membership()?.as_ref() != Some(record) {
            let hard_state = HardState { term: FOUNDING.term, vote: 0, commit: FOUNDING.index };
            self.storage.log.append(&[LogBatch {
                reset: Some(FOUNDING),
                hard_state: Some(hard_state),
                membership: Some(record.encode()),
                ..LogBatch::default()
            }])?;
            self.recovered.compacted = FOUNDING;
            self.recovered.hard_state = hard_state;
            self.recovered.membership = Some(record.encode());
        }
        self.belong(record.cluster_id, raft_id)
    }

    /// The record of a founding that was interrupted before the identity was written.
    ///
    /// # Errors
    /// `DataDir` when it does not decode.
    pub(crate) fn interrupted_founding(&self) -> Result<Option<Membership>> {
        if self.identity.cluster.is_some() {
            return Ok(None);
        }
        self.membership()
    }

    /// The record of a cluster that this directory has agreed to found with others, and that is
    /// not in force here.
    ///
    /// # Errors
    /// `DataDir` when it does not decode.
    pub(crate) fn agreed(&self) -> Result<Option<Membership>> {
        let agreed = self.record()?.filter(|m| m.index < FOUNDING.index);
        Ok(agreed.map(|m| Membership { index: FOUNDING.index, ..m }))
    }

    /// Agrees to a record, durably, or to none.
    ///
    /// # Errors
    /// Those of the log.
    pub(crate) fn agree(&mut self, record: Option<&Membership>) -> Result<()> {
        let bytes = match record {
            Some(record) => Membership { index: 0, ..record.clone() }.encode(),
            None => Bytes::new(),
        };
        let membership = Some(bytes);
        let batch = LogBatch { membership: membership.clone(), ..LogBatch::default() };
        self.storage.log.append(&[batch])?;
        self.recovered.membership = membership;
        Ok(())
    }

    /// Makes it durable that this directory belongs to a cluster, under this raft id.
    ///
    /// # Errors
    /// Those of the log.
    pub(crate) fn belong(&mut self, cluster: ClusterId, raft_id: RaftId) -> Result<()> {
        self.identity.cluster = Some((cluster, raft_id));
        self.storage.log.identify(&self.identity)?;
        Ok(())
    }

    /// The newest membership that it holds.
    ///
    /// # Errors
    /// `DataDir` when the record does not decode.
    pub(crate) fn membership(&self) -> Result<Option<Membership>> {
        Ok(self.record()?.filter(|m| m.index >= FOUNDING.index))
    }

    fn record(&self) -> Result<Option<Membership>> {
        let record = self.recovered.membership.clone().filter(|bytes| !bytes.is_empty());
        let Some(record) = record else { return Ok(None) };
        match Membership::decode(record) {
            Ok(membership) => Ok(Some(membership)),
            Err(reason) => Err(refuse(
                &self.storage,
                &format!(
                    "its membership record does not decode ({reason}); it was written by a newer \
                 release: upgrade this node, or start it with an empty directory"
                ),
            )),
        }
    }

    /// The boot record, and the storage that goes on.
    ///
    /// # Errors
    /// `DataDir` when the snapshot that the log relies on is missing; `Storage` when it is
    /// damaged.
    pub(crate) fn into_boot(self, store_applied: Option<Index>) -> Result<(Boot, Storage)> {
        let membership = self.membership()?;
        let snapshot = match self.recovered.snapshot {
            Some(record) => Some((record, self.snapshot_meta(record.position)?)),
            None => None,
        };
        let r = self.recovered;
        let boot = Boot {
            identity: self.identity,
            hard_state: r.hard_state,
            compacted: r.compacted,
            entries: r.entries,
            membership,
            snapshot,
            store_applied,
            dropped_tail: r.dropped_tail,
        };
        Ok((boot, self.storage))
    }

    fn snapshot_meta(&self, position: Position) -> Result<SnapshotMeta> {
        match self.storage.snapshots.meta(position) {
            Err(StorageError::Io { path, source, .. }) if source.kind() == ErrorKind::NotFound => {
                let path = path.display();
                Err(refuse(
                    &self.storage,
                    &format!(
                        "the snapshot {path}, which its log relies on, is missing: put back an \
                         intact copy of the file, or move the data directory away and let this \
                         node join again with an empty one"
                    ),
                ))
            }
            read => Ok(read?),
        }
    }
}

/// Runs work that waits for the disk away from the runtime's own threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(e) => Err(Error::Internal { part: "start", reason: e.to_string() }),
    }
}

fn holds_data(recovered: &Recovered) -> bool {
    !recovered.entries.is_empty()
        || recovered.membership.is_some()
        || recovered.snapshot.is_some()
        || recovered.hard_state != HardState::default()
}

fn refuse(storage: &Storage, reason: &str) -> Error {
    Error::DataDir { dir: storage.dir.clone(), reason: reason.to_owned() }
}

fn random_failed(e: std::io::Error) -> Error {
    Error::Internal { part: "random generator", reason: e.to_string() }
}

/// A seed for the election timeouts.
///
/// # Errors
/// When the operating system's random generator fails.
pub(crate) fn random_seed() -> Result<u64> {
    let bytes = Incarnation::random().map_err(random_failed)?.to_bytes();
    Ok(bytes.into_iter().take(8).fold(0, |seed, b| seed << 8 | u64::from(b)))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::driver::founding::decide::record;
    use crate::log::SnapshotRecord;
    use crate::log::memory::MemoryLog;
    use crate::snapshot::fake_disk::FakeDisk;

    /// What was agreed to is remembered, is no membership, and gives way to what is founded.
    #[test]
    fn an_agreement_is_durable_and_is_no_membership() {
        let log = MemoryLog::new();
        let opened = || {
            let storage = Storage {
                log: Box::new(log.clone()),
                snapshots: SnapshotDir::open(Arc::new(FakeDisk::default()), "/snap").unwrap(),
                dir: PathBuf::from("/data"),
            };
            Opened::open(storage, 2).unwrap()
        };
        let mut first = opened();
        let others = [(1, Incarnation::from_u128(7), "a:1")];
        let own = (2, first.identity.incarnation, "b:1");
        let founding = record(ClusterId::from_u128(9), others.into_iter().chain([own]));
        first.agree(Some(&founding)).unwrap();
        let mut again = opened();
        assert_eq!(again.agreed().unwrap().as_ref(), Some(&founding));
        assert_eq!(again.membership().unwrap(), None);
        assert_eq!(again.interrupted_founding().unwrap(), None);
        again.agree(None).unwrap();
        let mut again = opened();
        assert_eq!(again.agreed().unwrap(), None);
        again.agree(Some(&founding)).unwrap();
        again.found(&founding).unwrap();
        let again = opened();
        assert_eq!(again.identity.cluster, Some((founding.cluster_id, 2)));
        assert_eq!(again.membership().unwrap().as_ref(), Some(&founding));
        assert_eq!(again.agreed().unwrap(), None);

        let mut stranger = record(ClusterId::from_u128(9), others.into_iter());
        stranger.members[0].node_id = 2;
        let error = opened().found(&stranger).unwrap_err().to_string();
        assert!(error.contains("does not name it"), "{error}");
    }

    /// A snapshot that the log relies on is not there, or is damaged: no start passes over that,
    /// and the error says what to do.
    #[test]
    fn a_snapshot_that_the_log_relies_on_is_there_and_whole_or_the_start_is_refused() {
        let disk = FakeDisk::default();
        let snapshots = SnapshotDir::open(Arc::new(disk.clone()), "/snap").unwrap();
        let log = MemoryLog::new();
        let opened = || {
            let storage = Storage {
                log: Box::new(log.clone()),
                snapshots: snapshots.clone(),
                dir: PathBuf::from("/data"),
            };
            Opened::open(storage, 1).unwrap()
        };
        let mut first = opened();
        let own = (1, first.identity.incarnation, "a:1");
        let membership = record(ClusterId::from_u128(9), [own].into_iter());
        first.found(&membership).unwrap();
        let mut writer = snapshots.create(FOUNDING, membership).unwrap();
        writer.write(b"state").unwrap();
        writer.finish().unwrap();
        let record = SnapshotRecord { position: FOUNDING, installing: false };
        let batch = LogBatch { snapshot: Some(record), ..LogBatch::default() };
        first.storage.log.append(&[batch]).unwrap();

        let (boot, _) = opened().into_boot(None).unwrap();
        assert_eq!(boot.snapshot.unwrap().1.position, FOUNDING);

        let name = disk.names().remove(0);
        let mut bytes = disk.bytes(&name);
        *bytes.get_mut(30).unwrap() ^= 1;
        disk.put(format!("/snap/{name}"), bytes);
        let error = opened().into_boot(Some(9)).unwrap_err();
        assert!(matches!(error, Error::Storage(StorageError::Corrupt { .. })), "{error}");

        snapshots.retain(2, |_| false).unwrap();
        let error = opened().into_boot(Some(9)).unwrap_err();
        assert!(matches!(error, Error::DataDir { .. }), "{error}");
        assert!(error.to_string().contains("put back"), "{error}");
    }
}
