//! What ends the node: the first part that cannot go on says why, and everything stops.
//!
//! It never decides what is fatal, and never stops anything itself: the supervisor waits for it.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::error::Error;

/// Where every part of the node reports that it cannot go on; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct FatalSink {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    reported: bool,
    error: Option<Error>,
}

impl FatalSink {
    /// Reports; the first report is the cause, later ones are its consequences and are dropped.
    /// Never blocks; from any thread.
    pub(crate) fn report(&self, error: Error) {
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.reported {
            state.reported = true;
            state.error = Some(error);
            self.shared.wake.notify_one();
        }
    }

    #[cfg(test)]
    /// Whether anything was reported.
    pub(crate) fn is_reported(&self) -> bool {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).reported
    }

    /// Waits for the report and takes it. For one waiter: nobody else gets it.
    ///
    /// # Cancel safety
    /// A report is not lost when the future is dropped.
    pub(crate) async fn wait(&self) -> Error {
        loop {
            let woken = self.shared.wake.notified();
            let error = {
                let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.error.take()
            };
            if let Some(error) = error {
                return error;
            }
            woken.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_report_wins_and_is_not_lost() {
        let sink = FatalSink::default();
        assert!(!sink.is_reported());
        let waiter = tokio::spawn({
            let sink = sink.clone();
            async move { sink.wait().await }
        });
        tokio::task::yield_now().await;
        waiter.abort();
        let _ = waiter.await;
        sink.report(Error::NoLeader);
        sink.report(Error::Dropped);
        assert!(sink.is_reported());
        assert!(matches!(sink.wait().await, Error::NoLeader));
    }
}
