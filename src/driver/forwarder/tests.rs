//! What became of a forwarded request, for each way in which the transport can answer.

use std::collections::VecDeque;
use std::sync::Mutex;

use async_trait::async_trait;

use super::*;
use crate::config::Config;
use crate::driver::inbox::Classes;
use crate::node::event::Applied;
use crate::pb::refused::Code;
use crate::reply::{Waiter, reply};
use crate::transport::{Handler, Peers, SnapshotStream};
use crate::types::{ClusterId, Identity, Incarnation, Message};

type Answer = Result<pb::Response, TransportError>;

/// Answers calls from a list, and counts them.
#[derive(Debug, Default)]
struct Scripted {
    answers: Mutex<VecDeque<Answer>>,
    calls: Mutex<Vec<pb::Request>>,
}

#[async_trait]
impl Transport for Scripted {
    fn start(&self, _handler: Arc<dyn Handler>) -> std::io::Result<()> {
        Ok(())
    }

    fn set_peers(&self, _peers: Peers) {}

    fn send(&self, _messages: Vec<Message>) {}

    async fn send_snapshot(
        &self,
        _message: Message,
        _body: SnapshotStream,
    ) -> Result<(), TransportError> {
        Ok(())
    }

    async fn call(&self, _addr: &str, request: pb::Request, _timeout: Duration) -> Answer {
        self.calls.lock().unwrap().push(request);
        self.answers.lock().unwrap().pop_front().unwrap()
    }

    async fn close(&self) {}
}

struct Setup {
    shared: Arc<Shared>,
    transport: Arc<Scripted>,
    forwarder: Forwarder,
}

fn setup(answers: impl IntoIterator<Item = Answer>) -> Setup {
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let shared = Arc::new(Shared::new(Config::default(), logger, |_| Ok(())));
    let identity = Identity {
        node_id: 1,
        incarnation: Incarnation::from_u128(1),
        cluster: Some((ClusterId::from_u128(9), 1)),
        boot: 1,
    };
    shared.update_view(|view| view.identity = Some(identity));
    let transport = Arc::new(Scripted::default());
    transport.answers.lock().unwrap().extend(answers);
    let forwarder = Forwarder::new(shared.clone(), transport.clone());
    Setup { shared, transport, forwarder }
}

fn leader() -> Leader {
    Leader { id: 2, addr: "n2:1".to_owned() }
}

fn proposal(data: &'static [u8]) -> (Proposal, Waiter<Applied>) {
    let (reply, waiter) = reply(None);
    (Proposal { data: Bytes::from_static(data), reply }, waiter)
}

fn proposed(outcomes: Vec<pb::Outcome>) -> Answer {
    Ok(wire::respond(pb::response::Kind::Proposed(pb::Proposed { outcomes })))
}

fn applied(index: u64) -> pb::Outcome {
    wire::outcome(Ok(Applied { index, data: vec![7] }), None)
}

fn refused(code: Code) -> pb::Refused {
    pb::Refused { code: code.into(), ..pb::Refused::default() }
}

/// What came back to the inbox.
fn returned(shared: &Shared) -> Vec<Event> {
    let mut classes = Classes::default();
    shared.inbox.take(&mut classes);
    classes.requests
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn each_proposal_of_a_batch_gets_its_own_outcome() {
    let none = pb::outcome::Kind::Refused(refused(Code::NoLeader));
    let s = setup([proposed(vec![
        applied(5),
        wire::outcome(Err(Error::rejected("no")), None),
        pb::Outcome { index: 0, kind: Some(none) },
    ])]);
    let ((a, wa), (b, wb), (c, _wc)) = (proposal(b"a"), proposal(b"b"), proposal(b"c"));
    s.forwarder.clone().propose(leader(), vec![a, b, c]).await;
    assert_eq!(wa.wait(SECOND).await.unwrap().index, 5);
    assert!(matches!(wb.wait(SECOND).await, Err(Error::Rejected(_))));
    // The one that surely was not applied is tried again, with its caller still waiting.
    assert!(matches!(&returned(&s.shared)[..], [Event::Propose(p)] if &p.data[..] == b"c"));
}

#[tokio::test(start_paused = true)]
async fn what_was_lost_after_sending_is_unknown_and_never_sent_again() {
    let lost = TransportError::Lost { addr: "n2:1".to_owned(), reason: "reset".to_owned() };
    for answer in [Err(lost), proposed(Vec::new()), Ok(pb::Response { kind: None })] {
        let s = setup([answer]);
        let (p, waiter) = proposal(b"a");
        s.forwarder.clone().propose(leader(), vec![p]).await;
        assert!(waiter.wait(SECOND).await.unwrap_err().outcome_unknown());
        assert!(returned(&s.shared).is_empty());
        assert_eq!(s.transport.calls.lock().unwrap().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_never_sent_comes_back_unclaimed_after_a_pause() {
    let unreachable =
        TransportError::Unreachable { addr: "n2:1".to_owned(), reason: "refused".to_owned() };
    let s = setup([Err(unreachable)]);
    let (p, waiter) = proposal(b"a");
    let before = tokio::time::Instant::now();
    s.forwarder.clone().propose(leader(), vec![p]).await;
    assert!(before.elapsed() >= s.forwarder.pause());
    let events = returned(&s.shared);
    assert_eq!(events.len(), 1);
    // Its claim was taken back: giving up now is definite.
    assert!(matches!(waiter.wait(SECOND).await, Err(Error::Timeout)));
    let Some(Event::Propose(p)) = events.into_iter().next() else { panic!("no proposal") };
    s.forwarder.clone().propose(leader(), vec![p]).await;
    assert_eq!(s.transport.calls.lock().unwrap().len(), 1, "who gave up is not asked for again");
}

#[tokio::test(start_paused = true)]
async fn a_definite_refusal_of_the_leader_reaches_the_caller() {
    let s = setup([Ok(wire::respond(pb::response::Kind::Refused(refused(Code::Overloaded))))]);
    let (p, waiter) = proposal(b"a");
    s.forwarder.clone().propose(leader(), vec![p]).await;
    assert!(matches!(waiter.wait(SECOND).await, Err(Error::Overloaded { .. })));
}

#[tokio::test(start_paused = true)]
async fn changes_and_transfers_are_carried_and_come_back_when_nobody_leads() {
    let not_leader = || Ok(wire::respond(pb::response::Kind::Refused(refused(Code::NotLeader))));
    let s = setup([not_leader(), not_leader()]);
    let (reply_change, _w) = reply(None);
    s.forwarder.clone().change(leader(), Change::Remove { node_id: 3 }, reply_change).await;
    let (reply_transfer, _w) = reply(None);
    s.forwarder.clone().transfer(leader(), Some(3), reply_transfer).await;
    let events = returned(&s.shared);
    assert!(matches!(
        &events[..],
        [
            Event::Change { change: Change::Remove { node_id: 3 }, .. },
            Event::Transfer { to: Some(3), .. }
        ]
    ));
}

#[test]
fn batches_are_split_below_the_message_size_and_a_lone_one_passes() {
    let proposals = |n: usize| (0..n).map(|_| proposal(&[0; 84]).0).collect::<Vec<_>>();
    let sizes = |most| split(proposals(5), most).iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(sizes(250), [2, 2, 1]);
    assert_eq!(sizes(10), [1, 1, 1, 1, 1]);
    assert_eq!(sizes(1000), [5]);
}
