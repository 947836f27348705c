//! Every limit and timer, with meaning, unit, default and trade-off.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::types::Index;

const MIB: u64 = 1 << 20;

/// Whether an acknowledged write survives the loss of power of every node at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// Every entry and vote is synced to disk before it is acknowledged. The default.
    #[default]
    Fsync,
    /// Nothing is written to disk. A restarted node is an empty one: it must be removed and join
    /// again. For caches and tests.
    Volatile,
}

/// How a node behaves. `Config::default()` is durable and bounded everywhere.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where this node keeps its log, snapshots and identity. Default: `raftline-<id>` in the
    /// working directory.
    pub data_dir: Option<PathBuf>,
    /// The address that peers reach this node at, `host:port`. Default: the listening address;
    /// required when that is a wildcard such as `0.0.0.0`, except in `join`, which is told it.
    pub advertise_addr: Option<String>,
    /// Addresses that `lead` asks, beside those given to `find_leader_info`, and `start`, beside
    /// those that it is given, before they found a cluster on an empty directory. Default: none.
    pub peers: Vec<String>,
    /// How many nodes found the cluster together in [`Raft::start`](crate::Raft::start). Default:
    /// as many as the addresses that it is given; then all of them are founding members. Set, the
    /// addresses are seeds, some of which may be down: any so many nodes found, with most of the
    /// seeds among them. Must be alike on every node.
    pub bootstrap_expect: Option<usize>,
    /// No first election in a cluster of fewer members than this: so no program that the cluster
    /// elects a leader for gets one too early. Default 0: no minimum.
    ///
    /// It holds before the *first* election only, when the members are those that founded the
    /// cluster: `lead`, which founds one of a single member, is refused with a minimum above 1, and
    /// `start` with a list (or `bootstrap_expect`) of fewer. Entering a cluster that exists is not
    /// affected. A cluster that ever had a leader goes on electing, however few members are left,
    /// also after a restart of all: its log tells. Set it alike on every node.
    pub min_members: usize,
    /// Whether entries are synced before they are acknowledged. Default: they are.
    pub durability: Durability,
    /// The length of a tick, between a millisecond and an hour. Default 100 ms. Shorter reacts
    /// faster and costs more when idle.
    #[serde(with = "duration")]
    pub heartbeat: Duration,
    /// Ticks without a leader before a follower campaigns (raft-rs `election_tick`); the actual
    /// timeout is drawn from one to two times as many. Default 10: one to two seconds.
    pub election_tick: usize,
    /// Ticks between heartbeats of a leader (raft-rs `heartbeat_tick`). Default 1: 100 ms.
    pub heartbeat_tick: usize,
    /// Bytes of entries in one append message (raft-rs `max_size_per_msg`). Default 1 MiB.
    #[serde(with = "size")]
    pub max_size_per_msg: u64,
    /// Append messages in flight to one peer (raft-rs `max_inflight_msgs`). Default 256.
    pub max_inflight_msgs: usize,
    /// Bytes of proposals that may be waiting or undecided on one node; above it proposals are
    /// refused as `Overloaded`. Default 64 MiB.
    #[serde(with = "size")]
    pub max_uncommitted_size: u64,
    /// Requests that may be waiting or undecided on one node; above it proposals and reads are refused
    /// as `Overloaded`. For others (status, changes of members and of leadership) 1,024 more places
    /// are kept; `members` is a read. Default 65,536.
    pub max_pending_requests: u64,
    /// The largest command in bytes. Default 8 MiB. Must be alike on every node.
    #[serde(with = "size")]
    pub max_entry_size: u64,
    /// Bytes of committed entries given to the Store at a time (raft-rs
    /// `max_committed_size_per_ready`). Default 4 MiB.
    #[serde(with = "size")]
    pub max_committed_size_per_ready: u64,
    /// Bytes of log above the Store's last applied entry at which the node takes nothing more: a
    /// leader answers `Overloaded`, a follower ignores appends, as it does while so many bytes wait
    /// for its disk. Default 256 MiB.
    #[serde(with = "size")]
    pub max_apply_lag: u64,
    /// Entries of the log after which a snapshot is taken. Default 100,000.
    pub snapshot_entries: u64,
    /// Bytes of log after which a snapshot is taken; a state that is larger waits until the log
    /// has grown by its own size. Default 64 MiB.
    #[serde(with = "size")]
    pub snapshot_bytes: u64,
    /// Entries kept below a snapshot, for followers that lag a little. Older snapshots go with the
    /// entries below them: where this is more than `snapshot_entries`, several stay. Default 10,000.
    pub snapshot_trailing_entries: u64,
    /// Bytes of those at most. Default 16 MiB.
    #[serde(with = "size")]
    pub snapshot_trailing_bytes: u64,
    /// How long a call of the `Mailbox` waits, 30 days at most. Default 5 s.
    #[serde(with = "duration")]
    pub request_timeout: Duration,
    /// An apply that takes longer than this is logged as a warning. Default 1 s.
    #[serde(with = "duration")]
    pub slow_apply: Duration,
    /// Whether this node, when it joins, becomes a voter by itself once it has caught up. Default
    /// true. False: it stays a learner, as for a replica that only serves reads, until
    /// `Mailbox::promote`. The answer to its join is replicated: a later start with another value
    /// changes nothing.
    pub auto_promote: bool,
    /// A voter that the leader has not heard of for so long is removed, if a majority of the others
    /// is reachable: the cluster repairs its quorum without anybody's help, and the node, should it
    /// come back, has to join with an empty directory. Set it alike on every node. Default: none is.
    #[serde(with = "maybe_duration")]
    pub remove_dead_after: Option<Duration>,
    /// Sets `SO_REUSEADDR` on the listener, so that a restarted node need not wait for old
    /// connections. Default true.
    pub reuseaddr: bool,
    /// Sets `SO_REUSEPORT`. Default false. NB: it hides a busy port: two nodes with the same
    /// address would silently share it.
    pub reuseport: bool,
    /// The largest gRPC message in bytes. Default 0: as large as `max_entry_size` and
    /// `max_size_per_msg` need.
    #[serde(with = "size")]
    pub grpc_message_size: u64,
    /// Connections that the listener serves at a time; more wait to be accepted. Default 512.
    pub max_connections: usize,
    /// Bytes of one segment of the durable log. Default 16 MiB.
    #[serde(with = "size")]
    pub log_segment_size: u64,
    /// Log indices whose entry is applied as a rejection, without asking the Store: the way out
    /// of a command that makes every Store panic. Set it alike on every node. Default: none.
    pub skip_apply: Vec<Index>,
    /// Seed of the election timeouts, to repeat a run. Default: random.
    pub seed: Option<u64>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: None,
            advertise_addr: None,
            peers: Vec::new(),
            bootstrap_expect: None,
            min_members: 0,
            durability: Durability::Fsync,
            heartbeat: Duration::from_millis(100),
            election_tick: 10,
            heartbeat_tick: 1,
            max_size_per_msg: MIB,
            max_inflight_msgs: 256,
            max_uncommitted_size: 64 * MIB,
            max_pending_requests: 65_536,
            max_entry_size: 8 * MIB,
            max_committed_size_per_ready: 4 * MIB,
            max_apply_lag: 256 * MIB,
            snapshot_entries: 100_000,
            snapshot_bytes: 64 * MIB,
            snapshot_trailing_entries: 10_000,
            snapshot_trailing_bytes: 16 * MIB,
            request_timeout: Duration::from_secs(5),
            slow_apply: Duration::from_secs(1),
            auto_promote: true,
            remove_dead_after: None,
            reuseaddr: true,
            reuseport: false,
            grpc_message_size: 0,
            max_connections: 512,
            log_segment_size: 16 * MIB,
            skip_apply: Vec::new(),
            seed: None,
        }
    }
}

