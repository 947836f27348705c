//! Histories that people understand, good and bad, one rule each.

use super::super::models::{Add, AppendList, Counter, CounterAnswer, ReadCounter};
use super::super::models::{Append, ListAnswer, ReadList};
use super::super::{Operation, Outcome, Rule, check_log};
use super::*;

#[track_caller]
fn broken(verdict: &Verdict, rule: Rule) -> String {
    let Verdict::Illegal(violation) = verdict else { panic!("expected {rule}: {verdict}") };
    assert_eq!(violation.rule, rule, "{violation}");
    violation.to_string()
}

#[test]
fn overlapping_writes_may_take_effect_in_either_order() {
    for last in ["a", "b"] {
        let mut history = KvHistory::new();
        let (first, second) = if last == "b" { (2, 3) } else { (3, 2) };
        ok(&mut history, (10, 50), put("a"), KvAnswer::Done, first);
        ok(&mut history, (20, 40), put("b"), KvAnswer::Done, second);
        ok(&mut history, (60, 70), get(), value(last), 3);
        values(&Kv, &history).assert_linearizable();
        indices(&Kv, &history).assert_linearizable();
        let mut writes = [(first, put("a")), (second, put("b"))];
        writes.sort_by_key(|(index, _)| *index);
        check_log(&Kv, &history, &log(&writes)).assert_linearizable();
    }
}

#[test]
fn a_stale_read_is_found_and_the_window_is_small() {
    let mut history = KvHistory::new();
    for n in 0..40 {
        ok(&mut history, (n * 10, n * 10 + 5), put(&n.to_string()), KvAnswer::Done, n + 2);
    }
    ok(&mut history, (500, 510), get(), value("38"), 41);
    ok(&mut history, (520, 530), get(), value("39"), 41);
    let text = broken(&values(&Kv, &history), Rule::NoOrder);
    assert!(text.contains("key k") && text.contains("-> Value(Some(\"38\")) at 41"), "{text}");
    assert!(text.contains("#40 could have answered: Value(Some(\"39\"))"), "{text}");
    assert!(text.contains("from {\"k\": \"39\"}, the only state"), "{text}");
    assert_eq!(text.lines().count(), 3, "the read alone: {text}");
    broken(&indices(&Kv, &history), Rule::NoOrder);
    let all: Vec<_> = (0..40).map(|n| (n + 2, put(&n.to_string()))).collect();
    let text = broken(&check_log(&Kv, &history, &log(&all)), Rule::WrongAnswer);
    assert!(text.contains("right at index 40"), "{text}");
}

#[test]
fn a_read_at_an_old_index_is_against_real_time() {
    let mut history = KvHistory::new();
    ok(&mut history, (10, 20), put("a"), KvAnswer::Done, 2);
    ok(&mut history, (30, 40), put("b"), KvAnswer::Done, 3);
    ok(&mut history, (50, 60), get(), value("a"), 2);
    broken(&values(&Kv, &history), Rule::NoOrder);
    let text = broken(&indices(&Kv, &history), Rule::RealTime);
    assert!(text.contains("#1 had returned before #2 was invoked"), "{text}");
    let log = log(&[(2, put("a")), (3, put("b"))]);
    broken(&check_log(&Kv, &history, &log), Rule::RealTime);
}

#[test]
fn reads_must_not_go_back() {
    let mut history = KvHistory::new();
    ok(&mut history, (10, 100), put("a"), KvAnswer::Done, 2);
    ok(&mut history, (20, 30), get(), value("a"), 2);
    ok(&mut history, (40, 50), get(), KvAnswer::Value(None), 1);
    let text = broken(&values(&Kv, &history), Rule::NoOrder);
    assert!(text.contains("#2 could have answered: Value(Some(\"a\"))"), "{text}");
    broken(&indices(&Kv, &history), Rule::RealTime);
    broken(&check_log(&Kv, &history, &log(&[(2, put("a"))])), Rule::RealTime);
}

