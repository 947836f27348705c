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
//! - what another member says of it (hearsay) counts only while it has said nothing itself and does
//!   not answer where the membership has it, and is dropped when it does not answer there either;
//! - of ids that the membership does not know, at most [`MAX_UNKNOWN`], the lowest ones: ids are
//!   handed out one after the other.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Leader;
use crate::transport::Peer;
use crate::types::{Member, Membership, RaftId};

/// Peers that the membership does not know and whose address is remembered.
const MAX_UNKNOWN: usize = 8;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hints {
    by_raft: BTreeMap<RaftId, Peer>,
    /// Of whom only others have said where they are.
    hearsay: BTreeSet<RaftId>,
}

impl Hints {
    /// A peer said hello, and was let in. True when that tells something new.
    pub(crate) fn heard(&mut self, membership: Option<&Membership>, peer: Peer) -> bool {
        if membership.is_some_and(|m| m.was_removed(peer.raft_id)) {
            return false;
        }
        self.hearsay.remove(&peer.raft_id);
        let known = membership.and_then(|m| joined(m, peer.raft_id));
        // An earlier release does not say where it is: where the membership has it.
        if peer.addr.is_empty() || known.is_some_and(|m| m.addr == peer.addr) {
            return self.by_raft.remove(&peer.raft_id).is_some();
        }
        let id = peer.raft_id;
        let news = self.by_raft.get(&id) != Some(&peer);
        self.by_raft.insert(id, peer);
        let unknown: Vec<RaftId> = self.unknown(membership).map(|peer| peer.raft_id).collect();
        for over in unknown.into_iter().skip(MAX_UNKNOWN) {
            self.by_raft.remove(&over);
        }
        news && self.by_raft.contains_key(&id)
    }

    /// A member does not answer where this node looks for it; where another one reaches it, if any
    /// has said so. True when it is looked for elsewhere from now on.
    pub(crate) fn missed(&mut self, m: &Membership, id: RaftId, told: Option<Peer>) -> bool {
        if self.hearsay.remove(&id) {
            return self.by_raft.remove(&id).is_some();
        }
        let fits = |known: &Member, peer: &Peer| {
            known.incarnation == peer.incarnation && known.addr != peer.addr
        };
        match (told, joined(m, id)) {
            (Some(peer), Some(known)) if fits(known, &peer) && !self.by_raft.contains_key(&id) => {
                self.hearsay.insert(id);
                self.by_raft.insert(id, peer);
                true
            }
            _ => false,
        }
    }

