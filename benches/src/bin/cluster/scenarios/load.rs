//! Throughput and latency of closed-loop clients, beside the ceilings of the same run.

use clap::Args;

use super::Place;
use crate::Failure;
use crate::ceilings;
use crate::child::Cluster;
use crate::procfs::peak_mib;
use crate::protocol::{Answer, Load, Loaded, Request};

#[derive(Debug, Args)]
pub(crate) struct Flags {
    #[command(flatten)]
    place: Place,
    /// Clients at a time; a run for each.
    #[arg(long, value_delimiter = ',', default_value = "1,64,256,1024")]
    clients: Vec<usize>,
    /// Bytes of a value.
    #[arg(long, default_value_t = 128)]
    payload: usize,
    /// Seconds per run, after a second of warming up.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Of a hundred operations, how many are linearizable reads.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=100))]
    percent_reads: u64,
    /// Proposals in one call.
    #[arg(long, default_value_t = 1, value_parser = parse_batch)]
    batch: usize,
    /// Keep the log in memory.
    #[arg(long)]
    memory: bool,
    /// Put the clients on a follower.
    #[arg(long)]
    follower: bool,
}

fn parse_batch(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "at least 1".to_owned())
}

pub(crate) fn run(flags: &Flags) -> Result<(), Failure> {
    let mut cluster = Cluster::start(3, flags.memory, &flags.place.dir)?;
    let fsync = ceilings::fsync_p50_us(cluster.dir())?;
    let echo = ceilings::stream_p50_us()?;
    println!(
        "ceilings: fdatasync of three files at once p50 {fsync:.0} us, stream echo p50 {echo:.0} us"
    );
    let side = if flags.follower { "a follower" } else { "the leader" };
    println!(
        "{} log, {} B values, {} % reads, {} per call, clients on {side}",
        if flags.memory { "memory" } else { "durable" },
        flags.payload,
        flags.percent_reads,
        flags.batch
    );
    println!(
        "clients     ops/s    p50 us    p99 us  p99.9 us  failed  CPU us/op (host; others)  peak MiB"
    );
    for clients in &flags.clients {
        let loaded = measure(&mut cluster, flags, *clients)?;
        if *clients == 1 && flags.batch == 1 && flags.percent_reads == 0 {
            let floor = if flags.memory { echo } else { fsync + echo };
            println!(
                "    one client: p50 = {:.2} x the floor of {floor:.0} us",
                loaded.p50_us / floor
            );
        }
        if let Some(e) = loaded.first_failure {
            println!("    first failure: {e}");
        }
    }
    Ok(())
}

fn measure(cluster: &mut Cluster, flags: &Flags, clients: usize) -> Result<Loaded, Failure> {
    let leader = cluster.leader()?;
    let host = if flags.follower { (leader + 1) % cluster.nodes.len() } else { leader };
    // The host's own process first.
    let mut pids: Vec<_> = cluster.nodes.iter().map(|n| n.pid()).collect();
    pids.swap(0, host);
    let request = Request::Load(Load {
        clients,
        payload: flags.payload,
        percent_reads: flags.percent_reads,
        batch: flags.batch,
        seconds: flags.seconds,
        pids: pids.clone(),
    });
    let Answer::Loaded(loaded) = cluster.nodes[host].ask(&request)? else {
        return Err("the node did not run the load".into());
    };
    let per_op = |s: &f64| format!("{:.1}", s * 1e6 / (loaded.operations.max(1)) as f64);
    let cpu: Vec<_> = loaded.cpu_seconds.iter().map(per_op).collect();
    let peaks = pids.iter().map(|pid| Ok(format!("{:.0}", peak_mib(*pid)?)));
    println!(
        "{clients:>7} {:>9.0} {:>9.0} {:>9.0} {:>9.0} {:>7}  {:<25} {}",
        loaded.operations as f64 / loaded.seconds,
        loaded.p50_us,
        loaded.p99_us,
        loaded.p999_us,
        loaded.failed,
        cpu.join("; "),
        peaks.collect::<Result<Vec<_>, Failure>>()?.join(" ")
    );
    Ok(loaded)
}
