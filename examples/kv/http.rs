//! The HTTP face of a node. Every answer to a write says whether it took effect: in the header
//! `x-raft-outcome` (`applied`, `not-applied`, `unknown`) and, for errors, in the JSON body. The
//! header `x-raft-index` tells the log index of a write, or up to which index a read has seen.
//!
//! ```text
//! GET    /kv/KEY                 linearizable; with ?stale whatever this node holds
//! PUT    /kv/KEY                 the body is the value
//! PUT    /kv/KEY?if=OLD          only if it holds OLD, else 412 and nothing is changed
//! PUT    /kv/KEY?if-absent       only if there is no such key, else 412
//! POST   /kv/KEY                 appends the body to the value
//! DELETE /kv/KEY
//! GET    /status                 everything that the node tells about itself, as JSON
//! ```
//!
//! `members.rs` has the rest: who belongs to the cluster, and what changes it.

use std::collections::HashMap;

use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, body::Bytes};
use raftline::{Consistency, Error, Mailbox, Outcome};
use serde_json::json;
use tokio::net::TcpListener;

use crate::client::{INDEX, OUTCOME};
use crate::members;
use crate::store::{Command, Written, decode_value};

/// Above the library's own limit, so that its error is the one that a client sees.
const MAX_BODY: usize = 64 << 20;

/// Serves until `stop` resolves.
pub(crate) async fn serve(
    listener: TcpListener,
    mailbox: Mailbox,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let app = Router::new()
        .route("/", get(page))
        .route("/status", get(status))
        .route("/kv/{key}", get(read).put(put).post(append).delete(delete))
        .merge(members::routes())
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(mailbox);
    axum::serve(listener, app).with_graceful_shutdown(stop).await
}

/// An error on its way out.
pub(crate) enum Failed {
    /// Of the library.
    Raft(Error),
    /// A request that makes no sense; in words, with what to write instead.
    Bad(String),
}

impl From<Error> for Failed {
    fn from(e: Error) -> Self {
        Self::Raft(e)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let e = match self {
            Self::Raft(e) => e,
            Self::Bad(reason) => {
                let outcome = outcome_name(Outcome::NotApplied);
                let body = json!({ "error": reason, "outcome": outcome, "retryable": false });
                return (StatusCode::BAD_REQUEST, [(OUTCOME, outcome)], Json(body)).into_response();
            }
        };
        let outcome = outcome_name(e.outcome());
        let body = json!({
            "error": e.to_string(),
            "outcome": outcome,
            "retryable": e.is_retryable(),
            "leader": e.leader().map(|l| json!({ "id": l.id, "addr": l.addr })),
        });
        (status_of(&e), [(OUTCOME, outcome)], Json(body)).into_response()
    }
}

fn outcome_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Applied => "applied",
        Outcome::NotApplied => "not-applied",
        Outcome::Unknown => "unknown",
    }
}

fn status_of(e: &Error) -> StatusCode {
    match e {
        Error::Rejected(_) => StatusCode::UNPROCESSABLE_ENTITY,
        Error::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        Error::Overloaded { .. } => StatusCode::TOO_MANY_REQUESTS,
        Error::Membership(_) => StatusCode::CONFLICT,
        Error::Removed { .. } => StatusCode::GONE,
        Error::Unknown { .. } => StatusCode::GATEWAY_TIMEOUT,
        Error::Timeout
        | Error::NotLeader { .. }
        | Error::NoLeader
        | Error::NotReady { .. }
        | Error::Dropped
        | Error::ShuttingDown
        | Error::Unreachable { .. } => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// What a request gets.
pub(crate) type Answer<T> = Result<T, Failed>;

async fn write(mailbox: &Mailbox, command: Command) -> Answer<Response> {
    let compares = matches!(command, Command::CompareAndSet { .. });
    let answer = mailbox.propose_indexed(command.encode()?).await?;
    let Written { existed, changed } = Written::decode(&answer.data)?;
    // Every replica applied a comparison that failed, too: as a command that changes nothing.
    let body = json!({ "outcome": "applied", "existed": existed, "changed": changed });
    let headers = [(OUTCOME, "applied".to_owned()), (INDEX, answer.index.to_string())];
    let status =
        if compares && !changed { StatusCode::PRECONDITION_FAILED } else { StatusCode::OK };
    Ok((status, headers, Json(body)).into_response())
}

async fn put(
    State(mailbox): State<Mailbox>,
    Path(key): Path<String>,
    Query(flags): Query<HashMap<String, String>>,
    value: Bytes,
) -> Answer<Response> {
    let value = value.to_vec();
    let command = match flags.get("if") {
        Some(old) => {
            Command::CompareAndSet { key, expected: Some(old.clone().into_bytes()), value }
        }
        None if flags.contains_key("if-absent") => {
            Command::CompareAndSet { key, expected: None, value }
        }
        None => Command::Put { key, value },
    };
    write(&mailbox, command).await
}

async fn append(
    State(mailbox): State<Mailbox>,
    Path(key): Path<String>,
    value: Bytes,
) -> Answer<Response> {
    write(&mailbox, Command::Append { key, value: value.to_vec() }).await
}

async fn delete(State(mailbox): State<Mailbox>, Path(key): Path<String>) -> Answer<Response> {
    write(&mailbox, Command::Delete { key }).await
}

/// Linearizable; with `?stale` whatever this node holds.
async fn read(
    State(mailbox): State<Mailbox>,
    Path(key): Path<String>,
    Query(flags): Query<HashMap<String, String>>,
) -> Answer<Response> {
    let consistency = match flags.get("stale").map(String::as_str) {
        None | Some("false") => Consistency::Linearizable,
        Some(_) => Consistency::Stale,
    };
    let answer = mailbox.query_with(key.into_bytes(), consistency).await?;
    let index = [(INDEX, answer.index.to_string())];
    Ok(match decode_value(answer.data) {
        Some(value) => {
            (index, [(header::CONTENT_TYPE, "application/octet-stream")], value).into_response()
        }
        None => (StatusCode::NOT_FOUND, index, "no such key\n").into_response(),
    })
}

async fn status(State(mailbox): State<Mailbox>) -> Answer<Response> {
    Ok(Json(mailbox.status().await?).into_response())
}

async fn page() -> Html<&'static str> {
    Html(include_str!("status.html"))
}
