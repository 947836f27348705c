//! Writes every line of a text under its line number, with many clients at a time.
//!
//! A write that was not applied is safe to send again. One whose outcome is unknown is sent again
//! too: it puts the same value under the same key, and nobody else writes there, so that applying
//! it twice is the same as once.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinSet;

use crate::Failure;
use crate::client::{self, Client};
use crate::text::Text;

/// A line that cannot be written for this long fails the load.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// The text file.
    file: PathBuf,
    /// The HTTP address of a node; several may be given.
    #[arg(long, required = true)]
    node: Vec<String>,
    /// Clients at a time.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    clients: u16,
}

/// How far a load has come; shared with whoever watches.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    next: AtomicUsize,
    pub(crate) acknowledged: AtomicUsize,
    pub(crate) not_applied: AtomicU64,
    pub(crate) unknown: AtomicU64,
    /// The highest log index of an acknowledged line.
    index: AtomicU64,
}

/// Writes a file and prints the rate.
///
/// # Errors
/// When a line could not be written.
pub(crate) async fn run(flags: Flags) -> Result<(), Failure> {
    let text = Text::read(&flags.file)?;
    client::any_reachable(&flags.node).await?;
    let progress = Arc::new(Progress::default());
    let took = write(&text, &flags.node, flags.clients, &progress).await?;
    println!("{}", summary(&text, &progress, took));
    Ok(())
}

/// What a load did, in words.
pub(crate) fn summary(text: &Text, progress: &Progress, took: Duration) -> String {
    format!(
        "{} lines acknowledged in {:.1} s, {:.0} lines/s, up to log index {}; sent again: {} not \
         applied, {} of unknown outcome",
        text.len(),
        took.as_secs_f64(),
        text.len() as f64 / took.as_secs_f64(),
        progress.index.load(Ordering::Relaxed),
        progress.not_applied.load(Ordering::Relaxed),
        progress.unknown.load(Ordering::Relaxed),
    )
}

/// Writes every line; returns once all of them are acknowledged.
///
/// # Errors
/// When a line could not be written for a minute, or was rejected.
pub(crate) async fn write(
    text: &Text,
    nodes: &[String],
    clients: u16,
    progress: &Arc<Progress>,
) -> Result<Duration, Failure> {
    let started = Instant::now();
    let bar = bar(text.len(), "writing");
    let mut tasks = JoinSet::new();
    for n in 0..usize::from(clients) {
        let writer = Writer { nodes: nodes.to_vec(), at: n, client: None };
        let (text, progress, bar) = (text.clone(), progress.clone(), bar.clone());
        tasks.spawn(writer.run(text, progress, bar));
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    bar.finish_and_clear();
    Ok(started.elapsed())
}

/// A progress bar; hidden where nobody looks.
pub(crate) fn bar(lines: usize, what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} [{bar:40}] {pos}/{len} lines, {per_sec}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(lines as u64).with_style(style).with_message(what)
}

/// One client: it stays with a node until that node fails it.
struct Writer {
    nodes: Vec<String>,
    at: usize,
    client: Option<Client>,
}

impl Writer {
    async fn run(
        mut self,
        text: Text,
        progress: Arc<Progress>,
        bar: ProgressBar,
    ) -> Result<(), Failure> {
        loop {
            let n = progress.next.fetch_add(1, Ordering::Relaxed);
            let Some((path, line)) = text.line(n) else { return Ok(()) };
            self.put(&path, line, &progress).await?;
            progress.acknowledged.fetch_add(1, Ordering::Relaxed);
            bar.inc(1);
        }
    }

    /// Writes one line, again and again until a node acknowledges it.
    async fn put(&mut self, path: &str, line: &str, progress: &Progress) -> Result<(), Failure> {
        let started = Instant::now();
        loop {
            let (client, reached) = self.client();
            let problem = match client.request("PUT", path, line.as_bytes()).await {
                Ok(r) if r.status == 200 && r.outcome == "applied" => {
                    progress.index.fetch_max(r.index, Ordering::Relaxed);
                    return Ok(());
                }
                Ok(r) if r.outcome == "applied" => return Err(r.text().into()),
                Ok(r) if r.outcome == "not-applied" => {
                    progress.not_applied.fetch_add(1, Ordering::Relaxed);
                    r.text()
                }
                Ok(r) => {
                    progress.unknown.fetch_add(1, Ordering::Relaxed);
                    r.text()
                }
                Err(e) => {
                    progress.unknown.fetch_add(1, Ordering::Relaxed);
                    e.to_string()
                }
            };
            if started.elapsed() > PATIENCE {
                return Err(format!("{path} through {reached}: {problem}").into());
            }
            self.client = None;
            self.at += 1;
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn client(&mut self) -> (&mut Client, String) {
        let addr = self.nodes[self.at % self.nodes.len()].clone();
        (self.client.get_or_insert_with(|| Client::new(addr.clone())), addr)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use crate::client::any_reachable;

    #[tokio::test]
    async fn nobody_listening_is_told_with_the_remedy() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        any_reachable(&["127.0.0.1:0".to_owned(), addr.clone()]).await.unwrap();
        drop(listener);
        let error = any_reachable(std::slice::from_ref(&addr)).await.unwrap_err().to_string();
        assert!(error.contains(&addr) && error.contains("--http-addr"), "{error}");
    }
}
