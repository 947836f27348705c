//! What is measured.

use std::time::{Duration, Instant};

use raftline::Config;

use crate::ceilings;
use crate::control::{Cluster, free_addr};
use crate::load::{Cell, Outcome};
use crate::node::Command;

#[derive(clap::Args)]
pub(crate) struct LoadArgs {
    /// Bytes per command.
    #[arg(long, default_value_t = 128)]
    payload: usize,
    /// Clients, one row each.
    #[arg(long, value_delimiter = ',', default_value = "1,64,256,1024")]
    clients: Vec<usize>,
    /// Only linearizable reads.
    #[arg(long)]
    reads: bool,
    /// Percent of reads among the calls.
    #[arg(long, default_value_t = 0)]
    mixed: u64,
    /// Proposals per call.
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Calls begun each second whether earlier ones have come back or not, instead of clients that
    /// wait.
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Nodes; all vote.
    #[arg(long, default_value_t = 3)]
    nodes: u64,
    /// Measured seconds per row.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Keeps the log in memory.
    #[arg(long)]
    memory: bool,
    /// The Store keeps nothing: what everything else costs.
    #[arg(long)]
    no_store: bool,
    /// Clients and Store on a current-thread runtime.
    #[arg(long)]
    single_thread: bool,
    /// Whom the clients ask.
    #[arg(long, value_parser = ["leader", "follower"], default_value = "leader")]
    on: String,
}

pub(crate) fn load(args: &LoadArgs) {
    let sync = if args.memory { 0 } else { ceilings::fdatasync_us() };
    let rtt = ceilings::stream_rtt_us(args.single_thread);
    let bare = ceilings::stream_rtt_us(true);
    println!(
        "ceilings: fdatasync p50 {sync} us (three files at once); stream round trip p50 {rtt} us \
         in the clients' kind of runtime, {bare} us on bare current-thread runtimes"
    );
    let mut flags = Vec::new();
    flags.extend(args.memory.then_some("--memory"));
    flags.extend(args.no_store.then_some("--no-store"));
    flags.extend(args.single_thread.then_some("--single-thread"));
    let mut cluster = Cluster::of(args.nodes, &flags);
    let leader = cluster.leader();
    let asked = if args.on == "leader" { leader } else { (leader + 1) % cluster.nodes.len() };
    println!(
        "clients      ops/s    p50us    p99us  p99.9us    maxus errors  cpu us/op (asked, others)  peak MiB"
    );
    for &clients in &args.clients {
        let cell = Cell {
            clients,
            payload: args.payload.max(8),
            reads: if args.reads { 100 } else { args.mixed },
            batch: args.batch,
            rate: args.rate,
            warm_ms: 1000,
            run_ms: args.seconds * 1000,
        };
        let before: Vec<f64> = cluster.nodes.iter().map(|n| n.cpu()).collect();
        let answer = cluster.nodes[asked].ask(&Command::Load(cell.clone()));
        let spent: Vec<f64> =
            cluster.nodes.iter().zip(before).map(|(n, before)| n.cpu() - before).collect();
        let o: Outcome = serde_json::from_value(answer).unwrap();
        // Processor time covers the warm-up, too: as many operations per second, roughly.
        let total = o.ops_s * (cell.warm_ms + cell.run_ms) as f64 / 1e3;
        let per_op: Vec<String> =
            order(asked, spent.len()).map(|i| format!("{:.1}", spent[i] * 1e6 / total)).collect();
        let peak = cluster.nodes.iter().map(|n| n.peak_mib()).fold(0.0, f64::max);
        println!(
            "{clients:>7} {:>10.0} {:>8} {:>8} {:>8} {:>8} {:>6}  {}  {peak:.0}",
            o.ops_s,
            o.p50_us,
            o.p99_us,
            o.p999_us,
            o.max_us,
            o.errors,
            per_op.join(" ")
        );
        if args.rate > 0 {
            println!(
                "        offered {:.0}/s, refused {} with p99 {} us",
                o.offered_s, o.refusals, o.refusal_p99_us
            );
        }
        if !o.first_error.is_empty() {
            println!("        first error: {}", o.first_error);
        }
        if clients == 1 && !args.reads && args.mixed == 0 {
            let floor = f64::from(sync + rtt);
            println!(
                "        one client: p50 is {:.2} x (fsync + round trip)",
                f64::from(o.p50_us) / floor
            );
        }
    }
}

