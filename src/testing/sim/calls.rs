//! Requests that a follower sends to the leader, and their answers: at most once each, through
//! the outcomes of the wire (R14).

use std::collections::BTreeMap;

use super::machine::Running;
use super::marks::Mark;
use super::refusals::{Refusals, Refused};
use super::schedule::{MS, Time};
use super::world::{What, World};
use crate::driver::wire;
use crate::error::{Error, Leader, Result};
use crate::node::effect::Forward;
use crate::node::event::{Applied, Change, Changed, Event, Proposal};
use crate::pb;
use crate::reply::{Reply, Waiter, reply};
use crate::types::NodeId;

/// A request or its answer, under way.
#[derive(Clone, Copy, Debug)]
pub(super) enum Envelope {
    Request(u64),
    Answer(u64),
}

impl Envelope {
    pub(super) fn call(self) -> u64 {
        match self {
            Self::Request(call) | Self::Answer(call) => call,
        }
    }
}

/// What waits at home.
enum Work {
    Propose(Vec<Proposal>),
    Change(Change, Reply<Changed>),
    Transfer(Option<NodeId>, Reply<()>),
}

/// What happens at the leader.
enum Remote {
    NotYet,
    Propose(Vec<Waiter<Applied>>, Vec<Option<pb::Outcome>>),
    Change(Waiter<Changed>),
    Transfer(Waiter<()>),
}

enum Outcome {
    /// It did not lead.
    Refused(pb::Refused),
    Propose(Vec<pb::Outcome>),
    Change(Result<Changed>),
    Transfer(Result<()>),
}

struct Call {
    home: NodeId,
    home_epoch: u64,
    at: NodeId,
    sent: Time,
    work: Work,
    remote: Remote,
    outcome: Option<Outcome>,
}

/// Every call that has not come to its end.
#[derive(Default)]
pub(super) struct Calls {
    open: BTreeMap<u64, Call>,
    count: u64,
    pub(super) refusals: Refusals,
}

impl World {
    /// A node asks the leader.
    pub(super) fn forward(&mut self, id: NodeId, leader: &Leader, work: Forward) {
        let work = match work {
            Forward::Propose(mut proposals) => {
                // Who gave up before has been answered by that.
                proposals.retain(|p| p.reply.begin());
                Work::Propose(proposals)
            }
            Forward::Change { change, reply } if reply.begin() => Work::Change(change, reply),
            Forward::Transfer { to, reply } if reply.begin() => Work::Transfer(to, reply),
            Forward::Change { .. } | Forward::Transfer { .. } => return,
        };
        self.calls.count += 1;
        let number = self.calls.count;
        // An address where nobody listens is as good as no connection: its own sees to that.
        let reached = |r: &mut Running| r.hints.reach(r.view.as_ref(), leader.clone());
        let reached = self.at(id).running().map(reached);
        let there = reached.and_then(|leader| self.listener(&leader.addr));
        let leader = there.unwrap_or(id);
        let home_epoch = self.at(id).epoch;
        let (sent, remote) = (self.now(), Remote::NotYet);
        let call = Call { home: id, home_epoch, at: leader, sent, work, remote, outcome: None };
        self.calls.open.insert(number, call);
        let sent = match there {
            Some(leader) => self.send_call(id, leader, Envelope::Request(number)),
            None => Err(Envelope::Request(number)),
        };
        match sent {
            Ok(()) => {
                let timeout = self.config.request_timeout.as_micros() as Time;
                self.schedule.after(timeout, What::CallDeadline(number));
            }
            // It was never sent: the node may try again.
            Err(_) => self.schedule.after(50 * MS, What::GiveBack(number)),
        }
    }

    pub(super) fn call_arrives(&mut self, at: NodeId, envelope: Envelope) {
        match envelope {
            Envelope::Request(call) => self.request_arrives(at, call),
            Envelope::Answer(call) => self.answer_arrives(call),
        }
    }

    fn request_arrives(&mut self, at: NodeId, number: u64) {
        let served = self.serves(at);
        let Some(call) = self.calls.open.get_mut(&number) else { return };
        if let Err(Refused { leader }) = served {
            let error = Error::NotLeader { leader };
            call.outcome = Some(Outcome::Refused(wire::refuse(&error, None)));
            let (home, sent) = (call.home, call.sent);
            self.calls.refusals.note(home, sent);
            self.note(|| format!("node {at} refuses a request of node {home}: it does not lead"));
            return self.send_back(at, home, number);
        }
        let mut events = Vec::new();
        call.remote = match &call.work {
            Work::Propose(proposals) => {
                let mut waiters = Vec::new();
                for p in proposals {
                    let (reply, waiter) = reply(None);
                    events.push(Event::Propose(Proposal { data: p.data.clone(), reply }));
                    waiters.push(waiter);
                }
                let outcomes = waiters.iter().map(|_| None).collect();
                Remote::Propose(waiters, outcomes)
            }
            Work::Change(change, _) => {
                let (reply, waiter) = reply(None);
                events.push(Event::Change { change: change.clone(), reply });
                Remote::Change(waiter)
            }
            Work::Transfer(to, _) => {
                let (reply, waiter) = reply(None);
                events.push(Event::Transfer { to: *to, reply });
                Remote::Transfer(waiter)
            }
        };
        events.into_iter().for_each(|event| self.request(at, event));
    }

