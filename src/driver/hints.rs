//! Where peers say that they are reached, while the membership does not know it yet.
//!
//! A follower that lags does not know a leader that joined after what it has applied, or that it
//! still expects to join, and nobody
//! knows the new address of a member that moved until the change is committed, which may take that
//! member's own vote. Both say hello with their address; it serves until the membership knows
//! better. Invariants:
//! - a hint is only ever about a member of the membership, or a raft id that is newer than it;
//! - a member that was added and has joined since is who it says that it is: its raft id was kept
//!   for it, and only the cluster gives it away;
//! - it stays until the membership says the same, or that the member is gone: what a running
//!   process says of itself is newer than any log, and the membership of a node that lags changes
//!   to what has long been out of date;
//! - where a member was found by asking counts for more than what it said before, until another start
//!   of it says hello, it is not there any more, or the membership has a new address for it;
//! - a member that answers where it is looked for is looked for there, whatever else it is called;
//! - of ids that the membership does not know, at most [`MAX_UNKNOWN`], the lowest ones: ids are
//!   handed out one after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;

use crate::error::Leader;
use crate::transport::Peer;
use crate::types::{Member, Membership, RaftId};

/// Peers that the membership does not know and whose address is remembered.
const MAX_UNKNOWN: usize = 8;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    at: String,
    /// Where the membership had it.
    recorded: String,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hints {
    by_raft: BTreeMap<RaftId, Peer>,
    /// Where members have answered when all places were asked who is there.
    found: BTreeMap<RaftId, Found>,
}

impl Hints {
    /// A peer said hello, and was let in; `fresh` when this start of it has not said the same before.
    /// True when that tells something new.
    pub(crate) fn heard(
        &mut self,
        membership: Option<&Membership>,
        peer: Peer,
        fresh: bool,
    ) -> bool {
        if membership.is_some_and(|m| m.was_removed(peer.raft_id)) {
            return false;
        }
        let found = fresh && self.found.remove(&peer.raft_id).is_some();
        let known = membership.and_then(|m| joined(m, peer.raft_id));
        // An earlier release does not say where it is: where the membership has it.
        if peer.addr.is_empty() || known.is_some_and(|m| m.addr == peer.addr) {
            return self.by_raft.remove(&peer.raft_id).is_some() || found;
        }
        let id = peer.raft_id;
        let news = self.by_raft.get(&id) != Some(&peer);
        self.by_raft.insert(id, peer);
        let unknown: Vec<RaftId> = self.unknown(membership).map(|peer| peer.raft_id).collect();
        for over in unknown.into_iter().skip(MAX_UNKNOWN) {
            self.by_raft.remove(&over);
        }
        (news || found) && self.by_raft.contains_key(&id)
    }

    /// Every known place was asked, and these members answered there. True when some member is looked
    /// for elsewhere from now on.
    pub(crate) fn found(&mut self, m: &Membership, there: &BTreeSet<(RaftId, String)>) -> bool {
        let before = mem::take(&mut self.found);
        for member in m.members.iter().filter(|member| member.has_joined()) {
            let id = member.raft_id;
            let answers = |at: &str| there.contains(&(id, at.to_owned()));
            let said = self.addr(member);
            let old = before.get(&id).map(|found| found.at.as_str()).filter(|at| answers(at));
            let all = || there.range((id, String::new())..).take_while(|(who, _)| *who == id);
            let at = match old {
                None if answers(said) => None,
                None => all().next().map(|(_, at)| at.as_str()),
                old => old,
            };
            if let Some(at) = at {
                let (at, recorded) = (at.to_owned(), member.addr.clone());
                self.found.insert(id, Found { at, recorded });
            }
        }
        before != self.found
    }

    /// One that this membership does not know, or still expects, answered as a member. True when it is
    /// spoken to from now on: it may need this node, and not know where it is.
    pub(crate) fn met(&mut self, m: &Membership, peer: Peer) -> bool {
        let id = peer.raft_id;
        joined(m, id).is_none()
            && !self.by_raft.contains_key(&id)
            && self.heard(Some(m), peer, false)
    }

