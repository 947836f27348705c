//! Why no order exists: the smallest window of a part that has none.
//!
//! Only ever weakens what was found illegal, and keeps a step only if the rest is shown illegal
//! again, so the window is illegal by itself: the shortest prefix in time (linearizability is
//! prefix-closed), from the latest instant at which nothing was under way and few states were
//! possible, without every answer that is not needed.

use std::collections::BTreeSet;

use super::history::OpId;
use super::order::lines;
use super::search::{Found, Instant, Reached, Task, all_ends, search, search_from};
use super::{Call, HistoryOf, Model, Rule, Violation};

/// Steps that one search for a smaller window may take: it is for comfort only.
const SEARCH_STEPS: u64 = 20_000;
/// Steps that a search over the whole part may take.
const PREFIX_STEPS: u64 = 200_000;
/// Searches for a smaller window.
const SEARCHES: usize = 300;
/// Instants that are tried as the start of the window.
const CUTS: usize = 20;
/// States that a window may start from.
const STARTS: usize = 4;
/// Characters of a state that are shown.
const STATE_SHOWN: usize = 300;

type Starts<M> = Vec<Reached<<M as Model>::State>>;

/// Explains why the tasks of a part, which were found to have no order, have none.
pub(super) fn no_order<M: Model>(
    model: &M,
    history: &HistoryOf<M>,
    key: Option<&String>,
    tasks: &[Task<'_, M>],
) -> Violation {
    let (prefix, last) = shortest_prefix(model, tasks);
    let (starts, mut window) = latest_cut(model, &prefix);
    let all = due(&window);
    weaken(model, &starts, &mut window);
    let needed = due(&window);
    let mut answers = BTreeSet::new();
    for start in &starts {
        if let Found::NoOrder(more) = search_window(model, start, &window, last) {
            answers.extend(more);
        }
    }
    let mut text = from(&starts, prefix.len() - window.len());
    text.push_str("no order of these operations gives their answers");
    if all.len() > needed.len() {
        let others = all.len() - needed.len();
        text.push_str(&format!(", whatever {others} concurrent ones did or answered"));
    }
    text.push_str(&lines::<M>(history, &needed));
    if let (Some(last), false) = (last, answers.is_empty()) {
        let answers: Vec<_> = answers.into_iter().collect();
        text.push_str(&format!("\n  {last} could have answered: {}", answers.join(", or ")));
    }
    Violation { rule: Rule::NoOrder, key: key.cloned(), operations: needed, explanation: text }
}

fn due<M: Model>(tasks: &[Task<'_, M>]) -> Vec<OpId> {
    tasks.iter().filter(|task| task.end.is_some()).map(|task| task.op).collect()
}

fn from<S: std::fmt::Debug>(starts: &[Reached<S>], before: usize) -> String {
    let shown: Vec<String> = starts
        .iter()
        .map(|start| {
            let mut text = format!("{:?}", start.state);
            if let Some((end, _)) = text.char_indices().nth(STATE_SHOWN) {
                text.truncate(end);
                text.push_str("..");
            }
            text
        })
        .collect();
    let which = if starts.len() == 1 { "the only state" } else { "the only states" };
    match before {
        0 => String::new(),
        1 => format!("from {}, {which} behind the operation before, ", shown.join(" or ")),
        n => format!("from {}, {which} behind the {n} operations before, ", shown.join(" or ")),
    }
}

/// What had happened by `until`: calls that were under way are open, later ones are not there.
fn prefix<'a, M: Model>(tasks: &[Task<'a, M>], until: Instant) -> Vec<Task<'a, M>> {
    let begun = tasks.iter().filter(|task| task.begin <= until);
    begun
        .filter_map(|task| match task.end {
            Some(end) if end > until => weakened(task),
            Some(_) | None => Some(task.clone()),
        })
        .collect()
}

/// A write that may have any answer and take effect any time; a read is nothing then.
fn weakened<'a, M: Model>(task: &Task<'a, M>) -> Option<Task<'a, M>> {
    match task.call {
        Call::Write(_) => Some(Task { answer: None, end: None, ..task.clone() }),
        Call::Read(_) => None,
    }
}

