//! Snapshots between two nodes: whole, damaged, hanging, and onto a full disk.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::VecDeque;

use async_trait::async_trait;
use slog::{Discard, o};
use tokio::sync::Notify;

use super::super::inbox::Classes;
use super::super::wait_for::wait_for;
use super::*;
use crate::pb;
use crate::snapshot::fake_disk::FakeDisk;
use crate::transport::{Handler, Peers, TransportError};
use crate::types::{ClusterId, ConfState, Membership, Position, eraftpb};

/// What the fake transport does with a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wire {
    Takes,
    Refuses,
    Panics,
    Hangs,
}

/// Keeps what was sent.
#[derive(Debug)]
struct FakeTransport {
    wire: Wire,
    got: Mutex<Vec<(Message, io::Result<Vec<u8>>)>>,
    chunks: Mutex<Vec<usize>>,
    begun: Mutex<usize>,
    go_on: Notify,
    waits: bool,
}

#[async_trait]
impl Transport for FakeTransport {
    fn start(&self, _handler: Arc<dyn Handler>) -> io::Result<()> {
        Ok(())
    }

    fn set_peers(&self, _peers: Peers) {}

    fn send(&self, _messages: Vec<Message>) {}

    async fn send_snapshot(
        &self,
        message: Message,
        mut body: SnapshotStream,
    ) -> Result<(), TransportError> {
        *lock(&self.begun) += 1;
        if self.waits {
            self.go_on.notified().await;
        }
        match self.wire {
            Wire::Takes => {}
            Wire::Refuses => return Err(Refusal::Busy("full".to_owned()).into()),
            Wire::Panics => panic!("transport"),
            Wire::Hangs => std::future::pending().await,
        }
        let mut found = Vec::new();
        let mut ended = Ok(());
        while let Some(chunk) = body.next().await {
            match chunk {
                Ok(chunk) => {
                    lock(&self.chunks).push(chunk.len());
                    found.extend_from_slice(&chunk);
                }
                Err(e) => ended = Err(e),
            }
        }
        let failed = ended.as_ref().err().map(ToString::to_string);
        lock(&self.got).push((message, ended.map(|()| found)));
        match failed {
            None => Ok(()),
            Some(reason) => Err(TransportError::Lost { addr: "a:1".to_owned(), reason }),
        }
    }

    async fn call(
        &self,
        _addr: &str,
        _request: pb::Request,
        _timeout: Duration,
    ) -> Result<pb::Response, TransportError> {
        Ok(pb::Response::default())
    }

    async fn close(&self) {}
}

struct Rig {
    snapshotter: Arc<Snapshotter>,
    transport: Arc<FakeTransport>,
    snapshots: SnapshotDir,
    inbox: Arc<Inbox>,
    disk: FakeDisk,
    sent: VecDeque<(RaftId, Transferred)>,
    progress: Vec<(RaftId, u8)>,
}

impl Rig {
    fn new(wire: Wire, waits: bool) -> Self {
        let disk = FakeDisk::default();
        let snapshots = SnapshotDir::open(Arc::new(disk.clone()), "/snap").unwrap();
        let transport = Arc::new(FakeTransport {
            wire,
            got: Mutex::default(),
            chunks: Mutex::default(),
            begun: Mutex::default(),
            go_on: Notify::new(),
            waits,
        });
        let inbox = Arc::new(Inbox::default());
        let logger = Logger::root(Discard, o!());
        let snapshotter =
            Snapshotter::new(snapshots.clone(), inbox.clone(), transport.clone(), logger);
        let snapshotter = Arc::new(snapshotter);
        let (sent, progress) = (VecDeque::new(), Vec::new());
        Self { snapshotter, transport, snapshots, inbox, disk, sent, progress }
    }

    fn write(&self, index: Index, body: &[u8]) -> SnapshotMeta {
        let mut writer = self.snapshots.create(at(index), membership()).unwrap();
        writer.write(body).unwrap();
        writer.finish().unwrap()
    }

