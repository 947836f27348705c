//! The transport over gRPC: HTTP/2 streams on TCP, by tonic.
//!
//! ```text
//! send -> Link (peer) -> Lane (bulk, fast) -> Outbox -> Exchange ==> RaftService -> Handler
//! ```
//!
//! It moves messages and never looks into them. Invariants:
//! - per peer and lane one ordered stream, on a connection of its own: a large append never
//!   delays a heartbeat, neither in a queue of ours nor in the window of a connection;
//! - a message that finds its lane idle goes out in the same turn of the runtime: nothing waits
//!   for a timer;
//! - every queue, stream, connection, message and wait has a bound ([`GrpcOptions`]);
//! - nothing is sent before the peer's welcome, nothing is accepted before its hello.

mod accept;
mod client;
mod closing;
pub(crate) mod codec;
mod dial;
mod outbox;
mod server;
pub(crate) mod snapshot;
pub(crate) mod status;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::transport::Server;

use client::Link;
use closing::{Closer, Closing, closing};
use dial::Channels;
pub use server::RaftService;

use crate::config::{Config, LONGEST_TIMEOUT};
use crate::error::Error;
use crate::pb;
use crate::pb::raft_server::RaftServer;
use crate::transport::{Handler, Peers, SnapshotStream, Transport, TransportError};
use crate::types::{Message, RaftId};

const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
const MAX_FRAME: u32 = 1 << 20;
/// Bytes of the headers of one request.
const MAX_HEADERS: u32 = 16 << 10;
/// A queue towards one peer never takes more than this, whatever the configuration asks for.
const MAX_OUTBOX: u64 = 256 << 20;
/// Room in a batch for what is not messages.
const BATCH_SLACK: usize = 4 << 10;
/// How much longer the end that accepted a connection waits before it asks for a sign of life:
/// nothing but a place among the connections depends on it. Snapshots have a timer of their own.
const ACCEPTED_KEEPALIVE: u32 = 3;
/// How long `close` waits for connections to end by themselves.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Limits and timers of a [`GrpcTransport`]; the defaults are those of `Config::default()`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GrpcOptions {
    /// The largest gRPC message in bytes, both ways. A raft message that is larger is dropped.
    pub message_size: usize,
    /// Bytes that may wait for one peer on one lane; above it messages are dropped and the peer
    /// is reported unreachable. From a `Config`: `max_inflight_msgs` times `max_size_per_msg`,
    /// between 16 and 256 MiB. When that product is more than 256 MiB, a peer that takes nothing
    /// for a while makes the leader probe once it drains, instead of filling memory.
    pub outbox_bytes: usize,
    /// Connections served at a time; more wait to be accepted.
    pub max_connections: usize,
    /// Requests and streams on one connection at a time.
    pub max_streams: u32,
    /// Sets `SO_REUSEADDR`.
    pub reuseaddr: bool,
    /// Sets `SO_REUSEPORT`.
    pub reuseport: bool,
    /// How long to wait for a connection, name resolution included. Default 3 s.
    pub connect_timeout: Duration,
    /// How long either side of a stream waits for the other's hello, and how long a connection
    /// may stay open without one. Default 5 s.
    pub handshake_timeout: Duration,
    /// After this time a connection that is not used any more is closed. Default 60 s.
    pub idle_timeout: Duration,
    /// A snapshot that makes no progress for this long is given up. Default 10 s.
    pub stall_timeout: Duration,
    /// How long the receiver of a snapshot may take after the last byte. Default 60 s.
    pub finish_timeout: Duration,
    /// A connection on which nothing was received for this long is asked for a sign of life by
    /// the end that made it, and by the other after three times as long. Default 3 s.
    pub keepalive_interval: Duration,
    /// Without that sign for this long it is closed. Default 4 s.
    pub keepalive_timeout: Duration,
    /// The shortest pause before a connection is tried again. Default 50 ms.
    pub backoff_min: Duration,
    /// The longest; up to as much again is added at random. Default 500 ms.
    pub backoff_max: Duration,
    /// Where outages, refusals and their ends are logged. Default: nowhere.
    pub logger: slog::Logger,
}

impl Default for GrpcOptions {
    fn default() -> Self {
        Self::from(&Config::default())
    }
}

