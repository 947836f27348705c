//! What peers say: what an honest one would, given what the node sent and holds, and what becomes
//! of it on the way.

use bytes::Bytes;
use prost::Message as _;

use super::start::{OURS, membership, voters};
use super::world::World;
use crate::node::context::ReadContext;
use crate::node::event::Event;
use crate::pb;
use crate::status::Role;
use crate::testing::fuzz::input::Input;
use crate::types::{ConfState, Index, Position, RaftId, SnapshotMeta, Term};

/// The types of messages as they are on the wire.
pub(super) mod kind {
    pub(crate) const APPEND: u32 = 3;
    pub(crate) const APPEND_ANSWER: u32 = 4;
    pub(crate) const VOTE: u32 = 5;
    pub(crate) const VOTE_ANSWER: u32 = 6;
    pub(crate) const SNAPSHOT: u32 = 7;
    pub(crate) const HEARTBEAT: u32 = 8;
    pub(crate) const HEARTBEAT_ANSWER: u32 = 9;
    pub(crate) const TIMEOUT_NOW: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const READ_ANSWER: u32 = 16;
    pub(crate) const PRE_VOTE: u32 = 17;
    pub(crate) const PRE_VOTE_ANSWER: u32 = 18;
}

fn message(msg_type: u32, from: RaftId, term: Term) -> pb::Message {
    pb::Message { msg_type, to: OURS, from, term, ..pb::Message::default() }
}

/// What an honest peer that agrees answers; None when it says nothing.
pub(super) fn honest_answer(m: &pb::Message) -> Option<pb::Message> {
    let mut answer = message(0, m.to, m.term);
    match m.msg_type {
        kind::VOTE => answer.msg_type = kind::VOTE_ANSWER,
        kind::PRE_VOTE => answer.msg_type = kind::PRE_VOTE_ANSWER,
        kind::APPEND => {
            answer.msg_type = kind::APPEND_ANSWER;
            answer.index = m.entries.last().map_or(m.index, |e| e.index);
            answer.commit = m.commit.min(answer.index);
        }
        kind::HEARTBEAT => {
            answer.msg_type = kind::HEARTBEAT_ANSWER;
            (answer.context, answer.commit) = (m.context.clone(), m.commit);
        }
        kind::SNAPSHOT => {
            answer.msg_type = kind::APPEND_ANSWER;
            answer.index = m.snapshot.as_ref().map_or(0, |s| s.index);
        }
        kind::READ => {
            answer.msg_type = kind::READ_ANSWER;
            answer.entries = m.entries.clone();
        }
        _ => return None,
    }
    Some(answer)
}

/// A field or two of a message changed.
fn damage(input: &mut Input<'_>, m: &mut pb::Message) {
    match input.below(20) {
        0 => m.msg_type = u32::from(input.byte() % 20),
        1 => m.to = input.number(m.to),
        2 => m.from = input.below(10) as u64,
        3 => m.term = input.number(m.term),
        4 => m.log_term = input.number(m.log_term),
        5 => m.index = input.number(m.index),
        6 => m.commit = input.number(m.commit),
        7 => m.commit_term = input.number(m.commit_term),
        8 => m.request_snapshot = input.number(0),
        9 => m.reject = !m.reject,
        10 => m.reject_hint = input.number(m.index),
        11 => m.context = bytes(input),
        12 => m.priority = input.number(0) as i64,
        13 => m.entries.clear(),
        14 => {
            let (index, term) = (input.number(m.index.saturating_add(1)), input.number(m.term));
            m.entries.push(pb::Entry { index, term, ..pb::Entry::default() });
        }
        15 => {
            if let Some(e) = m.entries.last_mut() {
                (e.entry_type, e.data) = (u32::from(input.byte() % 3), bytes(input));
                e.context = bytes(input);
            }
        }
        16 => {
            let n = input.below(m.entries.len());
            if let Some(e) = m.entries.get_mut(n) {
                (e.index, e.term) = (input.number(e.index), input.number(e.term));
            }
        }
        17 => {
            let gap = 1 + input.below(9) as u64;
            m.index = m.index.saturating_add(gap);
            m.entries.iter_mut().for_each(|e| e.index = e.index.saturating_add(gap));
        }
        18 => {
            if let Some(s) = &mut m.snapshot {
                (s.index, s.term) = (input.number(s.index), input.number(s.term));
            }
        }
        _ => {
            let conf = m.snapshot.as_mut().and_then(|s| s.membership.as_mut());
            if let Some(conf) = conf.and_then(|m| m.conf_state.as_mut()) {
                let ids = |input: &mut Input<'_>| {
                    input.take(2).iter().map(|b| u64::from(*b % 9)).collect::<Vec<_>>()
                };
                match input.below(5) {
                    0 => conf.voters = ids(input),
                    1 => conf.learners = ids(input),
                    2 => conf.voters_outgoing = ids(input),
                    3 => conf.learners_next = ids(input),
                    _ => conf.auto_leave = !conf.auto_leave,
                }
            }
        }
    }
}

