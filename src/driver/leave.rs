//! A node's own removal: hand over, be removed, linger until the others know, stop.
//!
//! Invariants:
//! - a leader never removes itself while another voter could lead (H1);
//! - an unknown answer is asked again, of the others, because the leader stops replicating to a
//!   node that it has removed;
//! - an answer that was lost is never forgotten: whatever is heard after it, the removal may still
//!   happen, and the caller is told so;
//! - the last voter stays.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use slog::info;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::hints::Hints;
use super::shared::{Phase, Shared};
use crate::error::{Error, Result};
use crate::node::event::{Change, Event};
use crate::types::{Identity, Member, Membership, NodeId, RaftId};

/// Leaves the cluster and ends the node.
pub(crate) async fn leave(shared: &Arc<Shared>, timeout: Duration) -> Result<()> {
    let deadline = Instant::now() + timeout;
    shared.begin_leaving();
    if let Err(e) = remove_self(shared, deadline).await {
        // What may still happen is no surprise when it does.
        if !e.outcome_unknown() {
            shared.end_leaving();
        }
        return Err(e);
    }
    let patience = deadline.max(Instant::now() + shared.config.election_timeout() * 4);
    if timeout_at(patience, linger(shared)).await.is_err() {
        return Err(Error::unknown(
            "this node was removed, but a majority of the voters has not learned of it yet; it \
             stays until they have",
        ));
    }
    shared.enter(Phase::Stopping);
    shared.reached(Phase::Ended).await;
    Ok(())
}

/// Ends a node that has learned of its own removal, once the others know: a voter that has not
/// heard of it yet may need this one's vote to find out.
pub(crate) async fn depart(shared: Arc<Shared>) {
    if shared.begin_departing() {
        linger(&shared).await;
        // Whoever shut it down meanwhile gets no failure for it.
        if shared.phase() < Phase::Stopping {
            shared.end_removed();
        }
    }
}

async fn remove_self(shared: &Arc<Shared>, deadline: Instant) -> Result<()> {
    // A new leader that has not heard of everybody yet refuses what it allows a moment later.
    let settled = Instant::now() + shared.config.election_timeout() * 2;
    let mut last = Error::Timeout;
    let mut lost = None;
    while Instant::now() < deadline {
        // Told by a peer that it was removed: that is what was wanted.
        if shared.was_removed() {
            return Ok(());
        }
        let view = shared.view();
        let (Some(identity), Some(membership)) = (view.identity, view.membership.as_ref()) else {
            pause(shared, deadline).await;
            continue;
        };
        if identity.cluster.is_some_and(|(_, me)| membership.conf_state.voters == [me]) {
            let reason =
                "the last voter cannot leave: the cluster would be gone. Shut it down instead";
            return Err(lost.unwrap_or_else(|| Error::Membership(reason.to_owned())));
        }
        match step(shared, &identity, membership, deadline).await {
            Ok(true) => return Ok(()),
            Ok(false) => continue,
            Err(_) if shared.was_removed() => return Ok(()),
            Err(e) if e.outcome_unknown() => {
                if timeout_at(deadline, is_removed_elsewhere(shared)).await == Ok(true) {
                    return Ok(());
                }
                lost = Some(e);
            }
            Err(e @ Error::Membership(_)) if Instant::now() < settled => last = e,
            Err(e) if e.is_retryable() => last = e,
            Err(e) => return Err(lost.unwrap_or(e)),
        }
        pause(shared, deadline).await;
    }
    Err(lost.unwrap_or(last))
}

/// Before it looks again, or the deadline passes.
async fn pause(shared: &Shared, deadline: Instant) {
    sleep_until(deadline.min(Instant::now() + shared.config.heartbeat)).await;
}

