//! The second opinion: the mixed workload's answers alone, without any index, must be those of one
//! order that respects real time (Wing and Gong's search, by key).

use super::clients::{Ask, Came, Record};
use super::subject::{Act, Op};
use crate::node::event::Freshness;
use crate::testing::linearizability::{
    Call, HistoryOf, Limits, Model, Operation, Outcome, Verdict, check_values,
};

/// Steps that the search of one key may take: bursts at one key may need more than all else.
const STEPS: u64 = 20_000;

/// One register, list and counter; keys are told apart by the partition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct State {
    register: Option<u64>,
    list: Vec<u64>,
    counter: u64,
}

/// What a client sees, without the digest.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Value(u64),
    List(Vec<u64>),
    Rejected,
}

#[derive(Debug)]
struct Mixed;

impl Model for Mixed {
    type State = State;
    type Write = Op;
    type Read = Vec<u8>;
    type Answer = Seen;

    fn initial(&self) -> State {
        State::default()
    }

    fn apply(&self, state: &mut State, write: &Op) -> Seen {
        match write.act {
            Act::Put(v) => Seen::Value(state.register.replace(v).unwrap_or(0)),
            Act::CompareAndSet { old, new } => {
                let found = state.register.unwrap_or(0);
                if found == old {
                    state.register = Some(new);
                }
                Seen::Value(found)
            }
            Act::Delete => state.register.take().map_or(Seen::Rejected, Seen::Value),
            Act::Append(v) => {
                state.list.push(v);
                Seen::Value(state.list.len() as u64)
            }
            Act::Add(n) => {
                state.counter += n;
                Seen::Value(state.counter)
            }
        }
    }

    fn query(&self, state: &State, read: &Vec<u8>) -> Seen {
        match read.first() {
            Some(0) => Seen::Value(state.register.unwrap_or(0)),
            Some(1) => Seen::List(state.list.clone()),
            _ => Seen::Value(state.counter),
        }
    }

    fn agrees(&self, seen: &Seen, computed: &Seen) -> bool {
        seen == computed
    }

    fn partition(&self, call: &Call<Op, Vec<u8>>) -> Option<String> {
        let (kind, key) = match call {
            Call::Write(op) => match op.act {
                Act::Put(_) | Act::CompareAndSet { .. } | Act::Delete => (0, op.key),
                Act::Append(_) => (1, op.key),
                Act::Add(_) => (2, 0),
            },
            Call::Read(query) => {
                let kind = query.first().copied().unwrap_or(0).min(2);
                (kind, if kind == 2 { 0 } else { query.get(1).copied().unwrap_or(0) })
            }
        };
        Some(format!("{kind}/{key}"))
    }
}

/// Panics when no order explains the answers; whether the search came to its end.
pub(super) fn check(done: &[Record]) -> bool {
    let mut history = HistoryOf::<Mixed>::new();
    done.iter().filter_map(operation).for_each(|op| {
        history.push(op);
    });
    match check_values(&Mixed, &history, Limits { steps: STEPS }) {
        Verdict::Linearizable => true,
        Verdict::Undecided { .. } => false,
        verdict => panic!("I12: by their values alone: {verdict}"),
    }
}

fn operation(record: &Record) -> Option<Operation<Op, Vec<u8>, Seen>> {
    let call = match &record.ask {
        Ask::Write(command) => Call::Write(Op::decode(command)?),
        Ask::Read { query, freshness: Freshness::Linearizable } => Call::Read(query.clone()),
        Ask::Read { .. } => return None,
    };
    let outcome = match &record.came {
        Came::Ok(applied) => Outcome::Ok { answer: seen(&call, &applied.data)?, index: None },
        Came::Rejected(_) => Outcome::Ok { answer: Seen::Rejected, index: None },
        Came::NotApplied(_) => Outcome::NotApplied,
        Came::Unknown(_) => Outcome::Unknown,
    };
    Some(Operation {
        client: record.client as u64,
        call,
        invoked: record.began,
        returned: Some(record.ended),
        outcome,
    })
}

fn seen(call: &Call<Op, Vec<u8>>, data: &[u8]) -> Option<Seen> {
    let numbers: Vec<u64> =
        data.as_chunks::<8>().0.iter().map(|chunk| u64::from_le_bytes(*chunk)).collect();
    match call {
        Call::Read(query) if query.first() == Some(&1) => Some(Seen::List(numbers)),
        Call::Read(_) | Call::Write(_) => numbers.first().copied().map(Seen::Value),
    }
}
