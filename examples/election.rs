//! Leader election without a state machine, over a transport of one's own: tokio channels between
//! nodes that are known by name. What the leader does elsewhere carries its term as a fencing token.
//!
//! `cargo run --example election`
#![expect(clippy::print_stdout, reason = "an example tells what happens")]

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use raftline::transport::{
    Handler, Peer, Peers, Refusal, SnapshotStream, Transport, TransportError,
};
use raftline::{
    Config, LeaderChange, Mailbox, Message, NodeId, Raft, RaftId, Result, Role, Term, async_trait,
    pb,
};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinHandle};

/// Our names of the nodes; the library wants numbers. Once given, an id belongs to its name.
const NAMES: [(&str, NodeId); 3] = [("alpha", 1), ("beta", 2), ("gamma", 3)];
/// What may wait in a channel; more is dropped, and raft sends again.
const WAITING: usize = 1024;

fn name_of(id: NodeId) -> &'static str {
    NAMES.iter().find(|(_, known)| *known == id).map_or("nobody", |(name, _)| name)
}

/// A node's address: anything of the form `a:b` that our transport understands.
fn address(name: &str) -> String {
    format!("channel:{name}")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What goes through a channel to a node.
enum Parcel {
    /// Who speaks; nothing else of a sender is handed over before this was answered.
    Hello(pb::Hello, oneshot::Sender<Result<pb::Hello, Refusal>>),
    Messages(RaftId, Vec<Message>),
    Snapshot(RaftId, Message, SnapshotStream, oneshot::Sender<Result<(), Refusal>>),
    Call(pb::Request, oneshot::Sender<pb::Response>),
}

/// Who is reached where: the channels of all nodes that serve, by address.
#[derive(Clone, Debug, Default)]
struct Exchange(Arc<Mutex<BTreeMap<String, mpsc::Sender<Parcel>>>>);

/// One node's end of the exchange.
#[derive(Debug)]
struct Channels {
    exchange: Exchange,
    addr: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    handler: Option<Arc<dyn Handler>>,
    serving: Option<AbortHandle>,
    peers: Option<Peers>,
    /// The ways to the peers: a queue each, and the task that empties it.
    lanes: BTreeMap<RaftId, (Peer, mpsc::Sender<Message>)>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("peers", &self.peers).finish_non_exhaustive()
    }
}

impl Exchange {
    fn find(&self, addr: &str) -> Result<mpsc::Sender<Parcel>, TransportError> {
        let unreachable = || TransportError::Unreachable {
            addr: addr.to_owned(),
            reason: "nobody serves this name".to_owned(),
        };
        lock(&self.0).get(addr).filter(|way| !way.is_closed()).cloned().ok_or_else(unreachable)
    }

    /// Hands a parcel over and waits for what it is answered with.
    async fn ask<T>(
        &self,
        addr: &str,
        parcel: impl FnOnce(oneshot::Sender<T>) -> Parcel,
    ) -> Result<(T, mpsc::Sender<Parcel>), TransportError> {
        let lost = |reason: &str| TransportError::Lost {
            addr: addr.to_owned(),
            reason: reason.to_owned(),
        };
        let way = self.find(addr)?;
        let (answer, answered) = oneshot::channel();
        way.send(parcel(answer)).await.map_err(|_| lost("it has stopped"))?;
        Ok((answered.await.map_err(|_| lost("no answer"))?, way))
    }

    /// Introduces us to a peer; from then on it takes our messages, until it is started again.
    async fn connect(
        &self,
        peer: &Peer,
        hello: &pb::Hello,
    ) -> Result<mpsc::Sender<Parcel>, TransportError> {
        let (welcome, way) =
            self.ask(&peer.addr, |answer| Parcel::Hello(hello.clone(), answer)).await?;
        let welcome = welcome?;
        if (welcome.from, &welcome.from_incarnation) != (hello.to, &hello.to_incarnation) {
            let found = format!("node {} answers for node {}", welcome.from_node, peer.node_id);
            return Err(Refusal::Receiver(found).into());
        }
        Ok(way)
    }
}

impl Channels {
    fn new(exchange: &Exchange, name: &str) -> Self {
        Self { exchange: exchange.clone(), addr: address(name), state: Arc::default() }
    }

    fn peer(&self, to: RaftId) -> Option<(Peer, pb::Hello)> {
        let state = lock(&self.state);
        let peers = state.peers.as_ref()?;
        let peer = peers.others.iter().find(|p| p.raft_id == to)?;
        Some((peer.clone(), peers.hello(peer)))
    }

