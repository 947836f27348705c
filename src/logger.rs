//! The user's logger, as the engine wants it.
//!
//! raft-rs logs at info for every vote and at trace for every message; its records pass through
//! one level lower, so that a healthy cluster logs role, membership and snapshots only.

use slog::{Drain, Level, Logger, Record, o};

/// The logger that the engine gets: warnings and errors pass, the rest becomes debug or less.
pub(crate) fn for_engine(logger: &Logger) -> Logger {
    Logger::root(Quieter(logger.clone()), o!())
}

#[derive(Debug)]
struct Quieter(Logger);

impl Drain for Quieter {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, values: &slog::OwnedKVList) -> Result<(), slog::Never> {
        if record.level().is_at_least(Level::Warning) {
            let _ = Drain::log(&self.0, record, values);
        }
        Ok(())
    }
}
