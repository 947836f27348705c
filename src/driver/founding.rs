//! Founding a cluster together with others, or finding the one that exists: what `start` does on
//! an empty directory.
//!
//! Every node asks the others, in rounds, what they are ([`pb::Found`]), and [`decide`]s:
//!
//! ```text
//!            somebody has a cluster        ┌──────── it names this node ──────► start from it
//!   ask ────────────────────────────► enter┤
//!    │                                     └──────── it does not ─────────────► join it
//!    │ all are empty, and there          lowest node id          all have agreed
//!    ├────────────────────────► propose ────────────────► agree ────────────────► found
//!    │ somebody is missing
//!    └────────────────────────► wait, and say for whom
//! ```
//!
//! The founding record names a fresh random cluster id and every founding member with the nonce of
//! its data directory (its incarnation). To agree is to write it down; to found is to write it as
//! the first record of the log, from where it is handed to whoever asks.
//!
//! Why there is one cluster at most:
//! - a record takes effect when its proposer founds, after *all* founding members have agreed to it
//!   and while it has agreed to no other one; each of them is empty then;
//! - it is told by those that have founded only, and a node believes an answer only if it has
//!   agreed to nothing since it asked: what a node that has lost its disk since then said, counts
//!   for nothing once others have agreed to something else;
//! - two records of the same founding members need the agreement of the same nodes, the proposers'
//!   included: only one can have it;
//! - a node agrees to a record of other founding members (where they are chosen among seeds) only
//!   once the first can never take effect, because its proposer says so. If that one has lost its
//!   disk it cannot say, and the same founding members must agree again;
//! - a wiped founding member has another nonce than the record: it cannot found itself in again,
//!   and whoever has the record in force leads it in as any other newcomer.
//!
//! A proposer that crashes before it has founded goes on with the record that it agreed to; after
//! it has founded, it hands the record out when it is back: until then the others wait for it.
//! Without a step of its own, a node that waits is never in danger: it holds nothing yet.

pub(crate) mod decide;
pub(crate) mod desk;
mod terms;
#[cfg(test)]
mod tests;
mod words;

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, join_all};
use slog::{debug, info, warn};
use tokio::time::{Instant, sleep};

use super::boot::{Opened, blocking};
use super::caller::Caller;
use super::changes::check_addr;
use super::joining::{INFO_TIMEOUT, Pauses};
use super::shared::Shared;
use crate::error::{Error, Result};
use crate::pb::{self, request::Kind, response::Kind as Reply};
use crate::types::{ClusterId, Incarnation, Membership};
use decide::{Answer, Answers, Candidate, Step, check, decide, may_agree, proposer};
use desk::{Ask, Seat};
use terms::Terms;

/// Addresses beyond those that this node was given, at most.
const MAX_HEARD: usize = 64;
/// A node that waits says so again after this time.
const SAY_AGAIN: Duration = Duration::from_secs(10);
/// Between rounds once there is something to agree to.
const SHORT: Duration = Duration::from_millis(50);

/// What came of it.
#[derive(Debug)]
pub(crate) enum End {
    /// The directory belongs to the cluster that it has founded with the others.
    Founded(Opened),
    /// There is a cluster: to be joined through one of these.
    Join(Opened, Vec<String>),
}

struct Founding<'a> {
    shared: &'a Arc<Shared>,
    caller: &'a Caller,
    opened: Opened,
    me: Candidate,
    /// Addresses that are asked beside the terms'.
    beside: Vec<String>,
    /// Whether it agreed to anything since the round began.
    agreed_since: bool,
    /// Who answered in the last round.
    present: BTreeSet<Incarnation>,
    /// What a question has shown that no waiting would mend.
    clash: Option<Error>,
    said: Option<(String, Instant)>,
}

