//! Messages between peers: order, lanes, bounds, outages, refusals.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::pb;
use crate::transport::recorder::{append, arrived, heartbeat, until};
use crate::transport::{Handler, Refusal};
use crate::types::{ClusterId, Incarnation};

fn unreachable(told: Told) -> Option<RaftId> {
    match told {
        Told::Unreachable(peer) => Some(peer),
        _ => None,
    }
}

fn refused(told: Told) -> Option<(RaftId, Refusal)> {
    match told {
        Told::Refused(peer, refusal) => Some((peer, refusal)),
        _ => None,
    }
}

fn admitted(told: Told) -> Option<RaftId> {
    match told {
        Told::Admitted(peer) => Some(peer),
        _ => None,
    }
}

#[tokio::test]
async fn messages_arrive_in_order_and_large_queues_in_pieces() {
    let (one, mut two) = pair();
    let sizes = [1, 100, 70_000, 900_000];
    let messages = (1..=200).map(|i| append(1, 2, i, sizes[i as usize % 4])).collect();
    one.transport.send(messages);
    one.transport.send((201..=300).map(|i| append(1, 2, i, 5)).collect());
    assert_eq!(arrived(&mut two.events, 300).await, (1..=300).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_message_arrives_as_it_was_sent() {
    let (one, mut two) = pair();
    let sent = append(1, 2, 5, 1000);
    one.transport.send(vec![sent.clone()]);
    let got = until(&mut two.events, |told| match told {
        Told::Messages(1, messages) => Some(messages),
        _ => None,
    });
    assert_eq!(got.await, [sent]);
}

#[tokio::test]
async fn both_directions_work_at_once() {
    let (mut one, mut two) = pair();
    two.transport.set_peers(peers(2, &[(1, &one.addr)]));
    one.transport.send((1..=50).map(|i| append(1, 2, i, 1)).collect());
    two.transport.send((1..=50).map(|i| heartbeat(2, 1, i)).collect());
    assert_eq!(arrived(&mut two.events, 50).await, (1..=50).collect::<Vec<_>>());
    assert_eq!(arrived(&mut one.events, 50).await, (1..=50).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_outage_is_told_once_and_order_holds_behind_it() {
    let (mut one, mut two) = pair();
    one.transport.send((1..=10).map(|i| append(1, 2, i, 1)).collect());
    assert_eq!(arrived(&mut two.events, 10).await.len(), 10);
    two.transport.close().await;
    assert_eq!(until(&mut one.events, unreachable).await, 2);
    one.transport.send((11..=20).map(|i| append(1, 2, i, 1)).collect());

    let mut back = node_at(&two.addr, 2, GrpcOptions::default(), |_| {});
    // Both lanes are there again; what was sent before may have been dropped.
    until(&mut back.events, admitted).await;
    until(&mut back.events, admitted).await;
    one.transport.send((21..=1020).map(|i| append(1, 2, i, 1)).collect());
    let mut seen = Vec::new();
    while seen.last() != Some(&1020) {
        seen.extend(arrived(&mut back.events, 1).await);
    }
    assert!(seen.is_sorted(), "{seen:?}");
    assert!(seen.ends_with(&(21..=1020).collect::<Vec<_>>()));
    assert!(one.events.is_empty(), "the first outage was told once");
    back.transport.close().await;
    assert_eq!(until(&mut one.events, unreachable).await, 2);
}

#[tokio::test]
async fn a_peer_that_connects_to_us_is_tried_at_once() {
    let day = Duration::from_secs(86_400);
    let options = GrpcOptions { backoff_min: day, backoff_max: day, ..GrpcOptions::default() };
    let mut one = node_with(1, options, |_| {});
    let two = GrpcTransport::bind("127.0.0.1:0".parse().unwrap(), GrpcOptions::default()).unwrap();
    let addr = two.local_addr().unwrap().to_string();
    two.close().await;
    one.transport.set_peers(peers(1, &[(2, &addr)]));
    assert_eq!(until(&mut one.events, unreachable).await, 2);

    let mut two = node_at(&addr, 2, GrpcOptions::default(), |_| {});
    two.transport.set_peers(peers(2, &[(1, &one.addr)]));
    // Only the visit of node 2 makes node 1 try again before tomorrow.
    assert_eq!(until(&mut two.events, admitted).await, 1);
}

#[tokio::test]
async fn an_overflow_is_told_once_and_the_rest_arrives() {
    let options = GrpcOptions { outbox_bytes: 10_000, ..GrpcOptions::default() };
    let mut one = node_with(1, options, |_| {});
    let mut two = node(2);
    one.knows(1, &[&two]);
    one.transport.send((1..=100).map(|i| append(1, 2, i, 1000)).collect());
    assert_eq!(until(&mut one.events, unreachable).await, 2);
    assert_eq!(arrived(&mut two.events, 9).await, (1..=9).collect::<Vec<_>>());
    one.transport.send(vec![append(1, 2, 101, 1)]);
    assert_eq!(arrived(&mut two.events, 1).await, [101]);
    assert!(one.events.is_empty(), "told once");
}

#[tokio::test]
async fn a_message_over_the_limit_is_told_and_others_go_on() {
    let options = GrpcOptions { message_size: 100_000, ..GrpcOptions::default() };
    let mut one = node_with(1, options, |_| {});
    let mut two = node(2);
    one.knows(1, &[&two]);
    one.transport.send([(1, 10), (2, 200_000), (3, 10)].map(|(i, n)| append(1, 2, i, n)).into());
    assert_eq!(arrived(&mut two.events, 2).await, [1, 3]);
    assert_eq!(until(&mut one.events, unreachable).await, 2);
}

#[tokio::test]
async fn a_message_to_nobody_is_told() {
    let mut one = node(1);
    one.transport.send(vec![append(1, 7, 1, 1), append(1, 7, 2, 1)]);
    assert_eq!(until(&mut one.events, unreachable).await, 7);
    assert!(one.events.is_empty());
}

#[tokio::test]
async fn refusals_arrive_typed() {
    let other = ClusterId::from_u128(9);
    type Adjust = Box<dyn FnOnce(&mut Recorder)>;
    let cases: [(Adjust, Refusal); 3] = [
        (
            Box::new(move |r| r.cluster = other),
            Refusal::Cluster {
                ours: other.to_string(),
                theirs: crate::transport::recorder::CLUSTER.to_string(),
            },
        ),
        (
            Box::new(|r| r.incarnation = Incarnation::from_u128(5)),
            Refusal::Receiver("another data directory".to_owned()),
        ),
        (Box::new(|r| r.remove(1)), Refusal::Removed(10)),
    ];
    for (adjust, expected) in cases {
        let mut two = node_with(2, GrpcOptions::default(), adjust);
        let mut one = node(1);
        one.knows(1, &[&two]);
        one.transport.send(vec![append(1, 2, 1, 1)]);
        assert_eq!(until(&mut one.events, refused).await, (2, expected));
        assert_eq!(until(&mut one.events, unreachable).await, 2);
        one.transport.close().await;
        assert!(two.events.try_recv().is_err(), "nothing reached the node that refused");
    }
}

/// The last that it heard may be older than its removal, and its streams have stood since before.
#[tokio::test]
async fn one_that_is_removed_while_it_is_connected_is_told_so_and_need_not_speak() {
    let mut handler = None;
    let mut two = node_with(2, GrpcOptions::default(), |r| handler = Some(r.clone()));
    let mut one = node(1);
    one.knows(1, &[&two]);
    one.transport.send(vec![append(1, 2, 1, 1)]);
    assert_eq!(arrived(&mut two.events, 1).await, [1]);
    two.transport.set_peers(peers(2, &[(1, &one.addr)]));
    one.transport.send(vec![append(1, 2, 2, 1)]);
    assert_eq!(arrived(&mut two.events, 1).await, [2], "a member keeps its streams");
    handler.unwrap().remove(1);
    two.transport.set_peers(peers(2, &[]));
    assert_eq!(until(&mut one.events, refused).await, (2, Refusal::Removed(10)));
}

/// Admits everybody, as somebody else.
struct Impostor(Recorder);

#[async_trait]
impl Handler for Impostor {
    fn admit(&self, hello: &pb::Hello) -> Result<pb::Hello, Refusal> {
        let mut ours = self.0.admit(hello)?;
        ours.from_incarnation = vec![1; 16].into();
        Ok(ours)
    }
    fn messages(&self, from: RaftId, messages: Vec<crate::types::Message>) {
        self.0.messages(from, messages);
    }
    fn unreachable(&self, _peer: RaftId) {}
    fn refused(&self, _peer: RaftId, _refusal: Refusal) {}
    async fn snapshot(
        &self,
        _from: RaftId,
        _message: crate::types::Message,
        _body: crate::transport::SnapshotStream,
    ) -> Result<(), Refusal> {
        Ok(())
    }
    async fn call(&self, _request: pb::Request) -> pb::Response {
        pb::Response::default()
    }
}

#[tokio::test]
async fn nothing_is_sent_to_an_impostor() {
    let two = GrpcTransport::bind("127.0.0.1:0".parse().unwrap(), GrpcOptions::default()).unwrap();
    let (handler, mut events) = recorder(2);
    two.start(Arc::new(Impostor(handler))).unwrap();
    let mut one = node(1);
    one.transport.send(vec![append(1, 2, 1, 1)]);
    one.transport.set_peers(peers(1, &[(2, &two.local_addr().unwrap().to_string())]));
    let (peer, refusal) = until(&mut one.events, refused).await;
    assert!(matches!(refusal, Refusal::Receiver(_)), "{refusal:?}");
    assert_eq!(peer, 2);
    one.transport.close().await;
    two.close().await;
    while let Ok(told) = events.try_recv() {
        assert!(!matches!(told, Told::Messages(..)), "{told:?}");
    }
}

#[tokio::test]
async fn unchanged_peers_keep_their_connections() {
    let (one, mut two) = pair();
    let mut three = node(3);
    until(&mut two.events, admitted).await;
    until(&mut two.events, admitted).await;
    one.knows(1, &[&two, &three]);
    one.transport.send(vec![append(1, 2, 1, 1), append(1, 3, 2, 1)]);
    assert_eq!(arrived(&mut three.events, 1).await, [2]);
    assert!(matches!(two.events.recv().await, Some(Told::Messages(..))), "no new hello");
    // Gone from the peers: the streams end, and nothing goes there any more.
    one.transport.set_peers(peers(1, &[(3, &three.addr)]));
    one.transport.send(vec![append(1, 2, 3, 1), append(1, 3, 4, 1)]);
    assert_eq!(arrived(&mut three.events, 1).await, [4]);
    assert!(two.events.is_empty());
}

/// A peer that stops reading its bulk lane at the first message.
struct StuckBulk {
    handler: Recorder,
    stuck: UnboundedSender<Streaming<pb::Batch>>,
    fast: UnboundedSender<pb::Message>,
}

#[async_trait]
impl pb::raft_server::Raft for Arc<StuckBulk> {
    type ExchangeStream = BoxStream<'static, Result<pb::Welcome, Status>>;

    async fn exchange(
        &self,
        request: Request<Streaming<pb::Batch>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let mut batches = request.into_inner();
        let hello = batches.message().await?.and_then(|b| b.hello).unwrap();
        let ours = self.handler.admit(&hello).unwrap();
        let this = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(batch)) = batches.message().await {
                for message in batch.messages {
                    if !message.entries.is_empty() {
                        return drop(this.stuck.send(batches));
                    }
                    this.fast.send(message).unwrap();
                }
            }
        });
        let welcome = stream::iter([Ok(pb::Welcome { hello: Some(ours) })]);
        Ok(Response::new(welcome.chain(stream::pending()).boxed()))
    }

    async fn snapshot(
        &self,
        _request: Request<Streaming<pb::Chunk>>,
    ) -> Result<Response<pb::SnapshotReceived>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn call(&self, _: Request<pb::Request>) -> Result<Response<pb::Response>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tokio::test]
async fn a_stuck_bulk_lane_does_not_delay_heartbeats() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let (stuck, mut stuck_at) = unbounded_channel();
    let (fast, mut heartbeats) = unbounded_channel();
    let service = Arc::new(StuckBulk { handler: recorder(2).0, stuck, fast });
    let incoming = stream::unfold(listener, |l| async move { Some((l.accept().await, l)) })
        .map(|accepted| accepted.map(|(io, _)| io));
    tokio::spawn(
        tonic::transport::Server::builder()
            .serve_with_incoming(pb::raft_server::RaftServer::new(service), incoming),
    );
    let one = node(1);
    one.transport.set_peers(peers(1, &[(2, &addr)]));
    // Far more than every window and socket buffer on the way.
    one.transport.send((1..=200).map(|i| append(1, 2, i, 900_000)).collect());
    let _held = stuck_at.recv().await.unwrap();
    for i in 1..=100 {
        one.transport.send(vec![heartbeat(1, 2, i)]);
        assert_eq!(heartbeats.recv().await.unwrap().commit, i);
    }
}

