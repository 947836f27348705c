//! A Store for the tests, and configurations that react fast.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use raftline::{Config, Error, Mailbox, Result, Store, async_trait};

/// Appends every command; a query gives the length, or the command at a place.
#[derive(Clone, Debug, Default)]
pub(crate) struct Journal {
    pub(crate) commands: Vec<Vec<u8>>,
}

#[async_trait]
impl Store for Journal {
    async fn apply(&mut self, message: &[u8]) -> Result<Vec<u8>> {
        if message == b"reject" {
            return Err("rejected as asked".into());
        }
        self.commands.push(message.to_vec());
        Ok((self.commands.len() as u64).to_le_bytes().to_vec())
    }

    async fn query(&self, query: &[u8]) -> Result<Vec<u8>> {
        if query.is_empty() {
            return Ok((self.commands.len() as u64).to_le_bytes().to_vec());
        }
        let at = std::str::from_utf8(query).unwrap_or("").parse::<usize>();
        let at = at.map_err(|e| e.to_string())?;
        Ok(self.commands.get(at).cloned().unwrap_or_default())
    }

    async fn snapshot(&self) -> Result<Vec<u8>> {
        Ok(bincode::serialize(&self.commands)?)
    }

    async fn restore(&mut self, snapshot: &[u8]) -> Result<()> {
        self.commands = bincode::deserialize(snapshot)?;
        Ok(())
    }
}

/// Asks again while a member is not heard for a moment, as it happens on a busy machine.
pub(crate) async fn insist<F: Future<Output = Result<()>>>(ask: impl Fn() -> F) {
    let asked = async {
        loop {
            match ask().await {
                Err(Error::Membership(reason)) if reason.contains("would lose the quorum") => {
                    tokio::task::yield_now().await;
                }
                end => return end,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), asked).await.expect("refused").unwrap();
}

/// Short ticks, patient calls.
pub(crate) fn config() -> Config {
    Config {
        heartbeat: Duration::from_millis(10),
        request_timeout: Duration::from_secs(20),
        ..Config::default()
    }
}

pub(crate) fn logger() -> slog::Logger {
    if std::env::var_os("RAFTLINE_LOG").is_none() {
        return slog::Logger::root(slog::Discard, slog::o!());
    }
    use slog::Drain;
    let decorator = slog_term::PlainSyncDecorator::new(slog_term::TestStdoutWriter);
    slog::Logger::root(slog_term::FullFormat::new(decorator).build().fuse(), slog::o!())
}

/// Commands that are to be applied whoever leads.
pub(crate) trait Put {
    /// The Store's answer. On a busy machine the leader may change at any time: what surely did not
    /// happen is tried again.
    async fn put(&self, command: impl Into<Vec<u8>>) -> Vec<u8>;
}

impl Put for Mailbox {
    async fn put(&self, command: impl Into<Vec<u8>>) -> Vec<u8> {
        let command: Vec<u8> = command.into();
        loop {
            match self.propose(command.clone()).await {
                Err(e) if e.is_retryable() => {}
                answer => return answer.unwrap(),
            }
        }
    }
}

/// A logger that remembers what it was told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lines {
    seen: Arc<Mutex<Vec<(slog::Level, String)>>>,
}

impl Lines {
    pub(crate) fn has(&self, level: slog::Level, text: &str) -> bool {
        self.seen.lock().unwrap().iter().any(|(l, line)| *l == level && line.contains(text))
    }
}

impl slog::Drain for Lines {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &slog::Record<'_>, _: &slog::OwnedKVList) -> Result<(), slog::Never> {
        self.seen.lock().unwrap().push((record.level(), record.msg().to_string()));
        Ok(())
    }
}

/// The number in an answer of [`Journal`].
pub(crate) fn number(answer: &[u8]) -> u64 {
    u64::from_le_bytes(answer.try_into().unwrap())
}
