//! Bytes of a peer, taken for each message that a node reads from a connection.
//!
//! Checked: no bytes make a decoder panic; what was decoded is the same after encoding and
//! decoding again; a message of raft survives the way into the engine's form and back; the answer
//! to a request or a hello is one that can be sent.

use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt as _;
use prost::Message as _;
use tonic::Status;

use super::runtime;
use crate::config::Config;
use crate::driver::handler::PeerHandler;
use crate::driver::shared::Shared;
use crate::driver::wire as answers;
use crate::pb;
use crate::status::Role;
use crate::transport::grpc::codec::{Shaped, decode};
use crate::transport::grpc::status;
use crate::transport::{Handler, check_welcome, convert};
use crate::types::{
    ClusterId, ConfState, Identity, Incarnation, Member, Membership, Message, RaftId,
};

/// See the module. The first byte says what the rest is taken for.
pub fn wire(data: &[u8]) {
    let Some((kind, frame)) = data.split_first() else { return };
    let frame = Bytes::copy_from_slice(frame);
    match kind % 8 {
        0 => frame_of::<pb::Batch>(frame, batch),
        1 => frame_of::<pb::Welcome>(frame, welcome),
        2 => frame_of::<pb::Chunk>(frame, chunk),
        3 => frame_of::<pb::Request>(frame, |request| {
            answer(Role::Follower, request.clone());
            answer(Role::Leader, request);
        }),
        4 => frame_of::<pb::Response>(frame, response),
        5 => frame_of::<pb::SnapshotReceived>(frame, |_| {}),
        6 => refusal(frame),
        _ => frame_of::<pb::Batch>(frame, |b| b.messages.into_iter().for_each(message)),
    }
}

/// Decodes as the codec of a connection does; what came of it must be stable.
fn frame_of<M: Shaped + Clone + PartialEq + std::fmt::Debug>(
    mut frame: Bytes,
    then: impl FnOnce(M),
) {
    let Ok(first) = decode::<M>(&mut frame) else { return };
    let bytes = Bytes::from(first.encode_to_vec());
    let again = decode::<M>(&mut bytes.clone());
    let again = again.unwrap_or_else(|e| panic!("what was decoded does not decode again: {e}"));
    assert!(again == first, "changed on its way: {first:?} then {again:?}");
    assert_eq!(again.encode_to_vec(), bytes, "encoded in two ways");
    then(first);
}

fn batch(batch: pb::Batch) {
    if let Some(hello) = &batch.hello {
        greet(hello);
    }
    batch.messages.into_iter().for_each(message);
}

fn message(wire: pb::Message) {
    let Ok(message) = convert::from_wire(wire.clone()) else { return };
    // Asked by queues and lanes of every message.
    let _ = (message.size(), message.is_bulk());
    let there = convert::to_wire(message.clone());
    // The header of a snapshot may be written in other ways; everything else is field for field.
    let bare = |m: &pb::Message| pb::Message { snapshot: None, ..m.clone() };
    assert_eq!(bare(&there), bare(&wire), "a field was lost on the way");
    let back: Message = convert::from_wire(there.clone())
        .unwrap_or_else(|e| panic!("a message does not survive its own form: {e}"));
    assert!(back == message, "changed on its way: {message:?} then {back:?}");
    assert_eq!(convert::to_wire(back), there, "encoded in two ways");
}

fn welcome(welcome: pb::Welcome) {
    let Some(theirs) = welcome.hello else { return };
    let _ = check_welcome(&ours(), &theirs);
    greet(&theirs);
}

fn greet(hello: &pb::Hello) {
    let handler = handler(Role::Follower);
    match handler.admit(hello) {
        Ok(back) => {
            assert_eq!((back.from, back.to), (OURS, hello.from), "an answer to somebody else");
            assert!(hello.from != 0 && hello.from != OURS, "admitted an impossible sender");
            check_welcome(hello, &back).unwrap_or_else(|e| panic!("our own answer is wrong: {e}"));
        }
        Err(refused) => {
            let status = status::refuse(refused);
            assert!(status::refusal(&status).is_some(), "a refusal that cannot be read");
        }
    }
}

