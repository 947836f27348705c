//! A part of the node that fails or panics ends the node, with the cause, and nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use raftline::log::memory::MemoryLog;
use raftline::log::{LogBatch, LogStorage, Recovered};
use raftline::transport::memory::{MemoryNetwork, MemoryTransport};
use raftline::transport::{Handler, Peers, SnapshotStream, Transport, TransportError};
use raftline::vfs::MemVfs;
use raftline::{
    ClusterId, Error, Identity, Incarnation, Mailbox, Message, Position, Raft, Result, Status,
    StorageError, async_trait, pb,
};
use tokio::task::JoinHandle;

use crate::support::{Journal, config, logger};

const WORK: u8 = 0;
const FAIL: u8 = 1;
const PANIC: u8 = 2;
const HANG: u8 = 3;

#[derive(Clone, Debug, Default)]
struct Switch(Arc<AtomicU8>);

impl Switch {
    fn set(&self, to: u8) {
        self.0.store(to, Ordering::Release);
    }

    fn is(&self, what: u8) -> bool {
        self.0.load(Ordering::Acquire) == what
    }
}

/// A log whose next write fails or panics.
#[derive(Debug)]
struct BadLog {
    log: MemoryLog,
    switch: Switch,
    /// Whether the event loop may write it.
    local: bool,
}

impl LogStorage for BadLog {
    fn is_local(&self) -> bool {
        self.local
    }

    fn load(&mut self) -> Result<Recovered, StorageError> {
        self.log.load()
    }

    fn identify(&mut self, identity: &Identity) -> Result<(), StorageError> {
        self.log.identify(identity)
    }

    fn append(&mut self, batches: &[LogBatch]) -> Result<(), StorageError> {
        assert!(!self.switch.is(PANIC), "the log panics as asked");
        while self.switch.is(HANG) {
            std::thread::yield_now();
        }
        if self.switch.is(FAIL) {
            return Err(StorageError::Io {
                op: "write",
                path: "log".into(),
                source: std::io::Error::from(std::io::ErrorKind::StorageFull),
            });
        }
        self.log.append(batches)
    }

    fn compact(&mut self, through: Position) -> Result<(), StorageError> {
        self.log.compact(through)
    }

    fn close(&mut self) -> Result<(), StorageError> {
        self.log.close()
    }
}

/// A transport that panics in the event loop.
#[derive(Debug)]
struct BadTransport {
    transport: MemoryTransport,
    switch: Switch,
}

#[async_trait]
impl Transport for BadTransport {
    fn start(&self, handler: Arc<dyn Handler>) -> std::io::Result<()> {
        self.transport.start(handler)
    }

    fn set_peers(&self, peers: Peers) {
        assert!(!self.switch.is(PANIC), "the transport panics as asked");
        self.transport.set_peers(peers);
    }

    fn send(&self, messages: Vec<Message>) {
        self.transport.send(messages);
    }

    async fn send_snapshot(
        &self,
        message: Message,
        body: SnapshotStream,
    ) -> Result<(), TransportError> {
        self.transport.send_snapshot(message, body).await
    }

    async fn call(
        &self,
        addr: &str,
        request: pb::Request,
        timeout: Duration,
    ) -> Result<pb::Response, TransportError> {
        self.transport.call(addr, request, timeout).await
    }

    async fn close(&self) {
        self.transport.close().await;
    }
}

/// On the log thread, and on the event loop's.
const EVERYWHERE: [bool; 2] = [false, true];

