//! What the machine gives at best: fdatasync of three files at once, and a stream's round trip.

use std::convert::Infallible;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use tonic::codegen::{Body, BoxFuture, Service, StdError, http};
use tonic::{Request, Response, Status, Streaming};

use crate::control::{data_root, free_addr};
use crate::load::quantile;

const ROUNDS: usize = 3000;

/// p50 in microseconds of write + fdatasync of 4 KiB into a preallocated file, while two other
/// threads do the same.
pub fn fdatasync_us() -> u32 {
    let dir = tempfile::tempdir_in(data_root()).unwrap();
    let threads: Vec<_> = (0..3)
        .map(|i| {
            let path = dir.path().join(i.to_string());
            std::thread::spawn(move || sync_rounds(&File::create_new(path).unwrap()))
        })
        .collect();
    let mut all: Vec<u32> = threads.into_iter().flat_map(|t| t.join().unwrap()).collect();
    all.sort_unstable();
    quantile(&all, 0.5)
}

fn sync_rounds(file: &File) -> Vec<u32> {
    const BLOCK: usize = 4096;
    file.write_all_at(&vec![0; BLOCK * ROUNDS], 0).unwrap();
    file.sync_all().unwrap();
    let block = [7u8; BLOCK];
    (0..ROUNDS)
        .map(|i| {
            let begin = Instant::now();
            file.write_all_at(&block, (i * BLOCK) as u64).unwrap();
            file.sync_data().unwrap();
            begin.elapsed().as_micros() as u32
        })
        .collect()
}

#[derive(Clone, PartialEq, prost::Message)]
struct Blob {
    #[prost(bytes = "bytes", tag = "1")]
    body: Bytes,
}

type Codec = tonic_prost::ProstCodec<Blob, Blob>;

#[derive(Clone)]
struct Echo;

impl tonic::server::StreamingService<Blob> for Echo {
    type Response = Blob;
    type ResponseStream = Streaming<Blob>;
    type Future = BoxFuture<Response<Streaming<Blob>>, Status>;

    fn call(&mut self, request: Request<Streaming<Blob>>) -> Self::Future {
        Box::pin(async move { Ok(Response::new(request.into_inner())) })
    }
}

impl<B> Service<http::Request<B>> for Echo
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        Box::pin(async move {
            Ok(tonic::server::Grpc::new(Codec::default()).streaming(Echo, request).await)
        })
    }
}

impl tonic::server::NamedService for Echo {
    const NAME: &'static str = "bench.Echo";
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

pub fn serve_echo(addr: &str) {
    let addr = addr.parse().unwrap();
    let server = tonic::transport::Server::builder().tcp_nodelay(true).add_service(Echo);
    runtime().block_on(server.serve(addr)).unwrap();
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// p50 in microseconds of one message of 128 bytes there and back over a bidirectional stream.
pub fn stream_rtt_us() -> u32 {
    let addr = free_addr();
    let exe = std::env::current_exe().unwrap();
    let _server = Killed(Command::new(exe).args(["echo", &addr]).spawn().unwrap());
    runtime().block_on(async {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{addr}")).unwrap();
        let channel = loop {
            match endpoint.clone().tcp_nodelay(true).connect().await {
                Ok(channel) => break channel,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.unwrap();
        let (to, from) = tokio::sync::mpsc::channel::<Blob>(1);
        let requests = futures::stream::unfold(from, |mut from| async move {
            from.recv().await.map(|blob| (blob, from))
        });
        let path = http::uri::PathAndQuery::from_static("/bench.Echo/Flow");
        let answers = client.streaming(Request::new(requests), path, Codec::default()).await;
        let mut answers = answers.unwrap().into_inner();
        let blob = Blob { body: vec![1; 128].into() };
        let mut all = Vec::new();
        for _ in 0..ROUNDS {
            let begin = Instant::now();
            to.send(blob.clone()).await.unwrap();
            answers.next().await.unwrap().unwrap();
            all.push(begin.elapsed().as_micros() as u32);
        }
        all.sort_unstable();
        quantile(&all, 0.5)
    })
}
