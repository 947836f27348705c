//! The bug zoo: deliberate defects, one line each at the place that they break, to prove that the
//! checks catch them. A check that cannot fail is no check.
//!
//! Only a build with `--cfg raftline_zoo` has them; no feature reaches that. In any other build
//! [`has`] is a constant false, and nothing of a defect is left. In a zoo build the environment
//! variable `RAFTLINE_BUG` chooses one by its name, once per process; without it there is none.
//!
//! It never decides anything: whoever asks breaks a rule in one short `if`.

macro_rules! bugs {
    ($($bug:ident $name:literal $rule:literal $layer:expr, $what:literal;)*) => {
        /// A deliberate defect.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Bug {
            $(#[doc = $what] $bug,)*
        }

        #[cfg(any(test, raftline_zoo))]
        impl Bug {
            const ALL: &'static [(Self, &'static str)] = &[$((Self::$bug, $name),)*];
        }

        /// Every defect, with what must catch it.
        #[cfg(any(test, feature = "testing"))]
        pub const ENTRIES: &[Entry] =
            &[$(Entry { name: $name, rule: $rule, layer: $layer, what: $what },)*];
    };
}

#[cfg(any(test, feature = "testing"))]
use Layer::{CrashStates, Flips, IoFaults, Lean, Sim};

