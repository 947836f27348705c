//! The first fatal error of a node.
use crate::error::Error;
use std::sync::{Mutex, PoisonError};
use tokio::sync::Notify;

#[derive(Debug, Default)]
pub(crate) struct FatalSink {
    first: Mutex<Option<Error>>,
    wake: Notify,
}
impl FatalSink {
    pub(crate) fn report(&self, error: Error) {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.wake.notify_one();
    }
    pub(crate) async fn wait(&self) -> Error {
        loop {
            let woken = self.wake.notified();
            if let Some(e) = self.first.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return e;
            }
            woken.await;
        }
    }
}
