//! Queries, snapshots and restores, at their place in the order.

use super::*;

#[tokio::test(start_paused = true)]
async fn queries_run_beside_each_other_and_applies_wait_for_them() {
    let mut rig = Rig::new(Scripted::default());
    let before = rig.apply(2, &["a"]);
    let (one, two) = (rig.query(Some("meet")), rig.query(Some("meet")));
    let after = rig.apply(3, &["b"]);
    let later = rig.query(Some("state"));
    assert_eq!(answers(before).await.len(), 1);
    assert_eq!(text(one.wait(LONG).await.unwrap()), (2, "a".into()));
    assert_eq!(text(two.wait(LONG).await.unwrap()), (2, "a".into()));
    assert_eq!(answers(after).await, [(3, "b=2".into())]);
    assert_eq!(text(later.wait(LONG).await.unwrap()), (3, "a,b".into()));
    assert_eq!((applied(rig.event().await), applied(rig.event().await)), (2, 3));
}

#[tokio::test(start_paused = true)]
async fn a_hanging_query_is_cancelled_and_applies_go_on() {
    let rig = Rig::new(Scripted::default());
    let started = tokio::time::Instant::now();
    let hanging = rig.query(Some("hang"));
    let after = rig.apply(2, &["a"]);
    assert_eq!(answers(after).await, [(2, "a=1".into())]);
    assert_eq!(started.elapsed().as_secs(), Config::default().request_timeout.as_secs());
    assert!(matches!(hanging.wait(LONG).await.unwrap_err(), Error::Timeout));
    assert_eq!(rig.finish().await.unwrap().state, ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_query_that_fails_or_panics_concerns_its_caller_only() {
    let rig = Rig::new(Scripted::default());
    for (query, said) in [
        ("refuse", "unknown key"),
        ("panic", "query panicked: bad query"),
        ("late panic", "query panicked: bad query"),
    ] {
        let error = rig.query(Some(query)).wait(LONG).await.unwrap_err();
        assert_eq!(matches!(error, Error::Invalid(_)), query.contains("panic"), "{error}");
        assert!(
            matches!(error, Error::Rejected(ref why) | Error::Invalid(ref why) if why == said),
            "{error}"
        );
    }
    assert_eq!(answers(rig.apply(2, &["a"])).await, [(2, "a=1".into())]);
    assert!(!rig.parts.fatal.is_reported());
}

#[tokio::test(start_paused = true)]
async fn a_barrier_answers_with_the_applied_index() {
    let rig = Rig::new(Scripted::default());
    assert_eq!(text(rig.query(None).wait(LONG).await.unwrap()), (1, String::new()));
    drop(rig.apply(5, &["a"]));
    assert_eq!(text(rig.query(None).wait(LONG).await.unwrap()), (5, String::new()));
    // Behind a capture everything up to its position is applied, also what is not for the Store.
    rig.capture(7);
    assert_eq!(text(rig.query(None).wait(LONG).await.unwrap()), (7, String::new()));
}

/// Index and data are one cut, and the disk, however slow, holds up no apply.
#[tokio::test(start_paused = true)]
async fn a_snapshot_is_one_cut_while_applies_go_on() {
    let mut rig = Rig::new(Scripted::default());
    rig.disk.hold(true);
    drop(rig.apply(2, &["a", "b"]));
    rig.capture(3);
    drop(rig.apply(4, &["c"]));
    let read = rig.query(Some("state"));
    assert_eq!(text(read.wait(LONG).await.unwrap()), (4, "a,b,c".into()));
    assert_eq!((applied(rig.event().await), applied(rig.event().await)), (2, 4));
    rig.disk.hold(false);
    let Event::SnapshotBuilt { meta } = rig.event().await else { panic!("not built") };
    assert_eq!((meta.position, &meta.membership), (Position { index: 3, term: 2 }, &membership()));
    let file = rig.parts.snapshots.open_snapshot(meta.position).unwrap();
    assert_eq!(file.meta(), &meta);
    assert_eq!(file.read_all().unwrap(), b"a,b");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_fails_is_told_and_the_node_goes_on() {
    for reason in ["panic", "out of memory"] {
        let mut rig = Rig::new(Scripted { snapshot: Some(reason), ..Scripted::default() });
        rig.capture(2);
        assert!(matches!(rig.event().await, Event::SnapshotFailed));
        assert_eq!(answers(rig.apply(3, &["a"])).await.len(), 1);
    }
    let mut rig = Rig::new(Scripted::default());
    rig.disk.fail(Some(Failing::Sync));
    rig.capture(2);
    assert!(matches!(rig.event().await, Event::SnapshotFailed));
    assert!(rig.disk.names().is_empty());
    assert!(!rig.parts.fatal.is_reported());
}

#[tokio::test(start_paused = true)]
async fn an_installed_snapshot_replaces_the_state_at_its_place_in_the_order() {
    let mut rig = Rig::new(Scripted::default());
    drop(rig.apply(2, &["a"]));
    let hanging = rig.query(Some("hang"));
    let meta = rig.install(9, b"x,y");
    let read = rig.query(Some("state"));
    drop(rig.apply(10, &["z"]));
    assert_eq!(text(read.wait(LONG).await.unwrap()), (9, "x,y".into()));
    assert!(hanging.wait(LONG).await.is_err());
    assert_eq!(applied(rig.event().await), 2);
    let Event::Installed { index } = rig.event().await else { panic!("not installed") };
    assert_eq!(index, meta.position.index);
    assert_eq!(applied(rig.event().await), 10);
    assert_eq!(rig.finish().await.unwrap().state, ["x", "y", "z"]);
}

#[tokio::test(start_paused = true)]
async fn a_restore_that_fails_ends_the_node_and_names_index_and_remedy() {
    for (state, said) in
        [(&b"panic"[..], "restore panicked: poisoned state"), (b"error", "restore failed: ")]
    {
        let rig = Rig::new(Scripted::default());
        rig.install(9, state);
        let error = rig.fatal().await;
        assert!(matches!(error, Error::StoreFailed { index: 9, .. }), "{error}");
        assert!(error.to_string().contains(said), "{error}");
        assert!(error.to_string().contains("restored again"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_snapshot_is_never_restored() {
    let rig = Rig::new(Scripted::default());
    let meta = rig.install(9, b"x,y");
    let name = rig.disk.names().remove(0);
    let mut bytes = rig.disk.bytes(&name);
    *bytes.last_mut().unwrap() ^= 1;
    rig.disk.put(format!("/snap/{name}"), bytes);
    assert_eq!(meta.size, 3);
    let error = rig.fatal().await;
    let Error::Storage(StorageError::Corrupt { path, .. }) = &error else { panic!("{error}") };
    assert!(path.ends_with(&name));
}
