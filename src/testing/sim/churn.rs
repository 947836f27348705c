//! Members that come and go: the requests of an administrator, through any node.

use std::collections::BTreeMap;

use super::life::Crash;
use super::machine::{Life, addr};
use super::marks::Mark;
use super::plan::Knob;
use super::schedule::{MS, SECOND, Time};
use super::world::{What, World};
use crate::error::Result;
use crate::node::event::{Change, Changed, Event};
use crate::reply::{Waiter, reply};
use crate::types::{Member, Membership, NodeId, RaftId};

const DEADLINE: u64 = 5 * SECOND;

enum Request {
    Join(NodeId, Waiter<Changed>),
    Remove { leader: bool, waiter: Waiter<Changed> },
    Move(Waiter<Changed>),
    Transfer(Waiter<()>),
}

struct Pending {
    node: NodeId,
    request: Request,
}

#[derive(Default)]
pub(super) struct Churn {
    /// The newest membership that anybody has applied.
    newest: Option<Membership>,
    open: BTreeMap<u64, Pending>,
    count: u64,
    /// When a change was last asked for.
    last_asked: Time,
    /// Times that each machine has moved.
    moves: BTreeMap<NodeId, u64>,
}

impl Churn {
    pub(super) fn learn(&mut self, m: &Membership) {
        if self.newest.as_ref().is_none_or(|known| known.index < m.index) {
            self.newest = Some(m.clone());
        }
    }

    pub(super) fn newest(&self) -> Option<Membership> {
        self.newest.clone()
    }

    /// Where a machine listens.
    pub(super) fn addr(&self, id: NodeId) -> String {
        addr(id, self.moves.get(&id).copied().unwrap_or(0))
    }

    /// Whether a change may be under way.
    pub(super) fn is_busy(&self) -> bool {
        !self.open.is_empty()
    }

    pub(super) fn last_asked(&self) -> Time {
        self.last_asked
    }

    /// Whether an administrator waits for a node's answer.
    pub(super) fn asks(&self, id: NodeId) -> bool {
        self.open.values().any(|p| p.node == id)
    }

    fn joins(&self, id: NodeId) -> bool {
        self.open.values().any(|p| matches!(p.request, Request::Join(who, _) if who == id))
    }

    /// The raft id under which a machine is a member.
    fn member(&self, id: NodeId) -> Option<RaftId> {
        self.newest.as_ref()?.by_node(id).map(|m| m.raft_id)
    }
}

impl World {
    /// What an administrator does all the time: replaces what is lost, lets in who asks.
    pub(super) fn churn_acts(&mut self) {
        self.announce_moves();
        self.say_hellos();
        self.schedule.after(300 * MS, What::Churn);
        if self.healed {
            return;
        }
        let ids: Vec<NodeId> = self.machines.keys().copied().collect();
        for id in ids {
            match &self.machines[&id].life {
                Life::Joining if !self.churn.joins(id) => self.ask_to_join(id),
                Life::Out => self.replace(id),
                Life::Running(_) | Life::Down if self.was_removed(id) => self.end_removed(id),
                Life::Joining | Life::Running(_) | Life::Down => {}
            }
        }
    }

    pub(super) fn was_removed(&self, id: NodeId) -> bool {
        let raft_id = self.machines.get(&id).and_then(|m| m.raft_id);
        raft_id.is_some_and(|r| self.oracle.knows_removal(r))
    }

    /// A removed node that was away learns of it only from an administrator, after a while.
    fn end_removed(&mut self, id: NodeId) {
        self.marks.hit_if(Mark::RemovedRuns, self.machines[&id].is_up());
        if self.chance.fault.one_in(20) {
            self.end_process(id);
            self.at(id).life = Life::Out;
        }
    }

    /// A machine without a usable disk: its old self is removed first, then it joins anew.
    fn replace(&mut self, id: NodeId) {
        let raft_id = self.at(id).raft_id;
        match self.churn.member(id) {
            Some(member) if Some(member) == raft_id => {
                if self.churn.open.len() < 2 {
                    self.ask_to_remove(id);
                }
            }
            Some(_) => {}
            // It was never a member: a spare, which joins when it is told to.
            None if raft_id.is_none() => {}
            None => self.empty_disk(id),
        }
    }

