//! Checks of the oracle against histories that no node would make: each must fail by itself. What a
//! deliberate defect can make fail has an entry in the zoo; here is the rest, and both sides of the
//! rules that excuse something.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::config::Config;
use crate::driver::batch::Batch;
use crate::error::{Error, Result};
use crate::log::{LogBatch, Recovered, SnapshotRecord};
use crate::node::{Boot, Node};
use crate::store::Committed;
use crate::testing::contain::contained;
use crate::testing::sim::disk_model::{Contents, DiskModel, Write};
use crate::testing::sim::life::CLUSTER;
use crate::testing::sim::machine::{LogJob, incarnation};
use crate::testing::sim::marks::Marks;
use crate::testing::sim::oracle::Oracle;
use crate::types::{
    ConfState, Entry, EntryKind, HardState, Identity, Index, Member, Membership, Message,
    MessageType, Position, RaftId, SnapshotMeta, Term, eraftpb,
};

/// It must panic, and say this.
pub(super) fn fires(text: &str, work: impl FnOnce()) {
    match contained(work) {
        Ok(()) => panic!("nothing said {text:?}"),
        Err(panicked) => {
            assert!(panicked.text.contains(text), "{text:?} was wanted, and not {panicked}");
        }
    }
}

pub(super) fn membership(index: Index, voters: &[RaftId]) -> Membership {
    let member = |id: &RaftId| Member {
        node_id: *id,
        raft_id: *id,
        incarnation: incarnation(*id, 0),
        addr: format!("n{id}:1"),
        metadata: Bytes::new(),
        learner_only: false,
    };
    Membership {
        cluster_id: CLUSTER,
        index,
        conf_state: ConfState { voters: voters.to_vec(), ..ConfState::default() },
        members: voters.iter().map(member).collect(),
        next_raft_id: 9,
    }
}

fn entry(index: Index, term: Term, data: &'static [u8]) -> Entry {
    let data = Bytes::from_static(data);
    Entry { term, index, kind: EntryKind::Normal, data, context: Bytes::new() }
}

/// An envelope of one empty entry of an earlier leader would do; the engine's own no-op does.
const NOTHING: &[u8] = b"";

/// A node in this term that holds these entries above the founding, and knows them for committed.
fn node(raft_id: RaftId, term: Term, entries: &[Entry], voters: &[RaftId]) -> Node {
    let boot = Boot {
        identity: Identity {
            node_id: raft_id,
            incarnation: incarnation(raft_id, 0),
            cluster: Some((CLUSTER, raft_id)),
            boot: 1,
        },
        hard_state: HardState { term, vote: 0, commit: 1 + entries.len() as u64 },
        compacted: Position { index: 1, term: 1 },
        entries: entries.to_vec(),
        membership: Some(membership(1, voters)),
        snapshot: None,
        store_applied: None,
        dropped_tail: None,
    };
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    Node::new(&Config::default(), boot, 1, &logger).expect("a node starts")
}

/// What one oracle has seen.
struct Seen {
    oracle: Oracle,
    marks: Marks,
}

impl Seen {
    /// Three voters, whose disks hold the founding.
    fn three() -> Self {
        let (mut oracle, mut marks) = (Oracle::default(), Marks::default());
        oracle.membership(&membership(1, &[1, 2, 3]), &mut marks);
        let mut seen = Self { oracle, marks };
        for id in 1..=3 {
            seen.oracle.new_disk(id, incarnation(id, 0));
            seen.writes(id, founding());
        }
        seen
    }

    fn begins(&mut self, id: u64, job: LogJob) {
        self.oracle.write_begins(id, &job, &mut self.marks);
    }

    fn writes(&mut self, id: u64, batch: LogBatch) {
        self.begins(id, LogJob::Append { number: 1, batch });
        self.oracle.write_is_done(id, 1);
    }

    fn writes_entry(&mut self, id: u64, e: Entry) {
        self.writes(id, LogBatch { entries: vec![e], ..LogBatch::default() });
    }

    fn looks(&mut self, id: u64, node: &Node) {
        self.oracle.look(0, id, 0, node, &mut self.marks);
    }

    fn emits(&mut self, index: Index, command: &[u8]) {
        self.oracle.emitted(1, &batch(index, &[command]), &mut self.marks);
    }

