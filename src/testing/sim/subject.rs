//! What is under test beside the node: a Store, and the commands and queries that drive it.
//!
//! [`Subject`] is for any Store; [`mixed`] is the simulator's own: registers with compare-and-set,
//! lists to append to, a counter. Each of its answers ends with a digest of everything that was
//! applied before, so that two replicas that differ anywhere give different answers at once (I5).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::plan::{Knob, Plan};
use crate::error::{Error, Result};
use crate::store::{Committed, Store};
use crate::testing::rng::Rng;
use crate::types::{Index, NodeId};

/// Makes the Store of a machine at its start; `wiped`: its disk is new, so a Store that is durable
/// by itself must have forgotten everything, too. Machine 0 is the reference replica.
type Make = Box<dyn Fn(NodeId, bool) -> Box<dyn Store> + Send>;
/// Draws the bytes of the operation with this number.
type Draw = Box<dyn FnMut(&mut Rng, u64) -> Vec<u8> + Send>;

/// A Store and its workload.
pub struct Subject {
    pub(super) make: Make,
    pub(super) command: Draw,
    pub(super) query: Draw,
    /// The simulator's own: its answers can be judged without indices.
    pub(super) mixed: bool,
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject").finish_non_exhaustive()
    }
}

impl Subject {
    /// A Store in memory: made empty, filled by snapshot and log. `command` and `query` draw the
    /// bytes that its clients send.
    pub fn new<S: Store>(
        make: impl Fn() -> S + Send + 'static,
        command: impl FnMut(&mut Rng) -> Vec<u8> + Send + 'static,
        query: impl FnMut(&mut Rng) -> Vec<u8> + Send + 'static,
    ) -> Self {
        Self::durable(move |_, _| make(), command, query)
    }

    /// A Store that is durable by itself (`Store::applied` is Some): `open` gives that of a
    /// machine back as its disk would hold it after a crash, or an empty one when `wiped`.
    /// Machine 0 is a replica that the simulator compares with; it is always opened wiped.
    pub fn durable<S: Store>(
        open: impl Fn(NodeId, bool) -> S + Send + 'static,
        mut command: impl FnMut(&mut Rng) -> Vec<u8> + Send + 'static,
        mut query: impl FnMut(&mut Rng) -> Vec<u8> + Send + 'static,
    ) -> Self {
        Self {
            make: Box::new(move |id, wiped| Box::new(open(id, wiped))),
            command: Box::new(move |rng, _| command(rng)),
            query: Box::new(move |rng, _| query(rng)),
            mixed: false,
        }
    }
}

