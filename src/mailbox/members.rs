//! Membership: who belongs to the cluster, and the calls that change it.
//!
//! Every call works through every node; it is carried to the leader. Members are named by node id.
//! - One change at a time: others wait for their turn, in the order in which they were asked for.
//! - What may not be is refused with its reason, and nothing is changed: a change that would lose
//!   the quorum, a vote for a node that has not caught up, the last voter's removal.
//! - A call answers when its change is in force: committed, applied, on the leader's disk, and known
//!   to a majority of the voters where that can be told within an election timeout.
//! - Asking again after an unknown outcome is harmless where nobody else changes the same members:
//!   what holds already is answered with Ok. A call never does that by itself, it could take back
//!   what another one was granted meanwhile: it looks whether what it asked for is in force, until
//!   its deadline.
//! - A change of several members goes through joint consensus (Raft thesis, section 4.3): it happens
//!   at once, or not at all. When the leader fails in the middle, the next one completes it.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::Mailbox;
use crate::driver::shared::Phase;
use crate::driver::{changes, leave};
use crate::error::{Error, Result};
use crate::node::event::{Change, Changed, Event};
use crate::types::{Member, MemberRole, Membership, NodeId, Progress};

impl Mailbox {
    /// The members, at least as new as every change acknowledged before the call. While one data
    /// directory takes the place of another both are listed, under one node id. Who votes, and how
    /// each is, stands in [`crate::Status::members`].
    ///
    /// # Errors
    /// As [`Mailbox::read_index`].
    pub async fn members(&self) -> Result<Vec<Member>> {
        self.read_index().await?;
        Ok(self.shared.view().membership.as_ref().map_or_else(Vec::new, |m| m.members.clone()))
    }

    /// Adds a member that receives the log and does not vote, for good: [`Mailbox::promote`] makes
    /// it a voter. Its data directory may be empty and its process not run yet: start it with
    /// `join`, and it finds itself expected. Of a member it makes one that is not promoted by
    /// itself.
    ///
    /// # Errors
    /// `Membership` when the node votes, or is a member at another address; else why it is not
    /// known to have happened.
    pub async fn add_learner(&self, node_id: NodeId, addr: impl Into<String>) -> Result<()> {
        self.make(Change::AddLearner { node_id, addr: addr.into() }).await
    }

    /// Adds a voter: as a learner at first, which is promoted once its data directory has joined
    /// and has caught up. Returns when it votes, or at the deadline of this handle
    /// (`Config::request_timeout`; [`Mailbox::with_timeout`] for a longer one).
    ///
    /// # Errors
    /// `Unknown` when it has not caught up before the deadline: it stays a learner, which is
    /// promoted when it has; or when somebody removed or demoted it meanwhile. `Membership` when it
    /// may not be added, as for [`Mailbox::add_learner`].
    pub async fn add_voter(&self, node_id: NodeId, addr: impl Into<String>) -> Result<()> {
        self.add_voter_with(node_id, addr, |_| {}).await
    }

    /// As [`Mailbox::add_voter`], and tells how far it is whenever that changes, however often the
    /// leader does meanwhile.
    ///
    /// # Errors
    /// As [`Mailbox::add_voter`].
    pub async fn add_voter_with(
        &self,
        node_id: NodeId,
        addr: impl Into<String>,
        told: impl FnMut(Progress) + Send,
    ) -> Result<()> {
        let change = Change::AddVoter { node_id, addr: addr.into(), added: false };
        self.complete(change, node_id, told).await
    }

    /// Makes a learner a voter that has caught up with the log.
    ///
    /// # Errors
    /// `Membership` when it is no member, has not joined, has not caught up, or when a majority of
    /// the voters would not be reachable.
    pub async fn promote(&self, node_id: NodeId) -> Result<()> {
        self.make(Change::Promote { node_id }).await
    }

    /// Makes a voter a learner, which is not promoted by itself. A leader hands over first.
    ///
    /// # Errors
    /// `Membership` when it is no member or the last voter, or when a majority of the voters that
    /// are left is not reachable.
    pub async fn demote(&self, node_id: NodeId) -> Result<()> {
        self.make(Change::Demote { node_id }).await
    }