fn node(log: &Switch, local: bool, transport: &Switch) -> (Mailbox, JoinHandle<Result<()>>) {
    let network = MemoryNetwork::new(1);
    let transport = BadTransport { transport: network.endpoint("n1:1"), switch: transport.clone() };
    let log = BadLog { log: MemoryLog::new(), switch: log.clone(), local };
    let raft =
        Raft::with_transport(Arc::new(transport), "n1:1", Journal::default(), logger(), config());
    let raft = raft.unwrap().with_log(Box::new(log), Arc::new(MemVfs::default()));
    let mailbox = raft.mailbox();
    (mailbox, tokio::spawn(raft.lead(1)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_fails_ends_the_node_and_acknowledges_nothing() {
    for local in EVERYWHERE {
        let log = Switch::default();
        let (mailbox, node) = node(&log, local, &Switch(Arc::new(AtomicU8::new(WORK))));
        mailbox.propose("durable").await.unwrap();
        log.set(FAIL);
        let error = mailbox.propose("lost").await.unwrap_err();
        assert!(error.outcome_unknown(), "{error}");
        let error = node.await.unwrap().unwrap_err();
        assert!(matches!(error, Error::Storage(StorageError::Io { op: "write", .. })), "{error}");
        assert!(matches!(mailbox.propose("late").await, Err(Error::ShuttingDown)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_of_the_log_is_contained_and_named() {
    for local in EVERYWHERE {
        let log = Switch::default();
        let (mailbox, node) = node(&log, local, &Switch::default());
        mailbox.propose("durable").await.unwrap();
        log.set(PANIC);
        assert!(mailbox.propose("lost").await.unwrap_err().outcome_unknown());
        let error = node.await.unwrap().unwrap_err();
        assert!(matches!(error, Error::Internal { part: "log writer", .. }), "{error}");
        assert!(error.to_string().contains("as asked"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_hangs_is_told_of_whoever_waits_for_it() {
    for local in EVERYWHERE {
        let log = Switch::default();
        let (mailbox, node) = node(&log, local, &Switch::default());
        mailbox.propose("durable").await.unwrap();
        log.set(HANG);
        let waiting = tokio::spawn({
            let mailbox = mailbox.clone();
            async move { mailbox.propose("late").await }
        });
        let status = mailbox.wait_for(|s| s.disk_stalled).await.unwrap();
        assert!(status.health.contains("the disk has not finished a write"), "{}", status.health);
        log.set(WORK);
        mailbox.wait_for(|s| !s.disk_stalled).await.unwrap();
        waiting.await.unwrap().unwrap();
        mailbox.shutdown().await.unwrap();
        node.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_of_the_event_loop_is_contained_and_named() {
    let transport = Switch::default();
    transport.set(PANIC);
    let (mailbox, node) = node(&Switch::default(), false, &transport);
    let error = mailbox.propose("never").await.unwrap_err();
    assert!(matches!(error, Error::ShuttingDown), "{error}");
    let error = node.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Internal { part: "event loop", .. }), "{error}");
    assert!(error.to_string().contains("as asked"), "{error}");
}

/// It joined, and crashed before the cluster's first snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_has_joined_and_holds_nothing_says_whom_it_needs() {
    let cluster = ClusterId::from_u128(9);
    let joined = |known: &str| {
        let mut log = MemoryLog::new();
        let incarnation = Incarnation::from_u128(4);
        let cluster = Some((cluster, 4));
        log.identify(&Identity { node_id: 4, incarnation, cluster, boot: 1 }).unwrap();
        let place = "n4:1";
        let transport = Arc::new(MemoryNetwork::new(1).endpoint(place));
        let raft =
            Raft::with_transport(transport, place, Journal::default(), logger(), config()).unwrap();
        let raft = raft.with_log(Box::new(log), Arc::new(MemVfs::default()));
        let mailbox = raft.mailbox();
        (mailbox, tokio::spawn(raft.start(4, [known])))
    };
    let (_, node) = joined("n4:1");
    let error = node.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("holds nothing of it yet; start it with start or join"), "{error}");
    let (mailbox, node) = joined("n1:1");
    let says = |s: &Status| s.health.contains("no member of that cluster answers at n1:1");
    let status = mailbox.wait_for(says).await.unwrap();
    assert!(status.health.contains("has joined cluster 00000000000000000000000000000009"));
    mailbox.shutdown().await.unwrap();
    node.await.unwrap().unwrap();
}
