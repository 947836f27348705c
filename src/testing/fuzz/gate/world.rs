//! One node, its disk and its Store; whatever it wants done is done here, late or at once, and
//! judged.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::Seen;
use super::disk::{Disk, Files, Write, name};
use super::forge::{honest_answer, kind};
use crate::config::Config;
use crate::error::{Error, StorageError};
use crate::node::effect::{Committed, Effect};
use crate::node::envelope::{self, Envelope};
use crate::node::event::{Applied, Changed, Event, Freshness, Read};
use crate::node::{Boot, Node};
use crate::pb;
use crate::reply::Waiter;
use crate::status::{Role, Status};
use crate::transport::convert;
use crate::types::{EntryKind, Index, Membership, Message, Position, RaftId, SnapshotMeta};

/// Messages of the node that peers may still answer.
const MAX_OUTBOX: usize = 64;

pub(super) struct World {
    config: Config,
    node: Option<Node>,
    /// What the node has written, and what of it is durable.
    pub(super) written: Disk,
    durable: Disk,
    queue: VecDeque<Write>,
    files: Files,
    fifo: VecDeque<Effect>,
    store_applied: Index,
    store_durable: bool,
    pub(super) outbox: Vec<pb::Message>,
    pub(super) waiters: Vec<Waiter<Applied>>,
    pub(super) changes: Vec<Waiter<Changed>>,
    pub(super) transfers: Vec<Waiter<()>>,
    /// What the Store was given at each index.
    given: BTreeMap<Index, Bytes>,
    /// As of the last poll.
    status: Status,
    last_number: u64,
    seed: u64,
    pub(super) seen: Seen,
}

impl World {
    pub(super) fn new(
        config: Config,
        disk: Disk,
        file: Option<SnapshotMeta>,
        seed: u64,
        store_durable: bool,
    ) -> Self {
        Self {
            config,
            node: None,
            written: disk.clone(),
            durable: disk,
            queue: VecDeque::new(),
            files: file.into_iter().map(|meta| (name(meta.position), meta)).collect(),
            fifo: VecDeque::new(),
            store_applied: 0,
            store_durable,
            outbox: Vec::new(),
            waiters: Vec::new(),
            changes: Vec::new(),
            transfers: Vec::new(),
            given: BTreeMap::new(),
            status: Status::default(),
            last_number: 0,
            seed,
            seen: Seen::default(),
        }
    }

    pub(super) fn status(&self) -> Status {
        self.status.clone()
    }

    /// Starts from what is durable.
    pub(super) fn start(&mut self) {
        self.durable.identity.boot += 1;
        self.durable.crashes();
        self.written = self.durable.clone();
        let d = &self.durable;
        let file = |p: Position| {
            let meta = self.files.get(&name(p)).cloned();
            meta.unwrap_or_else(|| panic!("R10: the file of the recorded snapshot {p:?} is gone"))
        };
        let boot = Boot {
            identity: d.identity,
            hard_state: d.hard_state,
            compacted: d.compacted,
            entries: d.entries.clone(),
            membership: d.members(),
            snapshot: d.snapshot.map(|r| (r, file(r.position))),
            store_applied: self.store_durable.then_some(self.store_applied),
            dropped_tail: None,
        };
        self.store_applied = self.store_applied.max(d.compacted.index.min(1));
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let node = Node::new(&self.config, boot, self.seed + d.identity.boot, &logger);
        let node = node.unwrap_or_else(|e| panic!("it does not start from its own disk: {e}"));
        self.status = node.status();
        self.last_number = 0;
        self.node = Some(node);
        self.poll();
    }

    /// The power goes while these many writes reach the disk; then it starts again.
    pub(super) fn crash_and_start(&mut self, synced: usize) {
        self.node = None;
        for _ in 0..synced {
            self.sync_one();
        }
        self.queue.clear();
        self.fifo.clear();
        self.outbox.clear();
        if !self.store_durable {
            self.store_applied = 0;
        }
        // What is committed is known again up to here; peers that lie may replace what is above.
        // What the Store holds does not count while the record says that it restores again.
        let installing = self.durable.snapshot.is_some_and(|s| s.installing);
        let held = if installing { 0 } else { self.store_applied };
        let known = self.durable.hard_state.commit.max(held);
        self.given.retain(|index, _| *index <= known);
        self.seen.crashes += 1;
        self.start();
    }

    pub(super) fn tell(&mut self, event: Event) {
        if let Some(node) = &mut self.node {
            node.handle(event);
        }
    }

    /// Bytes of a sender's stream, decoded, with the file of a snapshot received before.
    pub(super) fn message(&mut self, sender: RaftId, wire: pb::Message) {
        let Ok(message) = convert::from_wire(wire) else { return };
        if let Some(meta) = &message.snapshot {
            // The directory of snapshots takes no other.
            if meta.membership.index > meta.position.index {
                return;
            }
            self.files.insert(name(meta.position), (**meta).clone());
        }
        self.seen.stepped += 1;
        self.tell(Event::Message { from: sender, message });
    }

