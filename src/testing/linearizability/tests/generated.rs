//! Generated histories: those of a real linearizable object pass all checks; when one is changed,
//! the checks say exactly what a brute force over all orders says.

use std::collections::BTreeSet;

use super::super::{Operation, OperationOf, Outcome, check_log};
use super::*;
use crate::testing::rng::Rng;

/// A run of the object: every operation takes effect at one instant between its call and its
/// return, or behind it when the client gave up.
struct Run {
    history: KvHistory,
    log: Vec<LogEntry<KvWrite>>,
}

#[derive(Clone, Copy)]
struct Shape {
    clients: u64,
    operations: u64,
    keys: u64,
    /// How long a call takes at most.
    longest: u64,
}

fn random_call(rng: &mut Rng, keys: u64, n: u64) -> Call<KvWrite, KvRead> {
    let key = format!("k{}", rng.below(keys));
    // Few values, so that equal commands and lucky answers occur.
    let value =
        |rng: &mut Rng| (rng.below(4) * 100 + if rng.one_in(2) { n } else { 0 }).to_string();
    match rng.below(8) {
        0..=2 => Call::Read(KvRead::Get { key }),
        3..=4 => Call::Write(KvWrite::Put { key, value: value(rng) }),
        5 => Call::Write(KvWrite::Delete { key }),
        _ => {
            let expected = (!rng.one_in(3)).then(|| value(rng));
            Call::Write(KvWrite::Cas { key, expected, value: value(rng) })
        }
    }
}

fn run(rng: &mut Rng, shape: Shape) -> Run {
    struct Planned {
        effect: u64,
        n: usize,
        lost: bool,
        returned: u64,
    }
    let mut history = KvHistory::new();
    let mut free = vec![0; shape.clients as usize];
    let mut planned = Vec::new();
    for n in 0..shape.operations {
        let client = rng.below(shape.clients);
        let invoked = free[client as usize] + 1 + rng.below(shape.longest);
        let effect = invoked + rng.below(shape.longest);
        let returned = effect + rng.below(shape.longest);
        free[client as usize] = returned;
        let call = random_call(rng, shape.keys, n);
        let op = history.invoke(client, call, invoked);
        let lost = rng.one_in(12);
        let late = if lost && rng.one_in(2) { rng.below(shape.longest * 10) } else { 0 };
        if lost && rng.one_in(3) {
            history.unknown(op, returned);
            continue;
        }
        planned.push(Planned { effect: effect + late, n: op.0, lost, returned });
    }
    planned.sort_by_key(|p| (p.effect, p.n));
    let mut operations = history.operations().to_vec();
    let mut log = Vec::new();
    let mut state = Kv.initial();
    // Effects at one instant share an entry, and so do some that nothing came between.
    let mut index = 1;
    let mut entry_opened = 0;
    let mut read_seen = true;
    for p in planned {
        let op = &mut operations[p.n];
        let (answer, at) = match &op.call {
            Call::Read(read) => {
                read_seen = true;
                (Kv.query(&state, read), index)
            }
            Call::Write(write) => {
                // A command joins the entry before only if it was called before that took effect.
                if read_seen || op.invoked > entry_opened || rng.one_in(2) {
                    index += 1 + rng.below(2);
                    entry_opened = p.effect;
                }
                read_seen = false;
                log.push(LogEntry { index, write: write.clone() });
                (Kv.apply(&mut state, write), index)
            }
        };
        op.returned = Some(p.returned);
        if !p.lost {
            let told = !matches!(answer, KvAnswer::Value(_)) || rng.one_in(2);
            let is_read = matches!(op.call, Call::Read(_));
            let answer = if told || is_read { answer } else { KvAnswer::Done };
            op.outcome = Outcome::Ok { answer, index: Some(at) };
        }
    }
    let mut history = KvHistory::new();
    operations.into_iter().for_each(|op| _ = history.push(op));
    Run { history, log }
}

/// Every order of every choice of operations: no cleverness that could be wrong.
fn brute_force(history: &KvHistory) -> bool {
    fn orders(
        left: &[OperationOf<Kv>],
        state: &std::collections::BTreeMap<String, String>,
    ) -> bool {
        if left.iter().all(|op| op.answer().is_none()) {
            return true;
        }
        (0..left.len()).any(|n| {
            let op = &left[n];
            let ended = |other: &OperationOf<Kv>| {
                other.answer().is_some() && other.returned.is_some_and(|r| r < op.invoked)
            };
            if left.iter().any(ended) {
                return false;
            }
            let mut after = state.clone();
            let answer = match &op.call {
                Call::Read(read) => Kv.query(state, read),
                Call::Write(write) => Kv.apply(&mut after, write),
            };
            if op.answer().is_some_and(|seen| !Kv.agrees(seen, &answer)) {
                return false;
            }
            let mut rest = left.to_vec();
            rest.remove(n);
            orders(&rest, &after)
        })
    }
    let counting: Vec<_> = history.operations().iter().filter(|op| op.counts()).cloned().collect();
    orders(&counting, &Kv.initial())
}

