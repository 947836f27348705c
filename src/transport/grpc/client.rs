//! The sending side: a connection per peer and lane, and snapshots.
//!
//! A lane is one task. It connects, says hello, waits for the welcome and checks it, and only
//! then lets the outbox go: nothing is sent to a node that has not said who it is, and nothing is
//! lost in a stream that is about to be refused. The price is one round trip per connection, not
//! per message. Invariants:
//! - messages leave through one stream at a time, in the order they were queued;
//! - per outage of a peer `unreachable` is told once, over both lanes;
//! - a broken connection is made anew with growing, random pauses; a peer that connects to us
//!   cuts the pause short, for it is there again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use futures::{Stream, stream};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::outbox::{Outbox, Push, Session};
use super::status::{describe, refusal};
use super::{GrpcOptions, dial};
use crate::pb;
use crate::transport::{Handler, Peer, Refusal, check_welcome};
use crate::types::{Message, RaftId};

/// Everything towards one peer. Dropping it closes the connections.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) peer: Peer,
    pub(super) hello: pb::Hello,
    /// Appends and what answers them; votes, heartbeats and reads.
    lanes: [Arc<Lane>; 2],
    tasks: [AbortHandle; 2],
}

struct Lane {
    outbox: Arc<Outbox>,
    retry: Notify,
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane").field("open", &self.outbox.is_open()).finish_non_exhaustive()
    }
}

/// How a connection ended.
enum End {
    /// The peer turned us away.
    Refused(Refusal),
    /// There was none, or it broke.
    Lost(String),
}

impl End {
    fn of(status: &tonic::Status) -> Self {
        refusal(status).map_or_else(|| Self::Lost(describe(status)), Self::Refused)
    }
}

/// Tells the handler about one peer, without repeating itself.
struct Teller {
    peer: RaftId,
    log: slog::Logger,
    handler: Arc<dyn Handler>,
    down: AtomicBool,
    refusal: Mutex<Option<Refusal>>,
}

impl std::fmt::Debug for Teller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Teller").field("down", &self.down).finish_non_exhaustive()
    }
}

impl Teller {
    fn up(&self) {
        if self.down.swap(false, Ordering::Relaxed) {
            slog::info!(self.log, "peer is reachable again");
        }
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn down(&self, end: End) {
        let first = !self.down.swap(true, Ordering::Relaxed);
        if let End::Lost(reason) = &end
            && first
        {
            slog::warn!(self.log, "peer is unreachable; trying again"; "reason" => reason);
        }
        if let End::Refused(refusal) = end {
            let mut told = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
            let news = told.as_ref() != Some(&refusal);
            *told = Some(refusal.clone());
            drop(told);
            // That it was removed is news once; anything else goes on as long as it is told.
            if news || !matches!(refusal, Refusal::Removed(_)) {
                self.handler.refused(self.peer, refusal);
            }
        }
        if first {
            self.handler.unreachable(self.peer);
        }
    }
}

impl Link {
    /// Starts to connect.
    pub(super) fn new(
        peer: Peer,
        hello: pb::Hello,
        options: &Arc<GrpcOptions>,
        handler: Arc<dyn Handler>,
    ) -> Self {
        let teller = Arc::new(Teller {
            peer: peer.raft_id,
            log: options.logger.new(slog::o!("peer" => peer.node_id, "addr" => peer.addr.clone())),
            handler,
            down: AtomicBool::new(false),
            refusal: Mutex::default(),
        });
        let lanes = [(); 2].map(|()| {
            Arc::new(Lane {
                outbox: Arc::new(Outbox::new(options.outbox_bytes)),
                retry: Notify::new(),
            })
        });
        let mut number = 0;
        let tasks = lanes.each_ref().map(|lane| {
            number += 1;
            let run = Run {
                lane: lane.clone(),
                number,
                peer: peer.clone(),
                hello: hello.clone(),
                options: options.clone(),
                teller: teller.clone(),
            };
            tokio::spawn(run.forever()).abort_handle()
        });
        Self { peer, hello, lanes, tasks }
    }

