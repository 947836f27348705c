//! Many operations over many keys; the figure is the time that the test takes.

use super::super::check_log;
use super::*;
use crate::testing::rng::Rng;

#[test]
fn a_hundred_thousand_operations_over_a_thousand_keys() {
    let mut rng = Rng::new(1);
    let mut history = KvHistory::new();
    let mut state = Kv.initial();
    let mut log = Vec::new();
    // 16 clients in turn: each call takes effect halfway, among those of 8 others.
    for n in 0..100_000u64 {
        let (start, end) = (n * 10, n * 10 + 160);
        let key = format!("key-{}", rng.below(1000));
        let call = match rng.below(4) {
            0..=1 => Call::Read(KvRead::Get { key }),
            2 => Call::Write(KvWrite::Put { key, value: n.to_string() }),
            _ => {
                let expected = state.get(&key).cloned();
                Call::Write(KvWrite::Cas { key, expected, value: n.to_string() })
            }
        };
        let op = history.invoke(n % 16, call.clone(), start);
        let (answer, index) = match call {
            Call::Read(read) => (Kv.query(&state, &read), log.len() as u64),
            Call::Write(write) => {
                let answer = Kv.apply(&mut state, &write);
                log.push(LogEntry { index: log.len() as u64 + 1, write });
                (answer, log.len() as u64)
            }
        };
        match rng.one_in(50) {
            true => history.unknown(op, end),
            false => history.ok_at(op, answer, index, end),
        }
    }
    check_log(&Kv, &history, &log).assert_linearizable();
    indices(&Kv, &history).assert_linearizable();
    values(&Kv, &history).assert_linearizable();
    // The slowest way to be wrong: at the very end.
    let last = history.invoke(1, Call::Read(KvRead::Get { key: "key-7".into() }), 2_000_000);
    history.ok_at(last, KvAnswer::Value(Some("none".into())), log.len() as u64, 2_000_001);
    assert!(check_log(&Kv, &history, &log).is_illegal());
    assert!(indices(&Kv, &history).is_illegal());
    assert!(values(&Kv, &history).is_illegal());
}
