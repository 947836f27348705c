//! Real time: who came before whom, and what that says about places in the log.
//!
//! Pure orders; it never looks at a value.

use std::collections::BTreeMap;

use super::history::OpId;
use super::{Call, HistoryOf, Model, OperationOf};

/// An operation and the places in the log that it may have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    pub(super) op: OpId,
    pub(super) invoked: u64,
    /// None: nothing has to come behind it.
    pub(super) returned: Option<u64>,
    pub(super) lowest: u64,
    /// None: as high as it likes.
    pub(super) highest: Option<u64>,
}

/// The place of an index: a read at an index comes behind every write at it.
pub(super) fn place<W, R>(call: &Call<W, R>, index: u64) -> u64 {
    let doubled = index.saturating_mul(2);
    match call {
        Call::Write(_) => doubled,
        Call::Read(_) => doubled.saturating_add(1),
    }
}

/// What real time says about places.
pub(super) struct RealTime {
    /// The earliest pair that is the wrong way round: the first returned before the second was
    /// invoked, and its place is higher.
    pub(super) reversed: Option<(OpId, OpId)>,
    /// For each of the given, in their order: the highest place that came before it; 0 for none.
    pub(super) floors: Vec<u64>,
}

/// Compares places with real time, O(n log n).
pub(super) fn real_time(placed: &[Placed]) -> RealTime {
    let mut by_return: Vec<&Placed> = placed.iter().filter(|p| p.returned.is_some()).collect();
    by_return.sort_by_key(|p| (p.returned, p.op));
    let mut by_invocation: Vec<(usize, &Placed)> = placed.iter().enumerate().collect();
    by_invocation.sort_by_key(|(_, p)| (p.invoked, p.op));
    let mut floors = vec![0; placed.len()];
    let mut reversed = None;
    let mut highest: Option<&Placed> = None;
    let mut returns = by_return.into_iter().peekable();
    for (n, later) in by_invocation {
        while let Some(before) = returns.next_if(|p| p.returned < Some(later.invoked)) {
            if highest.is_none_or(|h| h.lowest < before.lowest) {
                highest = Some(before);
            }
        }
        let Some(before) = highest else { continue };
        floors[n] = before.lowest;
        if reversed.is_none() && later.highest.is_some_and(|most| most < before.lowest) {
            reversed = Some((before.op, later.op));
        }
    }
    RealTime { reversed, floors }
}

/// The operations that count, part by part; one part without a name when a call belongs to none.
pub(super) fn parts<M: Model>(
    model: &M,
    history: &HistoryOf<M>,
) -> BTreeMap<Option<String>, Vec<OpId>> {
    let mut parts = BTreeMap::<_, Vec<_>>::new();
    let counting = || history.operations().iter().enumerate().filter(|(_, op)| op.counts());
    for (n, op) in counting() {
        let Some(key) = model.partition(&op.call) else {
            return BTreeMap::from([(None, counting().map(|(n, _)| OpId(n)).collect())]);
        };
        parts.entry(Some(key)).or_default().push(OpId(n));
    }
    parts
}

/// The operations, one a line, as they were invoked.
pub(super) fn lines<M: Model>(history: &HistoryOf<M>, ops: &[OpId]) -> String {
    let mut found: Vec<(OpId, &OperationOf<M>)> =
        ops.iter().filter_map(|op| Some((*op, history.operations().get(op.0)?))).collect();
    found.sort_by_key(|(id, op)| (op.invoked, *id));
    found.iter().map(|(id, op)| format!("\n  {id} {op}")).collect()
}