#[test]
fn writes_against_real_time_are_found_by_their_indices_alone() {
    let mut history = KvHistory::new();
    ok(&mut history, (10, 20), put("a"), KvAnswer::Done, 3);
    ok(&mut history, (30, 40), put("b"), KvAnswer::Done, 2);
    values(&Kv, &history).assert_linearizable();
    broken(&indices(&Kv, &history), Rule::RealTime);
    let swapped = log(&[(2, put("b")), (3, put("a"))]);
    broken(&check_log(&Kv, &history, &swapped), Rule::RealTime);
    ok(&mut history, (50, 60), get(), value("a"), 3);
    broken(&values(&Kv, &history), Rule::NoOrder);
}

#[test]
fn a_write_must_not_come_before_a_read_that_ended_before_it() {
    let mut history = KvHistory::new();
    ok(&mut history, (10, 20), get(), KvAnswer::Value(None), 5);
    ok(&mut history, (30, 40), put("a"), KvAnswer::Done, 4);
    broken(&indices(&Kv, &history), Rule::RealTime);
}

#[test]
fn a_lost_update_is_found() {
    let mut history = KvHistory::new();
    ok(&mut history, (10, 20), put("a"), KvAnswer::Done, 2);
    ok(&mut history, (30, 40), get(), KvAnswer::Value(None), 2);
    broken(&values(&Kv, &history), Rule::NoOrder);
    broken(&indices(&Kv, &history), Rule::NoOrder);
    broken(&check_log(&Kv, &history, &[]), Rule::LostWrite);
    broken(&check_log(&Kv, &history, &log(&[(2, put("a"))])), Rule::WrongAnswer);
    let mut write = KvHistory::new();
    ok(&mut write, (10, 20), put("a"), KvAnswer::Done, 2);
    let text = broken(&check_log(&Kv, &write, &[]), Rule::LostWrite);
    assert!(text.contains("nowhere"), "{text}");
    let text = broken(&check_log(&Kv, &write, &log(&[(3, put("a"))])), Rule::LostWrite);
    assert!(text.contains("not at index 2, but at 3"), "{text}");
}

#[test]
fn two_compare_and_sets_of_one_value_cannot_both_succeed() {
    let cas = |value: &str| {
        Call::Write(KvWrite::Cas { key: "k".into(), expected: None, value: value.into() })
    };
    let mut history = KvHistory::new();
    ok(&mut history, (10, 50), cas("a"), KvAnswer::Swapped(true), 2);
    ok(&mut history, (20, 40), cas("b"), KvAnswer::Swapped(true), 3);
    broken(&values(&Kv, &history), Rule::NoOrder);
    broken(&indices(&Kv, &history), Rule::NoOrder);
    let log = log(&[(2, cas("a")), (3, cas("b"))]);
    let text = broken(&check_log(&Kv, &history, &log), Rule::WrongAnswer);
    assert!(text.contains("#1 is answered Swapped(false)"), "{text}");
}

#[test]
fn an_unknown_write_may_take_effect_late_or_never() {
    let mut history = KvHistory::new();
    let lost = history.invoke(1, put("b"), 10);
    history.unknown(lost, 20);
    let silent = history.invoke(1, put("c"), 25);
    ok(&mut history, (30, 40), put("a"), KvAnswer::Done, 2);
    ok(&mut history, (50, 60), get(), value("a"), 2);
    ok(&mut history, (70, 80), get(), value("b"), 5);
    values(&Kv, &history).assert_linearizable();
    indices(&Kv, &history).assert_linearizable();
    let writes = log(&[(2, put("a")), (4, put("b"))]);
    check_log(&Kv, &history, &writes).assert_linearizable();
    // Once, not twice.
    ok(&mut history, (90, 100), put("d"), KvAnswer::Done, 6);
    ok(&mut history, (110, 120), get(), value("b"), 7);
    broken(&values(&Kv, &history), Rule::NoOrder);
    broken(&indices(&Kv, &history), Rule::NoOrder);
    let twice = log(&[(2, put("a")), (4, put("b")), (6, put("d")), (7, put("b"))]);
    let text = broken(&check_log(&Kv, &history, &twice), Rule::UnexplainedCommand);
    assert!(text.contains("more often than it was called"), "{text}");
    history.ok(silent, KvAnswer::Done, 130);
    assert!(matches!(indices(&Kv, &history), Verdict::Malformed(_)), "no index");
}

