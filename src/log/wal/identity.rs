//! Who a data directory is: one small file, replaced whole, and the checks at the door (R18).
//!
//! It never holds anything that changes with the log. A directory without it is empty or foreign.

use std::path::{Path, PathBuf};

use super::segment::{FORMAT_VERSION, slot_of};
use super::{REMEDY, explain, io_error};
use crate::error::StorageError;
use crate::types::{ClusterId, Identity, Incarnation};
use crate::vfs::{OpenMode, Vfs, read_full};
use crate::zoo::{self, Bug};

const MAGIC: &[u8; 8] = b"RAFTLID\0";
const LENGTH: usize = 80;
const FILE: &str = "identity";
const TEMP: &str = "identity.tmp";
/// The file whose lock is the directory's.
pub(super) const LOCK: &str = "LOCK";
const HAS_CLUSTER: u32 = 1;
const HAS_LOG: u32 = 2;

/// What the identity file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) identity: Identity,
    /// Whether segments were written: then they must not be missing.
    pub(super) has_log: bool,
}

impl Stored {
    fn encode(&self) -> [u8; LENGTH] {
        let Identity { node_id, incarnation, cluster, boot } = self.identity;
        let (cluster_id, raft_id) = cluster.unwrap_or((ClusterId::from_u128(0), 0));
        let mut flags = 0;
        if cluster.is_some() {
            flags |= HAS_CLUSTER;
        }
        if self.has_log {
            flags |= HAS_LOG;
        }
        let mut out = [0u8; LENGTH];
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&flags.to_le_bytes());
        out[16..24].copy_from_slice(&node_id.to_le_bytes());
        out[24..40].copy_from_slice(&incarnation.to_bytes());
        out[40..56].copy_from_slice(&cluster_id.to_bytes());
        out[56..64].copy_from_slice(&raft_id.to_le_bytes());
        out[64..72].copy_from_slice(&boot.to_le_bytes());
        let checksum = crc32fast::hash(&out[..76]);
        out[76..].copy_from_slice(&checksum.to_le_bytes());
        out
    }

    /// The fields of a file whose magic, version and checksum are right.
    fn decode(bytes: &[u8; LENGTH]) -> Option<Self> {
        let u64_at = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
        let flags = u32::from_le_bytes(bytes.get(12..16)?.try_into().ok()?);
        if flags & !(HAS_CLUSTER | HAS_LOG) != 0 {
            return None;
        }
        let cluster = match flags & HAS_CLUSTER {
            0 => None,
            _ => Some((ClusterId::from_slice(bytes.get(40..56)?)?, u64_at(56)?)),
        };
        let incarnation = Incarnation::from_slice(bytes.get(24..40)?)?;
        let identity = Identity { node_id: u64_at(16)?, incarnation, cluster, boot: u64_at(64)? };
        Some(Self { identity, has_log: flags & HAS_LOG != 0 })
    }

    /// The identity in a file's bytes.
    fn parse(path: &Path, bytes: &[u8]) -> Result<Self, StorageError> {
        let foreign = |reason: String| StorageError::Foreign { path: path.to_path_buf(), reason };
        let corrupt = |offset: usize, reason: &str| StorageError::Corrupt {
            path: path.to_path_buf(),
            offset: offset as u64,
            reason: reason.to_owned(),
            remedy: REMEDY,
        };
        if bytes.get(..8) != Some(MAGIC) {
            return Err(foreign(
                "is no identity of a raftline node: choose another data directory, or, if this \
                 node ran here before, remove it from the cluster and let it join again with an \
                 empty one"
                    .to_owned(),
            ));
        }
        let version = bytes.get(8..12).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
        if let Some(version) = version.filter(|v| *v != FORMAT_VERSION) {
            return Err(foreign(wrong_version(version)));
        }
        let Ok(whole) = <&[u8; LENGTH]>::try_from(bytes) else {
            return Err(corrupt(bytes.len().min(LENGTH), "its length is not that of an identity"));
        };
        if crc32fast::hash(&whole[..76]).to_le_bytes() != whole[76..] {
            return Err(corrupt(0, "its checksum is wrong"));
        }
        Self::decode(whole).ok_or_else(|| corrupt(12, "it holds flags that are not known"))
    }
}

/// What to say about another format version.
pub(super) fn wrong_version(version: u32) -> String {
    format!(
        "has format version {version}, this release reads version {FORMAT_VERSION}: start the \
         release that wrote it"
    )
}