/// One attempt; true once this node is no member any more.
async fn step(
    shared: &Arc<Shared>,
    identity: &Identity,
    membership: &Membership,
    deadline: Instant,
) -> Result<bool> {
    let Some((_, me)) = identity.cluster else { return Err(Error::NoLeader) };
    if membership.by_raft(me).is_none() {
        return Ok(true);
    }
    let left = deadline.saturating_duration_since(Instant::now());
    if shared.leads() {
        let handed = shared.ask(left, |reply| Event::Transfer { to: None, reply }).await;
        // Whether leadership may still go is of no matter: no removal was asked for.
        handed.map_err(|e| if e.outcome_unknown() { Error::Timeout } else { e })?;
        let mut watch = shared.status.subscribe();
        let handed = watch.wait_for(|s| s.leader_id != 0 && s.leader_id != identity.node_id);
        let _ = timeout_at(deadline, handed).await;
        return Ok(false);
    }
    // By data directory: another one may have taken the place of this one.
    let (node_id, incarnation) = (identity.node_id, identity.incarnation);
    let change = Change::Leave { node_id, incarnation };
    shared.ask(left, |reply| Event::Change { change, reply }).await?;
    Ok(true)
}

/// Whether any other member says that this node was removed.
async fn is_removed_elsewhere(shared: &Arc<Shared>) -> bool {
    knowing(shared).await.members > 0
}

/// Stays until all others know, or, when some cannot be reached for two election timeouts, until a
/// majority of the voters knows. Without one it stays: whoever counts votes by the configuration
/// before may need this node's (two voters, one of them removed: the other alone could never find
/// out).
async fn linger(shared: &Arc<Shared>) {
    let patience = Instant::now() + shared.config.election_timeout() * 2;
    let mut told = false;
    while shared.phase() < Phase::Stopping {
        let knowing = knowing(shared).await;
        let late = Instant::now() >= patience;
        if knowing.is_enough(late) {
            return;
        }
        if late && !told {
            told = true;
            info!(shared.logger, "this node was removed, and stays until a majority knows");
        }
        let pause = shared.config.heartbeat;
        sleep(if late { shared.config.election_timeout() } else { pause }).await;
    }
}

/// Who among the others knows that this node was removed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Knowing {
    members: usize,
    of_members: usize,
    /// Of both halves of a joint configuration, or of one twice: how many know, of how many.
    voters: [(usize, usize); 2],
}

/// Finds out who knows: by the newest membership that any of the others tells, because the leader
/// of a removed node sends it no news.
#[derive(Debug)]
pub(crate) struct Inquiry {
    me: RaftId,
    newest: Membership,
    hints: Hints,
    asked: BTreeSet<String>,
    informed: BTreeSet<NodeId>,
}

impl Inquiry {
    pub(crate) fn new(me: RaftId, newest: Membership, hints: Hints) -> Self {
        Self { me, newest, hints, asked: BTreeSet::new(), informed: BTreeSet::new() }
    }

    /// Whom to ask next; nobody once all were asked. Both where a member was heard last and where
    /// it is recorded: what others tell may be newer than what was heard, or older.
    pub(crate) fn ask(&mut self) -> Vec<String> {
        let others = self.newest.members.iter().filter(|m| m.raft_id != self.me);
        let addrs = others.flat_map(|m| [self.hints.addr(m), &m.addr]).map(str::to_owned);
        addrs.filter(|addr| self.asked.insert(addr.clone())).collect()
    }

    /// What a node tells of its membership.
    pub(crate) fn told(&mut self, node: NodeId, theirs: Membership) {
        if theirs.cluster_id == self.newest.cluster_id && theirs.was_removed(self.me) {
            self.informed.insert(node);
            if theirs.index > self.newest.index {
                self.newest = theirs;
            }
        }
    }

    pub(crate) fn end(&self) -> Knowing {
        Knowing::of(&self.newest, self.me, &self.informed)
    }
}

