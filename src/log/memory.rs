//! In-memory log.