    /// The members that are not where the membership has them, by what they have said themselves.
    pub(crate) fn elsewhere<'a>(
        &'a self,
        m: &'a Membership,
    ) -> impl Iterator<Item = &'a Peer> + 'a {
        let own = |peer: &&Peer| !self.hearsay.contains(&peer.raft_id);
        self.by_raft.values().filter(own).filter(|peer| joined(m, peer.raft_id).is_some())
    }

    /// Another membership is in force.
    pub(crate) fn settle(&mut self, new: &Membership) {
        self.by_raft.retain(|id, hint| match joined(new, *id) {
            None => !new.was_removed(*id),
            Some(now) => now.addr != hint.addr,
        });
        self.hearsay.retain(|id| self.by_raft.contains_key(id));
    }

    /// Where a member is reached.
    pub(crate) fn addr<'a>(&'a self, member: &'a Member) -> &'a str {
        self.by_raft.get(&member.raft_id).map_or(&member.addr, |hint| &hint.addr)
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
        assert!(hints.heard(Some(&old), peer(4, "d:1")));
        assert!(!hints.heard(Some(&old), peer(4, "d:1")), "nothing new");
        assert_eq!(reached(&hints, &old), owned(&[(1, "a:1"), (4, "d:1")]));
        hints.settle(&members(&[(1, "a:1"), (4, "d:1")], 5));
        assert_eq!(hints, Hints::default());
    }

    #[test]
    fn one_that_was_removed_is_forgotten_and_not_heard_again() {
        let (mut hints, old) = (Hints::default(), members(&[(1, "a:1")], 2));
        assert!(hints.heard(Some(&old), peer(4, "d:1")));
        let new = members(&[(1, "a:1")], 5);
        hints.settle(&new);
        assert_eq!(hints, Hints::default());
        assert!(!hints.heard(Some(&new), peer(4, "d:1")));
    }

    #[test]
    fn a_member_that_moved_is_reached_where_it_says_until_the_membership_says_the_same() {
        let (mut hints, old) = (Hints::default(), members(&[(1, "a:1"), (2, "b:1")], 3));
        assert!(hints.heard(Some(&old), peer(2, "b:3")));
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
        assert!(hints.heard(Some(&old), peer(4, "d:2")));
        let joined = members(&[(1, "a:1"), (4, "d:1")], 5);
        hints.settle(&joined);
        assert_eq!(reached(&hints, &joined), owned(&[(1, "a:1"), (4, "d:2")]));
    }

    #[test]
    fn one_that_is_back_or_says_nothing_is_where_the_membership_has_it() {
        for addr in ["b:1", ""] {
            let (mut hints, m) = (Hints::default(), members(&[(1, "a:1"), (2, "b:1")], 3));
            assert!(hints.heard(Some(&m), peer(2, "b:2")));
            assert!(hints.heard(Some(&m), peer(2, addr)));
            assert_eq!(hints, Hints::default());
            assert!(!hints.heard(Some(&m), peer(2, addr)), "nothing new");
        }
    }

    #[test]
    fn one_that_is_still_expected_is_reached_once_it_says_that_it_has_joined() {
        let (mut hints, mut old) = (Hints::default(), members(&[(1, "a:1"), (4, "d:1")], 5));
        old.members[1].incarnation = Incarnation::from_u128(0);
        let others = |hints: &Hints| hints.peers(Some(&old)).find(|p| p.raft_id != 1);
        assert_eq!(others(&hints), None, "nobody knows its data directory");
        assert!(hints.heard(Some(&old), peer(4, "d:1")));
        assert_eq!(others(&hints), Some(peer(4, "d:1")));
        // A change of something else comes first.
        hints.settle(&old);
        assert_eq!(others(&hints), Some(peer(4, "d:1")));
        hints.settle(&members(&[(1, "a:1"), (4, "d:1")], 5));
        assert_eq!(hints, Hints::default());
    }

    /// Two exchanged their addresses: a third, whom both have told, is believed as long as that
    /// helps, and what a member says itself counts for more.
    #[test]
    fn hearsay_counts_while_nothing_better_is_known() {
        let m = members(&[(1, "a"), (2, "b"), (3, "c")], 4);
        let mut third = Hints::default();
        assert!(third.heard(Some(&m), peer(2, "a")));
        let told = || third.elsewhere(&m).next().cloned();
        let mut hints = Hints::default();
        assert!(hints.missed(&m, 2, told()));
        assert_eq!(hints.addr(&m.members[1]), "a");
        assert_eq!(hints.elsewhere(&m).count(), 0, "it is not passed on");
        assert!(hints.missed(&m, 2, told()), "not there either: where the membership has it");
        assert_eq!(hints.addr(&m.members[1]), "b");
        assert!(!hints.missed(&m, 2, None));

        let other = Peer { incarnation: Incarnation::from_u128(77), ..peer(2, "a") };
        assert!(!hints.missed(&m, 2, Some(other)), "another data directory");
        assert!(!hints.missed(&m, 2, Some(peer(2, "b"))), "where it is looked for");
        assert!(hints.missed(&m, 2, told()));
        assert!(hints.heard(Some(&m), peer(2, "d")));
        assert!(!hints.missed(&m, 2, told()), "it says itself where it is");
        assert_eq!(hints.addr(&m.members[1]), "d");
        let now = members(&[(1, "a"), (2, "a"), (3, "c")], 4);
        assert!(hints.heard(Some(&m), peer(2, "b")) && hints.missed(&m, 2, told()));
        hints.settle(&now);
        assert_eq!(hints, Hints::default());
    }

    #[test]
    fn invented_ids_do_not_crowd_out_the_next_ones() {
        let (mut hints, m) = (Hints::default(), members(&[(1, "a:1")], 2));
        for id in 1000..2000 {
            hints.heard(Some(&m), peer(id, "x:1"));
        }
        assert_eq!(hints.by_raft.len(), MAX_UNKNOWN);
        assert!(!hints.heard(Some(&m), peer(5000, "x:1")), "not taken");
        assert!(hints.heard(Some(&m), peer(2, "b:1")));
        assert_eq!(hints.by_raft.len(), MAX_UNKNOWN);
        assert!(hints.by_raft.contains_key(&2));
    }
}
