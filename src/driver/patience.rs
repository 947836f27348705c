//! Watches the Store at work and warns when it is slow, never more often than is useful.
//!
//! It never ends anything: an `apply` takes as long as it takes.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use slog::{Logger, warn};
use tokio::time::Instant;

/// Between two warnings of one kind.
const WARN_INTERVAL: Duration = Duration::from_secs(10);
/// The shortest patience; a shorter one would be all warnings.
const MIN_PATIENCE: Duration = Duration::from_millis(1);

/// Lets one warning pass per interval and counts the others.
#[derive(Debug, Default)]
pub(crate) struct Limiter {
    last: Option<Instant>,
    unsaid: u64,
}

impl Limiter {
    /// Some, with the number of warnings that were held back before, when this one may be said.
    pub(crate) fn admit(&mut self) -> Option<u64> {
        let now = Instant::now();
        if self.last.is_some_and(|last| now.duration_since(last) < WARN_INTERVAL) {
            self.unsaid += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[derive(Debug)]
pub(crate) struct Patience {
    slow: Duration,
    limiter: Limiter,
    logger: Logger,
}

impl Patience {
    pub(crate) fn new(slow: Duration, logger: Logger) -> Self {
        Self { slow: slow.max(MIN_PATIENCE), limiter: Limiter::default(), logger }
    }

    /// Runs a call of the Store to its end; warns while it hangs, and after it was slow.
    pub(crate) async fn watch<F: Future>(
        &mut self,
        call: &'static str,
        index: u64,
        proposals: usize,
        future: F,
    ) -> F::Output {
        let started = Instant::now();
        let mut future = pin!(future);
        // Most calls never wait: they cost no timer.
        let output = match futures::poll!(future.as_mut()) {
            Poll::Ready(output) => output,
            Poll::Pending => {
                let mut wait = self.slow;
                loop {
                    match tokio::time::timeout(wait, future.as_mut()).await {
                        Ok(output) => break output,
                        Err(_) => {
                            wait *= 2;
                            self.say("the store is still busy", call, index, proposals, started);
                        }
                    }
                }
            }
        };
        if started.elapsed() > self.slow {
            self.say("the store was slow", call, index, proposals, started);
        }
        output
    }

    fn say(
        &mut self,
        what: &'static str,
        call: &'static str,
        index: u64,
        proposals: usize,
        started: Instant,
    ) {
        if let Some(unsaid) = self.limiter.admit() {
            warn!(self.logger, "{}", what; "call" => call, "index" => index,
                "proposals" => proposals, "elapsed" => ?started.elapsed(), "unsaid" => unsaid);
        }
    }
}
