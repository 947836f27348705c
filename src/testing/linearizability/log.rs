//! The index witness with the log of committed commands: every operation has its place, every
//! answer is that of the model there, and the places agree with real time.
//!
//! Nothing is searched, so nothing is undecided. Where equal commands with equal answers share an
//! index, or several calls of unknown outcome gave the same command, who is who is settled in the
//! history's favour.

use std::collections::HashMap;
use std::fmt::Debug;

use serde::{Deserialize, Serialize};

use super::history::OpId;
use super::indices::{reversed, reversed_indices};
use super::order::{Placed, lines, real_time};
use super::{Call, HistoryOf, Model, OperationOf, Rule, Verdict, Violation};
use crate::types::Index;

/// Commands that are shown beside a wrong answer.
const SHOWN: usize = 4;

/// A committed command, in the order of the log.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LogEntry<W> {
    /// The index of its entry; several commands can share one.
    pub index: Index,
    /// The command.
    pub write: W,
}

/// Checks a history in which every answer came with an index against the log of all committed
/// commands, from the first on: those of the history, and no others.
pub fn check_log<M: Model>(
    model: &M,
    history: &HistoryOf<M>,
    log: &[LogEntry<M::Write>],
) -> Verdict {
    if let Some(fault) = history.fault(true) {
        return Verdict::Malformed(fault);
    }
    if let Some(pair) = log.windows(2).find(|pair| pair[0].index > pair[1].index) {
        let (first, second) = (pair[0].index, pair[1].index);
        return Verdict::Malformed(format!("the log has index {second} behind {first}"));
    }
    let mut check = Check { model, history, log, answers: Vec::new(), placed: Vec::new() };
    match check.run() {
        Ok(()) => Verdict::Linearizable,
        Err(violation) => Verdict::Illegal(violation),
    }
}

struct Check<'a, M: Model> {
    model: &'a M,
    history: &'a HistoryOf<M>,
    log: &'a [LogEntry<M::Write>],
    /// The model's answer to each command of the log.
    answers: Vec<M::Answer>,
    placed: Vec<Placed>,
}

impl<'a, M: Model> Check<'a, M> {
    fn run(&mut self) -> Result<(), Violation> {
        self.replay()?;
        let left = self.place_answered()?;
        self.place_unknown(&left)?;
        match real_time(&self.placed).reversed {
            None => reversed_indices::<M>(self.history).map_or(Ok(()), Err),
            Some((before, behind)) => Err(reversed::<M>(self.history, before, behind)),
        }
    }