    /// Queues a message on its lane; false when the first of a burst was dropped.
    pub(super) fn send(&self, message: Message) -> bool {
        let [bulk, fast] = &self.lanes;
        let lane = if message.is_bulk() { bulk } else { fast };
        lane.outbox.push(message) != Push::Dropped { first: true }
    }

    /// The peer has been heard of: connect now if a lane waits to try again.
    pub(super) fn retry(&self) {
        for lane in &self.lanes {
            if !lane.outbox.is_open() {
                lane.retry.notify_one();
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for (task, lane) in self.tasks.iter().zip(&self.lanes) {
            task.abort();
            lane.outbox.reset();
        }
    }
}

/// The task of a lane.
struct Run {
    lane: Arc<Lane>,
    number: u32,
    peer: Peer,
    hello: pb::Hello,
    options: Arc<GrpcOptions>,
    teller: Arc<Teller>,
}

impl Run {
    async fn forever(self) {
        let mut pauses = self.pauses();
        loop {
            let end = self.session().await;
            if self.lane.outbox.is_open() {
                pauses = self.pauses();
            }
            self.lane.outbox.reset();
            self.teller.down(end);
            let pause = pauses.next().unwrap_or(self.options.backoff_max);
            tokio::select! {
                () = sleep(pause) => {}
                () = self.lane.retry.notified() => {}
            }
        }
    }

    fn pauses(&self) -> ExponentialBackoff {
        ExponentialBuilder::default()
            .with_min_delay(self.options.backoff_min)
            .with_max_delay(self.options.backoff_max)
            .with_factor(2.0)
            .with_jitter()
            .without_max_times()
            .build()
    }

    /// One connection, from hello to its end.
    async fn session(&self) -> End {
        let channel = match dial::connect(&self.peer.addr, &self.options).await {
            Ok(channel) => channel,
            Err(reason) => return End::Lost(reason),
        };
        let session =
            self.lane.outbox.begin(self.hello.clone(), self.number, self.options.batch_limit());
        let oversized = session.oversized();
        let mut client = dial::client(channel, &self.options);
        let welcome = async {
            let mut answers = client.exchange(batches(session)).await?.into_inner();
            Ok::<_, tonic::Status>((answers.message().await?, answers))
        };
        let mut answers = match timeout(self.options.handshake_timeout, welcome).await {
            Ok(Ok((welcome, answers))) => {
                if let Err(refusal) = self.check(welcome) {
                    return End::Refused(refusal);
                }
                answers
            }
            Ok(Err(status)) => return End::of(&status),
            Err(_) => return End::Lost("no welcome in time".to_owned()),
        };
        self.teller.up();
        self.lane.outbox.open();
        loop {
            tokio::select! {
                more = answers.message() => match more {
                    Ok(Some(pb::Welcome { .. })) => {}
                    Ok(None) => return End::Lost("the peer closed the stream".to_owned()),
                    Err(status) => return End::of(&status),
                },
                // A message that can never be sent: raft must know that it is lost.
                () = oversized.notified() => {
                    self.teller.handler.unreachable(self.peer.raft_id);
                }
            }
        }
    }

    /// Whether the one who welcomes us is the peer that we meant.
    fn check(&self, welcome: Option<pb::Welcome>) -> Result<(), Refusal> {
        let Some(hello) = welcome.and_then(|w| w.hello) else {
            return Err(Refusal::Malformed("a welcome without a hello".to_owned()));
        };
        check_welcome(&self.hello, &hello)
    }
}

fn batches(session: Session) -> impl Stream<Item = pb::Batch> + Send + 'static {
    stream::unfold(session, |mut session| async move {
        let batch = session.batch().await?;
        Some((batch, session))
    })
}

/// How long a request may take at most, to be set as a deadline of gRPC.
pub(super) fn deadline<T>(message: T, timeout: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(timeout);
    request
}
