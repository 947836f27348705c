//! Latencies in buckets that widen with them: an error of at most 1.6 %, in 6 KiB per client, so
//! that neither growing vectors nor their memory are measured along.

const BITS: u32 = 6;
/// Buckets of one power of two.
const FINE: usize = 1 << BITS;
/// From 0 to about 17 minutes in microseconds; what is longer counts as that.
const BUCKETS: usize = FINE * 25;

/// How many took how long.
#[derive(Clone, Debug)]
pub struct Histogram {
    buckets: Vec<u32>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS], total: 0 }
    }
}

fn bucket(us: u64) -> usize {
    let shift = (64 - us.leading_zeros()).saturating_sub(BITS + 1);
    let at = shift as usize * FINE + (us >> shift) as usize;
    at.min(BUCKETS - 1)
}

/// The lowest value of a bucket.
fn value(bucket: usize) -> u64 {
    let shift = (bucket / FINE).saturating_sub(1);
    ((bucket - shift * FINE) as u64) << shift
}

impl Histogram {
    /// Counts a latency.
    pub fn add(&mut self, us: u64) {
        self.buckets[bucket(us)] += 1;
        self.total += 1;
    }

    /// Adds what another counted.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.total += other.total;
    }

    /// How many.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// What this part of them did not exceed, but for the width of a bucket; 0 of none.
    pub fn quantile(&self, part: f64) -> u64 {
        let wanted = ((self.total as f64 * part).ceil() as u64).max(1);
        let mut seen = 0;
        for (at, count) in self.buckets.iter().enumerate() {
            seen += u64::from(*count);
            if seen >= wanted {
                return value(at);
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A value is in the bucket that names it, to 1 in 64.
    #[test]
    fn buckets_are_narrow() {
        for us in (0..4096).chain([5000, 77_777, 1_000_000, 60_000_000]) {
            let found = value(bucket(us));
            assert!(found <= us && us - found <= us / 64, "{us} is told as {found}");
        }
    }

    #[test]
    fn the_longest_has_a_bucket() {
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_ranks() {
        let mut all = Histogram::default();
        (1..=50).for_each(|us| all.add(us));
        assert_eq!((all.quantile(0.5), all.quantile(0.99), all.total()), (25, 50, 50));
        let mut twice = all.clone();
        twice.merge(&all);
        assert_eq!((twice.quantile(0.5), twice.total()), (25, 100));
    }
}