/// Founds or finds a cluster. `given` are the addresses that the user named.
///
/// # Errors
/// What no waiting would mend, with the remedy; those of the log.
pub(crate) async fn run(
    shared: &Arc<Shared>,
    caller: &Caller,
    opened: Opened,
    addr: &str,
    given: &[String],
    seat: &mut Seat,
) -> Result<End> {
    let terms = Terms::new(addr, given, shared.config.bootstrap_expect)?;
    let me = Candidate {
        node_id: opened.identity.node_id,
        incarnation: opened.identity.incarnation,
        addr: addr.to_owned(),
        terms,
        agreed: opened.agreed()?,
        heard: Vec::new(),
    };
    let founding = Founding {
        shared,
        caller,
        opened,
        me,
        beside: shared.config.peers.clone(),
        agreed_since: false,
        present: BTreeSet::new(),
        clash: None,
        said: None,
    };
    founding.run(seat).await
}

impl Founding<'_> {
    async fn run(mut self, seat: &mut Seat) -> Result<End> {
        let mut pauses = Pauses::default();
        loop {
            self.agreed_since = false;
            let mut round = self.round();
            let answers = loop {
                tokio::select! {
                    answers = &mut round => break answers,
                    Some(ask) = seat.next() => self = self.answer(ask).await?,
                }
            };
            if let Some(clash) = self.clash.take() {
                return Err(clash);
            }
            // What was asked before it agreed to something may be out of date.
            if self.agreed_since {
                continue;
            }
            self.hear(&answers);
            let fresh = ClusterId::random()
                .map_err(|e| Error::Internal { part: "random generator", reason: e.to_string() })?;
            match self.enough(decide(&self.me, &answers, fresh)) {
                Step::Adopt(record) => return self.found(record, "enters").await,
                Step::Found(record) => return self.found(record, "founds").await,
                Step::Join(through) => return Ok(self.join(through, &answers)),
                Step::Propose(record) => self = self.agree(Some(record)).await?,
                Step::Withdraw => self = self.agree(None).await?,
                Step::Refuse(e) => return Err(e),
                Step::Wait(words) => {
                    if self.say(words) {
                        pauses = Pauses::default();
                    }
                    let pause = if self.me.agreed.is_some() { SHORT } else { pauses.next() };
                    self = self.wait(pause, seat).await?;
                }
            }
        }
    }

    /// Nobody founds a cluster that could never elect a leader; one that exists may be entered.
    fn enough(&self, step: Step) -> Step {
        let (count, min) = (self.me.terms.count(), self.shared.config.min_members);
        if count >= min {
            return step;
        }
        match step {
            Step::Propose(_) | Step::Found(_) => Step::Refuse(too_few(count, min)),
            Step::Wait(words) => Step::Wait(format!(
                "{words}; unless one of them belongs to a cluster, this node ends: {}",
                too_few(count, min)
            )),
            step @ (Step::Adopt(_) | Step::Join(_) | Step::Withdraw | Step::Refuse(_)) => step,
        }
    }

    /// Answers what is asked until the time is over, or until it is worth to ask again.
    async fn wait(mut self, pause: Duration, seat: &mut Seat) -> Result<Self> {
        let mut over = pin!(sleep(pause));
        loop {
            tokio::select! {
                () = &mut over => return Ok(self),
                Some(ask) = seat.next() => {
                    let from = ask.found.from.as_ref();
                    let from = from.and_then(|f| Incarnation::from_slice(&f.incarnation));
                    let news = from.is_some_and(|from| self.present.insert(from));
                    self = self.answer(ask).await?;
                    if news || self.agreed_since {
                        return Ok(self);
                    }
                }
            }
        }
    }

    /// Asks everybody at once.
    fn round(&self) -> BoxFuture<'static, Answers> {
        let own =
            |r: &&Membership| proposer(r).is_some_and(|p| p.incarnation == self.me.incarnation);
        let propose = self.me.agreed.as_ref().filter(own).map(Membership::to_pb);
        let found = Box::new(pb::Found { from: Some(to_pb(&self.me)), propose });
        let timeout = self.shared.config.request_timeout.min(INFO_TIMEOUT);
        let ask = |addr: String| {
            let (caller, kind) = (self.caller.clone(), Kind::Found(found.clone()));
            async move {
                let Ok(Some(Reply::Info(info))) = caller.call(&addr, None, kind, timeout).await
                else {
                    return None;
                };
                Some((addr, from_pb(info)))
            }
        };
        let asked = join_all(self.asked().into_iter().map(ask));
        asked.map(|answers| answers.into_iter().flatten().collect()).boxed()
    }

    fn asked(&self) -> BTreeSet<String> {
        let agreed = self.me.agreed.iter().flat_map(|r| &r.members).map(|m| &m.addr);
        let given = self.me.terms.addrs.iter().chain(&self.beside);
        let all = given.chain(agreed).chain(&self.me.heard);
        all.filter(|addr| **addr != self.me.addr).cloned().collect()
    }

    /// Notes who is there, and where else to ask. Where the founding members are listed, nobody
    /// else matters.
    fn hear(&mut self, answers: &Answers) {
        self.present.clear();
        for answer in answers.values() {
            let Answer::Empty(c) = answer else { continue };
            self.present.insert(c.incarnation);
            self.hear_of(c);
        }
    }

    fn hear_of(&mut self, other: &Candidate) {
        let me = &mut self.me;
        if me.terms.expect.is_none() || !me.terms.fit(&me.addr, &other.terms, &other.addr) {
            return;
        }
        let agreed = other.agreed.iter().flat_map(|r| &r.members).map(|m| &m.addr);
        for addr in [&other.addr].into_iter().chain(agreed).chain(&other.heard) {
            let known = me.terms.addrs.contains(addr) || me.heard.contains(addr);
            if !known && *addr != me.addr && me.heard.len() < MAX_HEARD && check_addr(addr).is_ok()
            {
                me.heard.push(addr.clone());
            }
        }
    }

    /// Answers a peer, which may propose something.
    async fn answer(mut self, ask: Ask) -> Result<Self> {
        let Ask { found, reply } = ask;
        let mut reason = String::new();
        let from = found.from.and_then(candidate).filter(|c| c.incarnation != self.me.incarnation);
        if let Some(from) = from {
            self.hear_of(&from);
            self.clash = self.clash.take().or_else(|| self.clash_with(&from));
            if let Some(Ok(proposed)) = found.propose.map(Membership::from_pb) {
                let min = self.shared.config.min_members;
                let enough = match proposed.members.len() {
                    count if count < min => Err(too_few(count, min).to_string()),
                    _ => Ok(()),
                };
                match enough.and_then(|()| may_agree(&self.me, &from, &proposed)) {
                    Ok(()) if self.me.agreed.as_ref() == Some(&proposed) => {}
                    Ok(()) => self = self.agree(Some(proposed)).await?,
                    Err(e) => {
                        debug!(self.shared.logger, "does not agree to found a cluster";
                            "proposed_by" => from.node_id, "addr" => &from.addr, "reason" => &e);
                        reason = e;
                    }
                }
            }
        }
        let node_id = self.me.node_id;
        let founder = Some(to_pb(&self.me));
        // NB: whoever does not wait for the answer any more asks again.
        let _ =
            reply.send(pb::InfoAnswer { node_id, founder, reason, ..pb::InfoAnswer::default() });
        Ok(self)
    }

    /// What one that asks shows to be wrong. It may end for the same reason, before it could be
    /// asked itself.
    fn clash_with(&self, from: &Candidate) -> Option<Error> {
        let me = &self.me;
        let listed = me.terms.addrs.contains(&from.addr);
        if !listed && !me.terms.fit(&me.addr, &from.terms, &from.addr) {
            return None;
        }
        let answers = Answers::from([(from.addr.clone(), Answer::Empty(from.clone()))]);
        check(me, &answers).err()
    }

    /// Agrees to a record, or to none; durable when it returns.
    async fn agree(self, record: Option<Membership>) -> Result<Self> {
        let Self { mut opened, shared, caller, mut me, beside, present, clash, said, .. } = self;
        me.agreed.clone_from(&record);
        let opened = blocking(move || opened.agree(record.as_ref()).map(|()| opened)).await?;
        if let Some(record) = &me.agreed {
            info!(shared.logger, "agrees to found a cluster"; "cluster" => %record.cluster_id,
                "members" => record.members.len());
        }
        let agreed_since = true;
        Ok(Self { shared, caller, opened, me, beside, agreed_since, present, clash, said })
    }

    async fn found(self, record: Membership, how: &'static str) -> Result<End> {
        let Self { mut opened, shared, .. } = self;
        let members: Vec<String> = record.members.iter().map(|m| m.addr.clone()).collect();
        shared.say_waiting("");
        info!(shared.logger, "{} a cluster together with others", how;
            "cluster" => %record.cluster_id, "members" => members.join(" "));
        Ok(End::Founded(blocking(move || opened.found(&record).map(|()| opened)).await?))
    }

    fn join(self, through: String, answers: &Answers) -> End {
        let members = answers.iter().filter(|(_, a)| matches!(a, Answer::Member { .. }));
        let others = members.map(|(addr, _)| addr.clone()).filter(|addr| *addr != through);
        let known = [through.clone()].into_iter().chain(others).collect();
        let words = format!("joins the cluster through {through}");
        self.shared.say_waiting(&words);
        info!(self.shared.logger, "discovered a cluster, and asks to join"; "through" => through);
        End::Join(self.opened, known)
    }

    /// Says for whom it waits, when that is news or was said long ago. True for news.
    fn say(&mut self, words: String) -> bool {
        let now = Instant::now();
        let (news, again) = match &self.said {
            Some((last, at)) => (*last != words, now.duration_since(*at) >= SAY_AGAIN),
            None => (true, false),
        };
        if news || again {
            warn!(self.shared.logger, "no cluster yet"; "reason" => &words);
            self.shared.say_waiting(&words);
            self.said = Some((words, now));
        }
        news
    }
}

