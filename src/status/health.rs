//! Health in words: what is wrong, how much more may fail, and what to do about it.
//!
//! A function of the [`Status`], so that words and figures never contradict each other. It says what
//! this one node can know: who is reachable is the leader's to tell, a follower knows its leader, and
//! a voter without a leader knows who has answered its campaigns.

use std::fmt;

use serde::Serialize;

use super::{MemberStatus, Replication, Role, Status, VotingRole};
use crate::types::NodeId;

/// How well a cluster is, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Nothing is wrong that this node can know of; a follower knows its leader only. `Health::spare`
    /// tells how many voters may fail: of one or two, none.
    Healthy,
    /// Something is wrong, and the cluster stands the failure of another voter.
    Degraded,
    /// The cluster works, and stands no further failure.
    AtRisk,
    /// Seen from this node, there is no leader that could commit anything.
    Unavailable,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::AtRisk => "at risk",
            Self::Unavailable => "unavailable",
        })
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The node that it is about; 0: the cluster, or the node that says so.
    pub node: NodeId,
    /// What is wrong, and since when.
    pub what: String,
    /// What to do; the call by its name, where there is one. Empty: nothing but to wait.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, " ({})", self.remedy) }
    }
}

/// How well a cluster is, as far as one node knows: [`Status::health()`]. Its `Display` is the
/// field of that name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Health {
    /// In a word.
    pub level: Level,
    /// How many more voters may fail at once, whichever they are, and the rest still commits; while
    /// members change by joint consensus, in the weaker half. A voter that is not heard from,
    /// acknowledges nothing, or waits for a snapshot, counts as failed. None where this node does not lead: it cannot tell.
    pub spare: Option<usize>,
    /// In a sentence.
    pub summary: String,
    /// What is wrong; the cluster first, then its members.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.level, self.summary)?;
        self.problems.iter().try_for_each(|problem| write!(f, "; {problem}"))
    }
}

pub(super) fn judge(s: &Status) -> Health {
    let mut health = match s.role {
        Role::Stopped => said(Level::Unavailable, "stopped"),
        Role::Starting => starting(s),
        Role::Leader => leading(s),
        Role::Follower | Role::Learner | Role::PreCandidate | Role::Candidate => {
            if s.leader_id == 0 { leaderless(s) } else { following(s) }
        }
    };
    if !s.elsewhere.is_empty() {
        let remedy = "start it on the right directory, or with the right addresses; to enter the \
            other cluster, with an empty directory";
        let (what, remedy) = (s.elsewhere.clone(), remedy.to_owned());
        health.problems.insert(0, Problem { node: s.id, what, remedy });
        if health.level == Level::Healthy {
            health.level = Level::Degraded;
            health.summary = "this node was given an address of another cluster".to_owned();
        }
    }
    if s.disk_stalled {
        let what = "the disk has not finished a write for longer than a heartbeat".to_owned();
        let remedy = "look at the disk of this machine, a leader is replaced meanwhile".to_owned();
        health.problems.insert(0, Problem { node: s.id, what, remedy });
        health.level = health.level.max(Level::AtRisk);
        if health.problems.len() == 1 {
            health.summary = "this node is held up".to_owned();
        }
    }
    health
}

fn said(level: Level, summary: impl Into<String>) -> Health {
    Health { level, spare: None, summary: summary.into(), problems: Vec::new() }
}

fn starting(s: &Status) -> Health {
    if !s.waiting.is_empty() {
        return said(Level::Unavailable, s.waiting.clone());
    }
    if s.cluster_id.is_empty() {
        return said(Level::Unavailable, "not in a cluster yet");
    }
    if s.members.is_empty() {
        return said(Level::Unavailable, "waiting for the first snapshot from the cluster");
    }
    let mut health = said(Level::Unavailable, "this node is no member of its cluster any more");
    let what = "it ends when the others have told it so".to_owned();
    let remedy = "to enter again, start it with an empty data directory".to_owned();
    health.problems.push(Problem { node: s.id, what, remedy });
    health
}

/// The sets of voters that each need a majority: one, or two while the configuration is joint.
fn halves(s: &Status) -> Vec<Vec<&MemberStatus>> {
    let of = |part: VotingRole| -> Vec<&MemberStatus> {
        s.members.iter().filter(|m| m.role == VotingRole::Voter || m.role == part).collect()
    };
    let mut halves = vec![of(VotingRole::Incoming)];
    if is_joint(s) {
        halves.push(of(VotingRole::Outgoing));
    }
    halves
}

fn is_joint(s: &Status) -> bool {
    s.members.iter().any(|m| matches!(m.role, VotingRole::Incoming | VotingRole::Outgoing))
}