/// No timer is finer.
const SHORTEST_TICK: Duration = Duration::from_millis(1);
/// Longer ones are a mistake; and points in time are computed from it, which have bounds.
const LONGEST_TICK: Duration = Duration::from_secs(3600);
/// The longest that anything waits for an answer.
pub(crate) const LONGEST_TIMEOUT: Duration = Duration::from_secs(30 * 24 * 3600);

/// Room for the fields around the payload of a message.
const ENVELOPE: u64 = 64 << 10;

impl Config {
    /// Checks every field against the others. `Raft::new` calls it.
    ///
    /// # Errors
    /// [`Error::Config`] with the field and what would be right.
    pub fn validate(&self) -> Result<()> {
        check(
            (SHORTEST_TICK..=LONGEST_TICK).contains(&self.heartbeat),
            "heartbeat",
            "must be between a millisecond and an hour",
        )?;
        check(self.heartbeat_tick > 0, "heartbeat_tick", "must be at least 1")?;
        check(
            self.election_tick > self.heartbeat_tick,
            "election_tick",
            "must be above heartbeat_tick; five to ten times is usual",
        )?;
        check(self.election_tick <= 1 << 20, "election_tick", "must be at most 1048576")?;
        check(
            self.bootstrap_expect != Some(0),
            "bootstrap_expect",
            "must be at least 1; leave it out to found with all the addresses that start is given",
        )?;
        check(
            self.bootstrap_expect.is_none_or(|expect| expect >= self.min_members),
            "min_members",
            "must not be above bootstrap_expect: so few members found the cluster, and could never \
             elect a leader",
        )?;
        check(self.max_inflight_msgs > 0, "max_inflight_msgs", "must be at least 1")?;
        check(
            (1..=256 * MIB).contains(&self.max_size_per_msg),
            "max_size_per_msg",
            "must be between 1 byte and 256 MiB",
        )?;
        check(
            (1..=1024 * MIB).contains(&self.max_entry_size),
            "max_entry_size",
            "must be between 1 byte and 1 GiB",
        )?;
        check(self.max_pending_requests > 0, "max_pending_requests", "must be at least 1")?;
        check(self.max_uncommitted_size > 0, "max_uncommitted_size", "must be at least 1")?;
        check(
            self.max_apply_lag > self.max_entry_size,
            "max_apply_lag",
            "must be above max_entry_size, or the largest command could never be applied",
        )?;
        check(self.snapshot_entries > 0, "snapshot_entries", "must be at least 1")?;
        check(self.snapshot_bytes > 0, "snapshot_bytes", "must be at least 1")?;
        check(
            !self.request_timeout.is_zero() && self.request_timeout <= LONGEST_TIMEOUT,
            "request_timeout",
            "must be longer than 0, and 30 days at most",
        )?;
        check(self.max_connections > 0, "max_connections", "must be at least 1")?;
        check(
            (64 << 10..=1024 * MIB).contains(&self.log_segment_size),
            "log_segment_size",
            "must be between 64 KiB and 1 GiB",
        )?;
        check(
            self.remove_dead_after.is_none_or(|after| after >= self.election_timeout() * 10),
            "remove_dead_after",
            "must be at least ten election timeouts, or a restart could cost a member",
        )?;
        let needed = self.needed_message_size();
        check(
            self.grpc_message_size == 0 || self.grpc_message_size >= needed,
            "grpc_message_size",
            format!("must be 0 (automatic) or at least {needed} for these entry and message sizes"),
        )
    }