    /// The queue to a peer; its task keeps the order.
    fn lane(&self, to: RaftId) -> Option<mpsc::Sender<Message>> {
        if let Some((_, lane)) = lock(&self.state).lanes.get(&to) {
            return Some(lane.clone());
        }
        let (peer, hello) = self.peer(to)?;
        let (lane, mut queue) = mpsc::channel::<Message>(WAITING);
        let mut state = lock(&self.state);
        let handler = state.handler.clone()?;
        state.lanes.insert(to, (peer.clone(), lane.clone()));
        let exchange = self.exchange.clone();
        drop(tokio::spawn(async move {
            let mut way: Option<mpsc::Sender<Parcel>> = None;
            let mut told = false;
            while let Some(message) = queue.recv().await {
                if way.as_ref().is_none_or(mpsc::Sender::is_closed) {
                    way = match exchange.connect(&peer, &hello).await {
                        Ok(way) => Some(way),
                        Err(TransportError::Refused(why)) if !told => {
                            handler.refused(to, why);
                            None
                        }
                        Err(_) => None,
                    };
                }
                let parcel = Parcel::Messages(hello.from, vec![message]);
                let sent = match &way {
                    Some(way) => way.send(parcel).await.is_ok(),
                    None => false,
                };
                if !sent && !told {
                    handler.unreachable(to);
                }
                told = !sent;
            }
        }));
        Some(lane)
    }
}

/// Hands parcels to the node, in order; what takes long goes on beside.
async fn serve(handler: Arc<dyn Handler>, mut parcels: mpsc::Receiver<Parcel>) {
    while let Some(parcel) = parcels.recv().await {
        let handler = handler.clone();
        // NB: an answer that nobody waits for any more is lost, and asked for again.
        match parcel {
            Parcel::Hello(hello, answer) => drop(answer.send(handler.admit(&hello))),
            Parcel::Messages(from, messages) => handler.messages(from, messages),
            Parcel::Snapshot(from, message, body, answer) => drop(tokio::spawn(async move {
                drop(answer.send(handler.snapshot(from, message, body).await));
            })),
            Parcel::Call(request, answer) => drop(tokio::spawn(async move {
                drop(answer.send(handler.call(request).await));
            })),
        }
    }
}

#[async_trait]
impl Transport for Channels {
    fn start(&self, handler: Arc<dyn Handler>) -> io::Result<()> {
        let (way, parcels) = mpsc::channel(WAITING);
        let mut served = lock(&self.exchange.0);
        if served.get(&self.addr).is_some_and(|way| !way.is_closed()) {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "this name is served already"));
        }
        served.insert(self.addr.clone(), way);
        let mut state = lock(&self.state);
        state.serving = Some(tokio::spawn(serve(handler.clone(), parcels)).abort_handle());
        state.handler = Some(handler);
        Ok(())
    }

    fn set_peers(&self, peers: Peers) {
        let mut state = lock(&self.state);
        // A lane whose sender is gone ends; one to a peer that is the same goes on.
        state.lanes.retain(|_, (peer, _)| peers.others.contains(peer));
        state.peers = Some(peers);
    }

    fn send(&self, messages: Vec<Message>) {
        for message in messages {
            let to = message.to();
            let sent = self.lane(to).is_some_and(|lane| lane.try_send(message).is_ok());
            let handler = lock(&self.state).handler.clone();
            if let Some(handler) = handler.filter(|_| !sent) {
                handler.unreachable(to);
            }
        }
    }

    async fn send_snapshot(
        &self,
        message: Message,
        body: SnapshotStream,
    ) -> Result<(), TransportError> {
        let unknown = || TransportError::Unreachable {
            addr: format!("raft id {}", message.to()),
            reason: "no such peer".to_owned(),
        };
        let (peer, hello) = self.peer(message.to()).ok_or_else(unknown)?;
        self.exchange.connect(&peer, &hello).await?;
        let parcel = |answer| Parcel::Snapshot(hello.from, message, body, answer);
        let (taken, _) = self.exchange.ask(&peer.addr, parcel).await?;
        Ok(taken?)
    }

    async fn call(
        &self,
        addr: &str,
        request: pb::Request,
        timeout: Duration,
    ) -> Result<pb::Response, TransportError> {
        let asked = self.exchange.ask(addr, |answer| Parcel::Call(request, answer));
        match tokio::time::timeout(timeout, asked).await {
            Ok(answered) => answered.map(|(response, _)| response),
            Err(_) => {
                let (addr, reason) = (addr.to_owned(), format!("no answer within {timeout:?}"));
                Err(TransportError::Lost { addr, reason })
            }
        }
    }

    async fn close(&self) {
        let state = std::mem::take(&mut *lock(&self.state));
        if let Some(serving) = state.serving {
            serving.abort();
            lock(&self.exchange.0).remove(&self.addr);
        }
    }
}

