//! A cluster of Nodes in one value: no thread, no clock, no socket. Whatever the world does to a
//! Node, it does when it is told to.
//!
//! Checked at every step, in scripts and in the walk alike: I1 (one leader per term), I2, I5, I7
//! (disk), R2 and H6 (nothing leaves before it is durable), R3, R7, R10.

mod store;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::calls::Call;
use super::disk::{Disk, File, Store, Write};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::node::effect::{Effect, Forward};
use crate::node::event::{Event, Transferred};
use crate::node::{Boot, Node};
use crate::types::eraftpb::MessageType;
use crate::types::{
    ClusterId, ConfState, HardState, Identity, Incarnation, Index, Member, Membership, Message,
    NodeId, Position, RaftId, Term,
};

/// One machine.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) node: Option<Node>,
    pub(super) disk: Disk,
    pub(super) store: Store,
    pub(super) fifo: VecDeque<Effect>,
    pub(super) disk_held: bool,
    pub(super) store_held: bool,
    pub(super) fatal: Option<String>,
}

/// Something under way between two nodes.
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) from: NodeId,
    pub(super) to: NodeId,
    pub(super) load: Load,
}

#[derive(Debug)]
pub(super) enum Load {
    Raft(Message),
    Snapshot(Message, Box<File>),
    Forward(Forward),
}

pub(super) struct Cluster {
    pub(super) config: Config,
    pub(super) machines: BTreeMap<NodeId, Machine>,
    pub(super) raft_ids: BTreeMap<RaftId, NodeId>,
    pub(super) net: VecDeque<Packet>,
    pub(super) cut: BTreeSet<(NodeId, NodeId)>,
    pub(super) calls: Vec<Call>,
    /// What each index did, once any Store applied it.
    pub(super) history: BTreeMap<Index, Vec<String>>,
    pub(super) acknowledged: Vec<String>,
    leaders: BTreeMap<Term, RaftId>,
    /// Indices that changed the membership.
    changes: BTreeSet<Index>,
    pub(super) seed: u64,
    pub(super) runtime: tokio::runtime::Runtime,
}

const CLUSTER: ClusterId = ClusterId::from_u128(7);

pub(super) fn incarnation(id: NodeId, generation: u64) -> Incarnation {
    Incarnation::from_u128(u128::from(id) << 64 | u128::from(generation) << 32 | 0x77)
}

pub(super) fn addr(id: NodeId) -> String {
    format!("node-{id}:1")
}