    fn needed_message_size(&self) -> u64 {
        self.max_size_per_msg + self.max_entry_size + ENVELOPE
    }

    /// The largest gRPC message in bytes, with the automatic value filled in.
    pub fn message_size(&self) -> u64 {
        self.grpc_message_size.max(self.needed_message_size())
    }

    /// So long in ticks.
    pub(crate) fn ticks(&self, time: Duration) -> u64 {
        let tick = self.heartbeat.as_nanos().max(1);
        u64::try_from(time.as_nanos().div_ceil(tick)).unwrap_or(u64::MAX)
    }

    /// The shortest election timeout.
    pub fn election_timeout(&self) -> Duration {
        self.heartbeat.saturating_mul(u32::try_from(self.election_tick).unwrap_or(u32::MAX))
    }
}

fn check(ok: bool, field: &'static str, reason: impl Into<String>) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::Config { field, reason: reason.into() }) }
}

/// Splits `"12.5 MiB"` into its number and its unit.
fn split_unit(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(end)?;
    Some((number.parse().ok()?, unit.trim()))
}

#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(u64),
    Text(String),
}

mod duration {
    //! `"50ms"`, `"5s"`, `"2m"`, or a number of milliseconds.
    use super::{Duration, NumberOrText, split_unit};
    use serde::{Deserialize, Deserializer, de::Error};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        let text = match NumberOrText::deserialize(d)? {
            NumberOrText::Number(ms) => return Ok(Duration::from_millis(ms)),
            NumberOrText::Text(text) => text,
        };
        let factor = |unit: &str| match unit {
            "us" => Some(1e-6),
            "ms" => Some(1e-3),
            "s" => Some(1.0),
            "m" => Some(60.0),
            "h" => Some(3600.0),
            _ => None,
        };
        split_unit(&text)
            .and_then(|(n, unit)| Duration::try_from_secs_f64(n * factor(unit)?).ok())
            .ok_or_else(|| D::Error::custom(format!("{text:?} is no duration such as \"50ms\"")))
    }
}

