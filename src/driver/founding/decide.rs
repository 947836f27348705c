//! What a node that is to found a cluster together with others does next: a function of what it
//! is, what it has agreed to, and what the others answered in one round.
//!
//! It reads no clock, no file and no socket, so that every order of events can be tried (the model
//! in `tests`). [`super`] tells the protocol and why it is safe; the rules stand here:
//! - whoever sees a cluster enters it, and founds none;
//! - all founding members must be there, empty and with the same terms, before one is founded;
//! - the one with the lowest node id proposes, and founds once every other one has agreed;
//! - a node agrees to one record at a time, and to records of other founding members only once
//!   the earlier one can never take effect.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::terms::Terms;
use super::words;
use crate::driver::boot::FOUNDING;
use crate::error::Error;
use crate::types::{ClusterId, ConfState, Incarnation, Member, Membership, NodeId, RaftId};

/// A node without a cluster that was started to found one with others, or to find it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) node_id: NodeId,
    pub(crate) incarnation: Incarnation,
    /// Where it says that it is reached.
    pub(crate) addr: String,
    pub(crate) terms: Terms,
    /// The record that it has agreed to, on its disk.
    pub(crate) agreed: Option<Membership>,
    /// Further addresses that it knows of.
    pub(crate) heard: Vec<String>,
}

/// What one address answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It belongs to a cluster.
    Member { node_id: NodeId, cluster: ClusterId, membership: Option<Membership> },
    /// It founds together with others.
    Empty(Candidate),
    /// It belongs to no cluster, and does not found together with others either.
    Other,
}

/// One round of answers; who is missing was silent.
pub(crate) type Answers = BTreeMap<String, Answer>;

/// What to do next.
#[derive(Debug)]
pub(crate) enum Step {
    /// The cluster exists, and this node is one of its founding members: start from this record.
    Adopt(Membership),
    /// A cluster exists behind this address: join it.
    Join(String),
    /// Agree to this record of its own, then have the others agree.
    Propose(Membership),
    /// All have agreed: the cluster exists once this node has written it.
    Found(Membership),
    /// What was agreed to can never take effect: forget it.
    Withdraw,
    /// Nothing yet; for whom or what, in words.
    Wait(String),
    /// Waiting would not help.
    Refuse(Error),
}

/// What a node does after a round. `fresh` names the cluster that it would found.
pub(crate) fn decide(me: &Candidate, answers: &Answers, fresh: ClusterId) -> Step {
    if let Some(step) = enter(me, answers) {
        return step;
    }
    if let Err(e) = check(me, answers) {
        return Step::Refuse(e);
    }
    if let Some(agreed) = &me.agreed
        && let Some(step) = leave_agreement(me, agreed, answers)
    {
        return step;
    }
    let group = match group(me, answers) {
        Ok(group) => group,
        Err(words) => return Step::Wait(words),
    };
    let Some(proposer) = group.first().filter(|first| first.incarnation != me.incarnation) else {
        return propose(me, &group, fresh);
    };
    Step::Wait(format!(
        "waiting for node {} at {}, which founds the cluster",
        proposer.node_id, proposer.addr
    ))
}

/// The record of a cluster that these found: in ascending order of their node ids.
pub(crate) fn record<'a>(
    cluster_id: ClusterId,
    founders: impl Iterator<Item = (NodeId, Incarnation, &'a str)>,
) -> Membership {
    let mut members: Vec<Member> = founders
        .map(|(node_id, incarnation, addr)| Member {
            node_id,
            raft_id: 0,
            incarnation,
            addr: addr.to_owned(),
            metadata: Bytes::new(),
            learner_only: false,
        })
        .collect();
    members.sort_by_key(|m| m.node_id);
    for (member, raft_id) in members.iter_mut().zip(1..) {
        member.raft_id = raft_id;
    }
    let voters: Vec<RaftId> = members.iter().map(|m| m.raft_id).collect();
    let next_raft_id = voters.last().map_or(1, |last| last + 1);
    let conf_state = ConfState { voters, ..ConfState::default() };
    Membership { cluster_id, index: FOUNDING.index, conf_state, members, next_raft_id }
}

/// Who proposed a record: the founding member with the lowest node id.
pub(crate) fn proposer(record: &Membership) -> Option<&Member> {
    record.members.iter().min_by_key(|m| m.node_id)
}

