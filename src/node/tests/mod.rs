//! The specification of the Node: scripts in `../testscripts`, and a random walk.
//!
//! Each ordering rule (R) and each hazard of the engine (H) has its script of that name. What needs
//! no script, or lives elsewhere:
//!
//! - R1 (snapshot file, then record, then sync) and R5 (fail-stop): the log's own tests and the
//!   driver's. Here the disk refuses a record whose file is missing.
//! - R6, I1, I2, I5, I7, I8: the harness checks them at every step of every script.
//! - R9, H14: by construction. Only `ready::take_ready` calls `ready()`, and nothing between it and
//!   `advance_append_async()` calls the engine.
//! - R13, H15: the driver's inbox keeps the order; `h15_at_most_one_tick` shows what it is for.
//! - R16: the transport. R18: the log and the composition root.
//! - H11 is in `h9_hostile_messages`, every rule of the gate in `gate/tests.rs`.
//! - H12: `LogCache` never fails; its own tests.
//! - H16, which the fuzzers found, is below: the engine takes what was written twice, with something
//!   else in between, for durable with its first write.

mod calls;
mod cluster;
mod disk;
mod script;
mod text;
mod told;
mod walk;

use crate::node::event::Event;
use crate::types::{Message, eraftpb};

macro_rules! scripts {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                check(stringify!($name));
            }
        )*

        #[test]
        fn every_script_is_run() {
            let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/node/testscripts");
            let mut found: Vec<String> = std::fs::read_dir(dir)
                .expect("scripts")
                .filter_map(|f| f.expect("file").file_name().into_string().ok())
                .filter_map(|f| Some(f.strip_suffix(".txt")?.to_owned()))
                .collect();
            found.sort();
            let mut known = vec![$(stringify!($name).to_owned()),*];
            known.sort();
            assert_eq!(found, known);
        }
    };
}

scripts! {
    basics
    crash_between_commit_and_apply
    forwarding
    h10_lost_log
    h13_snapshot_without_the_receiver
    h15_at_most_one_tick
    h1_removed_leader
    h2_removed_leader_reads
    h3_read_context
    h4_reads_wait
    h5_last_voter
    h5_one_change_at_a_time
    h6_new_term_is_durable_first
    h6b_sole_voter_and_its_tail
    h7_lost_snapshot
    h7_damaged_snapshot
    h7_silenced_snapshot
    h8_restart
    h9_hostile_messages
    health
    linger
    min_members
    fencing
    r10_compaction
    r10_superseded_snapshot
    r11_snapshot_install
    r12_slow_disk
    r12_stalled_disk
    r14_dropped
    r14_figure_8
    r14_snapshot_over_it
    r15_reads
    r17_add_members
    r17_deposed_leader_does_not_answer
    r17_disjoint
    r17_joint
    r17_joint_leader_fails
    r17_identity
    r17_leader_leaves
    r17_membership
    r17_new_leader_waits
    r17_promotion_waits
    r17_readmission
    r17_readmission_waits
    r17_refusals
    r17_replace
    r17_slow_voters
    r17_snapshot_while_membership_changes
    r19_hung_disk
    r19_hung_store
    r19_uncommitted_tail
    r2_acks_wait_for_the_disk
    r3_answer_after_apply
    r4_commit_alone_is_no_write
    r7_conf_entries_are_not_applied_twice
    r7_membership_record_first
    resign
    restart_many
    stopping
    transfer
}

fn check(name: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/node/testscripts")
        .join(format!("{name}.txt"));
    let golden = std::fs::read_to_string(&path).expect("script");
    let now = script::play(&golden);
    if std::env::var_os("RAFTLINE_BLESS").is_some() {
        std::fs::write(&path, now).expect("script is writable");
    } else if now != golden {
        let differ = golden.lines().zip(now.lines()).position(|(a, b)| a != b);
        let at = differ.unwrap_or(golden.lines().count().min(now.lines().count()));
        let line = |text: &str| text.lines().nth(at).unwrap_or("(end)").to_owned();
        panic!(
            "{name}.txt, line {}:\n  expected: {}\n  got:      {}\n\nwhole outcome:\n{now}",
            at + 1,
            line(&golden),
            line(&now),
        );
    }
}