    /// Removes a member, by node id; the node's own id means [`Mailbox::leave`]. A leader hands
    /// over first. A removed node that runs is told so, and its `start`, `lead` or `join` returns
    /// [`Error::Removed`]; it may be switched off as soon as this returns. To remove what is no
    /// member succeeds.
    ///
    /// # Errors
    /// `Membership` when it is the last voter, or when a majority of the voters that are left is not
    /// reachable: the cluster would be lost.
    pub async fn remove(&self, node_id: NodeId) -> Result<()> {
        if self.shared.view().identity.is_some_and(|i| i.node_id == node_id) {
            return self.leave().await;
        }
        self.make(Change::Remove { node_id }).await
    }

    /// Puts one member into another's place, at once: `old` goes, and `new` votes if `old` did.
    /// `new` is a learner that was added before; it is waited for until it has caught up. So a
    /// machine is replaced without a moment in which fewer vote.
    ///
    /// A machine that has lost its disk needs no call: started with an empty directory, under its
    /// node id, it is let in again in the place of the directory that was lost.
    ///
    /// # Errors
    /// `Unknown` when `new` has not caught up before the deadline, and `old` is still there.
    /// `Membership` when `new` is no member, or when a majority of the voters would not be reachable.
    pub async fn replace(&self, old: NodeId, new: NodeId) -> Result<()> {
        self.complete(Change::Replace { old, new }, new, |_| {}).await
    }

    /// Makes these all members, at once, however many come to vote, become learners or go. Learners
    /// that are named so are not promoted by themselves. Each must be a member already; voters must
    /// have caught up.
    ///
    /// # Errors
    /// `Membership` when one is unknown or has not caught up, no voter is named, or a majority of
    /// the voters would not be reachable.
    pub async fn change_membership(&self, voters: &[NodeId], learners: &[NodeId]) -> Result<()> {
        self.make(Change::Set { voters: voters.to_vec(), learners: learners.to_vec() }).await
    }

    /// Changes what the cluster knows of a member: the address at which its peers reach it, and
    /// free-form bytes of yours, at most 64 KiB. What is None stays. A node that starts at another
    /// address tells that by itself, once per start: an address given here stays until that node is
    /// started again with another `Config::advertise_addr`.
    ///
    /// # Errors
    /// `Membership` when it is no member, or the address is none.
    pub async fn update_member(
        &self,
        node_id: NodeId,
        addr: Option<String>,
        metadata: Option<Bytes>,
    ) -> Result<()> {
        self.make(Change::Describe { node_id, addr, metadata }).await
    }

    /// Removes this node from the cluster and ends it: `start`, `lead` or `join` returns `Ok` then.
    /// Hands leadership over first, and lingers until the others know: once it is removed, for up
    /// to four election timeouts beyond the deadline.
    ///
    /// # Errors
    /// `Membership` when it is the last voter; else why the leader did not do it. The node goes
    /// on then.
    pub async fn leave(&self) -> Result<()> {
        leave::leave(&self.shared, self.timeout).await
    }

    /// A change that is done or refused.
    async fn make(&self, change: Change) -> Result<()> {
        changes::check(&change)?;
        let deadline = Instant::now() + self.timeout;
        match self.ask_change(change.clone(), self.timeout).await {
            Err(e) if e.outcome_unknown() => self.look_for(&change, deadline, e).await,
            answer => answer.map(|_| ()),
        }
    }

    /// The answer was lost, as that of a leader which ends because the change removes it: looks
    /// whether the change is in force.
    async fn look_for(&self, change: &Change, deadline: Instant, lost: Error) -> Result<()> {
        while self.shared.phase() < Phase::Stopping {
            let left = deadline.saturating_duration_since(Instant::now());
            let there = self.with_timeout(left).read_index().await.is_ok();
            let view = self.shared.view();
            if there && view.membership.as_ref().is_some_and(|m| is_in_force(change, m)) {
                return Ok(());
            }
            if !self.pauses_before(deadline).await {
                return Err(lost);
            }
        }
        // A node that was removed stays until a majority knows of it; what it has applied up to its
        // own removal is in force then.
        let view = self.shared.view();
        let told = view.membership.as_ref().zip(view.cluster()).is_some_and(|(m, (_, me))| {
            self.shared.was_removed() && m.was_removed(me) && is_in_force(change, m)
        });
        if told { Ok(()) } else { Err(lost) }
    }

    /// Waits before the next attempt; false when there is no time for one.
    async fn pauses_before(&self, deadline: Instant) -> bool {
        let pause = self.shared.config.heartbeat.max(Duration::from_millis(20));
        if Instant::now() + pause >= deadline {
            return false;
        }
        sleep(pause).await;
        true
    }