    /// Every address at which a member may be: a place where it is not may be another one's.
    pub(crate) fn places<'a>(&'a self, m: &'a Membership) -> impl Iterator<Item = &'a str> + 'a {
        m.members.iter().map(|member| member.addr.as_str()).chain(self.beside())
    }

    /// Those that the membership does not tell.
    pub(crate) fn beside(&self) -> impl Iterator<Item = &str> {
        let said = self.by_raft.values().map(|peer| &peer.addr);
        said.chain(self.found.values().map(|found| &found.at)).map(String::as_str)
    }

    /// Another membership is in force.
    pub(crate) fn settle(&mut self, new: &Membership) {
        self.by_raft.retain(|id, hint| match joined(new, *id) {
            None => !new.was_removed(*id),
            Some(now) => now.addr != hint.addr,
        });
        self.found
            .retain(|id, found| joined(new, *id).is_some_and(|now| now.addr == found.recorded));
    }

    /// Where a member is reached.
    pub(crate) fn addr<'a>(&'a self, member: &'a Member) -> &'a str {
        let said = || self.by_raft.get(&member.raft_id).map(|peer| &peer.addr);
        let found = self.found.get(&member.raft_id).map(|found| &found.at);
        found.or_else(said).unwrap_or(&member.addr)
    }

    /// A leader, where it is reached: it may have moved, and the membership lag behind.
    pub(crate) fn reach(&self, membership: Option<&Membership>, leader: Leader) -> Leader {
        let member = membership.and_then(|m| m.by_node(leader.id));
        // Elsewhere by a newer membership: it may be another data directory.
        match member.filter(|member| member.addr == leader.addr) {
            Some(member) => Leader { addr: self.addr(member).to_owned(), ..leader },
            None => leader,
        }
    }

    /// Whom a node can speak to, itself included, and where.
    pub(crate) fn peers<'a>(
        &'a self,
        membership: Option<&'a Membership>,
    ) -> impl Iterator<Item = Peer> + 'a {
        let members = membership.into_iter().flat_map(|m| &m.members);
        // A member that was added and has not joined cannot be spoken to.
        let known = members.filter(|m| m.has_joined()).map(|m| Peer {
            raft_id: m.raft_id,
            node_id: m.node_id,
            incarnation: m.incarnation,
            addr: self.addr(m).to_owned(),
        });
        known.chain(self.unknown(membership).cloned())
    }

    /// The peers that the membership does not know: newer ones, and those that it still expects and
    /// that have joined.
    pub(crate) fn unknown<'a>(
        &'a self,
        membership: Option<&'a Membership>,
    ) -> impl Iterator<Item = &'a Peer> {
        let known = move |id| membership.is_some_and(|m| joined(m, id).is_some());
        self.by_raft.values().filter(move |peer| !known(peer.raft_id))
    }
}