impl From<&Config> for GrpcOptions {
    fn from(c: &Config) -> Self {
        let inflight = u64::try_from(c.max_inflight_msgs).unwrap_or(u64::MAX);
        let outbox = inflight.saturating_mul(c.max_size_per_msg).clamp(16 << 20, MAX_OUTBOX);
        let bytes = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Self {
            message_size: bytes(c.message_size()),
            outbox_bytes: bytes(outbox),
            max_connections: c.max_connections,
            max_streams: 64,
            reuseaddr: c.reuseaddr,
            reuseport: c.reuseport,
            connect_timeout: Duration::from_secs(3),
            handshake_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(60),
            stall_timeout: Duration::from_secs(10),
            finish_timeout: Duration::from_secs(60),
            keepalive_interval: Duration::from_secs(3),
            keepalive_timeout: Duration::from_secs(4),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_millis(500),
            logger: slog::Logger::root(slog::Discard, slog::o!()),
        }
    }
}

impl GrpcOptions {
    fn batch_limit(&self) -> usize {
        self.message_size.saturating_sub(BATCH_SLACK)
    }
}

/// A [`Transport`] over gRPC, with a listener of its own or mounted in the user's server.
pub struct GrpcTransport {
    options: Arc<GrpcOptions>,
    listener: Mutex<Option<std::net::TcpListener>>,
    local_addr: Option<SocketAddr>,
    service: RaftService,
    links: Arc<Mutex<Links>>,
    channels: Channels,
    closer: Closer,
    closing: Closing,
    serving: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Links {
    peers: Option<Peers>,
    handler: Option<Arc<dyn Handler>>,
    by_raft: BTreeMap<RaftId, Link>,
}

impl fmt::Debug for GrpcTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrpcTransport")
            .field("local_addr", &self.local_addr)
            .field("peers", &self.links().peers)
            .finish_non_exhaustive()
    }
}

impl GrpcTransport {
    /// A transport that listens on `addr` from now on, and serves from [`Transport::start`] on;
    /// in between, connections wait. Needs no runtime.
    ///
    /// # Errors
    /// [`Error::Listen`], with what to do about it.
    pub fn bind(addr: SocketAddr, options: GrpcOptions) -> Result<Self, Error> {
        let listener = accept::bind(addr, &options)?;
        let local = listener.local_addr().map_err(|source| Error::Listen {
            addr: addr.to_string(),
            hint: "Check the limits of the system",
            source,
        })?;
        Ok(Self::new(options, Some((listener, local))))
    }

    /// A transport without a listener: the user's own tonic server carries its
    /// [`GrpcTransport::service`]. The limits on connections, streams and keepalive are then
    /// those of that server; set them.
    pub fn mounted(options: GrpcOptions) -> Self {
        Self::new(options, None)
    }

    fn new(options: GrpcOptions, listener: Option<(std::net::TcpListener, SocketAddr)>) -> Self {
        let options = Arc::new(options);
        let (closer, closing) = closing();
        let links = Arc::<Mutex<Links>>::default();
        let heard = Arc::downgrade(&links);
        let heard: server::Heard = Arc::new(move |raft_id| {
            if let Some(links) = heard.upgrade() {
                let links = links.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(link) = links.by_raft.get(&raft_id) {
                    link.retry();
                }
            }
        });
        let service = RaftService::new(options.clone(), closing.clone(), heard);
        let (listener, local_addr) = listener.unzip();
        Self {
            options,
            listener: Mutex::new(listener),
            local_addr,
            service,
            links,
            channels: Channels::default(),
            closer,
            closing,
            serving: Mutex::default(),
        }
    }

