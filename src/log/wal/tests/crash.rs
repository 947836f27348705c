//! Losses of power: at every call of every workload, with every fate of what was not synced.

use super::*;
use crate::testing::log_suite::random_batch;
use crate::testing::rng::Rng;
use crate::testing::vfs::{CrashStyle, Fault};

/// Fates tried per call of a workload; a release tries many more.
const FATES: u64 = 24;
/// Walks of random calls with many crashes each.
const WALKS: u64 = 200;
const CRASHES_PER_WALK: usize = 12;

fn styles() -> impl Iterator<Item = CrashStyle> {
    let seeded = (0..FATES).map(CrashStyle::Seeded);
    [CrashStyle::KeepAll, CrashStyle::LoseAll].into_iter().chain(seeded)
}

/// Runs a workload until a call fails; the states that may be found then: the one acknowledged
/// last, and those that the failed call passes through.
fn run_until_failure(vfs: &FaultyVfs, steps: &[Step]) -> (Vec<Recovered>, bool) {
    let mut acknowledged = Recovered::default();
    let Ok((mut wal, ..)) = load(vfs) else { return (vec![acknowledged], true) };
    for step in steps {
        let states = step.states(&acknowledged);
        if step.run(&mut wal).is_err() {
            let mut allowed = vec![acknowledged];
            allowed.extend(states);
            return (allowed, true);
        }
        acknowledged.clone_from(states.last().unwrap());
    }
    (vec![acknowledged], false)
}

/// Recovers, twice, and goes on; returns what was found.
fn check_recovery(vfs: &FaultyVfs, allowed: &[Recovered], what: &str) {
    let (wal, found, _) = load(vfs).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(allowed.contains(&found), "{what}: found {found:?}, allowed {allowed:?}");
    drop(wal);
    // Whatever was found must be as durable as if it had been acknowledged.
    let again = vfs.crash(CrashStyle::LoseAll);
    let (mut wal, second, tail) = load(&again).unwrap_or_else(|e| panic!("{what}, again: {e}"));
    assert_eq!(second, found, "{what}: recovery twice differs");
    assert_eq!(tail, None, "{what}: a dropped tail is dropped once");
    if found.identity.is_none() {
        return;
    }
    let last = found.compacted.index + found.entries.len() as u64;
    let step = Step::Append(vec![entries(last + 1, last + 2, 7, 700), vote(7, 7)]);
    step.run(&mut wal).unwrap();
    drop(wal);
    let (_, third, _) = load(&again.crash(CrashStyle::LoseAll)).unwrap();
    assert_eq!(third, *step.states(&found).last().unwrap(), "{what}: what was added");
}

#[test]
fn every_loss_of_power_leaves_what_was_acknowledged_and_at_most_what_was_issued() {
    let mut states = 0;
    for (name, steps) in scripts() {
        for call in 1.. {
            let vfs = FaultyVfs::new();
            vfs.fail_at(call, Fault::PowerOff);
            let (allowed, failed) = run_until_failure(&vfs, &steps);
            for style in styles() {
                let what = format!("{name}: power off at call {call}, {style:?}");
                check_recovery(&vfs.crash(style), &allowed, &what);
                states += 1;
            }
            if !failed {
                break;
            }
        }
    }
    assert!(states > 3000, "{states} states");
}

/// A loss of power during recovery, at each of its calls, changes nothing.
#[test]
fn recovery_may_be_interrupted_anywhere() {
    for (name, steps) in scripts() {
        let vfs = FaultyVfs::new();
        run_until_failure(&vfs, &steps);
        let total = vfs.calls();
        for call in (1..=total).step_by(3) {
            let vfs = FaultyVfs::new();
            vfs.fail_at(call, Fault::PowerOff);
            let (allowed, _) = run_until_failure(&vfs, &steps);
            for seed in 0..2 {
                let crashed = vfs.crash(CrashStyle::Seeded(seed));
                for inner in 1.. {
                    let again = crashed.fork();
                    again.fail_at(inner, Fault::PowerOff);
                    let done = load(&again).is_ok();
                    let what = format!("{name}: call {call}, seed {seed}, recovery call {inner}");
                    check_recovery(&again.crash(CrashStyle::Seeded(inner)), &allowed, &what);
                    if done {
                        break;
                    }
                }
            }
        }
    }
}

