//! The checks, checked: histories that people understand, and generated ones against a brute
//! force.

mod generated;
mod known;
mod speed;

use super::models::{Kv, KvAnswer, KvRead, KvWrite};
use super::{Call, HistoryOf, Limits, LogEntry, Model, Verdict, check_indices, check_values};

type KvHistory = HistoryOf<Kv>;

fn put(value: &str) -> Call<KvWrite, KvRead> {
    Call::Write(KvWrite::Put { key: "k".into(), value: value.into() })
}

fn get() -> Call<KvWrite, KvRead> {
    Call::Read(KvRead::Get { key: "k".into() })
}

fn value(value: &str) -> KvAnswer {
    KvAnswer::Value(Some(value.into()))
}

/// Adds an answered operation.
fn ok(
    history: &mut KvHistory,
    span: (u64, u64),
    call: Call<KvWrite, KvRead>,
    answer: KvAnswer,
    index: u64,
) {
    let op = history.invoke(span.0, call, span.0);
    history.ok_at(op, answer, index, span.1);
}

fn log(writes: &[(u64, Call<KvWrite, KvRead>)]) -> Vec<LogEntry<KvWrite>> {
    let entry = |(index, call): &(u64, Call<KvWrite, KvRead>)| match call {
        Call::Write(write) => Some(LogEntry { index: *index, write: write.clone() }),
        Call::Read(_) => None,
    };
    writes.iter().filter_map(entry).collect()
}

fn values<M: Model>(model: &M, history: &HistoryOf<M>) -> Verdict {
    check_values(model, history, Limits::default())
}

fn indices<M: Model>(model: &M, history: &HistoryOf<M>) -> Verdict {
    check_indices(model, history, Limits::default())
}
