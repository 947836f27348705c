//! Who belongs to a cluster: members, their roles, and the record of it that is replicated.

use bytes::Bytes;

use super::{ClusterId, Incarnation, Index, NodeId, RaftId, eraftpb};
use crate::pb;

/// Whether a member votes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemberRole {
    /// Votes and counts for the quorum.
    Voter,
    /// Receives the log, does not vote.
    Learner,
}

/// One member of the cluster, as replicated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The user's name for the machine.
    pub node_id: NodeId,
    /// Raft's id of its data directory.
    pub raft_id: RaftId,
    /// The random name of its data directory; 0 while it was added and has not joined.
    pub incarnation: Incarnation,
    /// Where its peers reach it, `host:port`.
    pub addr: String,
    /// Free-form bytes of the user.
    pub metadata: Bytes,
    /// Whether it stays a learner when it has caught up, until it is promoted by a call.
    pub learner_only: bool,
}

/// Voters and learners by raft id (raft-rs `ConfState`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfState {
    /// Members that vote.
    pub voters: Vec<RaftId>,
    /// Members that do not.
    pub learners: Vec<RaftId>,
    /// The old voters of a joint configuration.
    pub voters_outgoing: Vec<RaftId>,
    /// Voters that become learners when the joint configuration is left.
    pub learners_next: Vec<RaftId>,
    /// Whether raft leaves the joint configuration by itself; never set by this crate.
    pub auto_leave: bool,
}

impl ConfState {
    /// Whether `id` is in it, in any part.
    pub fn contains(&self, id: RaftId) -> bool {
        self.voters.contains(&id)
            || self.learners.contains(&id)
            || self.voters_outgoing.contains(&id)
            || self.learners_next.contains(&id)
    }
}

impl From<&eraftpb::ConfState> for ConfState {
    /// In ascending order: the engine's depends on the order in which members came, which a
    /// replica that started from a snapshot does not know.
    fn from(c: &eraftpb::ConfState) -> Self {
        let sorted = |ids: &[RaftId]| {
            let mut ids = ids.to_vec();
            ids.sort_unstable();
            ids
        };
        Self {
            voters: sorted(&c.voters),
            learners: sorted(&c.learners),
            voters_outgoing: sorted(&c.voters_outgoing),
            learners_next: sorted(&c.learners_next),
            auto_leave: c.auto_leave,
        }
    }
}

impl From<&ConfState> for eraftpb::ConfState {
    fn from(c: &ConfState) -> Self {
        let mut out = Self::default();
        out.set_voters(c.voters.clone());
        out.set_learners(c.learners.clone());
        out.set_voters_outgoing(c.voters_outgoing.clone());
        out.set_learners_next(c.learners_next.clone());
        out.set_auto_leave(c.auto_leave);
        out
    }
}

/// The replicated membership: who belongs, where they are, and which raft ids are used up.
///
/// It lives in the log (as the newest record), in every snapshot, and is the only address book.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// Log index of the last change that it holds.
    pub index: Index,
    /// Voters and learners as raft counts them.
    pub conf_state: ConfState,
    /// The members, ordered by node id, then by raft id.
    pub members: Vec<Member>,
    /// The next raft id to hand out; one below it that is no member was removed.
    pub next_raft_id: RaftId,
}

impl Membership {
    /// The member with this node id. While its data directory is being replaced there are two: the
    /// new one.
    pub fn by_node(&self, id: NodeId) -> Option<&Member> {
        self.members.iter().rfind(|m| m.node_id == id)
    }

    /// The member with this node id and this data directory.
    pub fn by_incarnation(&self, id: NodeId, incarnation: Incarnation) -> Option<&Member> {
        self.members.iter().find(|m| (m.node_id, m.incarnation) == (id, incarnation))
    }

    /// Whether the members are on their way from one set of voters to another (Raft thesis, 4.3).
    pub fn is_joint(&self) -> bool {
        !self.conf_state.voters_outgoing.is_empty()
    }

    /// The member with this raft id.
    pub fn by_raft(&self, id: RaftId) -> Option<&Member> {
        self.members.iter().find(|m| m.raft_id == id)
    }

    /// Whether this raft id was a member once and is none now.
    pub fn was_removed(&self, id: RaftId) -> bool {
        id < self.next_raft_id && self.by_raft(id).is_none()
    }

