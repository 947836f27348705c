//! The checks in a few seconds; the long ones are `cargo bench --bench prove`.

#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::log::Recovered;
use crate::types::{Entry, HardState, Position};

fn require_clean(report: &Report) {
    if let Some(Failure { case, what }) = &report.failure {
        panic!("seed 1, case {case}, after {} states: {what}", report.distinct);
    }
}

#[test]
fn every_crash_state_of_a_sample_recovers_to_what_was_acknowledged() {
    let effort = Effort { first: 10, later: 2, dig: 60, kill: 8, lives: 3, steps: 10 };
    let report = explore(&Options { states: 4_000, ..Options::default() }, |_| effort);
    require_clean(&report);
    assert!(report.distinct >= 4_000, "{report:?}");
    for name in [
        "lost or old",
        "zero",
        "garbage",
        "torn",
        "one wrong bit",
        "kills",
        "failed sync",
        "set length",
        "rename",
        "remove",
        "tails dropped",
        "after a later one",
    ] {
        assert!(report.counts.of(name) > 0, "never met: {name}");
    }
}

#[test]
fn a_case_is_the_same_each_time() {
    let run = || {
        let options = Options { only: Some(19), ..Options::default() };
        let effort = Effort { first: 6, later: 2, dig: 50, kill: 8, lives: 3, steps: 8 };
        let report = explore(&options, |_| effort);
        (report.distinct, report.counts.to_string())
    };
    assert_eq!(run(), run());
}

#[test]
fn a_sample_of_flipped_bits_is_refused_harmless_or_costs_an_unacknowledged_looking_write() {
    // Odd: every place in a byte is met.
    let report = flips(&Options { stride: 83, ..Options::default() });
    require_clean(&report);
    for name in [
        "log: harmless",
        "log: refused in its file",
        "log: last write dropped, reported",
        "identity: refused",
        "snapshot: refused",
    ] {
        assert!(report.counts.of(name) > 0, "never met: {name}");
    }
}

#[test]
fn a_sample_of_failing_calls_stops_the_log_and_loses_nothing() {
    let report = io_faults(&Options { stride: 17, ..Options::default() });
    require_clean(&report);
    for name in ["IO error", "disk full", "half-way", "power off"] {
        assert!(report.counts.of(name) > 100, "{name}: {}", report.counts);
    }
}

/// A check that cannot fail is no check: a disk that forgets what it said is durable is noticed.
#[test]
fn a_disk_that_lies_is_caught() {
    let effort = Effort { first: 24, later: 2, dig: 200, kill: 50, lives: 2, steps: 10 };
    for (lie, of) in [
        ("sync", "append and rotate"),
        ("sync directory", "append and rotate"),
        ("sync", "snapshots"),
        ("sync directory", "snapshots"),
    ] {
        let scripts = script::scripts();
        let (_, steps) = scripts.iter().find(|(name, _)| *name == of).unwrap();
        let mut explorer = Explorer::new(1, 1024, effort);
        explorer.lie = Some(lie);
        let error = explorer.explore(Some(steps)).unwrap_err();
        assert!(explorer.images.len() < 200, "{lie}, {of}: late: {}", explorer.images.len());
        assert!(error.contains("after a loss of power"), "{lie}, {of}: {error}");
    }
}

/// What a report says of a log that is not allowed tells what rule it breaks.
#[test]
fn every_verdict_is_given() {
    let log = |term, vote, last: u64| {
        let entry = |index| Entry { term: 1, index, ..Entry::default() };
        Recovered {
            hard_state: HardState { term, vote, commit: 0 },
            entries: (1..=last).map(entry).collect(),
            ..Recovered::default()
        }
    };
    let allowed = life::Allowed::nothing().settled(log(3, 2, 5));
    assert_eq!(allowed.judge(&log(3, 2, 5)), Ok(()));
    let mut compacted = log(3, 2, 5);
    compacted.compacted = Position { index: 2, term: 1 };
    compacted.entries.drain(..2);
    let after_compaction = allowed.settled(compacted);
    for (allowed, found, verdict) in [
        (&allowed, log(2, 2, 5), "the term regressed"),
        (&allowed, log(3, 1, 5), "the vote is another"),
        (&allowed, log(3, 2, 6), "what was truncated came back"),
        (&allowed, log(3, 2, 4), "what was acknowledged is lost"),
        (&after_compaction, log(3, 2, 5), "what was compacted came back"),
    ] {
        let error = allowed.judge(&found).unwrap_err();
        assert!(error.starts_with(verdict), "{error}");
    }
}
