//! Silent corruption: every single flipped bit of a log and its identity.

use super::*;

struct Image {
    vfs: FaultyVfs,
    whole: Recovered,
    /// What is left when the last write is dropped.
    without_last: Recovered,
}

fn image(steps: &[Step]) -> Image {
    let vfs = FaultyVfs::new();
    let (mut wal, ..) = load(&vfs).unwrap();
    let mut states = vec![Recovered::default()];
    for step in steps {
        step.run(&mut wal).unwrap();
        states.push(step.states(states.last().unwrap()).pop().unwrap());
    }
    drop(wal);
    let whole = states.pop().unwrap();
    Image { vfs, whole, without_last: states.pop().unwrap() }
}

/// What the flips of one image came to.
#[derive(Debug, Default)]
struct Tally {
    refused: usize,
    harmless: usize,
    dropped: usize,
}

/// Flips one bit in `stride`; any odd stride meets every place in a byte.
fn flip(image: &Image, name: &str, stride: usize) -> Tally {
    let mut tally = Tally::default();
    for file in image.vfs.list(dir()).unwrap() {
        let path = dir().join(&file);
        let original = image.vfs.contents(&path).unwrap();
        for bit in (0..original.len() * 8).step_by(stride) {
            let mut bytes = original.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let vfs = image.vfs.fork();
            vfs.set_contents(&path, bytes);
            let what = format!("{name}: bit {bit} (byte {}) of {file}", bit / 8);
            match load(&vfs) {
                Err(StorageError::Corrupt { path, remedy, .. }) => {
                    assert!(path.starts_with(dir()) && !remedy.is_empty(), "{what}");
                    tally.refused += 1;
                }
                Err(StorageError::Foreign { .. }) => tally.refused += 1,
                Err(other) => panic!("{what}: {other}"),
                Ok((_, found, tail)) => {
                    assert_eq!(found.hard_state, image.whole.hard_state, "{what}: a vote is lost");
                    if found == image.whole {
                        tally.harmless += 1;
                    } else {
                        assert_eq!(found, image.without_last, "{what}");
                        assert!(tail.is_some(), "{what}: dropped and not reported");
                        tally.dropped += 1;
                    }
                }
            }
        }
    }
    tally
}

fn steps(last: Vec<Step>) -> Vec<Step> {
    let first = vec![
        Step::Identify(1),
        Step::Append(vec![vote(3, 2), membership("members")]),
        Step::Append(vec![entries(1, 3, 3, 40), entries(4, 4, 3, 300)]),
        Step::Append(vec![entries(4, 5, 3, 300)]),
        Step::Append(vec![snapshot(at(2, 3), false)]),
        Step::Compact(at(1, 3)),
    ];
    first.into_iter().chain(last).collect()
}

/// Only the last write of an unsealed log may go, reported, and never with a vote.
#[test]
fn a_flipped_bit_of_an_unsealed_log_is_refused_or_costs_the_last_write_alone() {
    let image = image(&steps(vec![Step::Append(vec![entries(6, 6, 3, 30)])]));
    let tally = flip(&image, "unsealed", 1);
    assert!(tally.dropped > 8 * 48, "{tally:?}");
    assert!(tally.refused > 8 * 1000, "{tally:?}");
}

/// A sealed log may miss nothing.
#[test]
fn a_flipped_bit_of_a_sealed_log_costs_nothing() {
    let image = image(&steps(vec![Step::Append(vec![entries(6, 6, 3, 30)]), Step::Close]));
    let tally = flip(&image, "sealed", 1);
    assert_eq!(tally.dropped, 0, "{tally:?}");
    assert!(tally.refused > 8 * 1000, "{tally:?}");
}

/// A vote is sealed at once: damage to it is refused although the log was not closed.
#[test]
fn a_flipped_bit_of_the_last_vote_is_refused() {
    let image = image(&[Step::Identify(1), Step::Append(vec![vote(8, 2)])]);
    let tally = flip(&image, "vote", 1);
    assert_eq!(tally.dropped, 0, "{tally:?}");
    assert!(tally.refused > 8 * 200, "{tally:?}");
}

/// A new segment whose first write is the last of the log: it may go, the one before it may not.
#[test]
fn a_flipped_bit_around_a_change_of_segments() {
    let more =
        vec![Step::Append(vec![entries(6, 6, 3, 300)]), Step::Append(vec![entries(7, 7, 3, 700)])];
    let image = image(&steps(more));
    assert_eq!(image.vfs.list(dir()).unwrap().iter().filter(|n| n.contains("wal-")).count(), 2);
    let tally = flip(&image, "change", 3);
    assert!(tally.dropped > 8 * 700 / 3, "{tally:?}");
}

/// In files that were used before, old frames stand behind the new ones.
#[test]
fn a_flipped_bit_of_a_recycled_log() {
    let mut more = Vec::new();
    for i in 6..16 {
        more.push(Step::Append(vec![entries(i, i, 3, 600), snapshot(at(i, 3), false)]));
        more.push(Step::Compact(at(i - 1, 3)));
    }
    more.push(Step::Append(vec![entries(16, 16, 3, 200)]));
    let image = image(&steps(more));
    let files = image.vfs.list(dir()).unwrap();
    assert!(files.len() <= 7 && image.whole.entries.len() == 2, "{files:?}");
    let tally = flip(&image, "recycled", 11);
    assert!(tally.dropped > 8 * 200 / 11, "{tally:?}");
    assert!(tally.refused > 8 * 600 / 11, "{tally:?}");
}

/// The cut of an old segment is not synced: if it is undone, the segment that took over repeats
/// the number of a write that is whole in the old one. Damage to its header is damage all the same.
#[test]
fn a_damaged_segment_that_took_over_is_refused_even_if_the_old_one_is_whole() {
    let before = image(&steps(vec![Step::Append(vec![entries(6, 6, 3, 30)])]));
    let old = dir().join("wal-00000001.seg");
    let uncut = before.vfs.contents(&old).unwrap();
    let (mut wal, ..) = load(&before.vfs).unwrap();
    wal.append(&[entries(7, 7, 3, 30)]).unwrap();
    drop(wal);
    assert!(before.vfs.contents(&old).unwrap().len() < uncut.len(), "it was cut");
    before.vfs.set_contents(&old, uncut);
    assert_eq!(load(&before.vfs.fork()).unwrap().1.entries.len(), 6);
    let new = dir().join("wal-00000002.seg");
    let mut bytes = before.vfs.contents(&new).unwrap();
    bytes[40] ^= 1;
    before.vfs.set_contents(&new, bytes);
    let error = load(&before.vfs).unwrap_err();
    assert!(matches!(error, StorageError::Corrupt { .. }), "{error}");
}
