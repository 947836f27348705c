//! Connections to other nodes: resolve, connect, and keep a few for requests.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::transport::{Channel, Endpoint};

use super::GrpcOptions;
use super::status::chain;
use crate::config::LONGEST_TIMEOUT;
use crate::pb::raft_client::RaftClient;

/// Channels for requests that are kept at most; the least recently used goes first.
const MAX_CHANNELS: usize = 64;
/// A channel that was idle for so long is closed: below the server's idle timeout, so that a
/// request does not run into a connection that is just being closed.
const MAX_IDLE: Duration = Duration::from_secs(20);

/// Connects to `addr`. Nothing has been sent when this fails.
///
/// # Errors
/// In words: does not resolve, refused, timed out.
pub(super) async fn connect(addr: &str, options: &GrpcOptions) -> Result<Channel, String> {
    let attempt = async { first_of(&resolve(addr).await?, options).await };
    match timeout(options.connect_timeout, attempt).await {
        Ok(result) => result,
        Err(_) => Err(format!("no connection within {:?}", options.connect_timeout)),
    }
}

/// The first of these addresses that takes a connection. Each gets its share of the time that is
/// left: a host may have an address that answers nothing (IPv6, often) before one that works.
async fn first_of(targets: &[SocketAddr], options: &GrpcOptions) -> Result<Channel, String> {
    let until = Instant::now() + options.connect_timeout.min(LONGEST_TIMEOUT);
    let mut failure = "it resolves to no address".to_owned();
    for (target, left) in targets.iter().zip((1..=targets.len()).rev()) {
        let time = until.saturating_duration_since(Instant::now());
        let share = time / u32::try_from(left).unwrap_or(u32::MAX);
        failure = match timeout(share, endpoint(*target, options)?.connect()).await {
            Ok(Ok(channel)) => return Ok(channel),
            Ok(Err(error)) => chain(&error),
            Err(_) => format!("no connection to {target} within {share:?}"),
        };
    }
    Err(failure)
}

/// A client on a channel, with our limits.
pub(super) fn client(channel: Channel, options: &GrpcOptions) -> RaftClient<Channel> {
    RaftClient::new(channel)
        .max_decoding_message_size(options.message_size)
        .max_encoding_message_size(options.message_size)
}

async fn resolve(addr: &str) -> Result<Vec<SocketAddr>, String> {
    if let Ok(literal) = addr.parse() {
        return Ok(vec![literal]);
    }
    let port = addr.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    if port.is_none() {
        return Err("an address is written host:port".to_owned());
    }
    match tokio::net::lookup_host(addr).await {
        Ok(found) => Ok(found.collect()),
        Err(error) => Err(format!("the host name does not resolve ({error}); correct the address")),
    }
}

fn endpoint(target: SocketAddr, o: &GrpcOptions) -> Result<Endpoint, String> {
    let endpoint =
        Endpoint::from_shared(format!("http://{target}")).map_err(|error| chain(&error))?;
    Ok(endpoint
        .connect_timeout(o.connect_timeout)
        .tcp_nodelay(true)
        .initial_stream_window_size(super::STREAM_WINDOW)
        .initial_connection_window_size(super::CONNECTION_WINDOW)
        .max_frame_size(super::MAX_FRAME)
        .http2_max_header_list_size(super::MAX_HEADERS)
        .http2_keep_alive_interval(o.keepalive_interval.min(LONGEST_TIMEOUT))
        .keep_alive_timeout(o.keepalive_timeout.min(LONGEST_TIMEOUT))
        .keep_alive_while_idle(true))
}

/// Channels for requests, by address: one each, whoever asks and however many do. Invariants:
/// - at most one connection to an address is being made at a time, and all who want it wait for that
///   one: a leader that comes back is not met by a connection per request;
/// - a failure outlives nobody: it is forgotten as it happens, and who had come to an attempt that
///   was under way takes part in a new one, because the old one may have begun before the address
///   could be reached;
/// - a channel that failed takes only itself along, not the one that was made after it.
#[derive(Debug, Default)]
pub(super) struct Channels {
    kept: Arc<Mutex<Kept>>,
}

/// A connection that is being made, or was.
type Attempt = Shared<BoxFuture<'static, Result<Channel, String>>>;

