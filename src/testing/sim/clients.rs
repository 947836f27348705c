//! The clients: one operation at a time each, through any node, and what became of each.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use super::marks::Mark;
use super::plan::Knob;
use super::schedule::{MS, SECOND, Time};
use super::world::{What, World};
use crate::error::{Error, Outcome, Result};
use crate::node::event::{Applied, Event, Freshness, Proposal, Read};
use crate::reply::{Waiter, reply};
use crate::testing::text::shown;
use crate::types::{Index, NodeId};

/// A long deadline: longer than a healed cluster may take to come to rest.
const LONG: Time = 180 * SECOND;

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    Write(Bytes),
    Read { query: Vec<u8>, freshness: Freshness },
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Came {
    Ok(Applied),
    Rejected(String),
    NotApplied(String),
    Unknown(String),
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write(command) => write!(f, "writes {}", shown(command)),
            Self::Read { query, freshness } => write!(f, "reads {} ({freshness:?})", shown(query)),
        }
    }
}

impl fmt::Display for Came {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok(applied) => write!(f, "{} at index {}", shown(&applied.data), applied.index),
            Self::Rejected(reason) => write!(f, "rejected: {reason}"),
            Self::NotApplied(reason) => write!(f, "not applied: {reason}"),
            Self::Unknown(reason) => write!(f, "unknown: {reason}"),
        }
    }
}

/// An operation that has come to an end.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) client: usize,
    pub(super) ask: Ask,
    pub(super) invoked: Time,
    /// Numbers of the events in which it began and ended: finer than time.
    pub(super) began: u64,
    pub(super) ended: u64,
    pub(super) came: Came,
}

struct Asked {
    client: usize,
    /// It came in a burst: its client waits for nothing.
    burst: bool,
    node: NodeId,
    ask: Ask,
    invoked: Time,
    began: u64,
}

struct Op {
    asked: Asked,
    waiter: Waiter<Applied>,
}

pub(super) struct Clients {
    open: BTreeMap<u64, Op>,
    count: u64,
    /// The highest index that each client has seen.
    seen: Vec<Index>,
    pub(super) done: Vec<Record>,
    /// How many had come to an end when everything was healed.
    pub(super) before_healing: usize,
}

impl Clients {
    pub(super) fn new(count: usize) -> Self {
        Self {
            open: BTreeMap::new(),
            count: 0,
            seen: vec![0; count],
            done: Vec::new(),
            before_healing: 0,
        }
    }

    /// Whether a client waits for a node's answer.
    pub(super) fn asks(&self, id: NodeId) -> bool {
        self.open.values().any(|op| op.asked.node == id)
    }

    pub(super) fn numbers(&self) -> Vec<u64> {
        self.open.keys().copied().collect()
    }

    /// What is asked and not answered.
    pub(super) fn waits(&self) -> Vec<(NodeId, &Ask)> {
        self.open.values().map(|op| (op.asked.node, &op.asked.ask)).collect()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.open.is_empty()
    }
}

impl World {
    pub(super) fn start_clients(&mut self) {
        for client in 0..self.clients.seen.len() {
            let delay = self.think();
            self.schedule.after(delay, What::Client(client));
        }
    }

    fn think(&mut self) -> Time {
        Self::around(&mut self.chance.client, self.plan.get(Knob::ThinkMs) * MS)
    }

    pub(super) fn client_acts(&mut self, client: usize) {
        if self.healed {
            return;
        }
        let up = self.up();
        let Some(node) = up.get(self.chance.client.below(up.len() as u64) as usize).copied() else {
            let delay = self.think();
            self.schedule.after(delay, What::Client(client));
            return;
        };
        let rng = &mut self.chance.client;
        let ask = if rng.below(100) < self.plan.get(Knob::Reads) {
            let freshness = match rng.below(8) {
                0 => Freshness::Stale,
                1 => Freshness::AtLeast(self.clients.seen[client]),
                _ => Freshness::Linearizable,
            };
            Ask::Read { query: (self.subject.query)(rng, self.clients.count), freshness }
        } else {
            Ask::Write((self.subject.command)(rng, self.clients.count).into())
        };
        self.ask(client, node, ask, false);
    }

    /// Many proposals at once, at one node.
    pub(super) fn burst(&mut self, node: NodeId, count: u64) {
        for _ in 0..count {
            let command = (self.subject.command)(&mut self.chance.client, self.clients.count);
            self.ask(0, node, Ask::Write(command.into()), true);
        }
    }

    /// A write of the second phase.
    pub(super) fn fresh_write(&mut self, node: NodeId) {
        let command = (self.subject.command)(&mut self.chance.client, self.clients.count);
        self.ask(0, node, Ask::Write(command.into()), true);
    }