    fn answers(&mut self, id: u64, commands: &[&[u8]], answers: Vec<Result<Vec<u8>>>) {
        self.oracle.answered(id, &batch(2, commands), &answers, &mut self.marks);
    }
}

fn founding() -> LogBatch {
    LogBatch {
        reset: Some(Position { index: 1, term: 1 }),
        hard_state: Some(HardState { term: 1, vote: 0, commit: 1 }),
        membership: Some(membership(1, &[1, 2, 3]).encode()),
        ..LogBatch::default()
    }
}

fn batch<'a>(index: Index, commands: &[&'a [u8]]) -> Batch<'a> {
    let proposals = commands.iter().map(|data| Committed { index, data });
    let proposals: Vec<Committed<'a>> = proposals.collect();
    Batch { counts: vec![proposals.len()], proposals, last: index, bytes: 0 }
}

fn state(term: Term, vote: RaftId, commit: Index) -> LogBatch {
    let hard_state = Some(HardState { term, vote, commit });
    LogBatch { hard_state, ..LogBatch::default() }
}

#[test]
fn two_leaders_of_one_term_are_seen() {
    let mut seen = Seen::three();
    seen.looks(1, &node(1, 4, &[], &[1]));
    seen.looks(2, &node(2, 5, &[], &[2]));
    fires("I1:", || seen.looks(3, &node(3, 4, &[], &[3])));
}

#[test]
fn a_leader_answers_for_what_was_known_to_be_committed_in_its_term_or_before() {
    let held = [entry(2, 1, NOTHING)];
    let known_in_term_five = || {
        let mut seen = Seen::three();
        (1..=2).for_each(|id| seen.writes_entry(id, held[0].clone()));
        seen.looks(1, &node(1, 5, &held, &[1, 2, 3]));
        seen
    };
    // It leads a term above the one that it starts in.
    known_in_term_five().looks(3, &node(3, 3, &[], &[3]));
    for term in [4, 5, 8] {
        fires("I4:", || known_in_term_five().looks(3, &node(3, term, &[], &[3])));
    }
    known_in_term_five().looks(3, &node(3, 8, &held, &[3]));
}

#[test]
fn what_is_committed_is_on_the_disks_of_a_quorum_and_stays_as_it_is() {
    let held = [entry(2, 1, NOTHING)];
    let mut seen = Seen::three();
    seen.writes_entry(2, held[0].clone());
    fires("I6: entry 2 of term 1 is committed and on no quorum", || {
        seen.looks(1, &node(1, 1, &held, &[1, 2, 3]));
    });
    let mut seen = Seen::three();
    (1..=3).for_each(|id| seen.writes_entry(id, held[0].clone()));
    seen.looks(1, &node(1, 1, &held, &[1, 2, 3]));
    let other = [entry(2, 2, NOTHING)];
    let other = node(3, 2, &other, &[1, 2, 3]);
    fires("I6: node 3 commits another entry 2", || seen.looks(3, &other));
    // What a lost disk had acknowledged counts, because its member never votes again: every majority
    // without it meets this one. Whoever is in that machine now does not count for it.
    let mut seen = Seen::three();
    (1..=2).for_each(|id| seen.writes_entry(id, held[0].clone()));
    seen.oracle.new_disk(2, incarnation(2, 1));
    seen.looks(1, &node(1, 1, &held, &[1, 2, 3]));
    let mut seen = Seen::three();
    seen.writes_entry(1, held[0].clone());
    seen.oracle.new_disk(2, incarnation(2, 1));
    seen.writes(2, founding());
    seen.writes_entry(2, held[0].clone());
    fires("I6:", || seen.looks(1, &node(1, 1, &held, &[1, 2, 3])));
    fires("I6: node 1 applies 9, which nobody committed", || seen.emits(9, b"x"));
}

#[test]
fn who_leads_has_the_votes_of_both_halves() {
    let votes = |seen: &mut Seen, id: u64, vote: u64| {
        let hard_state = Some(HardState { term: 5, vote, commit: 1 });
        seen.writes(id, LogBatch { hard_state, ..LogBatch::default() });
    };
    let leads = |seen: &Seen, conf: &ConfState| {
        let probe = node(1, 5, &[], &[1, 2, 3]).probe();
        seen.oracle.require_votes(1, &probe, conf);
    };
    let simple = ConfState { voters: vec![1, 2, 3], ..ConfState::default() };
    let joint = ConfState { voters: vec![1, 2], voters_outgoing: vec![1, 3, 4], ..simple.clone() };
    let mut seen = Seen::three();
    fires("I1: node 1 leads term 5 without", || leads(&seen, &simple));
    votes(&mut seen, 2, 1);
    leads(&seen, &simple);
    fires("I1: node 1 leads term 5 without", || leads(&seen, &joint));
    votes(&mut seen, 3, 1);
    leads(&seen, &joint);
}

