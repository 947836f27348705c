#![expect(clippy::unwrap_used, reason = "tests")]

use std::io;
use std::path::PathBuf;
use std::sync::Mutex;

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::sleep_until;

use super::super::applier::Parts;
use super::super::boot::{FOUNDING, Opened, Storage};
use super::super::founding::decide::record;
use super::*;
use crate::config::Config;
use crate::log::memory::MemoryLog;
use crate::node::Boot;
use crate::pb;
use crate::snapshot::dir::SnapshotDir;
use crate::snapshot::fake_disk::FakeDisk;
use crate::transport::{Handler, Peers, SnapshotStream, TransportError};
use crate::types::eraftpb::{self, MessageType};
use crate::types::{ClusterId, Incarnation, Message};

const MS: Duration = Duration::from_millis(1);
const SEED: u64 = 7;
const HEARTBEATS: u32 = 10;

#[test]
fn an_entry_that_somebody_waits_for_is_not_kept_from_the_store() {
    let entry = |replies| Committed { index: 1, data: "ab".into(), replies };
    assert_eq!(weight(&entry(Vec::new())), 2);
    let (reply, _waiter) = crate::reply::reply(None);
    assert_eq!(weight(&entry(vec![reply])), MUCH);
}

/// Notes when somebody is asked for a vote.
#[derive(Debug, Default)]
struct Votes(Mutex<Vec<Instant>>);

#[async_trait]
impl Transport for Votes {
    fn start(&self, _handler: Arc<dyn Handler>) -> io::Result<()> {
        Ok(())
    }

    fn set_peers(&self, _peers: Peers) {}

    fn send(&self, messages: Vec<Message>) {
        if messages.iter().any(asks_for_a_vote) {
            self.0.lock().unwrap().push(Instant::now());
        }
    }

    async fn send_snapshot(&self, _: Message, _: SnapshotStream) -> Result<(), TransportError> {
        Err(nobody())
    }

    async fn call(
        &self,
        _addr: &str,
        _request: pb::Request,
        _timeout: Duration,
    ) -> Result<pb::Response, TransportError> {
        Err(nobody())
    }

    async fn close(&self) {}
}

/// Its peers are not there.
fn nobody() -> TransportError {
    TransportError::Unreachable { addr: "n:1".to_owned(), reason: "nobody is there".to_owned() }
}

fn asks_for_a_vote(message: &Message) -> bool {
    message.inner.get_msg_type() == MessageType::MsgRequestPreVote
}

/// Node 1 of three.
fn boot(log: &MemoryLog) -> (Boot, Storage) {
    let storage = Storage {
        log: Box::new(log.clone()),
        snapshots: SnapshotDir::open(Arc::new(FakeDisk::default()), "/snap").unwrap(),
        dir: PathBuf::from("/data"),
    };
    let mut opened = Opened::open(storage, 1).unwrap();
    let own = (1, opened.identity.incarnation, "n1:1");
    let others = [2, 3].map(|id| (id, Incarnation::from_u128(id.into()), "n:1"));
    opened.found(&record(ClusterId::from_u128(9), others.into_iter().chain([own]))).unwrap();
    opened.into_boot(None).unwrap()
}

fn heartbeat() -> Message {
    let mut inner = eraftpb::Message { from: 2, to: 1, term: FOUNDING.term, ..Default::default() };
    inner.set_msg_type(MessageType::MsgHeartbeat);
    Message::new(inner)
}

/// How many ticks after the last of a leader's messages it campaigns, with a tick before each but
/// the first.
fn patience(mut node: Node) -> u32 {
    let asks = |node: &mut Node, event: Option<Event>| {
        let mut effects = Vec::new();
        if let Some(event) = event {
            node.handle(event);
        }
        node.poll(&mut effects);
        let asks = |e: &Effect| matches!(e, Effect::Send(m) if m.iter().any(asks_for_a_vote));
        effects.iter().any(asks)
    };
    asks(&mut node, None);
    for n in 0..HEARTBEATS {
        if n > 0 {
            asks(&mut node, Some(Event::Tick));
        }
        asks(&mut node, Some(Event::Message { from: 2, message: heartbeat() }));
    }
    (1..100).find(|_| asks(&mut node, Some(Event::Tick))).unwrap()
}

/// Node 1 of three, and whom it asks for votes.
struct Lone {
    shared: Arc<Shared>,
    log: MemoryLog,
    votes: Arc<Votes>,
}

impl Lone {
    fn new(heartbeat: Duration) -> Self {
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let config = Config { heartbeat, ..Config::default() };
        let shared = Arc::new(Shared::new(config, logger, |_| Ok(())));
        Self { shared, log: MemoryLog::new(), votes: Arc::default() }
    }

    fn node(&self) -> (Node, Storage) {
        let (boot, storage) = boot(&self.log);
        (Node::new(&self.shared.config, boot, SEED, &self.shared.logger).unwrap(), storage)
    }

    /// Its loop, without a log thread: it writes what there is by itself.
    fn run(&self) -> JoinHandle<()> {
        let shared = self.shared.clone();
        let (node, storage) = self.node();
        let (inbox, logger) = (shared.inbox.clone(), shared.logger.clone());
        let transport: Arc<dyn Transport> = self.votes.clone();
        let parts = Parts {
            inbox: inbox.clone(),
            snapshots: storage.snapshots.clone(),
            fatal: shared.fatal.clone(),
            logger: logger.clone(),
        };
        let (apply, _) = Applier::spawn(&Handle::current(), (), 0, &shared.config, parts);
        let forwarder = Forwarder::new(shared.clone(), transport.clone());
        let snapshotter =
            Snapshotter::new(storage.snapshots, inbox.clone(), transport.clone(), logger);
        let queue = Arc::new(LogQueue::new(storage.log, inbox));
        let ports = Ports::new(transport, queue, apply, forwarder, Arc::new(snapshotter));
        tokio::spawn(EventLoop::new(node, shared, ports).run())
    }
}

/// A tick that a follower has left to the next message counts before that message, or it would
/// campaign a tick too early, in step with others.
#[tokio::test(start_paused = true)]
async fn a_tick_that_waited_for_a_message_is_no_part_of_the_silence_after_it() {
    let lone = Lone::new(MS * 100);
    let patience = patience(lone.node().0);
    let start = Instant::now();
    let running = lone.run();
    // Half a period after its ticks.
    for n in 0..HEARTBEATS {
        sleep_until(start + MS * (n * 100 + 50)).await;
        lone.shared.inbox.deliver(2, vec![heartbeat()]);
    }
    let due = MS * 100 * (HEARTBEATS - 1 + patience);
    sleep_until(start + due + MS * 50).await;
    lone.shared.inbox.stop(Stop::Now);
    running.await.unwrap();
    let asked = lone.votes.0.lock().unwrap().first().map(|at| at.duration_since(start));
    let at_its_tick = asked.is_some_and(|at| at >= due && at < due + MS * 10);
    assert!(at_its_tick, "asks for votes at {asked:?}, due at {due:?}, seed {SEED}");
}

/// What is never answered holds up the end for the time that a request may take, and no longer,
/// however rare the ticks are.
#[tokio::test(start_paused = true)]
async fn a_drain_ends_in_time_between_two_ticks() {
    let lone = Lone::new(Duration::from_secs(3600));
    let _permit = lone.shared.admission.admit(1).unwrap();
    let start = Instant::now();
    let running = lone.run();
    lone.shared.inbox.stop(Stop::Drain);
    running.await.unwrap();
    let took = start.elapsed();
    let most = lone.shared.config.request_timeout;
    assert!(took >= most && took < most + MS * 10, "{took:?}");
}
