//! A swap queue: producers push, the one consumer takes the whole vector.
//!
//! Invariants:
//! - first in, first out;
//! - pushing never blocks; the consumer is woken only when the queue was empty;
//! - it has no bound of its own: whoever pushes bounds the work in flight;
//! - what is pushed after [`SwapQueue::close`] is dropped; what was pushed before is still taken.

use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

#[derive(Debug)]
pub(crate) struct SwapQueue<T> {
    state: Mutex<State<T>>,
    wake: Notify,
}

#[derive(Debug)]
struct State<T> {
    items: Vec<T>,
    closed: bool,
}

impl<T> Default for SwapQueue<T> {
    fn default() -> Self {
        let state = Mutex::new(State { items: Vec::new(), closed: false });
        Self { state, wake: Notify::new() }
    }
}

impl<T> SwapQueue<T> {
    /// Adds an item; gives it back when the queue is closed.
    pub(crate) fn push(&self, item: T) -> Result<(), T> {
        let mut state = self.lock();
        if state.closed {
            drop(state);
            return Err(item);
        }
        let was_empty = state.items.is_empty();
        state.items.push(item);
        drop(state);
        if was_empty {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Waits for items and swaps them with `into`, which must be empty; false when the queue is
    /// closed and everything was taken.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn take(&self, into: &mut Vec<T>) -> bool {
        debug_assert!(into.is_empty(), "taken items must have been dealt with");
        loop {
            let woken = self.wake.notified();
            {
                let mut state = self.lock();
                if !state.items.is_empty() {
                    mem::swap(&mut state.items, into);
                    return true;
                }
                if state.closed {
                    return false;
                }
            }
            woken.await;
        }
    }

    /// Takes nothing more; what is there will still be taken.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_one();
    }

    /// Closes it and gives back what nobody will take.
    pub(crate) fn close_and_clear(&self) -> Vec<T> {
        let mut state = self.lock();
        state.closed = true;
        mem::take(&mut state.items)
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn everything_comes_out_in_order_until_the_close() {
        let queue = SwapQueue::default();
        for i in 0..3 {
            assert_eq!(queue.push(i), Ok(()));
        }
        queue.close();
        assert_eq!(queue.push(9), Err(9));
        let mut items = Vec::new();
        assert!(queue.take(&mut items).await);
        assert_eq!(items, [0, 1, 2]);
        items.clear();
        assert!(!queue.take(&mut items).await);
        assert!(!queue.take(&mut items).await, "closed stays closed");
    }

    #[tokio::test]
    async fn a_waiting_consumer_is_woken_by_a_push_and_by_the_close() {
        let queue = Arc::new(SwapQueue::default());
        let consumer = tokio::spawn({
            let queue = queue.clone();
            async move {
                let mut all = Vec::new();
                let mut items = Vec::new();
                while queue.take(&mut items).await {
                    all.append(&mut items);
                }
                all
            }
        });
        tokio::task::yield_now().await;
        assert_eq!(queue.push(1), Ok(()));
        tokio::task::yield_now().await;
        assert_eq!(queue.push(2), Ok(()));
        tokio::task::yield_now().await;
        queue.close();
        assert_eq!(consumer.await.ok(), Some(vec![1, 2]));
    }

    #[test]
    fn clearing_gives_back_what_was_left() {
        let queue = SwapQueue::default();
        assert_eq!(queue.push(1), Ok(()));
        assert_eq!(queue.close_and_clear(), [1]);
        assert_eq!(queue.push(2), Err(2));
    }
}