bugs! {
    // What leaves, and when.
    SendBeforeDurable "send-before-durable" "R2" Sim(100), "everything of a Ready leaves before its batch is durable";
    VoteBeforeDurable "vote-before-durable" "R2" Sim(100), "a vote leaves before it is durable";
    AckBeforeDurable "ack-before-durable" "R2" Sim(100), "entries are acknowledged before they are durable";
    OvertakeVote "overtake-vote" "R2" Sim(500), "a heartbeat response overtakes the write of a vote";
    NewTermAtOnce "new-term-at-once" "H6" Lean(500, "disk_us=30000 latency_us=100"), "messages of a term leave before the term is durable";
    CountUnsynced "count-unsynced" "R2" Sim(100), "a leader counts its own entries before they are durable";

    // Terms and roles.
    LeadWithoutVote "lead-without-vote" "H1" Lean(1500, "remove_leader=4000 join=3000 spares=3"), "a leader that was removed goes on to lead";
    VoteForgotten "vote-forgotten" "I2" Sim(500), "a start forgets whom the node has voted for";
    SendWhileStalled "send-while-stalled" "R12" Sim(500), "a leader goes on sending behind a stalled disk";
    CommitBelowApplied "commit-below-applied" "H8" Lean(500, "durable_store=1 power=4000 disk_us=30000"), "a start takes the commit index of the log, however far the Store is";
    CommitAhead "commit-ahead" "H8" Sim(1000), "a commit index reaches the disk before the entries that it speaks of";

    VoteForAnyLog "vote-for-any-log" "I4" Sim(500), "a vote is given whatever the candidate's log lacks";
    CandidateWaits "candidate-waits" "I15" Lean(500, "nodes=3 cut=3000 kill_leader=3000"), "a candidate waits for its votes for ever";
    StaleIsHostile "stale-is-hostile" "gate" Sim(100), "a message that comes late counts as an attack";
    TickAlways "tick-always" "R11" Lean(1500, "nodes=3 stall=3000 kill_leader=3000 snapshot_entries=4 trailing=0 cut=4000 disk_us=30000 join=3000 remove=4000 spares=3"), "a node campaigns while its disk holds up what it knows";

    // Reads.
    ReadContextReused "read-context-reused" "H3" Sim(1000), "all ReadIndex rounds share a context";
    ReadAtCommit "read-at-commit" "R15" Sim(500), "a read is served at the engine's commit index, ahead of the Store";
    ReadUnconfirmed "read-unconfirmed" "R15" Lean(500, "nodes=3 cut=4000 reads=60"), "a leader answers reads without asking whether it still leads";
    ReadByLease "read-by-lease" "R15" Lean(500, "transfer=2000 pause=3000 cut=4000 skew=30"), "a leader answers reads by a lease";
    ReadTooEarly "read-too-early" "R15" Sim(500), "a read that is to see an index is served below it";
    CountUncommitted "count-uncommitted" "R15" Sim(100), "what is in the log counts as given to the Store";
    ReadAskedOnce "read-asked-once" "H4" Sim(500), "a read whose round was lost is not asked again";
    ReadOvertakes "read-overtakes" "R7" Sim(500), "a read overtakes the entries that wait for a membership record";

    // Outcomes.
    AnswerByIndex "answer-by-index" "R14" Sim(1000), "a proposal is answered by whatever entry stands at its index";
    OverwriteMeansDropped "overwrite-means-dropped" "R14" Sim(1000), "an overwritten tail tells every proposer that nothing happened";
    DeposedMeansDropped "deposed-means-dropped" "R14" Sim(500), "a leader that is deposed tells every proposer that nothing happened";
    CoveredMeansDropped "covered-means-dropped" "R14" Lean(1000, "nodes=3 timeout_ms=30000 snapshot_entries=4 trailing=0 cut=4000 burst=4000"), "a snapshot over a proposal tells its proposer that nothing happened";
    TimeoutMeansNever "timeout-means-never" "R14" Sim(500), "a deadline after the append is told as not applied";
    ProposeAbandoned "propose-abandoned" "R14" Sim(500), "a proposal is appended whose caller was told that it is not";
    RetryUnknown "retry-unknown" "R14" Sim(500), "a forwarded proposal of unknown outcome is sent again";
    UnknownMeansNever "unknown-means-never" "R14" Lean(500, "kill=4000 burst=4000"), "an unknown outcome becomes certain on the wire";
    LoserUntold "loser-untold" "I14" Sim(500), "whoever waits for an entry that another one took the place of is told nothing";
    StaleHint "stale-hint" "I15" Sim(100), "a node names the first leader that it heard of for ever";
    RoleUntold "role-untold" "I15" Sim(100), "a node that comes to lead goes on refusing requests";
    AnswersSwapped "answers-swapped" "R14" Sim(500), "the answers of a packed entry go to its proposers in the wrong order";
    StoreErrorIgnored "store-error-ignored" "R3" Sim(500), "a Store that failed is given the next entries";

    // Membership.
    MembershipUnrecorded "membership-unrecorded" "R7" Sim(500), "a membership change is not written";
    TellStoreFirst "tell-store-first" "R7" Sim(500), "the Store hears of an index before its membership record is durable";
    TellPeersFirst "tell-peers-first" "R7" Sim(500), "others are told of a membership before its record is durable";
    ChangeTwice "change-twice" "R7" Sim(500), "a start applies membership changes that its record holds already";
    RaftIdReused "raft-id-reused" "R17" Sim(500), "a joiner gets the raft id of a removed member";
    ReadmitUnderOldId "readmit-under-old-id" "R17" Sim(500), "an empty disk under a known node id gets the raft id of the lost one";
    JointForEver "joint-for-ever" "R17" Sim(500), "a joint configuration is never left";
    JointOrphaned "joint-orphaned" "R17" Lean(500, "in_change=1500 set=3000 kill_leader=3000"), "a joint configuration is left by the leader that has entered it, and by no other";
    AnswerInJoint "answer-in-joint" "R17" Sim(500), "a change is answered once its joint configuration is entered";
    ExpectedRefused "expected-refused" "I15" Lean(1000, "nodes=3 spares=3 add=3000 replace=4000 latency_us=20000"), "a node turns away a member whose joining it has not heard of";
    PromoteUncaught "promote-uncaught" "R17" Sim(500), "a learner is promoted before it has caught up";
    QuorumIgnored "quorum-ignored" "R17" Sim(1000), "a removal is proposed that leaves voters of whom no majority is reachable";

    // The Store and its snapshots.
    ApplyAgain "apply-again" "R8" Sim(500), "a durable Store is given entries that it holds";
    SnapshotIndexLow "snapshot-index-low" "I5" Sim(500), "a snapshot holds an entry above its index";
    SnapshotIndexHigh "snapshot-index-high" "I5" Sim(500), "a snapshot lacks the entry at its index";
    CompactUnrecorded "compact-unrecorded" "R10" Sim(100), "the log is compacted before the snapshot's record is durable";
    CompactToApplied "compact-to-applied" "R10" Sim(500), "the log is compacted beyond the snapshot";
    RestoreUnrecorded "restore-unrecorded" "R11" Sim(500), "a snapshot is restored before its record is durable";
    InstallUncounted "install-uncounted" "I8" Sim(500), "what a snapshot brings does not count as given to the Store";
    SnapshotDoubled "snapshot-doubled" "I5" Sim(500), "a snapshot's file holds its data twice";
    RestoreForgotten "restore-forgotten" "R11" Lean(500, "snapshot_entries=4 trailing=0 power=4000"), "a start forgets that a restore was interrupted";
    TransferUnreported "transfer-unreported" "H7" Sim(500), "the engine never hears how a snapshot's transfer ended";
    SnapshotWithoutReceiver "snapshot-without-receiver" "H13" Sim(500), "a snapshot is sent whose membership lacks its receiver";

    // The files.
    SkipSync "skip-sync" "R1" CrashStates(10_000), "a write of the log is not synced";
    SegmentUnlisted "segment-unlisted" "R1" CrashStates(10_000), "the directory of a new segment is not synced";
    PayloadUnchecked "payload-unchecked" "I3" CrashStates(10_000), "a payload with a wrong checksum is believed";
    OldFrames "old-frames" "I3" CrashStates(100_000), "frames of an earlier use of the file are believed";
    StateWithoutVote "state-without-vote" "I2" CrashStates(10_000), "a new segment does not repeat the vote";
    SplitBatch "split-batch" "R1" CrashStates(20_000), "a batch is two records, which a crash tears apart";
    TakeOverAnew "take-over-anew" "I10" CrashStates(100_000), "a start takes the last write over under a new number";
    FreeFirst "free-first" "R10" CrashStates(10_000), "segments are freed before the record that makes them unnecessary";
    ReplayUntruncated "replay-untruncated" "I3" CrashStates(20_000), "recovery forgets truncations";
    ReplayUncompacted "replay-uncompacted" "I3" CrashStates(100_000), "recovery forgets compactions";
    IdentityUnsynced "identity-unsynced" "R18" CrashStates(10_000), "the identity is renamed before it is synced";
    SnapshotUnsynced "snapshot-unsynced" "R1" CrashStates(20_000), "a snapshot is renamed before it is synced";
    CutFirst "cut-first" "I10" CrashStates(100_000), "an old segment is cut before the new one is durable";
    GoOnAfterError "go-on-after-error" "R5" IoFaults, "the log goes on after an error";
    LaterIgnored "later-ignored" "I10" Flips, "damage before acknowledged writes is taken for an unsynced tail";
    SealUnsynced "seal-unsynced" "I10" Lean(500, "shutdown=2000 segment_kib=64"), "the frame that seals a log is not synced";
    ErrorReworded "error-reworded" "R5" Sim(500), "an error of the disk is passed on without its cause";
    CloseUnsealed "close-unsealed" "I10" Flips, "a clean shutdown does not seal the log";
}