fn bytes(input: &mut Input<'_>) -> Bytes {
    match input.below(8) {
        0 => Bytes::new(),
        1 => Bytes::from_static(b"CampaignTransfer"),
        2 => change(input).encode_to_vec().into(),
        3 => {
            let raft_id = input.below(5) as u64;
            let (nonce, counter) = (u64::from(input.byte()), u64::from(input.byte()));
            Bytes::copy_from_slice(&ReadContext { raft_id, nonce, counter }.encode())
        }
        4 => command(input),
        5 => {
            let mut out = vec![1, 2];
            pb::MembershipChange { next_raft_id: input.number(8), upsert: Vec::new() }
                .encode(&mut out)
                .unwrap_or_else(|e| panic!("{e}"));
            out.into()
        }
        _ => Bytes::copy_from_slice(input.blob()),
    }
}

fn command(input: &mut Input<'_>) -> Bytes {
    let data = input.take(3);
    let mut out = vec![1, 1, data.len() as u8, 0, 0, 0];
    out.extend_from_slice(data);
    out.into()
}

fn change(input: &mut Input<'_>) -> pb::ConfChangeV2 {
    let single = |input: &mut Input<'_>| pb::ConfChangeSingle {
        change_type: u32::from(input.byte() % 3),
        node_id: input.below(9) as u64,
    };
    let changes = (0..input.below(4)).map(|_| single(input)).collect();
    let transition = u32::from(input.byte() % 3);
    pb::ConfChangeV2 { transition, changes, context: Bytes::new() }
}

impl World {
    /// Answers something that the node sent, as an honest peer, or almost.
    pub(super) fn answer(&mut self, input: &mut Input<'_>) {
        let choice = input.byte();
        if self.outbox.is_empty() {
            return;
        }
        let n = usize::from(choice & 15) % self.outbox.len();
        let sent = self.outbox[n].clone();
        if choice & 16 == 0 {
            self.outbox.remove(n);
        }
        if sent.msg_type == kind::SNAPSHOT {
            let cut = sent.snapshot.as_ref();
            let position =
                cut.map_or(Position::default(), |s| Position { index: s.index, term: s.term });
            let how = super::ended(choice & 32 == 0, choice & 128 != 0, position);
            self.tell(Event::SnapshotSent { to: sent.to, how });
        }
        let Some(mut answer) = honest_answer(&sent) else { return };
        if choice & 64 != 0 && answer.msg_type != kind::READ_ANSWER {
            answer.reject = matches!(
                answer.msg_type,
                kind::APPEND_ANSWER | kind::VOTE_ANSWER | kind::PRE_VOTE_ANSWER
            );
            if answer.msg_type == kind::APPEND_ANSWER {
                answer.reject_hint = answer.index.saturating_sub(u64::from(choice & 3));
            }
        }
        if choice & 128 != 0 {
            damage(input, &mut answer);
        }
        self.message(answer.from, answer);
    }

    /// A message that a leader, a candidate or a follower might well send now.
    fn plausible(&mut self, input: &mut Input<'_>, msg_type: u32) -> pb::Message {
        let status = self.status();
        let leader = match status.leader_id {
            0 | OURS => 2 + input.below(2) as u64,
            known => known,
        };
        let ahead = u64::from(input.below(5) == 4 || status.role == Role::Leader);
        let term = (status.term + ahead).max(1);
        let mut m = message(msg_type, leader, term);
        let near = if input.flag() { status.commit } else { status.last_index };
        let held = self.written.term_at(near).unwrap_or(0);
        match msg_type {
            kind::APPEND => {
                (m.index, m.log_term) = (near, held);
                m.entries = self.entries(input, near, held, term);
                let last = near + m.entries.len() as u64;
                m.commit = last.saturating_sub(input.below(4) as u64);
            }
            kind::APPEND_ANSWER => {
                (m.index, m.commit, m.term) = (near, status.commit, status.term);
            }
            kind::VOTE | kind::PRE_VOTE => {
                let last = self.written.last();
                m.term = status.term + 1;
                m.index = last.index + input.below(3) as u64;
                m.log_term = last.term.max(u64::from(m.index > 0));
                m.context = if input.below(3) == 2 && msg_type == kind::VOTE {
                    Bytes::from_static(b"CampaignTransfer")
                } else {
                    Bytes::new()
                };
            }
            kind::VOTE_ANSWER | kind::PRE_VOTE_ANSWER => {
                m.term = status.term + u64::from(msg_type == kind::PRE_VOTE_ANSWER);
            }
            kind::SNAPSHOT => {
                let index = near + input.below(9) as u64;
                let meta = snapshot(input, index, held.max(1).min(term));
                m.snapshot = Some(meta.to_pb());
            }
            kind::HEARTBEAT => m.commit = near.min(self.written.last_index()),
            kind::READ => {
                let context = ReadContext { raft_id: leader, nonce: 9, counter: near }.encode();
                let data = Bytes::copy_from_slice(&context);
                (m.term, m.entries) = (0, vec![pb::Entry { data, ..pb::Entry::default() }]);
            }
            kind::READ_ANSWER => m.index = near,
            _ => {}
        }
        m
    }

