//! A disk under a file system: what a process sees, what is durable, and everything between that a
//! loss of power may leave.
//!
//! It is a value: cheap to clone (contents are shared), changed by one [`Op`] at a time. A crash is
//! a pure function of it and a [`Choice`].
//!
//! Invariants:
//! - bytes beside an unsynced write stay as they are, also in the same sector (power-safe
//!   overwrite, as `docs/wal-format.md` assumes);
//! - what a failed sync covered is durable only after it is written and synced again.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::testing::rng::Rng;

/// What a disk writes as a whole or not at all, if it writes well.
const SECTOR: usize = 512;

/// One change of the disk.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Create(Arc<Path>),
    Write(usize, usize, Bytes),
    SetLen(usize, usize),
    Sync(usize),
    /// A sync that failed: the pages count as clean, the disk has them not.
    FailedSync(usize),
    Rename(Arc<Path>, Arc<Path>),
    Remove(Arc<Path>),
    SyncDir(PathBuf),
}

impl Op {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Create(_) => "create",
            Self::Write(..) => "write",
            Self::SetLen(..) => "set length",
            Self::Sync(_) => "sync",
            Self::FailedSync(_) => "failed sync",
            Self::Rename(..) => "rename",
            Self::Remove(_) => "remove",
            Self::SyncDir(_) => "sync directory",
        }
    }
}

/// What became of the part of one sector that a write covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Kept,
    /// What was there before stays: zeros, or what an older use of the file left.
    Lost,
    Zero,
    Garbage,
    /// New up to here, old behind.
    Torn(u16),
    /// Old up to here, new behind.
    TornFront(u16),
    /// One bit of it is wrong.
    Flip(u16),
}

impl Fate {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Lost => "lost or old",
            Self::Zero => "zero",
            Self::Garbage => "garbage",
            Self::Torn(_) | Self::TornFront(_) => "torn",
            Self::Flip(_) => "one wrong bit",
        }
    }
}

/// What one loss of power left of everything that was not synced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Choice {
    /// By unsynced change of a name, in order: whether it is there.
    pub(super) names: Vec<bool>,
    /// By file whose length may lag: which of its lengths.
    pub(super) lengths: Vec<usize>,
    /// By unsynced part of a sector, in order.
    pub(super) fates: Vec<Fate>,
}

#[derive(Clone, Debug)]
struct Unit {
    start: usize,
    data: Bytes,
    forsaken: bool,
}

#[derive(Clone, Debug, Default)]
struct File {
    seen: Arc<Vec<u8>>,
    durable: Arc<Vec<u8>>,
    /// What is not durable, in the order of the writes.
    units: Vec<Unit>,
    /// Lengths since the last sync, the durable one first.
    lengths: Vec<usize>,
}

impl File {
    fn durable(bytes: Arc<Vec<u8>>) -> Self {
        let lengths = vec![bytes.len()];
        Self { seen: bytes.clone(), durable: bytes, units: Vec::new(), lengths }
    }

    fn note_length(&mut self) {
        if self.lengths.last() != Some(&self.seen.len()) {
            self.lengths.push(self.seen.len());
        }
    }

    fn write(&mut self, offset: usize, data: &Bytes) {
        let end = offset + data.len();
        // A page that is written again is written out again, all of it.
        for unit in &mut self.units {
            let (first, last) = (unit.start / SECTOR, (unit.start + unit.data.len()) / SECTOR);
            unit.forsaken &= last < offset / SECTOR || first > end / SECTOR;
        }
        let seen = Arc::make_mut(&mut self.seen);
        if seen.len() < end {
            seen.resize(end, 0);
        }
        seen[offset..end].copy_from_slice(data);
        let mut at = offset;
        while at < end {
            let next = end.min((at / SECTOR + 1) * SECTOR);
            let data = data.slice(at - offset..next - offset);
            self.units.push(Unit { start: at, data, forsaken: false });
            at = next;
        }
        self.note_length();
    }

    fn set_len(&mut self, len: usize) {
        Arc::make_mut(&mut self.seen).resize(len, 0);
        self.note_length();
    }

