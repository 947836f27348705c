//! A world of nodes that found, in which any message may be late, lost or doubled, and any node
//! may crash, and lose its disk, between any two steps. The steps are the real ones.

use std::fmt;

use super::super::decide::{Answer, Answers, Candidate, Step, decide, may_agree, proposer, record};
use super::super::terms::Terms;
use super::addr;
use crate::types::{ClusterId, Incarnation, Membership, NodeId};

/// A rule that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    Nothing,
    /// The lowest of those that are there founds although one is missing.
    OneMissing,
    /// An answer is believed although its asker has agreed to something since it asked.
    OldAnswers,
    /// A node agrees to anything, whatever it has agreed to.
    AnyGroup,
    /// A proposer founds before all have agreed.
    Unagreed,
}

/// What a node has on its disk.
#[derive(Clone, Debug)]
enum Disk {
    Empty(Option<Membership>),
    Founder(Membership),
    Joined(ClusterId),
}

#[derive(Clone, Debug)]
struct Node {
    id: NodeId,
    incarnation: Incarnation,
    terms: Terms,
    disk: Disk,
    up: bool,
    /// The answers of the round that is open.
    round: Option<Answers>,
    /// It asks to join until a leader lets it in, and founds no more in this run.
    joining: bool,
}

#[derive(Clone, Debug)]
enum Message {
    Ask { from: usize, to: usize, counts: bool, asker: Candidate, propose: Option<Membership> },
    Reply { from: usize, to: usize, counts: bool, answer: Answer },
}

impl Message {
    /// Whose question it is or answers.
    fn asker(&self) -> usize {
        match self {
            Self::Ask { from, .. } => *from,
            Self::Reply { to, .. } => *to,
        }
    }

    fn counts(&mut self) -> &mut bool {
        match self {
            Self::Ask { counts, .. } | Self::Reply { counts, .. } => counts,
        }
    }
}

/// One thing that may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Ask(usize),
    Deliver(usize),
    /// Delivered, and once more later.
    Double(usize),
    Lose(usize),
    Decide(usize),
    /// A leader lets it in, if there is one.
    Enter(usize),
    Crash(usize),
    Start(usize),
    /// It crashes, and is started with an empty disk.
    Wipe(usize),
    /// The same, with another id.
    Rename(usize),
}

/// See the module.
#[derive(Clone)]
pub(super) struct World {
    nodes: Vec<Node>,
    net: Vec<Message>,
    broken: Broken,
    /// Cluster ids and incarnations given out.
    pub(super) given: u128,
    pub(super) crashes: usize,
    pub(super) wipes: usize,
    pub(super) founded: usize,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?} {} {}", self.nodes, self.net, self.crashes, self.wipes)
    }
}

impl World {
    /// Nodes 1 to `count` with these seeds, or all of them listed.
    pub(super) fn new(count: u64, expect: Option<(usize, u64)>, broken: Broken) -> Self {
        let list: Vec<String> = (1..=expect.map_or(count, |e| e.1)).map(addr).collect();
        let node = |id: NodeId| Node {
            id,
            incarnation: Incarnation::from_u128(u128::from(id)),
            terms: Terms::new(&addr(id), &list, expect.map(|e| e.0)).unwrap(),
            disk: Disk::Empty(None),
            up: true,
            round: None,
            joining: false,
        };
        Self {
            nodes: (1..=count).map(node).collect(),
            net: Vec::new(),
            broken,
            given: 1000,
            crashes: 0,
            wipes: 0,
            founded: 0,
        }
    }

    /// What may happen now; faults only where the limits allow.
    pub(super) fn events(&self, crashes: usize, wipes: usize, doubles: bool) -> Vec<Event> {
        let mut events = Vec::new();
        for (i, node) in self.nodes.iter().enumerate() {
            let empty = node.up && matches!(node.disk, Disk::Empty(_));
            let searching = empty && !node.joining;
            if empty && node.joining && self.leader().is_some() {
                events.push(Event::Enter(i));
            }
            match &node.round {
                Some(_) if searching => events.push(Event::Decide(i)),
                None if searching => events.push(Event::Ask(i)),
                Some(_) | None => {}
            }
            if !node.up {
                events.push(Event::Start(i));
            } else if self.crashes < crashes {
                events.push(Event::Crash(i));
            }
            if self.wipes < wipes {
                events.extend([Event::Wipe(i), Event::Rename(i)]);
            }
        }
        for (k, message) in self.net.iter().enumerate() {
            let counts = match message {
                // A question that nobody waits for any more may still propose something.
                Message::Ask { .. } => true,
                Message::Reply { counts, .. } => *counts,
            };
            if counts {
                events.push(Event::Deliver(k));
            }
            if counts && doubles {
                events.extend([Event::Double(k), Event::Lose(k)]);
            }
        }
        events
    }

