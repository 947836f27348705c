//! Requests, snapshots, listening and mounting.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::error::Error;
use crate::pb;
use crate::transport::recorder::{append, arrived, snapshot, until};
use crate::transport::{Refusal, SnapshotStream, TransportError};

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(100);

fn info() -> pb::Request {
    pb::Request { kind: Some(pb::request::Kind::Info(pb::Info {})), ..pb::Request::default() }
}

fn done(answer: &pb::Response) -> Option<u64> {
    match answer.kind {
        Some(pb::response::Kind::Done(pb::Done { index, .. })) => Some(index),
        _ => None,
    }
}

#[tokio::test]
async fn any_node_is_asked_by_address() {
    let (one, mut two) = (node(1), node(2));
    for _ in 0..3 {
        let answer = one.transport.call(&two.addr, info(), LONG).await.unwrap();
        assert_eq!(done(&answer), Some(2));
    }
    assert_eq!(two.events.recv().await, Some(Told::Called(info())));
}

#[tokio::test]
async fn a_kept_connection_that_broke_is_made_anew() {
    let (one, two) = (node(1), node(2));
    one.transport.call(&two.addr, info(), LONG).await.unwrap();
    two.transport.close().await;
    let error = one.transport.call(&two.addr, info(), LONG).await.unwrap_err();
    assert!(!matches!(error, TransportError::Refused(_)), "{error}");
    let error = one.transport.call(&two.addr, info(), LONG).await.unwrap_err();
    assert!(matches!(error, TransportError::Unreachable { .. }), "{error}");
    let _two = node_at(&two.addr, 2, GrpcOptions::default(), |_| {});
    let answer = one.transport.call(&two.addr, info(), LONG).await.unwrap();
    assert_eq!(done(&answer), Some(2));
}

/// Rule: requests to one node share a connection, also when none is open yet. The other node serves
/// one only, and answers nothing: a second one would wait for ever.
#[tokio::test]
async fn many_requests_at_once_open_one_connection() {
    const REQUESTS: usize = 40;
    let one = node(1);
    let options = GrpcOptions { max_connections: 1, ..GrpcOptions::default() };
    let mut two = node_with(2, options, |r| r.hung = true);
    let calls = (0..REQUESTS).map(|_| one.transport.call(&two.addr, info(), LONG));
    let all = futures::future::join_all(calls);
    let mut arrived = 0;
    let arrive = async {
        while arrived < REQUESTS {
            let told = two.events.recv().await;
            arrived += usize::from(told == Some(Told::Called(info())));
        }
    };
    tokio::select! {
        answers = all => panic!("{answers:?}"),
        () = arrive => {}
    }
    assert_eq!(arrived, REQUESTS);
}

#[tokio::test]
async fn an_unanswered_request_is_lost_at_its_deadline() {
    let one = node(1);
    let mut two = node_with(2, GrpcOptions::default(), |r| r.hung = true);
    let error = one.transport.call(&two.addr, info(), SHORT).await.unwrap_err();
    assert!(matches!(error, TransportError::Lost { .. }), "{error}");
    assert_eq!(two.events.recv().await, Some(Told::Called(info())), "it did arrive");
}

