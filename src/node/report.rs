//! What a node tells about itself: `Status`, and health in words.

use raft_rs::ProgressState;

use super::Node;
use super::effect::Effect;
use crate::status::{MemberStatus, Replication, Role, Status, VotingRole};
use crate::types::{Member, MemberRole, Membership, NodeId, RaftId};
use crate::zoo::{self, Bug};

impl Node {
    /// Publishes the status if it differs from the last one.
    pub(super) fn publish(&mut self) {
        self.status_changed = false;
        let mut status = self.status();
        if zoo::has(Bug::StaleHint) && self.published.leader_id != 0 {
            status.leader_id = self.published.leader_id;
            status.leader_addr.clone_from(&self.published.leader_addr);
        }
        if zoo::has(Bug::RoleUntold) && status.role == Role::Leader {
            status.role = self.published.role;
        }
        if status != self.published {
            self.published = status.clone();
            self.out.push(Effect::Publish(Box::new(status)));
        }
    }

    /// On a tick: whether there is anything new to publish. An idle node tells once per election
    /// timeout who was heard when, and nothing else.
    pub(super) fn notice_progress(&mut self) {
        let log = &self.raw.raft.raft_log;
        let progress = (log.committed, log.last_index(), self.store_applied, self.refused_messages);
        let moved = std::mem::replace(&mut self.progress, progress) != progress;
        self.status_changed |= moved || self.tick.is_multiple_of(self.limits.election_tick);
    }

    /// Everything, right now.
    pub(crate) fn status(&self) -> Status {
        let untold = self.is_leader() && !self.leads_openly();
        let leader = self.leader().filter(|_| !untold);
        let mut status = Status {
            id: self.identity.node_id,
            cluster_id: self.identity.cluster.map(|(c, _)| c.to_string()).unwrap_or_default(),
            role: if untold { Role::Candidate } else { self.role() },
            leader_id: leader.as_ref().map_or(0, |l| l.id),
            leader_addr: leader.map(|l| l.addr).unwrap_or_default(),
            leader_ms: self.ms(self.leader_ticks()),
            term: self.raw.raft.term,
            commit: self.raw.raft.raft_log.committed,
            applied: self.store_applied,
            last_index: self.last_index(),
            snapshot: self.snapshots.newest(),
            members: self.member_status(),
            refused_messages: self.refused_messages,
            dropped_tail: self.dropped_tail.clone(),
            disk_stalled: self.stalled(),
            awaits_members: self.awaits_members().unwrap_or(0),
            elsewhere: String::new(),
            waiting: String::new(),
            health: String::new(),
        };
        status.reword();
        status
    }

    fn member_status(&self) -> Vec<MemberStatus> {
        let Some(m) = &self.membership else { return Vec::new() };
        m.members.iter().map(|member| self.about(m, member)).collect()
    }

    fn about(&self, m: &Membership, member: &Member) -> MemberStatus {
        let id = member.raft_id;
        let progress = self.is_leader().then(|| self.raw.raft.prs().get(id)).flatten();
        let replication = progress.map(|p| match p.state {
            ProgressState::Probe => Replication::Probe,
            ProgressState::Replicate => Replication::Replicate,
            ProgressState::Snapshot => Replication::Snapshot,
        });
        let sent = self.snapshots.percent(id);
        let incarnation = match member.has_joined() {
            true => member.incarnation.to_string(),
            false => String::new(),
        };
        MemberStatus {
            id: member.node_id,
            addr: member.addr.clone(),
            incarnation,
            role: voting_role(m, id),
            voter: m.role(id) == Some(MemberRole::Voter),
            matched: progress.map(|p| p.matched),
            lag: progress.map(|p| self.last_index().saturating_sub(p.matched)),
            replication,
            snapshot_percent: sent.filter(|_| replication == Some(Replication::Snapshot)),
            last_contact_ms: self.silent_ticks(id).map(|ticks| self.ms(ticks)),
            reachable: self.is_reachable(id),
            acknowledges: self.judged(id),
            refusal: String::new(),
        }
    }

    /// Whether a member acknowledges, on the leader; one that has not yet may still, for an election
    /// timeout after this node began to lead.
    fn judged(&self, id: RaftId) -> Option<bool> {
        let early = self.tick < self.led_since() + self.limits.election_tick;
        let acknowledges = self.acknowledges(id);
        (self.is_leader() && (acknowledges || !early)).then_some(acknowledges)
    }

    /// So many ticks in milliseconds.
    fn ms(&self, ticks: u64) -> u64 {
        let micros = self.limits.heartbeat.as_micros().saturating_mul(u128::from(ticks));
        u64::try_from(micros / 1000).unwrap_or(u64::MAX)
    }

    /// The node id of a raft id; 0: unknown.
    pub(super) fn node_of(&self, id: RaftId) -> NodeId {
        self.membership.as_ref().and_then(|m| m.by_raft(id)).map_or(0, |m| m.node_id)
    }
}

fn voting_role(m: &Membership, id: RaftId) -> VotingRole {
    let c = &m.conf_state;
    match (c.voters.contains(&id), c.voters_outgoing.contains(&id)) {
        (true, true) => VotingRole::Voter,
        (true, false) if m.is_joint() => VotingRole::Incoming,
        (true, false) => VotingRole::Voter,
        (false, true) => VotingRole::Outgoing,
        (false, false) => VotingRole::Learner,
    }
}
