//! The node's side of the transport: judges hellos, takes messages, answers requests.
//!
//! It runs in transport tasks, concurrently, and never touches the node: everything becomes an
//! event in the inbox. Invariants:
//! - nothing of a peer is read before its hello fits: version, cluster, receiver, sender, boot;
//! - a request of another cluster is refused; without a cluster only `Info`, `Found` and `Join`
//!   pass;
//! - every request takes a permit, so that peers cannot fill the inbox either;
//! - a request that reached a node that does not lead is refused with a hint, never passed on: a
//!   circle of nodes that each believe another one leads cannot form.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use slog::{info, warn};
use tokio::time::Instant;

use super::changes;
use super::leave;
use super::shared::{Shared, View};
use super::snapshotter::Snapshotter;
use super::wire::{self, respond};
use crate::error::{Error, Result};
use crate::node::event::{Applied, Change, Changed, Event, Proposal};
use crate::pb;
use crate::pb::request::Kind;
use crate::pb::response::Kind as Answer;
use crate::reply::{Reply, Waiter};
use crate::transport::{Handler, PROTOCOL, Peer, Refusal, SnapshotStream};
use crate::types::{ClusterId, Incarnation, Membership, Message, RaftId};
use crate::zoo::{self, Bug};

/// See the module.
pub(crate) struct PeerHandler {
    shared: Arc<Shared>,
    /// None until there is a directory to put them in.
    snapshots: OnceLock<Arc<Snapshotter>>,
}

