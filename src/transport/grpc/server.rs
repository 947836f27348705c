//! The receiving side: judges each hello, then hands messages on.
//!
//! Invariants:
//! - nothing of a peer reaches the handler before its hello was admitted;
//! - a message whose `from` or `to` is not that of the stream's hello ends the stream;
//! - when the peers change, the hello of every open stream is judged again: one that was removed
//!   meanwhile hears so at once, also if it has nothing to say;
//! - a stream costs no task of its own: its answers are pulled by the connection, and pulling
//!   reads the messages;
//! - the first message of a stream is waited for no longer than the handshake timeout;
//! - a newer stream of the same peer and lane ends the older one, so that what was left in an
//!   abandoned connection never arrives behind newer messages; and with the stream its connection,
//!   where the listener is ours: a far end that vanished would never close it.

use std::collections::HashMap;
use std::fmt;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::{Notify, Semaphore, SemaphorePermit, watch};
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

use super::GrpcOptions;
use super::accept::{Activity, Busy, HangUp};
use super::closing::Closing;
use super::snapshot;
use super::status::refuse;
use crate::pb;
use crate::transport::{Handler, Refusal, convert};
use crate::types::{Message, RaftId};
use pb::chunk::Part;

/// Requests answered at a time, over all connections.
const MAX_CALLS: usize = 1024;
/// Snapshots received at a time.
const MAX_SNAPSHOTS: usize = 4;

/// Told of peers that have been admitted.
pub(super) type Heard = Arc<dyn Fn(RaftId) + Send + Sync>;

/// The gRPC service of a node, for a tonic `Router`.
#[derive(Clone)]
pub struct RaftService {
    shared: Arc<Shared>,
}

struct Shared {
    handler: RwLock<Option<Arc<dyn Handler>>>,
    options: Arc<GrpcOptions>,
    closing: Closing,
    heard: Heard,
    calls: Semaphore,
    snapshots: Semaphore,
    /// The newest stream of each peer and lane, and how to end it.
    newest: Mutex<HashMap<(RaftId, u32), Arc<Notify>>>,
    /// Changes whenever open streams are to be judged again.
    judged: watch::Sender<()>,
}

impl Shared {
    fn newest(&self) -> MutexGuard<'_, HashMap<(RaftId, u32), Arc<Notify>>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for RaftService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RaftService").finish_non_exhaustive()
    }
}

impl RaftService {
    pub(super) fn new(options: Arc<GrpcOptions>, closing: Closing, heard: Heard) -> Self {
        Self {
            shared: Arc::new(Shared {
                handler: RwLock::default(),
                options,
                closing,
                heard,
                calls: Semaphore::new(MAX_CALLS),
                snapshots: Semaphore::new(MAX_SNAPSHOTS),
                newest: Mutex::default(),
                judged: watch::Sender::default(),
            }),
        }
    }

    /// Serves this handler from now on, or nobody.
    pub(super) fn set_handler(&self, handler: Option<Arc<dyn Handler>>) {
        *self.shared.handler.write().unwrap_or_else(PoisonError::into_inner) = handler;
    }

    /// Lets the handler judge again who may keep a stream.
    pub(super) fn judge_again(&self) {
        self.shared.judged.send_replace(());
    }

    fn handler(&self) -> Result<Arc<dyn Handler>, Status> {
        let handler = self.shared.handler.read().unwrap_or_else(PoisonError::into_inner);
        handler.clone().ok_or_else(|| refuse(Refusal::Busy("the node is not running".to_owned())))
    }

    async fn first<T>(&self, stream: &mut Streaming<T>) -> Result<T, Status> {
        let limit = self.shared.options.handshake_timeout;
        let first = timeout(limit, stream.message()).await;
        first
            .map_err(|_| malformed(format!("no hello within {limit:?}")))??
            .ok_or_else(|| malformed("a stream without a hello"))
    }

    /// Lets the handler judge; our own hello, and the link of the two.
    fn admit(&self, hello: Option<&pb::Hello>) -> Result<(Arc<dyn Handler>, pb::Hello), Status> {
        let hello = hello.ok_or_else(|| malformed("a stream without a hello"))?;
        let handler = self.handler()?;
        let ours = handler.admit(hello).map_err(refuse)?;
        (self.shared.heard)(hello.from);
        Ok((handler, ours))
    }
}

#[async_trait]
impl pb::raft_server::Raft for RaftService {
    type ExchangeStream = BoxStream<'static, Result<pb::Welcome, Status>>;

