//! Where peers' questions wait for the task that founds: it alone owns the data directory, so that
//! what it answers and what it does next never contradict each other.

use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::{mpsc, oneshot};

use crate::pb;

/// Questions that may wait; a peer whose question does not fit is told nothing, and asks again.
const MAX_WAITING: usize = 64;

/// A question and the way back.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) found: pb::Found,
    pub(crate) reply: oneshot::Sender<pb::InfoAnswer>,
}

/// Where questions are put; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Desk {
    open: Arc<RwLock<Option<mpsc::Sender<Ask>>>>,
}

/// Whoever answers. The desk is closed when it goes.
#[derive(Debug)]
pub(crate) struct Seat {
    desk: Desk,
    questions: mpsc::Receiver<Ask>,
}

impl Desk {
    /// Answers from now on.
    pub(crate) fn open(&self) -> Seat {
        let (sender, questions) = mpsc::channel(MAX_WAITING);
        self.set(Some(sender));
        Seat { desk: self.clone(), questions }
    }

    /// The answer to a question; None when nobody sits there.
    pub(crate) async fn ask(&self, found: pb::Found) -> Option<pb::InfoAnswer> {
        let sender = self.open.read().unwrap_or_else(PoisonError::into_inner).clone()?;
        let (reply, answer) = oneshot::channel();
        sender.try_send(Ask { found, reply }).ok()?;
        answer.await.ok()
    }

    fn set(&self, sender: Option<mpsc::Sender<Ask>>) {
        *self.open.write().unwrap_or_else(PoisonError::into_inner) = sender;
    }
}

impl Seat {
    /// The next question.
    ///
    /// # Cancel safety
    /// No question is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> Option<Ask> {
        self.questions.recv().await
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.desk.set(None);
    }
}
