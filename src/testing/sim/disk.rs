//! The log thread of each machine: takes everything that is queued, writes it as one, tells.

use super::disk_model::Write;
use super::machine::{Life, LogJob, Machine};
use super::marks::Mark;
use super::plan::Knob;
use super::schedule::Time;
use super::stopping::Cause;
use super::world::{What, World};
use crate::error::StorageError;
use crate::log::{LogBatch, LogStorage};
use crate::node::event::Event;
use crate::types::{Index, NodeId, Position};

impl World {
    pub(super) fn log_job(&mut self, id: NodeId, job: LogJob) {
        self.oracle.write_begins(id, &job, &mut self.marks);
        if let LogJob::Append { batch, .. } = &job
            && let Some(node) = self.machines.get(&id).and_then(Machine::node)
        {
            batch.entries.iter().for_each(|entry| self.oracle.appends(entry, node));
        }
        let Some(r) = self.at(id).running() else { return };
        r.log_queue.push(job);
        self.start_writing(id);
    }

    /// Lets an idle log thread take what is queued.
    fn start_writing(&mut self, id: NodeId) {
        let mut delay = Self::around(&mut self.chance.disk, self.plan.get(Knob::DiskUs));
        let now = self.now();
        let m = self.at(id);
        delay += m.stalled_until.saturating_sub(now);
        let epoch = m.epoch;
        let Some(r) = m.running() else { return };
        if !r.writing.is_empty() || r.log_queue.is_empty() {
            return;
        }
        r.writing = std::mem::take(&mut r.log_queue);
        r.writing_since = now;
        self.schedule.after(delay, What::Written(id, epoch));
    }

    /// The log thread's write ends: the log does it, at this moment.
    pub(super) fn written(&mut self, id: NodeId, epoch: u64) {
        let now = self.now();
        let m = self.at(id);
        let wait = m.paused_until.max(m.stalled_until);
        let Some(r) = self.alive(id, epoch) else { return };
        if wait > now {
            self.schedule.at(wait, What::Written(id, epoch));
            return;
        }
        let jobs = std::mem::take(&mut r.writing);
        let ran = run(&mut *r.log, &jobs);
        self.stats.syncs += 1;
        match ran {
            Ok(last) => {
                let truncated = self.oracle.write_is_done(id, jobs.len());
                self.marks.hit_if(Mark::Truncated, truncated);
                if self.nemesis.crashes_after_write(&mut self.chance.fault) {
                    self.hit(Mark::CrashAfterWrite);
                    self.crash(id, super::life::Crash::Power);
                    return;
                }
                if let Some(number) = last {
                    // The news takes its time to the event loop.
                    self.complete(id, epoch, Event::Persisted { number });
                }
                self.start_writing(id);
            }
            Err(error) => self.stopped(id, &Cause::Files(error.into())),
        }
    }

    /// Whether a write has been under way for far longer than a node waits for it (R12).
    pub(super) fn is_stalled(&self, id: NodeId) -> bool {
        // A node that was paused has not counted the time.
        let pauses = self.plan.get(Knob::Pause) > 0;
        let Some(m) = self.machines.get(&id).filter(|_| !pauses) else { return false };
        let Life::Running(r) = &m.life else { return false };
        let writes = r.writing.iter().any(|job| match job {
            LogJob::Append { batch, .. } => !batch.is_empty(),
            LogJob::Compact(_) => false,
        });
        writes && r.writing_since + 5 * m.tick < self.now()
    }

    /// Power goes while the log writes: only some of the calls have taken effect.
    pub(super) fn tear_write(&mut self, id: NodeId) {
        let nth = 1 + self.chance.fault.below(4);
        let m = self.at(id);
        let vfs = m.vfs.clone();
        let Some(r) = m.running().filter(|r| !r.writing.is_empty()) else { return };
        vfs.fail_at(nth, crate::testing::vfs::Fault::PowerOff);
        let jobs = std::mem::take(&mut r.writing);
        let torn = run(&mut *r.log, &jobs).is_err();
        if torn {
            self.hit(Mark::CrashInWrite);
        } else {
            // It came to its end before the power went.
            vfs.disarm();
            self.oracle.write_is_done(id, jobs.len());
        }
    }

    pub(super) fn retain(&mut self, id: NodeId, epoch: u64, keep: Index) {
        let sending = self.transfers.in_use(id);
        let now = self.now();
        if self.at(id).stalled_until > now {
            let at: Time = self.at(id).stalled_until;
            self.schedule.at(at, What::Retain(id, epoch, keep));
            return;
        }
        let Some(r) = self.alive(id, epoch) else { return };
        // NB: a file that could not be removed is tried again with the next compaction.
        let _ = r.snapshots.retain(keep, |index| sending.contains(&index));
    }
}

/// What the log thread does with one batch of work; the number of its last append.
pub(super) fn run(log: &mut dyn LogStorage, jobs: &[LogJob]) -> Result<Option<u64>, StorageError> {
    let mut batches: Vec<LogBatch> = Vec::new();
    let mut last = None;
    for job in jobs {
        match job {
            LogJob::Append { number, batch } => {
                last = Some(*number);
                if !batch.is_empty() {
                    batches.push(batch.clone());
                }
            }
            LogJob::Compact(through) => {
                if !batches.is_empty() {
                    log.append(&batches)?;
                    batches.clear();
                }
                log.compact(*through)?;
            }
        }
    }
    if !batches.is_empty() {
        log.append(&batches)?;
    }
    Ok(last)
}

impl From<&LogJob> for Write {
    fn from(job: &LogJob) -> Self {
        match job {
            LogJob::Append { batch, .. } => Self::Batch(batch.clone()),
            LogJob::Compact(through) => Self::Compact(Position { ..*through }),
        }
    }
}
