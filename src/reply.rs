//! The way back to a caller: a one-shot answer that is never lost silently.
//!
//! Invariants:
//! - every [`Reply`] answers exactly once; one that is dropped answers by itself, with
//!   `ShuttingDown` while nothing was appended and `Unknown` afterwards;
//! - a caller that went away is normal and costs nothing;
//! - giving up and appending exclude each other: whoever comes first wins, so that a timeout can
//!   say for certain that a command was *not* applied.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::zoo::{self, Bug};

const WAITING: u8 = 0;
const APPENDED: u8 = 1;
const ABANDONED: u8 = 2;

/// The answering end.
#[derive(Debug)]
pub(crate) struct Reply<T> {
    sender: Option<oneshot::Sender<Result<T>>>,
    fate: Arc<AtomicU8>,
    permit: Option<Permit>,
}

/// The asking end.
#[derive(Debug)]
pub(crate) struct Waiter<T> {
    receiver: oneshot::Receiver<Result<T>>,
    fate: Arc<AtomicU8>,
}

/// A fresh pair; the permit, if any, is given back when the answer is sent.
pub(crate) fn reply<T>(permit: Option<Permit>) -> (Reply<T>, Waiter<T>) {
    let (sender, receiver) = oneshot::channel();
    let fate = Arc::new(AtomicU8::new(WAITING));
    (Reply { sender: Some(sender), fate: fate.clone(), permit }, Waiter { receiver, fate })
}

impl<T> Reply<T> {
    /// Answers.
    pub(crate) fn send(mut self, answer: Result<T>) {
        self.permit = None;
        if let Some(sender) = self.sender.take() {
            let _ = sender.send(answer);
        }
    }

    /// Claims the request for the log: false when its caller gave up first, and then it must not
    /// be appended or forwarded.
    pub(crate) fn begin(&self) -> bool {
        match self.fate.compare_exchange(WAITING, APPENDED, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(found) => found == APPENDED,
        }
    }

    /// Takes the claim of [`Reply::begin`] back: the append was refused, nothing happened.
    pub(crate) fn retract(&self) {
        let _ = self.fate.compare_exchange(APPENDED, WAITING, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Whether the caller has gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.sender.as_ref().is_none_or(oneshot::Sender::is_closed)
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        if let Some(sender) = self.sender.take() {
            let error = if self.fate.load(Ordering::Acquire) == APPENDED {
                Error::unknown("the node stopped before the entry was decided")
            } else {
                Error::ShuttingDown
            };
            let _ = sender.send(Err(error));
        }
    }
}

impl<T> Waiter<T> {
    /// Waits for the answer, at most this long.
    ///
    /// # Errors
    /// The answer's own; `Timeout` when the deadline passed before anything was appended, and
    /// `Unknown` when it passed afterwards.
    ///
    /// # Cancel safety
    /// Dropping the future abandons the answer, not the command.
    pub(crate) async fn wait(mut self, timeout: Duration) -> Result<T> {
        match tokio::time::timeout(timeout, &mut self.receiver).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Error::unknown("the answer was lost")),
            Err(_) => self.give_up(timeout),
        }
    }

    /// The answer, if it is there: for those who have a clock of their own.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn answer(&mut self) -> Option<Result<T>> {
        match self.receiver.try_recv() {
            Ok(answer) => Some(answer),
            Err(oneshot::error::TryRecvError::Empty) => None,
            Err(oneshot::error::TryRecvError::Closed) => {
                Some(Err(Error::unknown("the answer was lost")))
            }
        }
    }

    /// What is known when the deadline has passed.
    pub(crate) fn give_up(mut self, timeout: Duration) -> Result<T> {
        let claimed =
            self.fate.compare_exchange(WAITING, ABANDONED, Ordering::AcqRel, Ordering::Acquire);
        if claimed.is_ok() || zoo::has(Bug::TimeoutMeansNever) {
            return Err(Error::Timeout);
        }
        self.receiver.close();
        match self.receiver.try_recv() {
            Ok(answer) => answer,
            Err(_) => Err(Error::unknown(format!("no answer within {timeout:?}"))),
        }
    }
}

/// Requests that are neither proposals nor reads, beside as many of those as are admitted.
const RESERVED: u64 = 1024;

/// Bounds the work in flight, in requests and bytes; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    shared: Arc<AdmissionState>,
}

#[derive(Debug)]
struct AdmissionState {
    count: AtomicU64,
    bytes: AtomicU64,
    max_count: u64,
    max_bytes: u64,
}

