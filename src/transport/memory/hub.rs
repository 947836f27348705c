//! What connects the ends of a memory network: who serves where, which links are cut, and what
//! befalls a message.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::lock;
use crate::transport::Handler;

/// A message that is reordered is held back by up to this much more.
const REORDER: Duration = Duration::from_millis(10);

/// What happens to messages on every link. Streams of snapshots and requests are delayed and cut,
/// but not dropped, duplicated or reordered, as on a real connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// The shortest delay.
    pub min_delay: Duration,
    /// The longest.
    pub max_delay: Duration,
    /// Of a hundred messages, so many are lost.
    pub drop_percent: u8,
    /// Of a hundred messages, so many arrive twice.
    pub duplicate_percent: u8,
    /// Of a hundred messages, so many may be overtaken by later ones.
    pub reorder_percent: u8,
}

/// The hub that connects [`MemoryTransport`](super::MemoryTransport)s by address.
#[derive(Clone)]
pub struct MemoryNetwork {
    hub: Arc<Mutex<Hub>>,
}

pub(super) struct Hub {
    random: Random,
    faults: Faults,
    /// Directed: from, to.
    cuts: BTreeSet<(String, String)>,
    /// How often each link was cut: what was sent before the last time is lost.
    cut_times: BTreeMap<(String, String), u64>,
    pub(super) served: BTreeMap<String, Served>,
    pub(super) runs: u64,
}

#[derive(Clone)]
pub(super) struct Served {
    pub(super) handler: Arc<dyn Handler>,
    /// Told apart from an earlier handler at the same address.
    pub(super) run: u64,
    /// How often the way to it was cut.
    pub(super) cuts: u64,
    /// How often it has changed its peers.
    pub(super) judged: u64,
}

impl Served {
    /// Whether the way is still the one that it was: nothing was cut or restarted since.
    pub(super) fn same(&self, other: &Self) -> bool {
        (self.run, self.cuts) == (other.run, other.cuts)
    }
}

impl fmt::Debug for MemoryNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hub = self.hub();
        f.debug_struct("MemoryNetwork")
            .field("served", &hub.served.keys().collect::<Vec<_>>())
            .field("cuts", &hub.cuts)
            .field("faults", &hub.faults)
            .finish()
    }
}

impl MemoryNetwork {
    /// A network without faults; those to come are drawn from this seed.
    pub fn new(seed: u64) -> Self {
        let hub = Hub {
            random: Random(seed),
            faults: Faults::default(),
            cuts: BTreeSet::new(),
            cut_times: BTreeMap::new(),
            served: BTreeMap::new(),
            runs: 0,
        };
        Self { hub: Arc::new(Mutex::new(hub)) }
    }

    /// Cuts the link between two addresses, both ways.
    pub fn cut(&self, a: &str, b: &str) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    /// Nothing of `from` reaches `to` any more; the other way stays open.
    pub fn cut_one_way(&self, from: &str, to: &str) {
        let link = (from.to_owned(), to.to_owned());
        let mut hub = self.hub();
        *hub.cut_times.entry(link.clone()).or_default() += 1;
        hub.cuts.insert(link);
    }

    /// Mends the link between two addresses, both ways.
    pub fn mend(&self, a: &str, b: &str) {
        let mut hub = self.hub();
        hub.cuts.remove(&(a.to_owned(), b.to_owned()));
        hub.cuts.remove(&(b.to_owned(), a.to_owned()));
    }

    /// Mends every link and ends all other faults.
    pub fn heal(&self) {
        let mut hub = self.hub();
        hub.cuts.clear();
        hub.faults = Faults::default();
    }

    /// Applies these faults to every message from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.hub().faults = faults;
    }

    pub(super) fn hub(&self) -> MutexGuard<'_, Hub> {
        lock(&self.hub)
    }

    pub(super) fn route(&self, from: &str, to: &str) -> Option<Served> {
        self.hub().route(from, to)
    }

    pub(super) fn delay(&self) -> Duration {
        self.hub().delay()
    }
}

impl Hub {
    fn route(&self, from: &str, to: &str) -> Option<Served> {
        let link = (from.to_owned(), to.to_owned());
        if self.cuts.contains(&link) {
            return None;
        }
        let mut served = self.served.get(to)?.clone();
        served.cuts = self.cut_times.get(&link).copied().unwrap_or(0);
        Some(served)
    }

    fn delay(&mut self) -> Duration {
        let spread = self.faults.max_delay.saturating_sub(self.faults.min_delay);
        self.faults.min_delay + self.random.up_to(spread)
    }

    /// When each copy of a message leaves the network, and whether it may be overtaken.
    pub(super) fn fate(&mut self) -> Vec<(Duration, bool)> {
        let faults = self.faults;
        if self.random.percent(faults.drop_percent) {
            return Vec::new();
        }
        let copies = 1 + usize::from(self.random.percent(faults.duplicate_percent));
        let mut fate = Vec::with_capacity(copies);
        for _ in 0..copies {
            let delay = self.delay();
            let reorder = self.random.percent(faults.reorder_percent);
            let more = if reorder { self.random.up_to(REORDER) } else { Duration::ZERO };
            fate.push((delay + more, reorder));
        }
        fate
    }
}

/// Steele, Lea, Flood: Fast splittable pseudorandom number generators (SplitMix64).
#[derive(Clone, Copy, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn percent(&mut self, percent: u8) -> bool {
        percent > 0 && self.next() % 100 < u64::from(percent)
    }

    fn up_to(&mut self, most: Duration) -> Duration {
        let nanos = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX);
        if nanos == 0 { Duration::ZERO } else { Duration::from_nanos(self.next() % nanos + 1) }
    }
}
