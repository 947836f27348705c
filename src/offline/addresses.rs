//! The file `addresses` of a data directory: where members are reached, by what a person noted
//! while no node ran.
//!
//! One line for each member: its node id, the address that the membership has, the address that is
//! true. It is a hint like those that peers say of themselves: it never touches the replicated
//! membership. Invariants:
//! - a line counts only while the membership of the directory has the member at the address in the
//!   second column: what the cluster has recorded since is newer than the note;
//! - a line that cannot be read stops the start, with its number: a note that is passed over
//!   silently leaves a cluster that does not find itself.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{listed, refuse};
use crate::error::{Error, Result, StorageError};
use crate::log::wal::{Wal, WalOptions, examine};
use crate::types::{Membership, NodeId};
use crate::vfs::{OpenMode, Vfs, read_full};

const FILE: &str = "addresses";
const TEMP: &str = "addresses.tmp";
/// A membership of thousands of members fits.
const MAX_BYTES: u64 = 4 << 20;
/// As for members on the wire.
const MAX_ADDR: usize = 1 << 10;
const HEAD: &str = "# Where members of this raftline cluster are reached, until it has recorded it \
                    itself.\n# node id, address as recorded, address as it is now\n";

/// A member that is reached elsewhere than the membership says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Moved {
    /// The member.
    pub node_id: NodeId,
    /// Where the membership has it.
    pub recorded: String,
    /// Where it is.
    pub current: String,
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "node {} is recorded at {} and reached at {}",
            self.node_id, self.recorded, self.current
        )
    }
}

fn io(op: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StorageError {
    let path = path.to_path_buf();
    move |source| StorageError::Io { op, path, source }
}

/// What is noted in a directory, whether it still counts or not.
pub(super) fn read(vfs: &dyn Vfs, dir: &Path) -> Result<Vec<Moved>, StorageError> {
    let path = dir.join(FILE);
    let file = match vfs.open(&path, OpenMode::Read) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(io("open", &path)(e)),
    };
    let length = file.len().map_err(io("read", &path))?;
    if length > MAX_BYTES {
        return Err(unreadable(path, format!("it has {length} bytes, above {MAX_BYTES}")));
    }
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    let n = read_full(&*file, &mut bytes, 0).map_err(io("read", &path))?;
    bytes.truncate(n);
    let Ok(text) = String::from_utf8(bytes) else {
        return Err(unreadable(path, "it is no text".to_owned()));
    };
    parse(&text).map_err(|reason| unreadable(path, reason))
}

fn unreadable(path: PathBuf, reason: String) -> StorageError {
    StorageError::Foreign {
        path,
        reason: format!(
            "{reason}; write it anew with raftline::offline::set_addresses, or remove it if the \
             members are where the membership has them"
        ),
    }
}

fn parse(text: &str) -> Result<Vec<Moved>, String> {
    let mut all = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let &[id, recorded, current] = words.as_slice() else {
            return Err(format!("line {number} is not a node id and two addresses"));
        };
        let node_id = id.parse().map_err(|_| format!("line {number}: {id:?} is no node id"))?;
        check_addr(current).map_err(|reason| format!("line {number}: {reason}"))?;
        all.push(Moved { node_id, recorded: recorded.to_owned(), current: current.to_owned() });
    }
    Ok(all)
}

pub(super) fn check_addr(addr: &str) -> Result<(), String> {
    let port = addr.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
    let fits = port.is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port != 0));
    if !fits || addr.len() > MAX_ADDR || addr.contains(char::is_whitespace) {
        return Err(format!("{addr:?} is no host:port address"));
    }
    if addr.parse::<std::net::SocketAddr>().is_ok_and(|a| a.ip().is_unspecified()) {
        return Err(format!("{addr} cannot be reached by peers; name one of the machine's own"));
    }
    Ok(())
}

