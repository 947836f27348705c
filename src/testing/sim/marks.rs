//! Situations that a run must have met to be worth anything, counted.

macro_rules! marks {
    ($($mark:ident $text:literal;)*) => {
        /// A situation that the simulator recognises.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mark {
            $(#[doc = $text] $mark,)*
        }

        impl Mark {
            /// Every one.
            pub const ALL: &'static [Self] = &[$(Self::$mark,)*];

            /// In words.
            pub fn text(self) -> &'static str {
                match self { $(Self::$mark => $text,)* }
            }
        }
    };
}

marks! {
    CrashBeforeWrite "crash with a batch queued and nothing of it written";
    CrashInWrite "power lost inside a write";
    CrashAfterWrite "crash after a sync that the node has not heard of";
    CrashAfterSend "crash right after persisted messages left";
    CrashInApply "crash while the Store applies";
    CrashBeforeApply "crash with a membership record durable and its entry not yet given to the Store";
    CrashInCapture "crash while a snapshot is being written";
    CrashInTransfer "crash while a snapshot is being received";
    CrashBeforeRecord "crash with a received snapshot whose record is not durable";
    CrashBeforeRestore "crash with an installing record durable and nothing restored";
    CrashInRestore "crash while the Store restores";
    CrashAfterRestore "crash after a restore that the log has not noted";
    LeaderKilled "the leader is killed";
    Blackout "all machines lose power at once";
    TornTail "recovery drops a torn tail";
    UnsyncedKept "a write that was never acknowledged survives";
    Truncated "a follower overwrites a conflicting tail";
    SnapshotSent "a snapshot is sent";
    SnapshotInstalled "a snapshot from a peer is installed";
    SnapshotOverTail "a snapshot replaces a log that reaches above it or conflicts";
    SnapshotLost "a snapshot that is to be sent cannot be read any more";
    TransferBroken "a snapshot's transfer breaks off";
    InstallResumed "a start restores a snapshot whose install was interrupted";
    DurableBehind "a durable Store comes back behind the newest snapshot";
    DurableAhead "a durable Store comes back above the snapshot, and is not given its entries again";
    Joined "a machine joins";
    Promoted "a learner becomes a voter";
    VoterRemoved "a voter is removed";
    LeaderRemoved "the removal of the leader is asked for, and happens";
    LastVoter "the removal of the last voter is refused";
    Replaced "a machine whose disk was lost comes back under a new incarnation";
    JointEntered "a joint configuration is entered";
    JointLeft "a joint configuration is left";
    JointInherited "a leader crashes in a joint configuration, and the next one leaves it";
    ReplacedJointly "one member takes another's place in one change";
    Readmitted "an empty disk takes the place of the lost one in one change";
    RefusedAlive "an empty disk is refused while the member whose node id it has is heard";
    ExpectedJoins "a member that was added before joins";
    AutoPromoted "a learner that nobody asked to promote becomes a voter";
    DeadRemoved "a voter that was silent for long is removed";
    LeaderDemoted "the demotion of the leader is asked for, and happens";
    MembersSet "all members are set by one request";
    FoundElsewhere "a node that misses a member finds it by asking who is where";
    AddressesSwapped "two machines exchange their addresses, and all is recorded";
    CrashInChange "crash with a membership change committed and not yet applied";
    ExpectedHeard "a member that has joined is heard by one that still expects it";
    RemovedTold "a removed node that was away is told by a peer";
    RemovedRuns "a removed node runs on";
    LingersForOthers "a removed node stays because too few know of it";
    LeavesBeforeAll "a removed node ends although not all others know of it";
    AddressChanged "an address changes";
    TransferDone "leadership is transferred";
    StepsDown "a leader that hears no quorum steps down";
    TwoLeaders "two nodes lead at once, in different terms";
    Contested "two candidates of one term";
    ForwardedWrite "a follower's proposal is applied";
    ForwardLost "a forwarded proposal is lost on the way";
    ReadOnFollower "a linearizable read is served by a follower";
    ReadOnLeader "a linearizable read is served by the leader";
    OutcomeDropped "a proposal is told that another entry took its place";
    OutcomeTimeout "a deadline passes before the append";
    OutcomeUnknown "an outcome is unknown";
    UnknownHappened "an unknown outcome turns out to have happened";
    UnknownNever "an unknown outcome turns out never to have happened";
    Overloaded "a proposal is refused because too much waits";
    Packed "one entry carries several proposals";
    Rejected "the Store rejects a proposal";
    DiskErrorStops "an IO error stops a node";
    DiskFullStops "a full disk stops a node";
    SnapshotFailed "a snapshot cannot be written";
    StallDeposes "a leader whose disk stalls loses its leadership";
    RollbackRefused "a disk that was put back from a copy is refused at first contact";
    RotRefused "a damaged disk is refused at the start";
    RotCostsLast "a flipped bit costs what was written last, as a torn write would";
    RotHarmless "a bit flips where nothing is read";
    StoreErrorStops "a failing Store stops its node";
    StorePanicStops "a panic of the Store stops its node";
    StoreHangs "a Store hangs while others go on";
    SoleVoter "a cluster of one voter writes";
    OneWayCut "a link is cut in one direction";
    Bridged "two nodes see each other only through a third";
    ShutDownLeader "a leader is shut down cleanly";
    ShutDownFollower "a follower is shut down cleanly";
    ShutDownBusy "a shutdown's deadline passes before everything is answered";
    SaysWhere "a peer says that it is elsewhere than its receiver knows, and is answered there";
    SealedReopened "a sealed log is opened again, and all of it is there";
    SilentLoss "something is lost, and its sender hears nothing";
    Refused "a request reaches a node that does not lead, and is refused";
    RefusedStale "a request is refused with the name of a leader that was deposed";
    LongWait "an operation is answered after more than ten seconds";
    CoveredWait "a snapshot covers an operation that waits, and ends its wait";
    InboxFull "a message is dropped because too many wait";
    HealedSome "members come and go, and only a majority of them is healed";
    PausedLeader "a leader is paused for longer than an election takes";
}

/// How often each was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marks(Vec<u64>);

impl Default for Marks {
    fn default() -> Self {
        Self(vec![0; Mark::ALL.len()])
    }
}

impl Marks {
    pub(super) fn hit(&mut self, mark: Mark) {
        if let Some(count) = self.0.get_mut(mark as usize) {
            *count += 1;
        }
    }

    pub(super) fn hit_if(&mut self, mark: Mark, seen: bool) {
        if seen {
            self.hit(mark);
        }
    }

    /// How often it was seen.
    pub fn count(&self, mark: Mark) -> u64 {
        self.0.get(mark as usize).copied().unwrap_or(0)
    }

    /// Those that were never seen.
    pub fn missing(&self) -> Vec<Mark> {
        Mark::ALL.iter().copied().filter(|m| self.count(*m) == 0).collect()
    }

    /// Adds the counts of another run.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.0.iter_mut().zip(&other.0) {
            *count += more;
        }
    }
}
