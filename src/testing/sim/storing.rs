//! The apply task of each machine, over the real Store: applies, queries, captures, installs, in
//! the order in which they were emitted.

use std::collections::BTreeSet;

use super::machine::Mischief;
use super::marks::Mark;
use super::plan::Knob;
use super::schedule::Time;
use super::stopping::Cause;
use super::subject::{DIGEST, mix};
use super::world::{What, World};
use crate::driver::batch::{Answers, Batch, Panic, answer, judge};
use crate::driver::capture::write_snapshot;
use crate::error::Error;
use crate::node::effect::{Committed, Effect};
use crate::node::event::{Applied, Event, Read};
use crate::testing::contain::last_place;
use crate::testing::text::{shown, shown_all};
use crate::types::{Membership, NodeId, Position, SnapshotMeta};

/// How a call of a Store ends for its node.
type Ended = Result<(), Cause>;

impl World {
    pub(super) fn store_job(&mut self, id: NodeId, job: Effect) {
        let Some(r) = self.at(id).running() else { return };
        r.jobs.push_back(job);
        self.start_store(id);
    }

    fn start_store(&mut self, id: NodeId) {
        let delay = Self::around(&mut self.chance.disk, self.plan.get(Knob::StoreUs));
        let now = self.now();
        let m = self.at(id);
        let at = (now + delay).max(m.store_hangs_until).max(m.paused_until);
        let epoch = m.epoch;
        let Some(r) = m.running().filter(|r| !r.store_busy && !r.jobs.is_empty()) else { return };
        r.store_busy = true;
        self.schedule.at(at, What::Stored(id, epoch));
    }

    pub(super) fn stored(&mut self, id: NodeId, epoch: u64) {
        let now = self.now();
        let m = self.at(id);
        let until: Time = m.store_hangs_until.max(m.paused_until);
        let Some(r) = self.alive(id, epoch) else { return };
        if until > now {
            self.schedule.at(until, What::Stored(id, epoch));
            return;
        }
        r.store_busy = false;
        let ended = match r.jobs.pop_front() {
            Some(Effect::Apply(entries)) => self.apply(id, epoch, entries),
            Some(Effect::Query(reads)) => self.query(id, reads),
            Some(Effect::Capture { position, membership }) => {
                self.capture(id, epoch, position, membership)
            }
            Some(Effect::Install { meta }) => self.install(id, epoch, &meta),
            Some(other) => unreachable!("not a job of the Store: {other:?}"),
            None => Ok(()),
        };
        match ended {
            Ok(()) => self.start_store(id),
            Err(cause) => self.stopped(id, &cause),
        }
        self.collect(id);
    }

    fn apply(&mut self, id: NodeId, epoch: u64, mut entries: Vec<Committed>) -> Ended {
        let skip = BTreeSet::new();
        let mut rest = entries.as_mut_slice();
        while !rest.is_empty() {
            let Some(r) = self.machines.get_mut(&id).and_then(|m| m.running()) else { break };
            let batch = Batch::new(rest, &skip, r.applied).map_err(Cause::Node)?;
            // A Store that is given nothing cannot fail at it.
            let given = !batch.proposals.is_empty();
            let mischief = if given { r.mischief.take() } else { None };
            let (counts, last) = (batch.counts.clone(), batch.last);
            self.oracle.emitted(id, &batch, &mut self.marks);
            let answers = match mischief {
                Some(Mischief::Panic) => Err(Box::new("as told") as Box<_>),
                Some(Mischief::Fail) => Ok(vec![Err(Error::fatal("as told"))]),
                None => {
                    let commands = batch.proposals.iter().map(|p| p.data);
                    let call = r.store.apply_batch(&batch.proposals);
                    let called = self.caller.call(id, "apply_batch", commands, call);
                    called.map_err(|panicked| Box::new(panicked.to_string()) as Panic)
                }
            };
            let blame = blame(&batch, &answers);
            let (answers, failure) = judge(&batch.proposals, answers);
            if failure.is_none() {
                self.oracle.answered(id, &batch, &answers, &mut self.marks);
            }
            drop(batch);
            let failed = failure.as_ref().map(|(index, _)| *index);
            answer(rest, &counts, answers, &skip, failed);
            if let Some((_, error)) = failure {
                return Err(Cause::Store(blamed(error, &blame), mischief));
            }
            r.applied = last;
            self.complete(id, epoch, Event::Applied { index: last });
            rest = rest.get_mut(counts.len()..).unwrap_or_default();
        }
        Ok(())
    }

