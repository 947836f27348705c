//! Virtual time: what happens next. Ties go in the order in which they were planned.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Microseconds since the start of a run.
pub(super) type Time = u64;

pub(super) const MS: Time = 1000;
pub(super) const SECOND: Time = 1_000_000;

#[derive(Debug)]
struct Planned<T> {
    at: Time,
    order: u64,
    what: T,
}

impl<T> PartialEq for Planned<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<T> Eq for Planned<T> {}

impl<T> PartialOrd for Planned<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Planned<T> {
    // The earliest is the greatest: the heap gives it first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

#[derive(Debug)]
pub(super) struct Schedule<T> {
    heap: BinaryHeap<Planned<T>>,
    order: u64,
    now: Time,
}

impl<T> Schedule<T> {
    pub(super) fn new() -> Self {
        Self { heap: BinaryHeap::new(), order: 0, now: 0 }
    }

    pub(super) fn now(&self) -> Time {
        self.now
    }

    pub(super) fn at(&mut self, at: Time, what: T) {
        self.order += 1;
        self.heap.push(Planned { at: at.max(self.now), order: self.order, what });
    }

    pub(super) fn after(&mut self, delay: Time, what: T) {
        self.at(self.now.saturating_add(delay), what);
    }

    /// The next one, if it is due before `end`; time moves to it.
    pub(super) fn next_before(&mut self, end: Time) -> Option<T> {
        if self.heap.peek().is_none_or(|next| next.at >= end) {
            self.now = self.now.max(end);
            return None;
        }
        let next = self.heap.pop()?;
        self.now = next.at;
        Some(next.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_forward_and_ties_keep_their_order() {
        let mut schedule = Schedule::new();
        schedule.at(5, 'c');
        schedule.at(1, 'a');
        schedule.at(5, 'd');
        schedule.at(3, 'b');
        let order: String = std::iter::from_fn(|| schedule.next_before(6)).collect();
        assert_eq!(order, "abcd");
        schedule.at(2, 'e');
        assert_eq!((schedule.next_before(9), schedule.now()), (Some('e'), 6));
    }
}