/// The simulator's own Store and workload, as a plan wants it.
pub(super) fn mixed(plan: &Plan) -> Subject {
    let lag = plan.get(Knob::DurableStore);
    let keys = plan.get(Knob::Keys).max(1);
    let disks: Arc<Mutex<BTreeMap<NodeId, Image>>> = Arc::default();
    let make = move |id: NodeId, wiped: bool| -> Box<dyn Store> {
        if lag == 0 || id == 0 {
            return Box::new(Mixed::default());
        }
        if wiped {
            held(&disks).remove(&id);
        }
        let image = held(&disks).get(&id).cloned().unwrap_or_default();
        Box::new(Durable { image, disks: disks.clone(), id, lag, batches: 0 })
    };
    Subject {
        make: Box::new(make),
        command: Box::new(move |rng, op| Op::draw(rng, keys, op).encode()),
        query: Box::new(move |rng, _| vec![rng.below(3) as u8, rng.below(keys) as u8]),
        mixed: true,
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A command of the mixed workload. `id` makes every command different.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Op {
    pub(super) id: u64,
    pub(super) key: u8,
    pub(super) act: Act,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) enum Act {
    Put(u64),
    CompareAndSet { old: u64, new: u64 },
    Delete,
    Append(u64),
    Add(u64),
}

impl Op {
    fn draw(rng: &mut Rng, keys: u64, id: u64) -> Self {
        let act = match rng.below(10) {
            0..3 => Act::Put(1 + rng.below(5)),
            3..6 => Act::CompareAndSet { old: rng.below(6), new: 1 + rng.below(5) },
            6 => Act::Delete,
            7 | 8 => Act::Append(id),
            _ => Act::Add(1 + rng.below(3)),
        };
        Self { id, key: rng.below(keys) as u8, act }
    }

    fn encode(&self) -> Vec<u8> {
        bincode::serialize(self).expect("invariant: plain numbers serialise")
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        bincode::deserialize(bytes).ok()
    }
}

/// Mixes bytes into a digest (FNV-1a).
pub(super) fn mix(mut digest: u64, bytes: &[u8]) -> u64 {
    for byte in bytes {
        digest = (digest ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    digest
}

pub(super) const DIGEST: u64 = 0xcbf2_9ce4_8422_2325;

/// The state machine of the mixed workload.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Mixed {
    registers: BTreeMap<u8, u64>,
    lists: BTreeMap<u8, Vec<u64>>,
    counter: u64,
    digest: u64,
}

impl Mixed {
    fn apply_op(&mut self, bytes: &[u8]) -> Result<Vec<u8>> {
        let Some(op) = Op::decode(bytes) else { return Err(Error::rejected("no command")) };
        self.digest = mix(self.digest ^ DIGEST, bytes);
        let value = match op.act {
            Act::Put(v) => self.registers.insert(op.key, v).unwrap_or(0),
            Act::CompareAndSet { old, new } => {
                let found = self.registers.get(&op.key).copied().unwrap_or(0);
                if found == old {
                    self.registers.insert(op.key, new);
                }
                found
            }
            Act::Delete => match self.registers.remove(&op.key) {
                Some(v) => v,
                None => return Err(Error::rejected(format!("nothing at {}", op.key))),
            },
            Act::Append(v) => {
                let list = self.lists.entry(op.key).or_default();
                list.push(v);
                list.len() as u64
            }
            Act::Add(n) => {
                self.counter += n;
                self.counter
            }
        };
        Ok([value.to_le_bytes(), self.digest.to_le_bytes()].concat())
    }

    fn ask(&self, query: &[u8]) -> Vec<u8> {
        let key = query.get(1).copied().unwrap_or(0);
        match query.first() {
            Some(0) => self.registers.get(&key).copied().unwrap_or(0).to_le_bytes().to_vec(),
            Some(1) => {
                let list = self.lists.get(&key).map_or(&[][..], Vec::as_slice);
                list.iter().flat_map(|v| v.to_le_bytes()).collect()
            }
            _ => self.counter.to_le_bytes().to_vec(),
        }
    }

    fn load(snapshot: &[u8]) -> Result<Self> {
        bincode::deserialize(snapshot).map_err(|e| Error::fatal(std::io::Error::other(e)))
    }
}

#[async_trait]
impl Store for Mixed {
    async fn apply(&mut self, message: &[u8]) -> Result<Vec<u8>> {
        self.apply_op(message)
    }

    async fn query(&self, query: &[u8]) -> Result<Vec<u8>> {
        Ok(self.ask(query))
    }

    async fn snapshot(&self) -> Result<Vec<u8>> {
        Ok(bincode::serialize(self)?)
    }

    async fn restore(&mut self, snapshot: &[u8]) -> Result<()> {
        *self = Self::load(snapshot)?;
        Ok(())
    }
}

/// What the disk of a durable Store holds: state and index, one atomic write.
#[derive(Clone, Debug, Default)]
struct Image {
    state: Mixed,
    applied: Index,
}

/// The same with a disk of its own, synced once in `lag` batches: after a crash it says so.
#[derive(Debug)]
struct Durable {
    image: Image,
    disks: Arc<Mutex<BTreeMap<NodeId, Image>>>,
    id: NodeId,
    lag: u64,
    batches: u64,
}

impl Durable {
    fn sync(&self) {
        held(&self.disks).insert(self.id, self.image.clone());
    }
}

#[async_trait]
impl Store for Durable {
    async fn apply(&mut self, message: &[u8]) -> Result<Vec<u8>> {
        self.image.state.apply_op(message)
    }

    async fn apply_batch(&mut self, batch: &[Committed<'_>]) -> Vec<Result<Vec<u8>>> {
        let answers = batch.iter().map(|c| self.image.state.apply_op(c.data)).collect();
        self.image.applied = batch.last().map_or(self.image.applied, |c| c.index);
        self.batches += 1;
        if self.batches.is_multiple_of(self.lag) {
            self.sync();
        }
        answers
    }

    async fn query(&self, query: &[u8]) -> Result<Vec<u8>> {
        Ok(self.image.state.ask(query))
    }

    async fn snapshot(&self) -> Result<Vec<u8>> {
        Ok(bincode::serialize(&(self.image.applied, &self.image.state))?)
    }

    async fn restore(&mut self, snapshot: &[u8]) -> Result<()> {
        let (applied, state) =
            bincode::deserialize(snapshot).map_err(|e| Error::fatal(std::io::Error::other(e)))?;
        self.image = Image { state, applied };
        self.sync();
        Ok(())
    }

    fn applied(&self) -> Option<Index> {
        Some(self.image.applied)
    }
}
