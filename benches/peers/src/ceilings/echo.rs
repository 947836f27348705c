//! Messages there and back over one bidirectional stream between two processes, as a service has
//! it: a task reads the stream and answers the caller that waits.

use std::collections::VecDeque;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use peers::Result;
use peers::results::{Measured, Op};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};
use tonic::Request;
use tonic::codegen::http;

use super::service::{Blob, Codec, Echo, PATH};
use crate::cluster::{Killed, free_addrs};
use crate::load::{self, Load};
use crate::node::{Peer, View};

const PAUSE: Duration = Duration::from_millis(10);
const TRIES: u32 = 500;

fn runtime() -> Result<Runtime> {
    Ok(Builder::new_multi_thread().enable_all().build()?)
}

/// The other process.
pub fn serve(addr: &str) -> Result<()> {
    let server = tonic::transport::Server::builder().tcp_nodelay(true).add_service(Echo);
    Ok(runtime()?.block_on(server.serve(addr.parse()?))?)
}

type Waiting = VecDeque<oneshot::Sender<()>>;

/// Callers of one stream. The stream keeps order, so the answer is for whoever waits longest.
#[derive(Clone)]
struct Stream {
    to: mpsc::UnboundedSender<Blob>,
    waiting: Arc<Mutex<Waiting>>,
}

impl Stream {
    async fn open(addr: &str) -> Result<Self> {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{addr}"))?;
        let endpoint = endpoint.tcp_nodelay(true);
        let mut tries = 0;
        let channel = loop {
            match endpoint.connect().await {
                Ok(channel) => break channel,
                Err(e) if tries == TRIES => return Err(e.into()),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
            tries += 1;
        };
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await?;
        let (to, from) = mpsc::unbounded_channel::<Blob>();
        let requests = futures::stream::unfold(from, async |mut from| {
            from.recv().await.map(|blob| (blob, from))
        });
        let path = http::uri::PathAndQuery::from_static(PATH);
        let request = Request::new(Box::pin(requests));
        let mut answers = client.streaming(request, path, Codec::default()).await?.into_inner();
        let waiting: Arc<Mutex<Waiting>> = Arc::default();
        let stream = Self { to, waiting: waiting.clone() };
        tokio::spawn(async move {
            while let Some(Ok(_)) = answers.next().await {
                let waiter = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                waiter.map(|waiter| waiter.send(()));
            }
        });
        Ok(stream)
    }
}

impl Peer for Stream {
    async fn put(&self, command: Vec<u8>) -> Result<()> {
        let (waiter, answer) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.push_back(waiter);
            // Under the lock: the order of the queue is that of the stream.
            self.to.send(Blob { body: command.into() })?;
        }
        Ok(answer.await?)
    }

    async fn get(&self, _: u64) -> Result<Vec<u8>> {
        Err("an echo holds nothing".into())
    }

    async fn view(&self) -> Result<View> {
        Ok(View::default())
    }
}

/// So many callers, each with one message on its way.
pub fn measure(clients: usize, payload: usize, window: Duration) -> Result<Measured> {
    let addr = free_addrs(1)?.pop().ok_or("no free address")?;
    let mut server = Command::new(std::env::current_exe()?);
    let server = Killed(server.args(["echo", &addr]).spawn()?);
    let pids = vec![std::process::id(), server.0.id()];
    let warmup = Duration::from_millis(300);
    let load = Load { op: Op::Put, clients, payload, warmup, window, pids };
    runtime()?.block_on(async {
        // On a worker: the task that blocks a runtime is served by none of them.
        let run = async move { Ok(load::run(&Stream::open(&addr).await?, &load).await) };
        tokio::spawn(run).await?
    })
}
