//! Members that come and go: the requests of an administrator, through any node, and their answers.

use std::collections::BTreeMap;

use super::life::nobody;
use super::machine::{Life, addr};
use super::marks::Mark;
use super::schedule::{SECOND, Time};
use super::world::{What, World};
use crate::error::Result;
use crate::node::event::{Change, Changed, Event};
use crate::reply::{Waiter, reply};
use crate::types::{Membership, NodeId, Progress, RaftId};

const DEADLINE: u64 = 5 * SECOND;

/// What an administrator asks for.
#[derive(Clone, Debug)]
pub(super) enum Request {
    /// A machine with an empty disk is to be let in.
    Join(NodeId),
    /// Likewise, and its old process still runs, on this disk.
    TooEarly(NodeId, u64),
    /// Anything else; `leader`: it is about whoever leads.
    Change {
        change: Change,
        leader: bool,
    },
    Move,
    Transfer,
}

enum Answer {
    Changed(Waiter<Changed>),
    Transferred(Waiter<()>),
}

struct Pending {
    node: NodeId,
    request: Request,
    answer: Answer,
}

/// A change that is asked for again until it is in force.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub(super) change: Change,
    pub(super) until: Time,
}

#[derive(Default)]
pub(super) struct Churn {
    /// The newest membership that anybody has applied.
    newest: Option<Membership>,
    open: BTreeMap<u64, Pending>,
    count: u64,
    /// When a change was last asked for of which nobody knows whether it will happen.
    last_doubt: Time,
    /// Times that each machine has moved.
    pub(super) moves: BTreeMap<NodeId, u64>,
    /// Where machines listen that have moved.
    pub(super) addrs: BTreeMap<NodeId, String>,
    pub(super) wishes: Vec<Wish>,
    /// Machines that were added, and when they start.
    pub(super) starts: Vec<(Time, NodeId)>,
    /// Machines that have exchanged their addresses, and nobody has recorded it yet.
    pub(super) swaps: Vec<(NodeId, NodeId)>,
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
        self.addrs.get(&id).cloned().unwrap_or_else(|| addr(id, 0))
    }

    /// A machine gets an address that nobody had before.
    pub(super) fn moves(&mut self, id: NodeId) {
        let count = self.moves.entry(id).or_default();
        *count += 1;
        self.addrs.insert(id, addr(id, *count));
    }

    /// What a person tells a machine that has moved: where the members are.
    pub(super) fn seeds(&self, id: NodeId) -> Vec<String> {
        let told = self.addrs.get(&id).and(self.newest.as_ref());
        told.iter().flat_map(|m| &m.members).map(|member| self.addr(member.node_id)).collect()
    }

    /// Whether a change may be under way.
    pub(super) fn is_busy(&self) -> bool {
        !self.open.is_empty() || !self.wishes.is_empty()
    }

    pub(super) fn last_doubt(&self) -> Time {
        self.last_doubt
    }

    /// Whether an administrator waits for a node's answer.
    pub(super) fn asks(&self, id: NodeId) -> bool {
        self.open.values().any(|p| p.node == id)
    }

    pub(super) fn joins(&self, id: NodeId) -> bool {
        self.open.values().any(|p| matches!(p.request, Request::Join(who) if who == id))
    }

    pub(super) fn asks_for(&self, wanted: &Change) -> bool {
        let is = |p: &Pending| match &p.request {
            Request::Change { change, .. } => change == wanted,
            Request::Join(_) | Request::TooEarly(..) | Request::Move | Request::Transfer => false,
        };
        self.open.values().any(is)
    }

    pub(super) fn moves_through(&self, node: NodeId) -> bool {
        self.open.values().any(|p| p.node == node && matches!(p.request, Request::Move))
    }

    /// How many requests are open.
    pub(super) fn open(&self) -> usize {
        self.open.len()
    }

    /// The raft id under which a machine is a member.
    pub(super) fn member(&self, id: NodeId) -> Option<RaftId> {
        self.newest.as_ref()?.by_node(id).map(|m| m.raft_id)
    }
}

impl World {
    fn open(&mut self, node: NodeId, request: Request, answer: Answer, event: Event) {
        self.churn.count += 1;
        let number = self.churn.count;
        self.note(|| format!("an admin asks node {node}: {request:?}"));
        self.churn.open.insert(number, Pending { node, request, answer });
        self.request(node, event);
        self.schedule.after(DEADLINE, What::AdminDeadline(number));
    }

    /// Asks a node for a change.
    pub(super) fn ask_change(&mut self, node: NodeId, request: Request, change: Change) {
        self.note_wish(&change);
        let (reply, waiter) = reply(None);
        self.open(node, request, Answer::Changed(waiter), Event::Change { change, reply });
    }

    /// Asks any node for a change.
    pub(super) fn ask_anybody(&mut self, change: Change, leader: bool) {
        let Some(node) = self.any_up() else { return };
        let request = Request::Change { change: change.clone(), leader };
        self.ask_change(node, request, change);
    }

