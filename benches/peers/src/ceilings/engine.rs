//! Three engines of tikv's `raft` in one thread, without network, disk or callers: what a library on
//! top of it cannot exceed with one core and one proposal per entry.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use peers::Result;
use raft::eraftpb::{ConfState, Entry, Message};
use raft::storage::MemStorage;
use raft::{Config, LightReady, RawNode, StateRole};

use crate::kv::{self, KEYS, Kv};

/// Entries of a log above which the older ones are dropped.
const LONG: u64 = 20_000;
/// How many stay then.
const TRAILING: u64 = 2_000;

struct Engine {
    node: RawNode<MemStorage>,
    kv: Kv,
    /// Entries with data that were applied.
    applied: u64,
    index: u64,
}

impl Engine {
    fn new(id: u64) -> Result<Self> {
        let voters = ConfState::from((vec![1, 2, 3], vec![]));
        let storage = MemStorage::new_with_conf_state(voters);
        let config = Config {
            id,
            max_size_per_msg: 1 << 20,
            max_inflight_msgs: 256,
            skip_bcast_commit: true,
            ..Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let node = RawNode::new(&config, storage, &logger)?;
        Ok(Self { node, kv: Kv::default(), applied: 0, index: 0 })
    }

    fn apply(&mut self, entries: Vec<Entry>) {
        for entry in entries {
            self.index = entry.index;
            if !entry.data.is_empty() {
                self.kv.apply(&entry.data);
                self.applied += 1;
            }
        }
    }

    /// Does all that is to be done now; gives the messages to the others.
    fn turn(&mut self) -> Result<Vec<Message>> {
        let mut outgoing = Vec::new();
        while self.node.has_ready() {
            let mut ready = self.node.ready();
            outgoing.extend(ready.take_messages());
            self.apply(ready.take_committed_entries());
            let store = self.node.store().clone();
            store.wl().append(ready.entries())?;
            if let Some(hard_state) = ready.hs() {
                store.wl().set_hardstate(hard_state.clone());
            }
            outgoing.extend(ready.take_persisted_messages());
            let mut light: LightReady = self.node.advance(ready);
            outgoing.extend(light.take_messages());
            self.apply(light.take_committed_entries());
            self.node.advance_apply_to(self.index);
        }
        Ok(outgoing)
    }

    fn compact(&mut self) -> Result<()> {
        let store = self.node.store();
        let first = raft::Storage::first_index(store)?;
        if self.index.saturating_sub(first) > LONG {
            store.wl().compact(self.index - TRAILING)?;
        }
        Ok(())
    }
}

struct Trio(Vec<Engine>);

impl Trio {
    /// Lets them talk until nobody has anything to say.
    fn settle(&mut self) -> Result<()> {
        loop {
            let mut under_way = VecDeque::new();
            for engine in &mut self.0 {
                under_way.extend(engine.turn()?);
            }
            if under_way.is_empty() {
                return Ok(());
            }
            for message in under_way {
                let to = self.0.get_mut(message.to as usize - 1).ok_or("a message to nobody")?;
                to.node.step(message)?;
            }
        }
    }

    fn leader(&mut self) -> Result<&mut Engine> {
        Ok(self.0.first_mut().ok_or("no engine")?)
    }
}

/// Entries per second, so many in flight.
pub fn entries_per_second(clients: usize, payload: usize, window: Duration) -> Result<f64> {
    let mut trio = Trio((1..=3).map(Engine::new).collect::<Result<_>>()?);
    trio.leader()?.node.campaign()?;
    trio.settle()?;
    if trio.leader()?.node.raft.state != StateRole::Leader {
        return Err("the engine elected nobody".into());
    }
    let (begin, mut key) = (Instant::now(), 0);
    while begin.elapsed() < window {
        let leader = trio.leader()?;
        for _ in 0..clients {
            leader.node.propose(Vec::new(), kv::put(key % KEYS, payload))?;
            key += 1;
        }
        trio.settle()?;
        for engine in &mut trio.0 {
            engine.compact()?;
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    let applied = trio.leader()?.applied;
    if applied != key {
        return Err(format!("the engine applied {applied} of {key} entries").into());
    }
    Ok(applied as f64 / seconds)
}
