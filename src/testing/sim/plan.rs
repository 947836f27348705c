//! What one run does: every choice is a knob, drawn by the seed, written in one line, and turned
//! off one at a time when a failure is made small.

use std::fmt;
use std::str::FromStr;

use crate::testing::rng::Rng;

macro_rules! knobs {
    ($($knob:ident $name:literal $calm:literal $doc:literal;)*) => {
        /// A choice that a run makes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Knob {
            $(#[doc = concat!("`", $name, "`: ", $doc)] $knob,)*
        }

        impl Knob {
            /// Every knob.
            pub const ALL: &'static [Self] = &[$(Self::$knob,)*];

            /// Its name in a plan's line.
            pub fn name(self) -> &'static str {
                match self { $(Self::$knob => $name,)* }
            }

            /// Its value in a run without any fault.
            pub fn calm(self) -> u64 {
                match self { $(Self::$knob => $calm,)* }
            }
        }
    };
}

knobs! {
    Nodes "nodes" 3 "Voters that the cluster is founded with.";
    Spares "spares" 0 "Machines that may join later.";
    Seconds "seconds" 60 "Virtual seconds of the first phase.";
    Clients "clients" 3 "Clients, each with one operation in flight.";
    ThinkMs "think_ms" 200 "Mean pause of a client between two operations.";
    Keys "keys" 8 "Keys of the workload.";
    Reads "reads" 40 "Percent of operations that read.";
    TimeoutMs "timeout_ms" 3000 "A client's deadline.";
    SnapshotEntries "snapshot_entries" 1000 "Entries between two snapshots.";
    Trailing "trailing" 200 "Entries kept below a snapshot.";
    SegmentKib "segment_kib" 16 "Size of a log segment.";
    MessageBytes "message_bytes" 65536 "Largest append.";
    Inflight "inflight" 64 "Appends in flight to a peer.";
    ApplyLag "apply_lag" 1048576 "Bytes that the Store may lag.";
    LatencyUs "latency_us" 400 "Mean one-way latency.";
    DiskUs "disk_us" 150 "Mean time of a sync.";
    StoreUs "store_us" 30 "Mean time of a Store's call.";
    DurableStore "durable_store" 0 "0: in memory; n: durable, its own sync once in n applies.";
    Loss "loss" 0 "Per mille of connections' messages that are lost.";
    Duplicate "duplicate" 0 "Per mille of messages that arrive twice.";
    Reorder "reorder" 0 "Per mille of messages that may be overtaken.";
    SlowLink "slow_link" 0 "Per mille of messages that take a hundred times as long.";
    Cut "cut" 0 "Mean milliseconds between partitions.";
    OneWay "one_way" 0 "Mean milliseconds between cuts of one direction.";
    Bridge "bridge" 0 "Mean milliseconds between partial partitions: one node sees all, others do not see each other.";
    Clog "clog" 0 "Mean milliseconds between clogged links: nothing is lost, all of it late.";
    Kill "kill" 0 "Mean milliseconds between kills of a process.";
    Power "power" 0 "Mean milliseconds between losses of power.";
    KillLeader "kill_leader" 0 "Mean milliseconds between kills of the leader.";
    Blackout "blackout" 0 "Mean milliseconds between losses of power of all machines at once.";
    Pause "pause" 0 "Mean milliseconds between pauses of a process.";
    Skew "skew" 0 "Percent by which clocks run fast or slow.";
    Stall "stall" 0 "Mean milliseconds between stalls of a disk.";
    DiskError "disk_error" 0 "Mean milliseconds between IO errors.";
    DiskFull "disk_full" 0 "Mean milliseconds between full disks.";
    Rot "rot" 0 "Mean milliseconds between bits that flip on a disk.";
    Wipe "wipe" 0 "Mean milliseconds between disks that are lost.";
    Rollback "rollback" 0 "Mean milliseconds between older copies of a disk being taken or put back.";
    StoreError "store_error" 0 "Mean milliseconds between Stores that fail.";
    StorePanic "store_panic" 0 "Mean milliseconds between Stores that panic.";
    StoreHang "store_hang" 0 "Mean milliseconds between Stores that hang for a while.";
    Transfer "transfer" 0 "Mean milliseconds between transfers of leadership.";
    Join "join" 0 "Mean milliseconds between machines that join.";
    Remove "remove" 0 "Mean milliseconds between removals.";
    RemoveLeader "remove_leader" 0 "Mean milliseconds between removals of the leader.";
    Move "move" 0 "Mean milliseconds between changes of an address.";
    Add "add" 0 "Mean milliseconds between machines that are added before they join.";
    Promote "promote" 0 "Mean milliseconds between learners that are to vote.";
    Demote "demote" 0 "Mean milliseconds between voters that are to be learners.";
    Replace "replace" 0 "Mean milliseconds between machines whose place a spare one takes.";
    Set "set" 0 "Mean milliseconds between changes of all members at once.";
    Swap "swap" 0 "Mean milliseconds between two machines that exchange their addresses.";
    InChange "in_change" 0 "Mean milliseconds between crashes with a membership change committed and not yet applied.";
    Burst "burst" 0 "Mean milliseconds between bursts of proposals.";
    Shutdown "shutdown" 0 "Mean milliseconds between clean shutdowns.";
    Silent "silent" 0 "Percent of the links that lose what they lose without telling its sender.";
    LongDeadlines "long_deadlines" 0 "Percent of the operations whose clients wait for minutes.";
    AddressBook "address_book" 0 "1: messages go to the address that their sender was told, and not to wherever their receiver is.";
    HealSome "heal_some" 0 "1: where members change, too, a majority is healed and the rest is gone; 0: all are healed there.";
    Readmit "readmit" 0 "Percent of the lost disks whose machine asks at once to be let in again under its node id; the others are removed first.";
    AutoPromote "auto_promote" 1 "1: who joins is to vote; 0: it stays a learner until it is promoted.";
    RemoveDead "remove_dead" 0 "0: never; n: seconds after which a leader removes a voter that is silent.";
    InboxBytes "inbox_bytes" 0 "0: no bound; n: bytes of peers' messages that may wait for a node.";
}

