//! What the machine gives at best, measured in the same run: every figure of a peer is to be read
//! beside these.

pub mod echo;
mod engine;
#[path = "../../../cluster/echo.rs"]
mod service;
mod sync;

use std::time::Duration;

use peers::Result;
use peers::results::{CeilingRow, Ceilings};

/// Measures all of them.
pub fn measure(clients: &[usize], payload: usize, window: Duration) -> Result<Ceilings> {
    let mut ceilings = Ceilings {
        sync_alone_us: sync::median_us(1)?,
        sync_of_three_us: sync::median_us(3)?,
        rows: Vec::new(),
    };
    println!(
        "fdatasync p50 {} us alone, {} us with three files at once",
        ceilings.sync_alone_us, ceilings.sync_of_three_us
    );
    for &clients in clients {
        let echo = echo::measure(clients, payload, window)?;
        let engine_ops_s = engine::entries_per_second(clients, payload, window)?;
        println!(
            "{clients:>5} in flight: stream echo {:>9.0} /s, p50 {} us; bare engine {engine_ops_s:>9.0} /s",
            echo.ops_s, echo.p50_us
        );
        ceilings.rows.push(CeilingRow { clients, echo, engine_ops_s });
    }
    Ok(ceilings)
}