    /// Where it listens; None when mounted.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.local_addr
    }

    /// The service to add to a tonic `Router`. It answers `not now` until the node has started
    /// and after it has stopped.
    pub fn service(&self) -> RaftServer<RaftService> {
        RaftServer::new(self.service.clone())
            .max_decoding_message_size(self.options.message_size)
            .max_encoding_message_size(self.options.message_size)
    }

    fn serve(&self, listener: std::net::TcpListener) -> std::io::Result<()> {
        let o = &self.options;
        let keepalive = o.keepalive_interval.saturating_mul(ACCEPTED_KEEPALIVE);
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let connections = accept::connections(listener, o.clone(), self.closing.clone());
        let server = Server::builder()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .max_concurrent_streams(o.max_streams)
            .http2_max_header_list_size(MAX_HEADERS)
            .http2_keepalive_interval(Some(keepalive.min(LONGEST_TIMEOUT)))
            .http2_keepalive_timeout(Some(o.keepalive_timeout.min(LONGEST_TIMEOUT)))
            .serve_with_incoming_shutdown(
                self.service(),
                connections,
                self.closing.clone().closed(),
            );
        // The loop ends when the transport closes; it has no other end, and no error.
        let serving = tokio::spawn(async move { drop(server.await) });
        *self.serving.lock().unwrap_or_else(PoisonError::into_inner) = Some(serving);
        Ok(())
    }

    fn links(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Links {
    /// Makes the links those of the peers. A link whose hello changes with them is made anew: those
    /// peers, because what was on its way to them is lost.
    fn adjust(&mut self, options: &Arc<GrpcOptions>) -> Vec<RaftId> {
        let (Some(peers), Some(handler)) = (&self.peers, &self.handler) else { return Vec::new() };
        let mut old = std::mem::take(&mut self.by_raft);
        let mut anew = Vec::new();
        for peer in &peers.others {
            let hello = peers.hello(peer);
            let link = match old.remove(&peer.raft_id) {
                Some(link) if link.peer == *peer && link.hello == hello => link,
                before => {
                    anew.extend(before.map(|_| peer.raft_id));
                    Link::new(peer.clone(), hello, options, handler.clone())
                }
            };
            self.by_raft.insert(peer.raft_id, link);
        }
        anew
    }
}

#[async_trait]
impl Transport for GrpcTransport {
    fn start(&self, handler: Arc<dyn Handler>) -> std::io::Result<()> {
        self.service.set_handler(Some(handler.clone()));
        let mut links = self.links();
        links.handler = Some(handler);
        links.adjust(&self.options);
        drop(links);
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
        match listener {
            Some(listener) => self.serve(listener),
            None if self.local_addr.is_none() => Ok(()),
            None => Err(std::io::Error::other("this transport has been started before")),
        }
    }

    fn set_peers(&self, peers: Peers) {
        let mut links = self.links();
        links.peers = Some(peers);
        let anew = links.adjust(&self.options);
        let handler = links.handler.clone();
        drop(links);
        if let Some(handler) = handler {
            anew.into_iter().for_each(|peer| handler.unreachable(peer));
        }
        self.service.judge_again();
    }

    fn send(&self, messages: Vec<Message>) {
        let mut lost = Vec::new();
        let links = self.links();
        for message in messages {
            let to = message.to();
            // NB: a snapshot without its body would be lost on the way; see `send_snapshot`.
            let link = links.by_raft.get(&to).filter(|_| message.snapshot.is_none());
            if !link.is_some_and(|link| link.send(message)) && !lost.contains(&to) {
                lost.push(to);
            }
        }
        let handler = links.handler.clone();
        drop(links);
        if let Some(handler) = handler {
            lost.into_iter().for_each(|peer| handler.unreachable(peer));
        }
    }

    async fn send_snapshot(
        &self,
        message: Message,
        body: SnapshotStream,
    ) -> Result<(), TransportError> {
        let found =
            self.links().by_raft.get(&message.to()).map(|l| (l.peer.clone(), l.hello.clone()));
        let Some((peer, hello)) = found else {
            return Err(TransportError::Unreachable {
                addr: format!("raft id {}", message.to()),
                reason: "it is no member".to_owned(),
            });
        };
        tokio::select! {
            result = snapshot::send(&peer, hello, message, body, &self.options) => result,
            () = self.closing.clone().closed() => Err(closed(&peer.addr)),
        }
    }

    async fn call(
        &self,
        addr: &str,
        request: pb::Request,
        limit: Duration,
    ) -> Result<pb::Response, TransportError> {
        let start = tokio::time::Instant::now();
        let unreachable =
            |reason: String| TransportError::Unreachable { addr: addr.to_owned(), reason };
        let (channel, number) = match timeout(limit, self.channels.get(addr, &self.options)).await {
            Ok(Ok(kept)) => kept,
            Ok(Err(reason)) => return Err(unreachable(reason)),
            Err(_) => return Err(unreachable(format!("no connection within {limit:?}"))),
        };
        let left = limit.saturating_sub(start.elapsed());
        let mut client = dial::client(channel, &self.options);
        tokio::select! {
            answer = timeout(left, client.call(client::deadline(request, left))) => match answer {
                Ok(Ok(response)) => Ok(response.into_inner()),
                Ok(Err(s)) => {
                    let error = status::failure(addr, &s);
                    if !matches!(error, TransportError::Refused(_)) {
                        self.channels.forget(addr, number);
                    }
                    Err(error)
                }
                Err(_) => Err(TransportError::Lost {
                    addr: addr.to_owned(),
                    reason: format!("no answer within {limit:?}"),
                }),
            },
            () = self.closing.clone().closed() => Err(closed(addr)),
        }
    }

    async fn close(&self) {
        self.closer.close();
        self.service.set_handler(None);
        drop(std::mem::take(&mut *self.links()));
        self.channels.clear();
        drop(self.listener.lock().unwrap_or_else(PoisonError::into_inner).take());
        let serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut serving) = serving
            && timeout(CLOSE_TIMEOUT, &mut serving).await.is_err()
        {
            serving.abort();
        }
    }
}

fn closed(addr: &str) -> TransportError {
    TransportError::Lost { addr: addr.to_owned(), reason: "this node is shutting down".to_owned() }
}