#[derive(Debug, Default)]
struct Kept {
    by_addr: HashMap<String, One>,
    /// The number of the last one.
    last: u64,
}

#[derive(Debug)]
struct One {
    attempt: Attempt,
    number: u64,
    used: Instant,
}

impl Channels {
    /// A channel to `addr`, kept or new, and its number.
    ///
    /// # Errors
    /// Those of [`connect`].
    ///
    /// # Cancel safety
    /// The connection is made nevertheless, for the next one.
    pub(super) async fn get(
        &self,
        addr: &str,
        options: &Arc<GrpcOptions>,
    ) -> Result<(Channel, u64), String> {
        let (attempt, number, begun) = self.attempt(addr, options);
        match attempt.await {
            Ok(channel) => return Ok((channel, number)),
            Err(reason) if begun => return Err(reason),
            Err(_) => {}
        }
        let (attempt, number, _) = self.attempt(addr, options);
        attempt.await.map(|channel| (channel, number))
    }

    /// Forgets a channel to `addr`: it failed, and the name may resolve to another host now.
    pub(super) fn forget(&self, addr: &str, number: u64) {
        self.lock().forget(addr, number);
    }

    /// Closes all.
    pub(super) fn clear(&self) {
        self.lock().by_addr.clear();
    }

    /// The attempt to connect to `addr`, its number, and whether it was begun just now.
    fn attempt(&self, addr: &str, options: &Arc<GrpcOptions>) -> (Attempt, u64, bool) {
        let mut kept = self.lock();
        if let Some(one) = kept.by_addr.get_mut(addr)
            && one.used.elapsed() < MAX_IDLE
        {
            one.used = Instant::now();
            return (one.attempt.clone(), one.number, false);
        }
        kept.last += 1;
        let number = kept.last;
        let attempt = begin(addr, options, self.kept.clone(), number);
        let one = One { attempt: attempt.clone(), number, used: Instant::now() };
        kept.by_addr.insert(addr.to_owned(), one);
        if kept.by_addr.len() > MAX_CHANNELS
            && let Some(oldest) =
                kept.by_addr.iter().min_by_key(|(_, one)| one.used).map(|(addr, _)| addr.clone())
        {
            kept.by_addr.remove(&oldest);
        }
        (attempt, number, true)
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        lock(&self.kept)
    }
}

impl Kept {
    fn forget(&mut self, addr: &str, number: u64) {
        if self.by_addr.get(addr).is_some_and(|one| one.number == number) {
            self.by_addr.remove(addr);
        }
    }
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins to connect, on a task of its own: who asked may give up while others wait. The task
/// then sees to it that the channel is closed when nobody uses it any more.
fn begin(addr: &str, options: &Arc<GrpcOptions>, kept: Arc<Mutex<Kept>>, number: u64) -> Attempt {
    let (addr, options) = (addr.to_owned(), options.clone());
    let connecting = tokio::spawn(async move {
        let made = connect(&addr, &options).await;
        if made.is_err() {
            lock(&kept).forget(&addr, number);
        } else {
            tokio::spawn(close_unused(addr, Arc::downgrade(&kept), number));
        }
        made
    });
    // An error means that the runtime ends.
    connecting.map(|done| done.unwrap_or_else(|e| Err(e.to_string()))).boxed().shared()
}

/// Forgets a channel once it was not used for [`MAX_IDLE`], which closes it when the requests on it
/// are done; ends when somebody else has.
async fn close_unused(addr: String, kept: Weak<Mutex<Kept>>, number: u64) {
    loop {
        let Some(kept) = kept.upgrade() else { return };
        let until = match lock(&kept).by_addr.get(&addr) {
            Some(one) if one.number == number => one.used + MAX_IDLE,
            _ => return,
        };
        if until <= Instant::now() {
            return lock(&kept).forget(&addr, number);
        }
        drop(kept);
        sleep_until(until).await;
    }
}

#[cfg(all(test, target_os = "linux"))]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::net::TcpStream;

    use socket2::{Domain, Socket, Type};

    use super::*;

