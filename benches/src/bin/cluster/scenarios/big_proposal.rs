//! A proposal far above the limit is refused, on every node, and the cluster goes on.

use std::time::Instant;

use clap::Args;

use super::Place;
use crate::Failure;
use crate::child::Cluster;
use crate::protocol::{Answer, Request};

#[derive(Debug, Args)]
pub(crate) struct Flags {
    #[command(flatten)]
    place: Place,
    #[arg(long, default_value_t = 64)]
    mib: usize,
}

pub(crate) fn run(flags: &Flags) -> Result<(), Failure> {
    let mut cluster = Cluster::start(3, false, &flags.place.dir)?;
    for node in &mut cluster.nodes {
        let answer = node.ask(&Request::Propose { size: flags.mib << 20 })?;
        match answer {
            Answer::Proposed { error: Some(error), outcome } if outcome == "NotApplied" => {
                println!("node {}: refused: {error}", node.id);
            }
            other => return Err(format!("node {}: not refused cleanly: {other:?}", node.id).into()),
        }
        let started = Instant::now();
        node.ask(&Request::Probe)?;
        println!(
            "node {}: the next write took {:.1} ms",
            node.id,
            started.elapsed().as_secs_f64() * 1e3
        );
    }
    Ok(())
}