#[test]
fn nothing_of_a_node_goes_back_while_it_runs() {
    let mut seen = Seen::three();
    seen.looks(1, &node(1, 5, &[], &[1, 2, 3]));
    fires("I7: node 1: term 4 after 5", || seen.looks(1, &node(1, 4, &[], &[1, 2, 3])));
    let old = node(1, 5, &[], &[1, 2, 3]).probe();
    let (oracle, up) = (Oracle::default(), |p| p + 1);
    for (mend, text) in [
        (crate::node::probe::Probe { commit: up(old.commit), ..old }, "I7: node 1: commit"),
        (crate::node::probe::Probe { emitted: up(old.emitted), ..old }, "I7: node 1 emits again"),
        (crate::node::probe::Probe { compacted: up(old.compacted), ..old }, "come back"),
    ] {
        oracle.forward_only(1, &old, &mend);
        fires(text, || oracle.forward_only(1, &mend, &old));
    }
    for (broken, text) in [
        (crate::node::probe::Probe { compacted: up(old.emitted), ..old }, "compacted above"),
        (crate::node::probe::Probe { emitted: up(old.commit), ..old }, "emitted above"),
        (crate::node::probe::Probe { commit: up(old.last), ..old }, "commit above"),
    ] {
        oracle.bounds(1, &old);
        fires(text, || oracle.bounds(1, &broken));
    }
}

fn message(kind: MessageType, term: Term, index: Index) -> Message {
    let mut m = eraftpb::Message::default();
    m.set_msg_type(kind);
    (m.from, m.to, m.term, m.index) = (1, 2, term, index);
    Message::new(m)
}

#[test]
fn what_a_message_says_is_durable_when_it_leaves() {
    use MessageType as T;
    let mut seen = Seen::three();
    seen.writes(1, state(5, 2, 1));
    seen.writes_entry(1, entry(2, 1, NOTHING));
    let leaves = |kind, term, index, stalled, held| {
        seen.oracle.leaves(1, &message(kind, term, index), stalled, held);
    };
    leaves(T::MsgAppendResponse, 5, 2, false, Some(1));
    leaves(T::MsgRequestVoteResponse, 5, 0, false, None);
    leaves(T::MsgAppend, 5, 2, false, Some(1));
    fires("R12:", || leaves(T::MsgHeartbeat, 5, 0, true, None));
    fires("I9: node 1: MsgHeartbeatResponse of term 6 leaves", || {
        leaves(T::MsgHeartbeatResponse, 6, 0, false, None);
    });
    fires("I9: node 1: its vote of term 5 is not durable", || {
        leaves(T::MsgRequestVote, 5, 2, false, None);
    });
    fires("I9: node 1 acknowledges 3, durable 2", || {
        leaves(T::MsgAppendResponse, 5, 3, false, Some(5));
    });
    // The disk has an entry there, and another one.
    fires("I9: node 1 acknowledges 2 of Some(4), durable another", || {
        leaves(T::MsgAppendResponse, 5, 2, false, Some(4));
    });
}

#[test]
fn an_index_and_a_term_name_one_entry_on_every_disk() {
    let mut seen = Seen::three();
    seen.writes_entry(1, entry(2, 1, b"a"));
    seen.writes_entry(2, entry(2, 1, b"a"));
    seen.begins(
        3,
        LogJob::Append {
            number: 1,
            batch: LogBatch { entries: vec![entry(2, 1, b"b")], ..LogBatch::default() },
        },
    );
    fires("I3: node 3 holds another entry at (2, 1)", || {
        seen.oracle.write_is_done(3, 1);
    });
}