/// How many more may fail, in the weaker half; negative: so many are missing.
fn spare(s: &Status, counts: impl Fn(&MemberStatus) -> bool) -> i64 {
    let spare = halves(s).into_iter().map(|half| {
        let alive = half.iter().filter(|m| counts(m)).count();
        alive as i64 - (half.len() / 2 + 1) as i64
    });
    spare.min().unwrap_or(0)
}

fn leading(s: &Status) -> Health {
    let receives = |m: &MemberStatus| m.replication == Some(Replication::Snapshot);
    let there = |m: &MemberStatus| m.reachable != Some(false) && !receives(m);
    let sure = spare(s, |m| there(m) && m.acknowledges == Some(true));
    let hoped = spare(s, |m| there(m) && m.acknowledges != Some(false));
    // Who has not answered a new leader yet is no lost majority.
    let spare = sure.max(hoped.min(0));
    let problems: Vec<(bool, Problem)> =
        s.members.iter().filter_map(|m| Some((m.voter, about(s, m, spare)?))).collect();
    let level = match spare {
        ..0 => Level::Unavailable,
        0 if !problems.is_empty() => Level::AtRisk,
        _ if problems.is_empty() => Level::Healthy,
        _ => Level::Degraded,
    };
    let voters = s.members.iter().filter(|m| m.voter).count();
    let mut summary = match level {
        Level::Unavailable => "this node leads, and nothing can be committed".to_owned(),
        Level::Healthy if voters < 3 => {
            "every member is reachable; voters that may fail: 0, with three of them 1 \
             (Mailbox::add_voter)"
                .to_owned()
        }
        Level::Healthy => format!("every member is reachable; voters that may fail: {spare}"),
        Level::Degraded | Level::AtRisk => format!("voters that may fail besides: {spare}"),
    };
    if is_joint(s) {
        summary += ", while the members change: the old and the new voters each need a majority";
    }
    let lost = (spare < 0).then(|| majority_missing(-spare));
    let problems = lost.into_iter().chain(problems.into_iter().map(|(_, p)| p)).collect();
    Health { level, spare: Some(usize::try_from(spare).unwrap_or(0)), summary, problems }
}

/// No majority, whoever leads: so many more are needed.
fn majority_missing(lacking: i64) -> Problem {
    let what = format!("a majority of the voters is missing: {lacking} more must be reached");
    let remedy = "start them again, or mend the network; if they run at new addresses that nobody here \
        knows, tell where: raftline::offline::set_addresses; if they are lost for good, stop all and \
        recover from the most advanced data directory: raftline::offline::recover, docs/operations.md";
    Problem { node: 0, what, remedy: remedy.to_owned() }
}

/// Too few answer when this node asks for votes. That is no proof: who hears a leader does not answer.
fn unanswered(lacking: i64) -> Problem {
    let what = format!(
        "too few voters answer this node, by {lacking}: they are down, cannot be reached, or follow \
         a leader that this node cannot hear"
    );
    let remedy = "ask one of the others for its status. If they lead each other, mend the network to \
        this node; if they are down, start them; if they run at new addresses that nobody here knows, \
        tell where: raftline::offline::set_addresses; only if a majority is lost for good, stop all \
        and recover: raftline::offline::recover, docs/operations.md";
    Problem { node: 0, what, remedy: remedy.to_owned() }
}

/// What the leader finds wrong with a member.
fn about(s: &Status, m: &MemberStatus, spare: i64) -> Option<Problem> {
    let MemberStatus { id, addr, .. } = m;
    let problem = |what: String, remedy: String| Some(Problem { node: *id, what, remedy });
    if m.incarnation.is_empty() {
        return problem(
            format!("node {id} at {addr} was added, and its data directory has not joined yet"),
            format!("start it, or Mailbox::remove({id})"),
        );
    }
    if m.reachable == Some(false) {
        let newer = s.members.iter().rfind(|other| other.id == *id);
        if newer.is_some_and(|newer| newer.incarnation != m.incarnation) {
            return problem(
                format!("the data directory that node {id} had before is lost"),
                "its new one takes its place by itself, once it has caught up".to_owned(),
            );
        }
        let remedy = match m.voter {
            true if spare < 0 => String::new(),
            true if m.role == VotingRole::Outgoing => {
                "it goes with the change under way".to_owned()
            }
            true => format!(
                "start it again, with an empty data directory if its disk is lost; if the machine \
                 does not come back, Mailbox::replace({id}, another) or Mailbox::remove({id})"
            ),
            false => format!("start it again, or Mailbox::remove({id})"),
        };
        return problem(silence(s, m), remedy);
    }
    if refuses(s, m) {
        return problem(silence(s, m), String::new());
    }
    if m.voter && m.replication == Some(Replication::Snapshot) {
        let percent = m.snapshot_percent.map_or(String::new(), |p| format!(", {p} % are sent"));
        return problem(
            format!("node {id} at {addr} is behind the log and receives a snapshot{percent}"),
            "it counts again once it has it".to_owned(),
        );
    }
    if m.voter && m.acknowledges.is_none() {
        return problem(
            format!(
                "node {id} at {addr} has not answered yet since this node leads, for {}",
                time(s.leader_ms)
            ),
            "look again in a moment".to_owned(),
        );
    }
    if m.voter && m.acknowledges == Some(false) {
        let lag = m.lag.map_or(String::new(), |lag| format!(", and is {lag} entries behind"));
        return problem(
            format!("node {id} at {addr} is heard, but does not acknowledge new entries{lag}"),
            "look at its disk and its Store: one of them hangs or is too slow".to_owned(),
        );
    }
    None
}