    pub(super) fn change_members(&mut self, knob: Knob) {
        match knob {
            Knob::Join => {
                let spare = |m: &&super::machine::Machine| {
                    matches!(m.life, Life::Out) && m.raft_id.is_none()
                };
                let id = self.machines.values().find(spare).map(|m| m.id);
                id.into_iter().for_each(|id| self.empty_disk(id));
            }
            Knob::Remove => {
                let members = self.churn.newest.as_ref().map_or(Vec::new(), |m| m.members.clone());
                let at = self.chance.fault.below(members.len() as u64) as usize;
                let voters = self.churn.newest.as_ref().map_or(0, |m| m.conf_state.voters.len());
                // The last voter is asked for, too: that must be refused.
                let may = |m: &&Member| voters == 1 || self.may_remove(m.node_id);
                if let Some(member) = members.get(at).filter(may).cloned() {
                    self.ask_to_remove(member.node_id);
                }
            }
            Knob::RemoveLeader => {
                if let Some(id) = self.leader().filter(|id| self.may_remove(*id)) {
                    self.ask_to_remove(id);
                }
            }
            Knob::Move => self.ask_to_move(),
            _ => self.ask_to_transfer(),
        }
    }

    /// An administrator does not remove a machine while another one's disk is lost.
    fn may_remove(&self, id: NodeId) -> bool {
        !self.churn.is_busy() && self.can_remove(id)
    }

    fn open(&mut self, node: NodeId, request: Request, event: Event) {
        self.churn.count += 1;
        let number = self.churn.count;
        self.churn.open.insert(number, Pending { node, request });
        self.churn.last_asked = self.now();
        self.request(node, event);
        self.schedule.after(DEADLINE, What::AdminDeadline(number));
    }

    fn ask_to_join(&mut self, id: NodeId) {
        // It asks anybody, and follows hints.
        let Some(node) = self.any_up().and_then(|first| self.led_to(first)) else { return };
        let (reply, waiter) = reply(None);
        let incarnation = self.at(id).incarnation();
        let addr = self.churn.addr(id);
        let change = Change::Join { node_id: id, incarnation, addr, voter: true };
        self.open(node, Request::Join(id, waiter), Event::Change { change, reply });
    }

    fn ask_to_remove(&mut self, id: NodeId) {
        let Some(node) = self.any_up() else { return };
        let (reply, waiter) = reply(None);
        let leader = self.at(id).leads();
        let change = Change::Remove { node_id: id };
        self.stats.changes += 1;
        self.note(|| format!("an admin asks node {node} to remove node {id}"));
        let request = Request::Remove { leader, waiter };
        self.open(node, request, Event::Change { change, reply });
    }

    /// A machine gets another address. With address books it starts anew, and nobody finds it
    /// until the others were told.
    fn ask_to_move(&mut self) {
        let (Some(node), Some(id)) = (self.any_up(), self.any_up()) else { return };
        // A majority that moves at once cannot find itself, as the documents say: one at a time,
        // and the next one when all have it on their disks where the last one is.
        if self.plan.get(Knob::AddressBook) > 0 && !self.may_move(id) {
            return;
        }
        *self.churn.moves.entry(id).or_default() += 1;
        if self.plan.get(Knob::AddressBook) > 0 {
            self.crash(id, Crash::Kill);
        } else {
            self.announce(node, id);
        }
    }

    fn may_move(&self, id: NodeId) -> bool {
        let Some(newest) = self.churn.newest().filter(|m| m.by_node(id).is_some()) else {
            return false;
        };
        let right = |m: &Member| m.addr == self.churn.addr(m.node_id);
        let knows = |m: &Member| {
            let record = self.oracle.durable(m.node_id).membership;
            let record = record.and_then(|r| Membership::decode(r).ok());
            record.is_some_and(|known| known.members.iter().all(right))
        };
        newest.members.iter().all(|m| right(m) && knows(m))
    }

