//! The bare engine behind the gate, in every role, for the tests.
#![expect(clippy::unwrap_used, reason = "tests")]

use bytes::Bytes;
use raft_rs::eraftpb::{ConfChangeV2, ConfState, Entry, EntryType, Message, MessageType, Snapshot};
use raft_rs::storage::MemStorage;
use raft_rs::{Config, RawNode, StateRole, Storage};

use super::{GateView, Limits};
use crate::node::conf_change;
use crate::types::{ClusterId, Index, Membership, RaftId, Term};

pub(super) const NONCE: u64 = 77;
pub(super) const LIMITS: Limits = Limits { entry: 1 << 10, message: 4 << 10 };
/// Ids from 4 up to this one were members once.
pub(super) const NEXT_RAFT_ID: RaftId = 8;

/// A small generator (SplitMix64); `RAFTLINE_SEED` repeats a run.
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn seed() -> u64 {
        let given = std::env::var("RAFTLINE_SEED").ok().and_then(|s| s.parse().ok());
        given.unwrap_or_else(|| {
            let mut bytes = [0; 8];
            getrandom::fill(&mut bytes).unwrap();
            u64::from_le_bytes(bytes)
        })
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

pub(super) fn message(kind: MessageType, from: RaftId, to: RaftId, term: Term) -> Message {
    let mut m = Message::default();
    m.set_msg_type(kind);
    (m.from, m.to, m.term) = (from, to, term);
    m
}

pub(super) fn entry(index: Index, term: Term, data: &[u8]) -> Entry {
    let mut e = Entry::default();
    (e.index, e.term) = (index, term);
    e.data = Bytes::copy_from_slice(data);
    e
}

pub(super) fn snapshot(index: Index, term: Term, voters: &[RaftId]) -> Snapshot {
    let mut s = Snapshot::default();
    let meta = s.mut_metadata();
    (meta.index, meta.term) = (index, term);
    meta.mut_conf_state().set_voters(voters.to_vec());
    s
}

pub(super) fn membership() -> Membership {
    let member = |id| crate::types::Member {
        node_id: id,
        raft_id: id,
        incarnation: crate::types::Incarnation::from_u128(id.into()),
        addr: String::new(),
        metadata: Bytes::new(),
        learner_only: false,
    };
    Membership {
        cluster_id: ClusterId::from_u128(1),
        index: 1,
        conf_state: crate::types::ConfState::default(),
        members: vec![member(1), member(2), member(3)],
        next_raft_id: NEXT_RAFT_ID,
    }
}

/// One engine and the disk below it.
pub(super) struct Engine {
    pub(super) node: RawNode<MemStorage>,
    pub(super) storage: MemStorage,
    pub(super) membership: Option<Membership>,
    /// Readies that are not durable yet: number, messages to release, snapshot to count as applied.
    pub(super) unsynced: Vec<(u64, Vec<Message>, Option<Index>)>,
    pub(super) sent: Vec<Message>,
    /// Election timeouts: raft draws its own from a generator that no seed repeats.
    timeouts: Rng,
    timeout: usize,
    seen: (Term, StateRole),
}

impl Engine {
    /// A member of {1, 2, 3} as founded: snapshot (1, 1), entry 2 of term 1.
    pub(super) fn founded(id: RaftId) -> Self {
        let storage = MemStorage::new();
        storage.wl().apply_snapshot(snapshot(1, 1, &[1, 2, 3])).unwrap();
        storage.wl().append(&[entry(2, 1, b"founded")]).unwrap();
        Self::start(id, storage, 1, Some(membership()))
    }

    /// A node with an empty log that knows no members.
    pub(super) fn joiner(id: RaftId) -> Self {
        Self::start(id, MemStorage::new(), 0, None)
    }

    /// A voter with an empty log that was never in any term.
    pub(super) fn unborn() -> Self {
        let storage = MemStorage::new_with_conf_state((vec![1, 2, 3], vec![]));
        Self::start(1, storage, 0, Some(membership()))
    }

    fn start(id: RaftId, storage: MemStorage, applied: Index, members: Option<Membership>) -> Self {
        let config = Config {
            id,
            applied,
            election_tick: 10,
            heartbeat_tick: 2,
            check_quorum: true,
            pre_vote: true,
            max_size_per_msg: 1 << 10,
            max_inflight_msgs: 4,
            ..Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let node = RawNode::new(&config, storage.clone(), &logger).unwrap();
        Self {
            node,
            storage,
            membership: members,
            unsynced: Vec::new(),
            sent: Vec::new(),
            timeouts: Rng(id),
            timeout: 0,
            seen: (0, StateRole::Follower),
        }
    }

    /// A follower of 2 in term 2: entries 2 to 6, commit 4.
    pub(super) fn follower() -> Self {
        let mut e = Self::founded(1);
        let mut m = message(MessageType::MsgAppend, 2, 1, 2);
        (m.index, m.log_term, m.commit) = (2, 1, 4);
        m.set_entries((3..=6).map(|i| entry(i, 2, b"x")).collect::<Vec<_>>().into());
        e.node.step(m).unwrap();
        e.sync();
        e
    }

    /// The same, asking for pre-votes for term 3.
    pub(super) fn pre_candidate() -> Self {
        let mut e = Self::follower();
        e.node.campaign().unwrap();
        e.sync();
        assert_eq!(e.node.raft.state, StateRole::PreCandidate);
        e
    }

    /// The same, asking for votes in term 3.
    pub(super) fn candidate() -> Self {
        let mut e = Self::pre_candidate();
        e.node.step(message(MessageType::MsgRequestPreVoteResponse, 2, 1, 3)).unwrap();
        e.sync();
        assert_eq!(e.node.raft.state, StateRole::Candidate);
        e
    }

    /// The leader of term 3; 2 has acknowledged entry 7, so that it is committed; 8 is not.
    pub(super) fn leader() -> Self {
        let mut e = Self::candidate();
        e.node.step(message(MessageType::MsgRequestVoteResponse, 2, 1, 3)).unwrap();
        e.sync();
        let mut ack = message(MessageType::MsgAppendResponse, 2, 1, 3);
        ack.index = 7;
        e.node.step(ack).unwrap();
        e.node.propose(vec![], b"y".to_vec()).unwrap();
        e.sync();
        assert_eq!((e.node.raft.state, e.commit(), e.last()), (StateRole::Leader, 7, 8));
        e
    }

    /// A follower whose last entries are still on their way to the disk.
    pub(super) fn writing() -> Self {
        let mut e = Self::follower();
        let mut m = message(MessageType::MsgAppend, 2, 1, 2);
        (m.index, m.log_term, m.commit) = (6, 2, 6);
        m.set_entries(vec![entry(7, 2, b"z")].into());
        e.node.step(m).unwrap();
        e.write();
        e
    }

    /// A candidate whose log is still on its way to the disk.
    pub(super) fn hasty() -> Self {
        let mut e = Self::writing();
        e.node.campaign().unwrap();
        e.node.step(message(MessageType::MsgRequestPreVoteResponse, 3, 1, 3)).unwrap();
        assert_eq!(e.node.raft.state, StateRole::Candidate);
        e
    }

    /// A follower that was sent a snapshot, which is on its way to the disk.
    pub(super) fn installing() -> Self {
        let mut e = Self::follower();
        let mut m = message(MessageType::MsgSnapshot, 2, 1, 2);
        m.set_snapshot(snapshot(20, 2, &[1, 2, 3]));
        e.node.step(m).unwrap();
        e.write();
        e
    }

    pub(super) fn commit(&self) -> Index {
        self.node.raft.raft_log.committed
    }

    pub(super) fn last(&self) -> Index {
        self.node.raft.raft_log.last_index()
    }

    pub(super) fn view(&self, sender: RaftId) -> GateView<'_> {
        GateView::new(&self.node.raft, sender, self.membership.as_ref(), NONCE, LIMITS)
    }

    /// Hands everything that is ready to the disk, without waiting for it.
    pub(super) fn write(&mut self) {
        while self.node.has_ready() {
            let mut ready = self.node.ready();
            let installs = (!ready.snapshot().is_empty()).then(|| {
                self.storage.wl().apply_snapshot(ready.snapshot().clone()).unwrap();
                ready.snapshot().get_metadata().index
            });
            self.storage.wl().append(ready.entries()).unwrap();
            if let Some(state) = ready.hs() {
                self.storage.wl().set_hardstate(state.clone());
            }
            self.sent.extend(ready.take_messages());
            let held = ready.take_persisted_messages();
            let committed = ready.take_committed_entries();
            self.unsynced.push((ready.number(), held, installs));
            self.node.advance_append_async(ready);
            self.apply(&committed);
        }
        // MemStorage makes snapshots at the commit of its hard state and with the configuration
        // that was set last: both must be those of the last applied entry.
        let compacted = self.storage.first_index().unwrap() - 1;
        self.storage.wl().mut_hard_state().commit = self.node.raft.raft_log.applied.max(compacted);
    }

    /// Starts again from the disk.
    pub(super) fn restart(self) -> Self {
        let id = self.node.raft.id;
        let applied = self.storage.rl().hard_state().commit;
        Self::start(id, self.storage, applied, self.membership)
    }

    /// The disk has everything up to the newest ready.
    pub(super) fn sync_once(&mut self) {
        for (number, held, installs) in std::mem::take(&mut self.unsynced) {
            self.node.on_persist_ready(number);
            if let Some(index) = installs {
                self.node.advance_apply_to(index);
            }
            self.sent.extend(held);
        }
    }

    /// Writes, syncs and applies until nothing is left to do.
    pub(super) fn sync(&mut self) {
        while self.node.has_ready() || !self.unsynced.is_empty() {
            self.write();
            self.sync_once();
        }
    }

    fn apply(&mut self, committed: &[Entry]) {
        for e in committed {
            if e.get_entry_type() == EntryType::EntryConfChangeV2 {
                let change = conf_change::decode(&e.data).unwrap();
                self.change(&change);
            }
            self.node.advance_apply_to(e.index);
        }
    }

    /// As a node does: an impossible change is rejected by everyone; a leader that is no voter
    /// any more steps down (H1).
    fn change(&mut self, change: &ConfChangeV2) {
        let Ok(conf) = self.node.apply_conf_change(change) else { return };
        let raft = &mut self.node.raft;
        if raft.state == StateRole::Leader && !is_voter(&conf, raft.id) {
            let term = raft.term;
            raft.become_follower(term, 0);
        }
        self.storage.wl().set_conf_state(conf);
    }

    /// One tick, unless a node would not tick either: a group of one voter with an undurable log
    /// must not campaign (H6b), nor may a node that is installing a snapshot (R11).
    pub(super) fn tick(&mut self) {
        let view = self.view(2);
        let sole = self.node.raft.prs().is_singleton();
        let quiet = view.installing || sole && view.persisted < view.last_index;
        if self.node.raft.state == StateRole::Leader || !quiet {
            self.draw_timeout();
            self.node.tick();
        }
    }

    /// As a node does; only a tick looks at the timeout.
    fn draw_timeout(&mut self) {
        let now = (self.node.raft.term, self.node.raft.state);
        if now != self.seen || self.node.raft.election_elapsed == 0 || self.timeout == 0 {
            self.timeout = 10 + self.timeouts.below(10) as usize;
        }
        self.seen = now;
        self.node.raft.set_randomized_election_timeout(self.timeout);
    }
}

fn is_voter(conf: &ConfState, id: RaftId) -> bool {
    conf.voters.contains(&id) || conf.voters_outgoing.contains(&id)
}