    /// Carries out what the node wants, but for disk and Store, and judges it.
    pub(super) fn poll(&mut self) {
        let Some(node) = &mut self.node else { return };
        let mut out = Vec::new();
        node.poll(&mut out);
        let now = node.status();
        out.into_iter().for_each(|effect| self.dispatch(effect));
        self.judge(now);
    }

    /// I7, I8, and what there was to see.
    fn judge(&mut self, now: Status) {
        let old = &self.status;
        let back = now.term < old.term
            || now.commit < old.commit
            || now.applied < old.applied
            || now.snapshot < old.snapshot;
        assert!(!back, "I7: {old:?} then {now:?}");
        assert!(now.snapshot <= now.commit, "I8: snapshot {} above {}", now.snapshot, now.commit);
        assert!(now.commit <= now.last_index, "I8: {} above {}", now.commit, now.last_index);
        if self.node.is_some() {
            let last = self.written.last_index();
            assert_eq!(now.last_index, last, "the log that is written is another one");
        }
        let seen = &mut self.seen;
        seen.refused += now.refused_messages.saturating_sub(old.refused_messages);
        let role = match now.role {
            Role::Follower => &mut seen.follower,
            Role::PreCandidate => &mut seen.pre_candidate,
            Role::Candidate => &mut seen.candidate,
            Role::Leader => &mut seen.leader,
            Role::Learner => &mut seen.learner,
            Role::Starting | Role::Stopped => &mut seen.joiner,
        };
        *role += 1;
        let members = self.written.members();
        let joint = members.is_some_and(|m| !m.conf_state.voters_outgoing.is_empty());
        seen.joint += u64::from(joint);
        let installs = self.fifo.iter().any(|e| matches!(e, Effect::Install { .. }));
        seen.installing += u64::from(installs);
        self.status = now;
    }

    fn dispatch(&mut self, effect: Effect) {
        match effect {
            Effect::Send(messages) => messages.into_iter().for_each(|m| self.send(m)),
            Effect::SendSnapshot { to, message } => {
                assert_eq!(message.to(), to);
                let meta = message.snapshot.as_ref().map(|m| m.position);
                let there = meta.is_some_and(|p| self.files.contains_key(&name(p)));
                assert!(there, "R10: the snapshot that is sent does not exist");
                self.send(message);
            }
            Effect::Persist { number, batch } => {
                assert!(number > self.last_number, "batch {number} after {}", self.last_number);
                self.last_number = number;
                if let Some(first) = batch.entries.first().filter(|_| batch.reset.is_none()) {
                    let commit = self.status.commit;
                    assert!(first.index > commit, "{} written again, commit {commit}", first.index);
                    let over = first.index <= self.written.last_index();
                    self.seen.overwritten += u64::from(over);
                }
                self.write(Write::Batch { number, batch });
            }
            Effect::Compact { through, keep_snapshot } => {
                self.write(Write::Compact { through, keep_snapshot });
            }
            Effect::Apply(_)
            | Effect::Query(_)
            | Effect::Capture { .. }
            | Effect::Install { .. } => self.fifo.push_back(effect),
            Effect::Forward { .. } | Effect::SetPeers(_) | Effect::Publish(_) => {}
            Effect::Fatal(error) => self.end(&error),
        }
    }

    fn write(&mut self, write: Write) {
        self.written.write(&write, &self.files);
        self.queue.push_back(write);
    }

    /// A node may end because it was told that its log is incomplete, or by an entry that it does
    /// not understand; by nothing that is its own fault.
    fn end(&mut self, error: &Error) {
        match error {
            Error::StoreFailed { .. } => {}
            Error::Storage(StorageError::Contract(reason)) if reason.contains("are lost") => {}
            other => panic!("the node ends itself: {other}"),
        }
        self.seen.ended += 1;
        self.node = None;
    }

    /// R2, H6: what a message says is durable.
    fn send(&mut self, message: Message) {
        let m = convert::to_wire(message);
        let hs = self.durable.hard_state;
        if !matches!(m.msg_type, kind::PRE_VOTE | kind::PRE_VOTE_ANSWER) {
            assert!(m.term <= hs.term, "R2: {m:?} leaves, durable: {hs:?}");
        }
        // A vote of an older term was durable before the newer one was.
        let vote = match m.msg_type {
            kind::VOTE_ANSWER if !m.reject => Some(m.to),
            kind::VOTE => Some(m.from),
            _ => None,
        };
        if let Some(vote) = vote.filter(|_| m.term == hs.term) {
            assert_eq!(hs.vote, vote, "R2: the vote is not durable: {m:?}");
        }
        // One of an older term may come after a later leader has replaced its entries: whoever
        // elected that leader does not count it any more.
        if m.msg_type == kind::APPEND_ANSWER && !m.reject && m.term == hs.term {
            let last = self.durable.reached();
            assert!(m.index <= last, "R2: acknowledges {}, {last} is durable", m.index);
        }
        if self.outbox.len() >= MAX_OUTBOX {
            self.outbox.remove(0);
        }
        self.outbox.push(m);
    }

