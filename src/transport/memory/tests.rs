use bytes::Bytes;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

use super::*;
use crate::transport::recorder::{
    Recorder, Told, append, arrived, heartbeat, peers, recorder, snapshot,
};

struct Node {
    transport: MemoryTransport,
    events: UnboundedReceiver<Told>,
}

impl Node {
    fn told(&mut self) -> Vec<Told> {
        std::iter::from_fn(|| self.events.try_recv().ok()).collect()
    }

    fn indexes(&mut self) -> Vec<u64> {
        self.told()
            .into_iter()
            .filter_map(|told| match told {
                Told::Messages(_, messages) => Some(messages),
                _ => None,
            })
            .flatten()
            .map(|m| m.inner.index)
            .collect()
    }
}

fn node(network: &MemoryNetwork, raft_id: RaftId, adjust: impl FnOnce(&mut Recorder)) -> Node {
    let transport = network.endpoint(format!("n{raft_id}"));
    let (mut handler, events) = recorder(raft_id);
    adjust(&mut handler);
    transport.start(handler.arc()).unwrap();
    let others: Vec<(RaftId, String)> =
        (1..=3).filter(|&id| id != raft_id).map(|id| (id, format!("n{id}"))).collect();
    let others: Vec<(RaftId, &str)> = others.iter().map(|(id, a)| (*id, a.as_str())).collect();
    transport.set_peers(peers(raft_id, &others));
    Node { transport, events }
}

fn pair(seed: u64) -> (MemoryNetwork, Node, Node) {
    let network = MemoryNetwork::new(seed);
    let (one, two) = (node(&network, 1, |_| {}), node(&network, 2, |_| {}));
    (network, one, two)
}

fn appends(range: std::ops::RangeInclusive<u64>) -> Vec<Message> {
    range.map(|i| append(1, 2, i, 1)).collect()
}

#[test]
fn without_faults_a_message_is_there_when_send_returns() {
    let (_network, one, mut two) = pair(1);
    one.transport.send(appends(1..=3));
    assert_eq!(two.events.try_recv(), Ok(Told::Admitted(1)));
    assert_eq!(two.indexes(), [1, 2, 3]);
    one.transport.send(appends(4..=4));
    assert_eq!(two.told().len(), 1, "one hello is enough");
}

#[test]
fn a_cut_is_told_once_and_healing_says_hello_again() {
    let (network, mut one, mut two) = pair(1);
    network.cut("n1", "n2");
    one.transport.send(appends(1..=2));
    one.transport.send(appends(3..=4));
    assert_eq!(one.told(), [Told::Unreachable(2)]);
    assert!(two.told().is_empty());
    network.heal();
    one.transport.send(appends(5..=5));
    assert_eq!(two.events.try_recv(), Ok(Told::Admitted(1)));
    assert_eq!(two.indexes(), [5]);
    network.cut("n2", "n1");
    one.transport.send(appends(6..=6));
    assert_eq!(one.told(), [Told::Unreachable(2)]);
    network.mend("n1", "n2");
    one.transport.send(appends(7..=7));
    assert_eq!(two.indexes(), [7]);
}

#[test]
fn one_that_was_removed_since_it_was_admitted_is_told_so() {
    let network = MemoryNetwork::new(1);
    let mut handler = None;
    let mut one = node(&network, 1, |_| {});
    let mut two = node(&network, 2, |r| handler = Some(r.clone()));
    one.transport.send(appends(1..=1));
    assert_eq!(two.indexes(), [1]);
    handler.unwrap().remove(1);
    two.transport.set_peers(peers(2, &[]));
    one.transport.send(appends(2..=2));
    assert_eq!(one.told()[0], Told::Refused(2, Refusal::Removed(10)));
    assert!(two.indexes().is_empty());
}

#[test]
fn a_one_way_cut_lets_the_other_way_through() {
    let (network, mut one, mut two) = pair(1);
    one.transport.send(appends(1..=1));
    two.transport.send(vec![heartbeat(2, 1, 1)]);
    one.told();
    two.told();
    network.cut_one_way("n1", "n2");
    one.transport.send(appends(2..=2));
    two.transport.send(vec![heartbeat(2, 1, 7)]);
    assert!(two.told().is_empty());
    let told = one.told();
    assert!(told.contains(&Told::Unreachable(2)), "{told:?}");
    assert!(told.iter().any(|t| matches!(t, Told::Messages(2, _))), "{told:?}");
}

