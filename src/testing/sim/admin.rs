//! What an administrator does: lets in who asks, replaces what is lost, and changes the members as
//! the plan has it. Nothing that would lose the cluster: what is asked for leaves a majority of
//! intact disks.

use super::churn::{Request, Wish};
use super::life::Crash;
use super::machine::{Life, Machine, incarnation};
use super::marks::Mark;
use super::plan::Knob;
use super::schedule::{MS, SECOND};
use super::world::{What, World};
use crate::node::event::Change;
use crate::types::{Member, MemberRole, Membership, NodeId, RaftId};

/// How long a change is asked for again.
const PATIENCE: u64 = 8 * SECOND;

impl World {
    /// What an administrator does all the time.
    pub(super) fn admin_acts(&mut self) {
        self.note_swaps();
        self.look_around();
        self.say_hellos();
        if self.is_settled() && self.oracle.possible().next().is_none() {
            self.oracle.ledger.no_removal_is_asked();
        }
        self.schedule.after(300 * MS, What::Churn);
        if self.healed && !self.whole {
            return;
        }
        let ids: Vec<NodeId> = self.machines.keys().copied().collect();
        for id in ids {
            match &self.machines[&id].life {
                Life::Joining if !self.churn.joins(id) => self.ask_to_join(id),
                Life::Out => self.replace_disk(id),
                Life::Running(_) | Life::Down if self.was_removed(id) => self.end_removed(id),
                Life::Joining | Life::Running(_) | Life::Down => {}
            }
        }
        if !self.healed {
            self.lose_what_waits();
            self.ask_again();
            self.start_due();
        }
    }

    pub(super) fn was_removed(&self, id: NodeId) -> bool {
        let raft_id = self.machines.get(&id).and_then(|m| m.raft_id);
        raft_id.is_some_and(|r| self.oracle.knows_removal(r))
    }

    /// A removed node that was away learns of it from its peers, or from an administrator.
    fn end_removed(&mut self, id: NodeId) {
        self.marks.hit_if(Mark::RemovedRuns, self.machines[&id].is_up());
        // In the end its peers have to tell it.
        let down = !self.machines[&id].is_up();
        if (!self.healed || down) && self.chance.fault.one_in(20) {
            self.end_process(id);
            self.at(id).life = Life::Out;
        }
    }

    /// A machine without a usable disk: its old self is removed first, or its new one asks at once.
    fn replace_disk(&mut self, id: NodeId) {
        let raft_id = self.at(id).raft_id;
        match self.churn.member(id) {
            Some(member) if Some(member) == raft_id => {
                if self.churn.open() < 2 {
                    self.ask_to_remove(id);
                }
            }
            Some(_) => {}
            // It was never a member: a spare, which joins when it is told to.
            None if raft_id.is_none() => {}
            // Removed, and nobody wants it back.
            None if self.healed && !self.at(id).lost => {}
            None if self.is_to_be_spare(id) => self.at(id).raft_id = None,
            None => self.empty_disk(id),
        }
    }

    fn is_to_be_spare(&mut self, id: NodeId) -> bool {
        let wanted = [Knob::Join, Knob::Add, Knob::Replace].iter().any(|k| self.plan.get(*k) > 0);
        let churns = self.plan.get(Knob::Set) > 0;
        wanted && churns && !self.at(id).lost && self.chance.fault.one_in(2)
    }

    /// Asks again for what waits for a node.
    fn ask_again(&mut self) {
        let now = self.now();
        self.churn.wishes.retain(|wish| wish.until > now);
        for Wish { change, .. } in self.churn.wishes.clone() {
            if !self.churn.asks_for(&change) {
                self.ask_anybody(change, false);
            }
        }
    }

    fn start_due(&mut self) {
        let now = self.now();
        let due = |(at, _): &(u64, NodeId)| *at <= now;
        let all = std::mem::take(&mut self.churn.starts);
        let (due, later) = all.into_iter().partition(due);
        self.churn.starts = later;
        for (_, id) in due {
            if self.is_spare(id) {
                self.empty_disk(id);
            }
        }
    }