/// The layer of checks that must catch a defect, and what it may cost.
#[cfg(any(test, feature = "testing"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// The simulator, within so many seeds.
    Sim(u64),
    /// Likewise, with these knobs of every plan turned: what breaks is rare.
    Lean(u64, &'static str),
    /// Crash states of the files, within so many.
    CrashStates(u64),
    /// Every failing call of the file layer.
    IoFaults,
    /// Every flipped bit.
    Flips,
}

/// An entry of the zoo.
#[cfg(any(test, feature = "testing"))]
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// What `RAFTLINE_BUG` calls it.
    pub name: &'static str,
    /// The rule that it breaks.
    pub rule: &'static str,
    /// What must catch it.
    pub layer: Layer,
    /// What is wrong.
    pub what: &'static str,
}

/// Whether this build has the defects.
#[cfg(any(test, feature = "testing"))]
pub const BUILT: bool = cfg!(raftline_zoo);

/// Whether this defect was chosen.
#[cfg(not(raftline_zoo))]
pub(crate) const fn has(_: Bug) -> bool {
    false
}

/// Whether this defect was chosen.
#[cfg(raftline_zoo)]
pub(crate) fn has(bug: Bug) -> bool {
    use std::sync::OnceLock;
    static CHOSEN: OnceLock<Option<Bug>> = OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| {
        let name = std::env::var("RAFTLINE_BUG").ok()?;
        Bug::ALL.iter().find(|(_, known)| *known == name).map(|(bug, _)| *bug)
    });
    *chosen == Some(bug)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn there_are_many_and_each_has_its_name() {
        let names: BTreeSet<&str> = ENTRIES.iter().map(|e| e.name).collect();
        assert!(names.len() >= 30, "{} defects", names.len());
        assert_eq!(names.len(), ENTRIES.len(), "a name is used twice");
        let plain = |c: char| c.is_ascii_lowercase() || c == '-';
        assert!(ENTRIES.iter().all(|e| e.name.chars().all(plain)));
    }

    #[cfg(not(raftline_zoo))]
    #[test]
    fn a_normal_build_has_none() {
        const { assert!(!has(Bug::SendBeforeDurable) && !BUILT) };
        assert!(Bug::ALL.iter().all(|(bug, _)| !has(*bug)));
    }
}