    fn operations(&self) -> impl Iterator<Item = (OpId, &'a OperationOf<M>)> + use<'a, M> {
        self.history.operations().iter().enumerate().map(|(n, op)| (OpId(n), op))
    }

    /// Applies the log and answers every read at its index.
    fn replay(&mut self) -> Result<(), Violation> {
        let mut reads: Vec<(Index, OpId)> =
            self.operations().filter_map(|(id, op)| Some((op.index()?, id))).collect();
        reads.sort_unstable();
        let mut reads = reads.into_iter().peekable();
        let mut state = self.model.initial();
        for n in 0..=self.log.len() {
            let next = self.log.get(n);
            while let Some((_, id)) =
                reads.next_if(|(index, _)| next.is_none_or(|entry| *index < entry.index))
            {
                self.check_read(id, n, &state)?;
            }
            if let Some(entry) = next {
                self.answers.push(self.model.apply(&mut state, &entry.write));
            }
        }
        Ok(())
    }

    fn check_read(&mut self, id: OpId, seen: usize, state: &M::State) -> Result<(), Violation> {
        let Some(op) = self.history.operations().get(id.0) else { return Ok(()) };
        let (Call::Read(read), Some(answer)) = (&op.call, op.answer()) else { return Ok(()) };
        let right = self.model.query(state, read);
        if !self.model.agrees(answer, &right) {
            return Err(self.wrong_read(id, seen, &right));
        }
        let place = Some(2 * seen as u64 + 1);
        self.place(id, op, place, place);
        Ok(())
    }

    fn place(&mut self, id: OpId, op: &OperationOf<M>, lowest: Option<u64>, highest: Option<u64>) {
        let returned = op.answer().and(op.returned);
        let lowest = lowest.unwrap_or(0);
        self.placed.push(Placed { op: id, invoked: op.invoked, returned, lowest, highest });
    }

    /// Finds the command of each acknowledged write; gives the commands that are left.
    fn place_answered(&mut self) -> Result<Vec<usize>, Violation> {
        let mut at: HashMap<(Index, &M::Write), Vec<usize>> = HashMap::new();
        for (n, entry) in self.log.iter().enumerate() {
            at.entry((entry.index, &entry.write)).or_default().push(n);
        }
        let mut calls: HashMap<(Index, &M::Write), Vec<OpId>> = HashMap::new();
        let mut order = Vec::new();
        for (id, op) in self.operations() {
            let (Call::Write(write), Some(index)) = (&op.call, op.index()) else { continue };
            let group = calls.entry((index, write)).or_default();
            if group.is_empty() {
                order.push((index, write));
            }
            group.push(id);
        }
        let mut taken = vec![false; self.log.len()];
        for key in order {
            let (Some(ops), found) = (calls.get(&key), at.get(&key)) else { continue };
            let Some(found) = found else { return Err(self.lost(ops[0], key.0)) };
            self.match_group(ops, found, &mut taken)?;
        }
        Ok((0..self.log.len()).filter(|&n| !taken[n]).collect())
    }

    /// Gives each call of a group, equal commands at one index, a command of its own whose answer
    /// agrees.
    fn match_group(
        &mut self,
        ops: &[OpId],
        found: &[usize],
        taken: &mut [bool],
    ) -> Result<(), Violation> {
        let mut choices: Vec<(Vec<usize>, OpId)> = Vec::new();
        for &id in ops {
            let Some(op) = self.history.operations().get(id.0) else { continue };
            let agreeing: Vec<usize> = match op.answer() {
                Some(seen) => found
                    .iter()
                    .copied()
                    .filter(|&n| self.model.agrees(seen, &self.answers[n]))
                    .collect(),
                None => Vec::new(),
            };
            let (Some(&lowest), Some(&highest)) = (agreeing.first(), agreeing.last()) else {
                return Err(self.wrong_write(id, found));
            };
            let place = |n: usize| Some(2 * (n as u64 + 1));
            self.place(id, op, place(lowest), place(highest));
            choices.push((agreeing, id));
        }
        let mut owner: HashMap<usize, usize> = HashMap::new();
        for call in 0..choices.len() {
            if !find_own(call, &choices, &mut owner, &mut Vec::new()) {
                return Err(self.shared(ops, found.len()));
            }
        }
        owner.keys().for_each(|&n| taken[n] = true);
        Ok(())
    }

    /// Explains each command that no acknowledged write explains by a call of unknown outcome.
    ///
    /// The commands are taken in the order of the log, and the calls as they were made: a command
    /// further up leaves more time for its call, so if this finds no way, there is none.
    fn place_unknown(&mut self, left: &[usize]) -> Result<(), Violation> {
        let mut unknown: HashMap<&M::Write, Vec<(u64, OpId)>> = HashMap::new();
        for (id, op) in self.operations().filter(|(_, op)| op.counts() && op.answer().is_none()) {
            if let Call::Write(write) = &op.call {
                unknown.entry(write).or_default().push((op.invoked, id));
            }
        }
        unknown.values_mut().for_each(|calls| calls.sort_unstable_by(|a, b| b.cmp(a)));
        for &n in left {
            let Some(entry) = self.log.get(n) else { continue };
            let call = unknown.get_mut(&entry.write).and_then(Vec::pop);
            let Some((_, id)) = call else { return Err(self.unexplained(entry)) };
            let Some(op) = self.history.operations().get(id.0) else { continue };
            // Which of the equal commands of an entry is this call's is not known: any of it.
            let last = self.log.partition_point(|e| e.index <= entry.index);
            self.place(id, op, Some(2 * (n as u64 + 1)), Some(2 * last as u64));
        }
        Ok(())
    }

    fn violation(&self, rule: Rule, operations: Vec<OpId>, text: String) -> Violation {
        let key = operations
            .first()
            .and_then(|id| self.model.partition(&self.history.operations().get(id.0)?.call));
        let explanation = text + &lines::<M>(self.history, &operations);
        Violation { rule, key, operations, explanation }
    }

    fn lost(&self, id: OpId, index: Index) -> Violation {
        let op = self.history.operations().get(id.0);
        let write = op.and_then(|op| match &op.call {
            Call::Write(write) => Some(write),
            Call::Read(_) => None,
        });
        let elsewhere: Vec<String> = self
            .log
            .iter()
            .filter(|entry| Some(&entry.write) == write)
            .map(|entry| entry.index.to_string())
            .collect();
        let text = match elsewhere.is_empty() {
            true => format!("the command of {id} is nowhere in the log"),
            false => format!(
                "the command of {id} is not at index {index}, but at {}",
                elsewhere.join(", ")
            ),
        };
        self.violation(Rule::LostWrite, vec![id], text)
    }

    fn shared(&self, ops: &[OpId], found: usize) -> Violation {
        let text = format!(
            "{} acknowledged writes with one command and index, which the log holds {found} times \
             with answers that agree",
            ops.len()
        );
        self.violation(Rule::LostWrite, ops.to_vec(), text)
    }

    fn unexplained(&self, entry: &LogEntry<M::Write>) -> Violation {
        let calls: Vec<(OpId, &OperationOf<M>)> = self
            .operations()
            .filter(|(_, op)| matches!(&op.call, Call::Write(write) if *write == entry.write))
            .collect();
        let refused = calls.iter().any(|(_, op)| !op.counts());
        let why = match (calls.is_empty(), refused) {
            (true, _) => "nobody called it",
            (false, true) => "its call was said not to be applied",
            (false, false) => "it is there more often than it was called",
        };
        let text = format!("{:?} at index {}: {why}", entry.write, entry.index);
        let operations = calls.into_iter().map(|(id, _)| id).collect();
        let mut violation = self.violation(Rule::UnexplainedCommand, operations, text);
        violation.key = self.model.partition(&Call::Write(entry.write.clone()));
        violation
    }

    fn wrong_write(&self, id: OpId, found: &[usize]) -> Violation {
        let right: Vec<String> =
            found.iter().filter_map(|&n| Some(format!("{:?}", self.answers.get(n)?))).collect();
        let mut text = format!("at its place in the log, {id} is answered {}", right.join(" or "));
        text.push_str(&self.before(id, found.first().copied().unwrap_or(0)));
        self.violation(Rule::WrongAnswer, vec![id], text)
    }

    fn wrong_read(&self, id: OpId, seen: usize, right: &M::Answer) -> Violation {
        let mut text = format!("the state that {id} was served from answers {right:?}");
        if let Some(index) = self.right_at(id, seen) {
            text.push_str(&format!("; the answer it got was right at index {index}"));
        }
        text.push_str(&self.before(id, seen));
        self.violation(Rule::WrongAnswer, vec![id], text)
    }

    /// The index, next to `seen`, at which the answer of a read is right.
    fn right_at(&self, id: OpId, seen: usize) -> Option<Index> {
        let op = self.history.operations().get(id.0)?;
        let (Call::Read(read), Some(answer)) = (&op.call, op.answer()) else { return None };
        let mut state = self.model.initial();
        let mut best =
            self.model.agrees(answer, &self.model.query(&state, read)).then_some((seen, 0));
        for (n, entry) in (1..).zip(self.log) {
            self.model.apply(&mut state, &entry.write);
            let distance = seen.abs_diff(n);
            if best.is_none_or(|(least, _)| distance < least)
                && self.model.agrees(answer, &self.model.query(&state, read))
            {
                best = Some((distance, entry.index));
            }
        }
        best.map(|(_, index)| index)
    }

    /// The commands before a place that the operation could have seen.
    fn before(&self, id: OpId, n: usize) -> String {
        let key = self.history.operations().get(id.0).and_then(|op| self.model.partition(&op.call));
        let of_key = |entry: &&LogEntry<M::Write>| {
            let other = self.model.partition(&Call::Write(entry.write.clone()));
            key.is_none() || other.is_none() || other == key
        };
        let before = self.log.get(..n).unwrap_or_default();
        let mut shown: Vec<_> = before.iter().rev().filter(of_key).take(SHOWN).collect();
        shown.reverse();
        let line =
            |entry: &LogEntry<M::Write>| format!("\n  log {}: {:?}", entry.index, entry.write);
        match shown.is_empty() {
            true => "; nothing was written before".to_owned(),
            false => shown.into_iter().map(line).collect(),
        }
    }
}

/// Kuhn's augmenting path: gives the call a command of its own, moving others to theirs.
fn find_own(
    call: usize,
    choices: &[(Vec<usize>, OpId)],
    owner: &mut HashMap<usize, usize>,
    visited: &mut Vec<usize>,
) -> bool {
    let Some((agreeing, _)) = choices.get(call) else { return false };
    for &n in agreeing {
        if visited.contains(&n) {
            continue;
        }
        visited.push(n);
        let free = match owner.get(&n).copied() {
            None => true,
            Some(other) => find_own(other, choices, owner, visited),
        };
        if free {
            owner.insert(n, call);
            return true;
        }
    }
    false
}