    fn is_spare(&self, id: NodeId) -> bool {
        let m = &self.machines[&id];
        matches!(m.life, Life::Out) && m.raft_id.is_none()
    }

    pub(super) fn change_members(&mut self, knob: Knob) {
        // A disk is about to be lost: nothing else is asked for until it is.
        if self.nemesis.waits_to_lose() && knob != Knob::Transfer {
            return;
        }
        match knob {
            Knob::Join => {
                let id = self.spare();
                id.into_iter().for_each(|id| self.empty_disk(id));
            }
            Knob::Add => self.add(),
            Knob::Promote => {
                let learners = self.members_of(MemberRole::Learner);
                if let Some(learner) = self.one_of(&learners) {
                    self.wish(Change::Promote { node_id: learner.node_id });
                }
            }
            Knob::Demote => self.demote(),
            Knob::Remove => self.remove(),
            Knob::RemoveLeader => {
                if let Some(id) = self.leader().filter(|id| self.may_remove(*id)) {
                    self.ask_to_remove(id);
                }
            }
            Knob::Replace => self.replace(),
            Knob::Set => self.set_members(),
            Knob::Move => self.ask_to_move(),
            Knob::Swap => self.swap(),
            _ => self.ask_to_transfer(),
        }
    }

    fn one_of<T: Clone>(&mut self, all: &[T]) -> Option<T> {
        all.get(self.chance.fault.below(all.len().max(1) as u64) as usize).cloned()
    }

    fn spare(&self) -> Option<NodeId> {
        let expected = |id: &NodeId| self.churn.starts.iter().any(|(_, e)| e == id);
        self.machines.keys().copied().find(|id| self.is_spare(*id) && !expected(id))
    }

    /// The members that have joined and have this role, by the newest membership.
    fn members_of(&self, role: MemberRole) -> Vec<Member> {
        let Some(m) = self.churn.newest() else { return Vec::new() };
        let has = |x: &&Member| x.has_joined() && m.role(x.raft_id) == Some(role);
        m.members.iter().filter(has).cloned().collect()
    }

    /// Asks until it is in force.
    fn wish(&mut self, change: Change) {
        let until = self.now() + PATIENCE;
        self.churn.wishes.push(Wish { change: change.clone(), until });
        self.ask_anybody(change, false);
    }

    /// An administrator does not remove a machine while another one's disk is lost.
    fn may_remove(&self, id: NodeId) -> bool {
        !self.churn.is_busy() && self.can_remove(id)
    }

    fn ask_to_join(&mut self, id: NodeId) {
        // It asks anybody, and follows hints.
        let Some(node) = self.any_up().and_then(|first| self.led_to(first)) else { return };
        let generation = self.at(id).generation;
        let change = self.join(id, generation);
        self.ask_change(node, Request::Join(id), change);
    }

    fn join(&self, id: NodeId, generation: u64) -> Change {
        let (incarnation, addr) = (incarnation(id, generation), self.churn.addr(id));
        Change::Join { node_id: id, incarnation, addr, voter: self.config.auto_promote }
    }

    /// An empty disk is started under the node id of a process that still runs.
    pub(super) fn ask_too_early(&mut self, id: NodeId) {
        let Some(node) = self.any_up().and_then(|first| self.led_to(first)) else { return };
        let generation = self.at(id).generation;
        let change = self.join(id, generation + 1);
        self.ask_change(node, Request::TooEarly(id, generation), change);
    }

    /// The old process is stopped: only the empty disk is left.
    pub(super) fn end_old_self(&mut self, id: NodeId, generation: u64) {
        let m = &self.machines[&id];
        let same = m.generation == generation && matches!(m.life, Life::Running(_) | Life::Down);
        // One that was evicted may have ended by itself.
        let ended = m.generation == generation && matches!(m.life, Life::Out);
        if same || ended {
            self.note(|| format!("the old process of node {id} is stopped; an empty disk is left"));
            self.lose_disk(id);
            self.empty_disk(id);
        }
    }

