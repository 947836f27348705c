//! The end of a run: every answer that a client ever got, held against the one log.
//!
//! - I10: what was acknowledged is in the log, what was not applied is not, what is unknown is
//!   there at most as often as it was asked;
//! - I12: the indices of writes and reads respect real time, and each answer is the one that a
//!   replica gives that applies the log one entry after the other;
//! - I5: every node answers queries as that replica does.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::clients::{Ask, Came, Record};
use super::marks::Mark;
use super::world::World;
use crate::error::Error;
use crate::node::event::Freshness;
use crate::store::{Committed, Store};
use crate::testing::text::{Answer, shown, shown_all};
use crate::types::{Index, NodeId};

/// Queries that every node is asked at the end.
const FINAL_QUERIES: u64 = 24;

/// How often a command was asked for, by what its callers were told, and how often it is there.
#[derive(Debug, Default)]
struct Tally {
    sure: u64,
    unknown: u64,
    never: u64,
    found: u64,
}

impl World {
    pub(super) fn verdict(&mut self) {
        self.check_outcomes();
        if self.plan.faults().is_empty() {
            check_calm(self.clients.done.get(..self.clients.before_healing).unwrap_or_default());
        }
        check_real_time(&self.clients.done);
        if self.subject.mixed && !super::values::check(&self.clients.done) {
            self.stats.undecided += 1;
        }
        let mut replica = self.caller.make(&self.subject, 0, true);
        self.replay(&mut *replica);
        self.compare_nodes(&*replica);
    }

    /// I10.
    fn check_outcomes(&mut self) {
        let mut tallies: BTreeMap<&Bytes, Tally> = BTreeMap::new();
        for record in &self.clients.done {
            let Ask::Write(command) = &record.ask else { continue };
            let tally = tallies.entry(command).or_default();
            match &record.came {
                Came::Ok(applied) => {
                    tally.sure += 1;
                    let there = self.oracle.log.get(&applied.index);
                    let there = there.is_some_and(|all| all.contains(command));
                    assert!(
                        there,
                        "I10: {} was acknowledged at {}, where it is not",
                        shown(command),
                        applied.index
                    );
                }
                Came::Rejected(_) => tally.sure += 1,
                Came::Unknown(_) => tally.unknown += 1,
                Came::NotApplied(_) => tally.never += 1,
            }
        }
        for command in self.oracle.log.values().flatten() {
            let tally = tallies.get_mut(command);
            let tally =
                tally.unwrap_or_else(|| panic!("I10: {} was never proposed", shown(command)));
            tally.found += 1;
        }
        for (command, t) in tallies {
            let text = || shown(command);
            assert!(t.found >= t.sure, "I10: {} was acknowledged and is lost: {t:?}", text());
            assert!(t.found <= t.sure + t.unknown, "I10: {} was applied too often: {t:?}", text());
            if t.unknown > 0 {
                let happened = t.found > t.sure;
                self.marks.hit(if happened { Mark::UnknownHappened } else { Mark::UnknownNever });
            }
        }
        let ok = |r: &&Record| matches!(r.came, Came::Ok(_) | Came::Rejected(_));
        self.stats.succeeded = self.clients.done.iter().filter(ok).count() as u64;
    }

    /// I12, second half: the answers are those of one replica.
    fn replay(&self, replica: &mut dyn Store) {
        let mut writes: BTreeMap<Index, Vec<&Record>> = BTreeMap::new();
        let mut reads: BTreeMap<Index, Vec<&Record>> = BTreeMap::new();
        for record in &self.clients.done {
            if let Came::Ok(applied) = &record.came {
                let by_kind = match record.ask {
                    Ask::Write(_) => &mut writes,
                    Ask::Read { .. } => &mut reads,
                };
                by_kind.entry(applied.index).or_default().push(record);
            }
        }
        let mut reads = reads.into_iter().peekable();
        for (index, commands) in &self.oracle.log {
            while let Some((_, asked)) = reads.next_if(|(at, _)| at < index) {
                asked.iter().for_each(|r| self.check_read(replica, r));
            }
            let answers = self.apply_to(replica, *index, commands);
            let asked = writes.remove(index).unwrap_or_default();
            check_writes(*index, commands, answers, &asked);
        }
        for (_, asked) in reads {
            asked.iter().for_each(|r| self.check_read(replica, r));
        }
    }

    fn apply_to(
        &self,
        replica: &mut dyn Store,
        index: Index,
        commands: &[Bytes],
    ) -> Vec<Option<Vec<u8>>> {
        let batch: Vec<Committed<'_>> =
            commands.iter().map(|data| Committed { index, data }).collect();
        let data = commands.iter().map(|c| &**c);
        let answers = self.caller.call(0, "apply_batch", data, replica.apply_batch(&batch));
        let answers = answers.unwrap_or_else(|panicked| {
            let commands = shown_all(commands.iter().map(|c| &**c));
            panic!("the reference replica panics at {index}, applying {commands}: {panicked}")
        });
        assert_eq!(answers.len(), commands.len(), "a Store answers every command");
        let answer = |a| match a {
            Ok(data) => Some(data),
            Err(Error::Rejected(_)) => None,
            Err(e) => panic!("the reference replica fails at {index}: {e}"),
        };
        answers.into_iter().map(answer).collect()
    }