/// The notes that count; the file goes when none does any more. Only for who holds the lock.
///
/// # Errors
/// `Foreign` when the file cannot be read as what it should be, `Io`.
pub(crate) fn live(
    vfs: &dyn Vfs,
    dir: &Path,
    membership: Option<&Membership>,
) -> Result<Vec<Moved>, StorageError> {
    let mut all = read(vfs, dir)?;
    // Without a membership nothing is known of anybody yet.
    let Some(membership) = membership.filter(|_| !all.is_empty()) else { return Ok(Vec::new()) };
    all.retain(|m| membership.by_node(m.node_id).is_some_and(|known| known.addr == m.recorded));
    if all.is_empty() {
        // Best effort: where it stays, it says nothing.
        let _ = vfs.remove(&dir.join(FILE));
    }
    Ok(all)
}

/// See [`super::set_addresses`].
pub(super) fn set(
    vfs: &Arc<dyn Vfs>,
    dir: &Path,
    addresses: &[(NodeId, String)],
) -> Result<Vec<Moved>> {
    // Before the lock, which would make a directory of a mistyped path.
    if examine::identity(&**vfs, dir)?.is_none() {
        return Err(refuse(dir, "it holds no identity of a node; check the path"));
    }
    // NB: not loaded, so that nothing but the note is written; it holds the lock.
    let _wal = Wal::open(vfs.clone(), dir, WalOptions::default())?;
    let membership = membership(&**vfs, dir)?;
    let moved = moved(dir, &membership, addresses)?;
    write(&**vfs, dir, &moved)?;
    Ok(moved)
}

fn membership(vfs: &dyn Vfs, dir: &Path) -> Result<Membership> {
    let record = examine::examine(vfs, dir)?.and_then(|found| found.recovered.membership);
    let Some(record) = record else {
        return Err(refuse(
            dir,
            "it holds no membership yet; start the node with an address of a member",
        ));
    };
    Membership::decode(record).map_err(|reason| refuse(dir, reason))
}

fn moved(
    dir: &Path,
    membership: &Membership,
    addresses: &[(NodeId, String)],
) -> Result<Vec<Moved>> {
    let mut all: Vec<Moved> = Vec::new();
    for (node_id, current) in addresses {
        let Some(member) = membership.by_node(*node_id) else {
            let ids = listed(membership.members.iter().map(|m| m.node_id));
            return Err(refuse(
                dir,
                format!("node {node_id} is no member of its cluster; the members are {ids}"),
            ));
        };
        check_addr(current).map_err(|reason| refuse(dir, reason))?;
        if all.iter().any(|m| m.node_id == *node_id) {
            return Err(refuse(dir, format!("node {node_id} is named twice; name it once")));
        }
        if let Some(other) = all.iter().find(|m| m.current == *current) {
            let other = other.node_id;
            let reason = format!("nodes {other} and {node_id} cannot both be at {current}");
            return Err(refuse(dir, reason));
        }
        let (recorded, current) = (member.addr.clone(), current.clone());
        all.push(Moved { node_id: *node_id, recorded, current });
    }
    all.retain(|m| m.recorded != m.current);
    Ok(all)
}

/// Replaces the file: temp, fsync, rename, fsync of the directory.
fn write(vfs: &dyn Vfs, dir: &Path, moved: &[Moved]) -> Result<(), Error> {
    let (path, temp) = (dir.join(FILE), dir.join(TEMP));
    remove(vfs, &temp)?;
    if moved.is_empty() {
        remove(vfs, &path)?;
        return Ok(vfs.sync_dir(dir).map_err(io("sync directory", dir))?);
    }
    let mut text = HEAD.to_owned();
    for m in moved {
        text.push_str(&format!("{} {} {}\n", m.node_id, m.recorded, m.current));
    }
    let mut file = vfs.open(&temp, OpenMode::Create).map_err(io("create", &temp))?;
    file.write_all_at(text.as_bytes(), 0).map_err(io("write", &temp))?;
    file.sync_data().map_err(io("sync", &temp))?;
    drop(file);
    vfs.rename(&temp, &path).map_err(io("replace", &path))?;
    Ok(vfs.sync_dir(dir).map_err(io("sync directory", dir))?)
}

fn remove(vfs: &dyn Vfs, path: &Path) -> Result<(), StorageError> {
    match vfs.remove(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(io("remove", path)(e)),
        _ => Ok(()),
    }
}
