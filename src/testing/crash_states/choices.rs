//! Which crash states of one disk are looked at: all of them when they are few, a sample with
//! every part in every fate beyond.

use super::disk::{Choice, Disk, Fate};
use crate::testing::rng::Rng;

const PLAIN: [Fate; 4] = [Fate::Kept, Fate::Lost, Fate::Zero, Fate::Garbage];

/// What of a disk is not durable.
struct Loose {
    names: usize,
    lengths: Vec<usize>,
    sectors: Vec<usize>,
}

impl Loose {
    fn of(disk: &Disk) -> Self {
        let (names, lengths) = (disk.loose_names(), disk.loose_lengths());
        Self { names, lengths, sectors: disk.loose_sectors() }
    }

    /// How many states there are, without the torn ones; at most `bound` is told apart.
    fn count(&self, bound: usize) -> usize {
        let names = std::iter::repeat_n(2, self.names);
        let sectors = std::iter::repeat_n(PLAIN.len(), self.sectors.len());
        let all = names.chain(self.lengths.iter().copied()).chain(sectors);
        all.fold(1, |product: usize, n| product.saturating_mul(n).min(bound.saturating_add(1)))
    }

    /// The state with this number, of all without torn sectors.
    fn numbered(&self, mut number: usize) -> Choice {
        let mut digit = |base: usize| {
            let digit = number % base;
            number /= base;
            digit
        };
        Choice {
            names: (0..self.names).map(|_| digit(2) == 0).collect(),
            lengths: self.lengths.iter().map(|n| digit(*n)).collect(),
            fates: self.sectors.iter().map(|_| PLAIN[digit(PLAIN.len())]).collect(),
        }
    }

    fn uniform(&self, kept: bool) -> Choice {
        let fate = if kept { Fate::Kept } else { Fate::Lost };
        Choice {
            names: vec![kept; self.names],
            lengths: self.lengths.iter().map(|n| if kept { n - 1 } else { 0 }).collect(),
            fates: vec![fate; self.sectors.len()],
        }
    }

    /// A part of a sector torn or with a wrong bit.
    fn within(&self, sector: usize, rng: &mut Rng) -> Fate {
        let length = self.sectors.get(sector).copied().unwrap_or(0) as u64;
        let at = rng.below(length + 1) as u16;
        // Records stand on boundaries of eight bytes: there a tear is the hardest to tell.
        let at = if rng.one_in(2) { at & !7 } else { at };
        match rng.below(3) {
            0 => Fate::Torn(at),
            1 => Fate::TornFront(at),
            _ => Fate::Flip(rng.below(length * 8) as u16),
        }
    }

    fn sampled(&self, rng: &mut Rng) -> Choice {
        let mut choice = self.uniform(true);
        choice.names.iter_mut().for_each(|kept| *kept = rng.one_in(2));
        for (pick, n) in choice.lengths.iter_mut().zip(&self.lengths) {
            *pick = rng.below(*n as u64) as usize;
        }
        // Often all but a few are kept: what is nearly whole is the hardest to judge.
        let kept = 1 + rng.below(6);
        for sector in 0..self.sectors.len() {
            choice.fates[sector] = match rng.below(4 + kept) {
                0 => Fate::Lost,
                1 => Fate::Zero,
                2 => Fate::Garbage,
                3 => self.within(sector, rng),
                _ => Fate::Kept,
            };
        }
        choice
    }
}

/// States of this disk after a loss of power, at most about `bound`.
pub(super) fn choices(disk: &Disk, bound: usize, rng: &mut Rng) -> Vec<Choice> {
    let loose = Loose::of(disk);
    let total = loose.count(bound);
    if total == 1 {
        return vec![loose.uniform(true)];
    }
    let mut out: Vec<Choice>;
    if total <= bound {
        out = (0..total).map(|number| loose.numbered(number)).collect();
    } else {
        out = vec![loose.uniform(true), loose.uniform(false)];
        for sector in 0..loose.sectors.len() {
            for (kept, fate) in
                [(true, Fate::Lost), (true, Fate::Zero), (true, Fate::Garbage), (false, Fate::Kept)]
            {
                let mut choice = loose.uniform(kept);
                choice.fates[sector] = fate;
                out.push(choice);
            }
        }
        for name in 0..loose.names {
            let mut choice = loose.uniform(true);
            choice.names[name] = false;
            out.push(choice);
        }
        // A sample of a few is drawn from the whole, not from its first ones.
        while out.len() > bound.max(1) {
            out.swap_remove(rng.below(out.len() as u64) as usize);
        }
    }
    for sector in 0..loose.sectors.len() {
        let mut choice = loose.uniform(true);
        choice.fates[sector] = loose.within(sector, rng);
        out.push(choice);
        if out.len() > bound {
            break;
        }
    }
    while out.len() < bound && total > bound {
        out.push(loose.sampled(rng));
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;
    use std::sync::Arc;

    use bytes::Bytes;

    use super::super::disk::Op;
    use super::*;

    fn disk(bytes: usize) -> Disk {
        let mut disk = Disk::default();
        let path: Arc<Path> = Path::new("/d/f").into();
        disk.make_dirs(Path::new("/d"));
        disk.apply(&Op::Create(path));
        disk.apply(&Op::Write(0, 0, Bytes::from(vec![7; bytes])));
        disk
    }

    fn states(disk: &Disk, bound: usize) -> usize {
        let mut rng = Rng::new(1);
        let all = choices(disk, bound, &mut rng);
        assert!(all.len() <= bound + disk.loose_sectors().len(), "{}", all.len());
        all.iter().map(|c| disk.crash(c).fingerprint()).collect::<BTreeSet<_>>().len()
    }

    /// A name that may be gone, two lengths, and sectors in four fates.
    #[test]
    fn few_states_are_all_enumerated() {
        // No name; the name with nothing; with one sector in three ways (lost and zero are the
        // same here), and torn.
        assert_eq!(states(&disk(512), 64), 1 + 1 + 3 + 1);
        let synced = {
            let mut disk = disk(512);
            disk.apply(&Op::Sync(0));
            disk.apply(&Op::SyncDir("/d".into()));
            disk
        };
        assert_eq!(states(&synced, 64), 1);
    }

    #[test]
    fn many_states_are_sampled() {
        let mut disk = disk(8 * 512);
        disk.apply(&Op::SyncDir("/d".into()));
        assert!(states(&disk, 64) > 25);
        assert!((1..=3).contains(&states(&disk, 2)));
    }

    #[test]
    fn a_failed_sync_makes_nothing_durable_and_a_later_one_neither() {
        let mut disk = disk(512);
        disk.apply(&Op::SyncDir("/d".into()));
        disk.apply(&Op::FailedSync(0));
        disk.apply(&Op::Sync(0));
        assert_eq!(disk.loose_sectors(), [512]);
        disk.apply(&Op::Write(0, 0, Bytes::from_static(b"again")));
        disk.apply(&Op::Sync(0));
        assert_eq!(disk.loose_sectors(), [0usize; 0]);
    }
}