/// H6: the record of a snapshot that is written between an election and its Ready carries the new
/// term along; messages of that term wait for it all the same. The harness asserts it.
#[test]
fn h6_a_batch_of_our_own_may_carry_the_new_term() {
    use crate::node::event::Change;
    let mut c = cluster::Cluster::new(1);
    c.config.snapshot_entries = 3;
    c.found(1, false);
    let (incarnation, addr) = (cluster::incarnation(2, 0), cluster::addr(2));
    let join = Change::Join { node_id: 2, incarnation, addr, voter: true };
    c.change(1, join, "join".to_owned());
    c.drive(1);
    c.add(2, 2, incarnation, false);
    c.tick_all(4);
    // A snapshot is being taken while the node steps down: it has heard of another term.
    c.at(1).store_held = true;
    for command in ["a", "b", "c", "d"] {
        c.propose(1, command);
        c.drive(1);
    }
    let term = c.node(1).raw.raft.term;
    c.node(1).raw.raft.become_follower(term, 0);
    c.drive(1);
    c.net.clear();
    // It is elected, alone, and the snapshot is ready before anybody asks what is to be done.
    c.at(1).disk_held = true;
    let _ = c.node(1).raw.campaign();
    assert!(c.node(1).is_leader());
    let waiting = c.at(1).fifo.len();
    assert!(c.run_store(1, waiting), "the snapshot is taken");
    c.event(1, Event::Tick);
    c.event(1, Event::Tick);
    assert!(c.at(1).disk.queue.len() > 1, "a record of our own and the Ready");
    assert!(c.net.is_empty(), "H6: a message of the new term left");
}

/// H8: a hard state that is written on its own speaks of no entry that is not in the log before
/// it: after a crash between the two the node would not start again, or take an entry that was
/// to be replaced for committed.
#[test]
fn h8_a_hard_state_of_our_own_does_not_overtake_the_log() {
    let mut c = cluster::Cluster::new(1);
    c.found(3, false);
    let _ = c.node(1).raw.campaign();
    c.drive(1);
    c.stabilize();
    // Node 2 is sent an entry, and then that it is committed, thanks to node 3.
    let mut late = Vec::new();
    for command in ["a", "b"] {
        c.propose(1, command);
        c.drive(1);
        let (two, rest) = std::mem::take(&mut c.net).into_iter().partition(|p| p.to == 2);
        late.push(two);
        c.net = rest;
        c.stabilize();
    }
    c.at(2).disk_held = true;
    let late: Vec<_> = late.into_iter().flat_map(Vec::from).collect();
    assert_eq!(late.len(), 2, "two appends");
    // Both arrive, and it is told to stop, before anybody asks what is to be done.
    late.into_iter().for_each(|p| c.deliver(p));
    c.event(2, Event::Stop);
    assert_eq!(c.node(2).raw.raft.raft_log.committed, 3);
    // The first write reaches the disk, no other.
    c.sync(2, 1);
    c.crash(2);
    c.start(2).expect("it starts from what is on its disk");
}

/// H7: a report that a snapshot cannot be read may come when another one has taken its place, at the
/// same position: it says nothing about that one, which is whole.
#[test]
fn h7_a_late_report_condemns_no_later_snapshot() {
    use crate::node::event::Transferred;
    let mut c = cluster::Cluster::new(1);
    (c.config.snapshot_entries, c.config.snapshot_trailing_entries) = (4, 0);
    c.found(5, false);
    let _ = c.node(1).raw.campaign();
    c.drive(1);
    c.stabilize();
    let away = |n| (1..=5).flat_map(move |other| [(n, other), (other, n)]);
    c.cut.extend([4, 5].into_iter().flat_map(away));
    for command in ["a", "b", "c"] {
        c.propose(1, command);
        c.drive(1);
        c.stabilize();
    }
    c.cut.clear();
    // Both are back, and a snapshot is on its way to each.
    let mut sent = Vec::new();
    while sent.len() < 2 {
        if c.net.is_empty() {
            c.event(1, Event::Tick);
        }
        let Some(packet) = c.net.pop_front() else { continue };
        let (from, to) = (packet.from, packet.to);
        match &packet.load {
            cluster::Load::Snapshot(message, file) => sent.push((message.to(), file.meta.position)),
            _ => c.deliver(packet),
        }
        c.drive(from);
        c.drive(to);
    }
    let captures = |c: &mut cluster::Cluster| c.node(1).snapshots.taken();
    let before = captures(&mut c);
    for (to, position) in sent {
        c.event(1, Event::SnapshotSent { to, how: Transferred::Unreadable(position) });
        assert_eq!(captures(&mut c), before + 1, "one takes its place, and stays");
    }
    c.tick_all(10);
    assert_eq!(captures(&mut c), before + 1);
    let reached = [1, 5].map(|id| c.node(id).emitted);
    assert_eq!(reached[0], reached[1]);
}

/// R12: a disk that takes longer than a heartbeat interval to finish something, and has not finished
/// what was to be written four election timeouts ago, costs a leader its office: another one would
/// do better. One that is as far behind because it has so much to do does not. Nor does it help that
/// what it finishes is as much as comes in.
#[test]
fn r12_a_disk_that_crawls_is_no_leaders() {
    let lasts = |every: usize, steady_load: bool| {
        let mut c = backlog(if steady_load { 60 } else { 90 });
        let ticks = (1..=90).find(|tick| {
            if steady_load {
                c.propose(1, "a");
                c.drive(1);
            }
            c.tick_all(1);
            if tick % every == 0 {
                c.sync(1, if steady_load { every } else { 1 });
                c.drive(1);
            }
            c.leader() != Some(1)
        });
        let had_to_do = c.at(1).disk.queue.len() > 1;
        assert!(had_to_do || (!steady_load && ticks.is_none()), "it had nothing to do");
        ticks
    };
    for steady_load in [false, true] {
        for often in [1, 2] {
            assert_eq!(lasts(often, steady_load), None, "{often}, steady load: {steady_load}");
        }
        let replaced = lasts(3, steady_load).expect("another one leads");
        assert!(replaced > 40, "after {replaced} ticks, steady load: {steady_load}");
    }
}

