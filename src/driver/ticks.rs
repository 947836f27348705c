//! When the node's next tick is due.
//!
//! However long a pause was, it is one tick: those that were missed are not made up for, or every
//! node would campaign after a pause (H15).

use std::time::Duration;

use tokio::time::Instant;

/// The ticks of a leader keep their pace: its heartbeats depend on them. Those of any other node
/// come with the messages that wake it, and its timer waits half a period longer for one: so an
/// idle follower wakes up once per heartbeat. Ticks that its timer gave count from when they were
/// taken: they get later until they meet the heartbeats.
///
/// A tick that comes with a heartbeat comes behind it. The next is due after a period and five
/// eighths at most, so an election timeout of n ticks is over after n - 1 periods of silence at
/// the earliest, and after n of them at the latest: as with ticks at any time.
#[derive(Debug)]
pub(super) struct Ticks {
    period: Duration,
    next: Instant,
}

impl Ticks {
    pub(super) fn new(period: Duration, now: Instant) -> Self {
        Self { period, next: now + period }
    }

    /// When the timer wakes a node that nothing else has woken.
    pub(super) fn timer(&self, leads: bool) -> Instant {
        if leads { self.next } else { self.next + self.period / 2 }
    }

    /// Whether a tick is due; asked once per turn. `heard`: messages of peers came in this turn.
    pub(super) fn is_due(&mut self, now: Instant, leads: bool, heard: bool) -> bool {
        let early = !leads && heard && now + self.period / 4 >= self.next;
        if !early && now < self.timer(leads) {
            return false;
        }
        self.next = match (leads, early) {
            (true, _) => (self.next + self.period).max(now + self.period / 2),
            (false, true) => now + self.period + self.period / 8,
            (false, false) => now + self.period / 2,
        };
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

    /// A second of heartbeats every 100 ms from `begin` on, each with its delay: the wake-ups by
    /// the timer, and the ticks.
    fn a_second(ticks: &mut Ticks, begin: Instant, delay: impl Fn(u32) -> Duration) -> (u32, u32) {
        let (mut woken, mut taken) = (0, 0);
        for n in 1..=10 {
            let heartbeat = begin + MS * 100 * n + delay(n);
            while ticks.timer(false) < heartbeat {
                woken += 1;
                // A timer is late, never early.
                taken += u32::from(ticks.is_due(ticks.timer(false) + MS, false, false));
            }
            taken += u32::from(ticks.is_due(heartbeat, false, true));
        }
        (woken, taken)
    }

    #[test]
    fn the_ticks_of_an_idle_follower_come_with_the_heartbeats() {
        for phase in 0..100 {
            let mut begin = Instant::now();
            let mut ticks = Ticks::new(MS * 100, begin + MS * phase);
            for _ in 0..3 {
                let (woken, taken) = a_second(&mut ticks, begin, |_| Duration::ZERO);
                assert!((9..=11).contains(&taken), "{taken} ticks in a second, {woken} by timer");
                begin += MS * 1000;
            }
            let jitter = |n| MS * (n * 7 % 11);
            assert_eq!(a_second(&mut ticks, begin, jitter), (0, 10), "phase {phase}");
        }
    }

    #[test]
    fn many_messages_make_no_more_ticks_and_neither_does_silence() {
        let begin = Instant::now();
        let mut ticks = Ticks::new(MS * 100, begin);
        let mut taken = |ms: std::ops::RangeInclusive<u32>, heard| {
            ms.filter(|&n| ticks.is_due(begin + MS * n, false, heard)).count()
        };
        let busy = taken(1..=10_000, true);
        assert!((100..=115).contains(&busy), "{busy} in ten seconds, a message every millisecond");
        let silent = taken(10_001..=20_000, false);
        assert!((98..=100).contains(&silent), "{silent} in ten seconds without any");
        assert_eq!(taken(80_000..=80_001, false), 1, "a pause is one tick");
        assert_eq!(taken(80_002..=80_020, true), 0, "and so with messages behind it");
    }

    #[test]
    fn an_election_timeout_is_as_long_as_with_ticks_at_any_time() {
        for ms in [10, 100, 1000] {
            let (period, heartbeat) = (MS * ms, Instant::now());
            let mut ticks = Ticks::new(period, heartbeat);
            assert!(ticks.is_due(heartbeat + period, false, true));
            let last = heartbeat + period;
            let mut now = last;
            // The first of ten came with the heartbeat.
            for _ in 1..10 {
                now = ticks.timer(false);
                assert!(ticks.is_due(now, false, false));
            }
            assert!((period * 9..period * 10).contains(&(now - last)), "{:?}", now - last);
        }
    }
}