    fn sync_one(&mut self) -> Option<u64> {
        let write = self.queue.pop_front()?;
        self.durable.write(&write, &self.files);
        match write {
            Write::Batch { number, .. } => Some(number),
            Write::Compact { keep_snapshot, .. } => {
                self.files.retain(|(index, _), _| *index >= keep_snapshot);
                Some(0)
            }
        }
    }

    /// Makes writes durable, and says so once.
    pub(super) fn sync(&mut self, count: usize) {
        let mut last = 0;
        for _ in 0..count {
            let Some(number) = self.sync_one() else { break };
            last = last.max(number);
        }
        if last > 0 {
            self.tell(Event::Persisted { number: last });
        }
    }

    /// Lets the Store work off its queue.
    pub(super) fn run_store(&mut self, count: usize) {
        for _ in 0..count {
            let Some(effect) = self.fifo.pop_front() else { break };
            match effect {
                Effect::Apply(items) => self.apply(items),
                Effect::Query(reads) => self.query(reads),
                Effect::Capture { position, membership } => self.capture(position, membership),
                Effect::Install { meta } => {
                    let recorded = self.durable.snapshot.map_or(0, |s| s.position.index);
                    assert!(recorded >= meta.position.index, "R11: installed, not recorded");
                    // A Store that had gone on before a crash goes back: it restores again for as
                    // long as the record says that it may not have.
                    self.store_applied = meta.position.index;
                    self.tell(Event::Installed { index: meta.position.index });
                }
                other => panic!("not the Store's: {other:?}"),
            }
        }
    }

    fn apply(&mut self, items: Vec<Committed>) {
        for item in items {
            let index = item.index;
            assert_eq!(index, self.store_applied + 1, "R8: applied out of order");
            assert!(index <= self.durable.last_index(), "R3: {index} is not durable");
            let replaced = self.queue.iter().any(|w| w.replaces(index));
            assert!(!replaced, "R3: {index} is durable, but a write on its way replaces it");
            if let Some(entry) = self.durable.entry(index) {
                let body = match (entry.kind, envelope::open(&entry.data)) {
                    (EntryKind::Normal, Ok(Envelope::Commands(body))) => body,
                    _ => Bytes::new(),
                };
                assert_eq!(body, item.data, "the Store is given something else at {index}");
            }
            let known = self.given.entry(index).or_insert_with(|| item.data.clone());
            assert_eq!(*known, item.data, "I6: {index} is given in two versions");
            self.store_applied = index;
            self.seen.applied += 1;
            for reply in item.replies {
                reply.send(Ok(Applied { index, data: Vec::new() }));
            }
        }
        self.tell(Event::Applied { index: self.store_applied });
    }

    fn query(&mut self, reads: Vec<Read>) {
        let index = self.store_applied;
        for read in reads {
            match read.freshness {
                Freshness::AtLeast(at) => assert!(at <= index, "R15: read at {index}, not {at}"),
                Freshness::Linearizable | Freshness::Stale => {}
            }
            self.seen.reads += 1;
            read.reply.send(Ok(Applied { index, data: Vec::new() }));
        }
    }

    fn capture(&mut self, position: Position, membership: Membership) {
        assert_eq!(position.index, self.store_applied, "a snapshot that is not one cut");
        assert!(membership.index <= position.index, "a snapshot with a newer membership");
        self.seen.captured += 1;
        if self.seen.captured.is_multiple_of(5) {
            return self.tell(Event::SnapshotFailed);
        }
        let meta = SnapshotMeta { position, membership, size: 0, crc32: 0 };
        self.files.insert(name(position), meta.clone());
        self.tell(Event::SnapshotBuilt { meta });
    }

    /// Disk and Store catch up.
    pub(super) fn drive(&mut self) {
        for _ in 0..1000 {
            self.poll();
            if self.node.is_none() || self.queue.is_empty() && self.fifo.is_empty() {
                return;
            }
            self.sync(usize::MAX);
            self.poll();
            self.run_store(usize::MAX);
        }
        panic!("the node never comes to rest");
    }

    /// An election in which everybody agrees.
    pub(super) fn campaign(&mut self) {
        for _ in 0..60 {
            self.drive();
            if self.status.role == Role::Leader {
                return;
            }
            let asked = std::mem::take(&mut self.outbox);
            for answer in asked.iter().filter_map(honest_answer) {
                self.message(answer.from, answer);
                self.poll();
            }
            if asked.is_empty() {
                self.tell(Event::Tick);
            }
        }
    }
}