#[test]
fn refusals_are_told_once_each_and_nothing_is_delivered() {
    let network = MemoryNetwork::new(1);
    let mut one = node(&network, 1, |_| {});
    let mut two = node(&network, 2, |r| r.remove(1));
    let mut three = node(&network, 3, |r| r.incarnation = crate::types::Incarnation::from_u128(1));
    one.transport.send(vec![append(1, 2, 1, 1), append(1, 3, 1, 1)]);
    one.transport.send(vec![append(1, 2, 2, 1)]);
    let told = one.told();
    assert_eq!(told[0], Told::Refused(2, Refusal::Removed(10)));
    assert_eq!(told[1], Told::Unreachable(2));
    assert!(matches!(told[2], Told::Refused(3, Refusal::Receiver(_))), "{told:?}");
    assert_eq!(told.len(), 4, "{told:?}");
    assert!(two.told().is_empty() && three.told().is_empty());
}

#[test]
fn a_message_in_anothers_name_is_not_delivered() {
    let (_network, one, mut two) = pair(1);
    one.transport.send(vec![append(3, 2, 1, 1), append(1, 2, 2, 1)]);
    assert_eq!(two.indexes(), [2]);
}

#[tokio::test]
async fn a_restarted_peer_is_greeted_again() {
    let (network, one, mut two) = pair(1);
    one.transport.send(appends(1..=1));
    assert_eq!(two.indexes(), [1]);
    let busy = network.endpoint("n2").start(recorder(2).0.arc()).unwrap_err();
    assert_eq!(busy.kind(), io::ErrorKind::AddrInUse);
    two.transport.close().await;
    let mut again = node(&network, 2, |_| {});
    one.transport.send(appends(2..=2));
    assert_eq!(again.events.try_recv(), Ok(Told::Admitted(1)));
    assert_eq!(again.indexes(), [2]);
    assert!(two.told().is_empty());
}

#[tokio::test(start_paused = true)]
async fn delays_keep_the_order_and_a_cut_loses_what_is_on_its_way() {
    let (network, one, mut two) = pair(7);
    let (min_delay, max_delay) = (Duration::from_millis(5), Duration::from_millis(80));
    network.set_faults(Faults { min_delay, max_delay, ..Faults::default() });
    let start = Instant::now();
    for i in 1..=50 {
        one.transport.send(appends(i..=i));
    }
    assert_eq!(arrived(&mut two.events, 50).await, (1..=50).collect::<Vec<_>>());
    assert!((min_delay..=max_delay + Duration::from_millis(1)).contains(&start.elapsed()));
    one.transport.send(appends(51..=51));
    network.cut("n1", "n2");
    network.mend("n1", "n2");
    // It would have arrived by now: there is no other sign of what does not. The clock is paused.
    sleep(max_delay * 2).await;
    network.set_faults(Faults::default());
    one.transport.send(appends(52..=52));
    assert_eq!(arrived(&mut two.events, 1).await, [52]);
    // Delayed messages are not overtaken by those without a delay.
    network.set_faults(Faults { min_delay, max_delay, ..Faults::default() });
    one.transport.send(appends(53..=53));
    network.set_faults(Faults::default());
    one.transport.send(appends(54..=54));
    assert_eq!(arrived(&mut two.events, 2).await, [53, 54]);
}

#[tokio::test(start_paused = true)]
async fn what_is_on_its_way_when_its_sender_closes_does_not_arrive() {
    let (network, one, mut two) = pair(7);
    let delay = Duration::from_millis(50);
    network.set_faults(Faults { min_delay: delay, max_delay: delay, ..Faults::default() });
    one.transport.send(appends(1..=3));
    // Half-way, by the paused clock.
    sleep(delay / 2).await;
    one.transport.close().await;
    // The next run at this address must not be mixed up with the one before.
    let again = node(&network, 1, |_| {});
    network.set_faults(Faults::default());
    again.transport.send(appends(4..=4));
    // Whatever is to arrive has arrived.
    sleep(delay * 2).await;
    assert_eq!(two.indexes(), [4]);
}