    async fn exchange(
        &self,
        request: Request<Streaming<pb::Batch>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let activity = request.extensions().get::<Activity>().cloned();
        let mut batches = request.into_inner();
        let first = self.first(&mut batches).await?;
        // NB: before it is judged, so that no change of the peers is missed.
        let judged = self.shared.judged.subscribe();
        let (handler, ours) = self.admit(first.hello.as_ref())?;
        let hello = first.hello.unwrap_or_default();
        let replaced = Arc::new(Notify::new());
        let old = self.shared.newest().insert((hello.from, first.lane), replaced.clone());
        if let Some(old) = old {
            old.notify_one();
        }
        let lane = Lane {
            hello,
            judged,
            number: first.lane,
            batches,
            handler,
            shared: self.shared.clone(),
            replaced,
            _busy: activity.clone().map(Activity::begin),
            activity,
        };
        lane.deliver(first.messages)?;
        let welcome = stream::iter([Ok(pb::Welcome { hello: Some(ours) })]);
        // NB: kept until the answers are dropped, when the far end's status is on its way.
        let mut kept = None;
        let rest = stream::once(lane.run()).map(move |(status, hang_up)| {
            drop(mem::replace(&mut kept, hang_up));
            Err(status)
        });
        Ok(Response::new(welcome.chain(rest).boxed()))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<pb::Chunk>>,
    ) -> Result<Response<pb::SnapshotReceived>, Status> {
        let activity = request.extensions().get::<Activity>().cloned();
        let mut chunks = request.into_inner();
        let Some(Part::Start(start)) = self.first(&mut chunks).await?.part else {
            return Err(malformed("a snapshot without a start"));
        };
        let (handler, _) = self.admit(start.hello.as_ref())?;
        let _busy = activity.map(Activity::begin);
        let _permit = permit(&self.shared.snapshots, "other snapshots are being received")?;
        let hello = start.hello.unwrap_or_default();
        let message = start.message.ok_or_else(|| malformed("a snapshot without a message"))?;
        let message = receive(message, hello.from, hello.to)?;
        let Some(size) = message.snapshot.as_ref().map(|meta| meta.size) else {
            return Err(malformed("a snapshot without a header"));
        };
        let body = snapshot::body(chunks, size, self.shared.options.stall_timeout);
        tokio::select! {
            result = handler.snapshot(hello.from, message, body) => {
                result.map_err(refuse)?;
                Ok(Response::new(pb::SnapshotReceived {}))
            }
            () = self.shared.closing.clone().closed() => Err(closed()),
        }
    }

    async fn call(&self, request: Request<pb::Request>) -> Result<Response<pb::Response>, Status> {
        let _busy = request.extensions().get::<Activity>().cloned().map(Activity::begin);
        let _permit = permit(&self.shared.calls, "too many requests")?;
        let handler = self.handler()?;
        tokio::select! {
            biased;
            // An answer that is there gets out, although the node ends.
            answer = handler.call(request.into_inner()) => Ok(Response::new(answer)),
            () = self.shared.closing.clone().closed() => Err(closed()),
        }
    }
}

/// An admitted stream.
struct Lane {
    hello: pb::Hello,
    judged: watch::Receiver<()>,
    number: u32,
    batches: Streaming<pb::Batch>,
    handler: Arc<dyn Handler>,
    shared: Arc<Shared>,
    replaced: Arc<Notify>,
    /// Of the connection, where it is ours.
    activity: Option<Activity>,
    _busy: Option<Busy>,
}

impl Lane {
    /// Hands messages on until the stream ends; why it did, and what ends its connection too.
    async fn run(mut self) -> (Status, Option<HangUp>) {
        let mut closing = std::pin::pin!(self.shared.closing.clone().closed());
        let replaced = self.replaced.clone();
        loop {
            let batch = tokio::select! {
                biased;
                () = &mut closing => return (closed(), None),
                () = replaced.notified() => {
                    let status = Status::aborted("a newer stream took over");
                    return (status, self.activity.take().map(HangUp));
                }
                Ok(()) = self.judged.changed() => {
                    match self.handler.admit(&self.hello) {
                        Ok(_) => continue,
                        Err(refusal) => return (refuse(refusal), None),
                    }
                }
                batch = self.batches.message() => batch,
            };
            let result = match batch {
                Ok(Some(batch)) if batch.hello.is_some() => Err(malformed("a second hello")),
                Ok(Some(batch)) => self.deliver(batch.messages),
                Ok(None) => Err(Status::cancelled("the peer closed the stream")),
                Err(status) => Err(status),
            };
            if let Err(status) = result {
                return (status, None);
            }
        }
    }

    fn deliver(&self, wire: Vec<pb::Message>) -> Result<(), Status> {
        if wire.is_empty() {
            return Ok(());
        }
        let messages = wire
            .into_iter()
            .map(|m| receive(m, self.hello.from, self.hello.to))
            .collect::<Result<Vec<_>, Status>>()?;
        if messages.iter().any(|m| m.snapshot.is_some()) {
            return Err(malformed("a snapshot without its body"));
        }
        self.handler.messages(self.hello.from, messages);
        Ok(())
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let mut newest = self.shared.newest();
        let key = (self.hello.from, self.number);
        if newest.get(&key).is_some_and(|n| Arc::ptr_eq(n, &self.replaced)) {
            newest.remove(&key);
        }
    }
}

fn receive(wire: pb::Message, from: RaftId, to: RaftId) -> Result<Message, Status> {
    if (wire.from, wire.to) != (from, to) {
        let (f, t) = (wire.from, wire.to);
        return Err(malformed(format!("a message {f} -> {t} on the stream {from} -> {to}")));
    }
    convert::from_wire(wire).map_err(refuse)
}

fn permit<'a>(of: &'a Semaphore, busy: &str) -> Result<SemaphorePermit<'a>, Status> {
    of.try_acquire().map_err(|_| refuse(Refusal::Busy(busy.to_owned())))
}

fn malformed(reason: impl Into<String>) -> Status {
    refuse(Refusal::Malformed(reason.into()))
}

fn closed() -> Status {
    Status::unavailable("the node is shutting down")
}
