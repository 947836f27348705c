//! How an empty node finds its cluster: asks for the leader, asks to join, follows hints.
//!
//! It asks for ever, until it is answered, refused for good, or cancelled: members may start in
//! any order. Joining is idempotent by (node id, incarnation), so that an answer that was lost
//! does no harm.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use bytes::Bytes;
use slog::{info, warn};
use tokio::time::{Instant, sleep};

use super::caller::Caller;
use super::shared::Shared;
use super::wire;
use crate::error::{Error, Result};
use crate::pb::{self, request::Kind, response::Kind as Answer};
use crate::transport::{Refusal, TransportError};
use crate::types::{ClusterId, Identity, Membership, RaftId};

/// Hints that are followed before the list of known addresses is tried again.
const MAX_HOPS: usize = 8;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How long one node is waited for when many are asked.
pub(super) const INFO_TIMEOUT: Duration = Duration::from_secs(2);

/// Shortest election timeouts after which a refusal of a cluster is final.
const SETTLED: u32 = 4;

/// What a cluster gave to a new member.
#[derive(Debug)]
pub(crate) struct Joined {
    pub(crate) cluster_id: ClusterId,
    pub(crate) raft_id: RaftId,
    pub(crate) membership: Membership,
}

/// What addresses answered that were asked for a cluster.
#[derive(Debug, Default)]
pub(crate) struct Look {
    /// The first that belongs to one, and to which.
    pub(crate) cluster: Option<(String, ClusterId)>,
    /// Those that answered, and belong to none yet.
    pub(crate) empty: Vec<String>,
    /// Those that did not answer.
    pub(crate) silent: Vec<String>,
}

/// Whether a cluster exists behind any of these addresses.
pub(crate) async fn find_cluster(caller: &Caller, addrs: &[String], timeout: Duration) -> Look {
    let answers = caller.infos(addrs, timeout.min(INFO_TIMEOUT)).await;
    let silent = addrs.iter().filter(|addr| !answers.iter().any(|(a, _)| a == *addr));
    let mut look = Look { silent: silent.cloned().collect(), ..Look::default() };
    for (addr, info) in answers {
        match ClusterId::from_slice(&info.cluster_id) {
            Some(cluster) => look.cluster = look.cluster.or(Some((addr, cluster))),
            None => look.empty.push(addr),
        }
    }
    look
}

/// The leader of the cluster behind these addresses, or any member of it when it names no leader
/// until the deadline; None when there is no cluster.
///
/// A member that `resumes` takes what the first member says: with a majority down, the others
/// cannot have a leader before it is back.
pub(crate) async fn find_leader(
    caller: &Caller,
    addrs: &[String],
    timeout: Duration,
    pause: Duration,
    resumes: bool,
) -> Result<Option<(u64, String)>> {
    let deadline = Instant::now() + timeout;
    let member = |info: &pb::InfoAnswer| !info.cluster_id.is_empty();
    let names_leader =
        |info: &pb::InfoAnswer| member(info) && info.leader_id != 0 && !info.leader_addr.is_empty();
    let enough = |info: &pb::InfoAnswer| names_leader(info) || resumes && member(info);
    loop {
        let answers = caller.infos_until(addrs, timeout.min(INFO_TIMEOUT), enough).await;
        if let Some((_, info)) = answers.iter().find(|(_, info)| names_leader(info)) {
            return Ok(Some((info.leader_id, info.leader_addr.clone())));
        }
        // A member will do: it may be waiting for the very node that asks, and whoever is no
        // member yet is led on from there.
        let first = answers.iter().find(|(_, info)| member(info));
        let Some((addr, info)) = first else { return Ok(None) };
        if resumes || Instant::now() >= deadline {
            return Ok(Some((info.node_id, addr.clone())));
        }
        sleep(pause).await;
    }
}

/// The membership of this cluster, from the first of these that tells it; asks for ever, and says so.
pub(crate) async fn find_membership(
    shared: &Shared,
    caller: &Caller,
    addrs: &[String],
    cluster: ClusterId,
) -> Membership {
    let mut pauses = Pauses::default();
    loop {
        let answers = caller.infos(addrs, INFO_TIMEOUT).await;
        let memberships =
            answers.into_iter().filter_map(|(_, info)| Membership::from_pb(info.membership?).ok());
        let newest = memberships.filter(|m| m.cluster_id == cluster).max_by_key(|m| m.index);
        if let Some(membership) = newest {
            shared.say_waiting("");
            return membership;
        }
        let words = format!(
            "this directory has joined cluster {cluster} and holds nothing of it yet; no member of \
             that cluster answers at {}. Give the address of one that runs",
            addrs.join(", ")
        );
        if shared.status.borrow().waiting != words {
            warn!(shared.logger, "cannot go on yet"; "reason" => &words);
            shared.say_waiting(&words);
        }
        sleep(pauses.next()).await;
    }
}

