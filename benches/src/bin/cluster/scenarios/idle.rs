//! What a cluster costs that nobody uses.

use std::thread;
use std::time::{Duration, Instant};

use clap::Args;

use super::Place;
use crate::Failure;
use crate::child::Cluster;
use crate::procfs::{cpu_seconds, peak_mib};

/// Until joining and electing are over.
const SETTLE: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
pub(crate) struct Flags {
    #[command(flatten)]
    place: Place,
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
}

pub(crate) fn run(flags: &Flags) -> Result<(), Failure> {
    let cluster = Cluster::start(3, false, &flags.place.dir)?;
    let pids: Vec<_> = cluster.nodes.iter().map(|n| n.pid()).collect();
    let cpu = || pids.iter().map(|pid| cpu_seconds(*pid)).collect::<Result<Vec<_>, _>>();
    thread::sleep(SETTLE);
    let (before, started) = (cpu()?, Instant::now());
    thread::sleep(Duration::from_secs(flags.seconds));
    let (after, seconds) = (cpu()?, started.elapsed().as_secs_f64());
    let mut total = 0.0;
    for ((node, before), after) in cluster.nodes.iter().zip(before).zip(after) {
        let percent = (after - before) / seconds * 100.0;
        total += percent;
        println!("node {}: {percent:.2} % of a core, {:.0} MiB", node.id, peak_mib(node.pid())?);
    }
    println!("three idle nodes: {total:.2} % of a core over {seconds:.0} s");
    Ok(())
}
