//! Requests that reach a node which does not lead: refused with a hint, as the driver refuses them,
//! never passed on. And what a hint is worth: a stranger who asks any member and goes on to whom it
//! is told comes to the leader.
//!
//! A hint may be stale while nodes cannot hear each other; once everything is healed, none is.

use std::collections::BTreeMap;

use super::machine::Life;
use super::marks::Mark;
use super::schedule::{MS, Time};
use super::world::World;
use crate::error::Leader;
use crate::status::{Role, Status};
use crate::types::NodeId;

/// Hints that a stranger follows: as many as a node that joins does.
const MAX_HOPS: usize = 8;

/// Who was refused how often.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    by_home: BTreeMap<NodeId, u64>,
    /// Requests that were sent earlier, and were under way since, do not count.
    since: Time,
}

impl Refusals {
    pub(super) fn note(&mut self, home: NodeId, sent: Time) {
        if sent >= self.since {
            *self.by_home.entry(home).or_default() += 1;
        }
    }

    /// Counts anew: what is sent from this moment on.
    pub(super) fn count_from(&mut self, since: Time) {
        *self = Self { since, ..Self::default() };
    }

    /// Requests of a node that were refused.
    pub(super) fn of(&self, home: NodeId) -> u64 {
        self.by_home.get(&home).copied().unwrap_or(0)
    }
}

/// Why a node does not serve a request: whom it names instead, and where.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) leader: Option<Leader>,
}

impl World {
    /// What a node tells its driver about itself.
    pub(super) fn publish(&mut self, id: NodeId, status: Status) {
        if let Some(r) = self.at(id).running() {
            r.status = status;
        }
    }

    /// Whether a node serves what others ask of a leader: by its published status, as the driver
    /// decides it.
    ///
    /// # Errors
    /// The refusal.
    pub(super) fn serves(&mut self, at: NodeId) -> Result<(), Refused> {
        let Some(Life::Running(r)) = self.machines.get(&at).map(|m| &m.life) else {
            return Err(Refused { leader: None });
        };
        if r.status.role == Role::Leader {
            return Ok(());
        }
        let named = crate::driver::shared::leader_of(&r.status);
        let leader = named.map(|leader| r.hints.reach(r.view.as_ref(), leader));
        let newest = self.oracle.newest_leader().map(|(id, _)| id);
        let deposed = leader.as_ref().is_some_and(|leader| Some(leader.id) != newest);
        self.hit(Mark::Refused);
        self.marks.hit_if(Mark::RefusedStale, deposed);
        Err(Refused { leader })
    }

    /// Where a stranger comes to who asks this node, and then whomever it is told; None: to nobody
    /// who leads.
    pub(super) fn led_to(&mut self, first: NodeId) -> Option<NodeId> {
        let mut at = first;
        for _ in 0..MAX_HOPS {
            match self.serves(at) {
                Ok(()) => return Some(at),
                Err(Refused { leader }) => at = self.listener(&leader?.addr)?,
            }
        }
        None
    }

    /// I15: every member of a cluster at rest leads a stranger to the leader, by hints alone.
    pub(super) fn demand_way(&mut self, id: NodeId) {
        let end = self.now() + 10 * self.config.election_timeout().as_micros() as Time;
        while self.at(id).is_up() && self.led_to(id).is_none() {
            assert!(
                self.now() < end,
                "I15: node {id} leads nobody to the leader: {}",
                self.picture()
            );
            self.run_until(self.now() + 100 * MS);
        }
    }
}