    /// Sends back what a node has answered to others.
    pub(super) fn collect_calls(&mut self, id: NodeId) {
        let mut done = Vec::new();
        for (number, call) in self.calls.open.iter_mut().filter(|(_, c)| c.at == id) {
            if call.outcome.is_none() {
                call.outcome = call.remote.outcome();
                if call.outcome.is_some() {
                    done.push((*number, call.home));
                }
            }
        }
        for (number, home) in done {
            self.send_back(id, home, number);
        }
    }

    fn send_back(&mut self, from: NodeId, home: NodeId, number: u64) {
        if self.send_call(from, home, Envelope::Answer(number)).is_err() {
            self.call_is_lost(number, "the answer found no connection");
        }
    }

    fn answer_arrives(&mut self, number: u64) {
        let Some(call) = self.calls.open.remove(&number) else { return };
        let (home, epoch) = (call.home, call.home_epoch);
        let again = match (call.work, call.outcome) {
            (work, Some(Outcome::Refused(refused))) => {
                let error = wire::error(&refused, 0, 0);
                assert!(wire::may_retry(&error), "R14: refused, and not for sure: {error}");
                Some(work)
            }
            (Work::Propose(proposals), Some(Outcome::Propose(outcomes))) => {
                let mut again = Vec::new();
                for (proposal, outcome) in proposals.into_iter().zip(outcomes) {
                    match wire::applied(outcome, 0, 0) {
                        Err(e) if wire::may_retry(&e) => again.push(proposal),
                        answer => {
                            self.marks.hit_if(Mark::ForwardedWrite, answer.is_ok());
                            proposal.reply.send(answer);
                        }
                    }
                }
                (!again.is_empty()).then_some(Work::Propose(again))
            }
            (Work::Change(change, reply), Some(Outcome::Change(answer))) => match answer {
                Err(e) if wire::may_retry(&e) => Some(Work::Change(change, reply)),
                answer => {
                    reply.send(answer);
                    None
                }
            },
            (Work::Transfer(to, reply), Some(Outcome::Transfer(answer))) => match answer {
                Err(e) if wire::may_retry(&e) => Some(Work::Transfer(to, reply)),
                answer => {
                    reply.send(answer);
                    None
                }
            },
            (_, _) => unreachable!("an answer is of the kind of its request"),
        };
        if let Some(work) = again {
            let call = Call { work, remote: Remote::NotYet, outcome: None, ..call };
            self.calls.open.insert(number, call);
            self.schedule.after(50 * MS, What::GiveBack(number));
        }
        if self.alive(home, epoch).is_some() {
            self.collect(home);
        }
    }

    /// What surely did nothing goes back to the node, which asks whoever leads then.
    pub(super) fn give_back(&mut self, number: u64) {
        let Some(call) = self.calls.open.remove(&number) else { return };
        if self.alive(call.home, call.home_epoch).is_none() {
            return;
        }
        let id = call.home;
        match call.work {
            Work::Propose(proposals) => {
                for p in proposals {
                    p.reply.retract();
                    self.request(id, Event::Propose(p));
                }
            }
            Work::Change(change, reply) => {
                reply.retract();
                self.request(id, Event::Change { change, reply });
            }
            Work::Transfer(to, reply) => {
                reply.retract();
                self.request(id, Event::Transfer { to, reply });
            }
        }
    }

    /// Nobody will know what became of it.
    pub(super) fn call_is_lost(&mut self, number: u64, why: &str) {
        let Some(call) = self.calls.open.remove(&number) else { return };
        self.hit(Mark::ForwardLost);
        match call.work {
            Work::Propose(all) => {
                all.into_iter().for_each(|p| p.reply.send(Err(Error::unknown(why))));
            }
            Work::Change(_, reply) => reply.send(Err(Error::unknown(why))),
            Work::Transfer(_, reply) => reply.send(Err(Error::unknown(why))),
        }
        self.collect(call.home);
    }

    /// Whether a node serves a call that it has not answered.
    pub(super) fn serves_calls(&self, id: NodeId) -> bool {
        let open = |c: &Call| !matches!(c.remote, Remote::NotYet) && c.outcome.is_none();
        self.calls.open.values().any(|c| c.at == id && open(c))
    }

    /// A process has ended: its calls, and the connections of those who asked it.
    pub(super) fn calls_break(&mut self, id: NodeId) {
        self.calls.open.retain(|_, c| c.home != id);
        let told = |c: &Call| !matches!(c.remote, Remote::NotYet) && c.outcome.is_none();
        let asked = self.calls.open.iter().filter(|(_, c)| c.at == id && told(c));
        let broken: Vec<(u64, NodeId)> = asked.map(|(number, c)| (*number, c.home)).collect();
        for (number, home) in broken {
            if !self.is_silent(home, id) {
                self.call_is_lost(number, "the connection broke");
            }
        }
    }
}

impl Remote {
    fn outcome(&mut self) -> Option<Outcome> {
        match self {
            Self::NotYet => None,
            Self::Propose(waiters, outcomes) => {
                for (waiter, slot) in waiters.iter_mut().zip(outcomes.iter_mut()) {
                    if slot.is_none() {
                        *slot = waiter.answer().map(|a| wire::outcome(a, None));
                    }
                }
                let all: Option<Vec<_>> = outcomes.iter().cloned().collect();
                all.map(Outcome::Propose)
            }
            Self::Change(waiter) => waiter.answer().map(Outcome::Change),
            Self::Transfer(waiter) => waiter.answer().map(Outcome::Transfer),
        }
    }
}
