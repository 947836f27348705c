//! What the parts of one node share: inbox, admission, status, and who the node is right now.
//!
//! It decides nothing. The event loop alone replaces the view; everybody reads it. It exists
//! before the node starts, so that a `Mailbox` works early: its requests wait in the inbox.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use slog::Logger;
use tokio::sync::watch;

use super::caller::Caller;
use super::fatal::FatalSink;
use super::founding::desk::Desk;
use super::hints::Hints;
use super::inbox::{Inbox, Stop};
use super::starts::Starts;
use crate::config::Config;
use crate::error::{Error, Leader, Result};
use crate::node::event::Event;
use crate::offline::Moved;
use crate::reply::{Admission, Permit, Reply, Waiter, reply};
use crate::status::{MemberStatus, Role, Status};
use crate::transport::{Peer, Peers, Refusal};
use crate::types::{ClusterId, Identity, Member, Membership, RaftId};

/// `Store::check` of the user's Store.
pub(crate) type Check = fn(&[u8]) -> Result<()>;

/// A refusal is told for so long after it was heard. Transports try again sooner.
const REFUSED_LATELY: Duration = Duration::from_secs(5);

/// What a peer said when it turned this node away.
#[derive(Debug)]
struct Told {
    at: Instant,
    /// Where.
    addr: String,
    reason: String,
    /// Whether trying again may help.
    passing: bool,
}

/// How far a node has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// None of `start`, `lead` and `join` has been called.
    Idle,
    /// It runs, or is about to.
    Running,
    /// It was told to stop.
    Stopping,
    /// Every part of it has gone: threads, listener, lock.
    Ended,
}

/// Who this node is, and who else belongs to its cluster, as far as it has applied.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub(crate) identity: Option<Identity>,
    pub(crate) membership: Option<Membership>,
    /// Where this node is reached.
    pub(crate) addr: String,
    /// Where peers say that they are.
    pub(crate) hints: Hints,
    /// Addresses that a person gave, to be asked for members.
    pub(crate) seeds: Vec<String>,
    /// How often a peer has said something new, or the membership has changed.
    pub(crate) said: u64,
}

impl Told {
    fn is_recent(&self) -> bool {
        self.at.elapsed() < REFUSED_LATELY
    }
}

impl View {
    /// The cluster and our raft id in it.
    pub(crate) fn cluster(&self) -> Option<(ClusterId, RaftId)> {
        self.identity.as_ref()?.cluster
    }

    /// A leader, where it is reached: it may have moved, and the membership lag behind.
    pub(crate) fn reach(&self, leader: Leader) -> Leader {
        self.hints.reach(self.membership.as_ref(), leader)
    }

    /// The peers as the transport wants them; None before there is a cluster.
    pub(crate) fn peers(&self) -> Option<Peers> {
        let identity = self.identity?;
        let (cluster_id, raft_id) = identity.cluster?;
        let all = self.hints.peers(self.membership.as_ref());
        let others = all.filter(|peer| peer.raft_id != raft_id).collect();
        Some(Peers { cluster_id, raft_id, identity, addr: self.addr.clone(), others })
    }
}

pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) logger: Logger,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) admission: Admission,
    pub(crate) fatal: FatalSink,
    pub(crate) check: Check,
    pub(crate) status: watch::Sender<Status>,
    /// Where peers ask while this node founds together with others.
    pub(crate) desk: Desk,
    phase: watch::Sender<Phase>,
    /// See [`Status::elsewhere`].
    elsewhere: OnceLock<String>,
    refusals: Mutex<BTreeMap<RaftId, Told>>,
    starts: Mutex<Starts>,
    view: RwLock<Arc<View>>,
    /// Calls of `leave` whose removal is under way, or may still happen.
    leaving: AtomicUsize,
    removed: AtomicBool,
    departing: AtomicBool,
    caller: RwLock<Option<Caller>>,
}

impl Shared {
    pub(crate) fn new(config: Config, logger: Logger, check: Check) -> Self {
        let admission = Admission::new(config.max_pending_requests, config.max_uncommitted_size);
        Self {
            config,
            logger,
            inbox: Arc::default(),
            admission,
            fatal: FatalSink::default(),
            check,
            status: watch::Sender::new(Status::default()),
            desk: Desk::default(),
            phase: watch::Sender::new(Phase::Idle),
            elsewhere: OnceLock::new(),
            refusals: Mutex::default(),
            starts: Mutex::default(),
            view: RwLock::default(),
            leaving: AtomicUsize::new(0),
            removed: AtomicBool::new(false),
            departing: AtomicBool::new(false),
            caller: RwLock::default(),
        }
    }

