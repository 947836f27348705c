//! Membership changes across the wire, and what every one of them must be before it is looked at.
//!
//! Invariant: what a peer sends is checked as what a caller gives: no address, name or number
//! reaches the node that could not be replicated.

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::node::conf_change::{MAX_ADDR, MAX_METADATA};
use crate::node::event::{Change, Changed};
use crate::pb::{self, change::Kind, request};
use crate::types::{Incarnation, Member, NodeId, Progress};

/// Node ids in one change, at most.
const MAX_NAMED: usize = 1 << 10;

/// The request that asks the leader for this change.
pub(crate) fn to_request(change: &Change) -> request::Kind {
    let kind = match change.clone() {
        Change::Join { node_id, incarnation, addr, voter } => {
            let incarnation = Bytes::copy_from_slice(&incarnation.to_bytes());
            let learner_only = !voter;
            return request::Kind::Join(pb::Join { node_id, incarnation, addr, learner_only });
        }
        Change::Update { node_id, incarnation, addr } => {
            let (metadata, learner_only) = (Bytes::new(), false);
            let member = Member { node_id, raft_id: 0, incarnation, addr, metadata, learner_only };
            Kind::Update(member.to_pb())
        }
        Change::AddLearner { node_id, addr } => {
            Kind::AddLearner(pb::AddMember { node_id, addr, added: false })
        }
        Change::AddVoter { node_id, addr, added } => {
            Kind::AddVoter(pb::AddMember { node_id, addr, added })
        }
        Change::Promote { node_id } => Kind::Promote(node_id),
        Change::Demote { node_id } => Kind::Demote(node_id),
        Change::Remove { node_id } => Kind::Remove(node_id),
        Change::Leave { node_id, incarnation } => {
            let incarnation = Bytes::copy_from_slice(&incarnation.to_bytes());
            Kind::Leave(pb::Departure { node_id, incarnation })
        }
        Change::Replace { old, new } => Kind::Replace(pb::Replace { old, new }),
        Change::Set { voters, learners } => Kind::Set(pb::MemberSet { voters, learners }),
        Change::Describe { node_id, addr, metadata } => {
            Kind::Describe(pb::Description { node_id, addr, metadata })
        }
    };
    request::Kind::Change(pb::Change { kind: Some(kind), boot: 0 })
}

/// The change that a peer asks for.
///
/// # Errors
/// `Membership` that says what is wrong with it.
pub(crate) fn from_pb(change: pb::Change) -> Result<Change> {
    let change = match change.kind {
        Some(Kind::Remove(node_id)) => Change::Remove { node_id },
        Some(Kind::Update(m)) => Change::Update {
            node_id: m.node_id,
            incarnation: incarnation(&m.incarnation)?,
            addr: m.addr,
        },
        Some(Kind::AddLearner(m)) => Change::AddLearner { node_id: m.node_id, addr: m.addr },
        Some(Kind::AddVoter(m)) => {
            Change::AddVoter { node_id: m.node_id, addr: m.addr, added: m.added }
        }
        Some(Kind::Leave(d)) => {
            Change::Leave { node_id: d.node_id, incarnation: incarnation(&d.incarnation)? }
        }
        Some(Kind::Promote(node_id)) => Change::Promote { node_id },
        Some(Kind::Demote(node_id)) => Change::Demote { node_id },
        Some(Kind::Replace(r)) => Change::Replace { old: r.old, new: r.new },
        Some(Kind::Set(s)) => Change::Set { voters: s.voters, learners: s.learners },
        Some(Kind::Describe(d)) => {
            Change::Describe { node_id: d.node_id, addr: d.addr, metadata: d.metadata }
        }
        None => return Err(Error::Membership("a change of an unknown kind".to_owned())),
    };
    check(&change)?;
    Ok(change)
}

/// The wish of a data directory to enter.
///
/// # Errors
/// As [`from_pb`].
pub(crate) fn from_join(join: pb::Join) -> Result<Change> {
    let change = Change::Join {
        node_id: join.node_id,
        incarnation: incarnation(&join.incarnation)?,
        addr: join.addr,
        voter: !join.learner_only,
    };
    check(&change)?;
    Ok(change)
}

fn incarnation(bytes: &[u8]) -> Result<Incarnation> {
    // 0 is nobody's: it stands for a directory that has not joined yet.
    Incarnation::from_slice(bytes)
        .filter(|i| *i != Incarnation::from_u128(0))
        .ok_or_else(|| Error::Membership("the incarnation is not 16 random bytes".to_owned()))
}

/// Whether a change can be replicated at all.
///
/// # Errors
/// `Membership` that says what is wrong with it.
pub(crate) fn check(change: &Change) -> Result<()> {
    match change {
        Change::Join { node_id, addr, .. }
        | Change::Update { node_id, addr, .. }
        | Change::AddLearner { node_id, addr }
        | Change::AddVoter { node_id, addr, .. } => {
            check_id(*node_id)?;
            check_addr(addr)
        }
        Change::Promote { node_id }
        | Change::Demote { node_id }
        | Change::Remove { node_id }
        | Change::Leave { node_id, .. } => check_id(*node_id),
        Change::Replace { old, new } => check_id(*old).and(check_id(*new)),
        Change::Set { voters, learners } => {
            let named = voters.len() + learners.len();
            if named > MAX_NAMED {
                return Err(Error::Membership(format!("{named} members, above {MAX_NAMED}")));
            }
            voters.iter().chain(learners).try_for_each(|id| check_id(*id))
        }
        Change::Describe { node_id, addr, metadata } => {
            check_id(*node_id)?;
            if metadata.as_ref().is_some_and(|m| m.len() > MAX_METADATA) {
                let most = format!("the metadata of a member is at most {MAX_METADATA} bytes long");
                return Err(Error::Membership(most));
            }
            addr.as_deref().map_or(Ok(()), check_addr)
        }
    }
}