/// Ever longer pauses, without an end.
#[derive(Debug)]
pub(super) struct Pauses(ExponentialBackoff);

impl Default for Pauses {
    fn default() -> Self {
        let builder = ExponentialBuilder::default()
            .with_min_delay(FIRST_PAUSE)
            .with_max_delay(LONGEST_PAUSE)
            .with_jitter()
            .without_max_times();
        Self(builder.build())
    }
}

impl Pauses {
    pub(super) fn next(&mut self) -> Duration {
        self.0.next().unwrap_or(LONGEST_PAUSE)
    }
}

enum Attempt {
    Joined(Joined),
    /// Ask this one instead.
    Hint(String),
    /// Not now.
    Later(String),
}

/// Asks these addresses, and the leaders that they name, until one lets this node in.
///
/// # Errors
/// A refusal that will not change by itself: that of a cluster which still stands after a few
/// election timeouts. Until then it may speak of what this directory stands in for: a node that
/// was wiped and started again at once has been heard a moment ago.
pub(crate) async fn join(
    shared: &Arc<Shared>,
    caller: &Caller,
    identity: &Identity,
    addr: &str,
    known: &[String],
) -> Result<Joined> {
    let request = Kind::Join(pb::Join {
        node_id: identity.node_id,
        incarnation: Bytes::copy_from_slice(&identity.incarnation.to_bytes()),
        addr: addr.to_owned(),
        learner_only: !shared.config.auto_promote,
    });
    let mut pauses = Pauses::default();
    let mut refused_since: Option<Instant> = None;
    loop {
        for first in known {
            let mut target = first.clone();
            for _ in 0..MAX_HOPS {
                let attempt = match attempt(shared, caller, &target, request.clone()).await {
                    Err(e @ Error::Membership(_)) => {
                        let since = *refused_since.get_or_insert_with(Instant::now);
                        if since.elapsed() >= shared.config.election_timeout() * SETTLED {
                            return Err(e);
                        }
                        Attempt::Later(e.to_string())
                    }
                    attempt => attempt?,
                };
                match attempt {
                    Attempt::Joined(joined) => {
                        info!(shared.logger, "joined the cluster"; "through" => target,
                            "cluster" => %joined.cluster_id, "raft_id" => joined.raft_id);
                        shared.say_waiting("");
                        return Ok(joined);
                    }
                    Attempt::Hint(next) if next != target => target = next,
                    Attempt::Hint(_) => break,
                    Attempt::Later(reason) => {
                        warn!(shared.logger, "cannot join yet"; "peer" => target.clone(),
                            "reason" => &reason);
                        shared.say_waiting(&format!("cannot join through {target} yet: {reason}"));
                        break;
                    }
                }
            }
        }
        sleep(pauses.next()).await;
    }
}

async fn attempt(shared: &Shared, caller: &Caller, target: &str, request: Kind) -> Result<Attempt> {
    let timeout = shared.config.request_timeout;
    match caller.call(target, None, request, timeout).await {
        Ok(Some(Answer::Joined(joined))) => read(joined).map(Attempt::Joined),
        Ok(Some(Answer::Refused(refused))) => refusal(target, &refused),
        Ok(_) => Ok(Attempt::Later("its answer does not fit the question".to_owned())),
        Err(TransportError::Refused(r @ (Refusal::Protocol { .. } | Refusal::Cluster { .. }))) => {
            Err(Error::WrongCluster(format!("{target}: {r}")))
        }
        Err(e) => Ok(Attempt::Later(e.to_string())),
    }
}

fn refusal(target: &str, refused: &pb::Refused) -> Result<Attempt> {
    if let Some(leader) = wire::leader(refused)
        && leader.addr != target
    {
        return Ok(Attempt::Hint(leader.addr));
    }
    match wire::error(refused, 0, 0) {
        e @ (Error::Membership(_) | Error::WrongCluster(_)) => Err(e),
        e => Ok(Attempt::Later(e.to_string())),
    }
}

fn read(joined: pb::Joined) -> Result<Joined> {
    let malformed =
        |what: &str| Error::WrongCluster(format!("the answer to the join is malformed: {what}"));
    let cluster_id =
        ClusterId::from_slice(&joined.cluster_id).ok_or_else(|| malformed("cluster id"))?;
    let membership = joined.membership.ok_or_else(|| malformed("no membership"))?;
    let membership = Membership::from_pb(membership).map_err(|e| malformed(&e))?;
    if joined.raft_id == 0 || membership.cluster_id != cluster_id {
        return Err(malformed("ids that do not fit"));
    }
    Ok(Joined { cluster_id, raft_id: joined.raft_id, membership })
}
