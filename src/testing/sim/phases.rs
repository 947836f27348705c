//! The two phases of a run: faults, then a majority that is healed and has to show that nothing
//! was lost and that it goes on.

use std::collections::BTreeSet;

use super::clients::{Came, Record};
use super::machine::{Life, Machine};
use super::marks::Mark;
use super::nemesis::takes_part;
use super::plan::Knob;
use super::schedule::{MS, SECOND, Time};
use super::world::World;
use crate::types::{ConfState, Member, MemberRole, Membership, NodeId};

/// How long a healed cluster may take to come to rest.
const REST: Time = 120 * SECOND;

impl World {
    /// Runs the plan; panics with what did not hold.
    pub(super) fn run(&mut self) {
        self.found();
        self.start_clients();
        self.start_nemesis();
        self.run_until(self.plan.get(Knob::Seconds) * SECOND);
        self.heal();
        self.demand_progress();
        self.demand_rest();
        self.demand_answers();
        self.demand_rest();
        self.verdict();
    }

    /// Ends every fault for a majority that chance picks; everybody else is gone for good.
    fn heal(&mut self) {
        self.healed = true;
        self.clients.before_healing = self.clients.done.len();
        self.note(|| "everything is healed".to_owned());
        self.net.heal();
        self.nemesis.heal();
        self.churn.wishes.clear();
        let chosen = self.choose_majority();
        if self.whole {
            // A disk that may be damaged is replaced, too.
            let rotten = |m: &&Machine| takes_part(m) && m.rotten;
            let rotten: Vec<NodeId> = self.machines.values().filter(rotten).map(|m| m.id).collect();
            rotten.into_iter().for_each(|id| self.lose_disk(id));
        }
        let ids: Vec<NodeId> = self.machines.keys().copied().collect();
        for id in ids {
            if !chosen.contains(&id) && self.at(id).is_up() {
                self.end_process(id);
            }
            let m = self.at(id);
            (m.paused_until, m.stalled_until, m.store_hangs_until) = (0, 0, 0);
            m.vfs.disarm();
            if let Some(r) = m.running() {
                r.mischief = None;
                let stops = r.drain.is_some();
                self.wake(id);
                if stops {
                    self.seal(id);
                }
            }
        }
        for id in chosen {
            if matches!(self.at(id).life, Life::Down) {
                self.boot(id);
            }
        }
    }

    /// Machines that are a majority of every configuration that anybody may hold.
    fn choose_majority(&mut self) -> BTreeSet<NodeId> {
        let usable = |m: &&Machine| takes_part(m) && !m.rotten;
        let mut rest: Vec<NodeId> = self.machines.values().filter(usable).map(|m| m.id).collect();
        // Nobody can tell an older copy of a disk before it meets someone who remembers.
        let unnoticed = self.machines.values().any(|m| m.rolled_back);
        let churn = self.plan.has_churn();
        // Nor how many changes an administrator has asked for will still happen, also of those that
        // were given up a moment ago: a node may hold them, and ask when it finds a leader.
        let asked = !self.is_settled();
        if churn && (unnoticed || asked || self.plan.get(Knob::HealSome) == 0) {
            self.whole = true;
            return rest.into_iter().collect();
        }
        let mut confs = self.configurations(&rest);
        let newest = self.oracle.memberships.values().next_back();
        confs.extend(newest.map(|m| m.conf_state.clone()));
        confs.extend(self.oracle.possible().cloned());
        // One more change may be in a log, which no record tells of yet.
        let spare = usize::from(churn);
        let mut chosen = BTreeSet::new();
        while !rest.is_empty() && !confs.iter().all(|c| self.is_majority(c, &chosen, spare)) {
            let at = self.chance.fault.below(rest.len() as u64) as usize;
            chosen.insert(rest.swap_remove(at));
        }
        self.marks.hit_if(Mark::HealedSome, churn && !rest.is_empty());
        chosen
    }

    fn configurations(&self, ids: &[NodeId]) -> Vec<ConfState> {
        let mut confs = Vec::new();
        for id in ids {
            let record = self.oracle.durable(*id).membership;
            confs.extend(record.and_then(|r| Membership::decode(r).ok()).map(|m| m.conf_state));
            let held = self.machines[id].node().and_then(|n| n.members());
            confs.extend(held.map(|m| m.conf_state.clone()));
        }
        confs
    }

