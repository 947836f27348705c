//! A small HTTP/1.1 client: one connection, kept open, requests one after another.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::Failure;

/// The header that tells whether a write took effect.
pub(crate) const OUTCOME: &str = "x-raft-outcome";
/// The header that tells the log index of a write, or up to which one a read has seen.
pub(crate) const INDEX: &str = "x-raft-index";

/// Longer than the library's own deadline, so that its answer is the one that counts.
const DEADLINE: Duration = Duration::from_secs(10);
/// Bounds what a confused server could make this client read.
const MAX_BODY: usize = 256 << 20;
const MAX_LINE: u64 = 16 << 10;
const MAX_HEADERS: usize = 100;

/// A connection to one node; it is opened when first needed, and again after an error.
#[derive(Debug)]
pub(crate) struct Client {
    addr: String,
    stream: Option<BufReader<TcpStream>>,
}

/// What a node answered.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// `applied`, `not-applied`, `unknown`; empty where the server did not say.
    pub(crate) outcome: String,
    /// The log index; 0 where the server did not say.
    pub(crate) index: u64,
    pub(crate) body: Vec<u8>,
}

impl Response {
    /// The answer in words, for errors.
    pub(crate) fn text(&self) -> String {
        format!("HTTP {}: {}", self.status, String::from_utf8_lossy(&self.body).trim())
    }
}

impl Client {
    pub(crate) fn new(addr: impl Into<String>) -> Self {
        Self { addr: addr.into(), stream: None }
    }

    /// Opens the connection, if there is none. Who wants to know that a request was never sent
    /// does this first.
    ///
    /// # Errors
    /// When nobody answers there.
    pub(crate) async fn open(&mut self) -> Result<(), Failure> {
        if self.stream.is_none() {
            self.stream = Some(connect(&self.addr).await?);
        }
        Ok(())
    }

    /// Sends a request and reads the answer.
    ///
    /// # Errors
    /// When the connection failed; whether the request took effect is not known then.
    pub(crate) async fn request(
        &mut self,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> Result<Response, Failure> {
        let exchange = async {
            self.open().await?;
            // Taken out: after an error or a dropped future it must not be used again.
            let mut stream = self.stream.take().ok_or("not connected")?;
            let head = format!(
                "{method} {path} HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\n\r\n",
                self.addr,
                body.len()
            );
            stream.get_mut().write_all(&[head.as_bytes(), body].concat()).await?;
            let response = read_response(&mut stream).await?;
            Ok::<_, Failure>((stream, response))
        };
        let answered = timeout(DEADLINE, exchange).await;
        let (stream, response) =
            answered.map_err(|_| format!("{} did not answer within {DEADLINE:?}", self.addr))??;
        self.stream = Some(stream);
        Ok(response)
    }

    /// The node's status.
    ///
    /// # Errors
    /// When it does not answer with one.
    pub(crate) async fn status(&mut self) -> Result<serde_json::Value, Failure> {
        let response = self.request("GET", "/status", b"").await?;
        if response.status != 200 {
            return Err(response.text().into());
        }
        Ok(serde_json::from_slice(&response.body)?)
    }
}

/// Makes sure that somebody listens behind one of these addresses: one who mistyped an address
/// should not wait as patiently as one whose node is being restarted.
///
/// # Errors
/// When nobody does.
pub(crate) async fn any_reachable(nodes: &[String]) -> Result<(), Failure> {
    let mut problems = Vec::new();
    for node in nodes {
        match timeout(DEADLINE, connect(node)).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(e)) => problems.push(e.to_string()),
            Err(_) => problems.push(format!("{node} did not answer within {DEADLINE:?}")),
        }
    }
    let problems = problems.join("; ");
    Err(format!("{problems}. Start a node there, or give the --http-addr of one with --node")
        .into())
}

async fn connect(addr: &str) -> Result<BufReader<TcpStream>, Failure> {
    let stream =
        TcpStream::connect(addr).await.map_err(|e| format!("cannot connect to {addr}: {e}"))?;
    stream.set_nodelay(true)?;
    Ok(BufReader::new(stream))
}

async fn read_line(stream: &mut BufReader<TcpStream>) -> Result<String, Failure> {
    let mut line = String::new();
    stream.take(MAX_LINE).read_line(&mut line).await?;
    match line.strip_suffix("\r\n") {
        Some(line) => Ok(line.to_owned()),
        None => Err("the connection ended in the middle of an answer".into()),
    }
}

async fn read_response(stream: &mut BufReader<TcpStream>) -> Result<Response, Failure> {
    let line = read_line(stream).await?;
    let status = line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    let status = status.ok_or_else(|| format!("not HTTP: {line:?}"))?;
    let (mut length, mut outcome, mut index) = (None, String::new(), 0);
    for _ in 0..MAX_HEADERS {
        let line = read_line(stream).await?;
        let Some((name, value)) = line.split_once(':') else {
            let length =
                length.filter(|n| *n <= MAX_BODY).ok_or("answer without a usable length")?;
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await?;
            return Ok(Response { status, outcome, index, body });
        };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse::<usize>().ok();
        } else if name.eq_ignore_ascii_case(OUTCOME) {
            value.trim().clone_into(&mut outcome);
        } else if name.eq_ignore_ascii_case(INDEX) {
            index = value.trim().parse().map_err(|_| format!("not an index: {value:?}"))?;
        }
    }
    Err("answer with too many headers".into())
}