async fn run(seed: u64, faults: Faults) -> Vec<u64> {
    let (network, one, mut two) = pair(seed);
    network.set_faults(faults);
    for i in 0..40 {
        one.transport.send(appends(i * 5 + 1..=i * 5 + 5));
        sleep(Duration::from_millis(1)).await;
    }
    sleep(Duration::from_secs(5)).await;
    two.indexes()
}

#[tokio::test(start_paused = true)]
async fn faults_follow_their_seed_and_their_percentages() {
    let dropped = run(3, Faults { drop_percent: 30, ..Faults::default() }).await;
    assert!((100..180).contains(&dropped.len()), "{}", dropped.len());
    assert!(dropped.is_sorted());
    let doubled = run(3, Faults { duplicate_percent: 30, ..Faults::default() }).await;
    assert!((220..300).contains(&doubled.len()), "{}", doubled.len());
    let mut shuffled = run(3, Faults { reorder_percent: 30, ..Faults::default() }).await;
    assert!(!shuffled.is_sorted());
    shuffled.sort_unstable();
    assert_eq!(shuffled, (1..=200).collect::<Vec<_>>());
    let all = Faults {
        max_delay: Duration::from_millis(30),
        drop_percent: 10,
        duplicate_percent: 10,
        reorder_percent: 10,
        ..Faults::default()
    };
    let first = run(11, all).await;
    assert_eq!(first, run(11, all).await);
    assert_ne!(first, run(12, all).await);
}

#[tokio::test(start_paused = true)]
async fn requests_go_through_are_cut_and_time_out() {
    let network = MemoryNetwork::new(1);
    let (one, _two) = (node(&network, 1, |_| {}), node(&network, 2, |_| {}));
    let mut three = node(&network, 3, |r| r.hung = true);
    let limit = Duration::from_secs(1);
    let ask = |addr: &'static str| one.transport.call(addr, pb::Request::default(), limit);
    assert!(ask("n2").await.is_ok());
    let error = ask("nowhere").await.unwrap_err();
    assert!(matches!(error, TransportError::Unreachable { .. }), "{error}");
    let error = ask("n3").await.unwrap_err();
    assert!(matches!(error, TransportError::Lost { .. }), "{error}");
    assert_eq!(three.told().len(), 1);
    network.cut_one_way("n2", "n1");
    assert!(matches!(ask("n2").await.unwrap_err(), TransportError::Lost { .. }));
    network.cut_one_way("n1", "n2");
    assert!(matches!(ask("n2").await.unwrap_err(), TransportError::Unreachable { .. }));
}

#[tokio::test(start_paused = true)]
async fn snapshots_go_through_and_break_with_their_link() {
    let (network, one, mut two) = pair(1);
    let chunk = || Ok(Bytes::from_static(&[5; 500]));
    let send = |size, body: Vec<io::Result<Bytes>>| {
        one.transport.send_snapshot(snapshot(1, 2, size), stream::iter(body).boxed())
    };
    send(1000, vec![chunk(), chunk()]).await.unwrap();
    let told = two.told();
    assert_eq!(told[1], Told::Snapshot { from: 1, index: 9, body: Ok(vec![5; 1000]) });
    for (size, kind) in [(600, io::ErrorKind::InvalidData), (2000, io::ErrorKind::UnexpectedEof)] {
        assert!(send(size, vec![chunk(), chunk()]).await.is_err());
        assert_eq!(two.told(), [Told::Snapshot { from: 1, index: 9, body: Err(kind) }]);
    }
    let cutting = network.clone();
    let body = stream::iter([chunk()]).chain(stream::once(async move {
        cutting.cut("n1", "n2");
        Ok(Bytes::from_static(&[5; 500]))
    }));
    let result = one.transport.send_snapshot(snapshot(1, 2, 1000), body.boxed()).await;
    assert!(result.is_err());
    let kind = io::ErrorKind::ConnectionReset;
    assert_eq!(two.told(), [Told::Snapshot { from: 1, index: 9, body: Err(kind) }]);
    let error = send(1000, vec![chunk(), chunk()]).await.unwrap_err();
    assert!(matches!(error, TransportError::Unreachable { .. }), "{error}");
}