/// Knobs that are faults: each may be off.
pub const FAULTS: &[Knob] = &[
    Knob::Loss,
    Knob::Duplicate,
    Knob::Reorder,
    Knob::SlowLink,
    Knob::Cut,
    Knob::OneWay,
    Knob::Bridge,
    Knob::Clog,
    Knob::Kill,
    Knob::Power,
    Knob::KillLeader,
    Knob::Blackout,
    Knob::Pause,
    Knob::Skew,
    Knob::Stall,
    Knob::DiskError,
    Knob::DiskFull,
    Knob::Rot,
    Knob::Wipe,
    Knob::Rollback,
    Knob::StoreError,
    Knob::StorePanic,
    Knob::StoreHang,
    Knob::Transfer,
    Knob::Join,
    Knob::Remove,
    Knob::RemoveLeader,
    Knob::Move,
    Knob::Add,
    Knob::Promote,
    Knob::Demote,
    Knob::Replace,
    Knob::Set,
    Knob::Swap,
    Knob::InChange,
    Knob::Burst,
    Knob::Shutdown,
];

/// Those that change the members.
const CHURN: &[Knob] = &[
    Knob::Join,
    Knob::Add,
    Knob::Remove,
    Knob::RemoveLeader,
    Knob::Replace,
    Knob::Set,
    Knob::Promote,
    Knob::Demote,
    Knob::Swap,
    Knob::Wipe,
    Knob::Rollback,
    Knob::InChange,
];

/// One run, whole: the same plan gives the same run everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What every draw of the run comes from.
    pub seed: u64,
    values: Vec<u64>,
    /// Ordinals of the faults that are left out.
    pub(super) left_out: Vec<u64>,
}

impl Plan {
    /// A run without faults.
    pub fn calm(seed: u64) -> Self {
        let values = Knob::ALL.iter().map(|k| k.calm()).collect();
        Self { seed, values, left_out: Vec::new() }
    }

    /// A run with a mix of faults that the seed draws; many are off (swarm testing).
    pub fn draw(seed: u64) -> Self {
        let mut plan = Self::calm(seed);
        let mut rng = Rng::new(seed ^ 0x5eed_0f91_a45e_11e5);
        plan.draw_shape(&mut rng);
        plan.draw_faults(&mut rng);
        plan.draw_world(&mut rng);
        plan
    }

