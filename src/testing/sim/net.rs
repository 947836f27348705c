//! The network: two ordered lanes per direction, as the transport has them; then whatever the
//! faults make of it.

use std::collections::{BTreeMap, BTreeSet};

use super::calls::Envelope;
use super::machine::{Life, Machine, Running};
use super::marks::Mark;
use super::plan::Knob;
use super::schedule::{MS, Time};
use super::subject::{DIGEST, mix};
use super::world::{What, World};
use crate::driver::handler::check_sender;
use crate::node::event::Event;
use crate::transport::{Peer, Refusal};
use crate::types::{Member, Message, NodeId, RaftId};

/// Something under way.
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) from: NodeId,
    pub(super) to: NodeId,
    /// The connection that it is on ends with the process behind it.
    to_epoch: u64,
    /// Boot counter of the sender, as the handshake tells it.
    from_boot: u64,
    /// How often the link had been cut when it was sent.
    cuts: u64,
    load: Load,
}

#[derive(Debug)]
enum Load {
    Raft { from: RaftId, message: Box<Message> },
    Call(Envelope),
}

/// The state of every link.
#[derive(Debug, Default)]
pub(super) struct Net {
    /// Reasons why a direction is cut, by the number of the fault.
    cut: BTreeMap<(NodeId, NodeId), BTreeSet<u64>>,
    cuts: BTreeMap<(NodeId, NodeId), u64>,
    /// Until when nothing arrives on a direction.
    clogged: BTreeMap<(NodeId, NodeId), Time>,
    /// When the last message of a lane arrives.
    last: BTreeMap<(NodeId, NodeId, bool), Time>,
    /// Where a raft id is.
    pub(super) homes: BTreeMap<RaftId, NodeId>,
}

impl Net {
    pub(super) fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.cut.contains_key(&(from, to))
    }

    pub(super) fn cut(&mut self, from: NodeId, to: NodeId, fault: u64) {
        if from != to {
            self.cut.entry((from, to)).or_default().insert(fault);
            *self.cuts.entry((from, to)).or_default() += 1;
        }
    }

    pub(super) fn clog(&mut self, from: NodeId, to: NodeId, until: Time) {
        self.clogged.insert((from, to), until);
    }

    /// Whether every link works.
    pub(super) fn is_calm(&self, now: Time) -> bool {
        self.cut.is_empty() && self.clogged.values().all(|until| *until <= now)
    }

    /// Ends a fault.
    pub(super) fn mend(&mut self, fault: u64) {
        self.cut.retain(|_, faults| {
            faults.remove(&fault);
            !faults.is_empty()
        });
    }

    /// Ends every fault.
    pub(super) fn heal(&mut self) {
        self.cut.clear();
        self.clogged.clear();
    }

    fn cuts(&self, from: NodeId, to: NodeId) -> u64 {
        self.cuts.get(&(from, to)).copied().unwrap_or(0)
    }
}

impl World {
    /// A raft message leaves a node.
    pub(super) fn send(&mut self, id: NodeId, message: Message) {
        // In a later term its log may be another already than the one that it speaks of.
        let speaks = |n: &&crate::node::Node| n.probe().term == message.inner.term;
        let node = self.machines.get(&id).and_then(Machine::node).filter(speaks);
        let term = node.and_then(|n| n.term_at(message.inner.index));
        self.oracle.leaves(id, &message, self.is_stalled(id), term);
        self.stats.messages += 1;
        let Some(from) = self.at(id).raft_id else { return };
        let Some(to) = self.route(id, message.to()) else {
            return self.unreachable(id, message.to());
        };
        self.note(|| format!("node {id} > node {to}: {}", in_short(&message)));
        let copy = self.chance.net.below(1000) < self.fault_rate(Knob::Duplicate);
        if copy {
            self.stats.fault(Knob::Duplicate);
            let load = Load::Raft { from, message: Box::new(message.clone()) };
            let delay = Self::around(&mut self.chance.net, 50 * MS);
            self.post(id, to, load, false, delay);
        }
        let bulk = message.is_bulk();
        self.post(id, to, Load::Raft { from, message: Box::new(message) }, bulk, 0);
    }