/// Reads the identity file of a directory; None when there is none.
pub(super) fn read(vfs: &dyn Vfs, dir: &Path) -> Result<Option<Stored>, StorageError> {
    let path = dir.join(FILE);
    let file = match vfs.open(&path, OpenMode::Read) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_error("open identity", &path)(explain(e))),
    };
    // One byte more than there should be: a longer file is noticed.
    let mut bytes = [0u8; LENGTH + 1];
    let n = read_full(&*file, &mut bytes, 0).map_err(io_error("read identity", &path))?;
    Stored::parse(&path, &bytes[..n]).map(Some)
}

/// Replaces the identity file: temp, fsync, rename, fsync of the directory.
pub(super) fn write(vfs: &dyn Vfs, dir: &Path, stored: &Stored) -> Result<(), StorageError> {
    let (path, temp) = (dir.join(FILE), dir.join(TEMP));
    match vfs.remove(&temp) {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(io_error("remove", &temp)(e)),
    }
    let mut file = vfs.open(&temp, OpenMode::Create).map_err(io_error("create", &temp))?;
    file.write_all_at(&stored.encode(), 0).map_err(io_error("write", &temp))?;
    if !zoo::has(Bug::IdentityUnsynced) {
        file.sync_data().map_err(io_error("sync", &temp))?;
    }
    drop(file);
    vfs.rename(&temp, &path).map_err(io_error("replace identity", &path))?;
    vfs.sync_dir(dir).map_err(io_error("sync directory", dir))
}

/// Segment files of a directory by the number in their names; refuses a directory that holds
/// files of others, or a log that belongs to nobody.
pub(super) fn survey(
    vfs: &dyn Vfs,
    dir: &Path,
    identified: bool,
) -> Result<Vec<(u64, PathBuf)>, StorageError> {
    let mut segments = Vec::new();
    let names = vfs.list(dir).map_err(|e| io_error("list", dir)(explain(e)))?;
    for name in names {
        let path = dir.join(&name);
        if let Some(slot) = slot_of(&name) {
            if !identified {
                let reason = "belongs to a log whose identity file is missing: restore it, or \
                              remove this node from the cluster and let it join again with an \
                              empty data directory";
                return Err(StorageError::Foreign { path, reason: reason.to_owned() });
            }
            segments.push((slot, path));
        } else if !identified && ![FILE, TEMP, LOCK].contains(&name.as_str()) {
            let reason = "was not written by raftline, and the directory has no identity of a \
                          node: use an empty data directory";
            return Err(StorageError::Foreign { path, reason: reason.to_owned() });
        }
    }
    segments.sort();
    Ok(segments)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::vfs::MemVfs;

    fn stored(cluster: bool, has_log: bool) -> Stored {
        let identity = Identity {
            node_id: 3,
            incarnation: Incarnation::from_u128(0xabcdef),
            cluster: cluster.then(|| (ClusterId::from_u128(99), 7)),
            boot: 12,
        };
        Stored { identity, has_log }
    }

    #[test]
    fn it_is_read_back_and_replaced() {
        let (vfs, dir) = (MemVfs::default(), Path::new("/d"));
        vfs.create_dir_all(dir).unwrap();
        assert_eq!(read(&vfs, dir).unwrap(), None);
        for (cluster, has_log) in [(false, false), (true, false), (false, true), (true, true)] {
            write(&vfs, dir, &stored(cluster, has_log)).unwrap();
            assert_eq!(read(&vfs, dir).unwrap(), Some(stored(cluster, has_log)));
        }
        assert_eq!(vfs.list(dir).unwrap(), [FILE]);
    }

    #[test]
    fn any_flipped_bit_and_any_other_length_is_refused() {
        let path = Path::new("/d/identity");
        let bytes = stored(true, true).encode();
        for bit in 0..LENGTH * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            let error = Stored::parse(path, &damaged).unwrap_err().to_string();
            assert!(error.contains("/d/identity"), "{error}");
        }
        for length in 0..LENGTH {
            assert!(Stored::parse(path, &bytes[..length]).is_err(), "{length} bytes");
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert!(Stored::parse(path, &longer).is_err());
    }

    #[test]
    fn another_version_names_both_versions() {
        let mut bytes = stored(true, true).encode();
        bytes[8] = 9;
        let error = Stored::parse(Path::new("identity"), &bytes).unwrap_err().to_string();
        assert!(error.contains("version 9") && error.contains("version 1"), "{error}");
    }
}