impl Cluster {
    pub(super) fn new(seed: u64) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("runtime");
        let config = Config { election_tick: 10, heartbeat_tick: 2, ..Config::default() };
        Self {
            config,
            machines: BTreeMap::new(),
            raft_ids: BTreeMap::new(),
            net: VecDeque::new(),
            cut: BTreeSet::new(),
            calls: Vec::new(),
            history: BTreeMap::new(),
            acknowledged: Vec::new(),
            leaders: BTreeMap::new(),
            changes: BTreeSet::from([1]),
            seed,
            runtime,
        }
    }

    /// Founds a cluster of nodes 1..=n, as its founding writes it to every disk.
    pub(super) fn found(&mut self, n: u64, durable: bool) {
        let members: Vec<Member> = (1..=n)
            .map(|id| Member {
                node_id: id,
                raft_id: id,
                incarnation: incarnation(id, 0),
                addr: addr(id),
                metadata: Bytes::new(),
                learner_only: false,
            })
            .collect();
        let membership = Membership {
            cluster_id: CLUSTER,
            index: 1,
            conf_state: ConfState { voters: (1..=n).collect(), ..ConfState::default() },
            members,
            next_raft_id: n + 1,
        };
        for id in 1..=n {
            let disk = self.machine(id, id, incarnation(id, 0), durable);
            disk.hard_state = HardState { term: 1, vote: 0, commit: 1 };
            disk.compacted = Position { index: 1, term: 1 };
            disk.membership = Some(membership.encode());
        }
        (1..=n).for_each(|id| self.start(id).expect("a fresh founder starts"));
    }

    fn machine(
        &mut self,
        id: NodeId,
        raft_id: RaftId,
        incarnation: Incarnation,
        durable: bool,
    ) -> &mut Disk {
        let identity =
            Identity { node_id: id, incarnation, cluster: Some((CLUSTER, raft_id)), boot: 0 };
        self.raft_ids.insert(raft_id, id);
        let machine = Machine {
            node: None,
            disk: Disk::new(identity),
            store: Store { durable, ..Store::default() },
            fifo: VecDeque::new(),
            disk_held: false,
            store_held: false,
            fatal: None,
        };
        self.machines.insert(id, machine);
        &mut self.at(id).disk
    }

    /// An empty machine that was told its raft id.
    pub(super) fn add(
        &mut self,
        id: NodeId,
        raft_id: RaftId,
        incarnation: Incarnation,
        durable: bool,
    ) {
        self.machine(id, raft_id, incarnation, durable);
        self.start(id).expect("a joiner starts");
    }

    /// A machine loses its disk, and its process with it.
    pub(super) fn wipe(&mut self, id: NodeId) {
        self.machines.remove(&id);
        self.raft_ids.retain(|_, home| *home != id);
    }

    pub(super) fn at(&mut self, id: NodeId) -> &mut Machine {
        self.machines.get_mut(&id).unwrap_or_else(|| panic!("no machine {id}"))
    }

    pub(super) fn node(&mut self, id: NodeId) -> &mut Node {
        self.at(id).node.as_mut().unwrap_or_else(|| panic!("node {id} is down"))
    }

    pub(super) fn is_up(&self, id: NodeId) -> bool {
        self.machines.get(&id).is_some_and(|m| m.node.is_some())
    }

    pub(super) fn up(&self) -> Vec<NodeId> {
        self.machines.keys().copied().filter(|id| self.is_up(*id)).collect()
    }

    pub(super) fn leader(&self) -> Option<NodeId> {
        let leads =
            |m: &Machine| m.node.as_ref().filter(|n| n.is_leader()).map(|n| n.raw.raft.term);
        let all = self.machines.iter().filter_map(|(id, m)| Some((leads(m)?, *id)));
        all.max().map(|(_, id)| id)
    }

    pub(super) fn start(&mut self, id: NodeId) -> Result<()> {
        let (config, seed) = (self.config.clone(), self.seed);
        let m = self.at(id);
        m.disk.identity.boot += 1;
        let d = &m.disk;
        let boot = Boot {
            identity: d.identity,
            hard_state: d.hard_state,
            compacted: d.compacted,
            entries: d.entries.clone(),
            membership: d.members(),
            snapshot: d.snapshot.map(|r| (r, d.files[&r.position.index].meta.clone())),
            store_applied: m.store.durable.then_some(m.store.applied),
            dropped_tail: None,
        };
        let seed = seed.wrapping_mul(31) + id * 1000 + d.identity.boot;
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        m.node = Some(Node::new(&config, boot, seed, &logger)?);
        self.drive(id);
        Ok(())
    }

    /// Everything that was not synced is gone, and so is a Store without a disk of its own.
    pub(super) fn crash(&mut self, id: NodeId) {
        let m = self.at(id);
        m.node = None;
        m.disk.queue.clear();
        m.fifo.clear();
        m.store.crash();
        (m.disk_held, m.store_held) = (false, false);
    }

    /// Tells a node something, without looking at what it wants done.
    pub(super) fn tell(&mut self, id: NodeId, event: Event) {
        if let Some(node) = self.machines.get_mut(&id).and_then(|m| m.node.as_mut()) {
            node.handle(event);
        }
    }

    pub(super) fn event(&mut self, id: NodeId, event: Event) {
        self.tell(id, event);
        self.drive(id);
    }

    /// Carries out what a node wants until it wants nothing more.
    pub(super) fn drive(&mut self, id: NodeId) {
        for _ in 0..10_000 {
            let node = self.machines.get_mut(&id).and_then(|m| m.node.as_mut());
            let Some(node) = node else { return };
            let mut out = Vec::new();
            node.poll(&mut out);
            let quiet = out.is_empty();
            out.into_iter().for_each(|effect| self.dispatch(id, effect));
            self.check(id);
            let m = self.at(id);
            let synced = !m.disk_held && self.sync(id, usize::MAX);
            let applied = !self.at(id).store_held && self.run_store(id, usize::MAX);
            if quiet && !synced && !applied {
                return;
            }
        }
        panic!("node {id} never comes to rest");
    }

    /// Makes writes durable and says so.
    pub(super) fn sync(&mut self, id: NodeId, count: usize) -> bool {
        let m = self.at(id);
        let any = !m.disk.queue.is_empty();
        if let Some(number) = m.disk.sync(count) {
            self.tell(id, Event::Persisted { number });
        }
        any
    }

    fn dispatch(&mut self, id: NodeId, effect: Effect) {
        match effect {
            Effect::Send(messages) => messages.into_iter().for_each(|m| self.send(id, m)),
            Effect::SendSnapshot { to, message } => self.send_snapshot(id, to, message),
            Effect::Persist { number, batch } => {
                self.at(id).disk.queue.push_back(Write::Batch { number, batch });
            }
            Effect::Compact { through, keep_snapshot } => {
                self.at(id).disk.queue.push_back(Write::Compact { through, keep_snapshot });
            }
            Effect::Apply(_)
            | Effect::Query(_)
            | Effect::Capture { .. }
            | Effect::Install { .. } => self.at(id).fifo.push_back(effect),
            Effect::Forward { leader, work } => {
                self.net.push_back(Packet { from: id, to: leader.id, load: Load::Forward(work) });
            }
            Effect::SetPeers(m) => {
                self.changes.insert(m.index);
            }
            Effect::Publish(_) => {}
            Effect::Fatal(error) => {
                self.crash(id);
                self.at(id).fatal = Some(error.to_string());
            }
        }
    }

    fn send(&mut self, id: NodeId, message: Message) {
        self.check_durable(id, &message);
        let Some(to) = self.raft_ids.get(&message.to()).copied() else { return };
        self.net.push_back(Packet { from: id, to, load: Load::Raft(message) });
    }

    fn send_snapshot(&mut self, id: NodeId, to: RaftId, message: Message) {
        self.check_durable(id, &message);
        let meta = message.snapshot.as_deref().expect("a snapshot has its meta");
        let file = self.at(id).disk.files.get(&meta.position.index).cloned();
        let file = file.expect("R10: the snapshot that is sent exists");
        let how = match self.raft_ids.get(&to).copied() {
            _ if file.damaged => Transferred::Unreadable(meta.position),
            Some(to) => {
                let load = Load::Snapshot(message, Box::new(file));
                return self.net.push_back(Packet { from: id, to, load });
            }
            None => Transferred::Broken,
        };
        self.tell(id, Event::SnapshotSent { to, how });
    }

    /// R2, H6: what a message says is durable.
    fn check_durable(&mut self, id: NodeId, message: &Message) {
        use MessageType as T;
        let disk = &self.at(id).disk;
        let m = &message.inner;
        let hs = disk.hard_state;
        let kind = m.get_msg_type();
        if !matches!(kind, T::MsgRequestPreVote | T::MsgRequestPreVoteResponse) {
            assert!(m.term <= hs.term, "R2: {kind:?} of term {} leaves, durable: {hs:?}", m.term);
        }
        // A vote of an older term was durable before the newer one was.
        let vote = match kind {
            T::MsgRequestVoteResponse if !m.reject => Some(m.to),
            T::MsgRequestVote => Some(m.from),
            _ => None,
        };
        if let Some(vote) = vote.filter(|_| m.term == hs.term) {
            assert_eq!(hs.vote, vote, "R2: the vote is not durable");
        }
        if kind == T::MsgAppendResponse && !m.reject {
            let last = disk.last_index();
            assert!(m.index <= last, "R2: acknowledges {} but {last} is durable", m.index);
        }
    }

    /// I1, and what the Node knows of itself.
    fn check(&mut self, id: NodeId) {
        let Some(node) = &self.at(id).node else { return };
        let (term, raft_id, leads) = (node.raw.raft.term, node.raft_id, node.is_leader());
        let log = &node.raw.raft.raft_log;
        assert!(node.emitted <= log.committed, "I8: emitted above commit");
        assert!(node.cache().compacted().index <= node.emitted, "I8: compacted above emitted");
        if leads {
            assert!(node.voters().contains(&raft_id), "H1: node {id} leads and is no voter");
            let first = *self.leaders.entry(term).or_insert(raft_id);
            assert_eq!(first, raft_id, "I1: two leaders in term {term}");
        }
    }

    pub(super) fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.cut.contains(&(from, to)) || !self.is_up(to)
    }

    /// Hands a packet over, or loses it if there is no way. The receiver is not polled.
    pub(super) fn deliver(&mut self, packet: Packet) {
        if self.is_cut(packet.from, packet.to) {
            return self.lose(packet);
        }
        let Packet { from, to, load } = packet;
        match load {
            // The handshake names the raft id of both ends.
            Load::Raft(message) if self.raft_ids.get(&message.to()) != Some(&to) => {}
            Load::Raft(message) => self.tell(to, Event::Message { from: message.from(), message }),
            Load::Snapshot(message, file) => {
                let raft_id = message.to();
                // R11: the file is whole and durable before the message is stepped.
                let files = &mut self.at(to).disk.files;
                files.entry(file.meta.position.index).or_insert(*file);
                self.tell(to, Event::Message { from: message.from(), message });
                self.tell(from, Event::SnapshotSent { to: raft_id, how: Transferred::Arrived });
            }
            Load::Forward(Forward::Propose(proposals)) => {
                proposals.into_iter().for_each(|p| self.tell(to, Event::Propose(p)));
            }
            Load::Forward(Forward::Change { change, reply }) => {
                self.tell(to, Event::Change { change, reply });
            }
            Load::Forward(Forward::Transfer { to: target, reply }) => {
                self.tell(to, Event::Transfer { to: target, reply });
            }
        }
    }

    /// Loses a packet, and says so where the transport would.
    pub(super) fn lose(&mut self, packet: Packet) {
        let unsure = || Error::unknown("the connection broke");
        match packet.load {
            Load::Raft(message) => {
                self.tell(packet.from, Event::Unreachable { peer: message.to() });
            }
            Load::Snapshot(message, _) => {
                let how = Transferred::Broken;
                self.tell(packet.from, Event::SnapshotSent { to: message.to(), how });
            }
            Load::Forward(Forward::Propose(all)) => {
                all.into_iter().for_each(|p| p.reply.send(Err(unsure())));
            }
            Load::Forward(Forward::Change { reply, .. }) => reply.send(Err(unsure())),
            Load::Forward(Forward::Transfer { reply, .. }) => reply.send(Err(unsure())),
        }
    }

    /// Delivers everything, and what comes of it, until the network is empty.
    pub(super) fn stabilize(&mut self) {
        for _ in 0..20_000 {
            let Some(packet) = self.net.pop_front() else { return };
            let (from, to) = (packet.from, packet.to);
            self.deliver(packet);
            self.drive(to);
            if from != to {
                self.drive(from);
            }
        }
        panic!("the network never comes to rest");
    }

    pub(super) fn tick_all(&mut self, count: usize) {
        for _ in 0..count {
            for id in self.up() {
                self.event(id, Event::Tick);
            }
            self.stabilize();
        }
    }
}