fn order(first: usize, of: usize) -> impl Iterator<Item = usize> {
    (0..of).map(move |i| (first + i) % of)
}

pub(crate) fn failover(kills: usize) {
    let timeout = Config::default().election_timeout().as_secs_f64() * 1e3;
    let mut cluster = Cluster::start(&[]);
    let mut times = Vec::new();
    for n in 1..=kills {
        let leader = cluster.leader();
        cluster.wait("everybody is up to date", |s| s["applied"] == s["last_index"]);
        let survivor = (leader + 1) % 3;
        let via = cluster.nodes[survivor].addr.clone();
        let begin = Instant::now();
        cluster.nodes[leader].kill();
        cluster.nodes[survivor].ask(&Command::Probe);
        let ms = begin.elapsed().as_secs_f64() * 1e3;
        println!(
            "kill {n:>2}: first write after {ms:>6.0} ms = {:.2} election timeouts",
            ms / timeout
        );
        times.push(ms / timeout);
        let (id, addr) = (cluster.nodes[leader].id, cluster.nodes[leader].addr.clone());
        let again = cluster.spawn(id, addr, Some(via));
        cluster.nodes[leader] = again;
    }
    times.sort_by(f64::total_cmp);
    println!(
        "election timeouts to the first write: median {:.2}, worst {:.2}, over {kills} kills",
        times[times.len() / 2],
        times.last().unwrap()
    );
}

pub(crate) fn idle(seconds: u64) {
    let mut cluster = Cluster::start(&[]);
    cluster.leader();
    std::thread::sleep(Duration::from_secs(2));
    let cpu = |c: &Cluster| c.nodes.iter().map(|n| n.cpu()).collect::<Vec<_>>();
    let (before, begin) = (cpu(&cluster), Instant::now());
    std::thread::sleep(Duration::from_secs(seconds));
    let spent: Vec<f64> = cpu(&cluster).iter().zip(before).map(|(a, b)| a - b).collect();
    let percent = spent.iter().sum::<f64>() / begin.elapsed().as_secs_f64() * 100.0;
    println!(
        "idle for {seconds} s: {percent:.2} % of a core for all three nodes ({spent:?} s each)"
    );
}

pub(crate) fn join() {
    for (what, count, size, batch) in
        [("100 MB of state", 100, 1 << 20, 10), ("1,000,000 small entries", 1_000_000, 16, 10_000)]
    {
        let mut cluster = Cluster::start(&[]);
        let leader = cluster.leader();
        let filled = cluster.nodes[leader].ask(&Command::Fill { count, size, batch });
        println!("{what}: written in {:.1} s", filled["seconds"].as_f64().unwrap());
        let goal = cluster.nodes[leader].status()["commit"].as_u64().unwrap();
        let begin = Instant::now();
        let via = cluster.nodes[leader].addr.clone();
        let mut joiner = cluster.spawn(4, free_addr(), Some(via));
        loop {
            let s = joiner.status();
            if s["applied"].as_u64().is_some_and(|a| a >= goal) && s["role"] == "follower" {
                break;
            }
            assert!(begin.elapsed() < Duration::from_secs(120), "never caught up: {s}");
            std::thread::sleep(Duration::from_millis(5));
        }
        println!(
            "{what}: an empty node holds it and votes after {:.2} s",
            begin.elapsed().as_secs_f64()
        );
    }
}

pub(crate) fn big_proposal() {
    let mut cluster = Cluster::start(&[]);
    let leader = cluster.leader();
    for at in [leader, (leader + 1) % 3] {
        let answer = cluster.nodes[at].ask(&Command::Big { size: 64 << 20 });
        println!("64 MiB on node {}: {}", cluster.nodes[at].id, answer["outcome"]);
        let after = cluster.nodes[at].ask(&Command::Probe);
        println!("the next write took {:.1} ms", after["ms"].as_f64().unwrap());
    }
}
