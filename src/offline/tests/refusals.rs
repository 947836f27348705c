//! Every refusal says what to do, and changes nothing.

use super::*;
use crate::log::LogBatch;

/// The text of a refusal; the directory is as it was.
fn refused(disk: &FaultyVfs, id: NodeId, others: &[NodeId]) -> String {
    let before = image(disk, &dir(id));
    let error = recover(&shared(disk), &dir(id), &options(others, false)).unwrap_err();
    assert_eq!(image(disk, &dir(id)), before, "{error}");
    assert_eq!(error.outcome(), crate::error::Outcome::NotApplied, "{error}");
    error.to_string()
}

fn has(text: &str, words: &[&str]) {
    for words in words {
        assert!(text.contains(words), "{words:?} is missing: {text}");
    }
}

#[test]
fn a_directory_in_use_is_refused_by_every_call() {
    let tmp = tempfile::tempdir().unwrap();
    let mut wal = Wal::open(Arc::new(RealVfs), tmp.path(), WAL).unwrap();
    wal.load().unwrap();
    wal.identify(&identity(1)).unwrap();
    let all = [
        inspect(tmp.path()).map(drop),
        survey(&[tmp.path()]).map(drop),
        super::super::recover(tmp.path(), &RecoverOptions::default()).map(drop),
        set_addresses(tmp.path(), &[]).map(drop),
    ];
    for result in all {
        has(&result.unwrap_err().to_string(), &["locked by another process; stop it"]);
    }
}

#[test]
fn a_path_without_a_node_is_refused_and_left_alone() {
    let tmp = tempfile::tempdir().unwrap();
    let nowhere = tmp.path().join("nowhere");
    let error = inspect(&nowhere).unwrap_err().to_string();
    has(&error, &["there is no such directory"]);
    let error = set_addresses(&nowhere, &[]).unwrap_err().to_string();
    has(&error, &["check the path"]);
    assert!(!nowhere.exists());
    std::fs::write(tmp.path().join("notes.txt"), "mine").unwrap();
    let error = inspect(tmp.path()).unwrap_err().to_string();
    has(&error, &["holds nothing of a node", "check the path"]);
    assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 1);
    let none: [&Path; 0] = [];
    has(&survey(&none).unwrap_err().to_string(), &["name the data directories"]);
}

#[test]
fn with_a_majority_at_hand_nobody_recovers_unless_forced() {
    let disk = cluster();
    let text = refused(&disk, 1, &[2]);
    has(&text, &["/data/n1", "nodes 1 and 2 can elect a leader", "start them", "force"]);
    let done = recover(&shared(&disk), &dir(1), &options(&[2], true)).unwrap();
    assert_ne!(done.cluster, OLD);
    // Done is done: it needs nobody else now.
    has(&refused(&disk, 1, &[]), &["node 1 can elect a leader", "start it"]);
}

#[test]
fn the_most_advanced_directory_is_asked_for_unless_forced() {
    let disk = FaultyVfs::new();
    let members = membership(&[1, 2, 3, 4, 5], 4);
    make(&disk, 1, &members, at(15, 2));
    make(&disk, 3, &members, at(12, 1));
    let text = refused(&disk, 3, &[1]);
    has(&text, &["/data/n1 is more advanced", "index 15 of term 2", "Recover from that one"]);
    let done = recover(&shared(&disk), &dir(3), &options(&[1], true)).unwrap();
    let text = done.to_string();
    has(&text, &["WHAT MAY BE LOST", "/data/n1 is more advanced", "only voter of cluster"]);
    has(&text, &["Not part of it: nodes 1, 2, 4 and 5", "empty data directories"]);
}

#[test]
fn damage_is_no_ground_to_build_on() {
    let disk = cluster();
    let path = look(&disk, 3).snapshots[0].path.clone();
    flip(&disk, &path, 40);
    let text = refused(&disk, 3, &[]);
    has(&text, &["recover from another directory", "damaged at offset", "put back an intact copy"]);
    // Elsewhere it is a loss, and the directory does not count as present.
    let survey = survey_of(&disk, &[1, 3]);
    assert_eq!(survey.advice(), Advice::Recover(0));
    has(&survey.losses(0).join("\n"), &["/data/n3 is damaged"]);
}

#[test]
fn copies_and_other_clusters_are_told_apart() {
    let disk = cluster();
    for (path, bytes) in image(&disk, &dir(2)) {
        let inside = path.strip_prefix(dir(2)).unwrap();
        disk.create_dir_all(&dir(9).join(SnapshotDir::NAME)).unwrap();
        disk.set_contents(&dir(9).join(inside), bytes);
    }
    has(&refused(&disk, 2, &[9]), &["copies of one directory", "newer one only"]);
    recover_alone(&disk, 3).unwrap();
    let text = refused(&disk, 1, &[3]);
    has(&text, &["/data/n1 belongs to cluster", "directories of one cluster only"]);
    assert_eq!(survey_of(&disk, &[1, 3]).advice(), Advice::Neither);
}

#[test]
fn a_directory_without_a_cluster_or_without_data_is_refused() {
    let disk = FaultyVfs::new();
    disk.create_dir_all(&dir(1).join(SnapshotDir::NAME)).unwrap();
    let mut wal = open(&disk, 1);
    wal.identify(&Identity { cluster: None, ..identity(1) }).unwrap();
    drop(wal);
    has(&refused(&disk, 1, &[]), &["belongs to no cluster yet", "nothing to recover"]);
    open(&disk, 1).identify(&identity(1)).unwrap();
    has(&refused(&disk, 1, &[]), &["received nothing of it yet", "another member"]);
}

#[test]
fn one_that_was_removed_does_not_bring_the_cluster_back() {
    let disk = cluster();
    let mut wal = open(&disk, 3);
    let record = Some(membership(&[1, 2], 12).encode());
    wal.append(&[LogBatch { membership: record, ..LogBatch::default() }]).unwrap();
    drop(wal);
    has(&refused(&disk, 3, &[]), &["no member of the cluster any more", "of a member"]);
}

#[test]
fn a_new_address_must_be_one() {
    let disk = cluster();
    let with = |addr: &str| RecoverOptions { addr: Some(addr.to_owned()), ..options(&[], false) };
    for addr in ["nowhere", "0.0.0.0:1", "host:0"] {
        let error = recover(&shared(&disk), &dir(1), &with(addr)).unwrap_err().to_string();
        has(&error, &[addr]);
    }
    recover(&shared(&disk), &dir(1), &with("new:1")).unwrap();
    assert_eq!(look(&disk, 1).membership.unwrap().members[0].addr, "new:1");
}
