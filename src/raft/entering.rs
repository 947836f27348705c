//! How a node gets into its cluster: it resumes, founds, joins, or does what is right (`start`).
//!
//! Invariants:
//! - a directory with data belongs to its cluster for ever, whatever it is told;
//! - an empty one founds alone only when it is told to, and never beside a cluster that answers;
//! - one that has agreed to found with others does nothing else before that is settled.

use std::path::PathBuf;
use std::sync::Arc;

use slog::warn;

use crate::driver::boot::{Opened, blocking};
use crate::driver::caller::Caller;
use crate::driver::changes;
use crate::driver::founding::decide::record;
use crate::driver::founding::{self, End};
use crate::driver::joining::{self, Look};
use crate::driver::shared::{Phase, Shared};
use crate::error::{Error, Result};
use crate::types::{ClusterId, Membership};

/// How a node starts when its directory is empty.
pub(super) enum Entry {
    /// Alone.
    Found,
    /// Through one of these.
    Join { known: Vec<String> },
    /// Whatever is right, given these.
    Start { given: Vec<String> },
}

impl Entry {
    /// The addresses that the call was given.
    pub(super) fn given(&self) -> &[String] {
        match self {
            Self::Found => &[],
            Self::Join { known: given } | Self::Start { given } => given,
        }
    }
}

/// Makes sure that the directory belongs to a cluster; `known` are further addresses.
pub(super) async fn enter(
    shared: &Arc<Shared>,
    caller: &Caller,
    opened: Opened,
    addr: &str,
    entry: Entry,
    known: Vec<String>,
) -> Result<Opened> {
    let all = unique(entry.given().iter().cloned().chain(known), addr);
    if let Some((cluster, _)) = opened.identity.cluster {
        return resume(shared, caller, opened, &entry, all, cluster).await;
    }
    for addr in entry.given() {
        changes::check_addr(addr).map_err(|_| Error::Config {
            field: "peers",
            reason: format!("{addr:?} is no host:port address, such as 10.0.0.1:5000"),
        })?;
    }
    let interrupted = opened.interrupted_founding()?;
    let opened = match (entry, interrupted) {
        // It was agreed upon, and takes effect whatever this node does.
        (_, Some(record)) if record.members.len() > 1 => found(opened, record).await?,
        (Entry::Found, interrupted) => lead(shared, caller, opened, addr, all, interrupted).await?,
        (Entry::Start { .. }, Some(record)) => {
            lead(shared, caller, opened, addr, all, Some(record)).await?
        }
        (Entry::Start { given }, None) => {
            return start(shared, caller, opened, addr, &given, all).await;
        }
        (Entry::Join { .. }, Some(_)) => {
            return Err(refuse(
                opened,
                "it was about to found a cluster of its own and holds nothing yet; empty it, then \
                 join",
            ));
        }
        (Entry::Join { .. }, None) => {
            unbound(&opened)?;
            return join(shared, caller, opened, addr, &all).await;
        }
    };
    shared.know(opened.identity, opened.membership()?);
    Ok(opened)
}

/// A directory that belongs to a cluster goes on in it.
async fn resume(
    shared: &Arc<Shared>,
    caller: &Caller,
    opened: Opened,
    entry: &Entry,
    known: Vec<String>,
    cluster: ClusterId,
) -> Result<Opened> {
    if !entry.given().is_empty() {
        let asked = unique(entry.given().iter().cloned(), &shared.view().addr);
        drop(tokio::spawn(warn_of_another(shared.clone(), caller.clone(), asked, cluster)));
    }
    if opened.membership()?.is_none() {
        if known.is_empty() {
            return Err(unmet(opened.storage.dir, cluster));
        }
        let membership = joining::find_membership(shared, caller, &known, cluster).await;
        meet(shared, caller, &opened, membership);
    }
    Ok(opened)
}

/// Founds a cluster of one, unless there is one already.
async fn lead(
    shared: &Arc<Shared>,
    caller: &Caller,
    opened: Opened,
    addr: &str,
    known: Vec<String>,
    interrupted: Option<Membership>,
) -> Result<Opened> {
    unbound(&opened)?;
    let look = joining::find_cluster(caller, &known, shared.config.request_timeout).await;
    if let Some((addr, cluster)) = look.cluster {
        return Err(Error::ClusterExists { addr, cluster });
    }
    if shared.config.min_members > 1 {
        return Err(founding::too_few(1, shared.config.min_members));
    }
    warn_of_unseen(shared, &look);
    let founding = match interrupted {
        Some(record) => record,
        None => {
            let cluster = ClusterId::random()
                .map_err(|e| Error::Internal { part: "random generator", reason: e.to_string() })?;
            let own = (opened.identity.node_id, opened.identity.incarnation, addr);
            record(cluster, [own].into_iter())
        }
    };
    found(opened, founding).await
}