    /// Where a node's message to a member goes: to whoever listens at the address that it was told,
    /// if it knows whose data directory it wants there.
    pub(super) fn route(&self, id: NodeId, to: RaftId) -> Option<NodeId> {
        let home = self.net.homes.get(&to).copied();
        let Life::Running(r) = &self.machines.get(&id)?.life else { return None };
        let view = r.view.as_ref();
        let peer = r.hints.peers(view).find(|peer| peer.raft_id == to);
        if self.plan.get(Knob::AddressBook) == 0 {
            // Without a book a machine is found wherever it is, unless it is another one by now.
            let expected = view.and_then(|v| v.by_raft(to)).is_some_and(|m| !m.has_joined());
            return home.filter(|_| !expected || peer.is_some());
        }
        let peer = peer?;
        let there = self.listener(&peer.addr)?;
        (self.machines[&there].incarnation() == peer.incarnation).then_some(there)
    }

    /// Connections are made whether there is something to send or not, and again when they broke.
    pub(super) fn say_hellos(&mut self) {
        let mut hellos = Vec::new();
        for (id, machine) in &self.machines {
            let Life::Running(r) = &machine.life else { continue };
            let peers = r.hints.peers(r.view.as_ref());
            for peer in peers.filter(|peer| peer.raft_id != r.raft_id) {
                let cut = |to: &NodeId| self.net.is_cut(*id, *to) || self.net.is_cut(*to, *id);
                let to = self.route(*id, peer.raft_id).filter(|to| !cut(to));
                let there = |to: &NodeId| self.machines[to].raft_id == Some(peer.raft_id);
                hellos.extend(to.filter(there).map(|to| (to, *id, r.raft_id)));
            }
        }
        for (to, from, raft_id) in hellos {
            if self.plan.get(Knob::AddressBook) > 0 {
                self.says_where(to, from, raft_id);
            }
            self.tells_removed(to, from, raft_id);
        }
    }

    /// Nodes that miss members ask at every place that they know who is there; those that moved ask
    /// who leads.
    pub(super) fn look_around(&mut self) {
        let moved = self.moved();
        let ids: Vec<NodeId> = self.machines.keys().copied().collect();
        for id in ids {
            let (now, timeout) = (self.now(), self.config.election_timeout().as_micros() as Time);
            let Some(r) = self.at(id).running().filter(|r| r.next_look <= now) else { continue };
            r.next_look = now + timeout;
            let due = r.search.is_due(&r.status);
            let me = r.raft_id;
            let moved = moved.contains(&(id, me));
            if self.at(id).paused_until > now || !due && !moved {
                continue;
            }
            let mut there = self.who_answers(id, self.places(id));
            let named = there.iter().flat_map(|third| self.places(*third)).collect();
            there.extend(self.who_answers(id, named));
            if moved {
                self.asks_who_leads(id, &there);
            }
            for third in &there {
                self.tells_removed(*third, id, me);
            }
            let strangers: Vec<Peer> = there.iter().filter_map(|at| self.says_who(*at)).collect();
            let there = there
                .into_iter()
                .filter_map(|third| Some((self.machines[&third].raft_id?, self.churn.addr(third))))
                .collect();
            let found = |r: &mut Running| {
                let Some(m) = &r.view else { return false };
                let news = r.hints.found(m, &there);
                strangers.into_iter().fold(news, |news, peer| r.hints.met(m, peer) || news)
            };
            if self.at(id).running().is_some_and(found) {
                self.hit(Mark::FoundElsewhere);
            }
        }
    }

    /// A node that moved tells the leader, when it reaches it, or one that knows it.
    fn asks_who_leads(&mut self, id: NodeId, there: &BTreeSet<NodeId>) {
        let named =
            there.iter().chain([&id]).filter_map(|third| match &self.machines[third].life {
                Life::Running(r) => Some(r.status.leader_id),
                Life::Down | Life::Joining | Life::Out => None,
            });
        let named: BTreeSet<NodeId> = named.filter(|leader| *leader != 0).collect();
        for leader in named {
            let leads = self.machines.get(&leader).is_some_and(Machine::leads);
            let reached = leader == id || self.answers(id, leader);
            if leads && reached && !self.churn.moves_through(leader) {
                self.announce(leader, id);
            }
        }
    }

