//! The whole node, through its public interface.
#![expect(clippy::unwrap_used, reason = "tests")]

mod basics;
mod election;
mod ends;
mod founding;
mod grpc;
mod load;
mod membership;
mod offline;
mod parts;
mod restart;
mod status;
mod support;