#[test]
fn a_rejection_without_an_index_is_recorded_as_unknown() {
    let swap = |old: &str, new: &str| {
        let expected = Some(old.to_owned());
        Call::Write(KvWrite::Cas { key: "k".into(), expected, value: new.into() })
    };
    let mut history = KvHistory::new();
    ok(&mut history, (10, 20), put("a"), KvAnswer::Done, 2);
    let rejected = history.invoke(1, swap("x", "b"), 30);
    history.unknown(rejected, 40);
    ok(&mut history, (50, 60), get(), value("a"), 3);
    let writes = log(&[(2, put("a")), (3, swap("x", "b"))]);
    check_log(&Kv, &history, &writes).assert_linearizable();
    indices(&Kv, &history).assert_linearizable();
    // Nothing else becomes invisible by it.
    ok(&mut history, (70, 80), get(), value("b"), 3);
    broken(&indices(&Kv, &history), Rule::NoOrder);
    broken(&check_log(&Kv, &history, &writes), Rule::WrongAnswer);
    let mut forgotten = KvHistory::new();
    let put = forgotten.invoke(1, put("a"), 10);
    forgotten.ok(put, KvAnswer::Done, 20);
    let verdict = indices(&Kv, &forgotten).to_string();
    assert!(verdict.contains("with unknown when it was rejected"), "{verdict}");
}

#[test]
fn an_unknown_write_has_no_effect_before_it_was_invoked() {
    let mut history = KvHistory::new();
    ok(&mut history, (10, 20), get(), value("a"), 2);
    let late = history.invoke(1, put("a"), 30);
    history.unknown(late, 40);
    broken(&values(&Kv, &history), Rule::NoOrder);
    broken(&indices(&Kv, &history), Rule::NoOrder);
    broken(&check_log(&Kv, &history, &log(&[(2, put("a"))])), Rule::RealTime);
}

#[test]
fn an_unknown_write_that_is_applied_twice_is_found() {
    let add = || Call::Write(Add { key: "k".into(), amount: 1 });
    let mut history = HistoryOf::<Counter>::new();
    let lost = history.invoke(1, add(), 10);
    history.unknown(lost, 20);
    let read = history.invoke(2, Call::Read(ReadCounter { key: "k".into() }), 30);
    history.ok_at(read, CounterAnswer::Value(2), 5, 40);
    broken(&values(&Counter, &history), Rule::NoOrder);
    broken(&indices(&Counter, &history), Rule::NoOrder);
    let entry = |index| LogEntry { index, write: Add { key: "k".into(), amount: 1 } };
    let verdict = check_log(&Counter, &history, &[entry(3), entry(4)]);
    broken(&verdict, Rule::UnexplainedCommand);
}

#[test]
fn a_write_that_was_not_applied_must_not_be_seen() {
    let mut history = KvHistory::new();
    let refused = history.invoke(1, put("a"), 10);
    history.not_applied(refused, 20);
    ok(&mut history, (30, 40), get(), value("a"), 3);
    broken(&values(&Kv, &history), Rule::NoOrder);
    broken(&indices(&Kv, &history), Rule::NoOrder);
    let text = broken(&check_log(&Kv, &history, &log(&[(3, put("a"))])), Rule::UnexplainedCommand);
    assert!(text.contains("said not to be applied"), "{text}");
    broken(&check_log(&Kv, &history, &[]), Rule::WrongAnswer);
}

#[test]
fn a_command_that_nobody_called_is_found() {
    let verdict = check_log(&Kv, &KvHistory::new(), &log(&[(3, put("a"))]));
    assert!(broken(&verdict, Rule::UnexplainedCommand).contains("nobody called it"));
}

