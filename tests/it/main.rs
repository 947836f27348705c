//! The whole node, through its public interface.
#![expect(clippy::unwrap_used, reason = "tests")]

mod basics;
mod ends;
mod grpc;
mod load;
mod membership;
mod offline;
mod parts;
mod restart;
mod support;
