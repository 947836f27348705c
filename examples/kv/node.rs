//! One node: raft, the HTTP server, and an orderly end.
//!
//! The start is hard to get wrong: every node gets the same list of peers, at every start. A node
//! with data resumes; an empty one enters the cluster that a peer belongs to; and where there is
//! none, all of them together found one. While one of them is missing, the others wait and say so.
//! `{id}` in a flag stands for the node's id, so that the whole command line can be the same on
//! every node, but for `--id`.

use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use clap::Args;
use raftline::{Config, Mailbox, Raft};
use slog::{Drain, Logger, info, o};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use crate::store::Kv;
use crate::{Failure, http};

/// How long open HTTP connections may hold up the end of the process.
const HTTP_GRACE: Duration = Duration::from_secs(1);

/// The flags of a node.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// This node's id, unique in the cluster and not 0.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    id: u64,
    /// Where this node listens for the others, host:port; {id} stands for its id, here and below.
    #[arg(long)]
    raft_addr: String,
    /// Where the other nodes reach this one, if that is not where it listens: behind a proxy,
    /// or in a container.
    #[arg(long)]
    advertise_addr: Option<String>,
    /// Where HTTP clients reach this node, host:port.
    #[arg(long)]
    http_addr: String,
    /// The raft address of a node; say it once per node, the same on every node, this one included.
    /// Without any, this node is alone.
    #[arg(long)]
    peer: Vec<String>,
    /// Where this node keeps its data; default: raftline-<id> in the working directory.
    #[arg(long)]
    data_dir: Option<String>,
    /// A JSON file with settings of the library, such as {"heartbeat": "50ms"}; the fields are
    /// those of `raftline::Config`.
    #[arg(long)]
    config: Option<PathBuf>,
}

impl Flags {
    /// The library's settings: those of the file, and what has a flag of its own.
    fn config(&self) -> Result<Config, Failure> {
        let config = match &self.config {
            Some(file) => {
                let json = std::fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?;
                serde_json::from_slice(&json).map_err(|e| format!("{}: {e}", file.display()))?
            }
            None => Config::default(),
        };
        let advertise_addr = self.advertise_addr.as_deref().map(|addr| self.own(addr));
        let advertise_addr = advertise_addr.or(config.advertise_addr);
        let data_dir = self.data_dir.as_deref().map(|dir| self.own(dir).into());
        let data_dir = data_dir.or(config.data_dir);
        Ok(Config { data_dir, advertise_addr, ..config })
    }

    /// The value of a flag on this node.
    fn own(&self, value: &str) -> String {
        value.replace("{id}", &self.id.to_string())
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
    let config = flags.config()?;
    let (raft_addr, http_addr) = (flags.own(&flags.raft_addr), flags.own(&flags.http_addr));
    let raft = Raft::new(raft_addr.as_str(), Kv::default(), logger.clone(), config)?;
    let mailbox = raft.mailbox();
    let listener = tokio::net::TcpListener::bind(http_addr.as_str())
        .await
        .map_err(|e| format!("cannot listen for HTTP on {http_addr}: {e}"))?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let stopped = async move { drop(stopped.await) };
    let serving = tokio::spawn(http::serve(listener, mailbox.clone(), stopped));

    let running = tokio::spawn(raft.start(flags.id, flags.peer));
    let ended = supervise(running, &mut told, &mailbox, &logger).await;
    // Answers that are on their way, such as that of `leave`, still get out.
    drop(stop);
    let _ = tokio::time::timeout(HTTP_GRACE, serving).await;
    info!(logger, "stopped");
    ended
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