    /// A change that waits for a node, asked for until it is in force: so it survives every change
    /// of leader, and nobody has to remember it.
    async fn complete(
        &self,
        mut change: Change,
        node: NodeId,
        mut told: impl FnMut(Progress) + Send,
    ) -> Result<()> {
        changes::check(&change)?;
        let deadline = Instant::now() + self.timeout;
        let mut known = None;
        let mut last = None;
        // An answer that was lost is never forgotten: what was asked for then may still happen.
        let mut lost = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.ask_change(change.clone(), left).await {
                Ok(Changed { progress: Progress::Done, .. }) => {
                    told(Progress::Done);
                    return Ok(());
                }
                Ok(Changed { progress, .. }) => {
                    if known != Some(progress) {
                        told(progress);
                    }
                    (known, last) = (Some(progress), None);
                    if let Change::AddVoter { added, .. } = &mut change {
                        *added = true;
                    }
                }
                // Who waits for a vote goes on waiting, and does not add it once more.
                Err(e) if e.outcome_unknown() => {
                    let Change::AddVoter { added, .. } = &mut change else {
                        return self.look_for(&change, deadline, e).await;
                    };
                    *added = true;
                    lost = Some(e);
                }
                Err(e) if e.is_retryable() => last = Some(e),
                Err(e) => return Err(refused(node, e, &change, lost.is_some())),
            }
            if !self.pauses_before(deadline).await {
                return Err(unfinished(node, known, lost.or(last)));
            }
        }
    }

    async fn ask_change(&self, change: Change, timeout: Duration) -> Result<Changed> {
        let event = |reply| Event::Change { change, reply };
        self.explain(self.shared.ask(timeout, event).await)
    }
}

/// A refusal after what came before it.
fn refused(node: NodeId, error: Error, change: &Change, lost: bool) -> Error {
    match change {
        _ if lost => Error::unknown(format!("an answer was lost; then: {error}")),
        Change::AddVoter { added: true, .. } => {
            Error::unknown(format!("node {node} was made a learner; then: {error}"))
        }
        _ => error,
    }
}

/// Whether what was asked for holds, and not only half of it.
fn is_in_force(change: &Change, m: &Membership) -> bool {
    if m.is_joint() {
        return false;
    }
    let role = |node: &NodeId| m.by_node(*node).and_then(|known| m.role(known.raft_id));
    let votes = |node: &NodeId| role(node) == Some(MemberRole::Voter);
    let lasting = |node: &NodeId| {
        role(node) == Some(MemberRole::Learner) && m.by_node(*node).is_some_and(|k| k.learner_only)
    };
    match change {
        Change::AddLearner { node_id, .. } | Change::Demote { node_id } => lasting(node_id),
        Change::AddVoter { node_id, .. } | Change::Promote { node_id } => votes(node_id),
        Change::Remove { node_id } => m.by_node(*node_id).is_none(),
        Change::Replace { old, new } => m.by_node(*old).is_none() && votes(new),
        Change::Set { voters, learners } => {
            let named = |id: &NodeId| voters.contains(id) || learners.contains(id);
            voters.iter().all(votes)
                && learners.iter().all(lasting)
                && m.members.iter().all(|known| named(&known.node_id))
        }
        Change::Describe { node_id, addr, metadata } => m.by_node(*node_id).is_some_and(|known| {
            addr.as_ref().is_none_or(|addr| *addr == known.addr)
                && metadata.as_ref().is_none_or(|metadata| *metadata == known.metadata)
        }),
        Change::Join { node_id, incarnation, .. }
        | Change::Update { node_id, incarnation, .. }
        | Change::Leave { node_id, incarnation } => {
            let there = m.by_incarnation(*node_id, *incarnation).is_some();
            there != matches!(change, Change::Leave { .. })
        }
    }
}

/// Why a change is not in force at its deadline.
fn unfinished(node: NodeId, known: Option<Progress>, last: Option<Error>) -> Error {
    match (known, last) {
        (None, Some(error)) => error,
        (None, None) => Error::Timeout,
        (Some(Progress::Expected), _) => Error::unknown(format!(
            "node {node} is a member, and its data directory has not joined yet; start it, then ask \
             again"
        )),
        (Some(Progress::CatchingUp { matched, last }), _) => Error::unknown(format!(
            "node {node} is a learner and has not caught up yet: it holds the log up to index \
             {matched} of {last}; ask again"
        )),
        (Some(Progress::Done), _) => Error::unknown("no answer in time"),
    }
}

#[cfg(test)]
mod tests;