    pub(super) fn happen(&mut self, event: Event) {
        match event {
            Event::Ask(i) => self.ask(i),
            Event::Deliver(k) => {
                let message = self.net.remove(k);
                self.deliver(message);
            }
            Event::Double(k) => self.deliver(self.net[k].clone()),
            Event::Lose(k) => drop(self.net.remove(k)),
            Event::Decide(i) => self.decide(i),
            Event::Enter(i) => {
                if let Some(cluster) = self.leader() {
                    self.nodes[i].disk = Disk::Joined(cluster);
                }
            }
            Event::Crash(i) => {
                self.crashes += 1;
                self.end_process(i);
            }
            Event::Start(i) => self.nodes[i].up = true,
            Event::Wipe(i) | Event::Rename(i) => {
                self.wipes += 1;
                self.end_process(i);
                let incarnation = self.give();
                let node = &mut self.nodes[i];
                (node.incarnation, node.disk) =
                    (Incarnation::from_u128(incarnation), Disk::Empty(None));
                node.up = true;
                if matches!(event, Event::Rename(_)) {
                    // Before or behind all others.
                    let behind = 100 + self.wipes as u64;
                    let before = i as u64 % 2 == 1 && self.nodes.iter().all(|n| n.id > 0);
                    let taken = self.nodes.iter().any(|n| n.id == 0);
                    self.nodes[i].id = if before && !taken { 0 } else { behind };
                }
            }
        }
        // What counts for nothing any more is gone.
        self.net.retain(|m| !matches!(m, Message::Reply { counts: false, .. }));
    }

    fn give(&mut self) -> u128 {
        self.given += 1;
        self.given
    }

    fn end_process(&mut self, i: usize) {
        (self.nodes[i].up, self.nodes[i].joining) = (false, false);
        self.close_round(i);
    }

    /// Whatever was asked so far is not waited for any more.
    fn close_round(&mut self, i: usize) {
        self.nodes[i].round = None;
        for message in self.net.iter_mut().filter(|m| m.asker() == i) {
            *message.counts() = false;
        }
    }

    fn me(&self, i: usize) -> Option<Candidate> {
        let node = &self.nodes[i];
        let Disk::Empty(agreed) = &node.disk else { return None };
        if node.joining {
            return None;
        }
        Some(Candidate {
            node_id: node.id,
            incarnation: node.incarnation,
            addr: addr(i as u64 + 1),
            terms: node.terms.clone(),
            agreed: agreed.clone(),
            heard: Vec::new(),
        })
    }