    /// Whether a member votes; one that is on its way out does until then.
    pub fn role(&self, id: RaftId) -> Option<MemberRole> {
        self.by_raft(id)?;
        let c = &self.conf_state;
        if c.voters.contains(&id) || c.voters_outgoing.contains(&id) {
            Some(MemberRole::Voter)
        } else {
            Some(MemberRole::Learner)
        }
    }

    /// The record of the wire and the disk.
    pub fn to_pb(&self) -> pb::Membership {
        let c = &self.conf_state;
        pb::Membership {
            cluster_id: Bytes::copy_from_slice(&self.cluster_id.to_bytes()),
            index: self.index,
            conf_state: Some(pb::ConfState {
                voters: c.voters.clone(),
                learners: c.learners.clone(),
                voters_outgoing: c.voters_outgoing.clone(),
                learners_next: c.learners_next.clone(),
                auto_leave: c.auto_leave,
            }),
            members: self.members.iter().map(Member::to_pb).collect(),
            next_raft_id: self.next_raft_id,
        }
    }

    /// The membership in a record; the reason when it is malformed.
    ///
    /// # Errors
    /// A sentence that says which field is wrong.
    pub fn from_pb(p: pb::Membership) -> Result<Self, String> {
        let cluster_id =
            ClusterId::from_slice(&p.cluster_id).ok_or("cluster id is not 16 bytes long")?;
        let c = p.conf_state.unwrap_or_default();
        let conf_state = ConfState {
            voters: c.voters,
            learners: c.learners,
            voters_outgoing: c.voters_outgoing,
            learners_next: c.learners_next,
            auto_leave: c.auto_leave,
        };
        let members = p.members.into_iter().map(Member::from_pb).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { cluster_id, index: p.index, conf_state, members, next_raft_id: p.next_raft_id })
    }

    /// The bytes of the record.
    pub fn encode(&self) -> Bytes {
        prost::Message::encode_to_vec(&self.to_pb()).into()
    }

    /// The membership in these bytes; the reason when they are malformed.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn decode(bytes: Bytes) -> Result<Self, String> {
        let p: pb::Membership =
            prost::Message::decode(bytes).map_err(|e| format!("membership record: {e}"))?;
        Self::from_pb(p)
    }
}

#[cfg(test)]
impl Member {
    /// One whose node id, raft id, incarnation and address are this number.
    pub(crate) fn numbered(n: u64) -> Self {
        Self {
            node_id: n,
            raft_id: n,
            incarnation: Incarnation::from_u128(u128::from(n)),
            addr: format!("n{n}:1"),
            metadata: Bytes::new(),
            learner_only: false,
        }
    }
}

impl Member {
    /// Whether its data directory has joined; until then it is a name that is kept for it.
    pub fn has_joined(&self) -> bool {
        self.incarnation != Incarnation::from_u128(0)
    }

    /// The record of the wire and the disk.
    pub fn to_pb(&self) -> pb::Member {
        pb::Member {
            node_id: self.node_id,
            raft_id: self.raft_id,
            incarnation: Bytes::copy_from_slice(&self.incarnation.to_bytes()),
            addr: self.addr.clone(),
            metadata: self.metadata.clone(),
            learner_only: self.learner_only,
        }
    }

    /// The member in a record.
    ///
    /// # Errors
    /// A sentence that says which field is wrong.
    pub fn from_pb(p: pb::Member) -> Result<Self, String> {
        let incarnation = Incarnation::from_slice(&p.incarnation)
            .ok_or_else(|| format!("incarnation of node {} is not 16 bytes long", p.node_id))?;
        if p.node_id == 0 || p.raft_id == 0 {
            return Err("a member's id is 0".to_owned());
        }
        Ok(Self {
            node_id: p.node_id,
            raft_id: p.raft_id,
            incarnation,
            addr: p.addr,
            metadata: p.metadata,
            learner_only: p.learner_only,
        })
    }
}

/// How far a change is that waits for a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The node was added, and its data directory has not joined yet.
    Expected,
    /// It is a learner, which holds the log up to `matched` of `last`.
    CatchingUp {
        /// The last entry that it is known to hold; 0: not known yet.
        matched: Index,
        /// The end of the leader's log.
        last: Index,
    },
    /// The change is in force.
    Done,
}
