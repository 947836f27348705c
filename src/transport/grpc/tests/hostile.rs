//! Strangers, garbage and liars: the node serves on.

use std::marker::PhantomData;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use futures::{StreamExt, stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Status};

use super::super::dial;
use super::super::status::refusal;
use super::*;
use crate::pb;
use crate::transport::recorder::{append, arrived, snapshot, until};
use crate::transport::{Refusal, convert};

/// Longer than anything takes that works.
const LONG: Duration = Duration::from_secs(60);

/// Sends bytes as they are.
#[derive(Default)]
struct Raw(PhantomData<()>);

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self::default()
    }
    fn decoder(&mut self) -> Self {
        Self::default()
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn encode(&mut self, item: Bytes, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buf.copy_to_bytes(buf.remaining())))
    }
}

fn hello(from: &Node) -> pb::Hello {
    let peers = peers(1, &[(2, &from.addr)]);
    peers.hello(&peers.others[0])
}

/// Waits until node 1 can talk to `two`.
async fn serves(two: &mut Node) {
    let mut one = node(1);
    one.knows(1, &[two]);
    loop {
        one.transport.send(vec![append(1, 2, 77, 10)]);
        // On a slow machine a short timeout of a test can hit this connection too.
        let lost = until(&mut one.events, |t| matches!(t, Told::Unreachable(_)).then_some(()));
        tokio::select! {
            seen = arrived(&mut two.events, 1) => {
                assert_eq!(seen, [77]);
                break;
            }
            () = lost => {}
        }
    }
    one.transport.close().await;
}