/// A member whose data directory is known: one that is only expected says itself where it is.
fn joined(m: &Membership, id: RaftId) -> Option<&Member> {
    m.by_raft(id).filter(|member| member.has_joined())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ClusterId, ConfState, Incarnation};
    use bytes::Bytes;

    fn member(id: u64, addr: &str) -> Member {
        let incarnation = Incarnation::from_u128(u128::from(id));
        let addr = addr.to_owned();
        Member {
            node_id: id,
            raft_id: id,
            incarnation,
            addr,
            metadata: Bytes::new(),
            learner_only: false,
        }
    }

    fn members(of: &[(u64, &str)], next_raft_id: RaftId) -> Membership {
        Membership {
            cluster_id: ClusterId::from_u128(9),
            index: 5,
            conf_state: ConfState {
                voters: of.iter().map(|m| m.0).collect(),
                ..ConfState::default()
            },
            members: of.iter().map(|(id, addr)| member(*id, addr)).collect(),
            next_raft_id,
        }
    }

    fn peer(id: u64, addr: &str) -> Peer {
        let Member { raft_id, node_id, incarnation, addr, .. } = member(id, addr);
        Peer { raft_id, node_id, incarnation, addr }
    }

    fn reached(hints: &Hints, m: &Membership) -> Vec<(u64, String)> {
        let known = m.members.iter().map(|x| (x.raft_id, hints.addr(x).to_owned()));
        known.chain(hints.unknown(Some(m)).map(|p| (p.raft_id, p.addr.clone()))).collect()
    }

    fn owned(all: &[(u64, &str)]) -> Vec<(u64, String)> {
        all.iter().map(|(id, addr)| (*id, (*addr).to_owned())).collect()
    }

    #[test]
    fn a_leader_that_joined_meanwhile_is_reached_until_the_membership_knows_it() {
        let (mut hints, old) = (Hints::default(), members(&[(1, "a:1")], 2));
        assert!(hints.heard(Some(&old), peer(4, "d:1"), true));
        assert!(!hints.heard(Some(&old), peer(4, "d:1"), true), "nothing new");
        assert_eq!(reached(&hints, &old), owned(&[(1, "a:1"), (4, "d:1")]));
        hints.settle(&members(&[(1, "a:1"), (4, "d:1")], 5));
        assert_eq!(hints, Hints::default());
    }

    #[test]
    fn one_that_was_removed_is_forgotten_and_not_heard_again() {
        let (mut hints, old) = (Hints::default(), members(&[(1, "a:1")], 2));
        assert!(hints.heard(Some(&old), peer(4, "d:1"), true));
        let new = members(&[(1, "a:1")], 5);
        hints.settle(&new);
        assert_eq!(hints, Hints::default());
        assert!(!hints.heard(Some(&new), peer(4, "d:1"), true));
    }

    #[test]
    fn a_member_that_moved_is_reached_where_it_says_until_the_membership_says_the_same() {
        let (mut hints, old) = (Hints::default(), members(&[(1, "a:1"), (2, "b:1")], 3));
        assert!(hints.heard(Some(&old), peer(2, "b:3"), true));
        assert_eq!(reached(&hints, &old), owned(&[(1, "a:1"), (2, "b:3")]));
        // A log that lags tells of an earlier move.
        hints.settle(&members(&[(1, "a:1"), (2, "b:2")], 3));
        assert_eq!(hints.addr(&member(2, "b:2")), "b:3");
        hints.settle(&members(&[(1, "a:1"), (2, "b:3")], 3));
        assert_eq!(hints, Hints::default());
    }

    #[test]
    fn a_member_that_joined_and_moved_meanwhile_is_reached_where_it_is_now() {
        let (mut hints, old) = (Hints::default(), members(&[(1, "a:1")], 2));
        assert!(hints.heard(Some(&old), peer(4, "d:2"), true));
        let joined = members(&[(1, "a:1"), (4, "d:1")], 5);
        hints.settle(&joined);
        assert_eq!(reached(&hints, &joined), owned(&[(1, "a:1"), (4, "d:2")]));
    }

    #[test]
    fn one_that_is_back_or_says_nothing_is_where_the_membership_has_it() {
        for addr in ["b:1", ""] {
            let (mut hints, m) = (Hints::default(), members(&[(1, "a:1"), (2, "b:1")], 3));
            assert!(hints.heard(Some(&m), peer(2, "b:2"), true));
            assert!(hints.heard(Some(&m), peer(2, addr), true));
            assert_eq!(hints, Hints::default());
            assert!(!hints.heard(Some(&m), peer(2, addr), true), "nothing new");
        }
    }

    #[test]
    fn one_that_is_still_expected_is_reached_once_it_says_that_it_has_joined() {
        let (mut hints, mut old) = (Hints::default(), members(&[(1, "a:1"), (4, "d:1")], 5));
        old.members[1].incarnation = Incarnation::from_u128(0);
        let others = |hints: &Hints| hints.peers(Some(&old)).find(|p| p.raft_id != 1);
        assert_eq!(others(&hints), None, "nobody knows its data directory");
        assert!(hints.heard(Some(&old), peer(4, "d:1"), true));
        assert_eq!(others(&hints), Some(peer(4, "d:1")));
        // A change of something else comes first.
        hints.settle(&old);
        assert_eq!(others(&hints), Some(peer(4, "d:1")));
        hints.settle(&members(&[(1, "a:1"), (4, "d:1")], 5));
        assert_eq!(hints, Hints::default());
    }

    #[test]
    fn where_a_member_was_found_counts_until_it_speaks_or_is_silent() {
        let m = members(&[(1, "a"), (2, "b"), (3, "c")], 4);
        let at = |hints: &Hints| hints.addr(&m.members[1]).to_owned();
        let there = |at: &[&str]| {
            let all = at.iter().map(|at| (2, (*at).to_owned()));
            all.chain([(9, "x".to_owned())]).collect::<BTreeSet<_>>()
        };
        let mut hints = Hints::default();
        assert!(hints.found(&m, &there(&["d"])));
        assert!(!hints.found(&m, &there(&["d"])), "nothing new");
        assert!(!hints.found(&m, &there(&["b", "d", "c"])), "it has more than one name");
        assert_eq!(at(&hints), "d");
        assert!(hints.found(&m, &there(&["b", "c"])), "not there any more");
        assert_eq!(at(&hints), "b");
        assert!(!hints.found(&m, &there(&["a", "b"])) && !hints.found(&m, &there(&[])));

        assert!(hints.found(&m, &there(&["d"])) && hints.heard(Some(&m), peer(2, "e"), true));
        assert_eq!(at(&hints), "e", "it says itself where it is");
        assert!(hints.found(&m, &there(&["d"])), "it moved on, and does not know us");
        assert!(!hints.heard(Some(&m), peer(2, "e"), false), "an old stream is judged again");
        assert_eq!(at(&hints), "d");
        assert_eq!(hints.places(&m).collect::<Vec<_>>(), ["a", "b", "c", "e", "d"]);
        assert!(hints.heard(Some(&m), peer(2, "b"), true), "it is back");
        assert_eq!(hints, Hints::default());

        assert!(hints.found(&m, &there(&["d"])));
        hints.settle(&m);
        assert_eq!(at(&hints), "d");
        hints.settle(&members(&[(1, "a"), (2, "f"), (3, "c")], 4));
        assert_eq!(hints, Hints::default());
    }

    #[test]
    fn one_that_joined_meanwhile_is_spoken_to_once_it_answered() {
        let m = members(&[(1, "a"), (2, "b")], 5);
        let mut hints = Hints::default();
        assert!(!hints.met(&m, peer(2, "c")), "a member");
        assert!(!hints.met(&m, peer(4, "d")), "one that was removed");
        assert!(hints.met(&m, peer(6, "e")));
        assert!(!hints.met(&m, peer(6, "f")), "it is spoken to already");
        assert_eq!(hints.unknown(Some(&m)).cloned().collect::<Vec<_>>(), [peer(6, "e")]);
        assert!(hints.heard(Some(&m), peer(6, "f"), true), "it says itself where it is");
        for id in 7..99 {
            hints.met(&m, peer(id, "x"));
        }
        assert_eq!(hints.unknown(Some(&m)).count(), MAX_UNKNOWN);
    }

    #[test]
    fn invented_ids_do_not_crowd_out_the_next_ones() {
        let (mut hints, m) = (Hints::default(), members(&[(1, "a:1")], 2));
        for id in 1000..2000 {
            hints.heard(Some(&m), peer(id, "x:1"), true);
        }
        assert_eq!(hints.by_raft.len(), MAX_UNKNOWN);
        assert!(!hints.heard(Some(&m), peer(5000, "x:1"), true), "not taken");
        assert!(hints.heard(Some(&m), peer(2, "b:1"), true));
        assert_eq!(hints.by_raft.len(), MAX_UNKNOWN);
        assert!(hints.by_raft.contains_key(&2));
    }
}