    /// Whether these are a majority of the voters, and stay one when so many come or go.
    fn is_majority(&self, conf: &ConfState, chosen: &BTreeSet<NodeId>, spare: usize) -> bool {
        let home = |raft_id: &&u64| {
            self.net.homes.get(raft_id).is_some_and(|home| {
                chosen.contains(home) && self.machines[home].raft_id == Some(**raft_id)
            })
        };
        let majority = |voters: &Vec<u64>| {
            let count = voters.iter().filter(home).count();
            voters.is_empty() || count > (voters.len() + spare) / 2
        };
        majority(&conf.voters) && majority(&conf.voters_outgoing)
    }

    /// I15: a leader within ten election timeouts, a fresh write within twenty.
    fn demand_progress(&mut self) {
        let timeout = self.config.election_timeout().as_micros() as Time;
        let healed = self.now();
        while self.settled_leader().is_none() {
            assert!(
                self.now() < healed + 10 * timeout,
                "I15: no leader after healing: {}",
                self.picture()
            );
            self.run_until(self.now() + 100 * MS);
        }
        let written = self.clients.done.len();
        while !self.has_written(written, healed) {
            assert!(
                self.now() < healed + 20 * timeout,
                "I15: no write after healing: {}",
                self.picture()
            );
            if let Some(id) = self.any_up() {
                self.fresh_write(id);
            }
            self.run_until(self.now() + SECOND);
        }
    }

    fn settled_leader(&self) -> Option<NodeId> {
        let id = self.leader()?;
        self.machines[&id].node()?.is_settled_leader().then_some(id)
    }

    /// Whether a write that began after healing was acknowledged.
    fn has_written(&self, from: usize, since: Time) -> bool {
        let new = self.clients.done.get(from..).unwrap_or_default();
        new.iter().any(|r| {
            r.invoked >= since
                && matches!(r.ask, super::clients::Ask::Write(_))
                && matches!(r.came, Came::Ok(_) | Came::Rejected(_))
        })
    }

    /// I15: a cluster at rest answers a write and a linearizable read through each of its members.
    fn demand_answers(&mut self) {
        let ids = self.members_up();
        assert!(!ids.is_empty(), "I15: a cluster at rest has lost its leader: {}", self.picture());
        let generation = |id: NodeId| (id, self.machines[&id].generation);
        for (id, generation) in ids.into_iter().map(generation).collect::<Vec<_>>() {
            // A removal that was asked for before may end a node meanwhile, and a join that was asked
            // for too early may put another directory in its place.
            let ended = |w: &Self| {
                let m = &w.machines[&id];
                m.generation != generation || (!m.is_up() && w.was_removed(id))
            };
            if ended(self) {
                continue;
            }
            self.demand_way(id);
            let from = self.clients.done.len();
            self.calls.refusals.count_from(self.now());
            let led_by = self.oracle.newest_leader();
            let asked = self.fresh_operations(id);
            let end = self.now() + 20 * self.config.election_timeout().as_micros() as Time;
            while !self.clients.is_idle() {
                let waits = self.clients.waits();
                assert!(self.now() < end, "I15: no answer to {waits:?}: {}", self.picture());
                self.run_until(self.now() + 100 * MS);
            }
            if ended(self) {
                continue;
            }
            let new = self.clients.done.get(from..).unwrap_or_default();
            let good = |r: &&Record| matches!(r.came, Came::Ok(_) | Came::Rejected(_));
            let bad: Vec<&Record> = new.iter().filter(|r| !good(r)).collect();
            assert!(bad.is_empty() && new.len() == asked, "I15: a healthy cluster says {bad:?}");
            // A transfer that was asked for before may still depose a leader, and so may what is
            // under way on a link that was clogged: what comes after it waits.
            let same = self.oracle.newest_leader() == led_by;
            let refused = self.calls.refusals.of(id);
            assert!(
                refused == 0 || !same,
                "I15: of the requests of node {id}, {refused} are refused"
            );
        }
    }

    /// Nodes that run, and that the leader knows as members.
    fn members_up(&self) -> Vec<NodeId> {
        let leader = self.settled_leader().and_then(|id| self.machines[&id].node()?.members());
        let is_member = |m: &&Machine| {
            let known = m.raft_id.and_then(|r| leader.and_then(|l| l.by_raft(r)));
            m.is_up() && known.is_some()
        };
        self.machines.values().filter(is_member).map(|m| m.id).collect()
    }

