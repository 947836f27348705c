//! Silent corruption: every single flipped bit of a data directory's files.
//!
//! It must be refused with file and offset, or be harmless, or cost the last write of a log that
//! was not closed cleanly: reported, and never with a vote.

use std::path::{Path, PathBuf};

use super::disk::{Disk, Op};
use super::life::{Allowed, LOG_DIR, Life, SNAPSHOT_DIR, body};
use super::recorder::Recorder;
use super::report::{Counts, Outcome, run_cases};
use super::script::{Step, scripts};
use super::{Options, Report, SEGMENTS};
use crate::error::StorageError;
use crate::snapshot::dir::SnapshotDir;

/// Files in a data directory, and what it held before its last write and after it.
struct Image {
    name: String,
    segment: u64,
    disk: Disk,
    /// Before the last step, then everything that it passes through.
    allowed: Allowed,
    sealed: bool,
}

impl Image {
    fn new(name: &str, segment: u64, steps: &[Step]) -> Result<Self, String> {
        let recorder = Recorder::new(Disk::default(), true);
        let mut life = Life::recorded(&recorder, segment, Allowed::nothing());
        life.open().map_err(super::life::End::describe)?;
        for step in steps {
            life.live_through(step)?;
        }
        // What was allowed while the last step ran, settled in what it came to.
        let last = life.allowed.clone();
        let in_flight = life.marks.iter().rev().find(|(_, a)| !a.is_settled());
        let logs = in_flight.map_or_else(|| last.logs.clone(), |(_, a)| a.logs.clone());
        let mut allowed = Allowed { logs, ..last };
        // The end first: a bit that costs nothing leaves this.
        allowed.logs.reverse();
        Ok(Self { name: name.to_owned(), segment, disk: recorder.disk(), allowed, sealed: false })
    }

    /// The same log, closed.
    fn sealed(name: &str, segment: u64, steps: &[Step]) -> Result<Self, String> {
        let mut image = Self::new(name, segment, steps)?;
        let recorder = Recorder::new(image.disk, false);
        let end = image.allowed.log().clone();
        let mut life = Life::recorded(&recorder, segment, image.allowed.settled(end));
        life.open().map_err(super::life::End::describe)?;
        life.close().map_err(super::life::End::describe)?;
        image.allowed = life.allowed.clone();
        image.name.push_str(", closed");
        drop(life);
        Ok(Self { disk: recorder.disk(), sealed: true, ..image })
    }

    fn files(&self) -> Vec<PathBuf> {
        self.disk.paths().map(|p| p.to_path_buf()).collect()
    }

    /// Flips one bit of a file and looks at what the code makes of it.
    fn flip(&self, path: &Path, bit: usize, counts: &mut Counts) -> Result<(), String> {
        let file = self.disk.find(path).ok_or("the file is there")?;
        let mut bytes = self.disk.bytes(file).to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let mut disk = self.disk.clone();
        disk.put(file, bytes);
        let recorder = Recorder::new(disk, false);
        let verdict = if path.starts_with(SNAPSHOT_DIR) {
            self.judge_snapshots(&recorder, path)
        } else {
            self.judge_log(&recorder, path)
        };
        let name = verdict.map_err(|e| {
            format!("{}: bit {bit} (byte {}) of {}: {e}", self.name, bit / 8, path.display())
        })?;
        counts.add(name, 1);
        Ok(())
    }

