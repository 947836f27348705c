//! What a loaded cluster does per operation, counted and held against bounds: a lost batch shows
//! here on any machine, where a rate would tell of the machine.

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
}

/// Three times what is usual, and far below what it costs to treat each operation on its own.
const BOUNDS: [Bound; 3] = [
    Bound { what: "durable writes", reads: 0, flags: &[], switches: 0.4, writes: 0.3 },
    Bound { what: "writes in memory", reads: 0, flags: &["--memory"], switches: 0.2, writes: 0.2 },
    Bound { what: "linearizable reads", reads: 100, flags: &[], switches: 0.15, writes: 0.2 },
];

/// Whether every counter is within its bound.
pub(crate) fn guard() -> bool {
    println!("of {CLIENTS} clients, per operation     switches (bound)   write calls (bound)");
    let mut good = true;
    for bound in &BOUNDS {
        let (ops, [switches, writes]) = measure(bound);
        let (switches, writes) = (switches as f64 / ops, writes as f64 / ops);
        let holds = switches <= bound.switches && writes <= bound.writes;
        good &= holds;
        println!(
            "{:<32} {switches:>10.3} ({:.2}) {writes:>12.3} ({:.2})  {}",
            bound.what,
            bound.switches,
            bound.writes,
            if holds { "ok" } else { "ABOVE ITS BOUND" }
        );
    }
    good
}

fn measure(bound: &Bound) -> (f64, [u64; 2]) {
    let mut cluster = Cluster::start(bound.flags);
    let leader = cluster.leader();
    let counted = |c: &Cluster| -> [u64; 2] {
        c.nodes.iter().map(|n| n.counters()).fold([0, 0], |a, b| [a[0] + b[0], a[1] + b[1]])
    };
    let before = counted(&cluster);
    let cell = Cell {
        clients: CLIENTS,
        payload: 128,
        reads: bound.reads,
        batch: 1,
        run_ms: 4000,
        ..Cell::default()
    };
    let answer = cluster.nodes[leader].ask(&Command::Load(cell));
    let after = counted(&cluster);
    let outcome: Outcome = serde_json::from_value(answer).unwrap();
    assert_eq!(outcome.errors, 0, "{}", outcome.first_error);
    (outcome.ops as f64, [after[0] - before[0], after[1] - before[1]])
}