    fn draw_shape(&mut self, rng: &mut Rng) {
        let nodes = [1, 2, 3, 3, 3, 3, 4, 5, 5, 7][rng.below(10) as usize];
        self.set(Knob::Nodes, nodes);
        self.set(Knob::Seconds, 40 + rng.below(50));
        self.set(Knob::Clients, 1 + rng.below(5));
        self.set(Knob::ThinkMs, 50 + rng.below(400));
        self.set(Knob::Keys, 2 + rng.below(12));
        self.set(Knob::Reads, 20 + rng.below(50));
        self.set(Knob::TimeoutMs, 500 + rng.below(5000));
        if rng.below(4) > 0 {
            self.set(Knob::SnapshotEntries, 4 + rng.below(60));
            self.set(Knob::Trailing, rng.below(20));
        }
        self.set(Knob::SegmentKib, [1, 2, 4, 8, 64][rng.below(5) as usize]);
        self.set(Knob::MessageBytes, [1, 300, 4096, 65536][rng.below(4) as usize]);
        self.set(Knob::Inflight, [1, 2, 8, 64][rng.below(4) as usize]);
        self.set(Knob::ApplyLag, [500, 4000, 1 << 20][rng.below(3) as usize]);
        self.set(Knob::LatencyUs, [100, 400, 3000, 20_000][rng.below(4) as usize]);
        self.set(Knob::DiskUs, [50, 300, 5000, 30_000][rng.below(4) as usize]);
        self.set(Knob::StoreUs, [10, 100, 10_000][rng.below(3) as usize]);
        self.set(Knob::DurableStore, [0, 0, 1, 3, 10][rng.below(5) as usize]);
    }

    fn draw_faults(&mut self, rng: &mut Rng) {
        let level = rng.below(10);
        for &knob in FAULTS.iter().filter(|knob| !CHURN.contains(knob)) {
            // A tenth of the runs has no fault, some have a few, some have most.
            let on = match level {
                0 => false,
                1..4 => rng.one_in(6),
                4..8 => rng.one_in(3),
                _ => rng.below(3) > 0,
            };
            let value = match knob {
                Knob::Loss | Knob::Duplicate | Knob::Reorder | Knob::SlowLink => {
                    [2, 20, 100][rng.below(3) as usize]
                }
                Knob::Skew => 1 + rng.below(30),
                Knob::Burst | Knob::Transfer => 2000 + rng.below(20_000),
                Knob::Rot | Knob::Wipe | Knob::Rollback => 10_000 + rng.below(50_000),
                _ => [3000, 8000, 20_000][rng.below(3) as usize] + rng.below(5000),
            };
            if on {
                self.set(knob, value);
            }
        }
        // Machines that come and go are what hurts most in the field.
        if level > 0 && rng.below(3) > 0 {
            self.draw_churn(rng);
        }
        // So does everything going dark at once.
        if level > 0 && rng.one_in(5) {
            self.set(Knob::Blackout, 5000 + rng.below(20_000));
        }
        if [Knob::Join, Knob::Add, Knob::Replace].iter().any(|k| self.get(*k) > 0) {
            self.set(Knob::Spares, 1 + rng.below(3));
        }
    }

    /// Members that come, go, and change their roles and places all the time.
    fn draw_churn(&mut self, rng: &mut Rng) {
        for &knob in CHURN {
            let on = match knob {
                Knob::Join | Knob::Remove | Knob::Set => true,
                Knob::Wipe | Knob::Replace | Knob::InChange => rng.below(3) > 0,
                _ => rng.one_in(2),
            };
            let value = match knob {
                Knob::Wipe | Knob::Rollback => 8000 + rng.below(30_000),
                Knob::InChange => 1000 + rng.below(8000),
                _ => 2000 + rng.below(12_000),
            };
            if on {
                self.set(knob, value);
            }
        }
        self.set(Knob::Readmit, [0, 50, 100, 100][rng.below(4) as usize]);
        if rng.one_in(4) {
            self.set(Knob::AutoPromote, 0);
            self.set(Knob::Promote, 1000 + rng.below(4000));
        }
        if rng.one_in(4) {
            self.set(Knob::RemoveDead, 10 + rng.below(5));
        }
    }

    /// What is no fault, and still different from one place to another.
    fn draw_world(&mut self, rng: &mut Rng) {
        self.set(Knob::Silent, [0, 50, 100][rng.below(3) as usize]);
        self.set(Knob::LongDeadlines, [0, 2, 20][rng.below(3) as usize]);
        self.set(Knob::AddressBook, rng.below(2));
        self.set(Knob::HealSome, rng.below(2));
        self.set(Knob::InboxBytes, [0, 0, 500, 5000][rng.below(4) as usize]);
    }

    /// The value of a knob.
    pub fn get(&self, knob: Knob) -> u64 {
        self.values.get(knob as usize).copied().unwrap_or(0)
    }

    /// Turns a knob.
    pub fn set(&mut self, knob: Knob, value: u64) {
        if let Some(slot) = self.values.get_mut(knob as usize) {
            *slot = value;
        }
    }

