//! Batches, answers, and Stores that break.

use super::*;

#[tokio::test(start_paused = true)]
async fn waiting_entries_become_one_batch_and_are_answered_in_order() {
    let store = Scripted::default();
    let batches = store.batches.clone();
    let mut rig = Rig::new(store);
    let (a, b, c) = (rig.apply(2, &["a", "", "b"]), rig.apply(4, &["c"]), rig.apply(5, &["d"]));
    assert_eq!(rig.applier.lag(), (3, 24));
    assert_eq!(answers(a).await, [(2, "a=1".into()), (2, "=2".into()), (2, "b=3".into())]);
    assert_eq!(answers(b).await, [(4, "c=4".into())]);
    assert_eq!(answers(c).await, [(5, "d=5".into())]);
    assert_eq!(applied(rig.event().await), 5, "one event for the batch");
    assert_eq!(*batches.lock().unwrap(), [[2, 2, 2, 4, 5]]);
    assert_eq!(rig.applier.lag(), (0, 0));
    assert_eq!(rig.finish().await.unwrap().state, ["a", "", "b", "c", "d"]);
}

#[tokio::test(start_paused = true)]
async fn a_full_batch_ends_with_a_whole_entry() {
    let store = Scripted::default();
    let batches = store.batches.clone();
    let mut rig = Rig::new(store);
    let many = ["x"; 3000];
    for index in 2..5 {
        drop(rig.apply(index, &many));
    }
    assert_eq!(applied(rig.event().await), 3);
    assert_eq!(applied(rig.event().await), 4);
    let sizes: Vec<_> = batches.lock().unwrap().iter().map(Vec::len).collect();
    assert_eq!(sizes, [6000, 3000]);
}

#[tokio::test(start_paused = true)]
async fn a_large_entry_ends_its_batch() {
    let store = Scripted::default();
    let batches = store.batches.clone();
    let mut rig = Rig::new(store);
    let large = "x".repeat(4 << 20);
    drop((rig.apply(2, &[&large]), rig.apply(3, &["b"])));
    assert_eq!(applied(rig.event().await), 2);
    assert_eq!(applied(rig.event().await), 3);
    assert_eq!(*batches.lock().unwrap(), [[2], [3]]);
}

#[tokio::test(start_paused = true)]
async fn a_rejection_is_an_answer_and_counts_as_applied() {
    let mut rig = Rig::new(Scripted::default());
    let mut waiters = rig.apply(2, &["a", "reject", "b"]);
    let last = waiters.pop().unwrap();
    let error = waiters.pop().unwrap().wait(LONG).await.unwrap_err();
    assert!(matches!(error, Error::Rejected(ref why) if why == "no"), "{error}");
    assert_eq!(text(last.wait(LONG).await.unwrap()), (2, "b=2".into()));
    assert_eq!(applied(rig.event().await), 2);
}

#[tokio::test(start_paused = true)]
async fn a_skipped_entry_is_rejected_without_asking_the_store() {
    let config = Config { skip_apply: vec![3], ..Config::default() };
    let store = Scripted::default();
    let batches = store.batches.clone();
    let mut rig = Rig::with(store, &config, Logger::root(Discard, o!()));
    let (a, poison, b) =
        (rig.apply(2, &["a"]), rig.apply(3, &["panic", "x"]), rig.apply(4, &["b"]));
    for waiter in poison {
        let error = waiter.wait(LONG).await.unwrap_err();
        assert!(matches!(error, Error::Rejected(ref why) if why.contains("entry 3")), "{error}");
    }
    assert_eq!(answers(a).await, [(2, "a=1".into())]);
    assert_eq!(answers(b).await, [(4, "b=2".into())]);
    assert_eq!(applied(rig.event().await), 4);
    assert_eq!(*batches.lock().unwrap(), [[2, 4]]);
}

/// Entries before the failing one are answered; it and those behind it are undecided, also the
/// proposals of it that went well.
#[tokio::test(start_paused = true)]
async fn a_panic_or_fatal_error_ends_the_node_and_names_the_index() {
    for (command, said) in [("panic", "apply panicked: poison"), ("fatal", "disk on fire")] {
        let rig = Rig::new(Scripted::default());
        let (a, bad, c) =
            (rig.apply(2, &["a"]), rig.apply(7, &["b", command, "c"]), rig.apply(8, &["d"]));
        let read = rig.query(Some("state"));
        assert_eq!(answers(a).await, [(2, "a=1".into())]);
        for waiter in bad.into_iter().chain(c) {
            assert_unknown(waiter).await;
        }
        assert!(matches!(read.wait(LONG).await.unwrap_err(), Error::ShuttingDown));
        let mut classes = Classes::default();
        rig.parts.inbox.take(&mut classes);
        assert!(classes.completions.is_empty(), "the batch does not count as applied");
        let error = rig.fatal().await;
        let Error::StoreFailed { index, reason, remedy } = error else { panic!("{error}") };
        assert_eq!((index, reason.as_str()), (7, said));
        assert!(remedy.contains("skip_apply"), "{remedy}");
    }
}

/// A Store of the four methods only.
struct Plain(usize);

#[async_trait]
impl Store for Plain {
    async fn apply(&mut self, message: &[u8]) -> Result<Vec<u8>> {
        assert_ne!(message, b"panic", "poison");
        self.0 += 1;
        Ok(vec![])
    }

    async fn query(&self, _query: &[u8]) -> Result<Vec<u8>> {
        Ok(vec![])
    }

    async fn snapshot(&self) -> Result<Vec<u8>> {
        Ok(vec![])
    }

    async fn restore(&mut self, _snapshot: &[u8]) -> Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_poison_command_is_named_without_a_batch_of_the_stores_own() {
    let Rig { parts, .. } = Rig::new(Scripted::default());
    let (applier, task) =
        Applier::spawn(&Handle::current(), Plain(0), 1, &Config::default(), parts.clone());
    let ((a, good), (b, bad)) = (entry(2, &["a"]), entry(3, &["b", "panic"]));
    applier.push(Job::Apply(vec![a, b]));
    assert_eq!(answers(good).await, [(2, String::new())]);
    for waiter in bad {
        assert_unknown(waiter).await;
    }
    let error = tokio::time::timeout(LONG, parts.fatal.wait()).await.unwrap();
    assert!(matches!(error, Error::StoreFailed { index: 3, .. }), "{error}");
    assert!(error.to_string().contains("poison"), "{error}");
    assert!(task.await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_wrong_number_of_answers_ends_the_node() {
    for (batching, said) in [
        (Batching::OneShort, "gave 2 answers to 3 proposals"),
        (Batching::OneMore, "gave 4 answers to 3 proposals"),
        (Batching::Panic, "apply_batch panicked: batch (in the batch of entries 2 to 3)"),
    ] {
        let rig = Rig::new(Scripted { batching, ..Scripted::default() });
        for waiter in [rig.apply(2, &["a", "b"]), rig.apply(3, &["c"])].into_iter().flatten() {
            assert_unknown(waiter).await;
        }
        let error = rig.fatal().await;
        assert!(matches!(error, Error::StoreFailed { index: 2, .. }), "{error}");
        assert!(error.to_string().contains(said), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_entry_is_never_given_to_the_store_twice() {
    let rig = Rig::new(Scripted::default());
    drop((rig.apply(3, &["a"]), rig.apply(3, &["a"])));
    let error = rig.fatal().await;
    assert!(error.to_string().contains("entry 3 was to be applied behind 3"), "{error}");
}
