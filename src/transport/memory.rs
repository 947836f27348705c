//! A network in memory for tests: cut, delay, drop, duplicate, reorder, by seed.
//!
//! It keeps the contract of a [`Transport`], the hello included, and breaks it only where a fault
//! was asked for. Invariants:
//! - without faults a message is delivered before `send` returns, in order;
//! - with a delay it is delivered in order too, unless it was picked to be reordered;
//! - what is on its way when a link is cut does not arrive;
//! - the same seed and the same order of calls give the same faults; time is tokio's, so that a
//!   paused clock works.

mod flight;
mod hub;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, stream};
use tokio::time::{sleep, timeout};

use crate::pb;
use crate::transport::{
    Handler, Peer, Peers, Refusal, SnapshotStream, Transport, TransportError, check_welcome,
};
use crate::types::{Message, RaftId};
use flight::{Flight, Way};
use hub::Served;
pub use hub::{Faults, MemoryNetwork};

impl MemoryNetwork {
    /// A transport at this address. An address serves one started transport at a time; after it
    /// was closed, another can start there.
    pub fn endpoint(&self, addr: impl Into<String>) -> MemoryTransport {
        let local = Local { handler: None, peers: None, links: BTreeMap::new() };
        MemoryTransport {
            network: self.clone(),
            addr: addr.into(),
            local: Arc::new(Mutex::new(local)),
        }
    }
}

/// One node's end of a [`MemoryNetwork`].
pub struct MemoryTransport {
    network: MemoryNetwork,
    addr: String,
    local: Arc<Mutex<Local>>,
}

struct Local {
    handler: Option<Served>,
    peers: Option<Peers>,
    links: BTreeMap<RaftId, Link>,
}

/// What a node remembers of its way to one peer.
#[derive(Default)]
struct Link {
    /// The peer's run that has admitted us, and how often it had changed its peers then.
    admitted: Option<(u64, u64)>,
    down: bool,
    refusal: Option<Refusal>,
    flight: Option<Flight>,
}

impl fmt::Debug for MemoryTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryTransport").field("addr", &self.addr).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What `send` found out about a peer, told without holding a lock.
enum Word {
    Down,
    Refused(Refusal),
}

impl MemoryTransport {
    /// The address of this end.
    pub fn addr(&self) -> &str {
        &self.addr
    }

    fn peer(&self, raft_id: RaftId) -> Option<(Peer, pb::Hello)> {
        let local = lock(&self.local);
        let peers = local.peers.as_ref()?;
        let peer = peers.others.iter().find(|p| p.raft_id == raft_id)?;
        Some((peer.clone(), peers.hello(peer)))
    }

    fn send_to(&self, to: RaftId, messages: Vec<Message>) {
        match self.connect(to) {
            Ok((peer, served, from)) => self.fly(&peer, &served, from, messages),
            Err(word) => self.tell(to, word),
        }
    }

    /// The peer's handler, once it has admitted us.
    fn connect(&self, to: RaftId) -> Result<(Peer, Served, RaftId), Word> {
        let (peer, hello) = self.peer(to).ok_or(Word::Down)?;
        let served = self.network.route(&self.addr, &peer.addr).ok_or(Word::Down)?;
        let known = lock(&self.local).links.entry(to).or_default().admitted;
        let now = Some((served.run, served.judged));
        if known != now {
            // The answer of a hello must find its way back.
            self.network.route(&peer.addr, &self.addr).ok_or(Word::Down)?;
            let welcome = served.handler.admit(&hello).map_err(Word::Refused)?;
            check_welcome(&hello, &welcome).map_err(Word::Refused)?;
        }
        let mut local = lock(&self.local);
        let link = local.links.entry(to).or_default();
        (link.admitted, link.down, link.refusal) = (now, false, None);
        Ok((peer, served, hello.from))
    }

    fn tell(&self, to: RaftId, word: Word) {
        let mut local = lock(&self.local);
        let Some(served) = local.handler.clone() else { return };
        let link = local.links.entry(to).or_default();
        link.admitted = None;
        let was_down = std::mem::replace(&mut link.down, true);
        let news = match word {
            // That it was removed is news once; anything else goes on as long as it is told.
            Word::Refused(refusal)
                if link.refusal.as_ref() != Some(&refusal)
                    || !matches!(refusal, Refusal::Removed(_)) =>
            {
                link.refusal = Some(refusal.clone());
                Some(refusal)
            }
            Word::Refused(_) | Word::Down => None,
        };
        drop(local);
        if let Some(refusal) = news {
            served.handler.refused(to, refusal);
        }
        if !was_down {
            served.handler.unreachable(to);
        }
    }

    /// Lets the messages go, now or later.
    fn fly(&self, peer: &Peer, served: &Served, from: RaftId, messages: Vec<Message>) {
        let mut fates = Vec::with_capacity(messages.len());
        let mut hub = self.network.hub();
        for message in messages {
            fates.extend(hub.fate().into_iter().map(|fate| (fate, message.clone())));
        }
        drop(hub);
        let mut local = lock(&self.local);
        let flight = &mut local.links.entry(peer.raft_id).or_default().flight;
        let empty = flight.as_ref().is_none_or(|f| f.is_empty());
        if empty && fates.iter().all(|((delay, _), _)| delay.is_zero()) {
            drop(local);
            deliver(served, from, peer.raft_id, fates.into_iter().map(|(_, m)| m).collect());
            return;
        }
        let flight = flight.get_or_insert_with(|| {
            Flight::take_off(Way {
                network: self.network.clone(),
                here: self.addr.clone(),
                there: peer.addr.clone(),
                from,
                to: peer.raft_id,
            })
        });
        flight.board(served, fates);
    }