    /// Who answers, by its own membership.
    fn says_who(&self, id: NodeId) -> Option<Peer> {
        let Life::Running(r) = &self.machines[&id].life else { return None };
        let Member { raft_id, node_id, incarnation, .. } = *r.view.as_ref()?.by_raft(r.raft_id)?;
        Some(Peer { raft_id, node_id, incarnation, addr: self.churn.addr(id) })
    }

    /// Where a node believes that members may be.
    fn places(&self, id: NodeId) -> Vec<String> {
        let Life::Running(r) = &self.machines[&id].life else { return Vec::new() };
        let places = r.view.iter().flat_map(|view| r.hints.places(view)).map(str::to_owned);
        places.chain(r.seeds.clone()).collect()
    }

    fn who_answers(&self, id: NodeId, places: Vec<String>) -> BTreeSet<NodeId> {
        let there = places.iter().filter_map(|addr| self.listener(addr));
        there.filter(|to| *to != id && self.answers(id, *to)).collect()
    }

    fn answers(&self, id: NodeId, to: NodeId) -> bool {
        let now = self.now();
        let open = |from, to| {
            let clogged = self.net.clogged.get(&(from, to)).is_some_and(|until| *until > now);
            !self.net.is_cut(from, to) && !clogged
        };
        let m = &self.machines[&to];
        m.is_up() && m.paused_until <= now && open(id, to) && open(to, id)
    }

    /// Whoever knows that the sender of a hello was removed says so, and that is final.
    fn tells_removed(&mut self, to: NodeId, sender: NodeId, raft_id: RaftId) {
        let now = self.now();
        let view = self.machines.get_mut(&to).and_then(Machine::running).map(|r| r.view.as_ref());
        if !view.flatten().is_some_and(|view| view.was_removed(raft_id)) {
            return;
        }
        let epoch = self.at(sender).epoch;
        let Some(r) = self.alive(sender, epoch).filter(|r| r.removed.is_none()) else { return };
        r.removed = Some(now);
        self.hit(Mark::RemovedTold);
        self.note(|| format!("node {sender} is told by node {to} that it was removed"));
        self.schedule.after(MS, What::Depart(sender, epoch));
    }

    /// A connection begins with a hello, which says where its sender is.
    fn says_where(&mut self, to: NodeId, sender: NodeId, raft_id: RaftId) {
        let (addr, boot) = (self.churn.addr(sender), self.at(sender).boots);
        let names = self.oracle.incarnation(raft_id);
        let Some(r) = self.machines.get_mut(&to).and_then(Machine::running) else { return };
        let Some(incarnation) = names else { return };
        let said = (boot, addr.clone());
        let fresh = r.said.insert(raft_id, said.clone()) != Some(said);
        let peer = Peer { raft_id, node_id: sender, incarnation, addr };
        if r.hints.heard(r.view.as_ref(), peer, fresh) {
            self.hit(Mark::SaysWhere);
        }
    }

    /// The machine that listens at an address.
    pub(super) fn listener(&self, addr: &str) -> Option<NodeId> {
        let machine = self.machines.keys().find(|id| self.churn.addr(**id) == addr).copied();
        if self.plan.get(Knob::AddressBook) > 0 {
            return machine;
        }
        // Without a book machines are found wherever they are said to be.
        machine.or_else(|| {
            self.machines.keys().find(|id| addr.starts_with(&format!("n{id}:"))).copied()
        })
    }

    /// Sends a request or an answer; gives it back when there is no connection.
    pub(super) fn send_call(
        &mut self,
        from: NodeId,
        to: NodeId,
        envelope: Envelope,
    ) -> Result<(), Envelope> {
        let there = self.machines.get(&to).is_some_and(Machine::is_up);
        if !there || self.net.is_cut(from, to) || self.net.is_cut(to, from) {
            return Err(envelope);
        }
        self.post(from, to, Load::Call(envelope), false, 0);
        Ok(())
    }