    fn ask_to_remove(&mut self, id: NodeId) {
        let leader = self.at(id).leads();
        self.ask_anybody(Change::Remove { node_id: id }, leader);
    }

    fn remove(&mut self) {
        let Some(newest) = self.churn.newest() else { return };
        let voters = newest.conf_state.voters.len();
        let Some(member) = self.one_of(&newest.members) else { return };
        // The last voter is asked for, too: that must be refused.
        if voters == 1 || self.may_remove(member.node_id) {
            self.ask_to_remove(member.node_id);
        }
    }

    fn demote(&mut self) {
        let leader = self.leader().filter(|_| self.chance.fault.one_in(2));
        let voters = self.members_of(MemberRole::Voter);
        let Some(id) = leader.or_else(|| self.one_of(&voters).map(|m| m.node_id)) else { return };
        if self.may_remove(id) {
            let leader = self.at(id).leads();
            self.ask_anybody(Change::Demote { node_id: id }, leader);
        }
    }

    /// A machine is added by name; its process starts later.
    fn add(&mut self) {
        let Some(id) = self.spare() else { return };
        let addr = self.churn.addr(id);
        if self.chance.fault.below(4) == 0 {
            self.ask_anybody(Change::AddLearner { node_id: id, addr }, false);
            self.start_added(id);
        } else {
            self.wish(Change::AddVoter { node_id: id, addr, added: false });
            self.start_added(id);
        }
    }

    /// A machine that was added starts after a while.
    pub(super) fn start_added(&mut self, id: NodeId) {
        if self.is_spare(id) && !self.churn.starts.iter().any(|(_, e)| *e == id) {
            let at = self.now() + self.chance.fault.below(3 * SECOND);
            self.churn.starts.push((at, id));
        }
    }

    /// One machine takes another's place: a learner, or a spare that is added for it.
    fn replace(&mut self) {
        let voters = self.members_of(MemberRole::Voter);
        let Some(old) = self.one_of(&voters).map(|m| m.node_id) else { return };
        if !self.may_remove(old) {
            return;
        }
        let learners = self.members_of(MemberRole::Learner);
        let there = self.one_of(&learners).map(|m| m.node_id);
        let new = match (there, self.spare()) {
            (Some(learner), _) => learner,
            (None, Some(spare)) => {
                let addr = self.churn.addr(spare);
                self.ask_anybody(Change::AddLearner { node_id: spare, addr }, false);
                self.start_added(spare);
                spare
            }
            (None, None) => return,
        };
        self.wish(Change::Replace { old, new });
    }

    /// Other members, at any distance: most of them vote, some learn, some go.
    fn set_members(&mut self) {
        if self.churn.is_busy() {
            return;
        }
        let Some(m) = self.churn.newest() else { return };
        let joined: Vec<Member> = m.members.iter().filter(|x| x.has_joined()).cloned().collect();
        let wide = self.chance.fault.one_in(2);
        let (mut voters, mut learners) = (Vec::new(), Vec::new());
        for member in &joined {
            match self.chance.fault.below(if wide { 6 } else { 20 }) {
                0 => learners.push(member.clone()),
                1 => {}
                _ => voters.push(member.clone()),
            }
        }
        let ids = |all: &[Member]| all.iter().map(|x| x.node_id).collect::<Vec<NodeId>>();
        let raft_ids: Vec<RaftId> = voters.iter().map(|x| x.raft_id).collect();
        let same = raft_ids.len() == m.conf_state.voters.len() && learners.is_empty();
        let intact = self.intact(&raft_ids, 0) > raft_ids.len() / 2;
        // The voters that are left of those that may be in force keep their majority.
        let all_there = self.possible_voters().iter().all(|v| self.intact(v, 0) > v.len() / 2);
        if voters.is_empty() || same || !intact || !all_there {
            return;
        }
        let change = Change::Set { voters: ids(&voters), learners: ids(&learners) };
        self.ask_anybody(change, false);
    }