    /// Who the node is, right now.
    pub(crate) fn view(&self) -> Arc<View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Who this node is, and who the others are.
    pub(crate) fn know(&self, identity: Identity, membership: Option<Membership>) {
        self.update_view(|view| {
            view.identity = Some(identity);
            view.membership = membership;
        });
    }

    /// Where members are reached, by what a person noted while no node ran: until they say so
    /// themselves, or the membership does.
    pub(crate) fn assume(&self, membership: Option<&Membership>, moved: Vec<Moved>) {
        for Moved { node_id, current, .. } in moved {
            let Some(member) = membership.and_then(|m| m.by_node(node_id)) else { continue };
            slog::info!(self.logger, "a member is reached where it was noted";
                "node" => node_id, "recorded" => &member.addr, "addr" => &current);
            let Member { raft_id, incarnation, .. } = *member;
            let peer = Peer { raft_id, node_id, incarnation, addr: current };
            self.update_view(|view| {
                view.hints.heard(membership, peer, true);
            });
        }
    }

    /// Changes the view.
    pub(crate) fn update_view(&self, change: impl FnOnce(&mut View)) {
        let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut view));
    }

    /// The leader and where it is reached, where both are known.
    pub(crate) fn leader(&self) -> Option<Leader> {
        let known = leader_of(&self.status.borrow());
        known.map(|leader| self.view().reach(leader))
    }

    pub(crate) fn leads(&self) -> bool {
        self.status.borrow().role == Role::Leader
    }

    /// Says for what this node waits before it belongs to a cluster.
    pub(crate) fn say_waiting(&self, words: &str) {
        self.status.send_modify(|s| {
            words.clone_into(&mut s.waiting);
            s.reword();
        });
    }

    /// Says whether the disk holds the node itself up.
    pub(crate) fn say_stalled(&self, stalled: bool) {
        self.status.send_modify(|s| {
            s.disk_stalled = stalled;
            s.reword();
        });
    }

    /// Another cluster than that of the data directory was found.
    pub(crate) fn note_elsewhere(&self, what: String) {
        // NB: what was found first is enough.
        let _ = self.elsewhere.set(what);
        self.status.send_modify(|s| self.complete(s));
    }

    /// A peer, or whoever is at its address, turned this node away. True when that is news.
    pub(crate) fn note_refusal(&self, view: &View, peer: RaftId, refusal: &Refusal) -> bool {
        let known = view.hints.peers(view.membership.as_ref()).find(|p| p.raft_id == peer);
        let passing = matches!(refusal, Refusal::Busy(_) | Refusal::Malformed(_));
        let (at, addr) = (Instant::now(), known.map_or_else(String::new, |p| p.addr));
        let told = Told { at, addr, reason: refusal.to_string(), passing };
        let mut refusals = self.refusals();
        refusals.retain(|_, told| told.is_recent());
        let news = refusals.get(&peer).is_none_or(|before| before.reason != told.reason);
        refusals.insert(peer, told);
        news
    }

    /// What the node itself cannot know of its status.
    pub(crate) fn complete(&self, status: &mut Status) {
        let refusals = self.refusals();
        if self.elsewhere.get().is_none() && refusals.is_empty() {
            return;
        }
        if let Some(what) = self.elsewhere.get() {
            what.clone_into(&mut status.elsewhere);
        }
        let view = self.view();
        let members = view.membership.iter().flat_map(|m| &m.members);
        for member in members {
            let told =
                refusals.get(&member.raft_id).filter(|told| told.is_recent() && !told.passing);
            // It is looked for elsewhere by now.
            let Some(told) = told.filter(|told| told.addr == view.hints.addr(member)) else {
                continue;
            };
            let incarnation = member.incarnation.to_string();
            let same =
                |m: &&mut MemberStatus| m.id == member.node_id && m.incarnation == incarnation;
            if let Some(m) = status.members.iter_mut().find(same) {
                m.refusal = format!("{} says: {}", told.addr, told.reason);
            }
        }
        drop(refusals);
        status.reword();
    }

    fn refusals(&self) -> MutexGuard<'_, BTreeMap<RaftId, Told>> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which start of each peer was heard of last.
    pub(crate) fn starts(&self) -> MutexGuard<'_, Starts> {
        self.starts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Moves on; a phase never goes back.
    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.send_if_modified(|p| {
            let later = phase > *p;
            *p = (*p).max(phase);
            later
        });
    }

    /// Waits for a phase, or a later one.
    pub(crate) async fn reached(&self, phase: Phase) {
        // NB: the sender lives in self, so the wait cannot fail.
        let _ = self.phase.subscribe().wait_for(|p| *p >= phase).await;
    }

    /// Whether this node asked to be removed, so that its removal is no failure.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire) > 0
    }

    pub(crate) fn begin_leaving(&self) {
        self.leaving.fetch_add(1, Ordering::AcqRel);
    }

    /// A call of `leave` that failed for certain takes its [`Shared::begin_leaving`] back.
    pub(crate) fn end_leaving(&self) {
        self.leaving.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether a member has said that this node was removed.
    pub(crate) fn was_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    /// It is certain that this node was removed.
    pub(crate) fn note_removal(&self) {
        self.removed.store(true, Ordering::Release);
    }

    /// True for the first who sees to the end of a removed node.
    pub(crate) fn begin_departing(&self) -> bool {
        !self.departing.swap(true, Ordering::AcqRel)
    }

    /// The end of a node that was removed.
    pub(crate) fn end_removed(&self) {
        self.note_removal();
        let node = self.view().identity.map_or(0, |i| i.node_id);
        self.fatal.report(Error::Removed { node });
    }

    /// The way to other nodes; None while this one does not serve.
    pub(crate) fn caller(&self) -> Option<Caller> {
        self.caller.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_caller(&self, caller: Option<Caller>) {
        *self.caller.write().unwrap_or_else(PoisonError::into_inner) = caller;
    }

    /// Posts a proposal or a read that counts for so many bytes.
    ///
    /// # Errors
    /// `Overloaded` at the bounds.
    pub(crate) fn post<T>(
        &self,
        bytes: u64,
        event: impl FnOnce(Reply<T>) -> Event,
    ) -> Result<Waiter<T>> {
        Ok(self.post_with(self.admission.admit(bytes)?, event))
    }

    /// Posts a request of another kind and waits for its answer.
    ///
    /// # Errors
    /// Those of the answer, `Overloaded` at the bounds.
    pub(crate) async fn ask<T>(
        &self,
        timeout: Duration,
        event: impl FnOnce(Reply<T>) -> Event,
    ) -> Result<T> {
        self.post_with(self.admission.reserve()?, event).wait(timeout).await
    }

    fn post_with<T>(&self, permit: Permit, event: impl FnOnce(Reply<T>) -> Event) -> Waiter<T> {
        let (reply, waiter) = reply(Some(permit));
        self.inbox.request(event(reply));
        waiter
    }

    /// Ends the loop now and refuses everything; callers that wait are answered.
    pub(crate) fn abort(&self) {
        self.enter(Phase::Stopping);
        self.inbox.close();
        self.inbox.stop(Stop::Now);
    }
}

/// The leader that a status names, where the membership has it.
pub(crate) fn leader_of(status: &Status) -> Option<Leader> {
    (status.leader_id != 0 && !status.leader_addr.is_empty())
        .then(|| Leader { id: status.leader_id, addr: status.leader_addr.clone() })
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("phase", &self.phase()).finish_non_exhaustive()
    }
}

/// Held by every part that must be gone before the node has ended; the last one says so.
#[derive(Debug)]
pub(crate) struct Lifetime {
    shared: Arc<Shared>,
}

impl Lifetime {
    pub(crate) fn new(shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Self { shared })
    }
}

impl Drop for Lifetime {
    fn drop(&mut self) {
        self.shared.inbox.close();
        self.shared.status.send_modify(|s| {
            s.role = Role::Stopped;
            s.leader_id = 0;
            s.leader_addr.clear();
            s.reword();
        });
        self.shared.enter(Phase::Ended);
    }
}
