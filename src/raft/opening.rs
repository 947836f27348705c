//! Where a node's directory and addresses come from: what is configured, told, or the default.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::{Config, Durability};
use crate::driver::boot::{Opened, Storage};
use crate::driver::shared::Shared;
use crate::error::{Error, Result};
use crate::log::LogStorage;
use crate::log::memory::MemoryLog;
use crate::log::wal::{Wal, WalOptions};
use crate::offline;
use crate::snapshot::dir::SnapshotDir;
use crate::types::NodeId;
use crate::vfs::{MemVfs, RealVfs, Vfs};

/// Where snapshots are kept, inside the data directory.
const SNAPSHOTS: &str = SnapshotDir::NAME;

/// Where peers reach this node: as configured, as told, or where it listens.
pub(super) fn own_addr(
    config: &Config,
    told: Option<String>,
    listen: Option<String>,
) -> Result<String> {
    let Some(addr) = config.advertise_addr.clone().or(told).or(listen) else {
        return Err(Error::Config {
            field: "advertise_addr",
            reason: "the node listens on every interface; say at which address its peers reach it"
                .to_owned(),
        });
    };
    if is_wildcard(&addr) {
        return Err(Error::Config {
            field: "advertise_addr",
            reason: format!("{addr} cannot be reached by peers; name one of this machine's"),
        });
    }
    Ok(addr)
}

/// Whether the configured directory holds anything. False where it cannot be told: the node's id
/// is part of the default directory, and not known before it starts.
pub(super) fn has_data(config: &Config) -> bool {
    let dir = config.data_dir.as_ref().filter(|_| config.durability == Durability::Fsync);
    dir.is_some_and(|dir| RealVfs.list(dir).is_ok_and(|names| !names.is_empty()))
}

/// Opens log and snapshots where the configuration says.
pub(super) fn open(
    shared: &Shared,
    log: Option<(Box<dyn LogStorage>, Arc<dyn Vfs>)>,
    id: NodeId,
) -> Result<Opened> {
    let config = &shared.config;
    let dir = config.data_dir.clone().unwrap_or_else(|| PathBuf::from(format!("raftline-{id}")));
    let (log, vfs): (Box<dyn LogStorage>, Arc<dyn Vfs>) = match (log, config.durability) {
        (Some((log, vfs)), _) => (log, vfs),
        (None, Durability::Volatile) => (Box::new(MemoryLog::new()), Arc::new(MemVfs::default())),
        (None, Durability::Fsync) => durable(&dir, config)?,
    };
    let snapshots = SnapshotDir::open(vfs.clone(), dir.join(SNAPSHOTS))?;
    let opened = Opened::open(Storage { log, snapshots, dir: dir.clone() }, id)?;
    let membership = opened.membership()?;
    let moved = offline::live_addresses(&*vfs, &dir, membership.as_ref())?;
    shared.assume(membership.as_ref(), moved);
    Ok(opened)
}

fn durable(dir: &Path, config: &Config) -> Result<(Box<dyn LogStorage>, Arc<dyn Vfs>)> {
    let vfs: Arc<dyn Vfs> = Arc::new(RealVfs);
    let options = WalOptions { segment_size: config.log_segment_size, ..WalOptions::default() };
    Ok((Box::new(Wal::open(vfs.clone(), dir, options)?), vfs))
}

pub(super) fn require_runtime() -> Result<()> {
    match tokio::runtime::Handle::try_current() {
        Ok(_) => Ok(()),
        Err(e) => Err(Error::Internal {
            part: "start",
            reason: format!("start, lead and join must be awaited in a tokio runtime: {e}"),
        }),
    }
}

pub(super) fn check_id(id: NodeId) -> Result<()> {
    if id != 0 {
        return Ok(());
    }
    Err(Error::Config { field: "id", reason: "a node id must not be 0".to_owned() })
}

pub(super) fn resolve<A: ToSocketAddrs>(listen: A) -> Result<SocketAddr> {
    let failed = |source| Error::Listen {
        addr: "the given address".to_owned(),
        hint: "Give a host:port that this machine has",
        source,
    };
    listen.to_socket_addrs().map_err(failed)?.next().ok_or_else(|| {
        failed(std::io::Error::new(std::io::ErrorKind::NotFound, "it resolves to nothing"))
    })
}

fn is_wildcard(addr: &str) -> bool {
    addr.parse::<SocketAddr>().is_ok_and(|a| a.ip().is_unspecified())
}
