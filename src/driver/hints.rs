//! Where peers say that they are reached, while the membership does not know it yet.
//!
//! A follower that lags does not know a leader that joined after what it has applied, and nobody
//! knows the new address of a member that moved until the change is committed, which may take that
//! member's own vote. Both say hello with their address; it serves until the membership knows
//! better. Invariants:
//! - a hint is only ever about a member of the membership, or a raft id that is newer than it;
//! - what the membership says anew about a member replaces the hint;
//! - at most [`MAX_HINTS`].

use std::collections::BTreeMap;

use crate::transport::Peer;
use crate::types::{Member, Membership, RaftId};

/// Peers whose address is remembered.
const MAX_HINTS: usize = 64;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hints {
    by_raft: BTreeMap<RaftId, Peer>,
}

impl Hints {
    /// A peer said hello, and was let in. True when that tells something new.
    pub(crate) fn heard(&mut self, membership: Option<&Membership>, peer: Peer) -> bool {
        if peer.addr.is_empty() || membership.is_some_and(|m| m.was_removed(peer.raft_id)) {
            return false;
        }
        let known = membership.and_then(|m| m.by_raft(peer.raft_id));
        if known.is_some_and(|m| m.addr == peer.addr) {
            return self.by_raft.remove(&peer.raft_id).is_some();
        }
        let full = self.by_raft.len() >= MAX_HINTS;
        if full && !self.by_raft.contains_key(&peer.raft_id) {
            return false;
        }
        let old = self.by_raft.insert(peer.raft_id, peer.clone());
        old != Some(peer)
    }

    /// Another membership is in force.
    pub(crate) fn settle(&mut self, old: Option<&Membership>, new: &Membership) {
        self.by_raft.retain(|id, hint| match new.by_raft(*id) {
            None => !new.was_removed(*id),
            Some(now) => {
                let before = old.and_then(|m| m.by_raft(*id));
                let said_again = before.is_some_and(|m| m.addr == now.addr);
                now.addr != hint.addr && said_again
            }
        });
    }

    /// Where a member is reached.
    pub(crate) fn addr<'a>(&'a self, member: &'a Member) -> &'a str {
        self.by_raft.get(&member.raft_id).map_or(&member.addr, |hint| &hint.addr)
    }

    /// The peers that the membership does not know.
    pub(crate) fn unknown<'a>(
        &'a self,
        membership: Option<&'a Membership>,
    ) -> impl Iterator<Item = &'a Peer> {
        let known = move |id| membership.is_some_and(|m| m.by_raft(id).is_some());
        self.by_raft.values().filter(move |peer| !known(peer.raft_id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ClusterId, ConfState, Incarnation};
    use bytes::Bytes;

    fn member(id: u64, addr: &str) -> Member {
        let incarnation = Incarnation::from_u128(u128::from(id));
        let addr = addr.to_owned();
        Member { node_id: id, raft_id: id, incarnation, addr, metadata: Bytes::new() }
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
        let new = members(&[(1, "a:1"), (4, "d:1")], 5);
        hints.settle(Some(&old), &new);
        assert_eq!(hints, Hints::default());
    }

    #[test]
    fn one_that_was_removed_is_forgotten_and_not_heard_again() {
        let (mut hints, old) = (Hints::default(), members(&[(1, "a:1")], 2));
        assert!(hints.heard(Some(&old), peer(4, "d:1")));
        let new = members(&[(1, "a:1")], 5);
        hints.settle(Some(&old), &new);
        assert_eq!(hints, Hints::default());
        assert!(!hints.heard(Some(&new), peer(4, "d:1")));
        assert!(!hints.heard(Some(&new), peer(6, "")), "an older release does not say where it is");
    }

    #[test]
    fn a_member_that_moved_is_reached_where_it_says_until_the_membership_says_otherwise() {
        let (mut hints, old) = (Hints::default(), members(&[(1, "a:1"), (2, "b:1")], 3));
        assert!(hints.heard(Some(&old), peer(2, "b:2")));
        assert_eq!(reached(&hints, &old), owned(&[(1, "a:1"), (2, "b:2")]));
        // Another change says nothing about it.
        let grown = members(&[(1, "a:1"), (2, "b:1"), (3, "c:1")], 4);
        hints.settle(Some(&old), &grown);
        assert_eq!(hints.addr(&member(2, "b:1")), "b:2");
        // It moved again, and that was committed.
        let moved = members(&[(1, "a:1"), (2, "b:3"), (3, "c:1")], 4);
        hints.settle(Some(&grown), &moved);
        assert_eq!(reached(&hints, &moved), owned(&[(1, "a:1"), (2, "b:3"), (3, "c:1")]));
        // It is back where the membership has it.
        assert!(hints.heard(Some(&moved), peer(2, "b:4")));
        assert!(hints.heard(Some(&moved), peer(2, "b:3")));
        assert_eq!(hints, Hints::default());
    }

    #[test]
    fn they_are_bounded() {
        let (mut hints, m) = (Hints::default(), members(&[(1, "a:1")], 2));
        let last = 2 + MAX_HINTS as u64;
        assert!((2..last).all(|id| hints.heard(Some(&m), peer(id, "x:1"))));
        assert!(!hints.heard(Some(&m), peer(last, "x:1")));
        assert!(hints.heard(Some(&m), peer(2, "x:2")), "a known one is kept up to date");
    }
}