    /// Whether the members have answered all, however long its clients would wait.
    fn is_answered(&self) -> bool {
        !self.members_up().into_iter().any(|id| self.clients.asks(id))
    }

    /// Who was removed without hearing of it answers when a client's patience ends.
    fn give_up_outside(&mut self) {
        for number in self.clients.numbers() {
            self.client_gives_up(number);
        }
    }

    /// Every member that runs comes to hold and to have applied the whole log of the leader.
    fn demand_rest(&mut self) {
        let end = self.now() + REST;
        while !(self.is_answered() && self.is_at_rest()) {
            assert!(self.now() < end, "the healed cluster never comes to rest: {}", self.picture());
            self.run_until(self.now() + 100 * MS);
        }
        self.give_up_outside();
        for m in self.machines.values() {
            let waiting = m.node().map_or(0, |n| n.overdue_proposals());
            assert_eq!(waiting, 0, "I14: node {} keeps proposals that are decided", m.id);
        }
    }

    fn is_at_rest(&self) -> bool {
        let Some(leader) = self.settled_leader().and_then(|id| self.machines[&id].node()) else {
            return false;
        };
        let last = leader.probe().last;
        let Some(members) = leader.members() else { return false };
        if members.is_joint() || (self.whole && !self.is_whole(members)) {
            return false;
        }
        let commands = self.oracle.log.last_key_value().map_or(0, |(index, _)| *index);
        let member = |m: &&Machine| m.raft_id.is_some_and(|r| members.by_raft(r).is_some());
        self.machines.values().filter(member).all(|m| match &m.life {
            Life::Running(r) => {
                let p = r.node.probe();
                let emitted = p.commit == last && p.emitted == last && !p.installing;
                emitted && r.jobs.is_empty() && r.applied >= commands
            }
            Life::Down | Life::Joining | Life::Out => true,
        })
    }

    /// Whether every machine whose disk was lost is a member again, every removed node was told, and
    /// every learner votes that is to.
    fn is_whole(&self, members: &Membership) -> bool {
        let is_settled = |m: &Machine| match &m.life {
            Life::Running(r) => !members.was_removed(r.raft_id) || !self.finds_somebody(m.id),
            Life::Joining => false,
            Life::Down | Life::Out => !m.lost,
        };
        let votes = |m: &Member| {
            let learns = members.role(m.raft_id) == Some(MemberRole::Learner);
            let there = self.machines.get(&m.node_id).is_some_and(Machine::is_up);
            !(learns && there && m.has_joined() && !m.learner_only)
        };
        self.machines.values().all(is_settled) && members.members.iter().all(votes)
    }

    /// Whether any member is where a node has it: one that was away while all others moved is told
    /// by nobody.
    fn finds_somebody(&self, id: NodeId) -> bool {
        let Life::Running(r) = &self.machines[&id].life else { return false };
        let others = r.view.iter().flat_map(|view| &view.members);
        // By address, as the driver asks who knows; also where messages need none.
        let there = |other: &Member| {
            let to = self.listener(r.hints.addr(other)).map(|to| &self.machines[&to]);
            to.is_some_and(|to| to.is_up() && to.raft_id == Some(other.raft_id))
        };
        others.filter(|other| other.raft_id != r.raft_id).any(there)
    }

    /// Everybody, in a few lines each.
    pub(super) fn picture(&self) -> String {
        let lines = self.machines.values().map(|m| {
            let state = match &m.life {
                Life::Running(r) => format!("{:?} jobs {}", r.node.probe(), r.jobs.len()),
                Life::Down => "down".to_owned(),
                Life::Joining => "joining".to_owned(),
                Life::Out => "out".to_owned(),
            };
            let conf = m.node().and_then(|n| n.members()).map(|m| m.conf_state.clone());
            let known = match &m.life {
                Life::Running(r) => {
                    r.view.iter().flat_map(|view| r.hints.peers(Some(view))).collect()
                }
                Life::Down | Life::Joining | Life::Out => Vec::new(),
            };
            let known: Vec<String> =
                known.iter().map(|peer| format!("{} at {}", peer.raft_id, peer.addr)).collect();
            let (id, raft_id, at) = (m.id, m.raft_id, self.churn.addr(m.id));
            format!(
                "\n  machine {id} ({raft_id:?}) at {at}: {state}; {conf:?}, looks for {}",
                known.join(", ")
            )
        });
        lines.collect()
    }
}
