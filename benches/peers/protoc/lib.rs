//! Stands in for the crate of this name, which compiles `protoc` from C++ for many minutes: the
//! `protoc` that is named by the environment, and set in `.cargo/config.toml`, is enough.

use std::path::PathBuf;

/// The compiler to run.
pub fn protoc() -> PathBuf {
    std::env::var_os("PROTOC").map_or_else(|| "protoc".into(), PathBuf::from)
}