/// The shortest prefix that is found to have no order, and the operation whose return ends it.
fn shortest_prefix<'a, M: Model>(
    model: &M,
    tasks: &[Task<'a, M>],
) -> (Vec<Task<'a, M>>, Option<OpId>) {
    let mut ends: Vec<(Instant, OpId)> =
        tasks.iter().filter_map(|t| Some((t.end?, t.op))).collect();
    ends.sort_unstable();
    let (mut legal, mut illegal) = (0, ends.len());
    while legal + 1 < illegal {
        let middle = legal.midpoint(illegal);
        let tasks = prefix(tasks, ends[middle - 1].0);
        match search(model, &tasks, PREFIX_STEPS) {
            Found::NoOrder(_) => illegal = middle,
            Found::Order | Found::GaveUp(_) => legal = middle,
        }
    }
    match illegal.checked_sub(1).and_then(|n| ends.get(n)) {
        Some(&(end, op)) => (prefix(tasks, end), Some(op)),
        None => (tasks.to_vec(), None),
    }
}

/// The latest instant at which no task was under way and few states were possible, as those
/// states, and the tasks that had not ended by then.
fn latest_cut<'a, M: Model>(model: &M, tasks: &[Task<'a, M>]) -> (Starts<M>, Vec<Task<'a, M>>) {
    let mut spans: Vec<(Instant, Instant)> =
        tasks.iter().filter_map(|t| Some((t.begin, t.end?))).collect();
    spans.sort_unstable();
    let mut cuts = Vec::new();
    let mut latest_end = (0, 0);
    for (begin, end) in spans {
        if latest_end < begin {
            cuts.push(latest_end);
        }
        latest_end = latest_end.max(end);
    }
    for cut in cuts.into_iter().rev().take(CUTS) {
        let before: Vec<_> = tasks.iter().filter(|task| task.begin <= cut).cloned().collect();
        let Some(starts) = all_ends(model, &before, PREFIX_STEPS, STARTS) else { continue };
        let window: Vec<_> =
            tasks.iter().filter(|task| task.end.is_none_or(|end| end > cut)).cloned().collect();
        if !starts.is_empty() && is_illegal(model, &starts, &window) {
            return (starts, window);
        }
    }
    (vec![Reached { state: model.initial(), open: Vec::new() }], tasks.to_vec())
}

fn search_window<M: Model>(
    model: &M,
    start: &Reached<M::State>,
    window: &[Task<'_, M>],
    watched: Option<OpId>,
) -> Found {
    let left: Vec<_> = window.iter().filter(|t| !start.open.contains(&t.op)).cloned().collect();
    search_from(model, start.state.clone(), &left, SEARCH_STEPS, watched)
}

/// True when it is shown that the window has no order from any of its starts.
fn is_illegal<M: Model>(model: &M, starts: &[Reached<M::State>], window: &[Task<'_, M>]) -> bool {
    starts
        .iter()
        .all(|start| matches!(search_window(model, start, window, None), Found::NoOrder(_)))
}

/// Weakens every task whose answer and end are not needed for there to be no order, in chunks
/// that get smaller.
fn weaken<M: Model>(model: &M, starts: &[Reached<M::State>], window: &mut Vec<Task<'_, M>>) {
    let mut searches = 0;
    let mut size = window.len().div_ceil(2);
    while size > 0 {
        let mut from = 0;
        while from < window.len() && searches < SEARCHES {
            let until = (from + size).min(window.len());
            let mut weaker = window[..from].to_vec();
            weaker.extend(window[from..until].iter().filter_map(|task| match task.end {
                Some(_) => weakened(task),
                None => Some(task.clone()),
            }));
            let behind = weaker.len();
            weaker.extend_from_slice(&window[until..]);
            from = until;
            if due(&weaker).len() < due(window).len() {
                searches += 1;
                if is_illegal(model, starts, &weaker) {
                    (*window, from) = (weaker, behind);
                }
            }
        }
        size = if size == 1 { 0 } else { size.div_ceil(2) };
    }
}