#[tokio::test]
async fn garbage_on_the_port_disturbs_nobody() {
    let mut two = node(2);
    let mut preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    preface.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
    let mut torn_headers = preface.clone();
    torn_headers.extend_from_slice(&[0, 0, 5, 1, 4, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0xff]);
    let mut huge_frame = preface.clone();
    huge_frame.extend_from_slice(&[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]);
    let inputs = [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"PRI * HTTP/1.0\r\n\r\n".to_vec(),
        vec![0xff; 100_000],
        (0..50_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect(),
        torn_headers,
        huge_frame,
    ];
    for (i, input) in inputs.into_iter().enumerate() {
        let mut io = TcpStream::connect(&two.addr).await.unwrap();
        // The node may hang up in the middle.
        let _ = io.write_all(&input).await;
        let mut answer = Vec::new();
        let _ = io.read_to_end(&mut answer).await;
        assert!(answer.len() < 1000, "input {i}: {} bytes of answer", answer.len());
    }
    serves(&mut two).await;
}

#[tokio::test]
async fn garbage_in_place_of_a_message_is_malformed() {
    let mut two = node(2);
    let channel = dial::connect(&two.addr, &GrpcOptions::default()).await.unwrap();
    let amplified = Bytes::from([0x12, 0].repeat(1 << 20));
    let cases = [("Exchange", amplified)].into_iter().chain(
        ["Exchange", "Snapshot", "Call"].into_iter().flat_map(|path| {
            [(path, Bytes::from_static(&[0xff; 50])), (path, Bytes::from_static(b"\x0a\x7f"))]
        }),
    );
    for (path, bytes) in cases {
        let mut client =
            tonic::client::Grpc::new(channel.clone()).max_encoding_message_size(usize::MAX);
        client.ready().await.unwrap();
        let path = format!("/raftline.v1.Raft/{path}").parse().unwrap();
        let garbage = stream::iter([bytes]).chain(stream::pending());
        let answers = client.streaming(tonic::Request::new(garbage), path, Raw::default()).await;
        let status = match answers {
            Ok(answers) => answers.into_inner().message().await.unwrap_err(),
            Err(status) => status,
        };
        let Some(Refusal::Malformed(reason)) = refusal(&status) else { panic!("{status:?}") };
        // Refused by the codec, before anything was made of it.
        assert!(reason.contains("bytes in memory"), "{reason}");
    }
    serves(&mut two).await;
}

#[tokio::test]
async fn a_message_over_the_receivers_limit_ends_the_stream() {
    let options = GrpcOptions { message_size: 10_000, ..GrpcOptions::default() };
    let mut two = node_with(2, options, |_| {});
    let batch = pb::Batch {
        hello: Some(hello(&two)),
        messages: vec![convert::to_wire(append(1, 2, 1, 20_000))],
        lane: 1,
    };
    let status = exchange(&two, vec![batch]).await;
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    serves(&mut two).await;
}

/// Sends these batches and waits for the end of the stream.
async fn exchange(to: &Node, batches: Vec<pb::Batch>) -> Status {
    let options = GrpcOptions::default();
    let channel = dial::connect(&to.addr, &options).await.unwrap();
    let mut client = dial::client(channel, &options);
    let request = stream::iter(batches).chain(stream::pending());
    let mut answers = match client.exchange(request).await {
        Ok(answers) => answers.into_inner(),
        Err(status) => return status,
    };
    loop {
        if let Err(status) = answers.message().await {
            return status;
        }
    }
}

#[tokio::test]
async fn liars_are_cut_off_and_nothing_of_theirs_is_delivered() {
    let mut two = node(2);
    let good = convert::to_wire(append(1, 2, 5, 1));
    let batch = |hello, messages| pb::Batch { hello, messages, lane: 1 };
    let body_less = convert::to_wire(snapshot(1, 2, 10));
    let hi = || Some(hello(&two));
    let cases = [
        ("no hello", vec![batch(None, vec![good.clone()])]),
        ("another sender", vec![batch(hi(), vec![pb::Message { from: 3, ..good.clone() }])]),
        (
            "another receiver",
            vec![batch(hi(), vec![]), batch(None, vec![pb::Message { to: 3, ..good.clone() }])],
        ),
        (
            "half a batch",
            vec![
                batch(hi(), vec![]),
                batch(None, vec![good.clone(), pb::Message { from: 9, ..good.clone() }]),
            ],
        ),
        (
            "an unknown type",
            vec![
                batch(hi(), vec![]),
                batch(None, vec![pb::Message { msg_type: 99, ..good.clone() }]),
            ],
        ),
        ("no body", vec![batch(hi(), vec![]), batch(None, vec![body_less])]),
        ("two hellos", vec![batch(hi(), vec![]), batch(hi(), vec![good.clone()])]),
    ];
    for (name, batches) in cases {
        let status = exchange(&two, batches).await;
        assert!(matches!(refusal(&status), Some(Refusal::Malformed(_))), "{name}: {status:?}");
    }
    while let Ok(told) = two.events.try_recv() {
        assert!(matches!(told, Told::Admitted(1)), "{told:?}");
    }
    serves(&mut two).await;
}

#[tokio::test]
async fn a_stream_without_a_hello_is_closed_on_a_good_connection_too() {
    let handshake_timeout = Duration::from_millis(250);
    let mut two = node_with(2, GrpcOptions { handshake_timeout, ..GrpcOptions::default() }, |_| {});
    let options = GrpcOptions::default();
    let channel = dial::connect(&two.addr, &options).await.unwrap();
    let mut client = dial::client(channel, &options);
    let first = pb::Batch { hello: Some(hello(&two)), ..pb::Batch::default() };
    let request = stream::iter([first]).chain(stream::pending());
    let mut good = client.exchange(request).await.unwrap().into_inner();
    assert!(good.message().await.unwrap().is_some());
    let status = client.exchange(stream::pending::<pb::Batch>()).await.unwrap_err();
    let Some(Refusal::Malformed(reason)) = refusal(&status) else { panic!("{status:?}") };
    assert!(reason.contains("no hello within"), "{reason}");
    serves(&mut two).await;
}

#[tokio::test]
async fn a_newer_stream_of_a_lane_ends_the_older_one() {
    let mut two = node(2);
    let options = GrpcOptions::default();
    let mut streams = Vec::new();
    for lane in [1, 2, 1] {
        // A connection each: one of them was abandoned, with messages still on their way.
        let channel = dial::connect(&two.addr, &options).await.unwrap();
        let mut client = dial::client(channel, &options);
        let (batches, request) = tokio::sync::mpsc::unbounded_channel();
        batches.send(pb::Batch { hello: Some(hello(&two)), lane, ..pb::Batch::default() }).unwrap();
        let request = stream::unfold(request, |mut r| async move { Some((r.recv().await?, r)) });
        let mut answers = client.exchange(request).await.unwrap().into_inner();
        assert!(answers.message().await.unwrap().is_some());
        streams.push((batches, answers, client));
    }
    let late = |index| pb::Batch {
        messages: vec![convert::to_wire(append(1, 2, index, 1))],
        ..pb::Batch::default()
    };
    // Whether it arrives or not, nobody is told of it any more.
    let _ = streams[0].0.send(late(1));
    assert_eq!(streams[0].1.message().await.unwrap_err().code(), Code::Aborted);
    streams[1].0.send(late(2)).unwrap();
    assert_eq!(arrived(&mut two.events, 1).await, [2]);
    streams[2].0.send(late(3)).unwrap();
    assert_eq!(arrived(&mut two.events, 1).await, [3]);
}

/// Rule: a peer holds one connection per lane, not all that it ever opened. The far end of the older
/// one lives and answers every sign of life here, so that nothing but the newer one ends it.
#[tokio::test]
async fn a_newer_stream_closes_the_connection_of_the_older_one() {
    const AGES: Duration = Duration::from_secs(10_000);
    let options = GrpcOptions {
        max_connections: 2,
        handshake_timeout: AGES,
        idle_timeout: AGES,
        ..GrpcOptions::default()
    };
    let two = node_with(2, options, |_| {});
    let mut held = Vec::new();
    for n in 0..6_usize {
        let options = GrpcOptions { handshake_timeout: AGES, ..GrpcOptions::default() };
        let channel = dial::connect(&two.addr, &options).await.unwrap();
        let mut client = dial::client(channel.clone(), &options);
        let first = pb::Batch { hello: Some(hello(&two)), messages: Vec::new(), lane: 1 };
        let request = stream::iter([first]).chain(stream::pending());
        let opened = tokio::time::timeout(LONG, client.exchange(request)).await;
        let mut answers = opened.unwrap_or_else(|_| panic!("{n} is let in")).unwrap().into_inner();
        assert!(answers.message().await.unwrap().is_some(), "{n} is welcome");
        held.push((channel, answers));
        if let Some((_, older)) = n.checked_sub(1).and_then(|n| held.get_mut(n)) {
            let status = older.message().await.unwrap_err();
            assert_eq!(status.code(), Code::Aborted, "it is told first: {status:?}");
        }
    }
}

#[tokio::test]
async fn a_flood_of_half_open_connections_is_bounded_and_ends() {
    let options = GrpcOptions {
        max_connections: 4,
        handshake_timeout: Duration::from_millis(250),
        ..GrpcOptions::default()
    };
    let mut two = node_with(2, options, |_| {});
    let mut strangers = Vec::new();
    for i in 0..20 {
        let mut io = TcpStream::connect(&two.addr).await.unwrap();
        if i % 2 == 0 {
            io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        }
        strangers.push(io);
    }
    serves(&mut two).await;
    for mut io in strangers {
        let mut rest = Vec::new();
        // Hung up on: an end or a reset, not silence.
        let _ = io.read_to_end(&mut rest).await;
    }
}

#[tokio::test]
async fn a_used_connection_outlives_the_handshake_timeout() {
    let options = GrpcOptions {
        handshake_timeout: Duration::from_millis(250),
        idle_timeout: Duration::from_millis(250),
        ..GrpcOptions::default()
    };
    let mut two = node_with(2, options, |_| {});
    let one = node(1);
    one.knows(1, &[&two]);
    one.transport.send(vec![append(1, 2, 1, 1)]);
    arrived(&mut two.events, 1).await;
    // Strangers come and are hung up on one after the other: several timeouts pass.
    for _ in 0..4 {
        let mut io = TcpStream::connect(&two.addr).await.unwrap();
        let _ = io.read_to_end(&mut Vec::new()).await;
    }
    one.transport.send(vec![append(1, 2, 2, 1)]);
    let told = two.events.recv().await;
    assert!(!matches!(told, Some(Told::Admitted(_))), "{told:?}");
    let mut strays = Vec::new();
    while let Ok(told) = two.events.try_recv() {
        strays.push(told);
    }
    assert!(!strays.iter().any(|t| matches!(t, Told::Admitted(_))), "{strays:?}");
}

/// The start of a connection: preface, empty settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const PING: &[u8] = b"\0\0\x08\x06\0\0\0\0\0\x01\x02\x03\x04\x05\x06\x07\x08";

/// Waits for the next answered ping, skipping other frames.
async fn pong(io: &mut TcpStream) {
    loop {
        let mut header = [0; 9];
        io.read_exact(&mut header).await.unwrap();
        let [a, b, c, kind, flags, ..] = header;
        let mut body = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        io.read_exact(&mut body).await.unwrap();
        if (kind, flags) == (6, 1) {
            return;
        }
    }
}

#[tokio::test]
async fn connections_above_the_bound_wait_for_their_turn() {
    let two = node_with(2, GrpcOptions { max_connections: 3, ..GrpcOptions::default() }, |_| {});
    let mut served = Vec::new();
    for _ in 0..3 {
        let mut io = TcpStream::connect(&two.addr).await.unwrap();
        io.write_all(PREFACE).await.unwrap();
        io.write_all(PING).await.unwrap();
        pong(&mut io).await;
        served.push(io);
    }
    let mut waiting = TcpStream::connect(&two.addr).await.unwrap();
    waiting.write_all(PREFACE).await.unwrap();
    waiting.write_all(PING).await.unwrap();
    // Plenty of turns in which the node could have answered it.
    for _ in 0..50 {
        served[0].write_all(PING).await.unwrap();
        pong(&mut served[0]).await;
    }
    let early = waiting.try_read(&mut [0; 1]).unwrap_err();
    assert_eq!(early.kind(), std::io::ErrorKind::WouldBlock);
    drop(served);
    pong(&mut waiting).await;
}
