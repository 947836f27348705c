//! For tests under paused time: waits for what other tasks and threads do, and fails instead of
//! waiting for ever.

use std::time::Duration;

use tokio::time::Instant;

/// Of paused time, which stands still while a blocking thread works; longer than any timeout
/// under test.
const LIMIT: Duration = Duration::from_secs(100);

/// Waits until it gives something.
pub(crate) async fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(started.elapsed() < LIMIT, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
