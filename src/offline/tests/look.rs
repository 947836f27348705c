//! What a look tells, and that it changes nothing.

use super::*;
use crate::testing::vfs::{CrashStyle, Fault};

#[test]
fn a_report_tells_who_whom_and_what() {
    let disk = cluster();
    let report = look(&disk, 1);
    assert!(report.is_sound() && report.log.whole && !report.log.sealed, "{report}");
    assert_eq!((report.log.compacted, report.log.last), (at(5, 1), at(15, 2)));
    assert_eq!(report.log.pending_changes, [15]);
    assert_eq!(report.place(), Some((OLD, 1)));
    assert_eq!((report.snapshots.len(), report.snapshots[0].relied), (1, true));
    let text = report.to_string();
    for words in [
        "/data/n1",
        "node 1 of cluster 0000000000000000000000000000001d, raft id 1",
        "started 3 times",
        "members as of index 4:",
        "node 2    voter    raft id 2    old-2:1",
        "<- this directory",
        "changes that this node has not applied yet: at index 15",
        "log: entries 6 to 15, 10 of them",
        "term 1: 6 to 12",
        "term 2: 13 to 15",
        "term 2, vote in it for node 1; known to be committed up to index 12",
        "not closed cleanly; nothing is torn",
        "snapshot at index 6 of term 1, 17 bytes, membership of index 4: the log relies on it",
        "Every checksum is right.",
    ] {
        assert!(text.contains(words), "{words:?} is missing:\n{text}");
    }
    open(&disk, 1).close().unwrap();
    assert!(look(&disk, 1).log.sealed);
}

#[test]
fn what_was_agreed_to_and_never_founded_is_no_membership() {
    let disk = FaultyVfs::new();
    let mut wal = open(&disk, 1);
    wal.identify(&Identity { cluster: None, ..identity(1) }).unwrap();
    let agreed = membership(&[1, 2, 3], 0);
    for record in [agreed.encode(), Bytes::new()] {
        let batch = LogBatch { membership: Some(record.clone()), ..LogBatch::default() };
        wal.append(&[batch]).unwrap();
        drop(wal);
        let report = look(&disk, 1);
        assert_eq!((&report.membership, report.damage.len()), (&None, 0));
        assert_eq!(report.agreed, Some(agreed.clone()).filter(|_| !record.is_empty()));
        let said = report.to_string();
        assert_eq!(said.contains("with nodes 1, 2 and 3, and does not know"), !record.is_empty());
        let refused = recover_alone(&disk, 1).unwrap_err().to_string();
        assert!(refused.contains("nothing to recover"), "{refused}");
        wal = open(&disk, 1);
    }
}

#[test]
fn a_look_changes_nothing_and_a_torn_end_stays() {
    let disk = FaultyVfs::new();
    make(&disk, 1, &membership(&[1, 2, 3], 4), at(15, 2));
    let mut wal = open(&disk, 1);
    disk.fail_at(1, Fault::Short);
    let entries = vec![command(16, 2), command(17, 2)];
    wal.append(&[LogBatch { entries, ..LogBatch::default() }]).unwrap_err();
    drop(wal);
    let disk = disk.crash(CrashStyle::KeepAll);
    let before = image(&disk, &dir(1));
    for _ in 0..2 {
        let report = look(&disk, 1);
        assert_eq!(report.log.last, at(15, 2));
        assert!(report.to_string().contains("the next start drops the unfinished end"), "{report}");
        plan(&shared(&disk), &dir(1), &options(&[], false)).unwrap();
        survey_of(&disk, &[1]);
    }
    assert_eq!(image(&disk, &dir(1)), before);
}

#[test]
fn a_copy_without_a_lock_file_is_looked_at_and_gets_none() {
    let disk = cluster();
    disk.remove(&dir(1).join("LOCK")).unwrap();
    look(&disk, 1);
    assert!(!disk.list(&dir(1)).unwrap().contains(&"LOCK".to_owned()));
}

/// The first file of a log that has several.
fn first_segment(disk: &FaultyVfs, id: NodeId) -> PathBuf {
    let report = look(disk, id);
    report.log.segments.iter().find(|s| s.generation.is_some()).unwrap().path.clone()
}

