//! Is what the clients saw what one map would have answered, one operation at a time?
//!
//! Asked twice: by log index, and by values alone, which does not believe the indices.

use raftline::testing::linearizability::{
    Call, History, HistoryOf, Limits, Model, Operation, Outcome as Judged, Verdict, check_indices,
    check_values,
};

use crate::Failure;
use crate::history::{Op, Outcome, Record, micros};

/// The kv example as it is meant to be: a register per key.
#[derive(Clone, Copy, Debug)]
struct Registers;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Command {
    key: String,
    op: Write,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Write {
    Put(String),
    Delete,
    Append(String),
    CompareAndSet { expected: Option<String>, value: String },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Written { existed: bool, changed: bool },
    Value(Option<String>),
}

impl Model for Registers {
    type State = Option<String>;
    type Write = Command;
    type Read = String;
    type Answer = Answer;

    fn initial(&self) -> Option<String> {
        None
    }

    fn apply(&self, state: &mut Option<String>, write: &Command) -> Answer {
        let existed = state.is_some();
        let mut changed = true;
        match &write.op {
            Write::Put(value) => *state = Some(value.clone()),
            Write::Delete => {
                changed = existed;
                *state = None;
            }
            Write::Append(value) => state.get_or_insert_default().push_str(value),
            Write::CompareAndSet { expected, value } => {
                changed = state == expected;
                if changed {
                    *state = Some(value.clone());
                }
            }
        }
        Answer::Written { existed, changed }
    }

    fn query(&self, state: &Option<String>, _: &String) -> Answer {
        Answer::Value(state.clone())
    }

    fn agrees(&self, seen: &Answer, answer: &Answer) -> bool {
        seen == answer
    }

    fn partition(&self, call: &Call<Command, String>) -> Option<String> {
        Some(match call {
            Call::Write(write) => write.key.clone(),
            Call::Read(key) => key.clone(),
        })
    }
}

/// Checks a history; tells how.
///
/// # Errors
/// Unless the indices give an order, and the values do not contradict that there is one. Where too
/// many answers were lost, on a machine that is too busy, the search for an order of the values may
/// be given up for a key; that is told. It says nothing, while an order by the indices is a proof.
pub(crate) fn judge(records: &[Record]) -> Result<String, Failure> {
    let mut history: HistoryOf<Registers> = History::new();
    for record in records {
        history.push(operation(record));
    }
    let limits = Limits::default();
    let by_index = check_indices(&Registers, &history, limits);
    let by_value = check_values(&Registers, &history, limits);
    match (&by_index, &by_value) {
        (Verdict::Linearizable, Verdict::Linearizable) => {
            Ok("linearizable by index and by values".to_owned())
        }
        (Verdict::Linearizable, Verdict::Undecided { .. }) => {
            Ok(format!("linearizable by index; by values {by_value}, nothing illegal"))
        }
        _ => Err(format!("by index: {by_index}\nby values: {by_value}").into()),
    }
}

fn operation(record: &Record) -> Operation<Command, String, Answer> {
    let key = record.key.clone();
    let write = |op| Call::Write(Command { key: key.clone(), op });
    let call = match record.op.clone() {
        Op::Get => Call::Read(key.clone()),
        Op::Put { value } => write(Write::Put(value)),
        Op::Delete => write(Write::Delete),
        Op::Append { value } => write(Write::Append(value)),
        Op::CompareAndSet { expected, value } => write(Write::CompareAndSet { expected, value }),
    };
    let outcome = match record.outcome.clone() {
        Outcome::Written { index, existed, changed } => {
            Judged::Ok { answer: Answer::Written { existed, changed }, index: Some(index) }
        }
        Outcome::Read { index, value } => {
            Judged::Ok { answer: Answer::Value(value), index: Some(index) }
        }
        Outcome::NotApplied => Judged::NotApplied,
        Outcome::Unknown => Judged::Unknown,
    };
    Operation {
        client: record.client as u64,
        call,
        invoked: micros(record.invoked),
        returned: Some(micros(record.returned)),
        outcome,
    }
}