    fn query(&mut self, id: NodeId, reads: Vec<Read>) -> Ended {
        let Some(r) = self.machines.get_mut(&id).and_then(|m| m.running()) else { return Ok(()) };
        let index = r.applied;
        for Read { query, reply, .. } in reads {
            let Some(query) = query else {
                reply.send(Ok(Applied { index, data: Vec::new() }));
                continue;
            };
            let data = self.caller.must(id, "query", Some(&query), r.store.query(&query));
            reply.send(data.map(|data| Applied { index, data }));
        }
        Ok(())
    }

    fn capture(
        &mut self,
        id: NodeId,
        epoch: u64,
        position: Position,
        membership: Membership,
    ) -> Ended {
        self.oracle.captured(position, &membership);
        let delay = Self::around(&mut self.chance.disk, 4 * self.plan.get(Knob::DiskUs));
        let Some(r) = self.machines.get_mut(&id).and_then(|m| m.running()) else { return Ok(()) };
        r.applied = r.applied.max(position.index);
        match self.caller.must(id, "snapshot", None, r.store.snapshot()) {
            Ok(data) => {
                if self.subject.mixed {
                    self.oracle.captured_state(id, position.index, mix(DIGEST, &data));
                }
                r.captures += 1;
                let what = What::Captured(id, epoch, position, Box::new(membership), data);
                self.schedule.after(delay, what);
            }
            Err(_) => self.complete(id, epoch, Event::SnapshotFailed),
        }
        Ok(())
    }

    /// The captured state gets its turn on the disk.
    pub(super) fn captured(
        &mut self,
        id: NodeId,
        epoch: u64,
        position: Position,
        membership: Membership,
        data: &[u8],
    ) {
        let now = self.now();
        let stalled = self.at(id).stalled_until;
        let Some(r) = self.alive(id, epoch) else { return };
        if stalled > now {
            let what = What::Captured(id, epoch, position, Box::new(membership), data.to_vec());
            self.schedule.at(stalled, what);
            return;
        }
        r.captures -= 1;
        let event = match write_snapshot(&r.snapshots, position, membership, data) {
            Ok(meta) => Event::SnapshotBuilt { meta },
            Err(_) => {
                self.hit(Mark::SnapshotFailed);
                Event::SnapshotFailed
            }
        };
        self.complete(id, epoch, event);
    }

    fn install(&mut self, id: NodeId, epoch: u64, meta: &SnapshotMeta) -> Ended {
        self.oracle.installs(id, meta);
        let index = meta.position.index;
        let Some(r) = self.machines.get_mut(&id).and_then(|m| m.running()) else { return Ok(()) };
        let reader = r.snapshots.open_snapshot(meta.position);
        let data = reader.and_then(|r| r.read_all()).map_err(|e| Cause::Files(e.into()))?;
        let call = r.store.restore(&data);
        let restored = self.caller.must(id, "restore", Some(&data), call);
        restored.map_err(|e| Cause::Store(e, None))?;
        r.applied = index;
        if self.subject.mixed {
            let restored = self.caller.must(id, "snapshot", None, r.store.snapshot());
            let states = [Some(&data), restored.as_ref().ok()];
            self.oracle.restored(id, index, states.map(|s| s.map_or(0, |s| mix(DIGEST, s))));
        }
        self.note(|| format!("the Store of node {id} restores the snapshot at {index}"));
        self.hit(Mark::SnapshotInstalled);
        self.complete(id, epoch, Event::Installed { index });
        Ok(())
    }
}

/// The failure of a Store, with the command that it failed at.
fn blamed(error: Error, blame: &str) -> Error {
    match error {
        Error::StoreFailed { index, reason, remedy } => {
            Error::StoreFailed { index, reason: reason + blame, remedy }
        }
        other => other,
    }
}

/// Which command a Store has failed at, as far as it can be told.
fn blame(batch: &Batch<'_>, answers: &Result<Answers, Panic>) -> String {
    let is_failure = |a: &Result<_, _>| !matches!(a, Ok(_) | Err(Error::Rejected(_)));
    match answers {
        Err(_) => format!("; the batch was {}", shown_all(batch.proposals.iter().map(|p| p.data))),
        Ok(answers) => {
            let failed = answers.iter().position(is_failure);
            let Some(p) = failed.and_then(|at| batch.proposals.get(at)) else {
                return String::new();
            };
            // The default `apply_batch` has caught it.
            let place = last_place().map(|place| format!(" (at {place})")).unwrap_or_default();
            format!("{place}; the command was {}", shown(p.data))
        }
    }
}