#[test]
fn a_log_is_written_in_order() {
    let written = |batch: LogBatch| Seen::three().writes(1, batch);
    let entries = |e| LogBatch { entries: vec![e], ..LogBatch::default() };
    fires("R10: entry below the compaction point", || written(entries(entry(1, 1, b""))));
    fires("entries leave a gap", || written(entries(entry(3, 1, b""))));
    fires("I7:", || written(state(0, 0, 1)));
    fires("I7:", || written(state(1, 0, 0)));
    let mut seen = Seen::three();
    seen.writes(1, state(4, 2, 1));
    fires("I2:", || seen.writes(1, state(4, 3, 1)));
    let compacts = |seen: &mut Seen| {
        seen.begins(1, LogJob::Compact(Position { index: 2, term: 1 }));
        seen.oracle.write_is_done(1, 1);
    };
    fires("R10: compaction without a snapshot record", || compacts(&mut Seen::three()));
    let mut seen = Seen::three();
    let record = SnapshotRecord { position: Position { index: 1, term: 1 }, installing: false };
    seen.writes(1, LogBatch { snapshot: Some(record), ..LogBatch::default() });
    fires("R10: compaction above the snapshot", || compacts(&mut seen));
}

#[test]
fn a_recovery_finds_what_was_acknowledged_and_nothing_else() {
    let contents = |entries: Vec<Entry>| {
        Contents::of(&Recovered {
            hard_state: HardState { term: 1, vote: 0, commit: 1 },
            compacted: Position { index: 1, term: 1 },
            membership: founding().membership,
            entries,
            ..Recovered::default()
        })
    };
    let [a, b, c] = [entry(2, 1, b"a"), entry(3, 1, b"b"), entry(4, 1, b"c")];
    let mut model = DiskModel::default();
    let write =
        |e: &Entry| Write::Batch(LogBatch { entries: vec![e.clone()], ..LogBatch::default() });
    model.begin(Write::Batch(founding()));
    model.begin(write(&a));
    model.done(2);
    model.begin(write(&b));
    model.done(1);
    model.begin(write(&c));
    for (left, survived) in [(vec![&a, &b], Some(0)), (vec![&a, &b, &c], Some(1)), (vec![&a], None)]
    {
        let found = contents(left.into_iter().cloned().collect());
        assert_eq!(model.clone().recovered(&found).ok(), survived);
    }
    let strange = contents(vec![a.clone(), entry(3, 1, b"x")]);
    assert!(model.clone().recovered(&strange).is_err(), "it was never written");
    // A flipped bit may cost what was written last, no more.
    assert!(model.lacks_the_last_only(&contents(vec![a])));
    assert!(!model.lacks_the_last_only(&contents(vec![])));
    assert!(!model.lacks_the_last_only(&contents(vec![entry(2, 1, b"x"), b])));
}

#[test]
fn a_store_is_given_what_is_durable_and_the_same_everywhere() {
    let held = [entry(2, 1, NOTHING)];
    let mut seen = Seen::three();
    (1..=2).for_each(|id| seen.writes_entry(id, held[0].clone()));
    seen.looks(1, &node(1, 1, &held, &[1, 2, 3]));
    seen.emits(2, b"a");
    fires("I5: node 1 applies something else at 2", || seen.emits(2, b"b"));
    // It is about to be replaced: a crash in between would lose it.
    seen.begins(
        1,
        LogJob::Append {
            number: 1,
            batch: LogBatch { entries: vec![entry(2, 3, b"")], ..LogBatch::default() },
        },
    );
    fires("R3: node 1 applies 2 before it is durable", || seen.emits(2, b"a"));
    let mut seen = Seen::three();
    (1..=2).for_each(|id| seen.writes_entry(id, held[0].clone()));
    seen.looks(1, &node(1, 1, &held, &[1, 2, 3]));
    seen.oracle.membership(&membership(2, &[1, 2, 3, 4]), &mut seen.marks);
    fires("R7: node 1: record of 1, the Store hears of 2", || seen.emits(2, b"a"));
}

#[test]
fn replicas_answer_alike_and_all_of_an_entry() {
    let ok = |text: &str| Ok(text.as_bytes().to_vec());
    let mut seen = Seen::three();
    seen.answers(1, &[b"a", b"b"], vec![ok("1"), ok("2")]);
    seen.answers(2, &[b"a", b"b"], vec![ok("1"), ok("2")]);
    fires("I5: the Store of node 3 answers the command \"b\" at index 2 with", || {
        seen.answers(3, &[b"a", b"b"], vec![ok("1"), Err(Error::rejected("no"))]);
    });
    fires("I5: node 3 answers a part of entry 2", || seen.answers(3, &[b"a"], vec![ok("1")]));
}

