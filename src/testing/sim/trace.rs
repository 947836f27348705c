//! What happened, line by line, for a person to read; nothing is written unless it is wanted.

use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};

use slog::{Drain, Logger};

use super::schedule::Time;
use crate::types::NodeId;

/// Lines that are kept: the end of a run is what a failure is about.
const MAX_BYTES: usize = 64 << 20;

/// See the module. Clones share their lines.
#[derive(Clone, Debug, Default)]
pub(super) struct Trace {
    lines: Option<Arc<Mutex<String>>>,
    now: Arc<Mutex<Time>>,
}

impl Trace {
    pub(super) fn recording() -> Self {
        Self { lines: Some(Arc::default()), now: Arc::default() }
    }

    pub(super) fn line(&self, now: Time, text: impl FnOnce() -> String) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = now;
        let Some(lines) = &self.lines else { return };
        let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() < MAX_BYTES {
            // NB: writing to a string cannot fail.
            let _ = writeln!(lines, "{:>12.6} {}", now as f64 / 1e6, text());
        }
    }

    /// When the last line was written.
    pub(super) fn now(&self) -> Time {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn text(&self) -> String {
        let lines = self.lines.as_ref();
        lines.map_or_else(String::new, |l| l.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// A node's own log, as part of the trace.
    pub(super) fn logger(&self, id: NodeId) -> Logger {
        match &self.lines {
            Some(_) => {
                let drain = Lines { trace: self.clone(), id };
                Logger::root(Mutex::new(drain).fuse(), slog::o!())
            }
            None => Logger::root(slog::Discard, slog::o!()),
        }
    }
}

#[derive(Debug)]
struct Lines {
    trace: Trace,
    id: NodeId,
}

/// The fields of a record, as `key=value`.
struct Fields(String);

impl slog::Serializer for Fields {
    fn emit_arguments(&mut self, key: slog::Key, value: &std::fmt::Arguments<'_>) -> slog::Result {
        write!(self.0, " {key}={value}").map_err(slog::Error::from)
    }
}

impl Drain for Lines {
    type Ok = ();
    type Err = slog::Error;

    fn log(&self, record: &slog::Record<'_>, _: &slog::OwnedKVList) -> Result<(), slog::Error> {
        if record.level() == slog::Level::Trace {
            return Ok(());
        }
        let mut fields = Fields(String::new());
        slog::KV::serialize(&record.kv(), record, &mut fields)?;
        let level = record.level().as_short_str();
        let now = self.trace.now();
        self.trace
            .line(now, || format!("  node {}: {level} {}{}", self.id, record.msg(), fields.0));
        Ok(())
    }
}
