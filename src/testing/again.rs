//! How a failure is run again: what the environment asks for, and the line that asks for it.
//! The table of the variables is in [`testing`](super).

const SEED: &str = "RAFTLINE_SEED";
const PLAN: &str = "RAFTLINE_PLAN";
const MINIMISE: &str = "RAFTLINE_MINIMISE";

/// The seed that is to run alone.
#[expect(clippy::panic, reason = "running other seeds would look as if the failure were gone")]
pub(super) fn seed() -> Option<u64> {
    let text = std::env::var(SEED).ok()?;
    match text.trim().parse() {
        Ok(seed) => Some(seed),
        Err(_) => panic!("{SEED}={text} is not a number; {PLAN}='..' takes the line of a plan"),
    }
}

/// The line of the plan that is to run alone.
pub(super) fn plan() -> Option<String> {
    std::env::var(PLAN).ok()
}

/// Whether failures are to be made small.
pub(super) fn minimise() -> bool {
    std::env::var(MINIMISE).is_ok_and(|v| !v.is_empty() && v != "0")
}

/// `RAFTLINE_SEED=7 cargo test my_test`, in the test of that name.
pub(super) fn by_seed(seed: u64) -> String {
    format!("{SEED}={seed} {}", cargo_test())
}

/// The same for any plan.
pub(super) fn by_plan(plan: &impl std::fmt::Display) -> String {
    format!("{PLAN}='{plan}' {}", cargo_test())
}

/// How the same is made small.
pub(super) fn smaller(again: &str) -> String {
    format!("{MINIMISE}=1 {again}")
}

/// A test's thread has its name, unless tests share one.
fn cargo_test() -> String {
    match std::thread::current().name() {
        Some(name) if name != "main" => format!("cargo test {name}"),
        _ => "cargo test".to_owned(),
    }
}