    fn check_read(&self, replica: &dyn Store, record: &Record) {
        let (Ask::Read { query, freshness }, Came::Ok(applied)) = (&record.ask, &record.came)
        else {
            return;
        };
        if let Freshness::AtLeast(least) = freshness {
            assert!(applied.index >= *least, "a read at {} was to see {least}", applied.index);
        }
        let expected = self.answer(0, replica, query);
        let found = Answer::Ok(applied.data.clone());
        if found != expected {
            let (expected, found) = expected.pair(&found);
            panic!(
                "I12: client {} read {} at index {} and got {found}; a Store that applies the log \
                 up to there, one command after the other, answers {expected}",
                record.client,
                shown(query),
                applied.index
            );
        }
    }

    /// I5, at the end.
    fn compare_nodes(&mut self, replica: &dyn Store) {
        for n in 0..FINAL_QUERIES {
            let query = (self.subject.query)(&mut self.chance.client, n);
            let expected = self.answer(0, replica, &query);
            let last = self.oracle.log.last_key_value().map_or(0, |(i, _)| *i);
            for m in self.machines.values() {
                let super::machine::Life::Running(r) = &m.life else { continue };
                if r.applied < last {
                    continue;
                }
                let found = self.answer(m.id, &*r.store, &query);
                let refused = [&found, &expected].iter().all(|a| !matches!(a, Answer::Ok(_)));
                // NB: an error may name what only its node has.
                if found != expected && !refused {
                    let (expected, found) = expected.pair(&found);
                    panic!(
                        "I5: at the end the Store of node {} answers the query {} with {found}; a \
                         Store that applies the whole log, one command after the other, with \
                         {expected}",
                        m.id,
                        shown(&query)
                    );
                }
            }
        }
    }

    fn answer(&self, id: NodeId, store: &dyn Store, query: &[u8]) -> Answer {
        Answer::from(&self.caller.must(id, "query", Some(query), store.query(query)))
    }
}

/// Without any fault nothing is lost sight of, and once the first leader is there, all succeeds.
fn check_calm(done: &[Record]) {
    let good = |r: &&Record| matches!(r.came, Came::Ok(_) | Came::Rejected(_));
    let led = |r: &&Record| good(r) && is_linearizable(r);
    let first = done.iter().find(led).map_or(u64::MAX, |r| r.ended);
    for r in done.iter().filter(|r| !good(r)) {
        let early = r.began < first;
        assert!(early, "I15: without any fault this came of an operation: {r:?}");
    }
}

/// Each acknowledged write got the answer that the log gives it.
fn check_writes(
    index: Index,
    commands: &[Bytes],
    answers: Vec<Option<Vec<u8>>>,
    asked: &[&Record],
) {
    let mut left: Vec<(&Bytes, Option<Vec<u8>>)> = commands.iter().zip(answers).collect();
    for record in asked {
        let (Ask::Write(command), Came::Ok(applied)) = (&record.ask, &record.came) else {
            continue;
        };
        let place =
            left.iter().position(|(c, a)| *c == command && a.as_ref() == Some(&applied.data));
        let place = place.unwrap_or_else(|| {
            let given = left.iter().filter(|(c, _)| *c == command);
            let given: Vec<String> = given
                .map(|(_, a)| a.as_ref().map_or_else(|| "a rejection".to_owned(), |a| shown(a)))
                .collect();
            panic!(
                "I12: the write {} at index {index} was answered with {}; a Store that applies the \
                 log, one command after the other, answers {}",
                shown(command),
                shown(&applied.data),
                given.join(" or ")
            )
        });
        left.swap_remove(place);
    }
}

/// Whether only a leader's word can answer it.
fn is_linearizable(r: &Record) -> bool {
    matches!(r.ask, Ask::Read { freshness: Freshness::Linearizable, .. } | Ask::Write(_))
}

/// I12, first half: whatever was answered before an operation began is below or at what it sees.
fn check_real_time(done: &[Record]) {
    let index = |r: &Record| match &r.came {
        Came::Ok(a) if is_linearizable(r) => Some(a.index),
        _ => None,
    };
    let sees: Vec<(&Record, Index)> = done.iter().filter_map(|r| Some((r, index(r)?))).collect();
    let mut ended: Vec<(u64, Index)> = sees.iter().map(|(r, i)| (r.ended, *i)).collect();
    ended.sort_unstable();
    let mut began = sees;
    began.sort_by_key(|(r, _)| r.began);
    let mut ended = ended.into_iter().peekable();
    let mut floor = 0;
    for (record, index) in began {
        while let Some((_, i)) = ended.next_if(|(at, _)| *at < record.began) {
            floor = floor.max(i);
        }
        match record.ask {
            Ask::Write(_) => assert!(
                index > floor,
                "I12: a write of client {} got index {index}, {floor} was answered before it began",
                record.client
            ),
            Ask::Read { .. } => assert!(
                index >= floor,
                "I12: a read of client {} saw {index}, {floor} was answered before it began",
                record.client
            ),
        }
    }
}
