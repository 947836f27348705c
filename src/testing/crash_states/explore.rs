//! Walks through the crash states of one workload: every prefix of its changes, what may be left
//! of each, recovery of that, and lives and crashes after it.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::choices::choices;
use super::disk::{Choice, Disk, Fate, Op};
use super::life::{Allowed, Life};
use super::recorder::Recorder;
use super::report::{Counts, panic_text};
use super::script::{Step, random_step};
use crate::testing::rng::Rng;

/// How thorough a walk is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effort {
    /// States per prefix of the first life, at most about.
    pub(super) first: usize,
    /// Likewise in later lives.
    pub(super) later: usize,
    /// One state in so many is lived on from, to crash again.
    pub(super) dig: u64,
    /// At one moment in so many the process alone ends, and the page cache stays.
    pub(super) kill: u64,
    /// Lives in a row.
    pub(super) lives: usize,
    /// Random steps of a workload that has no script.
    pub(super) steps: u64,
}

/// The walk.
pub(super) struct Explorer {
    rng: Rng,
    effort: Effort,
    segment: u64,
    /// What the disk under the first lives lies about: then the walk must fail.
    pub(super) lie: Option<&'static str>,
    pub(super) counts: Counts,
    /// Fingerprints of the disks that were recovered.
    pub(super) images: HashSet<u64>,
    /// Crash states by number of the life that they end.
    by_life: [u64; 8],
    by_fate: [u64; 6],
    tails: u64,
}

fn fate_slot(fate: Fate) -> usize {
    match fate {
        Fate::Kept => 0,
        Fate::Lost => 1,
        Fate::Zero => 2,
        Fate::Garbage => 3,
        Fate::Torn(_) | Fate::TornFront(_) => 4,
        Fate::Flip(_) => 5,
    }
}

impl Explorer {
    pub(super) fn new(seed: u64, segment: u64, effort: Effort) -> Self {
        Self {
            rng: Rng::new(seed),
            effort,
            segment,
            lie: None,
            counts: Counts::default(),
            images: HashSet::new(),
            by_life: [0; 8],
            by_fate: [0; 6],
            tails: 0,
        }
    }

    /// Runs a workload and looks at all its crash states; without a script it is a random one.
    pub(super) fn explore(&mut self, script: Option<&[Step]>) -> Result<(), String> {
        let result = self.live(Disk::default(), Allowed::nothing(), script, 0);
        let fates =
            [Fate::Kept, Fate::Lost, Fate::Zero, Fate::Garbage, Fate::Torn(0), Fate::Flip(0)];
        for fate in fates {
            self.counts.add(fate.name(), self.by_fate[fate_slot(fate)]);
        }
        let [first, second, later @ ..] = self.by_life;
        self.counts.add("after the first life", first);
        self.counts.add("after the second", second);
        self.counts.add("after a later one", later.iter().sum());
        self.counts.add("tails dropped", self.tails);
        result
    }

    /// One process on this disk, and what a loss of power leaves of each moment of it.
    fn live(
        &mut self,
        disk: Disk,
        allowed: Allowed,
        script: Option<&[Step]>,
        life_number: usize,
    ) -> Result<(), String> {
        let recorder = Recorder::new(disk.clone(), true);
        recorder.lie_about(self.lie);
        let mut life = Life::recorded(&recorder, self.segment, allowed);
        let lived =
            catch_unwind(AssertUnwindSafe(|| self.take_steps(&mut life, script, life_number)))
                .unwrap_or_else(|panic| Err(panic_text(&*panic)));
        let marks = std::mem::take(&mut life.marks);
        drop(life);
        lived.map_err(|e| format!("life {life_number}: {e}"))?;
        self.crash_everywhere(disk, &recorder.take_ops(), &marks, life_number)
    }

    fn take_steps(
        &mut self,
        life: &mut Life,
        script: Option<&[Step]>,
        life_number: usize,
    ) -> Result<(), String> {
        life.open().map_err(|end| format!("at the start: {}", end.describe()))?;
        if let Some(script) = script {
            return script.iter().try_for_each(|step| life.live_through(step));
        }
        let steps = if life_number == 0 { self.effort.steps } else { self.rng.below(4) };
        for _ in 0..steps {
            let step = random_step(&mut self.rng, &life.allowed);
            life.live_through(&step)?;
        }
        Ok(())
    }