fn chunk(chunk: pb::Chunk) {
    let Some(pb::chunk::Part::Start(start)) = chunk.part else { return };
    if let Some(hello) = &start.hello {
        greet(hello);
    }
    if let Some(wire) = start.message {
        message(wire);
    }
}

/// What a request is answered at once; one that waits for the node is given up.
fn answer(role: Role, request: pb::Request) {
    let handler = handler(role);
    // A request that waits needs a timer, which never comes due here.
    let _context = runtime().enter();
    let Some(response) = handler.call(request).now_or_never() else { return };
    assert!(response.kind.is_some(), "an empty answer");
    let mut bytes = Bytes::from(response.encode_to_vec());
    let again = decode::<pb::Response>(&mut bytes);
    assert!(again.is_ok_and(|r| r == response), "an answer that cannot be read");
}

fn response(response: pb::Response) {
    match response.kind {
        Some(pb::response::Kind::Proposed(p)) => {
            for outcome in p.outcomes {
                let unknown = outcome.kind.is_none();
                let result = answers::applied(outcome, 9, 8);
                assert!(!unknown || result.is_err_and(|e| e.outcome_unknown()));
            }
        }
        Some(pb::response::Kind::Refused(refused)) => {
            let error = answers::error(&refused, 9, 8);
            let _ = (answers::may_retry(&error), answers::leader(&refused));
            let told = answers::refuse(&error, None);
            let there = answers::error(&told, 9, 8);
            assert_eq!(there.outcome(), error.outcome(), "an outcome changed: {error} to {there}");
        }
        Some(pb::response::Kind::Joined(j)) => {
            let _ = ClusterId::from_slice(&j.cluster_id);
            membership(j.membership);
        }
        Some(pb::response::Kind::Info(i)) => membership(i.membership),
        Some(pb::response::Kind::Done(_)) | None => {}
    }
}

fn membership(wire: Option<pb::Membership>) {
    let Some(Ok(members)) = wire.map(Membership::from_pb) else { return };
    let again = Membership::from_pb(members.to_pb());
    assert_eq!(again.as_ref(), Ok(&members), "changed on its way");
}

/// The details of a status, which are bytes of the peer, too.
fn refusal(details: Bytes) {
    let theirs = Status::with_details(tonic::Code::Internal, "", details);
    let Some(refused) = status::refusal(&theirs) else { return };
    let sent = status::refuse(refused);
    let back = status::refusal(&sent).unwrap_or_else(|| panic!("a refusal that cannot be read"));
    // Long texts are cut once, and then stay.
    assert_eq!(status::refusal(&status::refuse(back.clone())), Some(back));
}

const OURS: RaftId = 1;

fn members() -> Membership {
    let member = |n: u64| Member {
        node_id: n,
        raft_id: n,
        incarnation: Incarnation::from_u128(u128::from(n)),
        addr: format!("n{n}:1"),
        metadata: Bytes::new(),
        learner_only: false,
    };
    Membership {
        cluster_id: ClusterId::from_u128(9),
        index: 5,
        conf_state: ConfState { voters: vec![1, 2, 3], ..ConfState::default() },
        members: vec![member(1), member(2), member(3)],
        next_raft_id: 6,
    }
}

/// The hello of member 2 to us.
pub(super) fn ours() -> pb::Hello {
    let name = |n: u128| Bytes::copy_from_slice(&Incarnation::from_u128(n).to_bytes());
    pb::Hello {
        protocol: crate::transport::PROTOCOL,
        cluster_id: Bytes::copy_from_slice(&ClusterId::from_u128(9).to_bytes()),
        from: 2,
        to: OURS,
        from_node: 2,
        from_incarnation: name(2),
        to_incarnation: name(1),
        from_boot: 3,
        from_addr: "n2:1".to_owned(),
    }
}

fn handler(role: Role) -> PeerHandler {
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let shared = Arc::new(Shared::new(Config::default(), logger, |_| Ok(())));
    let identity = Identity {
        node_id: 1,
        incarnation: Incarnation::from_u128(1),
        cluster: Some((ClusterId::from_u128(9), OURS)),
        boot: 4,
    };
    shared.update_view(|view| {
        view.identity = Some(identity);
        view.membership = Some(members());
    });
    shared.status.send_modify(|s| s.role = role);
    PeerHandler::new(shared)
}
