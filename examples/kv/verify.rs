//! Reads every line of a text back and compares.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::ProgressBar;
use tokio::task::JoinSet;

use crate::Failure;
use crate::client::{self, Client};
use crate::load::bar;
use crate::text::Text;

/// A line that no read answers for this long fails the check.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// The text file.
    file: PathBuf,
    /// The HTTP address of a node; every one given is checked.
    #[arg(long, required = true)]
    node: Vec<String>,
    /// Read what the node holds, without asking the leader.
    #[arg(long)]
    stale: bool,
    /// Clients at a time.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    clients: u16,
}

/// What reading a text back found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) intact: usize,
    pub(crate) missing: usize,
    pub(crate) different: usize,
}

/// Checks a file on every node given.
///
/// # Errors
/// When a line is missing, different, or could not be read.
pub(crate) async fn run(flags: Flags) -> Result<(), Failure> {
    let text = Text::read(&flags.file)?;
    let mut bad = 0;
    for node in &flags.node {
        client::any_reachable(std::slice::from_ref(node)).await?;
        let (found, took) = read_back(&text, node, flags.stale, flags.clients).await?;
        let rate = text.len() as f64 / took.as_secs_f64();
        println!(
            "{node}: {} lines intact, {} missing, {} different; {rate:.0} reads/s",
            found.intact, found.missing, found.different
        );
        bad += found.missing + found.different;
    }
    if bad > 0 { Err(format!("{bad} lines are not as they were written").into()) } else { Ok(()) }
}

/// Reads every line from one node.
///
/// # Errors
/// When a read failed for a minute.
pub(crate) async fn read_back(
    text: &Text,
    node: &str,
    stale: bool,
    clients: u16,
) -> Result<(Found, Duration), Failure> {
    let started = Instant::now();
    let bar = bar(text.len(), "reading");
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let client = Client::new(node);
        tasks.spawn(read_some(client, text.clone(), next.clone(), stale, bar.clone()));
    }
    let mut found = Found::default();
    while let Some(ended) = tasks.join_next().await {
        let part = ended??;
        found.intact += part.intact;
        found.missing += part.missing;
        found.different += part.different;
    }
    bar.finish_and_clear();
    Ok((found, started.elapsed()))
}

async fn read_some(
    mut client: Client,
    text: Text,
    next: Arc<AtomicUsize>,
    stale: bool,
    bar: ProgressBar,
) -> Result<Found, Failure> {
    let mut found = Found::default();
    loop {
        let Some((path, line)) = text.line(next.fetch_add(1, Ordering::Relaxed)) else {
            return Ok(found);
        };
        let path = if stale { format!("{path}?stale") } else { path };
        match read_one(&mut client, &path).await? {
            Some(value) if value == line.as_bytes() => found.intact += 1,
            Some(_) => found.different += 1,
            None => found.missing += 1,
        }
        bar.inc(1);
    }
}

/// A read changes nothing, so that any failure of it is safe to try again.
async fn read_one(client: &mut Client, path: &str) -> Result<Option<Vec<u8>>, Failure> {
    let started = Instant::now();
    loop {
        let problem = match client.request("GET", path, b"").await {
            Ok(r) if r.status == 200 => return Ok(Some(r.body)),
            Ok(r) if r.status == 404 => return Ok(None),
            Ok(r) => r.text(),
            Err(e) => e.to_string(),
        };
        if started.elapsed() > PATIENCE {
            return Err(format!("{path}: {problem}").into());
        }
        tokio::time::sleep(PAUSE).await;
    }
}
