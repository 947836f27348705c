//! Where a run begins: every kind of member, with every kind of disk.

use bytes::Bytes;

use super::disk::Disk;
use super::ticks;
use super::world::World;
use crate::config::Config;
use crate::log::SnapshotRecord;
use crate::testing::fuzz::input::Input;
use crate::types::{
    ClusterId, ConfState, Entry, HardState, Identity, Incarnation, Member, Membership, Position,
    RaftId, SnapshotMeta, Term,
};

pub(super) const OURS: RaftId = 1;
pub(super) const CLUSTER: ClusterId = ClusterId::from_u128(7);
/// Ids from 5 up to this one were members once.
const NEXT_RAFT_ID: RaftId = 8;

fn config() -> Config {
    Config {
        election_tick: 10,
        heartbeat_tick: 2,
        max_size_per_msg: 256,
        max_inflight_msgs: 4,
        max_apply_lag: 2 << 10,
        max_committed_size_per_ready: 512,
        snapshot_entries: 12,
        snapshot_bytes: 1 << 10,
        snapshot_trailing_entries: 3,
        snapshot_trailing_bytes: 512,
        ..Config::default()
    }
}

pub(super) fn membership(index: u64, conf_state: ConfState) -> Membership {
    let ids = (1..NEXT_RAFT_ID).filter(|id| conf_state.contains(*id));
    let members = ids.map(|id| Member {
        node_id: id,
        raft_id: id,
        incarnation: Incarnation::from_u128(id.into()),
        addr: format!("n{id}:1"),
        metadata: Bytes::new(),
        learner_only: false,
    });
    let members = members.collect();
    Membership { cluster_id: CLUSTER, index, conf_state, members, next_raft_id: NEXT_RAFT_ID }
}

pub(super) fn voters(ids: &[RaftId]) -> ConfState {
    ConfState { voters: ids.to_vec(), ..ConfState::default() }
}

fn entries(from: u64, to: u64, term: Term) -> impl Iterator<Item = Entry> {
    let data = Bytes::from_static(&[1, 1, 1, 0, 0, 0, b'x']);
    (from..=to).map(move |index| Entry { term, index, data: data.clone(), ..Entry::default() })
}

/// The configuration that a member starts with; None: it has not heard of any.
fn conf(kind: usize) -> Option<ConfState> {
    let three = voters(&[1, 2, 3]);
    Some(match kind {
        0 => three,
        1 => voters(&[1]),
        2 => ConfState { learners: vec![1], ..voters(&[2, 3]) },
        3 => return None,
        4 => ConfState { voters_outgoing: vec![1, 2, 3], ..voters(&[1, 2, 4]) },
        5 => {
            let (voters_outgoing, learners_next) = (vec![1, 2, 3], vec![3]);
            ConfState { voters_outgoing, learners_next, ..voters(&[1, 2]) }
        }
        6 => ConfState { learners: vec![2, 3], ..voters(&[1]) },
        _ => ConfState { learners: vec![4], ..three },
    })
}

/// The first two bytes say who the node is and what it has gone through.
pub(super) fn world(input: &mut Input<'_>) -> World {
    let kind = input.below(8);
    let past = input.byte();
    let seed = u64::from(input.byte());
    let identity = Identity {
        node_id: OURS,
        incarnation: Incarnation::from_u128(OURS.into()),
        cluster: Some((CLUSTER, OURS)),
        boot: 1,
    };
    let mut disk = Disk::new(identity);
    let mut file = None;
    if let Some(conf_state) = conf(kind) {
        let founding = membership(1, conf_state);
        disk.hard_state = HardState { term: 1, vote: 0, commit: 1 };
        disk.compacted = Position { index: 1, term: 1 };
        disk.membership = Some(founding.encode());
        if past & 1 == 1 {
            disk.entries.extend(entries(2, 3, 1));
            disk.entries.extend(entries(4, 6, 2));
            disk.hard_state = HardState { term: 2, vote: 0, commit: 4 };
        }
        if past & 2 == 2 {
            // A snapshot that came in and was not restored yet.
            let position = Position { index: 20, term: 2 };
            file = Some(SnapshotMeta { position, membership: founding, size: 0, crc32: 0 });
            disk.snapshot = Some(SnapshotRecord { position, installing: true });
            (disk.compacted, disk.entries) = (position, Vec::new());
            disk.hard_state = HardState { term: 2, vote: 0, commit: 20 };
        }
    }
    let mut world = World::new(config(), disk, file, seed, past & 4 == 4);
    world.start();
    match past >> 4 {
        1..=3 => ticks(&mut world, 21),
        4..=12 => world.campaign(),
        _ => {}
    }
    world
}
