//! How long a cluster takes no writes after its leader was killed.

use std::time::Instant;

use clap::Args;
use raftline::Config;

use super::Place;
use crate::Failure;
use crate::child::Cluster;
use crate::protocol::Request;

#[derive(Debug, Args)]
pub(crate) struct Flags {
    #[command(flatten)]
    place: Place,
    /// How often the leader is killed.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    kills: u16,
}

pub(crate) fn run(flags: &Flags) -> Result<(), Failure> {
    let timeout = Config::default().election_timeout().as_secs_f64();
    let mut cluster = Cluster::start(3, false, &flags.place.dir)?;
    let mut took = Vec::new();
    for n in 1..=flags.kills {
        let leader = cluster.leader()?;
        let started = Instant::now();
        let killed = cluster.kill(leader)?;
        cluster.nodes[0].ask(&Request::Probe)?;
        let units = started.elapsed().as_secs_f64() / timeout;
        println!("kill {n:>3}: first write after {units:.2} election timeouts");
        took.push(units);
        cluster.resume(killed)?;
    }
    took.sort_by(f64::total_cmp);
    let (median, worst) = (took[took.len() / 2], took[took.len() - 1]);
    println!(
        "{} kills: median {median:.2}, worst {worst:.2} election timeouts of {timeout:.1} s",
        took.len()
    );
    Ok(())
}