#[test]
fn memberships_agree_and_ids_are_never_used_again() {
    let mut seen = Seen::three();
    seen.oracle.membership(&membership(4, &[1, 2]), &mut seen.marks);
    seen.oracle.membership(&membership(4, &[1, 2]), &mut seen.marks);
    fires("I13: two memberships at index 4", || {
        seen.oracle.membership(&membership(4, &[1, 3]), &mut seen.marks);
    });
    let mut reused = membership(5, &[1, 2]);
    reused.members[1].incarnation = incarnation(2, 1);
    fires("I13: raft id 2 is used again", || {
        seen.oracle.membership(&reused, &mut seen.marks);
    });
}

#[test]
fn a_membership_is_what_its_entry_leads_to() {
    // A fourth voter, as raft's own encoding has it.
    let step = crate::pb::ConfChangeSingle { change_type: 0, node_id: 4 };
    let change = crate::pb::ConfChangeV2 { changes: vec![step], ..Default::default() };
    let data = prost::Message::encode_to_vec(&change).into();
    let entry = Entry { kind: EntryKind::ConfChangeV2, data, ..entry(2, 1, NOTHING) };
    let mut seen = Seen::three();
    seen.oracle.appends(&entry, &node(1, 1, &[], &[1, 2, 3]));
    let possible =
        |seen: &Seen| seen.oracle.possible().map(|c| c.voters.clone()).collect::<Vec<_>>();
    assert_eq!(possible(&seen), [[1, 2, 3, 4]], "a log may still bring it into force");
    (1..=3).for_each(|id| seen.writes_entry(id, entry.clone()));
    seen.looks(1, &node(1, 1, &[entry], &[1, 2, 3]));
    assert_eq!((possible(&seen).len(), seen.oracle.ledger.changes()), (1, 1));
    fires("I13: the change at 2 leads elsewhere", || {
        seen.oracle.membership(&membership(2, &[1, 2, 3]), &mut seen.marks);
    });
    seen.oracle.membership(&membership(2, &[1, 2, 3, 4]), &mut seen.marks);
    assert_eq!(possible(&seen).len(), 0, "it is in force");
}

#[test]
fn a_snapshot_is_one_cut_and_arrives_as_it_was_taken() {
    let at = |index| Position { index, term: 1 };
    let mut seen = Seen::three();
    seen.oracle.membership(&membership(4, &[1, 2]), &mut seen.marks);
    seen.oracle.captured(at(4), &membership(4, &[1, 2]));
    fires("has another membership", || seen.oracle.captured(at(3), &membership(4, &[1, 2])));
    fires("has another membership", || seen.oracle.captured(at(5), &membership(1, &[1, 2, 3])));
    seen.oracle.captured_state(1, 5, 77);
    seen.oracle.captured_state(2, 5, 77);
    fires("I5: the Store of node 3 differs in its snapshot at 5", || {
        seen.oracle.captured_state(3, 5, 78);
    });
    seen.oracle.restored(3, 5, [77, 77]);
    for states in [[78, 77], [77, 78], [0, 0]] {
        fires("I5: node 3 restores another state at 5", || seen.oracle.restored(3, 5, states));
    }
    fires("I5:", || seen.oracle.restored(3, 6, [77, 77]));
    let membership = membership(1, &[1, 2, 3]);
    let meta = SnapshotMeta { position: at(5), membership, size: 0, crc32: 0 };
    fires("R11: node 3 restores", || seen.oracle.installs(3, &meta));
    let record = SnapshotRecord { position: at(5), installing: true };
    seen.writes(3, LogBatch { snapshot: Some(record), ..LogBatch::default() });
    seen.oracle.installs(3, &meta);
}

/// The forged nodes are what the tests take them for.
#[test]
fn a_sole_voter_leads_at_its_start_and_one_of_three_does_not() {
    let roles: BTreeMap<bool, bool> = [(true, &[1][..]), (false, &[1, 2, 3])]
        .map(|(leads, voters)| (leads, node(1, 4, &[], voters).probe().leads))
        .into();
    assert!(roles.iter().all(|(wanted, leads)| wanted == leads), "{roles:?}");
    let held = [entry(2, 1, NOTHING)];
    let p = node(1, 4, &held, &[1, 2, 3]).probe();
    assert_eq!((p.term, p.commit, p.emitted, p.last, p.compacted), (4, 2, 2, 2, 1));
}
