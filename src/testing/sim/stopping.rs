//! How nodes end by themselves, or when they are told to: which failure comes of which fault, what
//! a damaged disk may do to a start, and the clean shutdown.

use super::disk::run;
use super::life::Crash;
use super::machine::{Drain, Life, Mischief};
use super::marks::Mark;
use super::plan::Knob;
use super::schedule::Time;
use super::world::{What, World};
use crate::driver::leave::Inquiry;
use crate::error::{Error, StorageError};
use crate::testing::vfs::CrashStyle;
use crate::types::NodeId;

/// EIO and ENOSPC: what the two kinds of faults of a disk look like.
const IO_ERROR: i32 = 5;
const DISK_FULL: i32 = 28;

/// Why a node cannot go on.
pub(super) enum Cause {
    /// A file could not be written or read.
    Files(Error),
    /// The Store failed, and what it had been told to do.
    Store(Error, Option<Mischief>),
    /// The node itself has found out.
    Node(Error),
}

/// Why a node does not start.
pub(super) enum Refusal {
    /// The crate says so.
    Files(Error),
    /// The oracle does: the disk holds something else. `explained`: the damage is in what was
    /// written last, where it looks as if power had torn it.
    Contents { what: String, explained: bool },
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Files(error)
    }
}

impl Cause {
    fn error(&self) -> &Error {
        match self {
            Self::Files(e) | Self::Store(e, _) | Self::Node(e) => e,
        }
    }

    /// In words. The remedies are for nodes that are not simulated.
    fn told(&self) -> String {
        match self.error() {
            Error::StoreFailed { index, reason, .. } => {
                format!("its Store failed at index {index}: {reason}")
            }
            error => error.to_string(),
        }
    }

    /// The fault that it comes of, if it is one that this disk was to show, or this Store.
    fn explained(&self, armed: Option<Knob>) -> Option<Mark> {
        match self {
            Self::Files(Error::Storage(StorageError::Io { source, .. })) => {
                match (armed?, source.raw_os_error()) {
                    (Knob::DiskFull, Some(DISK_FULL)) => Some(Mark::DiskFullStops),
                    (Knob::DiskError, Some(IO_ERROR)) => Some(Mark::DiskErrorStops),
                    (_, _) => None,
                }
            }
            Self::Store(Error::StoreFailed { reason, .. }, Some(told)) => {
                let mark = match told {
                    Mischief::Fail => Mark::StoreErrorStops,
                    Mischief::Panic => Mark::StorePanicStops,
                };
                reason.contains("as told").then_some(mark)
            }
            Self::Files(_) | Self::Store(_, _) | Self::Node(_) => None,
        }
    }

    fn is_damage(&self) -> bool {
        matches!(self, Self::Files(Error::Storage(StorageError::Corrupt { .. })))
    }
}

impl World {
    /// A node has ended by itself, as a failure makes it: its process goes on to end.
    pub(super) fn stopped(&mut self, id: NodeId, cause: &Cause) {
        let reason = cause.told();
        self.note(|| format!("node {id} stops: {reason}"));
        let told = matches!(cause, Cause::Node(_));
        if self.at(id).rolled_back && told && reason.contains("acknowledged entries are lost") {
            // The leader's heartbeat told it so.
            self.refused_boot(id);
            return;
        }
        let fault = cause.explained(self.nemesis.armed(id));
        let rotten = self.nemesis.is_rotten(id) && cause.is_damage();
        assert!(
            fault.is_some() || rotten,
            "node {id} stops without a fault that explains it (armed: {:?}): {reason}",
            self.nemesis.armed(id)
        );
        let m = self.at(id);
        m.vfs = m.vfs.duplicate();
        self.end_process(id);
        if let Some(mark) = fault {
            self.hit(mark);
            self.restart_later(id);
        } else {
            self.hit(Mark::RotRefused);
            self.lose_disk(id);
        }
    }

    /// A node does not start: only a flipped bit may do that.
    pub(super) fn refused_start(&mut self, id: NodeId, refusal: &Refusal) {
        let (what, explained) = match refusal {
            Refusal::Files(e) => {
                let damage = matches!(
                    e,
                    Error::Storage(StorageError::Corrupt { .. } | StorageError::Foreign { .. })
                );
                (e.to_string(), damage || matches!(e, Error::DataDir { .. }))
            }
            Refusal::Contents { what, explained } => (what.clone(), *explained),
        };
        let rotten = self.nemesis.is_rotten(id);
        assert!(rotten && explained, "node {id} refuses to start (rotten: {rotten}): {what}");
        let refused = matches!(refusal, Refusal::Files(_));
        self.hit(if refused { Mark::RotRefused } else { Mark::RotCostsLast });
        self.note(|| format!("node {id}: its disk is damaged: {what}"));
        // NB: what was written last is gone without a word, which the cluster must never see.
        self.lose_disk(id);
    }

