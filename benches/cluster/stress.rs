//! What happens to a cluster that is at work when something else happens, too.

use std::time::{Duration, Instant};

use crate::control::{Cluster, Proc, free_addr};
use crate::load::{Cell, Outcome};
use crate::node::Command;

const PAYLOAD: usize = 128;

fn outcome(answer: serde_json::Value) -> Outcome {
    serde_json::from_value(answer).unwrap()
}

fn closed(clients: usize, seconds: u64) -> Cell {
    Cell {
        clients,
        payload: PAYLOAD,
        batch: 1,
        warm_ms: 1000,
        run_ms: seconds * 1000,
        ..Cell::default()
    }
}

fn latencies(o: &Outcome) -> String {
    let ms = |us: u32| f64::from(us) / 1e3;
    let [p50, p99, p999, max] = [o.p50_us, o.p99_us, o.p999_us, o.max_us].map(ms);
    format!("{:.0}/s; p50 {p50:.2}, p99 {p99:.2}, p99.9 {p999:.2}, worst {max:.2} ms", o.ops_s)
}

fn number(node: &mut Proc, field: &str) -> u64 {
    node.status()[field].as_u64().unwrap()
}

/// The slowest whole second, as a part of the median one.
fn worst_second(o: &Outcome) -> f64 {
    let mut sorted = o.per_second.clone();
    sorted.sort_unstable();
    sorted[0] as f64 / sorted[sorted.len() / 2] as f64
}

pub(crate) fn steady(seconds: u64) {
    let mut cluster = Cluster::start(&[]);
    let leader = cluster.leader();
    let node = &mut cluster.nodes[leader];
    // Every key exists, and nothing grows any more.
    node.ask(&Command::Fill { count: crate::load::KEYS, size: PAYLOAD, batch: 1000 });
    let before = number(node, "snapshot");
    let o = outcome(node.ask(&Command::Load(closed(64, seconds))));
    let after = number(node, "snapshot");
    println!("64 clients for {seconds} s: {}, {} errors", latencies(&o), o.errors);
    println!(
        "p99 is {:.1} x p50, p99.9 {:.1} x; the slowest second has {:.2} of the median one; the leader's \
         newest snapshot moved from {before} to {after}",
        f64::from(o.p99_us) / f64::from(o.p50_us),
        f64::from(o.p999_us) / f64::from(o.p50_us),
        worst_second(&o)
    );
}

pub(crate) fn overload(seconds: u64, payload: usize) {
    let mut cluster = Cluster::start(&[]);
    let leader = cluster.leader();
    let node = &mut cluster.nodes[leader];
    let closed = |clients, seconds| Cell { payload, ..closed(clients, seconds) };
    let best = outcome(node.ask(&Command::Load(closed(1024, 10))));
    println!("1024 clients that wait: {}", latencies(&best));
    let (term, peak) = (number(node, "term"), node.peak_mib());
    let rate = (3.0 * best.ops_s) as u64;
    let cell = Cell { rate, ..closed(0, seconds) };
    let o = outcome(node.ask(&Command::Load(cell)));
    println!(
        "{rate} calls/s for {seconds} s (begun: {:.0}/s): {}, {} errors{}{}",
        o.offered_s,
        latencies(&o),
        o.errors,
        if o.first_error.is_empty() { "" } else { ", first: " },
        o.first_error
    );
    println!(
        "goodput is {:.2} of that of waiting clients, its slowest second {:.2} of the median one; {} calls \
         refused with Overloaded, p99 after {} us",
        o.ops_s / best.ops_s,
        worst_second(&o),
        o.refusals,
        o.refusal_p99_us
    );
    println!(
        "peak memory of the leader {peak:.0} MiB before, {:.0} MiB after; elections: {}",
        node.peak_mib(),
        number(node, "term") - term
    );
    let again = outcome(node.ask(&Command::Load(closed(1024, 5))));
    println!("1024 clients that wait, afterwards: {:.2} of before", again.ops_s / best.ops_s);
}

pub(crate) fn join_under_load() {
    let mut cluster = Cluster::start(&[]);
    let leader = cluster.leader();
    cluster.nodes[leader].ask(&Command::Fill { count: 100, size: 1 << 20, batch: 10 });
    let via = cluster.nodes[leader].addr.clone();
    cluster.nodes[leader].tell(&Command::Load(closed(64, 20)));
    std::thread::sleep(Duration::from_secs(9));
    let begin = Instant::now();
    let mut joiner = cluster.spawn(4, free_addr(), Some(via));
    while joiner.status()["role"] != "follower" {
        assert!(begin.elapsed() < Duration::from_secs(60), "it never votes: {}", joiner.status());
        std::thread::sleep(Duration::from_millis(5));
    }
    let took = begin.elapsed().as_secs_f64();
    let o = outcome(cluster.nodes[leader].answer());
    println!("64 clients while a node joins 100 MB of state, in {took:.1} s: {}", latencies(&o));
    let median = |seconds: &[u64]| {
        let mut sorted = seconds.to_vec();
        sorted.sort_unstable();
        sorted[sorted.len() / 2] as f64
    };
    let (usual, after) = (median(&o.per_second[..7]), median(&o.per_second[12..19]));
    let seconds: Vec<String> =
        o.per_second.iter().map(|n| format!("{:.2}", *n as f64 / usual)).collect();
    println!(
        "each second, as a part of the median before (it starts in the 9th): {}",
        seconds.join(" ")
    );
    // The cluster of four has the cores that the cluster of three had.
    let lowest = *o.per_second[8..12].iter().min().unwrap() as f64;
    println!(
        "the lowest of the 9th to 12th: {:.2} of the median before, {:.2} of that afterwards",
        lowest / usual,
        lowest / after
    );
}

pub(crate) fn restart() {
    let mut cluster = Cluster::start(&["--keep-log"]);
    let leader = cluster.leader();
    let count = 1_000_000;
    cluster.nodes[leader].ask(&Command::Fill { count, size: 16, batch: 1000 });
    let last = number(&mut cluster.nodes[leader], "last_index");
    for node in &mut cluster.nodes {
        node.kill();
    }
    let begin = Instant::now();
    for place in 0..3 {
        let (id, addr) = (cluster.nodes[place].id, cluster.nodes[place].addr.clone());
        let via = (place > 0).then(|| cluster.nodes[0].addr.clone());
        cluster.nodes[place] = cluster.spawn(id, addr, via);
    }
    cluster.leader();
    let elected = begin.elapsed().as_secs_f64();
    cluster.nodes[0].ask(&Command::Probe);
    let served = begin.elapsed().as_secs_f64();
    println!(
        "{count} commands in {last} log entries, no snapshot: all killed, started, a leader after {elected:.2} s, a write \
         after {served:.2} s"
    );
}

pub(crate) fn state(mb: &[u64]) {
    for mb in mb {
        let mut cluster = Cluster::start(&[]);
        let leader = cluster.leader();
        let node = &mut cluster.nodes[leader];
        let size = 10_000;
        node.ask(&Command::Fill { count: mb * 100, size, batch: 50 });
        let o = outcome(node.ask(&Command::Load(closed(64, 10))));
        let peak = cluster.nodes.iter().map(Proc::peak_mib).fold(0.0, f64::max);
        println!("{mb:>5} MB of state: {}, peak memory {peak:.0} MiB", latencies(&o));
    }
}
