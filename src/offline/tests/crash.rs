//! A recovery that ends anywhere: the old cluster or the new one, and a way on.

use super::*;
use crate::config::Config;
use crate::driver::boot::{Opened, Storage};
use crate::node::Node;
use crate::node::effect::Effect;
use crate::testing::vfs::{CrashStyle, Fault};

/// What a start finds: who it is, whom it counts, what it has.
struct Started {
    cluster: ClusterId,
    raft_id: u64,
    voters: Vec<u64>,
    entries: Vec<Entry>,
    hard_state: HardState,
    next_raft_id: u64,
}

/// Starts as a node does, up to a running engine.
fn start(disk: &FaultyVfs, id: NodeId) -> Started {
    let wal = Wal::open(shared(disk), &dir(id), WAL).unwrap();
    let snapshots = SnapshotDir::open(shared(disk), dir(id).join(SnapshotDir::NAME)).unwrap();
    let storage = Storage { log: Box::new(wal), snapshots, dir: dir(id) };
    let opened = Opened::open(storage, id).unwrap();
    let (cluster, raft_id) = opened.identity.cluster.unwrap();
    let membership = opened.membership().unwrap().unwrap();
    assert_eq!(membership.cluster_id, cluster, "log and identity name different clusters");
    let own = membership.by_raft(raft_id).unwrap();
    assert_eq!((own.node_id, own.incarnation), (id, opened.identity.incarnation));
    assert_eq!(own.metadata, "rack 7");
    let started = Started {
        cluster,
        raft_id,
        voters: membership.conf_state.voters.clone(),
        entries: opened.recovered.entries.clone(),
        hard_state: opened.recovered.hard_state,
        next_raft_id: membership.next_raft_id,
    };
    let (boot, _storage) = opened.into_boot(None).unwrap();
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let mut node = Node::new(&Config::default(), boot, 1, &logger).unwrap();
    let mut effects = Vec::new();
    node.poll(&mut effects);
    // Whom it counts once everything that is committed was applied.
    let told = effects.into_iter().filter_map(|e| match e {
        Effect::Publish(status) => Some(status.members),
        _ => None,
    });
    let counted: Vec<(NodeId, bool)> =
        told.last().unwrap().into_iter().map(|m| (m.id, m.voter)).collect();
    let written: Vec<(NodeId, bool)> =
        membership.members.iter().map(|m| (m.node_id, true)).collect();
    assert_eq!(counted, written);
    started
}

/// True when the directory is that of the new cluster.
fn check(disk: &FaultyVfs, what: &str) -> bool {
    let found = start(&disk.duplicate(), 1);
    let indices: Vec<Index> = found.entries.iter().map(|e| e.index).collect();
    assert_eq!(indices, (6..=15).collect::<Vec<_>>(), "{what}");
    assert_eq!(found.entries[9], change(15, 2), "{what}");
    let new = found.cluster != OLD;
    if new {
        assert_eq!((found.raft_id, &*found.voters, found.next_raft_id), (8, &[8][..], 9), "{what}");
        assert_eq!((found.hard_state.vote, found.hard_state.commit), (0, 15), "{what}");
        assert!(found.hard_state.term > 1 << 20, "{what}");
    } else {
        assert_eq!((found.raft_id, &*found.voters), (1, &[1, 2, 3][..]), "{what}");
        assert_eq!(found.hard_state, HardState { term: 2, vote: 1, commit: 12 }, "{what}");
    }
    // Whatever was left: recover goes on from there.
    match recover_alone(disk, 1) {
        Ok(done) => {
            assert!(!new || done.plan.unfinished && done.cluster == found.cluster, "{what}");
        }
        Err(e) => {
            assert!(new, "{what}: {e}");
            assert!(e.to_string().contains("node 1 can elect a leader"), "{what}: {e}");
        }
    }
    let after = look(disk, 1);
    assert!(after.is_sound() && after.unfinished().is_none(), "{what}: {after}");
    let place = after.place().unwrap();
    assert!(place.0 != OLD && (!new || place.0 == found.cluster) && place.1 == 8, "{what}");
    new
}

