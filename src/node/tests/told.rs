//! What a node tells that a script cannot bring about, or cannot show.

use super::cluster::{Cluster, Load};
use crate::node::event::Event;
use crate::status::{Level, MemberStatus, Replication};

/// Three nodes, of which 1 leads.
fn led() -> Cluster {
    let mut c = Cluster::new(1);
    (c.config.snapshot_entries, c.config.snapshot_trailing_entries) = (4, 0);
    c.found(3, false);
    elect(&mut c, 1);
    c.tick_all(2);
    c
}

fn elect(c: &mut Cluster, id: u64) {
    // Nobody has heard of a leader for long.
    (1..=3).for_each(|other| c.node(other).raw.raft.election_elapsed = 19);
    let _ = c.node(id).raw.campaign();
    c.node(id).settle();
    c.drive(id);
    c.stabilize();
    assert!(c.node(id).is_leader());
}

/// The engine forgets a transfer when its leader steps down: what waits for it is answered when that
/// node leads again, and the next transfer is a new one.
#[test]
fn a_leader_that_is_elected_again_has_not_resigned() {
    let mut c = led();
    c.resign(1, "resign".to_owned());
    c.drive(1);
    c.net.clear();
    let term = c.node(1).raw.raft.term;
    c.node(1).raw.raft.become_follower(term, 0);
    c.node(1).settle();
    c.drive(1);
    assert!(c.answers().is_empty(), "nobody leads yet");
    elect(&mut c, 1);
    let answers = c.answers();
    let [(_, Err(error))] = &answers[..] else { panic!("one call that failed") };
    assert!(error.to_string().contains("this node was elected again"), "{error}");
    c.tick_all(1);
    c.resign(1, "resign".to_owned());
    c.drive(1);
    c.stabilize();
    c.tick_all(2);
    assert!(matches!(&c.answers()[..], [(_, Ok(_))]), "another leads");
    assert!(!c.node(1).is_leader());
}

/// How much of a snapshot has left is told while it is on its way, no longer.
#[test]
fn a_leader_tells_how_much_of_a_snapshot_has_left() {
    let mut c = led();
    c.cut.extend([(1, 3), (3, 1), (2, 3), (3, 2)]);
    for command in ["a", "b", "c", "d", "e"] {
        c.propose(1, command);
        c.drive(1);
        c.stabilize();
    }
    c.cut.clear();
    let third = |c: &mut Cluster| -> MemberStatus { c.node(1).status().members.remove(2) };
    let packet = loop {
        if c.net.is_empty() {
            c.event(1, Event::Tick);
        }
        let Some(packet) = c.net.pop_front() else { continue };
        if matches!(packet.load, Load::Snapshot(..)) {
            break packet;
        }
        let (from, to) = (packet.from, packet.to);
        c.deliver(packet);
        c.drive(from);
        c.drive(to);
    };
    let before = third(&mut c);
    assert_eq!((before.replication, before.snapshot_percent), (Some(Replication::Snapshot), None));
    assert!(before.lag > Some(4), "{before:?}");
    c.event(1, Event::SnapshotProgress { to: 3, percent: 40 });
    assert_eq!(third(&mut c).snapshot_percent, Some(40));
    let health = c.node(1).status().health();
    assert_eq!((health.level, health.spare), (Level::AtRisk, Some(0)));
    assert!(health.to_string().contains("receives a snapshot, 40 % are sent"), "{health}");
    c.deliver(packet);
    c.stabilize();
    c.tick_all(3);
    c.event(1, Event::SnapshotProgress { to: 3, percent: 90 });
    let after = third(&mut c);
    assert_eq!((after.replication, after.snapshot_percent), (Some(Replication::Replicate), None));
    assert_eq!(after.lag, Some(0));
}