    /// A node is told to shut down.
    pub(super) fn shut_down(&mut self) {
        let leader = self.leader().filter(|_| self.chance.fault.one_in(2));
        let Some(id) = leader.or_else(|| self.any_up()) else { return };
        let until = self.now() + self.config.request_timeout.as_micros() as Time;
        if let Some(r) = self.at(id).running() {
            r.drain.get_or_insert(Drain { until, told: false });
            self.wake(id);
        }
    }

    /// Ends a node that is shutting down, once everything is answered or its time is up.
    pub(super) fn end_drained(&mut self, id: NodeId, epoch: u64) {
        let now = self.now();
        let Some(drain) = self.alive(id, epoch).and_then(|r| r.drain) else { return };
        let busy = self.clients.asks(id) || self.churn.asks(id) || self.serves_calls(id);
        if busy && now < drain.until {
            return;
        }
        self.marks.hit_if(Mark::ShutDownBusy, busy);
        self.seal(id);
    }

    /// What the log thread does last: writes what is queued, and seals. Whatever comes then, even
    /// a loss of power: all of it is there when the log is opened again.
    pub(super) fn seal(&mut self, id: NodeId) {
        let leads = self.at(id).leads();
        let Some(r) = self.at(id).running() else { return };
        let mut jobs = std::mem::take(&mut r.writing);
        jobs.append(&mut r.log_queue);
        let ran = run(&mut *r.log, &jobs).and_then(|_| r.log.close());
        if let Err(error) = ran {
            return self.stopped(id, &Cause::Files(error.into()));
        }
        self.oracle.write_is_done(id, jobs.len());
        let how = [Crash::Kill, Crash::Power][self.chance.fault.below(2) as usize];
        let style = CrashStyle::Seeded(self.chance.fault.next_u64());
        let m = self.at(id);
        m.vfs = match how {
            Crash::Kill => m.vfs.duplicate(),
            Crash::Power => m.vfs.crash(style),
        };
        self.note(|| format!("node {id} has shut down; then {how:?}"));
        self.end_process(id);
        self.at(id).sealed = true;
        self.hit(if leads { Mark::ShutDownLeader } else { Mark::ShutDownFollower });
        self.restart_later(id);
    }

    /// A removed node lingers until the others know; then it ends. The rule is the driver's.
    pub(super) fn depart(&mut self, id: NodeId, epoch: u64) {
        let now = self.now();
        let (pause, election) = (self.config.heartbeat, self.config.election_timeout());
        let [pause, election] = [pause, election].map(|d| d.as_micros() as Time);
        let Some(r) = self.alive(id, epoch) else { return };
        let (Some(view), me) = (r.view.clone(), r.raft_id) else { return };
        let late = r.removed.is_some_and(|since| now >= since + 2 * election);
        let mut inquiry = Inquiry::new(me, view, r.hints.clone());
        loop {
            let addrs = inquiry.ask();
            if addrs.is_empty() {
                break;
            }
            let others: Vec<NodeId> = addrs.iter().filter_map(|a| self.listener(a)).collect();
            for at in others {
                let heard = !self.net.is_cut(id, at) && !self.net.is_cut(at, id);
                let told = self.at(at).running().filter(|_| heard).and_then(|r| r.view.clone());
                told.into_iter().for_each(|theirs| inquiry.told(at, theirs));
            }
        }
        let knowing = inquiry.end();
        self.marks.hit_if(Mark::LingersForOthers, !knowing.is_enough(true));
        if knowing.is_enough(late) {
            self.marks.hit_if(Mark::LeavesBeforeAll, !knowing.is_enough(false));
            self.end_process(id);
            self.at(id).life = Life::Out;
        } else {
            let pause = if late { election } else { pause };
            self.schedule.after(pause, What::Depart(id, epoch));
        }
    }

    /// A log is opened that was sealed, or was not.
    pub(super) fn sealed_again(
        &mut self,
        id: NodeId,
        sealed: bool,
        survived: usize,
        tail: Option<&str>,
    ) {
        if sealed {
            assert_eq!(survived, 0, "node {id}: its log was sealed with writes under way");
            // A flipped bit in the seal itself makes it look like a crash; nothing else may.
            let seal_gone = self.nemesis.is_rotten(id) && tail.is_some();
            assert!(seal_gone || tail.is_none(), "node {id}: {tail:?} is gone from its sealed log");
            self.hit(Mark::SealedReopened);
        }
    }
}