/// Whether a node may agree to a record that another one proposes.
///
/// # Errors
/// Why not, in words.
pub(crate) fn may_agree(
    me: &Candidate,
    from: &Candidate,
    proposed: &Membership,
) -> Result<(), String> {
    if !me.terms.fit(&me.addr, &from.terms, &from.addr) {
        return Err(words::terms_differ(me, from));
    }
    let addrs: BTreeSet<&str> = proposed.members.iter().map(|m| m.addr.as_str()).collect();
    let count = proposed.members.len();
    if !is_record(proposed) {
        return Err("the record is malformed".to_owned());
    }
    if proposer(proposed).is_none_or(|p| p.incarnation != from.incarnation) {
        return Err("the record is not its sender's to propose".to_owned());
    }
    if names(proposed, me).is_none_or(|m| m.addr != me.addr) {
        return Err("the record names another data directory or address for this node".to_owned());
    }
    if addrs.len() != count || !me.terms.allow(&me.addr, &addrs) {
        return Err("the record names other founding members".to_owned());
    }
    match &me.agreed {
        Some(agreed) if !same_places(agreed, proposed) => Err(words::agreed_elsewhere(agreed)),
        Some(_) | None => Ok(()),
    }
}

/// Whether it is what nodes found with: any other is no beginning of a log.
fn is_record(m: &Membership) -> bool {
    let founders = m.members.iter().map(|m| (m.node_id, m.incarnation, m.addr.as_str()));
    let ids: BTreeSet<NodeId> = m.members.iter().map(|m| m.node_id).collect();
    *m == record(m.cluster_id, founders) && ids.len() == m.members.len()
}

/// This very data directory in a membership.
fn names<'a>(membership: &'a Membership, me: &Candidate) -> Option<&'a Member> {
    membership.by_node(me.node_id).filter(|m| m.incarnation == me.incarnation)
}

/// Whether two records have founding members at the same addresses: of two such records, one at
/// most takes effect, because either needs the agreement of all.
fn same_places(a: &Membership, b: &Membership) -> bool {
    places(a) == places(b)
}

fn places(record: &Membership) -> BTreeSet<&str> {
    record.members.iter().map(|m| m.addr.as_str()).collect()
}

fn is_own(record: &Membership, me: &Candidate) -> bool {
    proposer(record).is_some_and(|p| p.incarnation == me.incarnation)
}

/// A cluster exists: into it.
fn enter(me: &Candidate, answers: &Answers) -> Option<Step> {
    let mut first: Option<(&String, ClusterId)> = None;
    for (addr, answer) in answers {
        let Answer::Member { cluster, membership, .. } = answer else { continue };
        // A later membership does not say where the log begins; the leader knows.
        let founding = membership.as_ref().filter(|m| is_record(m));
        if let Some(founding) = founding.filter(|m| names(m, me).is_some()) {
            return Some(Step::Adopt(founding.clone()));
        }
        match first {
            None => first = Some((addr, *cluster)),
            Some((one, known)) if known != *cluster => {
                return Some(Step::Refuse(words::two_clusters((one, known), (addr, *cluster))));
            }
            Some(_) => {}
        }
    }
    let (addr, cluster) = first?;
    let free = me.agreed.as_ref().is_none_or(|agreed| {
        agreed.cluster_id == cluster || is_own(agreed, me) || is_dead(agreed, me, answers)
    });
    // NB: the agreement stays on the disk until the node belongs to the cluster: it must not found
    // with others if the cluster is out of reach when it is started again.
    match &me.agreed {
        Some(agreed) if !free => Some(Step::Wait(words::may_be_founded(agreed, addr))),
        Some(_) | None => Some(Step::Join(addr.clone())),
    }
}

/// What the proposer of a record says: whether it has given it up. None when it cannot say: it has
/// lost its disk.
fn given_up(agreed: &Membership, answers: &Answers) -> Option<bool> {
    let proposer = proposer(agreed)?;
    match answers.get(&proposer.addr) {
        None | Some(Answer::Other) => Some(false),
        Some(Answer::Empty(c)) if c.incarnation == proposer.incarnation => {
            Some(c.agreed.as_ref().is_none_or(|r| r.cluster_id != agreed.cluster_id))
        }
        Some(Answer::Member { node_id, cluster, membership }) => {
            let member = membership.as_ref().and_then(|m| m.by_node(*node_id));
            let same = member.is_some_and(|m| m.incarnation == proposer.incarnation);
            same.then_some(*cluster != agreed.cluster_id)
        }
        Some(Answer::Empty(_)) => None,
    }
}

