//! An empty node enters a cluster with a large state: how long until it votes and holds all of it.

use std::time::Instant;

use clap::Args;

use super::Place;
use crate::Failure;
use crate::child::Cluster;
use crate::protocol::Request;

#[derive(Debug, Args)]
pub(crate) struct Flags {
    #[command(flatten)]
    place: Place,
}

pub(crate) fn run(flags: &Flags) -> Result<(), Failure> {
    let states = [
        ("100 MB in values of 1 MiB", 100, 1 << 20, 8),
        ("1,000,000 values of 16 B", 1_000_000, 16, 10_000),
    ];
    for (what, count, size, batch) in states {
        let mut cluster = Cluster::start(1, false, &flags.place.dir)?;
        let started = Instant::now();
        cluster.nodes[0].ask(&Request::Fill { count, size, batch })?;
        println!("{what}: written in {:.1} s", started.elapsed().as_secs_f64());
        let started = Instant::now();
        cluster.add(2)?;
        println!("{what}: an empty node had caught up in {:.2} s", started.elapsed().as_secs_f64());
    }
    Ok(())
}
