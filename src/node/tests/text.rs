//! How scripts show messages, logs and members, and how they write hostile messages.

use bytes::Bytes;

use super::cluster::{Load, Machine, Packet};
use crate::node::context::ReadContext;
use crate::node::effect::Forward;
use crate::node::envelope::{self, Envelope};
use crate::types::{Entry, EntryKind, MemberRole, Membership, Message, NodeId, eraftpb};
use eraftpb::MessageType as T;

const TYPES: [(&str, T); 19] = [
    ("Hup", T::MsgHup),
    ("Beat", T::MsgBeat),
    ("Propose", T::MsgPropose),
    ("Append", T::MsgAppend),
    ("AppendResponse", T::MsgAppendResponse),
    ("RequestVote", T::MsgRequestVote),
    ("RequestVoteResponse", T::MsgRequestVoteResponse),
    ("Snapshot", T::MsgSnapshot),
    ("Heartbeat", T::MsgHeartbeat),
    ("HeartbeatResponse", T::MsgHeartbeatResponse),
    ("Unreachable", T::MsgUnreachable),
    ("SnapStatus", T::MsgSnapStatus),
    ("CheckQuorum", T::MsgCheckQuorum),
    ("TransferLeader", T::MsgTransferLeader),
    ("TimeoutNow", T::MsgTimeoutNow),
    ("ReadIndex", T::MsgReadIndex),
    ("ReadIndexResp", T::MsgReadIndexResp),
    ("RequestPreVote", T::MsgRequestPreVote),
    ("RequestPreVoteResponse", T::MsgRequestPreVoteResponse),
];

/// The name of what a packet carries.
pub(super) fn kind(load: &Load) -> String {
    match load {
        Load::Raft(m) => name(m).to_owned(),
        Load::Snapshot(..) => "Snapshot".to_owned(),
        Load::Forward(_) => "Forward".to_owned(),
    }
}

fn name(m: &Message) -> &'static str {
    let t = m.inner.get_msg_type();
    TYPES.iter().find(|(_, k)| *k == t).map_or("unknown", |(name, _)| name)
}

/// A second one of the same; forwarded requests exist once.
pub(super) fn copy(p: &Packet) -> Option<Packet> {
    let load = match &p.load {
        Load::Raft(m) => Load::Raft(m.clone()),
        Load::Snapshot(m, f) => Load::Snapshot(m.clone(), f.clone()),
        Load::Forward(_) => return None,
    };
    Some(Packet { from: p.from, to: p.to, load })
}

pub(super) fn packet(p: &Packet) -> String {
    let head = format!("{}>{} {}", p.from, p.to, kind(&p.load));
    match &p.load {
        Load::Raft(m) => format!("{head} {}", message(m)),
        Load::Snapshot(m, f) => {
            format!("{head} term {} index {}", m.term(), f.meta.position.index)
        }
        Load::Forward(Forward::Propose(all)) => {
            let all: Vec<_> = all.iter().map(|p| String::from_utf8_lossy(&p.data)).collect();
            format!("{head} propose {}", all.join(" "))
        }
        Load::Forward(Forward::Change { change, .. }) => format!("{head} {change:?}"),
        Load::Forward(Forward::Transfer { to, .. }) => format!("{head} transfer {to:?}"),
    }
}

fn message(m: &Message) -> String {
    let i = &m.inner;
    let reject = if i.reject { " reject" } else { "" };
    let entries: Vec<String> = i.entries.iter().map(|e| entry(&e.into())).collect();
    match i.get_msg_type() {
        T::MsgAppend => {
            let list = entries.join(" ");
            format!("term {} after {} commit {} [{list}]", i.term, i.index, i.commit)
        }
        T::MsgAppendResponse => format!("term {} index {}{reject}", i.term, i.index),
        T::MsgHeartbeat | T::MsgHeartbeatResponse => {
            let round = ReadContext::decode(&i.context);
            let round = round.map_or(String::new(), |c| format!(" read {}", c.counter));
            format!("term {}{round}", i.term)
        }
        T::MsgReadIndexResp => format!("index {}", i.index),
        _ => format!("term {}{reject}", i.term),
    }
}

fn entry(e: &Entry) -> String {
    let what = match (e.kind, envelope::open(&e.data)) {
        (EntryKind::ConfChangeV2 | EntryKind::ConfChange, _) => {
            let cc = crate::node::conf_change::decode(&e.data).expect("own entry");
            let all: Vec<String> =
                cc.get_changes().iter().map(|c| change(c.get_change_type(), c.node_id)).collect();
            let leave = if all.is_empty() { "leave" } else { "" };
            format!("conf({}{leave})", all.join(" "))
        }
        (EntryKind::Normal, Ok(Envelope::Empty)) => "-".to_owned(),
        (EntryKind::Normal, Ok(Envelope::Commands(body))) => {
            let all: Vec<_> = envelope::commands(&body).map(String::from_utf8_lossy).collect();
            all.join(",")
        }
        (EntryKind::Normal, Ok(Envelope::Membership(_))) => "address".to_owned(),
        (EntryKind::Normal, Err(reason)) => reason,
    };
    format!("{}:{}:{what}", e.index, e.term)
}

fn change(kind: eraftpb::ConfChangeType, id: u64) -> String {
    let kind = match kind {
        eraftpb::ConfChangeType::AddNode => "voter",
        eraftpb::ConfChangeType::RemoveNode => "remove",
        eraftpb::ConfChangeType::AddLearnerNode => "learner",
    };
    format!("{kind} {id}")
}

