//! One file of the faulty file system: what a process sees of it, and what the disk holds.

use std::collections::BTreeMap;

use super::CrashStyle;
use crate::testing::rng::Rng;

/// What is written as a whole or not at all.
const SECTOR: usize = 512;

#[derive(Clone, Debug, Default)]
pub(super) struct Inode {
    pub(super) seen: Vec<u8>,
    pub(super) durable: Vec<u8>,
    /// By sector, the range of its bytes that was written since the last sync.
    pub(super) dirty: BTreeMap<usize, (usize, usize)>,
    /// Likewise, what a failed sync left: the kernel holds it for written, the disk has it not.
    pub(super) forsaken: BTreeMap<usize, (usize, usize)>,
}

impl Inode {
    pub(super) fn touch(&mut self, from: usize, to: usize) {
        for sector in from / SECTOR..to.div_ceil(SECTOR) {
            let (mut start, mut end) = (from.max(sector * SECTOR), to.min((sector + 1) * SECTOR));
            if let Some(again) = self.forsaken.remove(&sector) {
                (start, end) = (start.min(again.0), end.max(again.1));
            }
            let range = self.dirty.entry(sector).or_insert((start, end));
            *range = (range.0.min(start), range.1.max(end));
        }
    }

    pub(super) fn sync(&mut self) {
        self.durable.resize(self.seen.len(), 0);
        for (start, end) in std::mem::take(&mut self.dirty).into_values() {
            let end = end.min(self.seen.len());
            if start < end {
                self.durable[start..end].copy_from_slice(&self.seen[start..end]);
            }
        }
    }

    /// After a failed sync the pages count as clean: a later sync succeeds without them.
    pub(super) fn forsake(&mut self) {
        self.forsaken.append(&mut self.dirty);
    }

    /// What a disk may hold of this file after a loss of power.
    pub(super) fn crash(&self, style: CrashStyle, rng: &mut Rng) -> Vec<u8> {
        match style {
            CrashStyle::KeepAll => return self.seen.clone(),
            CrashStyle::LoseAll => return self.durable.clone(),
            CrashStyle::Seeded(_) => {}
        }
        let mut out = self.durable.clone();
        if self.seen.len() != self.durable.len() && rng.one_in(2) {
            out.resize(self.seen.len(), 0);
        }
        for (start, end) in self.dirty.values().chain(self.forsaken.values()).copied() {
            let end = end.min(out.len());
            if start >= end {
                continue;
            }
            let seen = self.seen.get(start..).unwrap_or_default();
            let seen = &seen[..seen.len().min(end - start)];
            match rng.below(8) {
                0..=2 => out[start..start + seen.len()].copy_from_slice(seen),
                3 | 4 => {}
                5 => out[start..end].fill(0),
                6 => out[start..end].fill_with(|| rng.next_u64() as u8),
                _ => {
                    let torn = rng.below(seen.len() as u64 + 1) as usize;
                    out[start..start + torn].copy_from_slice(&seen[..torn]);
                }
            }
        }
        out
    }
}
