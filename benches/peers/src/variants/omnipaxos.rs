//! omnipaxos with its memory storage, over frames on bare TCP. One task owns the instance, takes
//! all that waits for it at once, and hands on what came of that.
//!
//! Not as shipped: an election takes half a second. Batching by a timer stays off, as shipped; what a
//! turn appends travels to a follower as one message.

use std::collections::HashMap;
use std::time::Duration;

use omnipaxos::macros::Entry;
use omnipaxos::messages::Message;
use omnipaxos::util::LogEntry;
use omnipaxos::{ClusterConfig, OmniPaxos, ServerConfig};
use omnipaxos_storage::memory_storage::MemoryStorage;
use peers::Result;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use crate::kv::Kv;
use crate::node::{Peer, Setup, View};
use crate::wire::{self, Caller};

const TICK: Duration = Duration::from_millis(10);
/// Half a second.
const ELECTION_TICKS: u64 = 50;
/// A second.
const RESEND_TICKS: u64 = 100;
/// Events that one turn takes.
const TURN: usize = 1024;

#[derive(Clone, Debug, Entry, Serialize, Deserialize)]
struct Command {
    /// Whose client waits for it.
    from: u64,
    number: u64,
    #[serde(with = "serde_bytes")]
    data: Vec<u8>,
}

type Answer = oneshot::Sender<std::result::Result<(), String>>;

enum Event {
    Put(Vec<u8>, Answer),
    Message(Message<Command>),
    Reconnected(u64),
}

#[derive(Clone)]
pub struct Node {
    events: mpsc::UnboundedSender<Event>,
    view: watch::Receiver<View>,
}

/// The task that owns the instance.
struct Owner {
    id: u64,
    paxos: OmniPaxos<Command, MemoryStorage<Command>>,
    events: mpsc::UnboundedReceiver<Event>,
    peers: HashMap<u64, mpsc::UnboundedSender<Vec<u8>>>,
    waiting: HashMap<u64, Answer>,
    next: u64,
    applied: usize,
    kv: Kv,
    view: watch::Sender<View>,
}

/// Sends to one peer in order, and says when a broken connection is there again.
async fn send(
    to: u64,
    caller: Caller,
    mut queue: mpsc::UnboundedReceiver<Vec<u8>>,
    events: mpsc::UnboundedSender<Event>,
) {
    let mut broken = false;
    while let Some(body) = queue.recv().await {
        let was_broken = broken;
        broken = caller.post(body).await.is_err();
        if was_broken && !broken {
            let _ = events.send(Event::Reconnected(to));
        }
    }
}

pub async fn start(setup: &Setup) -> Result<Node> {
    let cluster = ClusterConfig {
        configuration_id: 1,
        nodes: setup.members().map(|(id, _)| id).collect(),
        ..ClusterConfig::default()
    };
    let server = ServerConfig {
        pid: setup.id,
        election_tick_timeout: ELECTION_TICKS,
        resend_message_tick_timeout: RESEND_TICKS,
        ..ServerConfig::default()
    };
    let paxos = cluster.build_for_server(server, MemoryStorage::default());
    let paxos = paxos.map_err(|e| format!("{e:?}"))?;
    let (told, events) = mpsc::unbounded_channel();
    let mut peers = HashMap::new();
    for (to, addr) in setup.members().filter(|(id, _)| *id != setup.id) {
        let (queue, bodies) = mpsc::unbounded_channel();
        tokio::spawn(send(to, Caller::new(addr), bodies, told.clone()));
        peers.insert(to, queue);
    }
    let inbox = told.clone();
    let taken = wire::take(setup.addr(), move |body| {
        if let Ok(message) = postcard::from_bytes(&body) {
            let _ = inbox.send(Event::Message(message));
        }
    });
    taken.await?;
    let (view, seen) =
        watch::channel(View { id: setup.id, voters: setup.addrs.len(), ..View::default() });
    let (waiting, kv) = (HashMap::new(), Kv::default());
    let owner =
        Owner { id: setup.id, paxos, events, peers, waiting, next: 0, applied: 0, kv, view };
    tokio::spawn(owner.run());
    Ok(Node { events: told, view: seen })
}

impl Owner {
    async fn run(mut self) {
        let mut turn = Vec::new();
        let mut outgoing = Vec::new();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.tick(),
                count = self.events.recv_many(&mut turn, TURN) => {
                    if count == 0 {
                        return;
                    }
                    turn.drain(..).for_each(|event| self.take(event));
                }
            }
            self.paxos.take_outgoing_messages(&mut outgoing);
            outgoing.drain(..).for_each(|message| self.hand_on(&message));
            self.apply();
        }
    }

    fn tick(&mut self) {
        self.paxos.tick();
        let leader = self.paxos.get_current_leader().map_or(0, |(leader, _)| leader);
        let seen = (leader, u64::from(self.paxos.get_promise().n));
        self.view.send_if_modified(|view| {
            let before = (view.leader, view.term);
            (view.leader, view.term) = seen;
            before != seen
        });
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Put(data, answer) => {
                self.next += 1;
                let command = Command { from: self.id, number: self.next, data };
                match self.paxos.append(command) {
                    Ok(()) => drop(self.waiting.insert(self.next, answer)),
                    Err(e) => drop(answer.send(Err(format!("{e:?}")))),
                }
            }
            Event::Message(message) => self.paxos.handle_incoming(message),
            Event::Reconnected(peer) => self.paxos.reconnected(peer),
        }
    }

    fn hand_on(&self, message: &Message<Command>) {
        let Some(peer) = self.peers.get(&message.get_receiver()) else { return };
        if let Ok(body) = postcard::to_stdvec(message) {
            let _ = peer.send(body);
        }
    }

    fn apply(&mut self) {
        let decided = self.paxos.get_decided_idx();
        if decided <= self.applied {
            return;
        }
        for entry in self.paxos.read_decided_suffix(self.applied).unwrap_or_default() {
            let LogEntry::Decided(command) = entry else { continue };
            self.kv.apply(&command.data);
            if command.from != self.id {
                continue;
            }
            if let Some(answer) = self.waiting.remove(&command.number) {
                let _ = answer.send(Ok(()));
            }
        }
        self.applied = decided;
    }
}

impl Peer for Node {
    async fn put(&self, command: Vec<u8>) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        self.events.send(Event::Put(command, answer)).map_err(|_| "its task has ended")?;
        Ok(answered.await.map_err(|_| "its task has ended")??)
    }

    async fn get(&self, _: u64) -> Result<Vec<u8>> {
        Err("it has no linearizable reads but through its log".into())
    }

    async fn view(&self) -> Result<View> {
        Ok(self.view.borrow().clone())
    }
}
