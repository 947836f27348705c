//! What the machine gives at best, measured in the same run: the disk with three writers at once,
//! and a gRPC stream between two processes.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use futures::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use crate::Failure;
use crate::child::free_addr;
use crate::recorder::Recorder;

mod pb {
    tonic::include_proto!("echo");
}

const MEASURED: Duration = Duration::from_secs(2);
/// As many logs as a cluster of three keeps on one machine.
const WRITERS: usize = 3;
const BLOCK: usize = 4 << 10;
const FILE: usize = 16 << 20;
const MESSAGE: usize = 128;

#[derive(Debug, Args)]
pub(crate) struct EchoFlags {
    #[arg(long)]
    addr: String,
}

/// p50 of fdatasync in microseconds, with three zero-filled files written at once.
pub(crate) fn fsync_p50_us(dir: &Path) -> Result<f64, Failure> {
    let mut writers = Vec::new();
    for n in 0..WRITERS {
        let path = dir.join(format!("ceiling-{n}"));
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).open(path)?;
        file.write_all(&vec![0; FILE])?;
        file.sync_all()?;
        writers.push(file);
    }
    let writers: Vec<_> = writers.into_iter().map(|f| thread::spawn(|| sync_loop(f))).collect();
    let mut all = Recorder::default();
    for writer in writers {
        all.add(&writer.join().map_err(|_| "a writer panicked")??);
    }
    Ok(all.quantile_us(0.5))
}

fn sync_loop(file: File) -> std::io::Result<Recorder> {
    let block = [7; BLOCK];
    let mut latencies = Recorder::default();
    let started = Instant::now();
    let mut offset = 0;
    while started.elapsed() < MEASURED {
        let began = Instant::now();
        file.write_all_at(&block, offset)?;
        file.sync_data()?;
        latencies.record(began.elapsed().as_nanos() as u64, 1);
        offset = (offset + BLOCK as u64) % FILE as u64;
    }
    Ok(latencies)
}

/// p50 in microseconds of a message there and back over one bidirectional stream.
pub(crate) fn stream_p50_us() -> Result<f64, Failure> {
    let addr = free_addr()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["echo", "--addr", &addr]).stdin(Stdio::null());
    let _server = Server(command.spawn()?);
    runtime()?.block_on(ping(&addr))
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

async fn ping(addr: &str) -> Result<f64, Failure> {
    let started = Instant::now();
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{addr}"))?;
    let endpoint = endpoint.tcp_nodelay(true);
    let channel = loop {
        match endpoint.connect().await {
            Ok(channel) => break channel,
            Err(e) if started.elapsed() > MEASURED => return Err(e.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    let (send, receive) = futures::channel::mpsc::unbounded();
    let mut client = pb::echo_client::EchoClient::new(channel);
    let mut answers = client.flow(receive).await?.into_inner();
    let mut latencies = Recorder::default();
    let started = Instant::now();
    while started.elapsed() < MEASURED {
        let began = Instant::now();
        send.unbounded_send(pb::Blob { data: vec![7; MESSAGE].into() })?;
        answers.next().await.ok_or("the echo ended")??;
        latencies.record(began.elapsed().as_nanos() as u64, 1);
    }
    Ok(latencies.quantile_us(0.5))
}

struct Echo;

#[tonic::async_trait]
impl pb::echo_server::Echo for Echo {
    type FlowStream = Pin<Box<dyn Stream<Item = Result<pb::Blob, Status>> + Send>>;

    async fn flow(
        &self,
        request: Request<Streaming<pb::Blob>>,
    ) -> Result<Response<Self::FlowStream>, Status> {
        Ok(Response::new(Box::pin(request.into_inner())))
    }
}

/// The other process of [`stream_p50_us`].
pub(crate) fn serve(flags: &EchoFlags) -> Result<(), Failure> {
    let addr = flags.addr.parse()?;
    let server = tonic::transport::Server::builder().tcp_nodelay(true);
    let service = pb::echo_server::EchoServer::new(Echo);
    runtime()?.block_on({ server }.add_service(service).serve(addr))?;
    Ok(())
}