    fn post(&mut self, from: NodeId, to: NodeId, load: Load, bulk: bool, extra: Time) {
        let to_epoch = self.machines.get(&to).map_or(0, |m| m.epoch);
        let from_boot = self.machines.get(&from).map_or(0, |m| m.boots);
        let cuts = self.net.cuts(from, to);
        let packet = Packet { from, to, to_epoch, from_boot, cuts, load };
        if from != to && self.net.is_cut(from, to) {
            self.lose(packet);
            return;
        }
        let at = self.now() + self.latency(from, to) + extra;
        let ordered = self.chance.net.below(1000) >= self.fault_rate(Knob::Reorder);
        let lane = self.net.last.entry((from, to, bulk)).or_default();
        let at = if ordered { at.max(*lane) } else { at };
        *lane = at.max(*lane);
        self.schedule.at(at, What::Packet(packet));
    }

    pub(super) fn latency(&mut self, from: NodeId, to: NodeId) -> Time {
        if from == to {
            return 1;
        }
        let mut latency = Self::around(&mut self.chance.net, self.plan.get(Knob::LatencyUs));
        if self.chance.net.below(1000) < self.fault_rate(Knob::SlowLink) {
            latency *= 100;
            self.stats.fault(Knob::SlowLink);
        }
        let clogged = self.net.clogged.get(&(from, to)).copied().unwrap_or(0);
        latency + clogged.saturating_sub(self.now())
    }

    /// The rate of a fault of the network, unless everything is healed.
    fn fault_rate(&self, knob: Knob) -> u64 {
        if self.healed { 0 } else { self.plan.get(knob) }
    }

    /// A packet comes to the end of its way.
    pub(super) fn arrive(&mut self, packet: Packet) {
        let lost = self.net.is_cut(packet.from, packet.to)
            || self.net.cuts(packet.from, packet.to) != packet.cuts
            || self.chance.net.below(1000) < self.fault_rate(Knob::Loss);
        if lost {
            self.stats.fault(Knob::Loss);
            return self.lose(packet);
        }
        if let Load::Raft { from, message } = &packet.load {
            if self.turns_away(packet.to, packet.from, *from) {
                return self.lose(packet);
            }
            let sent = (packet.from, *from, packet.from_boot);
            if self.refuses_boots(sent, (packet.to, message.to())) {
                return self.lose(packet);
            }
        }
        let Packet { from: sender, to, to_epoch, load, .. } = packet;
        match load {
            Load::Raft { from, message } => {
                self.says_where(to, sender, from);
                let (bound, size) = (self.plan.get(Knob::InboxBytes), message.size() as u64);
                let stray = self.plan.get(Knob::Duplicate) > 0;
                let Some(m) = self.machines.get_mut(&to) else { return };
                // The handshake names the raft id of both ends.
                let fits = m.raft_id == Some(message.to()) && (stray || m.epoch == to_epoch);
                let Some(r) = m.running().filter(|_| fits) else {
                    return self.nobody_there(sender, to, message.to());
                };
                // As the inbox does it: raft sends again.
                let fits = r.messages.is_empty() || r.message_bytes + size <= bound;
                if bound > 0 && !fits {
                    return self.hit(Mark::InboxFull);
                }
                r.message_bytes += size;
                r.messages.push((from, *message));
                self.wake(to);
            }
            Load::Call(envelope) => {
                if self.alive(to, to_epoch).is_some() {
                    self.call_arrives(to, envelope);
                } else if !self.is_silent(sender, to) {
                    self.call_is_lost(envelope.call(), "the connection broke");
                }
            }
        }
    }