    fn judge_log(&self, recorder: &Recorder, path: &Path) -> Result<&'static str, String> {
        let end = self.allowed.log().clone();
        let opened = super::life::load(std::sync::Arc::new(recorder.clone()), self.segment);
        let is_identity = path.ends_with("identity");
        match opened {
            Err(StorageError::Corrupt { path: told, offset, reason, remedy }) => {
                let file = recorder.disk().find(&told);
                let length = file.map_or(0, |f| recorder.disk().bytes(f).len() as u64);
                if remedy.is_empty() || reason.is_empty() || !told.starts_with(LOG_DIR) {
                    return Err(format!("refused without remedy or file: {}", told.display()));
                }
                if offset > length {
                    return Err(format!("refused at offset {offset} of {length}"));
                }
                Ok(match (is_identity, told == path) {
                    (true, _) => "identity: refused",
                    (false, true) => "log: refused in its file",
                    (false, false) => "log: refused by its neighbour",
                })
            }
            Err(StorageError::Foreign { path: told, .. }) if told == path => Ok(if is_identity {
                "identity: refused as foreign"
            } else {
                "log: refused as foreign"
            }),
            Err(other) => Err(format!("unexpected: {other}")),
            Ok(_) if is_identity => Err("a damaged identity was believed".to_owned()),
            Ok((found, tail)) => {
                if (found.hard_state.term, found.hard_state.vote)
                    != (end.hard_state.term, end.hard_state.vote)
                {
                    return Err(format!("a vote changed: {:?}", found.hard_state));
                }
                if found == end {
                    return Ok("log: harmless");
                }
                if self.sealed {
                    return Err(format!("a closed log lost something: {found:?}"));
                }
                self.allowed.judge(&found)?;
                tail.map(|_| "log: last write dropped, reported")
                    .ok_or_else(|| "the last write was dropped in silence".to_owned())
            }
        }
    }

    /// All segments gone: never taken for an empty log.
    fn lose_segments(&self, counts: &mut Counts) -> Result<(), String> {
        let mut disk = self.disk.clone();
        for path in self.files().iter().filter(|p| p.extension().is_some_and(|e| e == "seg")) {
            disk.apply(&Op::Remove(path.as_path().into()));
        }
        let recorder = Recorder::new(disk, false);
        match super::life::load(std::sync::Arc::new(recorder), self.segment) {
            Err(StorageError::Corrupt { .. }) => {
                counts.add("log: all segments missing, refused", 1);
                Ok(())
            }
            other => Err(format!("{}: all segments are missing: {other:?}", self.name)),
        }
    }

    fn judge_snapshots(&self, recorder: &Recorder, path: &Path) -> Result<&'static str, String> {
        let vfs = std::sync::Arc::new(recorder.clone());
        let dir = SnapshotDir::open(vfs, SNAPSHOT_DIR).map_err(|e| e.to_string())?;
        for position in &self.allowed.kept {
            match dir.open_snapshot(*position).and_then(|reader| reader.read_all()) {
                Ok(bytes) if bytes == body(*position) => {}
                Ok(_) => return Err("other bytes were believed".to_owned()),
                Err(StorageError::Corrupt { path: told, .. }) if told == path => {
                    return Ok("snapshot: refused");
                }
                Err(StorageError::Foreign { path: told, .. }) if told == path => {
                    return Ok("snapshot: refused as foreign");
                }
                Err(other) => return Err(format!("unexpected: {other}")),
            }
        }
        Err("a damaged snapshot was believed".to_owned())
    }
}

fn images() -> Result<Vec<Image>, String> {
    let mut images = Vec::new();
    for (number, (name, steps)) in scripts().into_iter().enumerate() {
        let segment = SEGMENTS[number % SEGMENTS.len()];
        images.push(Image::new(name, segment, &steps)?);
        images.push(Image::sealed(name, segment, &steps)?);
        // And from the middle: a script may end where little can go wrong.
        let half = &steps[..steps.len() / 2 + 1];
        if half.iter().any(|step| matches!(step, Step::LeaveRoom(_))) {
            // Its last call may have failed: what was allowed then is no write that may go.
            continue;
        }
        images.push(Image::new(&format!("half of {name}"), segment, half)?);
    }
    Ok(images)
}

/// Flips every bit, or one in `stride`, of the files of several data directories: logs of several
/// segments, closed and not, with files used again; identities; snapshots. A case is one of them.
pub fn flips(options: &Options) -> Report {
    let images = match images() {
        Ok(images) => images,
        Err(what) => {
            let failure = Some(super::Failure { case: 0, what });
            return Report { failure, ..Report::default() };
        }
    };
    let stride = options.stride.max(1);
    run_cases(options.jobs, options.cases(images.len() as u64), u64::MAX, |case| {
        let mut outcome = Outcome::default();
        let image = usize::try_from(case).ok().and_then(|case| images.get(case));
        let Some(image) = image else { return outcome };
        let counts = &mut outcome.counts;
        let lost = image.lose_segments(counts);
        let result = lost.and_then(|()| {
            image.files().iter().try_for_each(|path| {
                let file = image.disk.find(path).unwrap_or(usize::MAX);
                let bits = image.disk.bytes(file).len() * 8;
                (0..bits).step_by(stride).try_for_each(|bit| {
                    counts.add("bits", 1);
                    image.flip(path, bit, counts)
                })
            })
        });
        outcome.failure = result.err();
        outcome
    })
}