#[tokio::test]
async fn close_ends_everything_and_frees_the_port() {
    let (mut one, mut two) = pair();
    one.transport.send(vec![append(1, 2, 1, 1)]);
    arrived(&mut two.events, 1).await;
    two.transport.close().await;
    assert_eq!(until(&mut one.events, unreachable).await, 2);
    let options = GrpcOptions { reuseaddr: true, ..GrpcOptions::default() };
    node_at(&two.addr, 2, options, |_| {}).transport.close().await;
    one.transport.close().await;
    one.transport.close().await;
    assert!(one.transport.start(recorder(1).0.arc()).is_err(), "it has no listener any more");
}

/// Forwards connections to `to` until it is frozen: then they stay open and carry nothing.
async fn freezer(to: String) -> (String, tokio::sync::watch::Sender<bool>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let (freeze, frozen) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let (to, mut frozen) = (to.clone(), frozen.clone());
            let frozen = async move {
                let _ = frozen.wait_for(|frozen| *frozen).await;
            };
            tokio::spawn(async move {
                let mut far = tokio::net::TcpStream::connect(to).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    () = frozen => std::future::pending().await,
                }
            });
        }
    });
    (addr, freeze)
}

/// A sign of life that is asked for never: a deadline that no clock holds.
#[tokio::test]
async fn a_keepalive_without_end_stops_nobody() {
    let (keepalive_interval, keepalive_timeout) = (Duration::MAX, Duration::MAX);
    let options = GrpcOptions { keepalive_interval, keepalive_timeout, ..GrpcOptions::default() };
    let one = node_with(1, options.clone(), |_| {});
    let mut two = node_with(2, options, |_| {});
    one.transport.set_peers(peers(1, &[(2, &two.addr)]));
    one.transport.send(vec![append(1, 2, 1, 1)]);
    let first = timeout(Duration::from_secs(30), arrived(&mut two.events, 1)).await;
    assert_eq!(first.expect("in time"), [1]);
}

#[tokio::test]
async fn a_peer_that_falls_silent_is_noticed_and_found_again() {
    let (keepalive_interval, keepalive_timeout) =
        (Duration::from_millis(300), Duration::from_millis(700));
    let options = GrpcOptions { keepalive_interval, keepalive_timeout, ..GrpcOptions::default() };
    let mut one = node_with(1, options, |_| {});
    let mut two = node(2);
    let (addr, freeze) = freezer(two.addr.clone()).await;
    one.transport.set_peers(peers(1, &[(2, &addr)]));
    one.transport.send(vec![append(1, 2, 1, 1)]);
    assert_eq!(arrived(&mut two.events, 1).await, [1]);
    freeze.send_replace(true);
    assert_eq!(until(&mut one.events, unreachable).await, 2);
    freeze.send_replace(false);
    until(&mut two.events, admitted).await;
    until(&mut two.events, admitted).await;
    one.transport.send(vec![append(1, 2, 2, 1)]);
    assert_eq!(arrived(&mut two.events, 1).await.last(), Some(&2));
}