impl PeerHandler {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, snapshots: OnceLock::new() }
    }

    /// Takes snapshots from now on.
    pub(crate) fn take_snapshots(&self, snapshots: Arc<Snapshotter>) {
        // NB: it is set once, by the only start that a node has.
        let _ = self.snapshots.set(snapshots);
    }

    /// Judges a start of a data directory by those that were heard of, and notes where its peer
    /// says that it is.
    fn take_in(&self, view: &View, hello: &pb::Hello) -> std::result::Result<(), Refusal> {
        let (from, boot, addr) = (hello.from, hello.from_boot, &hello.from_addr);
        // Held until the address is noted: an older hello must not come last.
        let mut starts = self.shared.starts();
        if let Some(fresh) = starts.take_in(view.membership.as_ref(), from, boot, addr)? {
            self.note_address(view, hello, fresh);
        }
        Ok(())
    }

    /// A peer says where it is reached: where the membership does not know, it serves.
    fn note_address(&self, view: &View, hello: &pb::Hello, fresh: bool) {
        let Some(incarnation) = Incarnation::from_slice(&hello.from_incarnation) else { return };
        if !hello.from_addr.is_empty() && changes::check_addr(&hello.from_addr).is_err() {
            return;
        }
        let peer = Peer {
            raft_id: hello.from,
            node_id: hello.from_node,
            incarnation,
            addr: hello.from_addr.clone(),
        };
        let mut news = false;
        // The same as before in most cases, and then nobody has to wait for it.
        if fresh || view.hints.clone().heard(view.membership.as_ref(), peer.clone(), fresh) {
            self.shared.update_view(|view| {
                view.said += u64::from(fresh);
                news = view.hints.heard(view.membership.as_ref(), peer, fresh);
            });
        }
        if !news {
            return;
        }
        info!(self.shared.logger, "a peer says where it is reached"; "node" => hello.from_node,
            "raft_id" => hello.from, "addr" => &hello.from_addr);
        if let Some(caller) = self.shared.caller() {
            caller.set_peers(self.shared.clone());
        }
    }

    fn info(&self) -> pb::Response {
        let view = self.shared.view();
        let leader = self.shared.leader();
        let (leader_id, leader_addr) = leader.map_or((0, String::new()), |l| (l.id, l.addr));
        respond(Answer::Info(pb::InfoAnswer {
            node_id: view.identity.map_or(0, |i| i.node_id),
            cluster_id: view
                .cluster()
                .map_or_else(Bytes::new, |(id, _)| Bytes::copy_from_slice(&id.to_bytes())),
            leader_id,
            leader_addr,
            membership: view.membership.as_ref().map(Membership::to_pb),
            places: view.hints.beside().map(str::to_owned).collect(),
            raft_id: view.cluster().map_or(0, |(_, me)| me),
            boot: view.identity.map_or(0, |i| i.boot),
            addr: view.addr.clone(),
            ..pb::InfoAnswer::default()
        }))
    }

    /// While this node founds together with others, whoever sees to that answers.
    async fn found(&self, found: pb::Found) -> pb::Response {
        match self.shared.desk.ask(found).await {
            Some(info) => respond(Answer::Info(info)),
            None => self.info(),
        }
    }

    /// Posts a request of a peer and waits for its answer.
    async fn ask<T>(&self, event: impl FnOnce(Reply<T>) -> Event) -> Result<T> {
        self.shared.ask(self.shared.config.request_timeout, event).await
    }

    async fn join(&self, join: pb::Join) -> Result<Answer> {
        let change = changes::from_join(join)?;
        let Change::Join { node_id, incarnation, .. } = change else {
            return Err(Error::Membership("a request to join of an unknown kind".to_owned()));
        };
        let Changed { membership, .. } = self.ask(|reply| Event::Change { change, reply }).await?;
        let member = membership.by_incarnation(node_id, incarnation);
        let Some(raft_id) = member.map(|m| m.raft_id) else {
            return Err(Error::unknown("the membership does not hold the node that joined"));
        };
        Ok(Answer::Joined(pb::Joined {
            cluster_id: Bytes::copy_from_slice(&membership.cluster_id.to_bytes()),
            raft_id,
            membership: Some(membership.to_pb()),
        }))
    }

    async fn propose(&self, propose: pb::Propose) -> Answer {
        let waiters: Vec<Result<Waiter<Applied>>> =
            propose.commands.into_iter().map(|c| self.propose_one(c)).collect();
        let deadline = Instant::now() + self.shared.config.request_timeout;
        let mut outcomes = Vec::with_capacity(waiters.len());
        for waiter in waiters {
            let left = deadline.saturating_duration_since(Instant::now());
            let result = match waiter {
                Ok(waiter) => waiter.wait(left).await,
                Err(e) => Err(e),
            };
            outcomes.push(wire::outcome(result, self.hint()));
        }
        wire::proposed(outcomes, self.shared.config.message_size())
    }

    fn propose_one(&self, data: Bytes) -> Result<Waiter<Applied>> {
        let size = data.len() as u64;
        let limit = self.shared.config.max_entry_size;
        if size > limit {
            return Err(Error::TooLarge { size, limit });
        }
        self.shared.post(size, |reply| Event::Propose(Proposal { data, reply }))
    }

    async fn change(&self, change: pb::Change) -> Result<Answer> {
        let boot = change.boot;
        let change = changes::from_pb(change)?;
        self.check_start(&change, boot)?;
        let changed = self.ask(|reply| Event::Change { change, reply }).await?;
        Ok(Answer::Done(changes::done(&changed)))
    }

    /// A copy of a data directory that runs beside the original does not get its address recorded.
    fn check_start(&self, change: &Change, boot: u64) -> Result<()> {
        let Change::Update { node_id, incarnation, addr } = change else { return Ok(()) };
        let view = self.shared.view();
        let member =
            view.membership.as_ref().and_then(|m| m.by_incarnation(*node_id, *incarnation));
        match member.filter(|_| boot != 0) {
            Some(m) => self.shared.starts().judge(m.raft_id, boot, addr).map_err(Error::Membership),
            None => Ok(()),
        }
    }

    async fn transfer(&self, transfer: pb::Transfer) -> Result<Answer> {
        let to = (transfer.to != 0).then_some(transfer.to);
        self.ask(|reply| Event::Transfer { to, reply }).await?;
        Ok(Answer::Done(pb::Done::default()))
    }

    /// Whether a request may be taken at all, by the cluster that it names.
    fn check_request(&self, request: &pb::Request, view: &View) -> Result<()> {
        let stranger = request.cluster_id.is_empty();
        let open = matches!(request.kind, Some(Kind::Info(_) | Kind::Join(_) | Kind::Found(_)));
        if stranger && open {
            return Ok(());
        }
        let Some((ours, _)) = view.cluster() else {
            return Err(Error::NoLeader);
        };
        if ClusterId::from_slice(&request.cluster_id) != Some(ours) {
            return Err(Error::WrongCluster(format!(
                "this node belongs to cluster {ours}; correct the address, or the data directory"
            )));
        }
        Ok(())
    }

    fn hint(&self) -> Option<crate::error::Leader> {
        self.shared.leader()
    }
}

#[async_trait]
impl Handler for PeerHandler {
    fn admit(&self, hello: &pb::Hello) -> std::result::Result<pb::Hello, Refusal> {
        let view = self.shared.view();
        let back = judge(&view, hello)?;
        self.take_in(&view, hello)?;
        Ok(back)
    }

    fn messages(&self, from: RaftId, messages: Vec<Message>) {
        // NB: what the bound drops, raft sends again.
        let _ = self.shared.inbox.deliver(from, messages);
    }

    fn unreachable(&self, peer: RaftId) {
        self.shared.inbox.complete(Event::Unreachable { peer });
    }

    fn refused(&self, peer: RaftId, refusal: Refusal) {
        let view = self.shared.view();
        let Refusal::Removed(_) = refusal else {
            let news = self.shared.note_refusal(&view, peer, &refusal);
            if news {
                let member = view.membership.as_ref().and_then(|m| m.by_raft(peer));
                warn!(self.shared.logger, "a peer turns this node away";
                    "node" => member.map_or(0, |m| m.node_id), "raft_id" => peer,
                    "reason" => %refusal);
            }
            self.unreachable(peer);
            return;
        };
        // A member of our cluster says so, and raft ids are never used again: it is final.
        if view.cluster().is_some() {
            info!(self.shared.logger, "this node was removed from the cluster"; "told_by" => peer);
            self.shared.note_removal();
            tokio::spawn(leave::depart(self.shared.clone()));
        }
    }