    pub(super) fn ask_to_transfer(&mut self) {
        let Some(node) = self.any_up() else { return };
        let to = self.any_up().filter(|_| self.chance.fault.below(3) > 0);
        let (reply, waiter) = reply(None);
        let event = Event::Transfer { to, reply };
        self.open(node, Request::Transfer, Answer::Transferred(waiter), event);
    }

    /// Who is to vote, or to go: what happens to others happens by itself.
    fn note_wish(&mut self, change: &Change) {
        let ledger = &mut self.oracle.ledger;
        match change {
            Change::Promote { node_id } | Change::AddVoter { node_id, .. } => {
                ledger.asks_to_promote(*node_id);
            }
            Change::Remove { node_id } | Change::Leave { node_id, .. } => {
                ledger.asks_to_remove(*node_id);
            }
            Change::Replace { old, new } => {
                ledger.asks_to_remove(*old);
                ledger.asks_to_promote(*new);
            }
            Change::Set { voters, learners } => {
                voters.iter().for_each(|id| ledger.asks_to_promote(*id));
                let stays = |id: &&NodeId| voters.contains(id) || learners.contains(id);
                let go = self.machines.keys().filter(|id| !stays(id));
                go.for_each(|id| ledger.asks_to_remove(*id));
            }
            Change::Join { .. }
            | Change::Update { .. }
            | Change::AddLearner { .. }
            | Change::Demote { .. }
            | Change::Describe { .. } => {}
        }
    }

    /// Takes the answers that a node has given.
    pub(super) fn collect_admin(&mut self, id: NodeId) {
        let mut answered = Vec::new();
        for (number, p) in self.churn.open.iter_mut().filter(|(_, p)| p.node == id) {
            let answer = match &mut p.answer {
                Answer::Changed(w) => w.answer(),
                Answer::Transferred(w) => w.answer().map(|r| r.map(|()| Changed::done(&nobody()))),
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
        match &answer {
            Err(e) => {
                let last = e.to_string().contains("last voter");
                self.marks.hit_if(Mark::LastVoter, last);
                if e.outcome_unknown() {
                    self.churn.last_doubt = self.now();
                }
                self.note(|| format!("an admin is told: {e}"));
            }
            Ok(changed) => {
                self.note(|| format!("an admin is told: {:?} of {request:?}", changed.progress));
            }
        }
        let told = answer.as_ref().ok().map(|changed| &changed.membership);
        let joint = told.is_some_and(Membership::is_joint);
        assert!(!joint, "R17: {request:?} is answered, and its joint configuration is not left");
        match (request, answer) {
            (Request::Join(id), Ok(Changed { membership, .. })) => self.admit(id, &membership),
            (Request::TooEarly(id, generation), answer) => {
                let refused = answer.is_err_and(|e| e.to_string().contains("is a member already"));
                self.marks.hit_if(Mark::RefusedAlive, refused);
                self.end_old_self(id, generation);
            }
            (Request::Change { change, leader }, Ok(changed)) => {
                self.change_is_made(&change, leader, &changed);
            }
            (Request::Transfer, Ok(_)) => self.hit(Mark::TransferDone),
            (_, _) => {}
        }
    }

    fn change_is_made(&mut self, change: &Change, leader: bool, changed: &Changed) {
        if changed.progress != Progress::Done {
            return;
        }
        self.churn.wishes.retain(|wish| wish.change != *change);
        match change {
            Change::Remove { .. } => self.marks.hit_if(Mark::LeaderRemoved, leader),
            Change::Demote { .. } => self.marks.hit_if(Mark::LeaderDemoted, leader),
            Change::Replace { .. } => self.hit(Mark::ReplacedJointly),
            Change::Set { .. } => self.hit(Mark::MembersSet),
            Change::AddLearner { node_id, .. } | Change::AddVoter { node_id, .. } => {
                self.start_added(*node_id);
            }
            Change::Join { .. }
            | Change::Update { .. }
            | Change::Promote { .. }
            | Change::Leave { .. }
            | Change::Describe { .. } => {}
        }
    }

    pub(super) fn admin_gives_up(&mut self, number: u64) {
        let Some(p) = self.churn.open.remove(&number) else { return };
        self.churn.last_doubt = self.now();
        if let Request::TooEarly(id, generation) = p.request {
            self.end_old_self(id, generation);
        }
    }

    /// The cluster has given a joiner its raft id.
    fn admit(&mut self, id: NodeId, membership: &Membership) {
        let incarnation = self.at(id).incarnation();
        let member = membership.by_incarnation(id, incarnation);
        let (Some(member), Life::Joining) = (member, &self.at(id).life) else { return };
        let raft_id = member.raft_id;
        self.hit(Mark::Joined);
        let again = self.at(id).generation > 1 || id <= self.plan.get(super::plan::Knob::Nodes);
        self.marks.hit_if(Mark::Replaced, again);
        let m = self.at(id);
        m.raft_id = Some(raft_id);
        m.life = Life::Down;
        m.lost = false;
        self.net.homes.insert(raft_id, id);
        self.nemesis.new_disk(id);
        self.boot(id);
    }
}