    fn ask(&mut self, i: usize) {
        let Some(me) = self.me(i) else { return };
        self.close_round(i);
        let own = |r: &&Membership| proposer(r).is_some_and(|p| p.incarnation == me.incarnation);
        let propose = me.agreed.as_ref().filter(own).cloned();
        for to in (0..self.nodes.len()).filter(|to| *to != i) {
            let (asker, propose) = (me.clone(), propose.clone());
            self.net.push(Message::Ask { from: i, to, counts: true, asker, propose });
        }
        self.nodes[i].round = Some(Answers::new());
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Ask { from, to, counts, asker, propose } if self.nodes[to].up => {
                if let (Some(me), Some(proposed)) = (self.me(to), propose) {
                    let judged = match self.broken {
                        Broken::AnyGroup => {
                            may_agree(&Candidate { agreed: None, ..me.clone() }, &asker, &proposed)
                        }
                        _ => may_agree(&me, &asker, &proposed),
                    };
                    if judged.is_ok() && me.agreed.as_ref() != Some(&proposed) {
                        self.agree(to, Some(proposed));
                    }
                }
                let answer = self.answer(to);
                self.net.push(Message::Reply { from: to, to: from, counts, answer });
            }
            Message::Reply { from, to, counts: true, answer } => {
                if let Some(round) = &mut self.nodes[to].round {
                    round.insert(addr(from as u64 + 1), answer);
                }
            }
            Message::Ask { .. } | Message::Reply { .. } => {}
        }
    }

    fn answer(&self, i: usize) -> Answer {
        let node_id = self.nodes[i].id;
        match &self.nodes[i].disk {
            Disk::Empty(_) => self.me(i).map_or(Answer::Other, Answer::Empty),
            Disk::Founder(r) => {
                // Once a majority has it in force, the membership may have moved on.
                let index = if self.leads(r) && i.is_multiple_of(2) { 7 } else { r.index };
                let membership = Some(Membership { index, ..r.clone() });
                Answer::Member { node_id, cluster: r.cluster_id, membership }
            }
            Disk::Joined(cluster) => {
                Answer::Member { node_id, cluster: *cluster, membership: None }
            }
        }
    }

    /// Whether a majority of the founding members has a record in force.
    fn leads(&self, r: &Membership) -> bool {
        let named = |n: &Node| r.members.iter().any(|m| m.incarnation == n.incarnation);
        let in_force = |n: &&Node| match &n.disk {
            Disk::Founder(other) => other == r,
            // It came back by the leader, as the voter that it is.
            Disk::Joined(cluster) => *cluster == r.cluster_id && named(n),
            Disk::Empty(_) => false,
        };
        self.nodes.iter().filter(in_force).count() > r.members.len() / 2
    }

    /// The cluster that can have a leader.
    fn leader(&self) -> Option<ClusterId> {
        self.nodes.iter().find_map(|node| match &node.disk {
            Disk::Founder(r) if self.leads(r) => Some(r.cluster_id),
            Disk::Founder(_) | Disk::Joined(_) | Disk::Empty(_) => None,
        })
    }

    fn agree(&mut self, i: usize, to: Option<Membership>) {
        self.nodes[i].disk = Disk::Empty(to);
        if self.broken != Broken::OldAnswers {
            self.close_round(i);
        }
    }

    fn decide(&mut self, i: usize) {
        let (Some(me), Some(answers)) = (self.me(i), self.nodes[i].round.clone()) else { return };
        self.close_round(i);
        let fresh = ClusterId::from_u128(self.given + 1);
        let step = match (self.broken, decide(&me, &answers, fresh)) {
            (Broken::OneMissing, Step::Wait(_)) => without_one(&me, &answers, fresh),
            (Broken::Unagreed, Step::Propose(r)) => Step::Found(r),
            (_, step) => step,
        };
        match step {
            Step::Adopt(r) => self.nodes[i].disk = Disk::Founder(r),
            Step::Found(r) => {
                self.founded += 1;
                self.nodes[i].disk = Disk::Founder(r);
            }
            Step::Join(_) => self.nodes[i].joining = true,
            Step::Propose(r) => {
                self.give();
                self.agree(i, Some(r));
            }
            Step::Withdraw => self.agree(i, None),
            Step::Wait(_) => {}
            // It ends, and is started again.
            Step::Refuse(_) => {}
        }
    }

    /// Messages on their way.
    pub(super) fn on_its_way(&self) -> usize {
        self.net.len()
    }

    /// The clusters that nodes belong to, by what is on their disks now.
    pub(super) fn clusters(&self) -> Vec<ClusterId> {
        let of = |node: &Node| match &node.disk {
            Disk::Empty(_) => None,
            Disk::Founder(r) => Some(r.cluster_id),
            Disk::Joined(cluster) => Some(*cluster),
        };
        let mut clusters: Vec<_> = self.nodes.iter().filter_map(of).collect();
        clusters.sort();
        clusters.dedup();
        clusters
    }

    /// Everything heals: every node runs, and is heard by the others. Whether all come to belong
    /// to a cluster, or wait for the leader of one whose majority has lost its disks.
    pub(super) fn settles(&mut self) -> bool {
        self.net.clear();
        for i in 0..self.nodes.len() {
            self.end_process(i);
            self.nodes[i].up = true;
        }
        for _ in 0..20 {
            for i in 0..self.nodes.len() {
                self.ask(i);
                while !self.net.is_empty() {
                    let message = self.net.remove(0);
                    self.deliver(message);
                }
                self.decide(i);
                if self.nodes[i].joining {
                    self.happen(Event::Enter(i));
                }
            }
            if self.nodes.iter().all(|n| !matches!(n.disk, Disk::Empty(_))) {
                return true;
            }
        }
        let exists = self.nodes.iter().any(|n| !matches!(n.disk, Disk::Empty(_)));
        let founders = self.nodes[0].terms.count();
        exists && self.leader().is_none() && self.wipes >= founders - founders / 2
    }
}

/// What a node does that founds although one is missing.
fn without_one(me: &Candidate, answers: &Answers, fresh: ClusterId) -> Step {
    let empty = answers.values().filter_map(|answer| match answer {
        Answer::Empty(c) => Some(c),
        Answer::Member { .. } | Answer::Other => None,
    });
    let mut here: Vec<&Candidate> = empty.chain([me]).collect();
    here.sort_by_key(|c| c.node_id);
    if here.len() + 1 == me.terms.addrs.len() && here[0].node_id == me.node_id {
        let founders = here.iter().map(|c| (c.node_id, c.incarnation, c.addr.as_str()));
        return Step::Found(record(fresh, founders));
    }
    Step::Wait(String::new())
}