    /// Whether a receiver does not know the data directory of a sender. One that was removed is heard
    /// on the connection that it has.
    fn turns_away(&mut self, to: NodeId, sender: NodeId, raft_id: RaftId) -> bool {
        let incarnation = self.at(sender).incarnation();
        let peer = Peer { raft_id, node_id: sender, incarnation, addr: self.churn.addr(sender) };
        let Some(r) = self.machines.get_mut(&to).and_then(Machine::running) else { return false };
        let judged = check_sender(r.view.as_ref(), r.raft_id, &peer);
        let known = r.view.as_ref().and_then(|view| view.by_raft(raft_id));
        let expected = known.is_some_and(|member| !member.has_joined());
        let lives = self.machines[&sender].raft_id == Some(raft_id);
        self.marks.hit_if(Mark::ExpectedHeard, lives && expected && judged.is_ok());
        lives && matches!(judged, Err(Refusal::Sender(_)))
    }

    /// The handshake tells both ends the boot counter of the other. Whoever remembers a higher
    /// one refuses: that disk was put back from a copy. An operator hears of it and replaces it.
    fn refuses_boots(
        &mut self,
        (from, from_raft, from_boot): (NodeId, RaftId, u64),
        (to, to_raft): (NodeId, RaftId),
    ) -> bool {
        let to_boot = self.machines.get(&to).map_or(0, |m| m.boots);
        let there = |m: &Machine| m.is_up() && m.raft_id == Some(to_raft);
        if !self.machines.get(&to).is_some_and(there) {
            return false;
        }
        let ends = [(from, from_raft, from_boot, to), (to, to_raft, to_boot, from)];
        let mut refused = false;
        for (who, raft_id, boot, by) in ends {
            let now = |m: &Machine| m.boots == boot && m.raft_id == Some(raft_id);
            let current = self.machines.get(&who).is_some_and(now);
            let Some(r) = self.machines.get_mut(&by).and_then(Machine::running) else { continue };
            let seen = r.seen_boots.entry(raft_id).or_insert(boot);
            if *seen > boot && current {
                refused = true;
                self.refused_boot(who);
            } else {
                *seen = (*seen).max(boot);
            }
        }
        refused
    }

    pub(super) fn refused_boot(&mut self, id: NodeId) {
        if std::mem::take(&mut self.at(id).rolled_back) {
            self.hit(Mark::RollbackRefused);
            self.note(|| format!("node {id} is refused: its disk is an older copy"));
            self.lose_disk(id);
        }
    }

    /// The transport notices that a connection broke.
    fn lose(&mut self, packet: Packet) {
        if self.is_silent(packet.from, packet.to) {
            // Whoever waits for an answer has a deadline.
            return self.hit(Mark::SilentLoss);
        }
        match packet.load {
            Load::Raft { message, .. } => self.unreachable(packet.from, message.to()),
            Load::Call(envelope) => self.call_is_lost(envelope.call(), "the connection broke"),
        }
    }

    fn nobody_there(&mut self, from: NodeId, to: NodeId, peer: RaftId) {
        if !self.is_silent(from, to) {
            self.unreachable(from, peer);
        }
    }

    /// Whether whatever a link loses is lost without a word: no reset, no error, nothing.
    pub(super) fn is_silent(&self, from: NodeId, to: NodeId) -> bool {
        let silent = self.plan.get(Knob::Silent);
        let link = [self.plan.seed, from, to].map(u64::to_le_bytes).concat();
        silent > 0 && from != to && mix(DIGEST, &link) % 100 < silent
    }

    fn unreachable(&mut self, id: NodeId, peer: RaftId) {
        let epoch = self.at(id).epoch;
        self.complete(id, epoch, Event::Unreachable { peer });
    }
}

/// A message, in a few words.
fn in_short(message: &Message) -> String {
    let m = &message.inner;
    let mut text = format!("{:?} term {}", m.get_msg_type(), m.term);
    let numbers = [("index", m.index), ("log term", m.log_term), ("commit", m.commit)];
    for (name, number) in numbers.into_iter().filter(|(_, n)| *n > 0) {
        text += &format!(" {name} {number}");
    }
    if !m.entries.is_empty() {
        text += &format!(" entries {}", m.entries.len());
    }
    if m.reject {
        text += &format!(" rejected, hint {}", m.reject_hint);
    }
    text
}
