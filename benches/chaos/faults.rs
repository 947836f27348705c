//! The faults, drawn from a seeded deck, and the timeline of what was done when.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use raftline::testing::rng::Rng;
use tokio::time::sleep;

use crate::Failure;
use crate::cluster::Cluster;
use crate::link::Mode;

/// Longer than an election timeout, which is 400 to 800 ms.
const SHORTEST: Duration = Duration::from_millis(900);
/// A node that does not tell its status within this is paused or busy, and not taken for the leader.
const STATUS: Duration = Duration::from_millis(300);
/// Between two resets of a fault that resets again and again.
const BETWEEN: Duration = Duration::from_millis(350);
/// When a fault that had no effect is given up.
const LONGEST: Duration = Duration::from_secs(30);

/// What can be done to a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    KillLeader,
    KillFollower,
    KillMajority,
    KillAll,
    PauseLeader,
    PauseFollower,
    PauseMajority,
    PauseAll,
    StopLeader,
    StopFollower,
    /// The leader and everybody else, both ways.
    CutLeader,
    CutFollower,
    /// A minority with the leader in it.
    CutInTwo,
    /// The leader hears and is not heard.
    CutLeaderOut,
    /// The leader is heard and does not hear.
    CutLeaderIn,
    /// One pair of nodes, both ways: the rest are in touch with both.
    CutOnePair,
    /// Each directed link with a chance of one in three.
    CutAtRandom,
    Delay,
    Throttle,
    Reset,
    /// Connections that end keep delivering, behind their successors.
    Reorder,
}

impl Kind {
    /// What a network can do that only cuts, silently.
    pub(crate) const CUTS: &[Self] = &[
        Self::CutLeader,
        Self::CutFollower,
        Self::CutInTwo,
        Self::CutLeaderOut,
        Self::CutLeaderIn,
        Self::CutOnePair,
        Self::CutAtRandom,
    ];
    const OTHERS: &[Self] = &[
        Self::KillLeader,
        Self::KillFollower,
        Self::KillMajority,
        Self::KillAll,
        Self::PauseLeader,
        Self::PauseFollower,
        Self::PauseMajority,
        Self::PauseAll,
        Self::StopLeader,
        Self::StopFollower,
        Self::Delay,
        Self::Throttle,
        Self::Reset,
        Self::Reorder,
    ];

    /// Every kind.
    pub(crate) fn all() -> Vec<Self> {
        [Self::CUTS, Self::OTHERS].concat()
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = format!("{self:?}");
        for (n, letter) in name.char_indices() {
            if n > 0 && letter.is_ascii_uppercase() {
                f.write_str("-")?;
            }
            write!(f, "{}", letter.to_ascii_lowercase())?;
        }
        Ok(())
    }
}

/// What was done, and when.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    pub(crate) entries: Vec<(Duration, String)>,
    pub(crate) counts: BTreeMap<Kind, usize>,
}

/// Deals so many faults: every kind once before any comes again.
pub(crate) fn deal(kinds: &[Kind], faults: usize, rng: &mut Rng) -> Vec<Kind> {
    let mut dealt = Vec::new();
    while dealt.len() < faults {
        let mut deck = kinds.to_vec();
        while !deck.is_empty() && dealt.len() < faults {
            let n = rng.below(deck.len() as u64);
            dealt.push(deck.swap_remove(usize::try_from(n).unwrap_or(0)));
        }
    }
    dealt
}

impl Timeline {
    /// Inflicts one fault, holds it, and heals everything.
    ///
    /// # Errors
    /// When a node does what it must not, such as ending by itself.
    pub(crate) async fn inflict(
        &mut self,
        kind: Kind,
        cluster: &mut Cluster,
        rng: &mut Rng,
        now: impl Fn() -> Duration,
    ) -> Result<(), Failure> {
        cluster.alive()?;
        let hold = SHORTEST + Duration::from_millis(rng.below(1_500));
        let told = strike(kind, cluster, rng).await?;
        self.note(now(), kind, &told);
        match kind {
            Kind::Reset => reset(cluster, rng, hold, || true).await,
            Kind::Reorder => {
                let late = cluster.network.late();
                let reordered = || cluster.network.late() > late;
                reset(cluster, rng, hold, reordered).await;
            }
            _ => sleep(hold / 2).await,
        }
        // Now and then a second one on top of it.
        if rng.one_in(4) {
            let kind =
                [Kind::KillLeader, Kind::KillFollower, Kind::PauseLeader][rng.below(3) as usize];
            let told = strike(kind, cluster, rng).await?;
            self.note(now(), kind, &format!("{told}, on top"));
        }
        sleep(hold / 2).await;
        cluster.alive()?;
        cluster.heal()?;
        self.entries.push((now(), "healed".to_owned()));
        Ok(())
    }

