//! The signal that ends every stream and connection of a transport.

use tokio::sync::watch;

/// The end that gives the signal; dropping it gives it too.
#[derive(Debug)]
pub(super) struct Closer(watch::Sender<bool>);

/// The end that waits for it.
#[derive(Clone, Debug)]
pub(super) struct Closing(watch::Receiver<bool>);

pub(super) fn closing() -> (Closer, Closing) {
    let (sender, receiver) = watch::channel(false);
    (Closer(sender), Closing(receiver))
}

impl Closer {
    pub(super) fn close(&self) {
        self.0.send_replace(true);
    }
}

impl Closing {
    /// Waits for the signal.
    pub(super) async fn closed(mut self) {
        // An error means that the transport is gone.
        let _ = self.0.wait_for(|closed| *closed).await;
    }
}
