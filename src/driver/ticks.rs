//! When the node's next tick is due.
//!
//! Ticks keep the pace and the phase that they had from the start, which differ from node to node:
//! who lost its leader campaigns at a moment of its own. After a pause there is one tick: those
//! that were missed are not made up for, or every node would campaign (H15).

use std::time::Duration;

use tokio::time::Instant;

/// The ticks of one node. Those of a leader are on time, its heartbeats depend on them. Any other
/// node takes a tick that is overdue with the next message that wakes it, before that message, and
/// its timer waits one and a half periods for one: so an idle follower wakes up once per heartbeat,
/// and counts what it would have counted. Once its timer has given a tick, nobody speaks to it: the
/// one that it let go by comes at once, and the next ones on time.
#[derive(Debug)]
pub(super) struct Ticks {
    period: Duration,
    next: Instant,
    /// No message has come since the timer gave a tick.
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

    /// How many ticks belong before the messages of this turn, two at most; asked once per turn that
    /// has some. After a pause none does: what the leader has sent meanwhile counts first.
    pub(super) fn overdue(&mut self, now: Instant, leads: bool) -> u32 {
        let mut count = 0;
        if !leads && !self.silence && now < self.next + self.period * 2 {
            while self.next <= now {
                self.next += self.period;
                count += 1;
            }
        }
        self.silence = false;
        count
    }

    /// Whether a tick is due at the end of a turn; asked once per turn.
    pub(super) fn is_due(&mut self, now: Instant, leads: bool) -> bool {
        if now < self.timer(leads) {
            return false;
        }
        let let_go = !leads && !self.silence && now < self.next + self.period * 2;
        self.next = if let_go { self.next + self.period } else { self.on_time(now) };
        self.silence = true;
        true
    }

    /// The first of its own times that is not too near.
    fn on_time(&self, now: Instant) -> Instant {
        let late = now.saturating_duration_since(self.next).as_nanos() % self.period.as_nanos();
        let left = self.period - Duration::from_nanos(u64::try_from(late).unwrap_or(0));
        now + left + if left < self.period / 4 { self.period } else { Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    /// A timer is late, never early.
    const LATE: Duration = Duration::from_micros(250);

    #[test]
    fn a_leaders_ticks_keep_their_pace_and_a_pause_is_one_tick() {
        let start = Instant::now();
        let mut ticks = Ticks::new(MS * 50, start);
        let mut is_due = |at: Duration| {
            assert_eq!(ticks.overdue(start + at, true), 0);
            ticks.is_due(start + at, true)
        };
        assert!(!is_due(MS * 49));
        assert!(is_due(MS * 52));
        assert!(!is_due(MS * 99));
        assert!(is_due(MS * 100), "a late tick does not shift the next");
        assert!(is_due(MS * 60_000), "a pause");
        assert!(!is_due(MS * 60_001), "missed ticks are not made up for");
        assert!(is_due(MS * 60_050));
    }

    #[derive(Debug, Default)]
    struct Life {
        /// Times of all ticks.
        ticks: Vec<Duration>,
        /// Those behind the last message.
        silent: Vec<Duration>,
        /// How often the timer woke it.
        woken: usize,
    }

    /// What happens until `end` to a node that has its timer, and hears messages half a millisecond
    /// after these times.
    fn live(ticks: &mut Ticks, start: Instant, messages: &[u32], end: u32) -> Life {
        let mut life = Life::default();
        let mut messages = messages.iter().map(|ms| start + MS * *ms + MS / 2).peekable();
        let mut now = start;
        loop {
            let timer = now.max(ticks.timer(false) + LATE);
            let heard = messages.next_if(|at| *at < timer);
            now = heard.unwrap_or(timer);
            if now > start + MS * end {
                return life;
            }
            life.woken += usize::from(heard.is_none());
            if heard.is_some() {
                let before = ticks.overdue(now, false);
                life.ticks.extend((0..before).map(|_| now - start));
                life.silent.clear();
            }
            if ticks.is_due(now, false) {
                life.ticks.push(now - start);
                life.silent.push(now - start);
            }
        }
    }

    /// What a node may hear in four seconds.
    fn messages() -> [Vec<u32>; 6] {
        let even = |n: u32| n * 100 + n * 7 % 11;
        [
            (1..=40).map(even).collect(),
            // Two are lost, one after the other; then one.
            (1..=40).filter(|n| ![20, 21, 30].contains(n)).map(even).collect(),
            // The leader's clock is slower, and faster.
            (1..=39).map(|n| n * 102).collect(),
            (1..=40).map(|n| n * 98).collect(),
            (1..=13).map(|n| n * 300).collect(),
            (1..=4_000).collect(),
        ]
    }

    #[test]
    fn an_idle_follower_wakes_up_once_per_heartbeat() {
        for phase in 0..100 {
            let start = Instant::now();
            let mut ticks = Ticks::new(MS * 100, start + MS * phase);
            let [heartbeats, ..] = messages();
            let life = live(&mut ticks, start, &heartbeats, 4_040);
            assert!(life.woken <= 1, "{} times by the timer, phase {phase}", life.woken);
            assert!((39..=41).contains(&life.ticks.len()), "{life:?}, phase {phase}");
        }
    }

    /// The n-th tick after a leader's last message comes when it would come to a node that wakes up
    /// for each, the first two perhaps later: no election is earlier, and no two nodes get into step.
    #[test]
    fn silence_is_measured_in_ticks_at_its_own_times() {
        for phase in 0..100 {
            let start = Instant::now();
            let begin = || Ticks::new(MS * 100, start + MS * phase);
            for (i, messages) in messages().into_iter().enumerate() {
                let at = format!("phase {phase}, messages {i}");
                let last = messages.last().copied().unwrap_or(0);
                let own: Vec<_> =
                    (0..=90).map(|n| phase + n * 100).filter(|ms| *ms > last).collect();
                let had = live(&mut begin(), start, &messages, 9_099).silent;
                assert!(had.len() >= own.len() - 1, "{had:?}, {own:?}, {at}");
                for (n, (had, own)) in had.iter().zip(own).enumerate() {
                    let (had, on_time) = (*had, MS * own + LATE);
                    let late = n < 2 && had > on_time;
                    assert!(had == on_time || late, "the {n}th: {had:?}, {on_time:?}, {at}");
                }
            }
        }
    }

    #[test]
    fn a_pause_of_a_follower_is_one_tick_and_keeps_its_times() {
        let start = Instant::now();
        let mut ticks = Ticks::new(MS * 100, start + MS * 10);
        assert_eq!(ticks.overdue(start + MS * 50, false), 0, "not yet");
        assert_eq!(ticks.overdue(start + MS * 150, false), 1, "before the message");
        assert!(!ticks.is_due(start + MS * 150, false));
        let late = start + MS * 60_000;
        assert_eq!(ticks.overdue(late, false), 0, "what was sent meanwhile counts first");
        assert!(ticks.is_due(late, false));
        assert!(!ticks.is_due(late, false), "not made up for");
        assert_eq!(ticks.timer(false), start + MS * 60_110, "not so soon");
    }
}
