//! The second opinion: an order is searched from answers and times alone, part by part. It does
//! not believe any index.

use super::explain;
use super::history::OpId;
use super::order::parts;
use super::search::{Found, Instant, Task, search};
use super::{HistoryOf, Limits, Model, OperationOf, Verdict};

/// Checks a history by its answers and times alone.
///
/// Each part (see [`Model::partition`]) is searched on its own: the whole is linearizable exactly
/// if every part is (Herlihy and Wing 1990, locality). Meant for about 100 operations per part;
/// more are fine while few of them overlap or are of unknown outcome.
pub fn check_values<M: Model>(model: &M, history: &HistoryOf<M>, limits: Limits) -> Verdict {
    if let Some(fault) = history.fault(false) {
        return Verdict::Malformed(fault);
    }
    check_parts(model, history, limits, |_, op| {
        let end = op.answer().and(op.returned);
        ((0, op.invoked), end.map(|returned| (0, returned)))
    })
}

/// Searches an order in each part, between the instants that `span` gives.
pub(super) fn check_parts<M: Model>(
    model: &M,
    history: &HistoryOf<M>,
    limits: Limits,
    span: impl Fn(OpId, &OperationOf<M>) -> (Instant, Option<Instant>),
) -> Verdict {
    let mut undecided = None;
    for (key, ops) in parts(model, history) {
        let tasks: Vec<Task<'_, M>> = ops
            .iter()
            .filter_map(|&id| {
                let op = history.operations().get(id.0)?;
                let (begin, end) = span(id, op);
                Some(Task { op: id, call: &op.call, answer: op.answer(), begin, end })
            })
            .collect();
        match search(model, &tasks, limits.steps) {
            Found::Order => {}
            Found::NoOrder(_) => {
                let violation = explain::no_order(model, history, key.as_ref(), &tasks);
                return Verdict::Illegal(violation);
            }
            Found::GaveUp(steps) => {
                undecided.get_or_insert(Verdict::Undecided { key, steps });
            }
        }
    }
    undecided.unwrap_or(Verdict::Linearizable)
}