    fn take(&self) -> Classes {
        let mut classes = Classes::default();
        self.inbox.take(&mut classes);
        classes
    }

    /// The next `SnapshotSent`.
    async fn outcome(&mut self) -> (RaftId, Transferred) {
        while self.sent.is_empty() {
            let told = || Some(self.take().completions).filter(|c| !c.is_empty());
            for event in wait_for("the outcome of a transfer", told).await {
                match event {
                    Event::SnapshotProgress { to, percent } => self.progress.push((to, percent)),
                    Event::SnapshotSent { to, how } => self.sent.push_back((to, how)),
                    _ => panic!("{event:?}"),
                }
            }
        }
        self.sent.pop_front().unwrap()
    }

    async fn begun(&self, number: usize) {
        let begun = || (*lock(&self.transport.begun) >= number).then_some(());
        wait_for("transfers to begin", begun).await;
    }

    /// Waits until so many files are on the disk.
    async fn files(&self, number: usize) {
        wait_for("files", || (self.disk.names().len() == number).then_some(())).await;
    }

    fn indices(&self) -> Vec<Index> {
        let metas = self.snapshots.metas().unwrap();
        metas.into_iter().map(|m| m.unwrap().position.index).collect()
    }

    /// Removes what is below `keep`; returns when so many files are left.
    async fn retain(&self, keep: Index, left: usize) {
        self.snapshotter.retain(keep);
        self.files(left).await;
    }
}

fn at(index: Index) -> Position {
    Position { index, term: 2 }
}

fn membership() -> Membership {
    let conf_state = ConfState { voters: vec![1], ..ConfState::default() };
    let cluster_id = ClusterId::from_u128(7);
    Membership { cluster_id, index: 1, conf_state, members: Vec::new(), next_raft_id: 2 }
}

fn message(meta: SnapshotMeta) -> Message {
    Message { inner: eraftpb::Message::default(), snapshot: Some(Box::new(meta)) }
}

fn meta_of(index: Index, body: &[u8]) -> SnapshotMeta {
    SnapshotMeta {
        position: at(index),
        membership: membership(),
        size: body.len() as u64,
        crc32: crc32fast::hash(body),
    }
}