/// Many crashes of one directory, with random calls between: losses of power, kills, failed
/// calls, also during recovery. What one recovery dropped must not come back at a later one, what
/// one has found must stay, and no vote or term regresses.
#[test]
fn a_long_life_with_many_crashes_loses_nothing() {
    let mut tails = 0;
    for seed in 0..WALKS {
        let mut rng = Rng::new(seed);
        let mut vfs = FaultyVfs::new();
        let mut allowed = vec![Recovered::default()];
        for crash in 0..CRASHES_PER_WALK {
            let what = format!("seed {seed}, crash {crash}");
            if rng.one_in(3) {
                // Recovery, interrupted, or not.
                let fault = random_fault(&mut rng);
                vfs.fail_at(1 + rng.below(40), fault);
                if let Ok((_, found, _)) = load(&vfs) {
                    assert!(allowed.contains(&found), "{what}: {found:?}, allowed {allowed:?}");
                    allowed = vec![found];
                }
                vfs = settle(vfs, fault, &mut rng);
            }
            let (mut wal, found, tail) = load(&vfs).unwrap_or_else(|e| panic!("{what}: {e}"));
            tails += usize::from(tail.is_some());
            assert!(allowed.contains(&found), "{what}: found {found:?}, allowed {allowed:?}");
            let fault = random_fault(&mut rng);
            vfs.fail_at(1 + rng.below(40), fault);
            allowed = live(&mut wal, found, &mut rng);
            drop(wal);
            vfs = settle(vfs, fault, &mut rng);
        }
    }
    assert!(tails > WALKS as usize / 2, "only {tails} dropped tails");
}

fn random_fault(rng: &mut Rng) -> Fault {
    match rng.below(5) {
        0 => Fault::Io,
        1 | 2 => Fault::Short,
        _ => Fault::PowerOff,
    }
}

/// What the next process finds: after a mere kill the page cache is still there.
fn settle(vfs: FaultyVfs, fault: Fault, rng: &mut Rng) -> FaultyVfs {
    vfs.disarm();
    if fault == Fault::PowerOff || rng.one_in(2) {
        return vfs.crash(CrashStyle::Seeded(rng.next_u64()));
    }
    vfs
}

/// Random calls until one fails; the states that may be found then.
fn live(wal: &mut Wal, mut model: Recovered, rng: &mut Rng) -> Vec<Recovered> {
    for boot in 1.. {
        let last = model.compacted.index + model.entries.len() as u64;
        let step = match (model.identity, model.snapshot) {
            (None, _) => Step::Identify(boot),
            (_, Some(s)) if rng.one_in(5) && s.position.index <= last => Step::Compact(s.position),
            _ if rng.one_in(20) => Step::Identify(boot),
            _ => {
                let mut after = model.clone();
                let batches = (0..=rng.below(3)).map(|_| {
                    let batch = random_batch(rng, &after, 2500);
                    apply(&mut after, &batch);
                    batch
                });
                Step::Append(batches.collect())
            }
        };
        let states = step.states(&model);
        if step.run(wal).is_err() {
            let mut allowed = vec![model];
            allowed.extend(states);
            return allowed;
        }
        model.clone_from(states.last().unwrap());
    }
    vec![model]
}

/// A sync fails, the process ends, the next one recovers from the page cache what the disk does
/// not have, and the power goes while it writes it again: never taken for damage.
#[test]
fn a_loss_of_power_while_an_unproven_write_is_taken_over_is_no_damage() {
    let mut found = [0, 0];
    for seed in 0..200 {
        let vfs = FaultyVfs::new();
        let (mut wal, ..) = load(&vfs).unwrap();
        wal.identify(&identity(1)).unwrap();
        wal.append(&[vote(1, 1)]).unwrap();
        wal.append(&[entries(1, 2, 1, 300)]).unwrap();
        vfs.fail_at(2, Fault::Short);
        wal.append(&[entries(3, 3, 1, 700)]).unwrap_err();
        drop(wal);
        // The last calls of recovery write the new segment, and cut the old one.
        let whole = vfs.fork();
        drop(load(&whole).unwrap());
        for back in 0..6 {
            let (vfs, spent) = (vfs.duplicate(), whole.calls());
            vfs.fail_at(spent - back, Fault::PowerOff);
            drop(load(&vfs));
            let crashed = vfs.crash(CrashStyle::Seeded(seed));
            let (_, recovered, _) =
                load(&crashed).unwrap_or_else(|e| panic!("seed {seed}, call -{back}: {e}"));
            assert!((2..=3).contains(&recovered.entries.len()));
            found[recovered.entries.len() - 2] += 1;
        }
    }
    assert!(found[0] > 50 && found[1] > 50, "{found:?}");
}