    /// Members that are elsewhere than the newest membership says.
    fn moved(&self) -> Vec<(NodeId, RaftId)> {
        let Some(newest) = self.churn.newest() else { return Vec::new() };
        let wrong = |m: &&Member| m.addr != self.churn.addr(m.node_id);
        newest.members.iter().filter(wrong).map(|m| (m.node_id, m.raft_id)).collect()
    }

    /// Nodes that have moved tell the leader, as often as it takes.
    fn announce_moves(&mut self) {
        if self.plan.get(Knob::AddressBook) == 0 {
            return;
        }
        let Some(leader) = self.leader() else { return };
        for (id, raft_id) in self.moved() {
            let asks = |p: &Pending| p.node == leader && matches!(p.request, Request::Move(_));
            let asked = self.churn.open.values().any(asks);
            let runs = self.at(id).is_up() && self.at(id).raft_id == Some(raft_id);
            if runs && !asked {
                self.announce(leader, id);
            }
        }
    }

    fn announce(&mut self, node: NodeId, id: NodeId) {
        let addr = self.churn.addr(id);
        let (reply, waiter) = reply(None);
        let incarnation = self.at(id).incarnation();
        let change = Change::Update { node_id: id, incarnation, addr };
        self.open(node, Request::Move(waiter), Event::Change { change, reply });
    }

    fn ask_to_transfer(&mut self) {
        let Some(node) = self.any_up() else { return };
        let to = self.any_up().filter(|_| self.chance.fault.below(3) > 0);
        let (reply, waiter) = reply(None);
        self.open(node, Request::Transfer(waiter), Event::Transfer { to, reply });
    }

    /// Takes the answers that a node has given.
    pub(super) fn collect_admin(&mut self, id: NodeId) {
        let mut answered = Vec::new();
        for (number, p) in self.churn.open.iter_mut().filter(|(_, p)| p.node == id) {
            let answer = match &mut p.request {
                Request::Join(_, w) | Request::Move(w) => w.answer(),
                Request::Remove { waiter, .. } => waiter.answer(),
                Request::Transfer(w) => w.answer().map(|r| r.map(|()| Changed::done(&nobody()))),
            };
            answered.extend(answer.map(|a| (*number, a)));
        }
        for (number, answer) in answered {
            if let Some(p) = self.churn.open.remove(&number) {
                self.admin_is_told(p.request, answer);
            }
        }
    }

    fn admin_is_told(&mut self, request: Request, answer: Result<Changed>) {
        if let Err(e) = &answer {
            let last = e.to_string().contains("last voter");
            self.marks.hit_if(Mark::LastVoter, last);
            self.note(|| format!("an admin is told: {e}"));
        }
        match (request, answer) {
            (Request::Join(id, _), Ok(Changed { membership, .. })) => self.admit(id, &membership),
            (Request::Remove { leader: true, .. }, Ok(_)) => self.hit(Mark::LeaderRemoved),
            (Request::Transfer(_), Ok(_)) => self.hit(Mark::TransferDone),
            (_, _) => {}
        }
    }

    pub(super) fn admin_gives_up(&mut self, number: u64) {
        self.churn.open.remove(&number);
    }

    /// The cluster has given a joiner its raft id.
    fn admit(&mut self, id: NodeId, membership: &Membership) {
        let incarnation = self.at(id).incarnation();
        let member = membership.by_node(id).filter(|m| m.incarnation == incarnation);
        let (Some(member), Life::Joining) = (member, &self.at(id).life) else { return };
        let raft_id = member.raft_id;
        self.hit(Mark::Joined);
        self.stats.changes += 1;
        let again = self.at(id).generation > 1 || id <= self.plan.get(Knob::Nodes);
        self.marks.hit_if(Mark::Replaced, again);
        self.at(id).raft_id = Some(raft_id);
        self.at(id).life = Life::Down;
        self.net.homes.insert(raft_id, id);
        self.nemesis.new_disk(id);
        self.boot(id);
    }
}

fn nobody() -> Membership {
    Membership {
        cluster_id: super::life::CLUSTER,
        index: 0,
        conf_state: crate::types::ConfState::default(),
        members: Vec::new(),
        next_raft_id: 0,
    }
}
