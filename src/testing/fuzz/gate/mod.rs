//! One node among peers that say whatever the input says: honest answers, damaged ones, inventions;
//! in between ticks, completions of the disk and the Store that are late, requests, crashes.
//!
//! Checked after every step: no panic; I2 (one vote per term, durable), I7 (nothing goes back),
//! I8 (snapshot, commit and end of the log in order), R2 and H6 (nothing leaves before what it
//! speaks of is durable), R3, R8 (the Store is given what is durable, once and in order), R10; no
//! entry at or below the commit index is written again, or given to the Store in two versions.

mod disk;
mod forge;
mod start;
mod world;

use super::input::Input;
use crate::node::event::{Change, Event, Freshness, Proposal, Read, Transferred};
use crate::reply::reply;
use crate::types::{Incarnation, Position};
use world::World;

/// Steps of one input.
const MAX_STEPS: usize = 400;

/// What an input led to; the tests want to have seen everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) follower: u64,
    pub(super) pre_candidate: u64,
    pub(super) candidate: u64,
    pub(super) leader: u64,
    pub(super) learner: u64,
    pub(super) joiner: u64,
    pub(super) joint: u64,
    pub(super) installing: u64,
    pub(super) stepped: u64,
    pub(super) refused: u64,
    pub(super) crashes: u64,
    pub(super) ended: u64,
    pub(super) applied: u64,
    pub(super) changes: u64,
    pub(super) reads: u64,
    pub(super) captured: u64,
    pub(super) overwritten: u64,
}

/// See the module.
pub fn gate(data: &[u8]) {
    run(data);
}

pub(super) fn run(data: &[u8]) -> Seen {
    let mut input = Input::new(data);
    let mut world = start::world(&mut input);
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        step(&mut world, &mut input);
    }
    // Whatever it came to: everything that is on its way may still arrive.
    world.drive();
    world.seen
}

fn step(w: &mut World, input: &mut Input<'_>) {
    let op = input.byte();
    match op & 31 {
        0..=2 => ticks(w, input.below(24)),
        3..=7 => w.answer(input),
        8..=10 => w.lead(input),
        11..=15 => w.damaged(input),
        16 => w.invented(input),
        17 | 18 => w.sync(1 + input.below(4)),
        19 | 20 => w.run_store(1 + input.below(4)),
        21 | 22 => propose(w, input),
        23 => read(w, input),
        24 => change(w, input),
        25 => transfer(w, input),
        26 => w.tell(Event::Unreachable { peer: input.below(9) as u64 }),
        27 => {
            let (to, choice) = (input.below(9) as u64, input.byte());
            let at = Position { index: u64::from(choice >> 3), term: 1 };
            w.tell(Event::SnapshotSent { to, how: ended(choice & 1 != 0, choice & 6 == 6, at) });
        }
        28 => w.crash_and_start(input.below(6)),
        29 => w.drive(),
        30 => w.peer_snapshot(input),
        _ if input.below(16) == 0 => w.tell(Event::Stop),
        _ => w.drive(),
    }
    // Sometimes several events come before the node is asked what it wants.
    if op & 32 == 0 {
        w.poll();
    }
}

/// How a transfer ends.
fn ended(arrived: bool, unreadable: bool, position: Position) -> Transferred {
    match (arrived, unreadable) {
        (true, _) => Transferred::Arrived,
        (false, true) => Transferred::Unreadable(position),
        (false, false) => Transferred::Broken,
    }
}

fn ticks(w: &mut World, n: usize) {
    for _ in 0..=n {
        w.tell(Event::Tick);
        w.poll();
    }
}

fn propose(w: &mut World, input: &mut Input<'_>) {
    for _ in 0..=input.below(3) {
        let data = input.blob().to_vec().into();
        let (reply, waiter) = reply(None);
        w.waiters.push(waiter);
        w.tell(Event::Propose(Proposal { data, reply }));
    }
}

fn read(w: &mut World, input: &mut Input<'_>) {
    let freshness = match input.below(4) {
        0 => Freshness::Stale,
        1 => Freshness::AtLeast(input.number(5)),
        _ => Freshness::Linearizable,
    };
    let (reply, waiter) = reply(None);
    w.waiters.push(waiter);
    w.tell(Event::Read(Read { query: None, freshness, reply }));
}

fn change(w: &mut World, input: &mut Input<'_>) {
    let node_id = input.below(8) as u64;
    let incarnation = Incarnation::from_u128(input.below(8) as u128);
    let addr = format!("n{}:1", input.below(4));
    let other = (node_id + 1) % 8;
    let change = match input.below(12) {
        0 | 4 => Change::Join { node_id, incarnation, addr, voter: true },
        1 => Change::Join { node_id, incarnation, addr, voter: false },
        2 => Change::Remove { node_id },
        3 => Change::Update { node_id, incarnation, addr },
        5 => Change::AddLearner { node_id, addr },
        6 => Change::AddVoter { node_id, addr, added: false },
        7 => Change::Promote { node_id },
        8 => Change::Demote { node_id },
        9 => Change::Replace { old: node_id, new: other },
        10 => Change::Set { voters: vec![node_id], learners: vec![other] },
        _ => Change::Describe { node_id, addr: Some(addr), metadata: None },
    };
    let (reply, waiter) = reply(None);
    w.changes.push(waiter);
    w.seen.changes += 1;
    w.tell(Event::Change { change, reply });
}

fn transfer(w: &mut World, input: &mut Input<'_>) {
    let to = Some(input.below(6) as u64).filter(|to| *to != 0);
    let (reply, waiter) = reply(None);
    w.transfers.push(waiter);
    w.tell(Event::Transfer { to, reply });
}