/// Whether nobody that answers has a record in force, so that a node that has agreed to it may
/// enter a cluster that exists. To found another it would not do: one that has asked before its
/// proposer lost its disk may be about to have it in force.
fn is_dead(agreed: &Membership, me: &Candidate, answers: &Answers) -> bool {
    given_up(agreed, answers).unwrap_or_else(|| {
        let mut others = agreed.members.iter().filter(|m| m.incarnation != me.incarnation);
        others.all(|m| match answers.get(&m.addr) {
            None | Some(Answer::Other) => false,
            Some(Answer::Empty(_)) => true,
            Some(Answer::Member { cluster, .. }) => *cluster != agreed.cluster_id,
        })
    })
}

/// What no waiting would mend.
///
/// # Errors
/// `Config`, with the remedy.
pub(crate) fn check(me: &Candidate, answers: &Answers) -> Result<(), Error> {
    let mut seen: BTreeMap<Incarnation, &str> = BTreeMap::new();
    for (addr, answer) in answers {
        let Answer::Empty(other) = answer else { continue };
        if other.incarnation == me.incarnation {
            return Err(words::itself(me, addr));
        }
        if other.node_id == me.node_id {
            let reason = words::same_id(me.node_id, &me.addr, addr);
            return Err(Error::Config { field: "id", reason });
        }
        let listed = me.terms.addrs.contains(addr);
        if listed && !me.terms.fit(&me.addr, &other.terms, &other.addr) {
            let field = match me.terms.expect == other.terms.expect {
                true => "peers",
                false => "bootstrap_expect",
            };
            return Err(Error::Config { field, reason: words::terms_differ(me, other) });
        }
        if listed
            && me.terms.expect.is_none()
            && let Some(first) = seen.insert(other.incarnation, addr)
        {
            return Err(words::twice(first, addr));
        }
    }
    Ok(())
}

/// Whether the record that was agreed to must be given up first; what to do then.
fn leave_agreement(me: &Candidate, agreed: &Membership, answers: &Answers) -> Option<Step> {
    let chosen = me.terms.expect.is_some();
    let dead = if is_own(agreed, me) {
        // Two that propose to groups that overlap would wait for each other for ever.
        let gives_way = |a: &Answer| is_ahead(a, me, agreed) || is_stranded(a, me, agreed, answers);
        chosen && answers.values().any(gives_way)
    } else {
        given_up(agreed, answers) == Some(true)
    };
    let others = !chosen && !me.terms.allow(&me.addr, &places(agreed));
    // Of the same founding members a new record simply takes the place of the old one.
    match (dead, others) {
        (true, _) if chosen || others => Some(Step::Withdraw),
        (false, true) if is_own(agreed, me) => Some(Step::Withdraw),
        (false, true) => Some(Step::Wait(words::agreed_before(agreed))),
        _ => None,
    }
}

/// Whether this node proposes a record with some of the same founding members, and comes first.
fn is_ahead(answer: &Answer, me: &Candidate, agreed: &Membership) -> bool {
    let Answer::Empty(c) = answer else { return false };
    let Some(theirs) = c.agreed.as_ref().filter(|r| is_own(r, c)) else { return false };
    let overlap = !places(theirs).is_disjoint(&places(agreed));
    theirs.cluster_id != agreed.cluster_id && overlap && c.node_id < me.node_id
}

/// Whether a founding member has agreed to found with others, whose proposer has lost its disk:
/// only the agreement of all of those frees it.
fn is_stranded(answer: &Answer, me: &Candidate, agreed: &Membership, answers: &Answers) -> bool {
    let Answer::Empty(c) = answer else { return false };
    let Some(theirs) = c.agreed.as_ref().filter(|r| !same_places(r, agreed)) else { return false };
    let own =
        proposer(theirs).is_some_and(|p| p.addr == me.addr && p.incarnation != me.incarnation);
    let lost = own || given_up(theirs, answers).is_none();
    lost && places(agreed).contains(c.addr.as_str())
}