    /// The same with a knob turned.
    #[must_use]
    pub fn with(mut self, knob: Knob, value: u64) -> Self {
        self.set(knob, value);
        self
    }

    /// Whether members come and go in it.
    pub fn has_churn(&self) -> bool {
        let more = [Knob::Rot, Knob::RemoveDead];
        CHURN.iter().chain(&more).any(|k| self.get(*k) > 0)
    }

    /// The fault kinds that are on.
    pub fn faults(&self) -> Vec<Knob> {
        FAULTS.iter().copied().filter(|k| self.get(*k) > 0).collect()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed={}", self.seed)?;
        for &knob in Knob::ALL.iter().filter(|k| self.get(**k) != k.calm()) {
            write!(f, " {}={}", knob.name(), self.get(knob))?;
        }
        if !self.left_out.is_empty() {
            let all: Vec<String> = self.left_out.iter().map(u64::to_string).collect();
            write!(f, " left_out={}", all.join(","))?;
        }
        Ok(())
    }
}

impl FromStr for Plan {
    type Err = String;

    /// A plan's line, or the number of a seed.
    fn from_str(line: &str) -> Result<Self, String> {
        let wanted = |what: String| {
            format!(
                "{what}; wanted is a seed, such as 7, or a plan, such as seed=7 nodes=3 kill=2000"
            )
        };
        if let Ok(seed) = line.trim().parse() {
            return Ok(Self::draw(seed));
        }
        if !line.contains('=') {
            return Err(wanted(format!("{line:?} is neither a seed nor a plan")));
        }
        let mut plan = Self::calm(0);
        for word in line.split_whitespace() {
            let Some((name, value)) = word.split_once('=') else {
                return Err(wanted(format!("{word:?} has no value")));
            };
            let bad = |e| wanted(format!("{word:?}: {value:?} is not a number: {e}"));
            if name == "left_out" {
                let all: Result<Vec<u64>, _> = value.split(',').map(str::parse).collect();
                plan.left_out = all.map_err(bad)?;
                continue;
            }
            let value = value.parse().map_err(bad)?;
            if name == "seed" {
                plan.seed = value;
                continue;
            }
            let Some(knob) = Knob::ALL.iter().find(|k| k.name() == name) else {
                let all: Vec<&str> = Knob::ALL.iter().map(|k| k.name()).collect();
                return Err(format!(
                    "{name:?} is no knob; there are seed, {}, left_out",
                    all.join(", ")
                ));
            };
            plan.set(*knob, value);
        }
        Ok(plan)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_plan_survives_its_line() {
        for seed in 0..200 {
            let mut plan = Plan::draw(seed);
            plan.left_out = vec![3, seed];
            assert_eq!(plan.to_string().parse::<Plan>().unwrap(), plan, "seed {seed}");
        }
        assert_eq!("7".parse(), Ok(Plan::draw(7)));
        for (line, complaint) in [
            ("seed=1 nonsense=2", "\"nonsense\" is no knob; there are seed, nodes, "),
            ("4x", "\"4x\" is neither a seed nor a plan; wanted is a seed, such as 7, or a plan"),
            ("seed=1 nodes", "\"nodes\" has no value; wanted is"),
            ("seed=x", "\"seed=x\": \"x\" is not a number: "),
            ("left_out=1,,2", "\"left_out=1,,2\": \"1,,2\" is not a number: "),
        ] {
            let error = line.parse::<Plan>().unwrap_err();
            assert!(error.starts_with(complaint), "{error}");
        }
    }

    #[test]
    fn every_knob_is_explained() {
        let page = include_str!("knobs.md");
        for knob in Knob::ALL {
            let calm = format!("| `{}` | {} | ", knob.name(), knob.calm());
            let begin =
                if FAULTS.contains(knob) { format!("| `{}` | ", knob.name()) } else { calm };
            assert!(page.contains(&begin), "{begin} is missing from knobs.md");
        }
    }

    #[test]
    fn seeds_draw_different_mixes() {
        let plans: Vec<Plan> = (0..1000).map(Plan::draw).collect();
        let share = |f: &dyn Fn(&Plan) -> bool| plans.iter().filter(|p| f(p)).count();
        assert!(share(&|p| p.faults().is_empty()) > 50, "some runs have no fault");
        assert!(share(&Plan::has_churn) > 400, "members come and go in many");
        assert!(share(&|p| p.get(Knob::Blackout) > 0) > 200, "a fifth goes dark at once");
        assert!(share(&|p| p.get(Knob::Wipe) > 0) > 50, "disks are lost in some");
    }
}