/// A share of an [`Admission`], given back on drop.
#[derive(Debug)]
pub(crate) struct Permit {
    shared: Arc<AdmissionState>,
    bytes: u64,
}

impl Admission {
    /// At most this many requests and bytes at a time.
    pub(crate) fn new(max_count: u64, max_bytes: u64) -> Self {
        Self {
            shared: Arc::new(AdmissionState {
                count: AtomicU64::new(0),
                bytes: AtomicU64::new(0),
                max_count,
                max_bytes,
            }),
        }
    }

    /// A permit for one proposal or read of this size.
    ///
    /// # Errors
    /// `Overloaded` at the bound; a request that is alone always passes.
    pub(crate) fn admit(&self, bytes: u64) -> Result<Permit> {
        self.take(bytes, self.shared.max_count)
    }

    /// A permit for one request of another kind: load does not keep anybody from looking at a node,
    /// or from doing something about it.
    ///
    /// # Errors
    /// `Overloaded` when there are [`RESERVED`] such requests beside as much load as may be.
    pub(crate) fn reserve(&self) -> Result<Permit> {
        self.take(0, self.shared.max_count.saturating_add(RESERVED))
    }

    fn take(&self, bytes: u64, max_count: u64) -> Result<Permit> {
        let s = &self.shared;
        let count = s.count.fetch_add(1, Ordering::AcqRel);
        let before = s.bytes.fetch_add(bytes, Ordering::AcqRel);
        let permit = Permit { shared: self.shared.clone(), bytes };
        if count >= max_count {
            return Err(Error::Overloaded { what: "requests in flight", bound: max_count });
        }
        if bytes > 0 && before > 0 && before + bytes > s.max_bytes {
            return Err(Error::Overloaded { what: "bytes in flight", bound: s.max_bytes });
        }
        Ok(permit)
    }

    /// Requests and bytes in flight.
    pub(crate) fn in_flight(&self) -> (u64, u64) {
        (self.shared.count.load(Ordering::Acquire), self.shared.bytes.load(Ordering::Acquire))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.shared.count.fetch_sub(1, Ordering::AcqRel);
        self.shared.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn timeout_before_the_append_is_definite_and_bars_it() {
        let (reply, waiter) = reply::<u8>(None);
        let error = waiter.wait(Duration::from_secs(1)).await.unwrap_err();
        assert!(matches!(error, Error::Timeout), "{error}");
        assert!(!reply.begin(), "an abandoned request must not be appended");
    }

    #[tokio::test(start_paused = true)]
    async fn timeout_after_the_append_is_unknown() {
        let (reply, waiter) = reply::<u8>(None);
        assert!(reply.begin());
        let error = waiter.wait(Duration::from_secs(1)).await.unwrap_err();
        assert!(error.outcome_unknown(), "{error}");
    }

    #[tokio::test]
    async fn a_dropped_reply_answers_by_what_happened() {
        let (early, waiter) = reply::<u8>(None);
        drop(early);
        assert!(matches!(
            waiter.wait(Duration::from_secs(1)).await.unwrap_err(),
            Error::ShuttingDown
        ));
        let (late, waiter) = reply::<u8>(None);
        assert!(late.begin());
        drop(late);
        assert!(waiter.wait(Duration::from_secs(1)).await.unwrap_err().outcome_unknown());
    }

    #[test]
    fn admission_refuses_at_its_bounds_and_recovers() {
        let admission = Admission::new(2, 100);
        let a = admission.admit(1000).unwrap();
        assert!(matches!(admission.admit(1), Err(Error::Overloaded { .. })));
        drop(a);
        let b = admission.admit(10).unwrap();
        let c = admission.admit(10).unwrap();
        assert!(matches!(admission.admit(1), Err(Error::Overloaded { .. })));
        drop((b, c));
        assert_eq!(admission.in_flight(), (0, 0));
    }

    #[test]
    fn load_leaves_room_for_requests_of_another_kind() {
        let admission = Admission::new(2, 100);
        let load = (admission.admit(60).unwrap(), admission.admit(40).unwrap());
        assert!(matches!(admission.admit(1), Err(Error::Overloaded { .. })));
        let others: Vec<Permit> = (0..RESERVED).map(|_| admission.reserve().unwrap()).collect();
        assert!(matches!(admission.reserve(), Err(Error::Overloaded { .. })));
        drop((load, others));
        assert_eq!(admission.in_flight(), (0, 0));
    }
}