    /// An address that answers nothing at all: the kernel drops what comes once the queue of a
    /// listener is full.
    fn black_hole() -> (Socket, TcpStream, SocketAddr) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        socket.listen(0).unwrap();
        let addr = socket.local_addr().unwrap().as_socket().unwrap();
        let filling = TcpStream::connect(addr).unwrap();
        (socket, filling, addr)
    }

    /// Whoever founds a cluster asks its peers once more: what failed before must not answer.
    #[tokio::test]
    async fn a_failure_that_nobody_waited_for_is_not_kept_for_the_next() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = closed.local_addr().unwrap();
        drop(closed);
        let (channels, options) = (Channels::default(), Arc::new(GrpcOptions::default()));
        let target = addr.to_string();
        assert!(channels.get(&target, &options).now_or_never().is_none(), "under way");
        let forgotten = async {
            while !channels.lock().by_addr.is_empty() {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(30), forgotten).await.unwrap();
        let _open = std::net::TcpListener::bind(addr).unwrap();
        channels.get(&target, &options).await.unwrap();
    }

    #[tokio::test]
    async fn an_address_that_answers_nothing_leaves_time_for_the_next() {
        let (_socket, _filling, hole) = black_hole();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let open = listener.local_addr().unwrap();
        let connect_timeout = Duration::from_millis(600);
        let options = GrpcOptions { connect_timeout, ..GrpcOptions::default() };
        first_of(&[open], &options).await.unwrap();
        let targets = [hole, open];
        let both = timeout(connect_timeout, first_of(&targets, &options));
        both.await.unwrap().unwrap();
        assert!(first_of(&[hole], &options).await.is_err());
    }

    #[tokio::test]
    async fn a_channel_that_failed_takes_only_itself_along() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let (channels, options) = (Channels::default(), Arc::default());
        let (_, old) = channels.get(&addr, &options).await.unwrap();
        assert_eq!(channels.get(&addr, &options).await.unwrap().1, old, "it is kept");
        channels.forget(&addr, old);
        let (_, new) = channels.get(&addr, &options).await.unwrap();
        assert_ne!(new, old);
        // The other requests on the old one fail after it was replaced.
        channels.forget(&addr, old);
        assert_eq!(channels.get(&addr, &options).await.unwrap().1, new);
    }

    /// On the wire: the other end sees it go, and the one that was used meanwhile stays.
    #[tokio::test]
    async fn a_channel_that_nobody_uses_is_closed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let options = GrpcOptions { keepalive_interval: MAX_IDLE * 9, ..GrpcOptions::default() };
        let (channels, options) = (Channels::default(), Arc::new(options));
        let (channel, old) = channels.get(&addr, &options).await.unwrap();
        drop(channel);
        let (mut far, _) = listener.accept().await.unwrap();
        tokio::time::pause();
        tokio::time::advance(MAX_IDLE / 2).await;
        assert_eq!(channels.get(&addr, &options).await.unwrap().1, old, "used again");
        tokio::time::advance(MAX_IDLE * 3 / 4).await;
        tokio::task::yield_now().await;
        assert!(channels.lock().by_addr.contains_key(&addr), "not idle for long enough");
        tokio::time::advance(MAX_IDLE / 4).await;
        tokio::time::resume();
        let mut sent = Vec::new();
        let end = tokio::io::AsyncReadExt::read_to_end(&mut far, &mut sent);
        timeout(Duration::from_secs(30), end).await.unwrap().unwrap();
        assert!(channels.lock().by_addr.is_empty());
        assert_ne!(channels.get(&addr, &options).await.unwrap().1, old);
    }

    #[tokio::test]
    async fn the_least_recently_used_channel_goes_first() {
        let listeners: Vec<_> = (0..=MAX_CHANNELS)
            .map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let addr = |n: usize| listeners[n].local_addr().unwrap().to_string();
        let (channels, options) = (Channels::default(), Arc::default());
        for n in 0..MAX_CHANNELS {
            channels.get(&addr(n), &options).await.unwrap();
        }
        let (_, first) = channels.get(&addr(0), &options).await.unwrap();
        channels.get(&addr(MAX_CHANNELS), &options).await.unwrap();
        assert_eq!(channels.lock().by_addr.len(), MAX_CHANNELS);
        assert_eq!(channels.get(&addr(0), &options).await.unwrap().1, first);
        assert!(!channels.lock().by_addr.contains_key(&addr(1)));
    }
}