/// Why so many may not found a cluster.
pub(crate) fn too_few(count: usize, min: usize) -> Error {
    let members = if count == 1 { "member" } else { "members" };
    let reason = format!(
        "a cluster founded by {count} {members} could never elect a leader: the first election waits \
         for {min}; give start the addresses of at least {min} nodes, the same list on each, or \
         lower it"
    );
    Error::Config { field: "min_members", reason }
}

fn to_pb(c: &Candidate) -> pb::Founder {
    pb::Founder {
        node_id: c.node_id,
        incarnation: Bytes::copy_from_slice(&c.incarnation.to_bytes()),
        addr: c.addr.clone(),
        expect: c.terms.expect.map_or(0, |n| u32::try_from(n).unwrap_or(u32::MAX)),
        addrs: c.terms.addrs.iter().cloned().collect(),
        agreed: c.agreed.as_ref().map(Membership::to_pb),
        heard: c.heard.clone(),
    }
}

/// A candidate as it describes itself; None when that makes no sense.
fn candidate(p: pb::Founder) -> Option<Candidate> {
    check_addr(&p.addr).ok()?;
    let expect = (p.expect != 0).then_some(p.expect as usize);
    Some(Candidate {
        node_id: Some(p.node_id).filter(|id| *id != 0)?,
        incarnation: Incarnation::from_slice(&p.incarnation)?,
        addr: p.addr,
        terms: Terms { expect, addrs: p.addrs.into_iter().collect() },
        agreed: p.agreed.map(Membership::from_pb).transpose().ok()?,
        heard: p.heard,
    })
}

fn from_pb(info: pb::InfoAnswer) -> Answer {
    if let Some(cluster) = ClusterId::from_slice(&info.cluster_id) {
        let membership = info.membership.and_then(|m| Membership::from_pb(m).ok());
        let membership = membership.filter(|m| m.cluster_id == cluster);
        return Answer::Member { node_id: info.node_id, cluster, membership };
    }
    info.founder.and_then(candidate).map_or(Answer::Other, Answer::Empty)
}
