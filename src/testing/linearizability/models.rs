//! Ready-made models: a key-value register with compare-and-set, a list that is appended to, a
//! counter.
//!
//! All are divided by key. [`KvAnswer::Done`] and its like agree with every answer to a write, for
//! clients that are told nothing but success.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Call, Model};

/// A map of registers with put, delete and compare-and-set.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kv;

/// A command to [`Kv`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum KvWrite {
    /// Sets a value; answered with the one before.
    Put {
        /// The register.
        key: String,
        /// What it is to hold.
        value: String,
    },
    /// Removes a value; answered with it.
    Delete {
        /// The register.
        key: String,
    },
    /// Sets a value if the present one is as expected; answered with [`KvAnswer::Swapped`].
    Cas {
        /// The register.
        key: String,
        /// What it must hold; None: nothing.
        expected: Option<String>,
        /// What it is to hold then.
        value: String,
    },
}

/// A query to [`Kv`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum KvRead {
    /// The present value.
    Get {
        /// The register.
        key: String,
    },
}

/// An answer of [`Kv`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum KvAnswer {
    /// A put or delete went through; agrees with any value before.
    Done,
    /// The value read, or the one before a put or delete.
    Value(Option<String>),
    /// Whether the compare-and-set found what it expected.
    Swapped(bool),
}

impl Model for Kv {
    type State = BTreeMap<String, String>;
    type Write = KvWrite;
    type Read = KvRead;
    type Answer = KvAnswer;

    fn initial(&self) -> Self::State {
        BTreeMap::new()
    }

    fn apply(&self, state: &mut Self::State, write: &KvWrite) -> KvAnswer {
        match write {
            KvWrite::Put { key, value } => {
                KvAnswer::Value(state.insert(key.clone(), value.clone()))
            }
            KvWrite::Delete { key } => KvAnswer::Value(state.remove(key)),
            KvWrite::Cas { key, expected, value } => {
                let as_expected = state.get(key) == expected.as_ref();
                if as_expected {
                    state.insert(key.clone(), value.clone());
                }
                KvAnswer::Swapped(as_expected)
            }
        }
    }

    fn query(&self, state: &Self::State, KvRead::Get { key }: &KvRead) -> KvAnswer {
        KvAnswer::Value(state.get(key).cloned())
    }

    fn agrees(&self, seen: &KvAnswer, answer: &KvAnswer) -> bool {
        seen == answer || *seen == KvAnswer::Done
    }

    fn partition(&self, call: &Call<KvWrite, KvRead>) -> Option<String> {
        Some(match call {
            Call::Write(
                KvWrite::Put { key, .. } | KvWrite::Delete { key } | KvWrite::Cas { key, .. },
            )
            | Call::Read(KvRead::Get { key }) => key.clone(),
        })
    }
}

/// Lists that only grow: every read shows the whole order of the writes, so that a lost, repeated
/// or reordered one is seen at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct AppendList;

/// A command to [`AppendList`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Append {
    /// The list.
    pub key: String,
    /// What is appended.
    pub value: u64,
}

/// A query to [`AppendList`]: the whole list.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ReadList {
    /// The list.
    pub key: String,
}

/// An answer of [`AppendList`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ListAnswer {
    /// It was appended; agrees with any length.
    Done,
    /// It was appended; this is the length now.
    Length(u64),
    /// The list.
    List(Vec<u64>),
}

impl Model for AppendList {
    type State = BTreeMap<String, Vec<u64>>;
    type Write = Append;
    type Read = ReadList;
    type Answer = ListAnswer;

    fn initial(&self) -> Self::State {
        BTreeMap::new()
    }

    fn apply(&self, state: &mut Self::State, write: &Append) -> ListAnswer {
        let list = state.entry(write.key.clone()).or_default();
        list.push(write.value);
        ListAnswer::Length(list.len() as u64)
    }

    fn query(&self, state: &Self::State, read: &ReadList) -> ListAnswer {
        ListAnswer::List(state.get(&read.key).cloned().unwrap_or_default())
    }

    fn agrees(&self, seen: &ListAnswer, answer: &ListAnswer) -> bool {
        seen == answer || *seen == ListAnswer::Done
    }

    fn partition(&self, call: &Call<Append, ReadList>) -> Option<String> {
        Some(match call {
            Call::Write(Append { key, .. }) | Call::Read(ReadList { key }) => key.clone(),
        })
    }
}

/// Counters, which wrap.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counter;

/// A command to [`Counter`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Add {
    /// The counter.
    pub key: String,
    /// How much is added.
    pub amount: u64,
}

/// A query to [`Counter`]: its value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ReadCounter {
    /// The counter.
    pub key: String,
}

/// An answer of [`Counter`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CounterAnswer {
    /// It was added; agrees with any sum.
    Done,
    /// The value, behind the addition if there was one.
    Value(u64),
}

impl Model for Counter {
    type State = BTreeMap<String, u64>;
    type Write = Add;
    type Read = ReadCounter;
    type Answer = CounterAnswer;

    fn initial(&self) -> Self::State {
        BTreeMap::new()
    }

    fn apply(&self, state: &mut Self::State, write: &Add) -> CounterAnswer {
        let value = state.entry(write.key.clone()).or_default();
        *value = value.wrapping_add(write.amount);
        CounterAnswer::Value(*value)
    }

    fn query(&self, state: &Self::State, read: &ReadCounter) -> CounterAnswer {
        CounterAnswer::Value(state.get(&read.key).copied().unwrap_or(0))
    }

    fn agrees(&self, seen: &CounterAnswer, answer: &CounterAnswer) -> bool {
        seen == answer || *seen == CounterAnswer::Done
    }

    fn partition(&self, call: &Call<Add, ReadCounter>) -> Option<String> {
        Some(match call {
            Call::Write(Add { key, .. }) | Call::Read(ReadCounter { key }) => key.clone(),
        })
    }
}