/// That a member is not heard, or what it says when it turns this node away.
fn silence(s: &Status, m: &MemberStatus) -> String {
    let MemberStatus { id, addr, refusal, .. } = m;
    if refuses(s, m) {
        return format!("this node is turned away where it looks for node {id}: {refusal}");
    }
    match m.last_contact_ms {
        Some(ms) => format!("not heard from node {id} at {addr} for {}", time(ms)),
        None if s.role == Role::Leader => format!(
            "not heard from node {id} at {addr} since this node leads, for {}",
            time(s.leader_ms)
        ),
        None => format!("not heard from node {id} at {addr} since this node started"),
    }
}

/// Whether a member turns this node away. What is at the address of a lost data directory, its
/// successor or this node itself, does of course.
fn refuses(s: &Status, m: &MemberStatus) -> bool {
    let newest = s.members.iter().rfind(|other| other.id == m.id);
    !m.refusal.is_empty()
        && m.id != s.id
        && newest.is_some_and(|newest| newest.incarnation == m.incarnation)
}

/// Members that turn this node away.
fn refusals(s: &Status) -> impl Iterator<Item = Problem> + '_ {
    let refusing = s.members.iter().filter(|m| refuses(s, m));
    refusing.map(|m| Problem { node: m.id, what: silence(s, m), remedy: String::new() })
}

fn following(s: &Status) -> Health {
    let leader = s.members.iter().rfind(|m| m.id == s.leader_id);
    if let Some(leader) = leader.filter(|m| m.reachable == Some(false)) {
        let mut health = said(Level::Degraded, "the leader is silent");
        let what = silence(s, leader);
        let remedy = "see whether it runs, and the network to it".to_owned();
        health.problems.push(Problem { node: leader.id, what, remedy });
        return health;
    }
    let (id, addr) = (s.leader_id, &s.leader_addr);
    if leader.is_some_and(|m| refuses(s, m)) {
        let mut health =
            said(Level::Unavailable, format!("hears node {id}, which leads and turns it away"));
        health.problems.extend(refusals(s));
        return health;
    }
    let follows =
        format!("follows node {id} at {addr}, which knows who else is reachable: ask its status");
    let mut health = said(Level::Healthy, follows);
    health.problems.extend(refusals(s));
    if !health.problems.is_empty() {
        health.level = Level::Degraded;
    }
    health
}

fn leaderless(s: &Status) -> Health {
    let mut health =
        said(Level::Unavailable, format!("no leader is known for {}", time(s.leader_ms)));
    if s.awaits_members > 0 {
        let what = format!(
            "the first election waits for {} members (Config::min_members), and fewer have founded \
             the cluster",
            s.awaits_members
        );
        let remedy = "lower it, or found again with more, all with empty data directories";
        health.problems.push(Problem { node: 0, what, remedy: remedy.to_owned() });
        return health;
    }
    let lacking = -spare(s, |m| m.reachable != Some(false));
    health.problems.push(if lacking > 0 {
        unanswered(lacking)
    } else if s.role == Role::Learner {
        let what = "a learner takes no part in elections and cannot tell why".to_owned();
        Problem { node: 0, what, remedy: "ask a voter for its status".to_owned() }
    } else {
        let what = "an election is under way".to_owned();
        let remedy = "should it stay so, see whether the voters reach each other".to_owned();
        Problem { node: 0, what, remedy }
    });
    let silent =
        s.members.iter().filter(|m| m.voter && m.reachable == Some(false) || refuses(s, m));
    health.problems.extend(silent.map(|m| Problem {
        node: m.id,
        what: silence(s, m),
        remedy: String::new(),
    }));
    health
}

/// A span of time as a person says it.
fn time(ms: u64) -> String {
    match ms / 1000 {
        seconds @ 0..10 => format!("{seconds}.{} s", ms % 1000 / 100),
        seconds @ 10..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

#[cfg(test)]
mod tests;
