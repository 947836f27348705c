//! How long to wait for what must come, on a machine that others use too.

use std::time::{Duration, Instant};

/// What one look may take of the patience. A look that takes longer was held up by the machine,
/// which held up the nodes as well.
const LOOK: Duration = Duration::from_secs(1);

/// A bound of a wait: in time that this process was given, not in time on a clock. It is there to
/// tell "late" from "never", so it is many times what a healthy cluster takes; how long things
/// really took is reported, and how long they may take is for the simulator to judge, whose clock
/// no machine disturbs.
#[derive(Debug)]
pub(crate) struct Patience {
    limit: Duration,
    spent: Duration,
    last: Instant,
}

impl Patience {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, spent: Duration::ZERO, last: Instant::now() }
    }

    /// Whether it has come to its end; to be asked at every look.
    pub(crate) fn is_over(&mut self) -> bool {
        let now = Instant::now();
        self.spent += now.saturating_duration_since(self.last).min(LOOK);
        self.last = now;
        self.spent > self.limit
    }

    /// Something has come: from here on anew.
    pub(crate) fn renew(&mut self) {
        *self = Self::new(self.limit);
    }
}
