//! How a node ends: in good order, by failure, by a future that is dropped.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use raftline::testing::cluster::Cluster;
use raftline::{Config, Error, Raft, Result, Store, async_trait};
use slog::Logger;
use tokio::sync::Semaphore;

use crate::grpc::Node;
use crate::support::{Journal, Lines, config, logger};

/// Fails, panics or hangs as it is told.
struct Broken {
    go: Arc<Semaphore>,
}

#[async_trait]
impl Store for Broken {
    async fn apply(&mut self, message: &[u8]) -> Result<Vec<u8>> {
        match message {
            b"fail" => Err(Error::fatal("the disk of the store is full")),
            b"panic" => panic!("a poison command"),
            b"hang" => {
                drop(self.go.acquire().await);
                Ok(Vec::new())
            }
            _ => Ok(message.to_vec()),
        }
    }

    async fn query(&self, _query: &[u8]) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }

    async fn snapshot(&self) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }

    async fn restore(&mut self, _snapshot: &[u8]) -> Result<()> {
        Ok(())
    }
}

async fn broken(go: &Arc<Semaphore>, config: Config) -> Cluster<Broken> {
    let go = go.clone();
    let mut cluster =
        Cluster::new(1, config, move |_| Broken { go: go.clone() }).with_logger(logger());
    cluster.start(1).await.unwrap();
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_or_panics_ends_the_node_with_index_and_remedy() {
    for poison in ["fail", "panic"] {
        let mut cluster = broken(&Arc::new(Semaphore::new(0)), config()).await;
        let mailbox = cluster.mailbox(1).unwrap();
        mailbox.propose("fine").await.unwrap();
        let error = mailbox.propose(poison).await.unwrap_err();
        assert!(error.outcome_unknown(), "{poison}: {error}");
        let error = cluster.ended(1).await.unwrap_err();
        assert!(matches!(error, Error::StoreFailed { .. }), "{poison}: {error}");
        assert!(error.to_string().contains("skip_apply"), "{poison}: {error}");
        let late = mailbox.propose("x").await.unwrap_err();
        assert!(matches!(late, Error::ShuttingDown), "{poison}: {late}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_hangs_fills_nothing_up_and_does_not_prevent_the_end() {
    let config = Config { max_pending_requests: 4, ..config() };
    let go = Arc::new(Semaphore::new(0));
    let mut cluster = broken(&go, config).await;
    let mailbox = cluster.mailbox(1).unwrap().with_timeout(Duration::from_millis(300));
    let calls: Vec<_> = (0..8).map(|_| mailbox.propose("hang")).collect();
    let outcomes = futures::future::join_all(calls).await;
    let overloaded = outcomes.iter().filter(|o| matches!(o, Err(Error::Overloaded { .. }))).count();
    let unknown = outcomes.iter().filter(|o| o.as_ref().is_err_and(Error::outcome_unknown)).count();
    assert_eq!((overloaded, unknown), (4, 4), "{outcomes:?}");
    go.add_permits(100);
    cluster.stop(1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_finishes_what_is_in_flight_and_refuses_the_rest() {
    let go = Arc::new(Semaphore::new(0));
    let mut cluster = broken(&go, config()).await;
    let mailbox = cluster.mailbox(1).unwrap();
    let before = mailbox.status().await.unwrap().last_index;
    let waiting = tokio::spawn({
        let mailbox = mailbox.clone();
        async move { mailbox.propose("hang").await }
    });
    mailbox.wait_for(|s| s.last_index > before).await.unwrap();
    let stopping = tokio::spawn({
        let mailbox = mailbox.clone();
        async move { mailbox.shutdown().await }
    });
    // Those that come before the stop wait behind the one that hangs.
    let impatient = mailbox.with_timeout(Duration::from_millis(5));
    while !matches!(impatient.propose("x").await, Err(Error::ShuttingDown)) {}
    go.add_permits(1);
    waiting.await.unwrap().unwrap();
    stopping.await.unwrap().unwrap();
    cluster.ended(1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_shuts_down_hands_over_first() {
    // Nobody campaigns by itself within the patience of this test.
    let config = Config { election_tick: 6000, ..config() };
    let mut cluster = Cluster::new(1, config, |_| Journal::default()).with_logger(logger());
    cluster.start(3).await.unwrap();
    let leader = cluster.leader().await.unwrap();
    cluster.stop(leader).await.unwrap();
    let next = cluster.leader().await.unwrap();
    cluster.mailbox(next).unwrap().propose("x").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_future_frees_port_directory_and_callers() {
    let root = tempfile::tempdir().unwrap();
    let node = Node::start(1, "127.0.0.1:0", root.path(), Vec::new()).await;
    node.mailbox.propose("x").await.unwrap();
    let mailbox = node.mailbox.clone();
    let (id, addr) = node.crash().await;
    assert!(matches!(mailbox.propose("y").await, Err(Error::ShuttingDown)));
    let again = Node::start(id, &addr, root.path(), Vec::new()).await;
    again.mailbox.propose("z").await.unwrap();
    again.mailbox.shutdown().await.unwrap();
    again.task.await.unwrap().unwrap();
}

/// A Store that is durable by itself must not be opened again while the old one still applies: it
/// would apply twice.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_dropped_future_the_node_has_not_ended_before_its_store() {
    let root = tempfile::tempdir().unwrap();
    let (go, held) = (Arc::new(Semaphore::new(0)), Arc::new(()));
    let store = Slow { go: go.clone(), _held: held.clone() };
    let config = Config { data_dir: Some(root.path().to_owned()), ..config() };
    let raft = Raft::new("127.0.0.1:0", store, logger(), config).unwrap();
    let mailbox = raft.mailbox();
    let node = tokio::spawn(raft.lead(1));
    let call = tokio::spawn({
        let mailbox = mailbox.clone();
        async move { mailbox.propose("x").await }
    });
    mailbox.wait_for(|s| s.commit > 2).await.unwrap();
    node.abort();
    let _ = node.await;
    let mut end = std::pin::pin!(mailbox.shutdown());
    let early = tokio::time::timeout(Duration::from_millis(300), end.as_mut()).await;
    assert!(early.is_err(), "the node has ended before its store");
    go.add_permits(1);
    end.await.unwrap();
    assert_eq!(Arc::strong_count(&held), 1, "the store is gone");
    call.await.unwrap().unwrap();
}

struct Slow {
    go: Arc<Semaphore>,
    _held: Arc<()>,
}

#[async_trait]
impl Store for Slow {
    async fn apply(&mut self, _message: &[u8]) -> Result<Vec<u8>> {
        drop(self.go.acquire().await);
        Ok(Vec::new())
    }

    async fn query(&self, _query: &[u8]) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }

    async fn snapshot(&self) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }

    async fn restore(&mut self, _snapshot: &[u8]) -> Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn calls_before_the_start_wait_and_those_of_a_dropped_node_are_refused() {
    let raft = Raft::new("127.0.0.1:0", Journal::default(), logger(), config()).unwrap();
    let mailbox = raft.mailbox();
    let early = tokio::spawn({
        let mailbox = mailbox.clone();
        async move { mailbox.propose("early").await }
    });
    tokio::task::yield_now().await;
    drop(raft);
    assert!(matches!(early.await.unwrap(), Err(Error::ShuttingDown)));
    assert!(matches!(mailbox.propose("late").await, Err(Error::ShuttingDown)));
    mailbox.shutdown().await.unwrap();
}

#[test]
fn a_node_is_built_outside_a_runtime_and_bad_values_are_named() {
    let raft = Raft::new("127.0.0.1:0", Journal::default(), logger(), config()).unwrap();
    let busy = raft.listen_addr().unwrap().to_owned();
    let error = Raft::new(&*busy, Journal::default(), logger(), config()).unwrap_err();
    assert!(matches!(error, Error::Listen { .. }), "{error}");
    let error = Raft::new("nowhere.invalid:1", Journal::default(), logger(), config()).unwrap_err();
    assert!(matches!(error, Error::Listen { .. }), "{error}");
    let bad = Config { heartbeat: Duration::ZERO, ..config() };
    let error = Raft::new("127.0.0.1:0", Journal::default(), logger(), bad).unwrap_err();
    assert!(matches!(error, Error::Config { field: "heartbeat", .. }), "{error}");
    let error = raft.lead(1).now_or_never().unwrap().unwrap_err();
    assert!(error.to_string().contains("tokio runtime"), "{error}");
}

#[tokio::test]
async fn an_empty_node_that_is_sent_to_itself_says_so_at_once() {
    let root = tempfile::tempdir().unwrap();
    let durable = Config { data_dir: Some(root.path().join("n")), ..config() };
    let raft = Raft::new("127.0.0.1:0", Journal::default(), logger(), durable).unwrap();
    let own = raft.listen_addr().unwrap().to_owned();
    let joining = raft.join(1, own.clone(), None, own.clone());
    let ended = tokio::time::timeout(config().request_timeout, joining).await.unwrap();
    let error = ended.unwrap_err();
    assert!(matches!(error, Error::Config { field: "leader_addr", .. }), "{error}");
    assert!(error.to_string().contains(&own), "{error}");
}

#[tokio::test]
async fn a_failure_that_ends_a_node_is_logged() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("notes.txt"), "mine").unwrap();
    let lines = Lines::default();
    let config = Config { data_dir: Some(root.path().to_owned()), ..config() };
    let logger = Logger::root(lines.clone(), slog::o!());
    let raft = Raft::new("127.0.0.1:0", Journal::default(), logger, config).unwrap();
    let error = raft.lead(1).await.unwrap_err();
    assert!(error.to_string().contains("notes.txt"), "{error}");
    assert!(lines.has(slog::Level::Error, "ended by a failure"), "{lines:?}");
}

#[tokio::test]
async fn a_wildcard_address_needs_an_advertised_one() {
    let raft = Raft::new("0.0.0.0:0", Journal::default(), logger(), config()).unwrap();
    let error = raft.lead(1).await.unwrap_err();
    assert!(matches!(error, Error::Config { field: "advertise_addr", .. }), "{error}");
}
