//! How the task ends, how it warns, and all of it on many threads.

use super::*;

#[tokio::test(start_paused = true)]
async fn finishing_does_what_was_pushed_before_and_drops_the_rest() {
    let store = Scripted::default();
    let gate = store.gate.clone();
    let rig = Rig::new(store);
    let (slow, more) = (rig.apply(2, &["gated"]), rig.apply(3, &["b"]));
    tokio::task::yield_now().await;
    rig.applier.finish();
    let late = rig.apply(4, &["c"]);
    gate.add_permits(1);
    assert_eq!(answers(slow).await, [(2, "gated=1".into())]);
    assert_eq!(answers(more).await, [(3, "b=2".into())]);
    for waiter in late {
        assert_unknown(waiter).await;
    }
    assert!(!rig.parts.fatal.is_reported());
    assert_eq!(rig.task.await.unwrap().unwrap().state, ["gated", "b"]);
}

#[test]
fn the_end_of_the_users_runtime_is_told() {
    let users = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let rig = users.block_on(async { Rig::new(Scripted::default()) });
    let waiters = rig.apply(2, &["gated"]);
    users.block_on(tokio::task::yield_now());
    assert!(!rig.parts.fatal.is_reported());
    drop(users);
    let mut own = tokio::runtime::Builder::new_current_thread();
    let own = own.enable_time().start_paused(true).build().unwrap();
    own.block_on(async {
        let told = tokio::time::timeout(LONG, rig.parts.fatal.wait());
        let error = told.await.unwrap();
        assert!(error.to_string().contains("runtime"), "{error}");
        for waiter in waiters.into_iter().chain(rig.apply(3, &["late"])) {
            assert_unknown(waiter).await;
        }
    });
}

/// Counts warnings by message.
#[derive(Clone, Debug, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl Drain for Warnings {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &slog::Record<'_>, _: &slog::OwnedKVList) -> Result<(), slog::Never> {
        self.0.lock().unwrap().push(record.msg().to_string());
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_store_is_warned_about_but_not_over_and_over() {
    let warnings = Warnings::default();
    let rig =
        Rig::with(Scripted::default(), &Config::default(), Logger::root(warnings.clone(), o!()));
    assert_eq!(answers(rig.apply(2, &["quick"])).await.len(), 1);
    assert!(warnings.0.lock().unwrap().is_empty());
    assert_eq!(answers(rig.apply(3, &["slow"])).await.len(), 1);
    // At 1 s, 15 s and 31 s; those at 3 s and 7 s, and the one at its end, are too many.
    assert_eq!(*warnings.0.lock().unwrap(), ["the store is still busy"; 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_never_go_back_on_a_multi_thread_runtime() {
    let rig = Rig::new(Scripted::default());
    let mut waiters = Vec::new();
    for index in 2..500 {
        waiters.extend(rig.apply(index, &["a", "b"]));
        waiters.push(rig.query(None));
        for _ in 0..2 {
            waiters.push(rig.query(Some("meet")));
        }
        tokio::task::yield_now().await;
    }
    let mut last = 0;
    for waiter in waiters {
        let index = waiter.wait(LONG).await.unwrap().index;
        assert!(index >= last, "{index} after {last}");
        last = index;
    }
    assert_eq!(rig.finish().await.unwrap().state.len(), 2 * 498);
}