fn body(parts: &[&'static [u8]]) -> SnapshotStream {
    let parts: Vec<_> = parts.iter().map(|p| Ok(Bytes::from_static(p))).collect();
    stream::iter(parts).boxed()
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_arrives_whole_in_bounded_chunks() {
    let mut rig = Rig::new(Wire::Takes, false);
    let state: Vec<u8> = (0..600_000u32).map(|i| (i / 7) as u8).collect();
    let meta = rig.write(9, &state);
    rig.snapshotter.send(3, message(meta.clone()));
    assert_eq!(rig.outcome().await, (3, Transferred::Arrived));
    let (sent, found) = lock(&rig.transport.got).pop().unwrap();
    assert_eq!(sent.snapshot.as_deref(), Some(&meta));
    assert_eq!(found.unwrap(), state);
    assert_eq!(*lock(&rig.transport.chunks), [CHUNK, CHUNK, 600_000 - 2 * CHUNK]);
    assert_eq!(rig.progress, [(3, 43), (3, 87), (3, 100)]);
}

/// The file is what counts: another one of the same position announces itself rightly.
#[tokio::test(start_paused = true)]
async fn what_is_announced_is_what_the_file_holds() {
    let mut rig = Rig::new(Wire::Takes, false);
    let meta = rig.write(9, b"in the file");
    rig.snapshotter.send(3, message(meta_of(9, b"remembered")));
    assert_eq!(rig.outcome().await, (3, Transferred::Arrived));
    let (sent, _) = lock(&rig.transport.got).pop().unwrap();
    assert_eq!(sent.snapshot.as_deref(), Some(&meta));
}

/// H7: whatever happens to a transfer, the node hears of its end, once.
#[tokio::test(start_paused = true)]
async fn every_transfer_ends_with_exactly_one_outcome() {
    for wire in [Wire::Refuses, Wire::Panics, Wire::Hangs] {
        let mut rig = Rig::new(wire, false);
        let meta = rig.write(9, b"state");
        rig.snapshotter.send(3, message(meta));
        rig.begun(1).await;
        if wire == Wire::Hangs {
            tokio::time::advance(STALL + Duration::from_secs(1)).await;
        }
        assert_eq!(rig.outcome().await, (3, Transferred::Broken), "{wire:?}");
        rig.snapshotter.close().await;
        assert!(rig.take().completions.is_empty(), "{wire:?}: told twice");
    }
    let mut rig = Rig::new(Wire::Takes, false);
    rig.snapshotter.send(3, message(meta_of(9, b"missing")));
    assert_eq!(rig.outcome().await, (3, Transferred::Unreadable(at(9))), "no such file");
    rig.snapshotter.send(4, Message::new(eraftpb::Message::default()));
    assert_eq!(rig.outcome().await, (4, Transferred::Broken), "no meta");
}

#[tokio::test(start_paused = true)]
async fn closing_ends_what_is_under_way_and_what_waits() {
    let mut rig = Rig::new(Wire::Hangs, false);
    let meta = rig.write(9, b"state");
    for to in 3..6 {
        rig.snapshotter.send(to, message(meta.clone()));
    }
    rig.begun(MAX_SENDING).await;
    rig.snapshotter.close().await;
    let mut outcomes = [rig.outcome().await, rig.outcome().await, rig.outcome().await];
    outcomes.sort_unstable_by_key(|(to, _)| *to);
    assert_eq!(outcomes, [3, 4, 5].map(|to| (to, Transferred::Broken)));
}

/// The node hears that it is its own file: otherwise the peer would be offered it for ever.
#[tokio::test(start_paused = true)]
async fn a_file_that_is_damaged_is_not_passed_off_as_a_snapshot() {
    for head in [false, true] {
        let mut rig = Rig::new(Wire::Takes, false);
        let meta = rig.write(9, b"state");
        let name = rig.disk.names().remove(0);
        let mut bytes = rig.disk.bytes(&name);
        let at_byte = if head { 30 } else { bytes.len() - 1 };
        *bytes.get_mut(at_byte).unwrap() ^= 1;
        rig.disk.put(format!("/snap/{name}"), bytes);
        rig.snapshotter.send(3, message(meta.clone()));
        assert_eq!(rig.outcome().await, (3, Transferred::Unreadable(at(9))));
        match lock(&rig.transport.got).pop() {
            Some((_, found)) => assert!(found.unwrap_err().to_string().contains("checksum")),
            None => assert!(head, "the body is found out on the way"),
        }
        // Another one at the same position takes its place.
        assert_eq!(rig.write(9, b"state"), meta);
        rig.snapshotter.send(3, message(meta));
        assert_eq!(rig.outcome().await, (3, Transferred::Arrived));
    }
}

#[tokio::test(start_paused = true)]
async fn few_transfers_run_at_a_time() {
    let mut rig = Rig::new(Wire::Takes, true);
    let meta = rig.write(9, b"state");
    for to in 3..7 {
        rig.snapshotter.send(to, message(meta.clone()));
    }
    rig.begun(MAX_SENDING).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(*lock(&rig.transport.begun), MAX_SENDING);
    for _ in 0..4 {
        rig.transport.go_on.notify_one();
        assert_eq!(rig.outcome().await.1, Transferred::Arrived);
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_being_sent_is_kept() {
    let mut rig = Rig::new(Wire::Takes, true);
    let meta = rig.write(5, b"old");
    for index in [6, 9] {
        rig.write(index, b"state");
    }
    rig.snapshotter.send(3, message(meta));
    rig.retain(9, 2).await;
    assert_eq!(rig.indices(), [9, 5], "kept from the moment of the send");
    rig.begun(1).await;
    rig.transport.go_on.notify_one();
    assert_eq!(rig.outcome().await, (3, Transferred::Arrived));
    rig.retain(9, 1).await;
    assert_eq!(rig.indices(), [9]);
}

#[tokio::test(start_paused = true)]
async fn a_received_snapshot_is_durable_before_the_node_hears_of_it() {
    let rig = Rig::new(Wire::Takes, false);
    let meta = meta_of(9, b"some state");
    rig.snapshotter
        .receive(2, message(meta.clone()), body(&[b"some", b" ", b"state"]))
        .await
        .unwrap();
    assert_eq!(rig.snapshots.open_snapshot(at(9)).unwrap().read_all().unwrap(), b"some state");
    assert_eq!(rig.take().messages, [(2, message(meta))]);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_not_what_was_announced_leaves_nothing() {
    let rig = Rig::new(Wire::Takes, false);
    for wrong in [&b"some stat"[..], b"some stATe", b"some state and more"] {
        let message = message(meta_of(9, b"some state"));
        let refusal = rig.snapshotter.receive(2, message, body(&[wrong])).await.unwrap_err();
        assert!(matches!(refusal, Refusal::Malformed(_)), "{refusal}");
        assert!(rig.disk.names().is_empty());
    }
    let newer = SnapshotMeta { position: Position { index: 0, term: 2 }, ..meta_of(9, b"") };
    let refusal = rig.snapshotter.receive(2, message(newer), body(&[])).await.unwrap_err();
    assert!(matches!(refusal, Refusal::Malformed(_)), "{refusal}");
    assert!(rig.take().messages.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_refuses_the_snapshot_and_nothing_else() {
    let rig = Rig::new(Wire::Takes, false);
    rig.disk.set_capacity(Some(200));
    let state: &[u8] = &[7; 150];
    let parts: [&[u8]; 2] = [&[7; 100], &[7; 50]];
    let refusal =
        rig.snapshotter.receive(2, message(meta_of(9, state)), body(&parts)).await.unwrap_err();
    assert!(matches!(refusal, Refusal::Busy(ref why) if why.contains("snapshot-")), "{refusal}");
    assert!(rig.disk.names().is_empty(), "the unfinished file is gone");
    assert!(rig.take().messages.is_empty());
    rig.disk.set_capacity(None);
    rig.snapshotter.receive(2, message(meta_of(9, state)), body(&parts)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_sender_has_one_transfer_at_a_time_and_a_stalled_one_ends() {
    let rig = Rig::new(Wire::Takes, false);
    let start = |from: RaftId| {
        let snapshotter = rig.snapshotter.clone();
        let first = stream::iter([Ok(Bytes::from_static(b"some"))]);
        let stalled: SnapshotStream = first.chain(stream::pending()).boxed();
        tokio::spawn(async move {
            snapshotter.receive(from, message(meta_of(9, b"some state")), stalled).await
        })
    };
    let stalled = start(2);
    rig.files(1).await;
    let again = message(meta_of(9, b"some state"));
    let refusal = rig.snapshotter.receive(2, again, body(&[b"some state"])).await.unwrap_err();
    assert!(matches!(refusal, Refusal::Busy(_)), "{refusal}");
    let refusal = stalled.await.unwrap().unwrap_err();
    assert!(matches!(refusal, Refusal::Busy(ref why) if why.contains("progress")), "{refusal}");
    assert!(rig.disk.names().is_empty());

    let cancelled = start(2);
    rig.files(1).await;
    cancelled.abort();
    assert!(cancelled.await.is_err());
    rig.files(0).await;
    let again = message(meta_of(9, b"some state"));
    rig.snapshotter.receive(2, again, body(&[b"some state"])).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_transfer_that_breaks_off_leaves_nothing() {
    let rig = Rig::new(Wire::Takes, false);
    let parts = [Ok(Bytes::from_static(b"some")), Err(io::Error::other("reset"))];
    let message = message(meta_of(9, b"some state"));
    let refusal = rig.snapshotter.receive(2, message, stream::iter(parts).boxed()).await;
    assert!(matches!(refusal.unwrap_err(), Refusal::Busy(ref why) if why.contains("reset")));
    assert!(rig.disk.names().is_empty());
}