fn check_id(node_id: NodeId) -> Result<()> {
    if node_id != 0 {
        return Ok(());
    }
    Err(Error::Membership("a node id must not be 0".to_owned()))
}

/// Whether a member may have this address.
///
/// # Errors
/// `Membership` that says what an address looks like.
pub(crate) fn check_addr(addr: &str) -> Result<()> {
    let names_host = |host: &str| !host.is_empty() && !host.contains('/');
    let fits = addr.len() <= MAX_ADDR && addr.rsplit_once(':').is_some_and(|(h, _)| names_host(h));
    if fits { Ok(()) } else { Err(Error::Membership(format!("{addr:?} is no host:port address"))) }
}

/// The answer to a change that took effect, or waits for its node.
pub(crate) fn done(changed: &Changed) -> pb::Done {
    let waits = match changed.progress {
        Progress::Done => None,
        Progress::Expected => Some(pb::Progress::default()),
        Progress::CatchingUp { matched, last } => {
            Some(pb::Progress { joined: true, matched, last })
        }
    };
    pb::Done { index: changed.membership.index, waits }
}

/// How far the change is that this answers.
pub(crate) fn progress(done: &pb::Done) -> Progress {
    match &done.waits {
        None => Progress::Done,
        Some(p) if p.joined => Progress::CatchingUp { matched: p.matched, last: p.last },
        Some(_) => Progress::Expected,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn every_change_survives_the_wire() {
        let (addr, incarnation) = ("h:1".to_owned(), Incarnation::from_u128(7));
        let changes = [
            Change::Join { node_id: 1, incarnation, addr: addr.clone(), voter: true },
            Change::Join { node_id: 1, incarnation, addr: addr.clone(), voter: false },
            Change::Update { node_id: 1, incarnation, addr: addr.clone() },
            Change::AddLearner { node_id: 2, addr: addr.clone() },
            Change::AddVoter { node_id: 3, addr: addr.clone(), added: false },
            Change::AddVoter { node_id: 3, addr: addr.clone(), added: true },
            Change::Promote { node_id: 4 },
            Change::Demote { node_id: 5 },
            Change::Remove { node_id: 6 },
            Change::Leave { node_id: 6, incarnation },
            Change::Replace { old: 7, new: 8 },
            Change::Set { voters: vec![1, 2], learners: vec![3] },
            Change::Describe { node_id: 9, addr: Some(addr), metadata: None },
            Change::Describe { node_id: 9, addr: None, metadata: Some(Bytes::new()) },
        ];
        for change in changes {
            let there = match to_request(&change) {
                request::Kind::Join(join) => from_join(join),
                request::Kind::Change(change) => from_pb(change),
                other => panic!("{other:?}"),
            };
            assert_eq!(there.unwrap(), change);
        }
    }

    #[test]
    fn what_could_not_be_replicated_is_refused_in_words() {
        let addr = "h:1".to_owned();
        let zero = Incarnation::from_u128(0);
        let cases = [
            (Change::Remove { node_id: 0 }, "must not be 0"),
            (Change::Replace { old: 1, new: 0 }, "must not be 0"),
            (
                Change::AddVoter { node_id: 1, addr: "nowhere".to_owned(), added: false },
                "no host:port",
            ),
            (Change::Leave { node_id: 1, incarnation: zero }, "16 random bytes"),
            (Change::AddLearner { node_id: 1, addr: String::new() }, "no host:port"),
            (Change::AddLearner { node_id: 1, addr: "http://h:1".to_owned() }, "no host:port"),
            (Change::Join { node_id: 1, incarnation: zero, addr, voter: true }, "16 random bytes"),
            (
                Change::Describe {
                    node_id: 1,
                    addr: None,
                    metadata: Some(vec![0; MAX_METADATA + 1].into()),
                },
                "at most 65536 bytes",
            ),
            (
                Change::Set { voters: vec![1; MAX_NAMED], learners: vec![2] },
                "1025 members, above 1024",
            ),
        ];
        for (change, text) in cases {
            let refused = match to_request(&change) {
                request::Kind::Join(join) => from_join(join),
                request::Kind::Change(change) => from_pb(change),
                other => panic!("{other:?}"),
            };
            let error = refused.unwrap_err().to_string();
            assert!(error.contains(text), "{change:?}: {error}");
        }
        let nothing = from_pb(pb::Change::default()).unwrap_err().to_string();
        assert!(nothing.contains("unknown kind"), "{nothing}");
    }

    #[test]
    fn progress_survives_the_wire() {
        let membership = crate::types::Membership {
            cluster_id: crate::types::ClusterId::from_u128(1),
            index: 9,
            conf_state: crate::types::ConfState::default(),
            members: Vec::new(),
            next_raft_id: 4,
        };
        let all =
            [Progress::Done, Progress::Expected, Progress::CatchingUp { matched: 3, last: 8 }];
        for known in all {
            let answer = done(&Changed { membership: membership.clone(), progress: known });
            assert_eq!((answer.index, progress(&answer)), (9, known));
        }
    }
}
