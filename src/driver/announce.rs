//! A node that moved tells the leader its new address.
//!
//! The members know only the old address, so none of them can reach this node, and it may never
//! hear who leads: it asks them who does, and tells that one.

use std::sync::Arc;

use slog::{info, warn};
use tokio::time::sleep;

use super::caller::Caller;
use super::changes;
use super::shared::{SMALL, Shared, View};
use super::wire;
use crate::error::{Error, Result};
use crate::node::event::{Change, Event};
use crate::pb::InfoAnswer;
use crate::pb::response::Kind as Answer;
use crate::types::{Identity, RaftId};

/// Returns once the members know this address, or are going to.
pub(super) async fn announce(shared: &Arc<Shared>, addr: &str) {
    loop {
        let view = shared.view();
        if let Some((identity, me)) = moved(&view, addr) {
            match tell(shared, &view, &identity, me, addr).await {
                Ok(()) => {
                    info!(shared.logger, "announced a new address"; "addr" => addr.to_owned());
                    return;
                }
                Err(Error::ShuttingDown) => return,
                Err(e) => warn!(shared.logger, "could not announce the new address yet";
                    "addr" => addr.to_owned(), "reason" => %e),
            }
        } else if view.membership.is_some() {
            return;
        }
        sleep(shared.config.election_timeout()).await;
    }
}

/// Who this node is, when the membership has it at another address.
fn moved(view: &View, addr: &str) -> Option<(Identity, RaftId)> {
    let (_, me) = view.cluster()?;
    let member = view.membership.as_ref()?.by_raft(me)?;
    (member.addr != addr).then_some((view.identity?, me))
}

async fn tell(
    shared: &Arc<Shared>,
    view: &View,
    identity: &Identity,
    me: RaftId,
    addr: &str,
) -> Result<()> {
    let (node_id, incarnation) = (identity.node_id, identity.incarnation);
    let change = Change::Update { node_id, incarnation, addr: addr.to_owned() };
    let patience = shared.config.request_timeout;
    if shared.leads() {
        shared.ask(SMALL, patience, |reply| Event::Change { change, reply }).await?;
        return Ok(());
    }
    let Some(caller) = shared.caller() else { return Err(Error::ShuttingDown) };
    let kind = changes::to_request(&change);
    let known = others(view, me, &shared.config.peers);
    let answers = caller.infos(&known, shared.config.election_timeout()).await;
    ask_around(shared, &caller, me, &answers);
    let mut leaders = answers.into_iter().map(|(_, info)| info.leader_addr);
    let leader = leaders.find(|a| !a.is_empty()).ok_or(Error::NoLeader)?;
    let cluster = view.cluster().map(|(cluster, _)| cluster);
    match caller.call(&leader, cluster, kind, patience).await {
        Ok(Some(Answer::Done(_))) => Ok(()),
        Ok(Some(Answer::Refused(refused))) => Err(wire::error(&refused, 0, 0)),
        Ok(_) => Err(Error::unknown("the leader's answer does not fit")),
        Err(e) => Err(Error::Unreachable { addr: leader, reason: e.to_string() }),
    }
}

/// Members that do not answer are looked for where others reach them: two that have exchanged their
/// addresses each find themselves at the other's, and a third knows better.
fn ask_around(shared: &Arc<Shared>, caller: &Caller, me: RaftId, answers: &[(String, InfoAnswer)]) {
    let mut news = false;
    shared.update_view(|view| {
        let Some(m) = view.membership.as_ref() else { return };
        let own = |info: &&InfoAnswer| info.cluster_id[..] == m.cluster_id.to_bytes();
        for member in m.members.iter().filter(|member| member.raft_id != me) {
            let addr = view.hints.addr(member);
            if answers.iter().any(|(at, info)| at == addr && info.node_id == member.node_id) {
                continue;
            }
            let told = answers.iter().map(|(_, info)| info).filter(own);
            let mut told = told.flat_map(|info| &info.elsewhere).filter_map(wire::told);
            let told = told.find(|peer| peer.raft_id == member.raft_id);
            news |= view.hints.missed(m, member.raft_id, told);
        }
    });
    if news {
        caller.set_peers(shared.clone());
    }
}

/// Where the other members are reached, and who else may know them.
fn others(view: &View, me: RaftId, peers: &[String]) -> Vec<String> {
    let members = view.membership.iter().flat_map(|m| &m.members).filter(|m| m.raft_id != me);
    members.map(|m| view.hints.addr(m).to_owned()).chain(peers.to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Peer;
    use crate::types::{ClusterId, ConfState, Member, Membership};

    #[test]
    fn members_that_moved_are_asked_where_they_say_that_they_are() {
        let membership = Membership {
            cluster_id: ClusterId::from_u128(9),
            index: 5,
            conf_state: ConfState { voters: vec![1, 2, 3], ..ConfState::default() },
            members: [1, 2, 3].map(Member::numbered).into(),
            next_raft_id: 4,
        };
        let Member { raft_id, node_id, incarnation, .. } = Member::numbered(3);
        let mut view = View { membership: Some(membership), ..View::default() };
        let moved = Peer { raft_id, node_id, incarnation, addr: "n3:9".to_owned() };
        view.hints.heard(view.membership.as_ref(), moved);
        assert_eq!(others(&view, 1, &["seed:1".to_owned()]), ["n2:1", "n3:9", "seed:1"]);
    }
}
