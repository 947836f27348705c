//! What the machine gives at best: fdatasync of three files at once, and a stream's round trip.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt;
use tokio::sync::{mpsc, oneshot};
use tonic::Request;
use tonic::codegen::http;

use crate::control::{data_root, free_addr};
use crate::echo::{Blob, Codec, Echo, PATH};
use crate::load::quantile;

const ROUNDS: usize = 3000;

/// p50 in microseconds of write + fdatasync of 4 KiB into a preallocated file, while two other
/// threads do the same.
pub(crate) fn fdatasync_us() -> u32 {
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

fn runtime(single_thread: bool) -> tokio::runtime::Runtime {
    let mut builder = if single_thread {
        tokio::runtime::Builder::new_current_thread()
    } else {
        tokio::runtime::Builder::new_multi_thread()
    };
    builder.enable_all().build().unwrap()
}

pub(crate) fn serve_echo(addr: &str, single_thread: bool) {
    let addr = addr.parse().unwrap();
    let server = tonic::transport::Server::builder().tcp_nodelay(true).add_service(Echo);
    runtime(single_thread).block_on(server.serve(addr)).unwrap();
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// p50 in microseconds of one message of 128 bytes there and back over a bidirectional stream,
/// as a service has it: a task reads the stream and answers the caller that waits.
pub(crate) fn stream_rtt_us(single_thread: bool) -> u32 {
    let addr = free_addr();
    let exe = std::env::current_exe().unwrap();
    let mut server = Command::new(exe);
    server.args(["echo", &addr]).args(single_thread.then_some("--single-thread"));
    let _server = Killed(server.spawn().unwrap());
    let runtime = runtime(single_thread);
    runtime.block_on(async { tokio::spawn(echo_rounds(addr)).await.unwrap() })
}

async fn echo_rounds(addr: String) -> u32 {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{addr}")).unwrap();
    let channel = loop {
        match endpoint.clone().tcp_nodelay(true).connect().await {
            Ok(channel) => break channel,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let (to, from) = mpsc::unbounded_channel::<Blob>();
    let requests =
        futures::stream::unfold(from, async |mut from| from.recv().await.map(|blob| (blob, from)));
    let path = http::uri::PathAndQuery::from_static(PATH);
    let answers = client.streaming(Request::new(Box::pin(requests)), path, Codec::default()).await;
    let mut answers = answers.unwrap().into_inner();
    let waiting: Arc<Mutex<Option<oneshot::Sender<()>>>> = Arc::default();
    let waiter = waiting.clone();
    tokio::spawn(async move {
        while let Some(Ok(_)) = answers.next().await {
            if let Some(caller) = waiter.lock().unwrap().take() {
                let _ = caller.send(());
            }
        }
    });
    let blob = Blob { body: vec![1; 128].into() };
    let mut all = Vec::new();
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        let (answered, answer) = oneshot::channel();
        *waiting.lock().unwrap() = Some(answered);
        to.send(blob.clone()).unwrap();
        answer.await.unwrap();
        all.push(begin.elapsed().as_micros() as u32);
    }
    all.sort_unstable();
    quantile(&all, 0.5)
}