/// Whoever founds alone should know who could not be asked.
fn warn_of_unseen(shared: &Shared, look: &Look) {
    let Look { cluster: _, empty, silent } = look;
    if !silent.is_empty() {
        warn!(shared.logger, "founds a cluster of one although not every address answered: if one \
            of them belongs to a cluster, there are two now. Raft::start waits for them instead";
            "silent" => silent.join(" "));
    }
    if !empty.is_empty() {
        warn!(shared.logger, "founds a cluster of one although others are starting, too: each that \
            does the same founds another. Raft::start founds one with all of them";
            "others" => empty.join(" "));
    }
}

async fn found(mut opened: Opened, record: Membership) -> Result<Opened> {
    blocking(move || opened.found(&record).map(|()| opened)).await
}

/// Enters a cluster that exists.
async fn join(
    shared: &Arc<Shared>,
    caller: &Caller,
    mut opened: Opened,
    addr: &str,
    known: &[String],
) -> Result<Opened> {
    if known.is_empty() {
        let reason = format!(
            "{addr} is where this node itself is reached; give the address of another member, or \
             found a cluster with start or lead"
        );
        return Err(Error::Config { field: "leader_addr", reason });
    }
    let joined = joining::join(shared, caller, &opened.identity, addr, known).await?;
    let (cluster, raft_id) = (joined.cluster_id, joined.raft_id);
    let opened = blocking(move || opened.belong(cluster, raft_id).map(|()| opened)).await?;
    // The transport can answer the others before the first snapshot has come.
    meet(shared, caller, &opened, joined.membership);
    Ok(opened)
}

/// Does what is right on an empty directory: enters a cluster, or founds one with the others.
async fn start(
    shared: &Arc<Shared>,
    caller: &Caller,
    opened: Opened,
    addr: &str,
    given: &[String],
    known: Vec<String>,
) -> Result<Opened> {
    let mut seat = shared.desk.open();
    match founding::run(shared, caller, opened, addr, given, &mut seat).await? {
        // NB: whoever asks meanwhile is told of the cluster before the seat is gone.
        End::Founded(opened) => {
            shared.know(opened.identity, opened.membership()?);
            Ok(opened)
        }
        End::Join(opened, through) => {
            drop(seat);
            let known = unique(through.into_iter().chain(known), addr);
            join(shared, caller, opened, addr, &known).await
        }
    }
}

/// A directory that has agreed to found with others may be a member of their cluster already.
fn unbound(opened: &Opened) -> Result<()> {
    let Some(agreed) = opened.agreed()? else { return Ok(()) };
    let others = agreed.members.iter().filter(|m| m.incarnation != opened.identity.incarnation);
    let others: Vec<&str> = others.map(|m| m.addr.as_str()).collect();
    let reason = format!(
        "it has agreed to found a cluster together with {}, which may have done so; go on with \
         start, or empty it first",
        others.join(", ")
    );
    Err(Error::DataDir { dir: opened.storage.dir.clone(), reason })
}

fn refuse(opened: Opened, reason: &str) -> Error {
    Error::DataDir { dir: opened.storage.dir, reason: reason.to_owned() }
}

/// A node that joined and was stopped before its first snapshot came must ask who the others are.
fn unmet(dir: PathBuf, cluster: ClusterId) -> Error {
    let reason = format!(
        "it has joined cluster {cluster} and holds nothing of it yet; start it with start or join and \
         the address of a member, or name members in Config::peers"
    );
    Error::DataDir { dir, reason }
}

/// Makes the others known, so that the transport can answer them before the first snapshot.
fn meet(shared: &Arc<Shared>, caller: &Caller, opened: &Opened, membership: Membership) {
    shared.know(opened.identity, Some(membership));
    caller.set_peers(shared.clone());
}

/// Says so when a node with data was told to join another cluster than its own: it resumes its
/// own, which may be one that was founded by mistake.
async fn warn_of_another(shared: Arc<Shared>, caller: Caller, addrs: Vec<String>, own: ClusterId) {
    let found = tokio::select! {
        () = shared.reached(Phase::Stopping) => return,
        found = joining::find_cluster(&caller, &addrs, shared.config.request_timeout) => found,
    };
    if let Some((addr, theirs)) = found.cluster.filter(|(_, theirs)| *theirs != own) {
        warn!(shared.logger, "the data directory belongs to another cluster than an address that was \
            given; it resumes its own. To enter the other, start with an empty data directory";
            "addr" => &addr, "own" => %own, "other" => %theirs);
        shared.note_elsewhere(format!(
            "the data directory belongs to cluster {own}, and {addr}, which was given, to cluster \
             {theirs}"
        ));
    }
}

fn unique(addrs: impl Iterator<Item = String>, own: &str) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for addr in addrs {
        if addr != own && !out.contains(&addr) {
            out.push(addr);
        }
    }
    out
}
