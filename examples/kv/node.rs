//! One node: raft, the HTTP server, and an orderly end.
//!
//! The start is made hard to get wrong. Only a person who says `--found` founds a cluster, and
//! only on an empty directory; every other empty node waits until it finds a cluster to join. A
//! node with data resumes, whatever flags it is given. So a node whose disk was lost can never
//! found a second cluster by being restarted.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use clap::Args;
use raftline::{Config, Error, Mailbox, Raft};
use slog::{Drain, Logger, info, o, warn};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use crate::store::Kv;
use crate::{Failure, http};

/// Between two looks for a leader.
const ASK_AGAIN: Duration = Duration::from_millis(300);
/// How long open HTTP connections may hold up the end of the process.
const HTTP_GRACE: Duration = Duration::from_secs(1);

/// The flags of a node.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// This node's id, unique in the cluster and not 0.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    id: u64,
    /// Where this node listens for the others, host:port.
    #[arg(long)]
    raft_addr: String,
    /// Where the other nodes reach this one, if that is not where it listens: behind a proxy,
    /// or in a container.
    #[arg(long)]
    advertise_addr: Option<String>,
    /// Where HTTP clients reach this node, host:port.
    #[arg(long)]
    http_addr: String,
    /// The raft address of another node; several may be given.
    #[arg(long)]
    peer: Vec<String>,
    /// Where this node keeps its data; default: raftline-<id> in the working directory.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Found a new cluster if the data directory is empty. Say it to one node, once.
    #[arg(long)]
    found: bool,
    /// A JSON file with settings of the library, such as {"heartbeat": "50ms"}; the fields are
    /// those of `raftline::Config`.
    #[arg(long)]
    config: Option<PathBuf>,
}

impl Flags {
    /// The library's settings: those of the file, and what has a flag of its own.
    fn config(&self, data_dir: &Path) -> Result<Config, Failure> {
        let config = match &self.config {
            Some(file) => {
                let json = std::fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?;
                serde_json::from_slice(&json).map_err(|e| format!("{}: {e}", file.display()))?
            }
            None => Config::default(),
        };
        let advertise_addr = self.advertise_addr.clone().or(config.advertise_addr);
        let (data_dir, peers) = (Some(data_dir.to_owned()), self.peer.clone());
        Ok(Config { data_dir, peers, advertise_addr, ..config })
    }
}

type Running = JoinHandle<raftline::Result<()>>;

/// Runs a node until it leaves, is told to stop, or fails.
///
/// # Errors
/// In words, with what to do.
pub(crate) async fn run(flags: Flags) -> Result<(), Failure> {
    // From here on a signal ends the node in order, whatever it is doing.
    let mut told = pin!(stop_signal()?);
    let logger = logger().new(o!("node" => flags.id));
    let data_dir =
        flags.data_dir.clone().unwrap_or_else(|| PathBuf::from(format!("raftline-{}", flags.id)));
    let config = flags.config(&data_dir)?;
    let raft = Raft::new(flags.raft_addr.as_str(), Kv::default(), logger.clone(), config)?;
    let mailbox = raft.mailbox();
    let listener = tokio::net::TcpListener::bind(flags.http_addr.as_str())
        .await
        .map_err(|e| format!("cannot listen for HTTP on {}: {e}", flags.http_addr))?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let stopped = async move { drop(stopped.await) };
    let serving = tokio::spawn(http::serve(listener, mailbox.clone(), stopped));

    let started = tokio::select! {
        started = start(raft, &flags, &data_dir, &logger) => Some(started?),
        () = &mut told => None,
    };
    let ended = match started {
        Some(running) => supervise(running, told, &mailbox, &logger).await,
        None => Ok(()),
    };
    // Answers that are on their way, such as that of `leave`, still get out.
    drop(stop);
    let _ = tokio::time::timeout(HTTP_GRACE, serving).await;
    info!(logger, "stopped");
    ended
}

/// Decides how this node starts, waiting for a leader where it must.
async fn start(
    raft: Raft<Kv>,
    flags: &Flags,
    data_dir: &Path,
    logger: &Logger,
) -> Result<Running, Failure> {
    // NB: where the settings name an address to advertise, that one counts.
    let (id, addr) = (flags.id, flags.raft_addr.clone());
    // A node with data knows its cluster, and may be the one that the others wait for: it asks
    // nobody. Whichever of these is called, it resumes.
    if std::fs::read_dir(data_dir).is_ok_and(|mut dir| dir.next().is_some()) {
        info!(logger, "resuming");
        return Ok(match flags.peer.first().filter(|_| !flags.found) {
            Some(peer) => tokio::spawn(raft.join(id, addr, None, peer.clone())),
            None => tokio::spawn(raft.lead(id)),
        });
    }
    let mut told = false;
    loop {
        match raft.find_leader_info(flags.peer.clone()).await {
            Ok(Some((leader, leader_addr))) => {
                info!(logger, "joining"; "leader" => leader, "addr" => &leader_addr);
                return Ok(tokio::spawn(raft.join(id, addr, Some(leader), leader_addr)));
            }
            Ok(None) | Err(Error::NoLeader) => {}
            Err(e) => return Err(e.into()),
        }
        match flags.peer.first() {
            _ if flags.found => return Ok(tokio::spawn(raft.lead(id))),
            None => return Err("give --peer to join a cluster, or --found to found one".into()),
            Some(_) if told => {}
            Some(_) => {
                warn!(
                    logger, "empty, and no peer knows a leader; waiting. Start one node with \
                    --found if there is no cluster yet"; "peers" => flags.peer.join(" ")
                );
                told = true;
            }
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// Waits for the end of the node, or ends it when asked to.
async fn supervise(
    mut running: Running,
    told: impl Future<Output = ()>,
    mailbox: &Mailbox,
    logger: &Logger,
) -> Result<(), Failure> {
    tokio::select! {
        ended = &mut running => return Ok(ended??),
        () = told => {}
    }
    info!(logger, "asked to stop");
    mailbox.shutdown().await?;
    Ok(running.await??)
}

/// Resolves at ctrl-c or SIGTERM.
fn stop_signal() -> Result<impl Future<Output = ()> + Send + 'static, Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

fn logger() -> Logger {
    let decorator = slog_term::TermDecorator::new().stderr().build();
    let drain = slog_term::FullFormat::new(decorator).build();
    let drain = drain.filter_level(slog::Level::Info).fuse();
    Logger::root(slog_async::Async::new(drain).build().fuse(), o!())
}