    async fn snapshot(
        &self,
        from: RaftId,
        message: Message,
        body: SnapshotStream,
    ) -> std::result::Result<(), Refusal> {
        match self.snapshots.get() {
            Some(snapshots) => snapshots.receive(from, message, body).await,
            None => Err(Refusal::Busy("this node has not started yet".to_owned())),
        }
    }

    async fn call(&self, request: pb::Request) -> pb::Response {
        if let Err(e) = self.check_request(&request, &self.shared.view()) {
            return wire::refused(&e, self.hint());
        }
        let Some(kind) = request.kind else {
            let e = Error::Membership("a request of an unknown kind".to_owned());
            return wire::refused(&e, None);
        };
        if !matches!(kind, Kind::Info(_) | Kind::Found(_)) && !self.shared.leads() {
            return wire::refused(&Error::NotLeader { leader: self.hint() }, None);
        }
        let answer = match kind {
            Kind::Info(_) => return self.info(),
            Kind::Found(found) => return self.found(*found).await,
            Kind::Join(join) => self.join(join).await,
            Kind::Propose(propose) => Ok(self.propose(propose).await),
            Kind::Change(change) => self.change(change).await,
            Kind::Transfer(transfer) => self.transfer(transfer).await,
        };
        match answer {
            Ok(kind) => respond(kind),
            Err(e) => wire::refused(&e, self.hint()),
        }
    }
}

/// Whether a hello fits who we are and whom we know; our own hello, if so.
fn judge(view: &View, hello: &pb::Hello) -> std::result::Result<pb::Hello, Refusal> {
    if hello.protocol != PROTOCOL {
        return Err(Refusal::Protocol { theirs: hello.protocol });
    }
    let malformed = |what: &str| Refusal::Malformed(format!("hello without {what}"));
    let theirs =
        ClusterId::from_slice(&hello.cluster_id).ok_or_else(|| malformed("a cluster id"))?;
    let sender = Incarnation::from_slice(&hello.from_incarnation)
        .ok_or_else(|| malformed("the sender's incarnation"))?;
    if hello.from == 0 || hello.from_node == 0 {
        return Err(malformed("a sender"));
    }
    let (Some(identity), Some((ours, raft_id))) = (view.identity, view.cluster()) else {
        return Err(Refusal::Busy("this node belongs to no cluster yet".to_owned()));
    };
    if theirs != ours {
        return Err(Refusal::Cluster { ours: ours.to_string(), theirs: theirs.to_string() });
    }
    let receiver = Incarnation::from_slice(&hello.to_incarnation);
    if hello.to != raft_id || receiver != Some(identity.incarnation) {
        return Err(Refusal::Receiver(format!(
            "node {} with raft id {raft_id}, incarnation {}",
            identity.node_id, identity.incarnation
        )));
    }
    let from = Peer {
        raft_id: hello.from,
        node_id: hello.from_node,
        incarnation: sender,
        addr: hello.from_addr.clone(),
    };
    check_sender(view.membership.as_ref(), raft_id, &from)?;
    Ok(pb::Hello {
        protocol: PROTOCOL,
        cluster_id: Bytes::copy_from_slice(&ours.to_bytes()),
        from: raft_id,
        to: hello.from,
        from_node: identity.node_id,
        from_incarnation: Bytes::copy_from_slice(&identity.incarnation.to_bytes()),
        to_incarnation: hello.from_incarnation.clone(),
        from_boot: identity.boot,
        from_addr: view.addr.clone(),
    })
}

/// Whether a node, `me`, that goes by this membership takes messages of a sender.
///
/// # Errors
/// Why not.
pub(crate) fn check_sender(
    membership: Option<&Membership>,
    me: RaftId,
    from: &Peer,
) -> std::result::Result<(), Refusal> {
    if from.raft_id == me {
        return Err(Refusal::Sender(format!("raft id {me} is this node's own")));
    }
    // A joiner without a membership yet, and one that lags, cannot know every member.
    let Some(membership) = membership else { return Ok(()) };
    let Some(member) = membership.by_raft(from.raft_id) else {
        if membership.was_removed(from.raft_id) {
            return Err(Refusal::Removed(from.node_id));
        }
        return Ok(());
    };
    // One that is still expected here has joined since: the cluster has given it this raft id.
    let joined = member.has_joined() || zoo::has(Bug::ExpectedRefused);
    if member.node_id != from.node_id || (joined && member.incarnation != from.incarnation) {
        return Err(Refusal::Sender(format!(
            "raft id {} is node {} with incarnation {} here: its data directory is another one's. \
             Let it join with an empty directory",
            from.raft_id, member.node_id, member.incarnation
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