mod maybe_duration {
    //! As `duration`, or nothing.
    use super::{Duration, duration};
    use serde::{Deserialize, Deserializer};

    #[derive(Deserialize)]
    struct Given(#[serde(with = "duration")] Duration);

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        d: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<Given>::deserialize(d)?.map(|given| given.0))
    }
}

mod size {
    //! `"16MiB"`, `"64 KiB"`, or a number of bytes.
    use super::{NumberOrText, split_unit};
    use serde::{Deserialize, Deserializer, de::Error};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
        let text = match NumberOrText::deserialize(d)? {
            NumberOrText::Number(bytes) => return Ok(bytes),
            NumberOrText::Text(text) => text,
        };
        let factor = |unit: &str| match unit {
            "" | "B" => Some(1.0),
            "KiB" => Some(1024.0),
            "MiB" => Some(1024.0 * 1024.0),
            "GiB" => Some(1024.0 * 1024.0 * 1024.0),
            _ => None,
        };
        split_unit(&text)
            .and_then(|(n, unit)| Some((n * factor(unit)?) as u64))
            .ok_or_else(|| D::Error::custom(format!("{text:?} is no size such as \"16MiB\"")))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn default_config_is_valid() {
        Config::default().validate().unwrap();
    }

    #[test]
    fn each_bad_value_is_refused_by_name() {
        let soon = Duration::from_secs(9);
        let bad = [
            ("heartbeat", Config { heartbeat: Duration::ZERO, ..Config::default() }),
            ("heartbeat", Config { heartbeat: Duration::from_micros(999), ..Config::default() }),
            ("heartbeat", Config { heartbeat: Duration::MAX, ..Config::default() }),
            ("request_timeout", Config { request_timeout: Duration::MAX, ..Config::default() }),
            ("bootstrap_expect", Config { bootstrap_expect: Some(0), ..Config::default() }),
            (
                "min_members",
                Config { bootstrap_expect: Some(2), min_members: 3, ..Config::default() },
            ),
            ("election_tick", Config { election_tick: 1, ..Config::default() }),
            ("max_entry_size", Config { max_entry_size: 0, ..Config::default() }),
            ("max_apply_lag", Config { max_apply_lag: 5, ..Config::default() }),
            ("grpc_message_size", Config { grpc_message_size: 100, ..Config::default() }),
            ("log_segment_size", Config { log_segment_size: 1, ..Config::default() }),
            ("remove_dead_after", Config { remove_dead_after: Some(soon), ..Config::default() }),
        ];
        for (name, config) in bad {
            match config.validate() {
                Err(Error::Config { field, .. }) => assert_eq!(field, name),
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    #[test]
    fn reads_human_durations_and_sizes() {
        let c: Config = serde_json::from_str(
            r#"{"heartbeat": "20ms", "request_timeout": 1500, "max_entry_size": "1.5 MiB",
                "durability": "volatile", "data_dir": "d", "remove_dead_after": "1h"}"#,
        )
        .unwrap();
        assert_eq!(c.heartbeat, Duration::from_millis(20));
        assert_eq!(c.request_timeout, Duration::from_millis(1500));
        assert_eq!(c.max_entry_size, 3 << 19);
        assert_eq!(c.durability, Durability::Volatile);
        assert_eq!(c.remove_dead_after, Some(Duration::from_secs(3600)));
        let error = serde_json::from_str::<Config>(r#"{"heartbeat": "soon"}"#).unwrap_err();
        assert!(error.to_string().contains("no duration"), "{error}");
    }
}