    fn sync(&mut self) {
        if self.units.iter().all(|unit| !unit.forsaken) {
            self.durable = self.seen.clone();
            self.units.clear();
        } else {
            let bytes = Arc::make_mut(&mut self.durable);
            bytes.resize(self.seen.len(), 0);
            for unit in self.units.iter().filter(|unit| !unit.forsaken) {
                settle(bytes, unit, Fate::Kept);
            }
            self.units.retain(|unit| unit.forsaken);
        }
        self.lengths = vec![self.seen.len()];
    }
}

/// Puts what became of a write into the bytes of a file.
fn settle(bytes: &mut [u8], unit: &Unit, fate: Fate) {
    let Some(place) = bytes.get_mut(unit.start..) else { return };
    let length = place.len().min(unit.data.len());
    let (place, data) = (&mut place[..length], &unit.data[..length]);
    match fate {
        Fate::Lost => {}
        Fate::Kept => place.copy_from_slice(data),
        Fate::Zero => place.fill(0),
        Fate::Garbage => {
            // The same place always gets the same: a state is not new because of its noise.
            let mut rng = Rng::new(unit.start as u64 + 1);
            place.fill_with(|| rng.next_u64() as u8);
        }
        Fate::Torn(at) => {
            let at = usize::from(at).min(length);
            place[..at].copy_from_slice(&data[..at]);
        }
        Fate::TornFront(at) => {
            let at = usize::from(at).min(length);
            place[at..].copy_from_slice(&data[at..]);
        }
        Fate::Flip(bit) => {
            place.copy_from_slice(data);
            let bit = usize::from(bit) % (length * 8).max(1);
            if let Some(byte) = place.get_mut(bit / 8) {
                *byte ^= 1 << (bit % 8);
            }
        }
    }
}

type Names = BTreeMap<Arc<Path>, usize>;

#[derive(Clone, Debug)]
enum NameChange {
    Link(Arc<Path>, usize),
    Unlink(Arc<Path>),
    Rename(Arc<Path>, Arc<Path>, usize),
}

impl NameChange {
    fn apply(&self, names: &mut Names) {
        match self {
            Self::Link(path, file) => {
                names.insert(path.clone(), *file);
            }
            Self::Unlink(path) => {
                names.remove(path);
            }
            Self::Rename(from, to, file) => {
                names.remove(from);
                names.insert(to.clone(), *file);
            }
        }
    }

    fn is_in(&self, dir: &Path) -> bool {
        let (Self::Link(path, _) | Self::Unlink(path) | Self::Rename(_, path, _)) = self;
        path.parent() == Some(dir)
    }
}

/// The disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    files: Vec<File>,
    names: Names,
    durable_names: Names,
    unsynced: Vec<NameChange>,
    /// Always durable: they are made once, long before anything matters.
    directories: Arc<BTreeSet<PathBuf>>,
}

impl Disk {
    pub(super) fn make_dirs(&mut self, dir: &Path) {
        if !self.directories.contains(dir) {
            let directories = Arc::make_mut(&mut self.directories);
            directories.extend(dir.ancestors().map(Path::to_path_buf));
        }
    }

    pub(super) fn has_dir(&self, dir: &Path) -> bool {
        self.directories.contains(dir)
    }