    fn entries(
        &self,
        input: &mut Input<'_>,
        above: Index,
        held: Term,
        term: Term,
    ) -> Vec<pb::Entry> {
        let mut low = held.max(1);
        (0..input.below(5) as u64)
            .map(|i| {
                let index = above + 1 + i;
                let choice = input.byte();
                // What the node holds already, or something newer.
                let ours = self.written.entry(index).filter(|_| choice & 3 != 3);
                if let Some(ours) = ours {
                    low = ours.term.max(low);
                    let (data, context) = (ours.data.clone(), ours.context.clone());
                    let entry_type = ours.kind as u32;
                    return pb::Entry { entry_type, term: low, index, data, context };
                }
                low = if choice & 4 == 0 { term.max(low) } else { low };
                let (entry_type, data) = match choice >> 4 {
                    0..=3 => (0, Bytes::new()),
                    4..=9 => (0, command(input)),
                    10..=12 => (2, change(input).encode_to_vec().into()),
                    13 => (2, Bytes::new()),
                    14 => (0, Bytes::from_static(&[1, 2])),
                    _ => (0, bytes(input)),
                };
                pb::Entry { entry_type, term: low, index, data, context: Bytes::new() }
            })
            .collect()
    }

    /// A leader at work.
    pub(super) fn lead(&mut self, input: &mut Input<'_>) {
        let kinds = [kind::APPEND, kind::APPEND, kind::APPEND, kind::HEARTBEAT];
        let msg_type = kinds[input.below(4)];
        let m = self.plausible(input, msg_type);
        self.message(m.from, m);
    }

    /// Any message, almost right.
    pub(super) fn damaged(&mut self, input: &mut Input<'_>) {
        const KINDS: [u32; 12] = [
            kind::APPEND,
            kind::APPEND_ANSWER,
            kind::VOTE,
            kind::VOTE_ANSWER,
            kind::SNAPSHOT,
            kind::HEARTBEAT,
            kind::HEARTBEAT_ANSWER,
            kind::TIMEOUT_NOW,
            kind::READ,
            kind::READ_ANSWER,
            kind::PRE_VOTE,
            kind::PRE_VOTE_ANSWER,
        ];
        let msg_type = KINDS[input.below(KINDS.len())];
        let mut m = self.plausible(input, msg_type);
        if let (kind::READ_ANSWER, Some(asked)) =
            (msg_type, self.outbox.iter().find(|m| m.msg_type == kind::READ))
        {
            m.entries.clone_from(&asked.entries);
        }
        for _ in 0..input.below(3) {
            damage(input, &mut m);
        }
        let sender = if input.below(16) == 15 { input.below(9) as u64 } else { m.from };
        self.message(sender, m);
    }

    /// Bytes of the wire.
    pub(super) fn invented(&mut self, input: &mut Input<'_>) {
        let sender = input.below(5) as u64;
        if let Ok(m) = pb::Message::decode(input.blob()) {
            self.message(sender, m);
        }
    }

    /// A snapshot ahead of the log, as an honest leader sends it.
    pub(super) fn peer_snapshot(&mut self, input: &mut Input<'_>) {
        let mut m = self.plausible(input, kind::HEARTBEAT);
        let index = self.written.last_index() + 1 + input.below(20) as u64;
        let meta = snapshot(input, index, m.term);
        (m.msg_type, m.commit, m.snapshot) = (kind::SNAPSHOT, 0, Some(meta.to_pb()));
        self.message(m.from, m);
    }
}

fn snapshot(input: &mut Input<'_>, index: Index, term: Term) -> SnapshotMeta {
    let conf_state = match input.below(5) {
        0 => ConfState { learners: vec![1], ..voters(&[2, 3]) },
        1 => voters(&[1]),
        2 => ConfState { voters_outgoing: vec![1, 2, 3], ..voters(&[1, 2, 4]) },
        _ => voters(&[1, 2, 3]),
    };
    let changed = index.saturating_sub(input.below(4) as u64);
    let position = Position { index, term };
    SnapshotMeta { position, membership: membership(changed, conf_state), size: 0, crc32: 0 }
}
