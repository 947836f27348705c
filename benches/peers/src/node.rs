//! A node in a process of its own: it takes commands as JSON lines from stdin and answers each
//! with one on stdout.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use peers::Result;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::load::{self, Load};
use crate::variants::{self, Variant};

/// A node that does not say what it sees within this time sees nothing.
const PATIENCE: Duration = Duration::from_secs(2);

/// How a node is told who it is.
#[derive(Clone, Debug, clap::Args)]
pub struct Setup {
    /// What runs in it.
    #[arg(value_enum)]
    pub variant: Variant,
    /// Its place in the list of addresses, from 1.
    #[arg(long)]
    pub id: u64,
    /// Where every node is reached.
    #[arg(long, value_delimiter = ',')]
    pub addrs: Vec<String>,
    /// Where it may write.
    #[arg(long)]
    pub dir: PathBuf,
}

impl Setup {
    /// This node's own address.
    pub fn addr(&self) -> &str {
        self.addrs.get(self.id as usize - 1).map_or("", String::as_str)
    }

    /// Ids and addresses of all.
    pub fn members(&self) -> impl Iterator<Item = (u64, &str)> {
        (1..).zip(self.addrs.iter().map(String::as_str))
    }
}

/// What a node sees of its cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Its own id.
    pub id: u64,
    /// Who leads; 0: nobody, or it does not know.
    pub leader: u64,
    /// Since which election; always 0 of those that do not tell.
    pub term: u64,
    /// How many vote.
    pub voters: usize,
}

/// What is asked of a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Command {
    /// Answered with a [`View`].
    View,
    /// Answered with a [`Measured`](peers::results::Measured).
    Load(Load),
}

/// A handle of a node, in its process; a clone goes to every client.
pub trait Peer: Clone + Send + Sync + 'static {
    /// Replicates a command; done when it is applied and answered.
    fn put(&self, command: Vec<u8>) -> impl Future<Output = Result<()>> + Send;

    /// A linearizable read.
    fn get(&self, key: u64) -> impl Future<Output = Result<Vec<u8>>> + Send;

    /// What it sees.
    fn view(&self) -> impl Future<Output = Result<View>> + Send;
}

/// Runs a node until stdin ends.
pub fn run(setup: Setup) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(variants::run(setup))
}

/// Obeys until stdin ends: then whoever started this process is gone.
pub async fn serve<P: Peer>(peer: P) -> Result<()> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let answer = match serde_json::from_str(&line)? {
            Command::View => {
                let view = tokio::time::timeout(PATIENCE, peer.view()).await;
                serde_json::to_string(&view.ok().and_then(Result::ok).unwrap_or_default())?
            }
            Command::Load(load) => serde_json::to_string(&load::run(&peer, &load).await)?,
        };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    std::process::exit(0)
}