#[test]
fn a_recovery_that_ends_at_any_call_leaves_the_old_cluster_or_the_new_one() {
    let disk = FaultyVfs::new();
    make(&disk, 1, &membership(&[1, 2, 3], 4), at(15, 2));
    let whole = disk.duplicate();
    recover_alone(&whole, 1).unwrap();
    let total = whole.calls();
    let (mut old, mut new, mut failed) = (0, 0, 0);
    for call in 1..=total {
        for fault in [Fault::PowerOff, Fault::Io, Fault::Full, Fault::Short] {
            let tried = disk.duplicate();
            tried.fail_at(call, fault);
            failed += usize::from(recover_alone(&tried, 1).is_err());
            // The power goes, or the process goes on and ends by itself.
            let power = fault == Fault::PowerOff;
            let styles = if power { 5 } else { 2 };
            let seeded = (0..3).map(|i| CrashStyle::Seeded(call * 10 + i));
            let styles =
                [CrashStyle::KeepAll, CrashStyle::LoseAll].into_iter().chain(seeded).take(styles);
            for style in styles {
                let what = format!("{fault:?} at call {call} of {total}, {style:?}");
                if check(&tried.crash(style), &what) { new += 1 } else { old += 1 }
            }
        }
    }
    assert!(old > 100 && new > 50 && failed > 100, "{old} old, {new} new, {failed} failed");
}

#[test]
fn a_node_that_starts_after_an_interrupted_recovery_is_in_the_new_cluster() {
    let disk = FaultyVfs::new();
    make(&disk, 1, &membership(&[1, 2, 3], 4), at(15, 2));
    let interrupted = (1..).find_map(|call| {
        let tried = disk.duplicate();
        tried.fail_at(call, Fault::PowerOff);
        recover_alone(&tried, 1).unwrap_err();
        let after = tried.crash(CrashStyle::KeepAll);
        look(&after, 1).unfinished().map(|place| (after, place))
    });
    let (disk, place) = interrupted.unwrap();
    let text = look(&disk, 1).to_string();
    assert!(text.contains("A recovery was interrupted: the next start"), "{text}");
    let started = start(&disk, 1);
    assert_eq!((started.cluster, started.raft_id), place);
    assert_eq!(look(&disk, 1).identity.unwrap().cluster, Some(place));
}

#[test]
fn log_and_identity_of_two_clusters_start_nobody() {
    let disk = cluster();
    let mut wal = open(&disk, 1);
    let foreign = Membership { cluster_id: ClusterId::from_u128(5), ..membership(&[2, 3], 16) };
    let record = Some(foreign.encode());
    wal.append(&[LogBatch { membership: record, ..LogBatch::default() }]).unwrap();
    drop(wal);
    let wal = Wal::open(shared(&disk), &dir(1), WAL).unwrap();
    let snapshots = SnapshotDir::open(shared(&disk), dir(1).join(SnapshotDir::NAME)).unwrap();
    let storage = Storage { log: Box::new(wal), snapshots, dir: dir(1) };
    let error = Opened::open(storage, 1).unwrap_err().to_string();
    assert!(error.contains("files of two directories are mixed"), "{error}");
    let error = recover_alone(&disk, 1).unwrap_err().to_string();
    assert!(error.contains("files of two directories are mixed"), "{error}");
}

/// Who founds anew is no learner for good: its place is taken over, wish and all, when its disk is lost.
#[test]
fn a_directory_that_was_a_lasting_learner_votes_like_any_other() {
    let disk = FaultyVfs::new();
    let mut members = membership(&[1, 2, 3], 4);
    members.members[0].learner_only = true;
    make(&disk, 1, &members, at(15, 2));
    recover_alone(&disk, 1).unwrap();
    let founded = look(&disk, 1).membership.unwrap();
    assert!(!founded.members[0].learner_only, "{founded:?}");
}
