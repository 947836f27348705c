//! What the fuzzers run: functions from bytes to nothing, which panic when a rule is broken.
//!
//! They live in the crate so that its own tests run them on the stored corpus (`tests/fuzz/`) and
//! on every input that ever failed; the package in `fuzz/` adds libFuzzer's search. Each is
//! deterministic: no clock, no thread, no randomness, so that an input repeats its run. What is
//! wrong is said by a panic, as in any test.

mod gate;
mod input;
mod log;
mod records;
mod snapshot;
#[cfg(test)]
mod tests;
mod wire;

pub use gate::gate;
pub use log::{identity, log_open};
pub use records::records;
pub use snapshot::snapshot_stream;
pub use wire::wire;

/// What timers are registered with; none of them ever comes due, because everything that is
/// waited for is there.
fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: std::sync::OnceLock<tokio::runtime::Runtime> = std::sync::OnceLock::new();
    RUNTIME.get_or_init(|| {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_time().build().unwrap_or_else(|e| panic!("a runtime: {e}"))
    })
}

/// A fuzz function.
pub type Target = fn(&[u8]);

/// Every fuzz function by name; `fuzz/run` and the tests know no other list.
pub const TARGETS: [(&str, Target); 6] = [
    ("wire", wire),
    ("gate", gate),
    ("log_open", log_open),
    ("snapshot_stream", snapshot_stream),
    ("identity", identity),
    ("records", records),
];