#[test]
fn damage_is_told_with_file_offset_and_remedy_and_the_rest_is_shown() {
    let disk = cluster();
    let segment = first_segment(&disk, 1);
    flip(&disk, &segment, 300);
    let report = look(&disk, 1);
    assert!(!report.is_sound() && !report.log.whole);
    assert_eq!(report.membership, Some(membership(&[1, 2, 3], 4)));
    assert_eq!(report.log.hard_state.term, 2);
    let text = report.to_string();
    let name = segment.file_name().unwrap().to_string_lossy().into_owned();
    for words in [
        "DAMAGED:",
        &name,
        "is damaged at offset",
        "let it join again",
        "not whole",
        "node 2    voter",
        "snapshot at index 6",
    ] {
        assert!(text.contains(words), "{words:?} is missing:\n{text}");
    }
    flip(&disk, &dir(1).join("identity"), 20);
    let report = look(&disk, 1);
    assert!(report.identity.is_none() && report.membership.is_some());
    assert!(report.to_string().contains("its checksum is wrong"), "{report}");
}

#[test]
fn the_body_of_every_snapshot_is_verified_and_a_missing_one_is_missed() {
    let disk = cluster();
    let path = look(&disk, 2).snapshots[0].path.clone();
    let size = disk.contents(&path).unwrap().len();
    flip(&disk, &path, size - 1);
    let text = look(&disk, 2).to_string();
    assert!(text.contains("checksum of the body is"), "{text}");
    disk.remove(&path).unwrap();
    let report = look(&disk, 2);
    assert!(!report.is_sound());
    assert!(report.to_string().contains("relies on this snapshot, and it is missing"), "{report}");
    assert!(report.to_string().contains("Put back an intact copy"), "{report}");
}

#[test]
fn the_longest_log_of_the_highest_term_is_the_one_to_recover_from() {
    let disk = cluster();
    make(&disk, 4, &membership(&[1, 2, 3, 4, 5, 6, 7], 5), at(12, 1));
    let survey = survey_of(&disk, &[3, 2, 1]);
    assert_eq!((survey.best, survey.advice()), (Some(2), Advice::Start));
    assert!(survey.to_string().contains("They are a majority: start these nodes"), "{survey}");
    // The newest membership counts, whoever has it.
    let survey = survey_of(&disk, &[3, 4, 2]);
    assert_eq!((survey.best, survey.advice()), (Some(2), Advice::Recover(2)));
    assert_eq!(survey.quorums[0].missing, [1, 5, 6, 7]);
    let text = survey.to_string();
    for words in [
        "At hand are 3 of 7 voters, 4 are needed; nodes 1, 5, 6 and 7 are missing.",
        "recover from /data/n2, the most advanced (its log ends at index 14 of term 2)",
        "What only nodes 1, 5, 6 and 7 had beyond index 14 (term 2) is lost for good",
        "Entries 13 to 14 of this directory are not known to be committed",
    ] {
        assert!(text.contains(words), "{words:?} is missing:\n{text}");
    }
}

#[test]
fn in_the_middle_of_a_change_both_majorities_count() {
    let disk = FaultyVfs::new();
    let mut joint = membership(&[1, 2, 3, 4, 5], 4);
    joint.conf_state.voters = vec![1, 2, 3];
    joint.conf_state.voters_outgoing = vec![3, 4, 5];
    for id in 1..=4 {
        make(&disk, id, &joint, at(12, 1));
    }
    let half = survey_of(&disk, &[1, 2]);
    assert_eq!(half.advice(), Advice::Recover(0), "{half}");
    assert!(half.quorums[0].is_met() && !half.quorums[1].is_met());
    assert!(half.to_string().contains("At hand are 0 of 3 voters, 2 are needed"), "{half}");
    assert!(look(&disk, 1).to_string().contains("majorities both of node 3, node 4 and node 5"));
    assert_eq!(survey_of(&disk, &[1, 3, 4]).advice(), Advice::Start);
    let done = recover(&shared(&disk), &dir(1), &options(&[2], false)).unwrap();
    assert_eq!(done.plan.dismissed, [2, 3, 4, 5]);
    let membership = look(&disk, 1).membership.unwrap();
    assert!(membership.conf_state.voters_outgoing.is_empty());
}