    /// A write and a linearizable read of a cluster at rest; how many they are.
    pub(super) fn fresh_operations(&mut self, node: NodeId) -> usize {
        let query = (self.subject.query)(&mut self.chance.client, self.clients.count);
        let freshness = Freshness::Linearizable;
        let command = (self.subject.command)(&mut self.chance.client, self.clients.count);
        let asks = [Ask::Write(command.into()), Ask::Read { query, freshness }];
        let count = asks.len();
        asks.into_iter().for_each(|ask| self.ask_until(0, node, ask, true, LONG));
        count
    }

    fn ask(&mut self, client: usize, node: NodeId, ask: Ask, burst: bool) {
        let timeout = self.deadline();
        self.ask_until(client, node, ask, burst, timeout);
    }

    fn ask_until(&mut self, client: usize, node: NodeId, ask: Ask, burst: bool, timeout: Time) {
        let (reply, waiter) = reply(None);
        let event = match &ask {
            Ask::Write(data) => Event::Propose(Proposal { data: data.clone(), reply }),
            Ask::Read { query, freshness } => {
                Event::Read(Read { query: Some(query.clone()), freshness: *freshness, reply })
            }
        };
        self.clients.count += 1;
        let number = self.clients.count;
        let invoked = self.now();
        let began = self.stats.events;
        let asked = Asked { client, burst, node, ask, invoked, began };
        self.clients.open.insert(number, Op { asked, waiter });
        self.stats.operations += 1;
        self.request(node, event);
        self.schedule.after(timeout, What::ClientDeadline(number));
    }

    /// How long a client waits: some for so long that only the node itself can end their wait.
    fn deadline(&mut self) -> Time {
        let long = self.plan.get(Knob::LongDeadlines);
        if long > 0 && self.chance.client.below(100) < long {
            return LONG + self.chance.client.below(LONG);
        }
        self.plan.get(Knob::TimeoutMs) * MS
    }

    /// Takes the answers that a node has given.
    pub(super) fn collect_ops(&mut self, id: NodeId) {
        let mut answers = Vec::new();
        for (number, op) in self.clients.open.iter_mut().filter(|(_, op)| op.asked.node == id) {
            answers.extend(op.waiter.answer().map(|a| (*number, a)));
        }
        for (number, answer) in answers {
            if let Some(op) = self.clients.open.remove(&number) {
                self.finish(op.asked, answer);
            }
        }
    }

    pub(super) fn client_gives_up(&mut self, number: u64) {
        let Some(op) = self.clients.open.remove(&number) else { return };
        let timeout = Duration::from_millis(self.plan.get(Knob::TimeoutMs));
        let answer = op.waiter.give_up(timeout);
        self.finish(op.asked, answer);
    }

    fn finish(&mut self, op: Asked, answer: Result<Applied>) {
        let leads = self.machines.get(&op.node).is_some_and(|m| m.leads());
        self.mark_answer(&op.ask, &answer, leads);
        let long = self.now() - op.invoked > 10 * SECOND;
        self.marks.hit_if(Mark::LongWait, long && answer.is_ok());
        let covered = answer.as_ref().is_err_and(|e| e.to_string().contains("snapshot"));
        self.marks.hit_if(Mark::CoveredWait, covered);
        if let Ok(applied) = &answer {
            let seen = &mut self.clients.seen[op.client];
            *seen = applied.index.max(*seen);
        }
        let came = match answer {
            Ok(applied) => Came::Ok(applied),
            Err(Error::Rejected(reason)) => Came::Rejected(reason),
            Err(e) if e.outcome() == Outcome::NotApplied => Came::NotApplied(e.to_string()),
            Err(e) => Came::Unknown(e.to_string()),
        };
        if let Came::Ok(applied) = &came {
            self.stats.digest_answer(&applied.data);
        }
        self.note(|| format!("client {} at node {} {}: {came}", op.client, op.node, op.ask));
        let ended = self.stats.events;
        let Asked { client, ask, invoked, began, burst, .. } = op;
        self.clients.done.push(Record { client, ask, invoked, began, ended, came });
        if !burst {
            let delay = self.think();
            self.schedule.after(delay, What::Client(client));
        }
    }

    fn mark_answer(&mut self, ask: &Ask, answer: &Result<Applied>, leads: bool) {
        let marks = &mut self.marks;
        match (ask, answer) {
            (Ask::Read { freshness: Freshness::Linearizable, .. }, Ok(_)) => {
                marks.hit(if leads { Mark::ReadOnLeader } else { Mark::ReadOnFollower });
            }
            (Ask::Write(_), Ok(_)) => {
                let sole = self.oracle.memberships.last_key_value();
                let sole = sole.is_some_and(|(_, m)| m.conf_state.voters.len() == 1);
                marks.hit_if(Mark::SoleVoter, sole);
            }
            (_, Err(Error::Dropped)) => marks.hit(Mark::OutcomeDropped),
            (_, Err(Error::Timeout)) => marks.hit(Mark::OutcomeTimeout),
            (_, Err(Error::Overloaded { .. })) => marks.hit(Mark::Overloaded),
            (_, Err(e)) => marks.hit_if(Mark::OutcomeUnknown, e.outcome_unknown()),
            (_, Ok(_)) => {}
        }
    }
}