/// The founding members, by node id, once all of them are there.
fn group<'a>(me: &'a Candidate, answers: &'a Answers) -> Result<Vec<&'a Candidate>, String> {
    // Only where it says that it is reached: that is what the record will say.
    let at = |addr: &str| match answers.get(addr) {
        Some(Answer::Empty(c)) if c.addr == addr && me.terms.fit(&me.addr, &c.terms, addr) => {
            Some(c)
        }
        Some(_) | None if addr == me.addr => Some(me),
        Some(_) | None => None,
    };
    let required: BTreeSet<String> = match me.terms.expect {
        None => me.terms.addrs.clone(),
        Some(_) => match bound(me, answers) {
            Some(record) => places(record).into_iter().map(str::to_owned).collect(),
            None => choose(me, answers)?,
        },
    };
    let mut group: Vec<&Candidate> = required.iter().filter_map(|addr| at(addr)).collect();
    if group.len() < required.len() {
        let absent = required.iter().filter(|addr| at(addr).is_none());
        return Err(words::missing(required.len(), group.len(), absent, answers));
    }
    group.sort_by_key(|c| c.node_id);
    for pair in group.windows(2) {
        if let [a, b] = pair
            && a.node_id == b.node_id
        {
            return Err(words::same_id(a.node_id, &a.addr, &b.addr));
        }
    }
    Ok(group)
}

/// The record that binds this node to its founding members: its own, or that of one of them.
fn bound<'a>(me: &'a Candidate, answers: &'a Answers) -> Option<&'a Membership> {
    if me.agreed.is_some() {
        return me.agreed.as_ref();
    }
    let theirs = answers.values().filter_map(|answer| match answer {
        Answer::Empty(c) => c.agreed.as_ref(),
        Answer::Member { .. } | Answer::Other => None,
    });
    theirs
        .filter(|r| places(r).contains(me.addr.as_str()))
        .filter(|r| !is_own(r, me) && given_up(r, answers) != Some(true))
        .min_by_key(|r| proposer(r).map(|p| (p.node_id, r.cluster_id)))
}

/// The addresses of the founding members, where they are not listed: as many of the seeds as
/// there are, then others, each in the order of their node ids.
fn choose(me: &Candidate, answers: &Answers) -> Result<BTreeSet<String>, String> {
    let count = me.terms.count();
    let free = answers.iter().filter_map(|(addr, answer)| match answer {
        Answer::Empty(c) if c.addr == *addr && c.agreed.is_none() => Some(c),
        Answer::Empty(_) | Answer::Member { .. } | Answer::Other => None,
    });
    let fitting = free.filter(|c| me.terms.fit(&me.addr, &c.terms, &c.addr));
    let mut all: Vec<&Candidate> = fitting.chain([me]).collect();
    let seeds = all_seeds(me, answers);
    all.sort_by_key(|c| (!seeds.contains(c.addr.as_str()), c.node_id));
    let chosen: BTreeSet<&str> = all.iter().take(count).map(|c| c.addr.as_str()).collect();
    if !chosen.contains(me.addr.as_str()) {
        return Err("waiting for the others to found the cluster".to_owned());
    }
    if me.terms.allow(&me.addr, &chosen) {
        return Ok(chosen.into_iter().map(str::to_owned).collect());
    }
    let absent = me.terms.addrs.iter().filter(|a| !chosen.contains(a.as_str()));
    Err(words::missing(count, chosen.len(), absent, answers))
}

/// The seeds, as all together know them: each may leave its own address out.
fn all_seeds<'a>(me: &'a Candidate, answers: &'a Answers) -> BTreeSet<&'a str> {
    let theirs = answers.values().filter_map(|answer| match answer {
        Answer::Empty(c) if me.terms.fit(&me.addr, &c.terms, &c.addr) => Some(c),
        Answer::Empty(_) | Answer::Member { .. } | Answer::Other => None,
    });
    theirs.chain([me]).flat_map(|c| c.terms.addrs.iter().map(String::as_str)).collect()
}

/// This node comes first among the founding members: it has them agree, then founds.
fn propose(me: &Candidate, group: &[&Candidate], fresh: ClusterId) -> Step {
    let founders = |cluster| {
        record(cluster, group.iter().map(|c| (c.node_id, c.incarnation, c.addr.as_str())))
    };
    let Some(own) = me.agreed.as_ref().filter(|r| **r == founders(r.cluster_id)) else {
        return Step::Propose(founders(fresh));
    };
    let agreed = |c: &&&Candidate| c.agreed.as_ref() == Some(own);
    match group.iter().filter(|c| !agreed(c)).map(|c| c.addr.as_str()).collect::<Vec<_>>() {
        missing if missing.is_empty() => Step::Found(own.clone()),
        missing => Step::Wait(format!("waiting for {} to agree", missing.join(", "))),
    }
}
