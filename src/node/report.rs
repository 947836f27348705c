//! What a node tells about itself: `Status`, and health in words.

use raft_rs::ProgressState;

use super::Node;
use super::effect::Effect;
use crate::status::{MemberStatus, Replication, Role, Status};
use crate::types::{MemberRole, NodeId, RaftId};
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
        let members = self.member_status();
        let untold = self.is_leader() && !self.leads_openly();
        let leader = self.leader().filter(|_| !untold);
        Status {
            id: self.identity.node_id,
            cluster_id: self.identity.cluster.map(|(c, _)| c.to_string()).unwrap_or_default(),
            role: if untold { Role::Candidate } else { self.role() },
            leader_id: leader.as_ref().map_or(0, |l| l.id),
            leader_addr: leader.map(|l| l.addr).unwrap_or_default(),
            term: self.raw.raft.term,
            commit: self.raw.raft.raft_log.committed,
            applied: self.store_applied,
            last_index: self.last_index(),
            snapshot: self.snapshots.newest(),
            health: self.health(&members),
            members,
            refused_messages: self.refused_messages,
            dropped_tail: self.dropped_tail.clone(),
        }
    }

    fn member_status(&self) -> Vec<MemberStatus> {
        let Some(m) = &self.membership else { return Vec::new() };
        let progress = |id: RaftId| {
            self.is_leader().then(|| self.raw.raft.prs().get(id)).flatten().map(|p| {
                let how = match p.state {
                    ProgressState::Probe => Replication::Probe,
                    ProgressState::Replicate => Replication::Replicate,
                    ProgressState::Snapshot => Replication::Snapshot,
                };
                (p.matched, how)
            })
        };
        m.members
            .iter()
            .map(|member| {
                let progress = progress(member.raft_id);
                MemberStatus {
                    id: member.node_id,
                    addr: member.addr.clone(),
                    voter: m.role(member.raft_id) == Some(MemberRole::Voter),
                    matched: progress.map(|p| p.0),
                    replication: progress.map(|p| p.1),
                    silent_ticks: self.silent_ticks(member.raft_id),
                }
            })
            .collect()
    }

    fn health(&self, members: &[MemberStatus]) -> String {
        if self.membership.is_none() {
            return "waiting for the first snapshot from the cluster".to_owned();
        }
        if self.stalled() {
            return "the disk has not finished a write for longer than a heartbeat".to_owned();
        }
        if self.raw.raft.leader_id == 0 {
            return "no leader is known: a majority of the voters may be unreachable".to_owned();
        }
        if self.role() != Role::Leader {
            return "healthy: follows a leader".to_owned();
        }
        let me = self.identity.node_id;
        let quiet = |m: &&MemberStatus| {
            m.id != me && m.silent_ticks.is_none_or(|t| t > self.limits.election_tick)
        };
        let lost: Vec<NodeId> = members.iter().filter(quiet).map(|m| m.id).collect();
        let voters = members.iter().filter(|m| m.voter).count();
        let alive = members.iter().filter(|m| m.voter && !quiet(m)).count();
        let spare = alive.saturating_sub(voters / 2 + 1);
        if lost.is_empty() {
            format!("healthy: every member is reachable; voters that may fail: {spare}")
        } else {
            format!("not heard from: {lost:?}; voters that may fail besides: {spare}")
        }
    }

    /// The node id of a raft id; 0: unknown.
    pub(super) fn node_of(&self, id: RaftId) -> NodeId {
        self.membership.as_ref().and_then(|m| m.by_raft(id)).map_or(0, |m| m.node_id)
    }
}
