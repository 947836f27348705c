//! When the node's next tick is due.
//!
//! Ticks keep the pace and the phase that they had from the start, which differ from node to node:
//! who lost its leader campaigns at a moment of its own. After a pause there is one tick: those
//! that were missed are not made up for, or every node would campaign (H15).

use std::time::Duration;

use tokio::time::Instant;

/// The ticks of one node. Those of a leader are on time, its heartbeats depend on them. Any other
/// node takes a tick that is due with the next message that wakes it, and its timer waits for one
/// and a half periods longer: so an idle follower wakes up once per heartbeat. Once its timer has
/// given a tick, nobody speaks to it: the one that it let go by comes at once, and the next ones
/// on time.
#[derive(Debug)]
pub(super) struct Ticks {
    period: Duration,
    next: Instant,
    /// The last tick came by the timer, and no message since.
    silence: bool,
}

impl Ticks {
    pub(super) fn new(period: Duration, now: Instant) -> Self {
        Self { period, next: now + period, silence: true }
    }

    /// When the timer wakes a node that nothing else has woken.
    pub(super) fn timer(&self, leads: bool) -> Instant {
        if leads || self.silence { self.next } else { self.next + self.period * 3 / 2 }
    }

    /// Whether a tick is due; asked once per turn. `heard`: messages of peers came in this turn.
    pub(super) fn is_due(&mut self, now: Instant, leads: bool, heard: bool) -> bool {
        let due = if heard { self.next } else { self.timer(leads) };
        self.silence = !heard && (self.silence || now >= due);
        if now < due {
            return false;
        }
        let paused = leads || now >= self.next + self.period * 2;
        let soonest = if paused { now + self.period / 2 } else { self.next };
        self.next = (self.next + self.period).max(soonest);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_leaders_ticks_keep_their_pace_and_a_pause_is_one_tick() {
        let start = Instant::now();
        let mut ticks = Ticks::new(MS * 50, start);
        let mut is_due = |at: Duration| ticks.is_due(start + at, true, true);
        assert!(!is_due(MS * 49));
        assert!(is_due(MS * 52));
        assert!(!is_due(MS * 99));
        assert!(is_due(MS * 100), "a late tick does not shift the next");
        assert!(is_due(MS * 60_000));
        assert!(!is_due(MS * 60_001), "missed ticks are not made up for");
        assert!(is_due(MS * 60_025));
    }

    /// What happens to a node until `end`: its own timer, a millisecond late, and messages at these
    /// times. The wake-ups by the timer, and when it took its ticks.
    fn run(
        ticks: &mut Ticks,
        start: Instant,
        messages: &[u32],
        end: u32,
    ) -> (usize, Vec<Duration>) {
        let (mut woken, mut taken) = (0, Vec::new());
        let mut messages = messages.iter().map(|ms| start + MS * *ms).peekable();
        loop {
            let timer = ticks.timer(false) + MS;
            let heard = messages.next_if(|at| *at < timer);
            let now = heard.unwrap_or(timer);
            if now > start + MS * end {
                return (woken, taken);
            }
            woken += usize::from(heard.is_none());
            if ticks.is_due(now, false, heard.is_some()) {
                taken.push(now - start);
            }
        }
    }

    #[test]
    fn the_ticks_of_an_idle_follower_come_with_the_heartbeats() {
        for phase in 0..100 {
            let start = Instant::now();
            let mut ticks = Ticks::new(MS * 100, start + MS * phase);
            let heartbeats: Vec<u32> = (1..=50).map(|n| n * 100 + n * 7 % 11).collect();
            let (woken, taken) = run(&mut ticks, start, &heartbeats, 5_020);
            assert!(woken <= 1, "{woken} by the timer, phase {phase}");
            assert!((48..=50).contains(&taken.len()), "{} ticks, phase {phase}", taken.len());
        }
    }

    /// Messages make no tick earlier, nor more or less of them; and a node whose leader is gone has
    /// them soon at its own times again, so that two nodes that heard the same are not in step.
    #[test]
    fn what_a_node_hears_changes_none_of_its_ticks_for_long() {
        for phase in 0..100 {
            let start = Instant::now();
            let begin = || Ticks::new(MS * 100, start + MS * phase);
            let alone = run(&mut begin(), start, &[], 9_020).1;
            for messages in [
                (1..=40).map(|n| n * 100 + n * 7 % 11).collect::<Vec<_>>(),
                (1..=4_000).collect(),
                (1..=400).map(|n| n * 10).collect(),
            ] {
                let last = MS * *messages.last().unwrap_or(&0);
                let taken = run(&mut begin(), start, &messages, 9_020).1;
                assert_eq!(taken.len(), alone.len(), "phase {phase}");
                for (had, would) in taken.iter().zip(&alone) {
                    assert!(*had + MS >= *would, "{had:?} is before {would:?}, phase {phase}");
                    let settled = *would > last + MS * 200;
                    assert!(!settled || had == would, "{had:?}, not {would:?}, phase {phase}");
                }
            }
        }
    }

    #[test]
    fn a_pause_of_a_follower_is_one_tick() {
        let start = Instant::now();
        for heard in [false, true] {
            let mut ticks = Ticks::new(MS * 100, start);
            assert!(ticks.is_due(start + MS * 150, false, true));
            let late = start + MS * 60_000;
            assert!(ticks.is_due(late, false, heard));
            assert!(!ticks.is_due(late, false, heard), "not made up for");
            assert!(!ticks.is_due(late + MS * 49, false, heard));
            assert!(ticks.is_due(late + MS * 51, false, heard), "half a period on");
        }
    }
}