/// Three nodes, whose leader has so many batches to write.
fn backlog(batches: usize) -> cluster::Cluster {
    let mut c = cluster::Cluster::new(1);
    c.found(3, false);
    let _ = c.node(1).raw.campaign();
    c.drive(1);
    c.stabilize();
    c.at(1).disk_held = true;
    for _ in 0..batches {
        c.propose(1, "a");
        c.drive(1);
    }
    c
}

/// R12: what comes in one turn, from callers or from a leader, reaches disk and network in pieces.
#[test]
fn r12_a_backlog_is_written_in_pieces() {
    let mut c = cluster::Cluster::new(1);
    c.config.max_size_per_msg = 100_000;
    c.found(3, false);
    let _ = c.node(1).raw.campaign();
    c.drive(1);
    c.stabilize();
    let big = "x".repeat(90_000);
    (1..=2).for_each(|id| c.at(id).disk_held = true);
    (0..20).for_each(|_| c.propose(1, &big));
    c.drive(1);
    let bytes = |c: &mut cluster::Cluster, id| -> Vec<usize> {
        let batches = c.at(id).disk.queue.iter().filter_map(|write| match write {
            disk::Write::Batch { batch, .. } => Some(&batch.entries),
            disk::Write::Compact { .. } => None,
        });
        batches.map(|entries| entries.iter().map(|e| e.data.len()).sum()).collect()
    };
    let written = bytes(&mut c, 1);
    assert_eq!((written.len(), written.iter().max()), (4, written.first()), "{written:?}");
    let appends: Vec<_> = std::mem::take(&mut c.net).into_iter().filter(|p| p.to == 2).collect();
    assert_eq!(appends.len(), 20, "each in a message of its own");
    appends.into_iter().for_each(|p| c.deliver(p));
    c.drive(2);
    assert_eq!(bytes(&mut c, 2), written, "the same on a follower");
    for id in [1, 2] {
        c.at(id).disk_held = false;
        c.drive(id);
    }
    c.stabilize();
    c.tick_all(4);
    let applied = [1, 2].map(|id| c.at(id).store.applied);
    assert_eq!(applied, [c.node(1).last_index(); 2]);
}

fn append(from: u64, term: u64, (index, log_term): (u64, u64), entries: &[(u64, u64)]) -> Event {
    let mut m = eraftpb::Message::default();
    m.set_msg_type(eraftpb::MessageType::MsgAppend);
    (m.from, m.to, m.term, m.index, m.log_term, m.commit) = (from, 2, term, index, log_term, 1);
    let entry = |(index, term): &(u64, u64)| {
        let mut e = eraftpb::Entry::default();
        (e.index, e.term) = (*index, *term);
        e
    };
    m.set_entries(entries.iter().map(entry).collect::<Vec<_>>().into());
    Event::Message { from, message: Message::new(m) }
}

/// H16: the engine knows what is durable by index and term. Entries that were written, replaced by
/// another leader, and written again when the first one came back, are not durable with their
/// first write: the disk loses them again, and after a crash then the Store would be ahead.
#[test]
fn h16_what_is_about_to_be_replaced_is_not_durable() {
    let mut c = cluster::Cluster::new(1);
    c.found(5, true);
    c.at(2).disk_held = true;
    c.event(2, append(1, 2, (1, 1), &[(2, 2), (3, 2)]));
    c.event(2, append(3, 3, (1, 1), &[(2, 3)]));
    c.event(2, append(1, 4, (1, 1), &[(2, 2), (3, 2), (4, 4)]));
    assert_eq!(c.at(2).disk.queue.len(), 3, "three writes");
    // Nodes 1, 4 and 5 have it all.
    let Event::Message { from, mut message } = append(1, 4, (4, 4), &[]) else { return };
    message.inner.commit = 4;
    c.event(2, Event::Message { from, message });
    for synced in [1, 1] {
        assert!(c.sync(2, synced));
        c.drive(2);
        assert_eq!(c.node(2).emitted, 1, "R3: given to the Store before it is durable");
    }
    // The disk has lost them now, and has the entry of node 3.
    assert_eq!(c.at(2).disk.last_index(), 2);
    c.sync(2, 1);
    c.drive(2);
    assert_eq!((c.node(2).emitted, c.at(2).store.applied), (4, 4));
}