/// Changes one thing, as a broken system would; says what.
fn mutate(rng: &mut Rng, run: &Run) -> Option<(&'static str, KvHistory)> {
    let mut operations = run.history.operations().to_vec();
    let n = rng.below(operations.len() as u64) as usize;
    let before = operations.clone();
    let op: &mut Operation<_, _, _> = &mut operations[n];
    let Outcome::Ok { answer, index } = &mut op.outcome else { return None };
    let what = match (&op.call, rng.below(5)) {
        (_, 0) => {
            op.outcome = Outcome::NotApplied;
            "an effect of a write that was not applied"
        }
        (_, 1) => {
            // It happened, the client says, at another time.
            let shift = 1 + rng.below(30);
            (op.invoked, op.returned) = (op.invoked + shift, op.returned.map(|r| r + shift));
            "another time"
        }
        (Call::Read(_), 2) => {
            let at = index.as_mut()?;
            *at = at.saturating_sub(1 + rng.below(3));
            "an older index"
        }
        (Call::Read(read), _) => {
            // What the state was at some other place of the log.
            let mut state = Kv.initial();
            let upto = rng.below(run.log.len() as u64 + 1) as usize;
            for entry in &run.log[..upto] {
                Kv.apply(&mut state, &entry.write);
            }
            *answer = Kv.query(&state, read);
            "a read of another time"
        }
        (Call::Write(_), _) => match answer {
            KvAnswer::Swapped(swapped) => {
                *swapped = !*swapped;
                "a wrong answer to a compare-and-set"
            }
            KvAnswer::Value(value) => {
                *value = Some("none wrote this".to_owned());
                "a wrong value before"
            }
            KvAnswer::Done => return None,
        },
    };
    let mut history = KvHistory::new();
    (operations != before).then(|| operations.into_iter().for_each(|op| _ = history.push(op)));
    (!history.is_empty()).then_some((what, history))
}

const TINY: Shape = Shape { clients: 3, operations: 6, keys: 1, longest: 6 };
const LARGE: Shape = Shape { clients: 5, operations: 120, keys: 2, longest: 20 };

#[test]
fn histories_of_a_linearizable_object_pass() {
    for seed in 0..60 {
        let mut rng = Rng::new(seed);
        for shape in [TINY, LARGE] {
            let run = run(&mut rng, shape);
            let said = [
                values(&Kv, &run.history),
                indices(&Kv, &run.history),
                check_log(&Kv, &run.history, &run.log),
            ];
            for (n, verdict) in said.iter().enumerate() {
                assert!(verdict.is_linearizable(), "seed {seed}, check {n}: {verdict}");
            }
        }
    }
}

/// What each check owes: the search over values says what the brute force says; what it finds,
/// the checks with indices find as well; and each says that a right history is right.
#[test]
fn a_changed_history_is_illegal_exactly_when_the_brute_force_says_so() {
    let (mut illegal, mut harmless, mut by_index, mut by_log) = (0, 0, 0, 0);
    let mut seen = BTreeSet::new();
    for seed in 0..2_000 {
        let mut rng = Rng::new(seed);
        let run = run(&mut rng, TINY);
        let Some((what, history)) = mutate(&mut rng, &run) else { continue };
        let truth = brute_force(&history);
        let said = values(&Kv, &history);
        assert_eq!(said.is_linearizable(), truth, "seed {seed}, {what}: {said}\n{history:?}");
        assert_eq!(said.is_illegal(), !truth, "seed {seed}, {what}: {said}");
        let (indices, log) = (indices(&Kv, &history), check_log(&Kv, &history, &run.log));
        if !truth {
            illegal += 1;
            seen.insert(what);
            assert!(indices.is_illegal(), "seed {seed}, {what}: {indices}\n{said}");
            assert!(log.is_illegal(), "seed {seed}, {what}: {log}\n{said}");
        } else {
            harmless += 1;
        }
        if indices.is_illegal() {
            by_index += 1;
            assert!(log.is_illegal(), "seed {seed}, {what}: by index only: {indices}");
        }
        by_log += usize::from(log.is_illegal());
    }
    assert_eq!(seen.len(), 6 - 1, "each kind of change was illegal once, but an index: {seen:?}");
    assert!(illegal > 200 && harmless > 200, "{illegal} illegal, {harmless} harmless");
    assert!(illegal < by_index && by_index < by_log, "{illegal} {by_index} {by_log}");
}

/// On longer histories, too long for brute force, the checks still agree with each other.
#[test]
fn checks_agree_on_longer_histories() {
    let mut found = 0;
    for seed in 0..100 {
        let mut rng = Rng::new(seed);
        let run = run(&mut rng, LARGE);
        let Some((what, history)) = mutate(&mut rng, &run) else { continue };
        if values(&Kv, &history).is_illegal() {
            found += 1;
            let log = check_log(&Kv, &history, &run.log);
            assert!(log.is_illegal(), "seed {seed}, {what}: {log}");
            let indices = indices(&Kv, &history);
            assert!(indices.is_illegal(), "seed {seed}, {what}: {indices}");
        }
    }
    assert!(found > 10, "only {found} were illegal");
}

/// The operations that an explanation names are illegal by themselves, given where they start.
#[test]
fn explanations_are_small() {
    let (mut found, mut named) = (0, 0);
    for seed in 0..20 {
        let mut rng = Rng::new(seed);
        let run = run(&mut rng, Shape { keys: 1, ..LARGE });
        let Some((_, history)) = mutate(&mut rng, &run) else { continue };
        if let Verdict::Illegal(violation) = values(&Kv, &history) {
            found += 1;
            named += violation.operations.len();
            assert!(!violation.operations.is_empty(), "seed {seed}: {violation}");
        }
    }
    assert!(found > 3 && named < found * 16, "{found} explanations name {named} operations");
}