    pub(super) fn find(&self, path: &Path) -> Option<usize> {
        self.names.get(path).copied()
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = &Arc<Path>> {
        self.names.keys()
    }

    /// The bytes of a file, as a process sees them.
    pub(super) fn bytes(&self, file: usize) -> &[u8] {
        self.files.get(file).map_or(&[], |f| f.seen.as_slice())
    }

    /// Replaces the bytes of a file, durably.
    pub(super) fn put(&mut self, file: usize, bytes: Vec<u8>) {
        if let Some(place) = self.files.get_mut(file) {
            *place = File::durable(Arc::new(bytes));
        }
    }

    /// All bytes of all files.
    pub(super) fn used(&self) -> u64 {
        self.names.values().map(|file| self.bytes(*file).len() as u64).sum()
    }

    fn change(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.unsynced.push(change);
    }

    pub(super) fn apply(&mut self, op: &Op) {
        match op {
            Op::Create(path) => {
                self.files.push(File::durable(Arc::default()));
                self.change(NameChange::Link(path.clone(), self.files.len() - 1));
            }
            Op::Write(file, offset, data) => self.files[*file].write(*offset, data),
            Op::SetLen(file, len) => self.files[*file].set_len(*len),
            Op::Sync(file) => self.files[*file].sync(),
            Op::FailedSync(file) => {
                self.files[*file].units.iter_mut().for_each(|unit| unit.forsaken = true);
            }
            Op::Rename(from, to) => {
                if let Some(file) = self.find(from) {
                    self.change(NameChange::Rename(from.clone(), to.clone(), file));
                }
            }
            Op::Remove(path) => self.change(NameChange::Unlink(path.clone())),
            Op::SyncDir(dir) => {
                let durable = &mut self.durable_names;
                self.unsynced.retain(|change| {
                    let synced = change.is_in(dir);
                    if synced {
                        change.apply(durable);
                    }
                    !synced
                });
            }
        }
    }

    /// How many changes of names are not durable.
    pub(super) fn loose_names(&self) -> usize {
        self.unsynced.len()
    }

    /// By file whose length may lag, how many lengths it may have.
    pub(super) fn loose_lengths(&self) -> Vec<usize> {
        self.files.iter().map(|f| f.lengths.len()).filter(|n| *n > 1).collect()
    }

    /// The lengths of the parts of sectors that are not durable.
    pub(super) fn loose_sectors(&self) -> Vec<usize> {
        self.files.iter().flat_map(|f| f.units.iter().map(|u| u.data.len())).collect()
    }

    /// What a machine finds after a loss of power.
    pub(super) fn crash(&self, choice: &Choice) -> Self {
        let mut names = self.durable_names.clone();
        for (change, kept) in self.unsynced.iter().zip(&choice.names) {
            if *kept {
                change.apply(&mut names);
            }
        }
        let (mut lengths, mut fates) = (choice.lengths.iter(), choice.fates.iter());
        let mut settled = Vec::with_capacity(self.files.len());
        for file in &self.files {
            let mut length = file.lengths.first().copied().unwrap_or(0);
            if file.lengths.len() > 1 {
                let pick = lengths.next().copied().unwrap_or(0);
                length = file.lengths.get(pick).copied().unwrap_or(length);
            }
            let mut bytes = file.durable.clone();
            if !file.units.is_empty() || length != bytes.len() {
                let bytes = Arc::make_mut(&mut bytes);
                bytes.resize(length, 0);
                for unit in &file.units {
                    settle(bytes, unit, fates.next().copied().unwrap_or(Fate::Lost));
                }
            }
            settled.push(bytes);
        }
        let mut after = Self { directories: self.directories.clone(), ..Self::default() };
        for (path, file) in names {
            let Some(bytes) = settled.get(file) else { continue };
            after.files.push(File::durable(bytes.clone()));
            after.names.insert(path, after.files.len() - 1);
        }
        after.durable_names = after.names.clone();
        after
    }

    /// A number for what is visible on it: names and bytes.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for (path, file) in &self.names {
            hasher.write(path.as_os_str().as_encoded_bytes());
            let bytes = self.bytes(*file);
            hasher.write_usize(bytes.len());
            // Two lanes at once: this is where most of the time would go.
            let mut lanes = [0xcbf2_9ce4_8422_2325u64, 0x9e37_79b9_7f4a_7c15];
            for chunk in bytes.chunks(16) {
                for (lane, half) in lanes.iter_mut().zip(chunk.chunks(8)) {
                    let mut word = [0u8; 8];
                    word[..half.len()].copy_from_slice(half);
                    let mixed =
                        (*lane ^ u64::from_le_bytes(word)).wrapping_mul(0x2545_f491_4f6c_dd1d);
                    *lane = mixed ^ (mixed >> 29);
                }
            }
            hasher.write_u64(lanes[0]);
            hasher.write_u64(lanes[1]);
        }
        hasher.finish()
    }
}
