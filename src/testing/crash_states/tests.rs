//! The checks in a few seconds; the long ones are `cargo bench --bench prove`.

use super::*;

fn require_clean(report: &Report) {
    if let Some(Failure { case, what }) = &report.failure {
        panic!("case {case}: {what}");
    }
}

#[test]
fn every_crash_state_of_a_sample_recovers_to_what_was_acknowledged() {
    let effort = Effort { first: 10, later: 2, dig: 60, lives: 3, steps: 10 };
    let report = explore(&Options { states: 6_000, ..Options::default() }, effort);
    require_clean(&report);
    assert!(report.distinct >= 6_000, "{report:?}");
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
        "after the third",
    ] {
        assert!(report.counts.of(name) > 0, "never met: {name}");
    }
}

#[test]
fn a_case_is_the_same_each_time() {
    let run = || {
        let options = Options { only: Some(19), ..Options::default() };
        let effort = Effort { first: 6, later: 2, dig: 50, lives: 3, steps: 8 };
        let report = explore(&options, effort);
        (report.distinct, report.counts.to_string())
    };
    assert_eq!(run(), run());
}

#[test]
fn a_sample_of_flipped_bits_is_refused_harmless_or_costs_an_unacknowledged_looking_write() {
    // Odd: every place in a byte is met.
    let report = flips(&Options { stride: 37, ..Options::default() });
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
    let report = io_faults(&Options { stride: 5, ..Options::default() });
    require_clean(&report);
    for name in ["IO error", "disk full", "half-way", "power off"] {
        assert!(report.counts.of(name) > 100, "{name}: {}", report.counts);
    }
}
