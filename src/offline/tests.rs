//! The tools over a file layer in memory: members of a lost cluster, as a crash leaves them.

#![expect(clippy::unwrap_used, reason = "tests")]

mod addresses;
mod crash;
mod look;
mod refusals;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;

use super::recover::{plan, recover};
use super::*;
use crate::log::wal::{Wal, WalOptions};
use crate::log::{LogBatch, LogStorage, SnapshotRecord};
use crate::pb;
use crate::snapshot::dir::SnapshotDir;
use crate::testing::vfs::FaultyVfs;
use crate::types::{
    ClusterId, ConfState, Entry, EntryKind, HardState, Identity, Incarnation, Index, Member,
    Membership, NodeId, Position, Term,
};

const OLD: ClusterId = ClusterId::from_u128(0x01d);
const FOUNDING: Position = Position { index: 1, term: 1 };
/// Small enough that the log has several files.
const WAL: WalOptions = WalOptions { segment_size: 2048, prepare_ahead: false };

fn at(index: Index, term: Term) -> Position {
    Position { index, term }
}

fn member(id: NodeId) -> Member {
    Member {
        node_id: id,
        raft_id: id,
        incarnation: Incarnation::from_u128(u128::from(id)),
        addr: format!("old-{id}:1"),
        metadata: Bytes::from_static(b"rack 7"),
        learner_only: false,
    }
}

fn membership(voters: &[NodeId], index: Index) -> Membership {
    Membership {
        cluster_id: OLD,
        index,
        conf_state: ConfState { voters: voters.to_vec(), ..ConfState::default() },
        members: voters.iter().map(|id| member(*id)).collect(),
        next_raft_id: voters.iter().max().unwrap() + 1,
    }
}

fn identity(id: NodeId) -> Identity {
    let incarnation = Incarnation::from_u128(u128::from(id));
    Identity { node_id: id, incarnation, cluster: Some((OLD, id)), boot: 3 }
}

/// An entry with one command in its envelope.
fn command(index: Index, term: Term) -> Entry {
    let mut data = vec![1, 1, 200, 0, 0, 0];
    data.extend([index as u8; 200]);
    Entry { term, index, data: data.into(), ..Entry::default() }
}

/// A learner with the raft id 7 that nobody has committed.
fn change(index: Index, term: Term) -> Entry {
    let context = pb::MembershipChange { upsert: vec![member(7).to_pb()], next_raft_id: 8 };
    let single = pb::ConfChangeSingle { change_type: 2, node_id: 7 };
    let data = pb::ConfChangeV2 { changes: vec![single], ..pb::ConfChangeV2::default() };
    Entry {
        term,
        index,
        kind: EntryKind::ConfChangeV2,
        data: data.encode_to_vec().into(),
        context: context.encode_to_vec().into(),
    }
}

fn dir(id: NodeId) -> PathBuf {
    PathBuf::from(format!("/data/n{id}"))
}

fn shared(disk: &FaultyVfs) -> Arc<dyn Vfs> {
    Arc::new(disk.clone())
}

fn open(disk: &FaultyVfs, id: NodeId) -> Wal {
    let mut wal = Wal::open(shared(disk), &dir(id), WAL).unwrap();
    wal.load().unwrap();
    wal
}

/// The directory of a member whose log ends here; it is not closed.
fn make(disk: &FaultyVfs, id: NodeId, membership: &Membership, last: Position) {
    let mut wal = open(disk, id);
    wal.identify(&identity(id)).unwrap();
    let commit = |term, commit| Some(HardState { term, vote: 1, commit });
    let founding =
        LogBatch { reset: Some(FOUNDING), hard_state: commit(1, 1), ..LogBatch::default() };
    wal.append(&[founding]).unwrap();
    for index in 2..=last.index.min(12) {
        let entries = vec![command(index, 1)];
        wal.append(&[LogBatch { entries, ..LogBatch::default() }]).unwrap();
    }
    let record = Some(membership.encode());
    wal.append(&[LogBatch { membership: record, hard_state: commit(1, 8), ..LogBatch::default() }])
        .unwrap();
    let snapshots = SnapshotDir::open(shared(disk), dir(id).join(SnapshotDir::NAME)).unwrap();
    let mut writer = snapshots.create(at(6, 1), membership.clone()).unwrap();
    writer.write(b"the state up to 6").unwrap();
    writer.finish().unwrap();
    let snapshot = Some(SnapshotRecord { position: at(6, 1), installing: false });
    wal.append(&[LogBatch { snapshot, ..LogBatch::default() }]).unwrap();
    wal.compact(at(5, 1)).unwrap();
    if last.index > 12 {
        let commands = (13..last.index).map(|index| command(index, last.term));
        let entries = commands.chain([change(last.index, last.term)]).collect();
        let hard_state = commit(last.term, 12);
        wal.append(&[LogBatch { entries, hard_state, ..LogBatch::default() }]).unwrap();
    }
}

/// Three members: 1 is the most advanced, 2 lacks the last entry, 3 the last term.
fn cluster() -> FaultyVfs {
    let disk = FaultyVfs::new();
    let members = membership(&[1, 2, 3], 4);
    make(&disk, 1, &members, at(15, 2));
    make(&disk, 2, &members, at(14, 2));
    make(&disk, 3, &members, at(12, 1));
    disk
}

fn look(disk: &FaultyVfs, id: NodeId) -> Report {
    inspect::inspect(&shared(disk), &dir(id)).unwrap()
}

fn survey_of(disk: &FaultyVfs, ids: &[NodeId]) -> Survey {
    let dirs: Vec<PathBuf> = ids.iter().map(|id| dir(*id)).collect();
    survey::survey(&shared(disk), &dirs[0], dirs[1..].iter().map(PathBuf::as_path)).unwrap()
}

fn options(others: &[NodeId], force: bool) -> RecoverOptions {
    RecoverOptions { others: others.iter().map(|id| dir(*id)).collect(), addr: None, force }
}

/// Recovers without knowing of anybody else.
fn recover_alone(disk: &FaultyVfs, id: NodeId) -> Result<Recovered> {
    recover(&shared(disk), &dir(id), &options(&[], false))
}

fn flip(disk: &FaultyVfs, path: &Path, at: usize) {
    let mut bytes = disk.contents(path).unwrap();
    bytes[at] ^= 4;
    disk.set_contents(path, bytes);
}

/// Everything in a directory, byte by byte.
fn image(disk: &FaultyVfs, dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for dir in [dir.to_path_buf(), dir.join(SnapshotDir::NAME)] {
        for name in disk.list(&dir).unwrap() {
            let path = dir.join(name);
            all.push((path.clone(), disk.contents(&path).unwrap()));
        }
    }
    all
}