pub(super) fn status(id: NodeId, m: &Machine) -> String {
    let Some(node) = &m.node else { return format!("node {id}: down") };
    let s = node.status();
    let parts = [
        format!("node {id}: {} of term {}, leader {}", s.role, s.term, s.leader_id),
        format!("commit {} applied {} last {}", s.commit, s.applied, s.last_index),
        format!("snapshot {} refused {}", s.snapshot, s.refused_messages),
    ];
    parts.join(", ")
}

pub(super) fn log(id: NodeId, m: &Machine) -> String {
    let Some(node) = &m.node else { return format!("log {id}: down") };
    let (at, last) = (node.cache().compacted(), node.last_index());
    let all = node.raw.raft.raft_log.all_entries();
    let all: Vec<String> = all.iter().map(|e| entry(&e.into())).collect();
    assert_eq!(all.len() as u64, last - at.index, "the log is contiguous");
    format!("log {id}: after {}: {}", at.index, all.join(" "))
}

pub(super) fn disk(id: NodeId, m: &Machine) -> String {
    let d = &m.disk;
    let hs = d.hard_state;
    let all: Vec<String> = d.entries.iter().map(entry).collect();
    let snapshot = d.snapshot.map_or("no snapshot".to_owned(), |s| {
        let state = if s.installing { "installing" } else { "snapshot" };
        format!("{state} {}", s.position.index)
    });
    let waiting = if d.queue.is_empty() { "" } else { ", writes are waiting" };
    format!(
        "disk {id}: term {} vote {} commit {}, {snapshot}, membership of {}, after {}: {}{waiting}",
        hs.term,
        hs.vote,
        hs.commit,
        d.members().map_or(0, |m| m.index),
        d.compacted.index,
        all.join(" "),
    )
}

pub(super) fn members(id: NodeId, m: &Machine) -> String {
    let Some(node) = &m.node else { return format!("node {id}: down") };
    let all = node.membership.as_ref().map_or("none yet".to_owned(), membership);
    format!("node {id}: {all}")
}

/// How the leader replicates to each member.
pub(super) fn peers(id: NodeId, m: &Machine) -> String {
    let members = m.node.as_ref().map(|n| n.status().members).unwrap_or_default();
    let all: Vec<String> = members
        .iter()
        .filter_map(|x| Some(format!("{} {:?} to {}", x.id, x.replication?, x.matched?)))
        .collect();
    format!("peers of {id}: {}", all.join(", "))
}

pub(super) fn membership(m: &Membership) -> String {
    let all: Vec<String> = m
        .members
        .iter()
        .map(|x| {
            let role = match (m.conf_state.voters.contains(&x.raft_id), m.role(x.raft_id)) {
                (true, _) => "voter",
                (false, Some(MemberRole::Voter)) => "leaving",
                (false, _) if !x.has_joined() => "expected",
                (false, _) if x.learner_only => "learner-only",
                (false, _) => "learner",
            };
            let usual = x.addr == super::cluster::addr(x.node_id);
            let at = if usual { String::new() } else { format!(" at {}", x.addr) };
            let raft =
                if x.raft_id == x.node_id { String::new() } else { format!("/{}", x.raft_id) };
            format!("{}{raft} {role}{at}", x.node_id)
        })
        .collect();
    let joint = if m.is_joint() { "joint " } else { "" };
    format!("{joint}members of {}: {}", m.index, all.join(", "))
}

/// A message as no correct member would send it.
pub(super) fn hostile(words: &[&str], to: NodeId, now: u64) -> Message {
    let kind = TYPES.iter().find(|(name, _)| *name == words[0]).expect("a type").1;
    let mut m = eraftpb::Message::default();
    m.set_msg_type(kind);
    (m.from, m.to, m.term) = (2, to, now);
    let mut entries = Vec::new();
    for (key, value) in words[1..].iter().filter_map(|w| w.split_once('=')) {
        let n = if value == "max" { Ok(u64::MAX) } else { value.parse::<u64>() };
        match (key, n) {
            ("from", Ok(n)) => m.from = n,
            ("to", Ok(n)) => m.to = n,
            ("term", Ok(n)) => m.term = n,
            ("term+", Ok(n)) => m.term += n,
            ("index", Ok(n)) => m.index = n,
            ("log_term", Ok(n)) => m.log_term = n,
            ("commit", Ok(n)) => m.commit = n,
            ("hint", Ok(n)) => (m.reject_hint, m.reject) = (n, true),
            ("request_snapshot", Ok(n)) => (m.request_snapshot, m.reject) = (n, true),
            ("entry", Ok(n)) => {
                let mut e = eraftpb::Entry::default();
                (e.index, e.term) = (n, m.term);
                entries.push(e);
            }
            ("data", Err(_)) => {
                let data = Bytes::copy_from_slice(value.as_bytes());
                entries.push(eraftpb::Entry { data, ..eraftpb::Entry::default() });
            }
            ("context", Err(_)) => m.context = Bytes::copy_from_slice(value.as_bytes()),
            ("snapshot", Ok(n)) => {
                let meta = m.mut_snapshot().mut_metadata();
                (meta.index, meta.term) = (n, 1);
            }
            ("voters", _) => {
                let ids = value.split(',').filter_map(|v| v.parse().ok()).collect();
                m.mut_snapshot().mut_metadata().mut_conf_state().voters = ids;
            }
            ("learners", _) => {
                let ids = value.split(',').filter_map(|v| v.parse().ok()).collect();
                m.mut_snapshot().mut_metadata().mut_conf_state().learners = ids;
            }
            _ => panic!("no field {key}={value}"),
        }
    }
    m.set_entries(entries.into());
    Message::new(m)
}