/// Something outside of the cluster that one node at a time may use. It remembers the highest token,
/// and refuses whoever led before.
#[derive(Clone, Debug, Default)]
struct Printer(Arc<Mutex<Term>>);

impl Printer {
    fn print(&self, token: Term) -> Result<(), String> {
        let mut highest = lock(&self.0);
        if token < *highest {
            return Err(format!("token {token} is stale: {} was here", *highest));
        }
        *highest = token;
        Ok(())
    }
}

struct Member {
    id: NodeId,
    mailbox: Mailbox,
    running: JoinHandle<Result<()>>,
}

fn start(exchange: &Exchange, id: NodeId, dir: &Path) -> Result<Member> {
    let name = name_of(id);
    let config = Config {
        data_dir: Some(dir.join(name)),
        heartbeat: Duration::from_millis(20),
        // Nobody is elected before all three are there.
        min_members: NAMES.len(),
        ..Config::default()
    };
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let transport = Arc::new(Channels::new(exchange, name));
    // `()`: no Store. Over gRPC this is `Raft::election(addr, logger, config)`.
    let raft = Raft::with_transport(transport, address(name), (), logger, config)?;
    let mailbox = raft.mailbox();
    let running = tokio::spawn(raft.start(id, NAMES.map(|(name, _)| address(name))));
    Ok(Member { id, mailbox, running })
}

/// Waits until one of them leads in a term above `after`; whoever hears of it hears it from the
/// stream of its own node.
async fn leader(members: &[Member], after: Term) -> Option<LeaderChange> {
    let heard = members.iter().map(|member| {
        let changes = member.mailbox.leader_changes();
        let led = move |c: &LeaderChange| std::future::ready(c.is_self && c.term > after);
        Box::pin(async move { changes.filter(led).next().await.ok_or(()) })
    });
    futures::future::select_ok(heard).await.ok().map(|(change, _)| change)
}

/// Three elections; what happened goes to `say`.
pub(crate) async fn run(dir: &Path, mut say: impl FnMut(String)) -> Result<()> {
    let exchange = Exchange::default();
    let printer = Printer::default();
    let mut members =
        NAMES.iter().map(|(_, id)| start(&exchange, *id, dir)).collect::<Result<Vec<_>>>()?;

    let first = leader(&members, 0).await.ok_or("every node ended")?;
    printer.print(first.term)?;
    say(format!("{} leads, and prints with token {}", name_of(first.leader_id), first.term));

    // It resigns, for an update, say. Others hear of it by themselves.
    let old = members.iter().find(|m| m.id == first.leader_id).ok_or("it is one of us")?;
    old.mailbox.resign().await?;
    let second = leader(&members, first.term).await.ok_or("every node ended")?;
    printer.print(second.term)?;
    say(format!("{} leads, and prints with token {}", name_of(second.leader_id), second.term));

    // A job of the first one was on its way for long; it arrives now.
    match printer.print(first.term) {
        Ok(()) => say("two leaders have printed".to_owned()),
        Err(why) => say(format!("{} is refused: {why}", name_of(first.leader_id))),
    }

    // The leader dies; two of three are enough to elect another.
    let at = members.iter().position(|m| m.id == second.leader_id).ok_or("it is one of us")?;
    let dead = members.swap_remove(at);
    dead.running.abort();
    // NB: an aborted task has no result.
    let _ = dead.running.await;
    let third = leader(&members, second.term).await.ok_or("every node ended")?;
    printer.print(third.term)?;
    say(format!(
        "{} died; {} leads, and prints with token {}",
        name_of(second.leader_id),
        name_of(third.leader_id),
        third.term
    ));

    for member in members {
        member.mailbox.wait_for(|s| s.role != Role::Starting).await?;
        member.mailbox.shutdown().await?;
        member.running.await.map_err(|e| e.to_string())??;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let dir = tempfile::tempdir()?;
    run(dir.path(), |line| println!("{line}")).await
}
