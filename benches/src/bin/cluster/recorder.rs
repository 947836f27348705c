//! Latencies in buckets of about 1.6 %: fixed memory, whatever is recorded.

const SUB_BITS: u32 = 6;
const SUB: u64 = 1 << SUB_BITS;
/// Room for latencies up to 2^40 ns, 18 minutes.
const BUCKETS: usize = ((40 - SUB_BITS as usize) + 1) << SUB_BITS;

#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Recorder {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0 }
    }
}

fn bucket(nanos: u64) -> usize {
    let shift = nanos.max(1).ilog2().saturating_sub(SUB_BITS);
    let index = (u64::from(shift) << SUB_BITS) + (nanos >> shift);
    (index as usize).min(BUCKETS - 1)
}

fn middle(bucket: usize) -> f64 {
    let bucket = bucket as u64;
    let shift = (bucket >> SUB_BITS).saturating_sub(1);
    let low = (bucket - (shift << SUB_BITS)) << shift;
    low as f64 + (1u64 << shift) as f64 / 2.0
}

impl Recorder {
    pub(crate) fn record(&mut self, nanos: u64, times: u64) {
        self.counts[bucket(nanos)] += times;
        self.total += times;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (own, more) in self.counts.iter_mut().zip(&other.counts) {
            *own += more;
        }
        self.total += other.total;
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// The latency that this share of all stays within, in microseconds.
    pub(crate) fn quantile_us(&self, share: f64) -> f64 {
        let rank = ((self.total as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        let found = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        found.map_or(0.0, |bucket| middle(bucket) / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_two_percent() {
        let mut recorder = Recorder::default();
        for nanos in 1..=1_000_000 {
            recorder.record(nanos, 1);
        }
        for (share, us) in [(0.5, 500.0), (0.99, 990.0), (0.999, 999.0), (0.001, 1.0)] {
            let found = recorder.quantile_us(share);
            assert!((found / us - 1.0_f64).abs() < 0.02, "{share}: {found} is not near {us}");
        }
    }
}
