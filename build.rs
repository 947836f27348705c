//! Generates the wire messages and the gRPC service from `proto/raft.proto`, without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/raft.proto");
    let descriptors = protox::compile(["proto/raft.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".")
        // Rare and large: every other request would be as large.
        .boxed(".raftline.v1.Request.kind.found")
        .codec_path("crate::transport::grpc::codec::Codec")
        .compile_fds(descriptors)?;
    Ok(())
}
