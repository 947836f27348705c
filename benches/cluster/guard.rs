//! What a loaded cluster does per operation, counted and held against bounds, and how many times the
//! rate of a lone client many clients have on the same cluster: a lost batch shows in both on any
//! machine, where a rate would tell of the machine.

use crate::control::Cluster;
use crate::load::{Cell, Outcome};
use crate::node::Command;

const CLIENTS: usize = 256;

struct Bound {
    what: &'static str,
    reads: u64,
    flags: &'static [&'static str],
    /// Per operation, of all three processes together.
    switches: f64,
    writes: f64,
    /// Times the rate of a lone client, at least.
    gain: f64,
}

/// A third of what is usual, or three times that, and far from what it costs to treat each operation
/// on its own.
const BOUNDS: [Bound; 3] = [
    Bound { what: "durable writes", reads: 0, flags: &[], switches: 0.4, writes: 0.3, gain: 25.0 },
    Bound {
        what: "writes in memory",
        reads: 0,
        flags: &["--memory"],
        switches: 0.2,
        writes: 0.2,
        gain: 25.0,
    },
    Bound {
        what: "linearizable reads",
        reads: 100,
        flags: &[],
        switches: 0.15,
        writes: 0.2,
        gain: 30.0,
    },
];

struct Measured {
    switches: f64,
    writes: f64,
    gain: f64,
}

/// Whether every counter and ratio is within its bound.
pub(crate) fn guard() -> bool {
    println!(
        "of {CLIENTS} clients, per operation     switches (bound)   write calls (bound)   times the rate \
         of one (bound)"
    );
    let mut good = true;
    for bound in &BOUNDS {
        let m = measure(bound);
        let holds =
            m.switches <= bound.switches && m.writes <= bound.writes && m.gain >= bound.gain;
        good &= holds;
        println!(
            "{:<32} {:>10.3} ({:.2}) {:>12.3} ({:.2}) {:>12.0} ({:.0})  {}",
            bound.what,
            m.switches,
            bound.switches,
            m.writes,
            bound.writes,
            m.gain,
            bound.gain,
            if holds { "ok" } else { "BEYOND ITS BOUND" }
        );
    }
    good
}

fn measure(bound: &Bound) -> Measured {
    let mut cluster = Cluster::start(bound.flags);
    let leader = cluster.leader();
    let counted = |c: &Cluster| -> [u64; 2] {
        c.nodes.iter().map(|n| n.counters()).fold([0, 0], |a, b| [a[0] + b[0], a[1] + b[1]])
    };
    let load = |cluster: &mut Cluster, clients, run_ms| -> Outcome {
        let reads = bound.reads;
        let cell = Cell { clients, payload: 128, reads, batch: 1, run_ms, ..Cell::default() };
        let answer = cluster.nodes[leader].ask(&Command::Load(cell));
        let outcome: Outcome = serde_json::from_value(answer).unwrap();
        assert_eq!(outcome.errors, 0, "{}", outcome.first_error);
        outcome
    };
    let alone = load(&mut cluster, 1, 2000);
    let before = counted(&cluster);
    let many = load(&mut cluster, CLIENTS, 4000);
    let after = counted(&cluster);
    let per_op = |at: usize| (after[at] - before[at]) as f64 / many.ops as f64;
    Measured { switches: per_op(0), writes: per_op(1), gain: many.ops_s / alone.ops_s }
}
