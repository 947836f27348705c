//! The listener, the accept loop, and what a connection may cost.
//!
//! Invariants:
//! - at most `max_connections` are open; more wait in the backlog of the socket;
//! - a connection on which no peer was admitted and no request made within the handshake timeout
//!   is closed, whatever else it says or does not say: strangers cannot hold connections;
//! - a connection that was used and is idle is closed later;
//! - a connection whose stream was taken over by a newer one is closed at once, unless something
//!   else goes on there: a peer whose links break again and again without our being told holds one
//!   connection per lane, not all that it ever opened;
//! - the loop outlives every error of `accept`.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::task::AtomicWaker;
use futures::{FutureExt, Stream, stream};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};
use tonic::transport::server::Connected;

use super::GrpcOptions;
use super::closing::Closing;
use crate::config::LONGEST_TIMEOUT;
use crate::error::Error;

/// Connections that the kernel keeps waiting for `accept`.
const BACKLOG: i32 = 1024;
/// The pause after an error of `accept`: file descriptors may be used up.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Binds and listens, without a runtime.
///
/// # Errors
/// [`Error::Listen`] with what to do.
pub(super) fn bind(
    addr: SocketAddr,
    options: &GrpcOptions,
) -> Result<std::net::TcpListener, Error> {
    let listen = || -> io::Result<std::net::TcpListener> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(options.reuseaddr)?;
        #[cfg(unix)]
        socket.set_reuse_port(options.reuseport)?;
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    };
    listen().map_err(|source| Error::Listen { addr: addr.to_string(), hint: hint(&source), source })
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "Another process listens there, perhaps an older run of this node; stop it or choose \
             another port"
        }
        io::ErrorKind::AddrNotAvailable => {
            "This machine has no such address; listen on 0.0.0.0 and set advertise_addr to the \
             one that peers use"
        }
        io::ErrorKind::PermissionDenied => "Ports below 1024 need privileges; choose a higher one",
        _ => "Check the address and the limits of the system",
    }
}

/// The connections of a listener, within the limits. Ends when the transport closes.
pub(super) fn connections(
    listener: TcpListener,
    options: Arc<GrpcOptions>,
    closing: Closing,
) -> impl Stream<Item = io::Result<Connection>> {
    let permits = Arc::new(Semaphore::new(options.max_connections));
    stream::unfold((listener, permits), move |(listener, permits)| {
        let (options, closing) = (options.clone(), closing.clone());
        async move {
            let next = async {
                let permit = permits.clone().acquire_owned().await.ok()?;
                let io = accept(&listener).await;
                Some(Connection::new(io, &options, closing.clone(), permit))
            };
            tokio::select! {
                biased;
                () = closing.clone().closed() => None,
                connection = next => Some((Ok(connection?), (listener, permits))),
            }
        }
    })
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((io, _)) => {
                // Without it a lone message would wait for the peer's delayed acknowledgement;
                // a socket that refuses the option is about to fail anyway.
                let _ = io.set_nodelay(true);
                return io;
            }
            Err(_) => sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// What a connection is used for: streams and requests in progress.
#[derive(Clone, Debug, Default)]
pub(super) struct Activity(Arc<Usage>);

#[derive(Debug, Default)]
struct Usage {
    begun: AtomicUsize,
    ended: AtomicUsize,
    /// Nobody needs the connection any more.
    over: AtomicBool,
    /// Wakes the connection to see that.
    waker: AtomicWaker,
}

impl Usage {
    /// Whether something goes on.
    fn busy(&self) -> bool {
        self.ended.load(Ordering::Relaxed) != self.begun.load(Ordering::Relaxed)
    }
}

/// A use of a connection; ends on drop.
#[derive(Debug)]
pub(super) struct Busy(Activity);

impl Activity {
    /// A peer was admitted, or a request made.
    pub(super) fn begin(self) -> Busy {
        self.0.begun.fetch_add(1, Ordering::Relaxed);
        Busy(self)
    }
}

/// Closes a connection that nobody needs any more, on drop; not while something goes on there.
#[derive(Debug)]
pub(super) struct HangUp(pub(super) Activity);

impl Drop for HangUp {
    fn drop(&mut self) {
        let Activity(usage) = &self.0;
        usage.over.store(true, Ordering::Release);
        usage.waker.wake();
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.0.ended.fetch_add(1, Ordering::Relaxed);
    }
}

/// A connection that closes itself when it is not used.
pub(super) struct Connection {
    io: TcpStream,
    activity: Activity,
    /// Uses that had begun when the timer was set.
    seen: usize,
    timer: Pin<Box<Sleep>>,
    idle: Duration,
    closed: BoxFuture<'static, ()>,
    /// Nobody needs it any more, which was seen before.
    leaving: bool,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    fn new(
        io: TcpStream,
        options: &GrpcOptions,
        closing: Closing,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            io,
            activity: Activity::default(),
            seen: 0,
            timer: Box::pin(sleep(options.handshake_timeout)),
            idle: options.idle_timeout.min(LONGEST_TIMEOUT),
            closed: closing.closed().boxed(),
            leaving: false,
            _permit: permit,
        }
    }

    /// Whether it is time to hang up.
    fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if self.closed.poll_unpin(cx).is_ready() {
            return Poll::Ready(io::Error::new(io::ErrorKind::ConnectionAborted, "closing"));
        }
        let usage = &self.activity.0;
        usage.waker.register(cx.waker());
        if usage.over.load(Ordering::Acquire) && !usage.busy() {
            if self.leaving {
                let error = io::Error::new(io::ErrorKind::ConnectionAborted, "taken over");
                return Poll::Ready(error);
            }
            // Not in this turn: the far end, if it is there, is being told why.
            self.leaving = true;
            cx.waker().wake_by_ref();
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            let usage = &self.activity.0;
            let begun = usage.begun.load(Ordering::Relaxed);
            if begun == self.seen && !usage.busy() {
                let error = io::Error::new(io::ErrorKind::TimedOut, "an idle connection");
                return Poll::Ready(error);
            }
            self.seen = begun;
            self.timer.as_mut().reset(Instant::now() + self.idle);
        }
        Poll::Pending
    }
}

impl Connected for Connection {
    type ConnectInfo = Activity;

    fn connect_info(&self) -> Activity {
        self.activity.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        // A stranger that always has bytes for us is met here too, once it pauses.
        if read.is_pending()
            && let Poll::Ready(error) = self.poll_expired(cx)
        {
            return Poll::Ready(Err(error));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
