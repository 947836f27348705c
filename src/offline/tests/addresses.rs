//! Notes of new addresses: when they count, and what is refused.

use super::*;

fn set(disk: &FaultyVfs, all: &[(NodeId, &str)]) -> Result<Vec<Moved>> {
    let all: Vec<(NodeId, String)> = all.iter().map(|(id, a)| (*id, (*a).to_owned())).collect();
    super::super::addresses::set(&shared(disk), &dir(1), &all)
}

fn live(disk: &FaultyVfs, membership: &Membership) -> Vec<(NodeId, String)> {
    let moved = live_addresses(disk, &dir(1), Some(membership)).unwrap();
    moved.into_iter().map(|m| (m.node_id, m.current)).collect()
}

#[test]
fn a_note_counts_while_the_membership_has_the_member_where_it_was() {
    let (disk, mut m) = (cluster(), membership(&[1, 2, 3], 4));
    let before = image(&disk, &dir(1));
    let moved = set(&disk, &[(1, "new-1:1"), (2, "new-2:1"), (3, "old-3:1")]).unwrap();
    assert_eq!(moved[1].to_string(), "node 2 is recorded at old-2:1 and reached at new-2:1");
    assert_eq!(live(&disk, &m), [(1, "new-1:1".to_owned()), (2, "new-2:1".to_owned())]);
    let report = look(&disk, 1);
    assert_eq!((report.membership.as_ref(), report.moved.len()), (Some(&m), 2), "only noted");
    // The cluster has recorded where member 2 is; it may have moved on since.
    m.members[1].addr = "newer-2:1".to_owned();
    assert_eq!(live(&disk, &m), [(1, "new-1:1".to_owned())]);
    m.members[0].addr = "new-1:1".to_owned();
    assert_eq!(live(&disk, &m), []);
    assert_eq!(image(&disk, &dir(1)), before, "the note is gone");
}

#[test]
fn notes_are_replaced_and_taken_back() {
    let (disk, m) = (cluster(), membership(&[1, 2, 3], 4));
    set(&disk, &[(1, "a:1"), (2, "b:1")]).unwrap();
    set(&disk, &[(3, "c:1")]).unwrap();
    assert_eq!(live(&disk, &m), [(3, "c:1".to_owned())]);
    set(&disk, &[]).unwrap();
    assert_eq!(live(&disk, &m), []);
    assert_eq!(live_addresses(&disk, &dir(1), None).unwrap(), []);
}

#[test]
fn what_cannot_be_an_address_of_a_member_is_refused_by_name() {
    let disk = cluster();
    let before = image(&disk, &dir(1));
    for (all, words) in [
        (&[(9, "a:1")][..], "node 9 is no member of its cluster; the members are 1, 2 and 3"),
        (&[(1, "nowhere")], "\"nowhere\" is no host:port address"),
        (&[(1, "a b:1")], "is no host:port address"),
        (&[(1, "[::]:7")], "[::]:7 cannot be reached by peers"),
        (&[(1, "a:1"), (1, "b:1")], "node 1 is named twice"),
        (&[(1, "a:1"), (2, "a:1")], "nodes 1 and 2 cannot both be at a:1"),
    ] {
        let error = set(&disk, all).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("/data/n1"), "{error}");
    }
    assert_eq!(image(&disk, &dir(1)), before);
}

#[test]
fn a_note_that_cannot_be_read_stops_the_start_and_names_the_line() {
    let (disk, m) = (cluster(), membership(&[1, 2, 3], 4));
    let path = dir(1).join("addresses");
    for (text, words) in [
        ("# head\n1 old-1:1\n", "line 2 is not a node id and two addresses"),
        ("x old-1:1 a:1", "line 1: \"x\" is no node id"),
        ("1 old-1:1 a", "line 1: \"a\" is no host:port address"),
    ] {
        disk.set_contents(&path, text.as_bytes().to_vec());
        let error = live_addresses(&disk, &dir(1), Some(&m)).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("set_addresses"), "{error}");
        assert!(look(&disk, 1).to_string().contains(words));
    }
    disk.set_contents(&path, vec![0xff, 0xfe]);
    assert!(live_addresses(&disk, &dir(1), Some(&m)).is_err());
    // Edited by hand, with comments and blank lines.
    disk.set_contents(&path, b"# mine\n\n  2   old-2:1 new-2:1\n".to_vec());
    assert_eq!(live(&disk, &m), [(2, "new-2:1".to_owned())]);
}

#[test]
fn a_note_that_could_not_be_written_leaves_the_one_before() {
    use crate::testing::vfs::{CrashStyle, Fault};
    let (disk, m) = (cluster(), membership(&[1, 2, 3], 4));
    set(&disk, &[(1, "a:1")]).unwrap();
    let whole = disk.duplicate();
    set(&whole, &[(1, "b:1")]).unwrap();
    for call in 1..=whole.calls() {
        for style in [CrashStyle::KeepAll, CrashStyle::LoseAll, CrashStyle::Seeded(call)] {
            let tried = disk.duplicate();
            tried.fail_at(call, Fault::PowerOff);
            let done = set(&tried, &[(1, "b:1")]);
            let found = live(&tried.crash(style), &m);
            let (old, new) = ([(1, "a:1".to_owned())], [(1, "b:1".to_owned())]);
            assert!(found == new || found == old && done.is_err(), "call {call}: {found:?}");
        }
    }
}
