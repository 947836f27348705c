//! The index witness without a log: indices against real time, then an order of each part that
//! keeps to the indices and explains the answers.
//!
//! Acknowledged operations have their place by index; what the indices leave open is searched: the
//! order of writes that share one, and where, if anywhere, the writes of unknown outcome are.

use super::order::{Placed, lines, place, real_time};
use super::values::check_parts;
use super::{HistoryOf, Limits, Model, OpId, Rule, Verdict, Violation};

/// Checks a history in which every answer came with an index, without knowing the log.
///
/// A rejected write has no index: record it by [`History::unknown`](super::History::unknown).
///
/// Assumes that what is not in the history did not happen. Weaker than [`check_log`] only where a
/// write of unknown outcome could be: it is placed where it helps.
///
/// [`check_log`]: super::check_log
pub fn check_indices<M: Model>(model: &M, history: &HistoryOf<M>, limits: Limits) -> Verdict {
    if let Some(fault) = history.fault(true) {
        return Verdict::Malformed(fault);
    }
    let (placed, slots) = place_by_index::<M>(history);
    let order = real_time(&placed);
    if let Some((before, behind)) = order.reversed {
        return Verdict::Illegal(reversed::<M>(history, before, behind));
    }
    check_parts(model, history, limits, |id, op| match op.index() {
        Some(index) => {
            let at = place(&op.call, index);
            ((at, op.invoked), op.returned.map(|returned| (at, returned)))
        }
        // It began behind all that had been answered by then, in the log as in time.
        None => (
            (slots.get(id.0).and_then(|&n| order.floors.get(n)).copied().unwrap_or(0), op.invoked),
            None,
        ),
    })
}

/// The operations that count, with the places that their indices give them; and of each operation
/// of the history where it is among those.
fn place_by_index<M: Model>(history: &HistoryOf<M>) -> (Vec<Placed>, Vec<usize>) {
    let mut slots = vec![usize::MAX; history.len()];
    let mut placed = Vec::new();
    for (n, op) in history.operations().iter().enumerate().filter(|(_, op)| op.counts()) {
        let at = op.index().map(|index| place(&op.call, index));
        slots[n] = placed.len();
        placed.push(Placed {
            op: OpId(n),
            invoked: op.invoked,
            returned: at.and(op.returned),
            lowest: at.unwrap_or(0),
            highest: at,
        });
    }
    (placed, slots)
}

/// Operations whose indices, whatever is at them, are against real time.
pub(super) fn reversed_indices<M: Model>(history: &HistoryOf<M>) -> Option<Violation> {
    let (before, behind) = real_time(&place_by_index::<M>(history).0).reversed?;
    Some(reversed::<M>(history, before, behind))
}

/// Two operations whose indices are the wrong way round.
pub(super) fn reversed<M: Model>(history: &HistoryOf<M>, before: OpId, behind: OpId) -> Violation {
    let operations = vec![before, behind];
    let lines = lines::<M>(history, &operations);
    let explanation = format!(
        "{before} had returned before {behind} was invoked, and yet {behind} has the lower place \
         in the log{lines}"
    );
    Violation { rule: Rule::RealTime, key: None, operations, explanation }
}