#[tokio::test]
async fn where_nobody_listens_nothing_was_sent() {
    let one = node(1);
    let free = node(2);
    free.transport.close().await;
    let error = one.transport.call(&free.addr, info(), LONG).await.unwrap_err();
    assert!(matches!(&error, TransportError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn an_address_that_does_not_resolve_says_so() {
    let one = node(1);
    for (addr, text) in [("no such host:80", "does not resolve"), ("nohost", "host:port")] {
        let error = one.transport.call(addr, info(), LONG).await.unwrap_err();
        assert!(matches!(&error, TransportError::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains(text) && error.to_string().contains(addr), "{error}");
    }
}

/// Carries a mounted transport in a server of the user's, and gives its address.
async fn carry(mounted: &GrpcTransport) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let server = tonic::transport::Server::builder();
    tokio::spawn(server.serve_with_incoming(mounted.service(), incoming));
    addr
}

#[tokio::test]
async fn a_node_that_does_not_run_says_not_now() {
    let one = node(1);
    let mounted = GrpcTransport::mounted(GrpcOptions::default());
    let addr = carry(&mounted).await;
    let error = one.transport.call(&addr, info(), LONG).await.unwrap_err();
    assert!(matches!(error, TransportError::Refused(Refusal::Busy(_))), "{error}");
}

#[tokio::test]
async fn closing_a_mounted_node_ends_its_streams_and_requests() {
    let mounted = GrpcTransport::mounted(GrpcOptions::default());
    let (mut handler, mut events) = recorder(2);
    handler.hung = true;
    mounted.start(handler.arc()).unwrap();
    let addr = carry(&mounted).await;
    let mut one = node(1);
    one.transport.set_peers(peers(1, &[(2, &addr)]));
    one.transport.send(vec![append(1, 2, 1, 1)]);
    arrived(&mut events, 1).await;
    let close = async {
        until(&mut events, |told| matches!(told, Told::Called(_)).then_some(())).await;
        mounted.close().await;
    };
    let (answer, ()) = tokio::join!(one.transport.call(&addr, info(), LONG), close);
    assert!(matches!(answer, Err(TransportError::Lost { .. })), "{answer:?}");
    until(&mut one.events, |told| matches!(told, Told::Unreachable(2)).then_some(())).await;
}

#[tokio::test]
async fn mounts_beside_other_routes() {
    let mounted = GrpcTransport::mounted(GrpcOptions::default());
    assert_eq!(mounted.local_addr(), None);
    let (handler, mut events) = recorder(2);
    mounted.start(handler.arc()).unwrap();
    let routes = tonic::service::Routes::new(mounted.service())
        .into_axum_router()
        .route("/health", axum::routing::get(|| async { "fine" }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    tokio::spawn(
        tonic::transport::Server::builder()
            .accept_http1(true)
            .add_routes(routes.into())
            .serve_with_incoming(incoming),
    );

    let one = node(1);
    one.transport.set_peers(peers(1, &[(2, &addr)]));
    one.transport.send(vec![append(1, 2, 1, 1)]);
    assert_eq!(arrived(&mut events, 1).await, [1]);
    let answer = one.transport.call(&addr, info(), LONG).await.unwrap();
    assert_eq!(done(&answer), Some(2));
    let mut http = tokio::net::TcpStream::connect(&addr).await.unwrap();
    http.write_all(b"GET /health HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut page = String::new();
    http.read_to_string(&mut page).await.unwrap();
    assert!(page.starts_with("HTTP/1.1 200") && page.ends_with("fine"), "{page}");
    // And it sends, too.
    mounted.set_peers(peers(2, &[(1, &one.addr)]));
    mounted.close().await;
    let error = one.transport.call(&addr, info(), LONG).await.unwrap_err();
    assert!(matches!(error, TransportError::Refused(Refusal::Busy(_))), "{error}");
}

#[test]
fn a_busy_port_says_what_to_do() {
    let addr = "127.0.0.1:0".parse().unwrap();
    let one = GrpcTransport::bind(addr, GrpcOptions::default()).unwrap();
    let taken = one.local_addr().unwrap();
    let error = GrpcTransport::bind(taken, GrpcOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Listen { .. }));
    let text = error.to_string();
    assert!(text.contains(&taken.to_string()) && text.contains("another port"), "{text}");
    let elsewhere = "203.0.113.1:9999".parse().unwrap();
    let text = GrpcTransport::bind(elsewhere, GrpcOptions::default()).unwrap_err().to_string();
    assert!(text.contains("advertise_addr"), "{text}");
}

fn body_of(size: usize) -> (Vec<u8>, SnapshotStream) {
    let bytes: Vec<u8> = (0..size).map(|i| (i * 7 + i / 256) as u8).collect();
    let chunks: Vec<io::Result<Bytes>> =
        bytes.chunks(1 << 20).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
    (bytes, stream::iter(chunks).boxed())
}

fn received(told: Told) -> Option<Result<Vec<u8>, io::ErrorKind>> {
    match told {
        Told::Snapshot { from: 1, index: 9, body } => Some(body),
        _ => None,
    }
}

#[tokio::test]
async fn a_snapshot_of_20_mb_arrives_whole() {
    let (one, mut two) = pair();
    let (bytes, body) = body_of(20 << 20);
    one.transport.send_snapshot(snapshot(1, 2, 20 << 20), body).await.unwrap();
    assert!(until(&mut two.events, received).await.unwrap() == bytes);
    let (_, body) = body_of(0);
    one.transport.send_snapshot(snapshot(1, 2, 0), body).await.unwrap();
    assert!(until(&mut two.events, received).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_snapshot_of_another_length_fails_on_both_sides() {
    let (one, mut two) = pair();
    for (declared, kind) in
        [(1000, io::ErrorKind::InvalidData), (3000, io::ErrorKind::UnexpectedEof)]
    {
        let (_, body) = body_of(2000);
        let result = one.transport.send_snapshot(snapshot(1, 2, declared), body).await;
        assert!(matches!(result, Err(TransportError::Refused(_))), "{result:?}");
        assert_eq!(until(&mut two.events, received).await, Err(kind));
    }
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_read_is_never_whole() {
    let (one, mut two) = pair();
    let parts = [Ok(Bytes::from_static(&[1; 1000])), Err(io::Error::other("disk"))];
    let body = stream::iter(parts).boxed();
    let result = one.transport.send_snapshot(snapshot(1, 2, 1001), body).await;
    let Err(TransportError::Lost { reason, .. }) = result else { panic!("{result:?}") };
    assert!(reason.contains("disk"), "{reason}");
    // The receiver saw the stream break, or saw nothing at all; never a whole body.
    one.transport.close().await;
    two.transport.close().await;
    while let Ok(told) = two.events.try_recv() {
        assert!(!matches!(received(told), Some(Ok(_))));
    }
}

fn stalling_body() -> SnapshotStream {
    stream::iter([Ok(Bytes::from_static(b"x"))]).chain(stream::pending()).boxed()
}

#[tokio::test]
async fn the_sender_gives_a_stalled_snapshot_up() {
    let options = GrpcOptions { stall_timeout: SHORT, ..GrpcOptions::default() };
    let one = node_with(1, options, |_| {});
    let mut two = node(2);
    one.knows(1, &[&two]);
    let result = one.transport.send_snapshot(snapshot(1, 2, 100), stalling_body()).await;
    let Err(TransportError::Lost { reason, .. }) = result else { panic!("{result:?}") };
    assert!(reason.contains("stalled"), "{reason}");
    assert!(until(&mut two.events, received).await.is_err());
}

#[tokio::test]
async fn the_receiver_gives_a_stalled_snapshot_up() {
    let one = node(1);
    let options = GrpcOptions { stall_timeout: SHORT, ..GrpcOptions::default() };
    let mut two = node_with(2, options, |_| {});
    one.knows(1, &[&two]);
    let result = one.transport.send_snapshot(snapshot(1, 2, 100), stalling_body()).await;
    assert!(matches!(result, Err(TransportError::Refused(_))), "{result:?}");
    assert_eq!(until(&mut two.events, received).await, Err(io::ErrorKind::TimedOut));
}

#[tokio::test]
async fn a_snapshot_is_refused_by_its_receiver() {
    let one = node(1);
    let two = node_with(2, GrpcOptions::default(), |r| r.busy = true);
    let three = node_with(3, GrpcOptions::default(), |r| r.remove(1));
    one.knows(1, &[&two, &three]);
    let (_, body) = body_of(12 << 20);
    let result = one.transport.send_snapshot(snapshot(1, 2, 12 << 20), body).await;
    assert_eq!(result, Err(Refusal::Busy("no room".to_owned()).into()));
    let (_, body) = body_of(10);
    let result = one.transport.send_snapshot(snapshot(1, 3, 10), body).await;
    assert_eq!(result, Err(Refusal::Removed(10).into()));
    let (_, body) = body_of(10);
    let result = one.transport.send_snapshot(snapshot(1, 8, 10), body).await;
    assert!(matches!(result, Err(TransportError::Unreachable { .. })), "{result:?}");
}
