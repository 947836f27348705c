//! The wire messages and shared records, generated from `proto/raft.proto`.
#![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]

tonic::include_proto!("raftline.v1");
