//! Snapshots over gRPC: a start, then chunks, each side watching that the other makes progress.
//!
//! The receiver takes a body for whole when it has exactly the length that the header names;
//! whether its bytes are right is for the handler to check.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;
use tonic::Status;

use super::{GrpcOptions, dial, status};
use crate::pb;
use crate::transport::{Peer, SnapshotStream, TransportError, convert};
use crate::types::Message;
use pb::chunk::Part;

/// Bytes of one chunk.
const CHUNK: usize = 256 << 10;

/// Sends a snapshot to a peer on a connection of its own; returns when the peer has it on disk.
///
/// # Errors
/// `Unreachable` when there was no connection, `Refused` by the peer, else `Lost`.
pub(super) async fn send(
    peer: &Peer,
    hello: pb::Hello,
    message: Message,
    body: SnapshotStream,
    options: &GrpcOptions,
) -> Result<(), TransportError> {
    let addr = &peer.addr;
    let lost = |reason: String| TransportError::Lost { addr: addr.clone(), reason };
    let channel = dial::connect(addr, options)
        .await
        .map_err(|reason| TransportError::Unreachable { addr: addr.clone(), reason })?;
    let start = pb::SnapshotStart { hello: Some(hello), message: Some(convert::to_wire(message)) };
    let (broken, failure) = oneshot::channel();
    let progress = Arc::new(Notify::new());
    let done = Arc::new(Notify::new());
    let outgoing = Outgoing {
        body,
        rest: Bytes::new(),
        broken: Some(broken),
        progress: progress.clone(),
        done: Some(done.clone()),
    };
    let first = stream::iter([pb::Chunk { part: Some(Part::Start(start)) }]);
    let mut client = dial::client(channel, options);
    let transfer = client.snapshot(first.chain(chunks(outgoing)));
    tokio::select! {
        answer = transfer => match answer {
            Ok(_) => Ok(()),
            Err(s) => Err(status::failure(addr, &s)),
        },
        // Dropping the request resets the stream. NB: the HTTP stack of the peer may show that as
        // an orderly end; it is the length in the header that tells a cut body from a whole one.
        Ok(error) = failure => Err(lost(format!("reading the snapshot failed: {error}"))),
        () = stalled(progress, done, options) => Err(lost("the transfer stalled".to_owned())),
    }
}

/// Ends when no chunk was taken for too long, or no answer came after the last.
async fn stalled(progress: Arc<Notify>, done: Arc<Notify>, options: &GrpcOptions) {
    let mut done = pin!(done.notified());
    loop {
        tokio::select! {
            () = &mut done => break,
            step = timeout(options.stall_timeout, progress.notified()) => {
                if step.is_err() {
                    return;
                }
            }
        }
    }
    tokio::time::sleep(options.finish_timeout).await;
}

struct Outgoing {
    body: SnapshotStream,
    rest: Bytes,
    broken: Option<oneshot::Sender<io::Error>>,
    progress: Arc<Notify>,
    done: Option<Arc<Notify>>,
}

fn chunks(outgoing: Outgoing) -> impl Stream<Item = pb::Chunk> + Send + 'static {
    stream::unfold(outgoing, |mut out| async move {
        while out.rest.is_empty() {
            match out.body.next().await {
                Some(Ok(bytes)) => out.rest = bytes,
                Some(Err(error)) => {
                    if let Some(broken) = out.broken.take() {
                        let _ = broken.send(error);
                    }
                    // No orderly end: the sender resets the stream.
                    std::future::pending::<()>().await;
                }
                None => {
                    if let Some(done) = out.done.take() {
                        done.notify_one();
                    }
                    return None;
                }
            }
        }
        let data = out.rest.split_to(out.rest.len().min(CHUNK));
        out.progress.notify_one();
        Some((pb::Chunk { part: Some(Part::Data(data)) }, out))
    })
}

/// The body in the chunks that follow a start: exactly `size` bytes, or an error.
pub(crate) fn body(
    chunks: impl Stream<Item = Result<pb::Chunk, Status>> + Send + Unpin + 'static,
    size: u64,
    stall: Duration,
) -> SnapshotStream {
    let state = Some((chunks, size));
    stream::unfold(state, move |state| async move {
        let (mut chunks, left) = state?;
        match next(&mut chunks, left, stall).await {
            Ok(Some(data)) => {
                let left = left - data.len() as u64;
                Some((Ok(data), Some((chunks, left))))
            }
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

async fn next(
    chunks: &mut (impl Stream<Item = Result<pb::Chunk, Status>> + Unpin),
    left: u64,
    stall: Duration,
) -> io::Result<Option<Bytes>> {
    let invalid = |reason: String| Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    let chunk = match timeout(stall, chunks.try_next()).await {
        Ok(Ok(chunk)) => chunk,
        Ok(Err(s)) => {
            return Err(io::Error::new(io::ErrorKind::ConnectionReset, status::describe(&s)));
        }
        Err(_) => {
            let reason = format!("the sender was silent for {stall:?}");
            return Err(io::Error::new(io::ErrorKind::TimedOut, reason));
        }
    };
    match chunk.map(|c| c.part) {
        None if left == 0 => Ok(None),
        None => {
            let reason = format!("the snapshot ended {left} bytes early");
            Err(io::Error::new(io::ErrorKind::UnexpectedEof, reason))
        }
        Some(Some(Part::Data(data))) if data.is_empty() => invalid("an empty chunk".to_owned()),
        Some(Some(Part::Data(data))) if data.len() as u64 > left => {
            invalid("the snapshot is longer than its header says".to_owned())
        }
        Some(Some(Part::Data(data))) => Ok(Some(data)),
        Some(Some(Part::Start(_))) => invalid("a second start".to_owned()),
        Some(None) => invalid("a chunk without content".to_owned()),
    }
}