    fn crash_everywhere(
        &mut self,
        mut disk: Disk,
        ops: &[Op],
        marks: &[(usize, Arc<Allowed>)],
        life_number: usize,
    ) -> Result<(), String> {
        let bound = if life_number == 0 { self.effort.first } else { self.effort.later };
        let mut seen = HashSet::new();
        for at in 0..=ops.len() {
            let op = at.checked_sub(1).and_then(|i| ops.get(i));
            if let Some(op) = op {
                disk.apply(op);
                self.counts.add(op.kind(), 1);
            }
            let (mark, allowed) = allowed_at(marks, at);
            let told = |choice: &Choice, error: String| {
                let from = at.saturating_sub(4);
                format!(
                    "{error}\n  after a loss of power in life {life_number} behind change {at} \
                     of {}: {choice:?}\n  the last changes: {:?}",
                    ops.len(),
                    ops.get(from..at).unwrap_or_default().iter().map(Op::kind).collect::<Vec<_>>()
                )
            };
            for choice in choices(&disk, bound, &mut self.rng) {
                let state = disk.crash(&choice);
                let fingerprint = state.fingerprint();
                if !seen.insert((fingerprint, mark)) {
                    continue;
                }
                self.images.insert(fingerprint);
                for fate in &choice.fates {
                    self.by_fate[fate_slot(*fate)] += 1;
                }
                self.check(state, allowed, life_number).map_err(|e| told(&choice, e))?;
            }
            let kills = life_number + 1 < self.effort.lives && self.rng.one_in(self.effort.kill);
            if kills {
                // The process ends, the machine does not: the page cache stays.
                self.counts.add("kills", 1);
                self.live(disk.clone(), allowed.clone(), None, life_number + 1)
                    .map_err(|e| told(&Choice::default(), format!("{e}\n  after a kill")))?;
            }
        }
        Ok(())
    }

    /// Recovers a crash state, and again what that leaves; now and then lives on from it.
    fn check(&mut self, state: Disk, allowed: &Allowed, life_number: usize) -> Result<(), String> {
        if let Some(count) = self.by_life.get_mut(life_number) {
            *count += 1;
        }
        let segment = self.segment;
        let recover = || recover(&state, segment, allowed);
        let (found, dropped) = catch_unwind(AssertUnwindSafe(recover))
            .unwrap_or_else(|panic| Err(panic_text(&*panic)))?;
        self.tails += u64::from(dropped);
        if life_number + 1 < self.effort.lives && self.rng.one_in(self.effort.dig) {
            self.live(state, found, None, life_number + 1)?;
        }
        Ok(())
    }
}

/// Recovery, then a loss of power that takes all that is not synced, and recovery again: it must
/// give the same. What was found, and whether a tail was dropped.
fn recover(disk: &Disk, segment: u64, allowed: &Allowed) -> Result<(Allowed, bool), String> {
    let recorder = Recorder::new(disk.clone(), false);
    let mut life = Life::recorded(&recorder, segment, allowed.clone());
    life.open().map_err(super::life::End::describe)?;
    let (found, dropped) = (life.allowed.clone(), life.tail.is_some());
    drop(life);
    let recorder = Recorder::new(recorder.disk().crash(&Choice::default()), false);
    let mut life = Life::recorded(&recorder, segment, found.clone());
    life.open().map_err(|end| format!("recovered again: {}", end.describe()))?;
    match life.tail {
        None => Ok((found, dropped)),
        Some(tail) => Err(format!("a tail was dropped twice: {tail}")),
    }
}

/// What may be found after so many changes, and the number of that rule. When a call has returned
/// and the next one has changed nothing yet, it is what was acknowledged, and nothing else.
fn allowed_at(marks: &[(usize, Arc<Allowed>)], at: usize) -> (usize, &Allowed) {
    let until = marks.partition_point(|(from, _)| *from <= at);
    let here = marks[..until].iter().enumerate().rev();
    let settled = here.take_while(|(_, (from, _))| *from == at).find(|(_, (_, a))| a.is_settled());
    let (number, (_, allowed)) = settled.unwrap_or((until - 1, &marks[until - 1]));
    (number, allowed)
}