async fn knowing(shared: &Arc<Shared>) -> Knowing {
    let view = shared.view();
    let (Some(caller), Some((_, me)), Some(membership)) =
        (shared.caller(), view.cluster(), view.membership.clone())
    else {
        return Knowing::default();
    };
    let mut inquiry = Inquiry::new(me, membership, view.hints.clone());
    loop {
        let addrs = inquiry.ask();
        if addrs.is_empty() {
            return inquiry.end();
        }
        for (_, info) in caller.infos(&addrs, shared.config.election_timeout()).await {
            if let Some(theirs) = info.membership.and_then(|m| Membership::from_pb(m).ok()) {
                inquiry.told(info.node_id, theirs);
            }
        }
    }
}

impl Knowing {
    /// Whether the removed node may end: all know, or, `late`, a majority of the voters.
    pub(crate) fn is_enough(self, late: bool) -> bool {
        let all = self.members == self.of_members;
        all || (late && self.voters.iter().all(|(know, of)| *know > of / 2))
    }

    fn of(m: &Membership, me: RaftId, informed: &BTreeSet<NodeId>) -> Self {
        let others: Vec<&Member> = m.members.iter().filter(|other| other.raft_id != me).collect();
        let knows = |other: &&&Member| informed.contains(&other.node_id);
        let among = |voters: &[RaftId]| {
            let votes = |other: &&&Member| voters.contains(&other.raft_id);
            let of = others.iter().filter(votes);
            (of.clone().filter(knows).count(), of.count())
        };
        let incoming = among(&m.conf_state.voters);
        let outgoing = among(&m.conf_state.voters_outgoing);
        Self {
            members: others.iter().filter(knows).count(),
            of_members: others.len(),
            voters: [incoming, if outgoing.1 == 0 { incoming } else { outgoing }],
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::driver::inbox::Classes;
    use crate::driver::shared::View;
    use crate::transport::Peer;
    use crate::types::{ClusterId, ConfState, Incarnation};

    fn member_of_two() -> Arc<Shared> {
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let shared = Arc::new(Shared::new(Config::default(), logger, |_| Ok(())));
        let cluster_id = ClusterId::from_u128(9);
        shared.update_view(|view| {
            *view = View {
                identity: Some(Identity {
                    node_id: 1,
                    incarnation: Incarnation::from_u128(1),
                    cluster: Some((cluster_id, 1)),
                    boot: 1,
                }),
                membership: Some(Membership {
                    cluster_id,
                    index: 5,
                    conf_state: ConfState { voters: vec![1, 2], ..ConfState::default() },
                    members: vec![Member::numbered(1), Member::numbered(2)],
                    next_raft_id: 3,
                }),
                ..View::default()
            }
        });
        shared
    }

    /// Answers what is asked for: the first with `first`, the rest with `NoLeader`.
    async fn answer(shared: Arc<Shared>, first: Error) {
        let mut first = Some(first);
        let mut taken = Classes::default();
        loop {
            shared.inbox.turn(Instant::now() + Duration::from_secs(3600), false).await;
            shared.inbox.take(&mut taken);
            for event in taken.requests.drain(..) {
                let error = first.take().unwrap_or(Error::NoLeader);
                match event {
                    Event::Change { reply, .. } => reply.send(Err(error)),
                    Event::Transfer { reply, .. } => reply.send(Err(error)),
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    #[test]
    fn a_removed_node_stays_until_a_majority_knows() {
        let knowing = |members, voters, of_voters| Knowing {
            members,
            of_members: of_voters + 1,
            voters: [(voters, of_voters); 2],
        };
        assert!(knowing(4, 3, 3).is_enough(false), "all know");
        assert!(!knowing(3, 3, 3).is_enough(false), "a learner may still hear of it from here");
        assert!(knowing(2, 2, 3).is_enough(true));
        assert!(!knowing(2, 1, 3).is_enough(true), "two voters without it are no majority");
        assert!(!knowing(0, 0, 1).is_enough(true), "the last voter needs this one's vote");
    }

    #[test]
    fn members_that_moved_are_asked_where_they_say_that_they_are() {
        let membership = member_of_two().view().membership.clone().unwrap();
        let Member { raft_id, node_id, incarnation, .. } = membership.members[1].clone();
        let peer = Peer { raft_id, node_id, incarnation, addr: "n2:9".to_owned() };
        let mut hints = Hints::default();
        assert!(hints.heard(Some(&membership), peer, true));
        let mut newer = membership.clone();
        let mut inquiry = Inquiry::new(1, membership, hints);
        assert_eq!(inquiry.ask(), ["n2:9", "n2:1"]);
        assert!(inquiry.ask().is_empty(), "each is asked once");
        // It has moved on since, as others know.
        newer.index += 1;
        newer.members.retain(|m| m.raft_id != 1);
        newer.members[0].addr = "n2:10".to_owned();
        inquiry.told(3, newer);
        assert_eq!(inquiry.ask(), ["n2:10"]);
    }

    #[test]
    fn who_must_know_is_told_by_the_newest_membership() {
        let shared = member_of_two();
        let membership = shared.view().membership.clone().unwrap();
        let none = BTreeSet::new();
        assert!(!Knowing::of(&membership, 1, &none).is_enough(true), "node 2 may need its vote");
        let told = BTreeSet::from([2]);
        assert!(Knowing::of(&membership, 1, &told).is_enough(false));
        // A member that left since is not waited for.
        let mut newer = membership;
        newer.members.retain(|m| m.node_id == 2);
        newer.conf_state.voters = vec![2];
        assert!(Knowing::of(&newer, 1, &told).is_enough(false));
    }

    #[test]
    fn both_halves_of_a_joint_configuration_must_know() {
        let shared = member_of_two();
        let mut joint = shared.view().membership.clone().unwrap();
        let third = Member { node_id: 3, raft_id: 3, ..joint.members[1].clone() };
        let fourth = Member { node_id: 4, raft_id: 4, ..joint.members[1].clone() };
        joint.members.extend([third, fourth]);
        joint.conf_state.voters = vec![2];
        joint.conf_state.voters_outgoing = vec![3, 4];
        let knows = |told: &[u64]| {
            let told = told.iter().copied().collect();
            Knowing::of(&joint, 1, &told).is_enough(true)
        };
        assert!(!knows(&[3, 4]), "node 2 alone is a majority of those to come");
        assert!(!knows(&[2, 3]));
        assert!(knows(&[2, 3, 4]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_removal_that_may_still_happen_is_not_denied_by_what_is_heard_after_it() {
        for (first, unknown) in [(Error::unknown("lost"), true), (Error::NoLeader, false)] {
            let shared = member_of_two();
            let leader = tokio::spawn(answer(shared.clone(), first));
            let (begun, timeout) = (Instant::now(), Duration::from_millis(950));
            let error = leave(&shared, timeout).await.unwrap_err();
            assert!(begun.elapsed() < timeout + Duration::from_millis(10), "no longer than that");
            leader.abort();
            assert_eq!(error.outcome_unknown(), unknown, "{error}");
            assert_eq!(shared.is_leaving(), unknown, "its end is a failure unless it was asked");
        }
    }

    /// Leadership may still go to another, and yet nobody was asked to remove this node.
    #[tokio::test(start_paused = true)]
    async fn a_leader_that_could_not_hand_over_was_not_asked_to_go() {
        let shared = member_of_two();
        shared.status.send_modify(|s| s.role = crate::status::Role::Leader);
        let leader = tokio::spawn(answer(shared.clone(), Error::unknown("it may still")));
        let error = leave(&shared, Duration::from_secs(1)).await.unwrap_err();
        leader.abort();
        assert!(!error.outcome_unknown() && !shared.is_leaving(), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_leave_that_fails_does_not_speak_for_another() {
        let shared = member_of_two();
        let other = tokio::spawn({
            let shared = shared.clone();
            async move { leave(&shared, Duration::from_secs(60)).await }
        });
        tokio::task::yield_now().await;
        let leader = tokio::spawn(answer(shared.clone(), Error::NoLeader));
        leave(&shared, Duration::from_secs(1)).await.unwrap_err();
        assert!(shared.is_leaving(), "the other one may still succeed");
        leader.abort();
        other.abort();
    }
}