    fn unreachable(&self, addr: &str) -> TransportError {
        let reason = format!("no way from {} to it", self.addr);
        TransportError::Unreachable { addr: addr.to_owned(), reason }
    }
}

/// Hands messages over, as the receiving end of a stream `from` -> `to` would.
fn deliver(served: &Served, from: RaftId, to: RaftId, mut messages: Vec<Message>) {
    // NB: a snapshot travels with its body, by `send_snapshot`.
    messages.retain(|m| (m.from(), m.to()) == (from, to) && m.snapshot.is_none());
    if !messages.is_empty() {
        served.handler.messages(from, messages);
    }
}

#[async_trait]
impl Transport for MemoryTransport {
    fn start(&self, handler: Arc<dyn Handler>) -> io::Result<()> {
        let mut hub = self.network.hub();
        if hub.served.contains_key(&self.addr) {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("another endpoint serves {}", self.addr),
            ));
        }
        hub.runs += 1;
        let served = Served { handler, run: hub.runs, cuts: 0, judged: 0 };
        hub.served.insert(self.addr.clone(), served.clone());
        drop(hub);
        lock(&self.local).handler = Some(served);
        Ok(())
    }

    fn set_peers(&self, peers: Peers) {
        let mut local = lock(&self.local);
        let Local { peers: old, links, .. } = &mut *local;
        links.retain(|id, _| {
            let with = |p: &Peers| {
                let peer = p.others.iter().find(|peer| peer.raft_id == *id)?;
                Some((peer.clone(), p.hello(peer)))
            };
            let (before, after) = (old.as_ref().and_then(with), with(&peers));
            after.is_some() && before == after
        });
        *old = Some(peers);
        let run = local.handler.as_ref().map(|served| served.run);
        drop(local);
        // Who was admitted says hello again with the next message.
        if let Some(served) = self.network.hub().served.get_mut(&self.addr)
            && Some(served.run) == run
        {
            served.judged += 1;
        }
    }

    fn send(&self, messages: Vec<Message>) {
        let mut by_peer = BTreeMap::<RaftId, Vec<Message>>::new();
        for message in messages {
            by_peer.entry(message.to()).or_default().push(message);
        }
        for (to, messages) in by_peer {
            self.send_to(to, messages);
        }
    }

    async fn send_snapshot(
        &self,
        message: Message,
        body: SnapshotStream,
    ) -> Result<(), TransportError> {
        let to = message.to();
        let size = message.snapshot.as_ref().map_or(0, |meta| meta.size);
        let (peer, served, from) = self.connect(to).map_err(|word| match word {
            Word::Refused(refusal) => TransportError::Refused(refusal),
            Word::Down => self.unreachable(&format!("raft id {to}")),
        })?;
        sleep(self.network.delay()).await;
        let link = (self.network.clone(), self.addr.clone(), peer.addr.clone(), served.clone());
        let result = served.handler.snapshot(from, message, whole(body, size, link)).await;
        result?;
        if self.network.route(&peer.addr, &self.addr).is_none() {
            let reason = "the answer did not come back".to_owned();
            return Err(TransportError::Lost { addr: peer.addr, reason });
        }
        Ok(())
    }

    async fn call(
        &self,
        addr: &str,
        request: pb::Request,
        limit: Duration,
    ) -> Result<pb::Response, TransportError> {
        let Some(served) = self.network.route(&self.addr, addr) else {
            return Err(self.unreachable(addr));
        };
        let answer = async {
            sleep(self.network.delay()).await;
            let there = self.network.route(&self.addr, addr);
            if there.is_none_or(|now| !now.same(&served)) {
                return None;
            }
            let response = served.handler.call(request).await;
            sleep(self.network.delay()).await;
            self.network.route(addr, &self.addr).map(|_| response)
        };
        let lost = |reason: String| TransportError::Lost { addr: addr.to_owned(), reason };
        match timeout(limit, answer).await {
            Ok(Some(response)) => Ok(response),
            Ok(None) => Err(lost("the link was cut".to_owned())),
            Err(_) => Err(lost(format!("no answer within {limit:?}"))),
        }
    }

    async fn close(&self) {
        let mut local = lock(&self.local);
        let served = local.handler.take();
        local.peers = None;
        let links = std::mem::take(&mut local.links);
        drop(local);
        drop(links);
        let mut hub = self.network.hub();
        if let Some(served) = served
            && hub.served.get(&self.addr).is_some_and(|now| now.run == served.run)
        {
            hub.served.remove(&self.addr);
        }
    }
}

/// The body of a snapshot: exactly `size` bytes, or an error, also when the link is cut.
fn whole(
    body: SnapshotStream,
    size: u64,
    link: (MemoryNetwork, String, String, Served),
) -> SnapshotStream {
    let state = Some((body, size, link));
    stream::unfold(state, |state| async move {
        let (mut body, left, link) = state?;
        let chunk = body.next().await;
        let (network, from, to, served) = &link;
        if network.route(from, to).is_none_or(|now| !now.same(served)) {
            return Some((Err(io::ErrorKind::ConnectionReset.into()), None));
        }
        match chunk {
            Some(Ok(data)) => match left.checked_sub(data.len() as u64) {
                Some(left) => Some((Ok(data), Some((body, left, link)))),
                None => Some((Err(io::ErrorKind::InvalidData.into()), None)),
            },
            Some(Err(error)) => Some((Err(error), None)),
            None if left == 0 => None,
            None => Some((Err(io::ErrorKind::UnexpectedEof.into()), None)),
        }
    })
    .boxed()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests;
