//! What the programs of this workspace share: results as JSON lines, and the machine that they
//! were measured on.

pub mod machine;
pub mod results;

/// Why a program gives up.
pub type Fault = Box<dyn std::error::Error + Send + Sync>;
/// What comes of most things here.
pub type Result<T> = std::result::Result<T, Fault>;
