//! A transport for the peers that bring none: frames over one TCP connection per direction.
//!
//! A frame is `number u64 | kind u8 | length u32 | body`, in little endian. What is queued goes out in one
//! write. An answer has the number of its request.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

const HEAD: usize = 8 + 1 + 4;
const BUFFER: usize = 64 << 10;
/// Frames that are put into one write at most.
const GATHER: usize = 256;

/// A message on its way.
pub struct Frame {
    number: u64,
    kind: u8,
    body: Vec<u8>,
}

async fn read<R: AsyncRead + Unpin>(from: &mut R) -> io::Result<Frame> {
    let number = from.read_u64_le().await?;
    let kind = from.read_u8().await?;
    let mut body = vec![0; from.read_u32_le().await? as usize];
    from.read_exact(&mut body).await?;
    Ok(Frame { number, kind, body })
}

/// Writes until the sender or the connection is gone.
async fn write(mut to: OwnedWriteHalf, mut queue: mpsc::UnboundedReceiver<Frame>) {
    let (mut frames, mut bytes) = (Vec::new(), Vec::new());
    while queue.recv_many(&mut frames, GATHER).await > 0 {
        bytes.clear();
        for Frame { number, kind, body } in frames.drain(..) {
            bytes.reserve(HEAD + body.len());
            bytes.extend_from_slice(&number.to_le_bytes());
            bytes.push(kind);
            bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&body);
        }
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// Calls `connected` for each connection that is made to this address.
async fn accept<F: Fn(TcpStream) + Send + 'static>(addr: &str, connected: F) -> io::Result<()> {
    let listener = TcpListener::bind(addr).await?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            connected(stream);
        }
    });
    Ok(())
}

/// Answers every frame with what the handler makes of kind and body, each in a task of its own.
pub async fn answer<H, F>(addr: &str, handler: H) -> io::Result<()>
where
    H: Fn(u8, Vec<u8>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Vec<u8>> + Send + 'static,
{
    accept(addr, move |stream| {
        let handler = handler.clone();
        tokio::spawn(async move {
            let (from, to) = stream.into_split();
            let mut from = BufReader::with_capacity(BUFFER, from);
            let (answers, queue) = mpsc::unbounded_channel();
            tokio::spawn(write(to, queue));
            while let Ok(Frame { number, kind, body }) = read(&mut from).await {
                let (answering, answers) = (handler(kind, body), answers.clone());
                tokio::spawn(async move {
                    let _ = answers.send(Frame { number, kind, body: answering.await });
                });
            }
        });
    })
    .await
}

/// Hands over the body of every frame, in order; nothing is answered.
pub async fn take<H>(addr: &str, handler: H) -> io::Result<()>
where
    H: Fn(Vec<u8>) + Clone + Send + 'static,
{
    accept(addr, move |stream| {
        let handler = handler.clone();
        tokio::spawn(async move {
            let mut from = BufReader::with_capacity(BUFFER, stream);
            while let Ok(frame) = read(&mut from).await {
                handler(frame.body);
            }
        });
    })
    .await
}

/// Who waits for which number; None once the connection is gone.
type Waiting = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Vec<u8>>>>>>;

struct Connection {
    queue: mpsc::UnboundedSender<Frame>,
    waiting: Waiting,
}

/// The other end: connects when it is first used, and again after a connection broke.
pub struct Caller {
    addr: String,
    next: AtomicU64,
    connection: tokio::sync::Mutex<Option<Arc<Connection>>>,
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the connection is lost")
}

impl Connection {
    async fn open(addr: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        let (from, to) = stream.into_split();
        let (queue, frames) = mpsc::unbounded_channel();
        tokio::spawn(write(to, frames));
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let answered = waiting.clone();
        tokio::spawn(async move {
            let mut from = BufReader::with_capacity(BUFFER, from);
            while let Ok(Frame { number, body, .. }) = read(&mut from).await {
                let mut waiting = answered.lock().unwrap_or_else(PoisonError::into_inner);
                let waiter = waiting.as_mut().and_then(|waiting| waiting.remove(&number));
                drop(waiting);
                if let Some(waiter) = waiter {
                    let _ = waiter.send(body);
                }
            }
            *answered.lock().unwrap_or_else(PoisonError::into_inner) = None;
        });
        Ok(Self { queue, waiting })
    }

    fn is_open(&self) -> bool {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.is_some() && !self.queue.is_closed()
    }
}

impl Caller {
    /// Of this address.
    pub fn new(addr: impl Into<String>) -> Self {
        let connection = tokio::sync::Mutex::new(None);
        Self { addr: addr.into(), next: AtomicU64::new(1), connection }
    }

    async fn connection(&self) -> io::Result<Arc<Connection>> {
        let mut held = self.connection.lock().await;
        if let Some(connection) = held.as_ref().filter(|connection| connection.is_open()) {
            return Ok(connection.clone());
        }
        let connection = Arc::new(Connection::open(&self.addr).await?);
        *held = Some(connection.clone());
        Ok(connection)
    }

    /// Asks, and waits for the answer.
    pub async fn call(&self, kind: u8, body: Vec<u8>) -> io::Result<Vec<u8>> {
        let connection = self.connection().await?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (waiter, answer) = oneshot::channel();
        match connection.waiting.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(waiting) => waiting.insert(number, waiter),
            None => return Err(broken()),
        };
        connection.queue.send(Frame { number, kind, body }).map_err(|_| broken())?;
        answer.await.map_err(|_| broken())
    }

    /// Sends, and expects nothing.
    pub async fn post(&self, body: Vec<u8>) -> io::Result<()> {
        let connection = self.connection().await?;
        connection.queue.send(Frame { number: 0, kind: 0, body }).map_err(|_| broken())
    }
}