#[test]
fn equal_commands_of_one_entry_are_told_apart_by_their_answers() {
    let add = || Call::Write(Add { key: "k".into(), amount: 1 });
    let history = |answers: [CounterAnswer; 3]| {
        let mut history = HistoryOf::<Counter>::new();
        for (n, answer) in (0..).zip(answers) {
            let op = history.invoke(n, add(), 10 + n);
            history.ok_at(op, answer, 7, 20);
        }
        history
    };
    let value = CounterAnswer::Value;
    let entry = LogEntry { index: 7, write: Add { key: "k".into(), amount: 1 } };
    let log = vec![entry; 3];
    let good = history([CounterAnswer::Done, value(2), value(1)]);
    check_log(&Counter, &good, &log).assert_linearizable();
    indices(&Counter, &good).assert_linearizable();
    let twice = history([value(2), CounterAnswer::Done, value(2)]);
    broken(&check_log(&Counter, &twice, &log), Rule::LostWrite);
    broken(&indices(&Counter, &twice), Rule::NoOrder);
    let wrong = history([value(4), CounterAnswer::Done, value(2)]);
    broken(&check_log(&Counter, &wrong, &log), Rule::WrongAnswer);
}

#[test]
fn a_list_shows_reordering() {
    let append = |value| Call::Write(Append { key: "k".into(), value });
    for (list, good) in [(vec![1, 2], true), (vec![2, 1], false), (vec![1, 2, 2], false)] {
        let mut history = HistoryOf::<AppendList>::new();
        for value in [1, 2] {
            let op = history.invoke(1, append(value), value * 10);
            history.ok(op, ListAnswer::Length(value), value * 10 + 5);
        }
        let read = history.invoke(1, Call::Read(ReadList { key: "k".into() }), 30);
        history.ok(read, ListAnswer::List(list), 40);
        let verdict = values(&AppendList, &history);
        assert_eq!((verdict.is_linearizable(), verdict.is_illegal()), (good, !good), "{verdict}");
    }
}

#[test]
fn operations_at_one_instant_are_concurrent() {
    let mut history = KvHistory::new();
    ok(&mut history, (10, 20), put("a"), KvAnswer::Done, 2);
    ok(&mut history, (20, 30), get(), KvAnswer::Value(None), 1);
    values(&Kv, &history).assert_linearizable();
    indices(&Kv, &history).assert_linearizable();
}

#[test]
fn too_much_work_is_undecided_not_wrong() {
    let mut history = KvHistory::new();
    for n in 0..30 {
        let op = history.invoke(n, put(&n.to_string()), 1);
        history.ok(op, KvAnswer::Done, 100);
    }
    let read = history.invoke(99, get(), 200);
    history.ok(read, value("never written"), 210);
    let verdict = check_values(&Kv, &history, Limits { steps: 5_000 });
    assert!(matches!(verdict, Verdict::Undecided { .. }), "{verdict}");
    // A part that is illegal is said to be, whatever the others are.
    let key = || "z".to_owned();
    let write = history.invoke(1, Call::Write(KvWrite::Delete { key: key() }), 1);
    history.ok(write, KvAnswer::Value(Some("x".into())), 2);
    assert!(check_values(&Kv, &history, Limits { steps: 5_000 }).is_illegal());
}

#[test]
fn a_stored_history_is_not_trusted() {
    let mut history = KvHistory::new();
    let op = history.invoke(1, put("a"), 10);
    history.ok_at(op, KvAnswer::Done, 2, 20);
    history.invoke(2, get(), 15);
    let text = serde_json::to_string(&history).unwrap();
    let back: KvHistory = serde_json::from_str(&text).unwrap();
    assert_eq!(back, history);
    let answer = |returned| Operation {
        client: 1,
        call: get(),
        invoked: 10,
        returned,
        outcome: Outcome::Ok { answer: KvAnswer::Value(None), index: None },
    };
    for returned in [Some(5), None] {
        let mut history = KvHistory::new();
        history.push(answer(returned));
        assert!(matches!(values(&Kv, &history), Verdict::Malformed(_)), "{returned:?}");
    }
    let disorder = log(&[(3, put("a")), (2, put("b"))]);
    let verdict = check_log(&Kv, &KvHistory::new(), &disorder);
    assert!(matches!(verdict, Verdict::Malformed(_)), "{verdict}");
}

#[test]
#[should_panic(expected = "has ended before")]
fn an_operation_ends_once() {
    let mut history = KvHistory::new();
    let op = history.invoke(1, put("a"), 10);
    history.unknown(op, 20);
    history.not_applied(op, 30);
}