    fn note(&mut self, at: Duration, kind: Kind, told: &str) {
        *self.counts.entry(kind).or_default() += 1;
        self.entries.push((at, format!("{kind}: {told}")));
    }
}

/// Resets half of the links, again and again, until it has had an effect.
async fn reset(cluster: &Cluster, rng: &mut Rng, hold: Duration, effect: impl Fn() -> bool) {
    let links = cluster.network.links();
    let mut held = Duration::ZERO;
    while held < hold || !effect() && held < LONGEST {
        sleep(BETWEEN).await;
        held += BETWEEN;
        for (from, to) in links.iter().filter(|_| rng.one_in(2)) {
            cluster.network.reset(*from, *to);
        }
    }
}

/// Does what a kind says; tells to whom.
async fn strike(kind: Kind, cluster: &mut Cluster, rng: &mut Rng) -> Result<String, Failure> {
    let mut order = cluster.ids();
    shuffle(&mut order, rng);
    if let Some(leader) = cluster.leader(STATUS).await {
        order.retain(|id| *id != leader);
        order.insert(0, leader);
    }
    let (first, second) = (&order[..1], &order[1..2]);
    let majority = &order[..order.len() / 2 + 1];
    let cut = if rng.one_in(3) { Mode::Refuse } else { Mode::Hold };
    match kind {
        Kind::KillLeader => kill(cluster, first),
        Kind::KillFollower => kill(cluster, second),
        Kind::KillMajority => kill(cluster, majority),
        Kind::KillAll => kill(cluster, &order),
        Kind::PauseLeader => pause(cluster, first),
        Kind::PauseFollower => pause(cluster, second),
        Kind::PauseMajority => pause(cluster, majority),
        Kind::PauseAll => pause(cluster, &order),
        Kind::StopLeader => stop(cluster, first[0]).await,
        Kind::StopFollower => stop(cluster, second[0]).await,
        Kind::CutLeader => change(cluster, cut, |a, b| a == order[0] || b == order[0]),
        Kind::CutFollower => change(cluster, cut, |a, b| a == order[1] || b == order[1]),
        Kind::CutInTwo => {
            let minority = &order[..order.len() / 2];
            change(cluster, cut, |a, b| minority.contains(&a) != minority.contains(&b))
        }
        Kind::CutLeaderOut => change(cluster, cut, |a, _| a == order[0]),
        Kind::CutLeaderIn => change(cluster, cut, |_, b| b == order[0]),
        Kind::CutOnePair => {
            let pair = &order[..2];
            change(cluster, cut, |a, b| pair.contains(&a) && pair.contains(&b))
        }
        Kind::CutAtRandom => change(cluster, cut, |_, _| rng.one_in(3)),
        Kind::Delay => {
            let mode = Mode::Delay(Duration::from_millis(5 + rng.below(120)));
            change(cluster, mode, |_, _| rng.one_in(2))
        }
        Kind::Throttle => {
            change(cluster, Mode::Throttle(2_000 + rng.below(30_000)), |_, _| rng.one_in(2))
        }
        Kind::Reset => Ok("half of the links, again and again".to_owned()),
        Kind::Reorder => change(cluster, Mode::Late(Duration::from_millis(600)), |_, _| true),
    }
}

fn shuffle(ids: &mut [u64], rng: &mut Rng) {
    for n in (1..ids.len()).rev() {
        ids.swap(n, usize::try_from(rng.below(n as u64 + 1)).unwrap_or(0));
    }
}

fn kill(cluster: &mut Cluster, ids: &[u64]) -> Result<String, Failure> {
    for id in ids {
        cluster.kill(*id)?;
    }
    Ok(format!("{ids:?}"))
}

fn pause(cluster: &mut Cluster, ids: &[u64]) -> Result<String, Failure> {
    for id in ids {
        cluster.pause(*id)?;
    }
    Ok(format!("{ids:?}"))
}

async fn stop(cluster: &mut Cluster, id: u64) -> Result<String, Failure> {
    cluster.stop(id).await?;
    Ok(format!("[{id}]"))
}

/// Changes the links that are chosen.
fn change(
    cluster: &mut Cluster,
    mode: Mode,
    mut chosen: impl FnMut(u64, u64) -> bool,
) -> Result<String, Failure> {
    let mut links = cluster.network.links();
    links.retain(|(from, to)| chosen(*from, *to));
    let mut told = Vec::new();
    for (from, to) in links {
        cluster.network.set(from, to, mode)?;
        told.push(format!("{from}>{to}"));
    }
    Ok(format!("{mode:?} {}", told.join(" ")))
}
