//! What a directed link does to the bytes of its connections.
//!
//! A link leads from the node that dials to the node that is dialled, and carries the connections
//! that the first one opened: its messages, and the answers to them. What the other node says of
//! its own accord travels on the link of the other direction. Bytes of one connection keep their
//! order, as TCP demands; order is broken across connections only ([`Mode::Late`]).

use std::io;
use std::time::Duration;

use futures::FutureExt;
use futures::future::FusedFuture;
use raftline::testing::rng::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

const CHUNK: usize = 16 << 10;
/// Chunks between reader and writer; more stay in the sockets, as behind a slow wire.
const QUEUE: usize = 64;
/// How long a connection that was reset at its source may still deliver what it carried.
const LATE: Duration = Duration::from_secs(3);

/// What a link does.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Mode {
    /// Lets everything through.
    #[default]
    Open,
    /// Nothing gets through and nothing is lost: a cut that TCP waits out.
    Hold,
    /// Connections are reset, new ones refused: a cut that is told.
    Refuse,
    /// Every chunk is late by this much and up to as much again.
    Delay(Duration),
    /// So many bytes a second.
    Throttle(u64),
    /// Every connection is late by an amount of its own, up to this, and what it carries when it
    /// is reset is delivered nevertheless: behind what the next connection carries.
    Late(Duration),
}

/// What the tasks of a link watch.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct State {
    pub(crate) mode: Mode,
    /// Grows by one for every reset.
    pub(crate) resets: u64,
}

type Chunk = (Instant, Vec<u8>);

/// Carries one connection until an end closes it or the link resets it; tells how many chunks were
/// on their way then and delivered nevertheless.
pub(crate) async fn carry(
    source: TcpStream,
    target: &str,
    mut state: watch::Receiver<State>,
    mut rng: Rng,
) -> io::Result<usize> {
    let now = *state.borrow_and_update();
    if now.mode == Mode::Refuse {
        return reset(&source).map(|()| 0);
    }
    let resets = now.resets;
    let broken = |s: &State| s.mode == Mode::Refuse || s.resets != resets;
    let held = |s: &State| s.mode == Mode::Hold && !broken(s);
    if state.wait_for(|s| !held(s)).await.is_err() || broken(&state.borrow()) {
        return reset(&source).map(|()| 0);
    }
    let Ok(target) = TcpStream::connect(target).await else {
        return reset(&source).map(|()| 0);
    };
    source.set_nodelay(true)?;
    target.set_nodelay(true)?;
    // Another handle of the same socket, to reset it while its halves are in use.
    let handle = socket2::SockRef::from(&source).try_clone()?;
    let (source_in, source_out) = source.into_split();
    let (target_in, target_out) = target.into_split();
    let (there, there_queue) = mpsc::channel(QUEUE);
    let (back, back_queue) = mpsc::channel(QUEUE);
    let lag = rng.below(1 << 20);
    let queued = there.downgrade();
    let mut delivery = Box::pin(deliver(there_queue, target_out, state.clone()).fuse());
    let mut rest = Box::pin(async {
        tokio::try_join!(
            read(source_in, there, state.clone(), lag, rng.clone()),
            read(target_in, back, state.clone(), lag, rng.clone()),
            deliver(back_queue, source_out, state.clone()),
        )
    });
    let mut watched = state.clone();
    let late = tokio::select! {
        // Both directions have ended, or one of them has failed.
        done = async { tokio::try_join!(&mut rest, &mut delivery) } => return done.map(|_| 0),
        changed = watched.wait_for(broken) => {
            changed.is_ok_and(|s| matches!(s.mode, Mode::Late(_)))
        }
    };
    handle.set_linger(Some(Duration::ZERO))?;
    let queued = queued.upgrade().map_or(0, |q| q.max_capacity() - q.capacity());
    drop((handle, rest));
    // The source is gone; what was read from it is still on its way.
    let unfinished = late && !delivery.is_terminated();
    let delivered = unfinished && matches!(timeout(LATE, delivery).await, Ok(Ok(())));
    Ok(if delivered { queued } else { 0 })
}

/// Closes with a reset instead of an orderly end.
fn reset(stream: &TcpStream) -> io::Result<()> {
    socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

/// Reads chunks and says when each is due.
async fn read(
    mut from: OwnedReadHalf,
    to: mpsc::Sender<Chunk>,
    state: watch::Receiver<State>,
    lag: u64,
    mut rng: Rng,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut last = Instant::now();
    loop {
        let n = from.read(&mut buffer).await?;
        let Some(chunk) = buffer.get(..n).filter(|c| !c.is_empty()) else { return Ok(()) };
        let delay = match state.borrow().mode {
            Mode::Delay(delay) => delay.mul_f64(1.0 + rng.below(1000) as f64 / 1000.0),
            Mode::Late(most) => most.mul_f64(lag as f64 / (1 << 20) as f64),
            Mode::Open | Mode::Hold | Mode::Refuse | Mode::Throttle(_) => Duration::ZERO,
        };
        last = last.max(Instant::now() + delay);
        if to.send((last, chunk.to_vec())).await.is_err() {
            return Ok(());
        }
    }
}

/// Writes chunks when they are due and the link lets them through.
async fn deliver(
    mut queue: mpsc::Receiver<Chunk>,
    mut to: OwnedWriteHalf,
    mut state: watch::Receiver<State>,
) -> io::Result<()> {
    while let Some((due, chunk)) = queue.recv().await {
        sleep_until(due).await;
        let Ok(mode) = state.wait_for(|s| s.mode != Mode::Hold).await.map(|s| s.mode) else {
            return Ok(());
        };
        if let Mode::Throttle(rate) = mode {
            sleep(Duration::from_secs_f64(chunk.len() as f64 / rate as f64)).await;
        }
        to.write_all(&chunk).await?;
    }
    to.shutdown().await
}