    /// A machine gets another address. With address books it starts anew, and nobody finds it
    /// until the others were told.
    fn ask_to_move(&mut self) {
        let (Some(node), Some(id)) = (self.any_up(), self.any_up()) else { return };
        // A majority that moves at once cannot find itself, as the documents say: one at a time,
        // and the next one when all have it on their disks where the last one is.
        let book = self.plan.get(Knob::AddressBook) > 0;
        if book && !self.may_move(id) {
            return;
        }
        self.churn.moves(id);
        if book {
            self.crash(id, Crash::Kill);
        } else {
            self.announce(node, id);
        }
    }

    /// Two machines exchange their addresses, whatever else is under way, but for members that are
    /// where nobody else has been: those must find the others where they were.
    fn swap(&mut self) {
        let voters = self.members_of(MemberRole::Voter);
        let (Some(a), Some(b)) = (self.one_of(&voters), self.one_of(&voters)) else { return };
        let [a, b] = [a.node_id, b.node_id];
        let both = |m: &Machine| m.is_up() || matches!(m.life, Life::Down);
        let fit = a != b && both(&self.machines[&a]) && both(&self.machines[&b]);
        if !fit || !self.addresses_are_shuffled_at_most() {
            return;
        }
        let [of_a, of_b] = [self.churn.addr(a), self.churn.addr(b)];
        self.churn.addrs.insert(a, of_b);
        self.churn.addrs.insert(b, of_a);
        self.churn.swaps.push((a, b));
        self.note(|| format!("nodes {a} and {b} exchange their addresses"));
        if self.plan.get(Knob::AddressBook) > 0 {
            self.crash(a, Crash::Kill);
            self.crash(b, Crash::Kill);
        }
    }

    /// Whether every member is at an address that some member has in the newest membership.
    fn addresses_are_shuffled_at_most(&self) -> bool {
        let Some(newest) = self.churn.newest() else { return false };
        let known = |m: &Member| {
            let addr = self.churn.addr(m.node_id);
            newest.members.iter().any(|other| other.addr == addr)
        };
        newest.members.iter().filter(|m| m.has_joined()).all(known)
    }

    fn may_move(&self, id: NodeId) -> bool {
        let Some(newest) = self.churn.newest().filter(|m| m.by_node(id).is_some()) else {
            return false;
        };
        let right = |m: &Member| m.addr == self.churn.addr(m.node_id);
        let knows = |m: &Member| {
            let record = self.oracle.durable(m.node_id).membership;
            let record = record.and_then(|r| Membership::decode(r).ok());
            // One that lags and knows other members cannot find those that came since.
            let all = |known: &Membership| {
                newest.members.iter().all(|m| known.by_raft(m.raft_id).is_some())
            };
            record.is_some_and(|known| known.members.iter().all(right) && all(&known))
        };
        newest.members.iter().filter(|m| m.has_joined()).all(|m| right(m) && knows(m))
    }

    /// Members that are elsewhere than the newest membership says.
    pub(super) fn moved(&self) -> Vec<(NodeId, RaftId)> {
        let Some(newest) = self.churn.newest() else { return Vec::new() };
        let wrong = |m: &&Member| m.has_joined() && m.addr != self.churn.addr(m.node_id);
        newest.members.iter().filter(wrong).map(|m| (m.node_id, m.raft_id)).collect()
    }

    /// An exchange is over when everybody has it on disk.
    fn note_swaps(&mut self) {
        let swaps = std::mem::take(&mut self.churn.swaps);
        for (a, b) in swaps {
            let gone = [a, b].iter().any(|id| self.churn.member(*id).is_none());
            if self.may_move(a) && self.may_move(b) {
                self.hit(Mark::AddressesSwapped);
            } else if !gone {
                self.churn.swaps.push((a, b));
            }
        }
    }

    pub(super) fn announce(&mut self, node: NodeId, id: NodeId) {
        let addr = self.churn.addr(id);
        let incarnation = self.at(id).incarnation();
        let change = Change::Update { node_id: id, incarnation, addr };
        self.ask_change(node, Request::Move, change);
    }
}
