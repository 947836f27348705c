//! Who belongs to the cluster, and the calls that change it, over HTTP. Any node takes them; the
//! leader does them. All are safe to repeat.
//!
//! ```text
//! GET  /members                            one line per member; with ?stale what this node knows
//! GET  /health                             in words; 503 when it is unavailable
//! POST /members/add?id=4&addr=HOST:PORT    answers once it votes; &learner=1: never by itself
//! POST /members/promote?id=4               a learner that has caught up votes
//! POST /members/demote?id=4                a voter becomes a learner
//! POST /members/remove?id=4
//! POST /members/replace?old=4&new=5        at once; 5 was added before, as a learner
//! POST /members/set?voters=1,2,3&learners=4   all members, at once
//! POST /members/update?id=4&addr=HOST:PORT
//! POST /members/transfer?to=2              leadership; without `to`: to the voter that is furthest
//! POST /leave                              this node leaves, and its process ends
//! ```
//!
//! Answers: 200 done; 400 the request makes no sense; 409 refused, and nothing was changed; 503 not
//! done, try again; 504 it may be done, or may still be: ask again.

use axum::extract::{FromRequestParts, Query, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use raftline::{Level, Mailbox, MemberStatus, NodeId, Status};
use serde::Serialize;
use serde_json::json;

use crate::http::{Answer, Failed};

/// The routes of this file.
pub(crate) fn routes() -> Router<Mailbox> {
    Router::new()
        .route("/members", get(members))
        .route("/health", get(health))
        .route("/members/add", post(add))
        .route("/members/promote", post(promote))
        .route("/members/demote", post(demote))
        .route("/members/remove", post(remove))
        .route("/members/replace", post(replace))
        .route("/members/set", post(set))
        .route("/members/update", post(update))
        .route("/members/transfer", post(transfer))
        .route("/leave", post(leave))
}

/// What a request asks for: names and values, each name once.
struct Asked {
    path: String,
    given: Vec<(String, String)>,
}

impl<S: Send + Sync> FromRequestParts<S> for Asked {
    type Rejection = Failed;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failed> {
        let path = parts.uri.path().to_owned();
        let Ok(Query(given)) = Query::from_request_parts(parts, state).await else {
            return Err(Failed::Bad(format!("{path}: what follows the ? is no NAME=VALUE&..")));
        };
        Ok(Self { path, given })
    }
}

impl Asked {
    /// The values of these names, in this order; any other name is refused.
    fn take<const N: usize>(mut self, names: [&str; N]) -> Answer<[Option<String>; N]> {
        let mut values = names.map(|_| None);
        for (name, value) in std::mem::take(&mut self.given) {
            let Some(slot) = names.iter().position(|known| *known == name) else {
                return Err(self.bad(&format!("what is {name:?}? It takes {}", names.join(", "))));
            };
            if values[slot].replace(value).is_some() {
                return Err(self.bad(&format!("{name} is given twice")));
            }
        }
        Ok(values)
    }

    fn bad(&self, reason: &str) -> Failed {
        Failed::Bad(format!("{}: {reason}", self.path))
    }
}

/// A node id that must be given.
fn id(name: &str, value: Option<String>) -> Answer<NodeId> {
    let text = value.ok_or_else(|| Failed::Bad(format!("say which node: {name}=4")))?;
    one_id(name, &text)
}

fn one_id(name: &str, text: &str) -> Answer<NodeId> {
    let id = text.parse().ok().filter(|id| *id > 0);
    id.ok_or_else(|| {
        Failed::Bad(format!("{name}={text}: a node id is a number above 0, such as {name}=4"))
    })
}

/// Node ids with commas between; none at all is fine.
fn ids(name: &str, value: Option<String>) -> Answer<Vec<NodeId>> {
    let text = value.unwrap_or_default();
    text.split(',').filter(|id| !id.is_empty()).map(|id| one_id(name, id)).collect()
}

/// An address that must be given.
fn addr(value: Option<String>) -> Answer<String> {
    let text = value.unwrap_or_default();
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty() && !host.contains('/'));
    if port.is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|port| port > 0)) {
        return Ok(text);
    }
    Err(Failed::Bad(format!(
        "addr={text}: say where the other nodes reach it: addr=HOST:PORT, such as \
         addr=10.0.0.4:5000"
    )))
}

/// A flag: given, and neither 0 nor false.
fn flag(value: Option<String>) -> bool {
    value.is_some_and(|value| value != "0" && value != "false")
}

fn done() -> Response {
    Json(json!({ "outcome": "applied" })).into_response()
}

async fn members(State(mailbox): State<Mailbox>, asked: Asked) -> Answer<String> {
    let [stale] = asked.take(["stale"])?;
    if !flag(stale) {
        // What this node knows is then as new as every change acknowledged before.
        mailbox.read_index().await?;
    }
    let status = mailbox.status().await?;
    Ok(status.members.iter().map(|member| line(&status, member)).collect())
}

/// A member in one line. Only the leader knows how far the others are.
fn line(status: &Status, member: &MemberStatus) -> String {
    let leads = member.id == status.leader_id;
    let role = if leads { "leader".to_owned() } else { word(member.role) };
    // The first digits are enough to see that it is another data directory.
    let incarnation: String = member.incarnation.chars().take(8).collect();
    let known = |value: Option<u64>| value.map_or_else(String::new, |n| n.to_string());
    let mut state = member.replication.map_or_else(String::new, word);
    if let Some(percent) = member.snapshot_percent {
        state = format!("{state}:{percent}%");
    }
    let facts = [
        ("id", member.id.to_string()),
        ("role", role),
        ("addr", member.addr.clone()),
        ("incarnation", incarnation),
        ("matched", known(member.matched)),
        ("lag", known(member.lag)),
        ("state", state),
        ("last_contact_ms", known(member.last_contact_ms)),
    ];
    let facts = facts.map(|(name, value)| match value.as_str() {
        "" => format!("{name}=-"),
        value => format!("{name}={value}"),
    });
    facts.join(" ") + "\n"
}

/// As the JSON of `/status` calls it.
fn word(value: impl Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

/// 503 when it is unavailable as far as this node knows, so that a load balancer need not read.
async fn health(State(mailbox): State<Mailbox>) -> Answer<(StatusCode, String)> {
    let health = mailbox.status().await?.health();
    let code = match health.level {
        Level::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::OK,
    };
    Ok((code, format!("{health}\n")))
}

async fn add(State(mailbox): State<Mailbox>, asked: Asked) -> Answer<Response> {
    let [node, at, learner] = asked.take(["id", "addr", "learner"])?;
    let (node, at) = (id("id", node)?, addr(at)?);
    match flag(learner) {
        true => mailbox.add_learner(node, at).await?,
        false => mailbox.add_voter(node, at).await?,
    }
    Ok(done())
}

async fn promote(State(mailbox): State<Mailbox>, asked: Asked) -> Answer<Response> {
    let [node] = asked.take(["id"])?;
    mailbox.promote(id("id", node)?).await?;
    Ok(done())
}

async fn demote(State(mailbox): State<Mailbox>, asked: Asked) -> Answer<Response> {
    let [node] = asked.take(["id"])?;
    mailbox.demote(id("id", node)?).await?;
    Ok(done())
}

async fn remove(State(mailbox): State<Mailbox>, asked: Asked) -> Answer<Response> {
    let [node] = asked.take(["id"])?;
    mailbox.remove(id("id", node)?).await?;
    Ok(done())
}

async fn replace(State(mailbox): State<Mailbox>, asked: Asked) -> Answer<Response> {
    let [old, new] = asked.take(["old", "new"])?;
    mailbox.replace(id("old", old)?, id("new", new)?).await?;
    Ok(done())
}

async fn set(State(mailbox): State<Mailbox>, asked: Asked) -> Answer<Response> {
    let [voters, learners] = asked.take(["voters", "learners"])?;
    let (voters, learners) = (ids("voters", voters)?, ids("learners", learners)?);
    if voters.is_empty() {
        return Err(Failed::Bad("name all members that vote: voters=1,2,3".to_owned()));
    }
    mailbox.change_membership(&voters, &learners).await?;
    Ok(done())
}

async fn update(State(mailbox): State<Mailbox>, asked: Asked) -> Answer<Response> {
    let [node, at] = asked.take(["id", "addr"])?;
    mailbox.update_member(id("id", node)?, Some(addr(at)?), None).await?;
    Ok(done())
}

async fn transfer(State(mailbox): State<Mailbox>, asked: Asked) -> Answer<Response> {
    let [to] = asked.take(["to"])?;
    let to = to.map(|to| one_id("to", &to)).transpose()?;
    mailbox.transfer_leadership(to).await?;
    Ok(done())
}

async fn leave(State(mailbox): State<Mailbox>, asked: Asked) -> Answer<Response> {
    let [] = asked.take([])?;
    mailbox.leave().await?;
    Ok(done())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use raftline::{Replication, VotingRole};

    use super::*;

    fn asked(given: &[(&str, &str)]) -> Asked {
        let given = given.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Asked { path: "/members/add".to_owned(), given }
    }

    fn bad<T>(answer: Answer<T>) -> String {
        match answer {
            Err(Failed::Bad(reason)) => reason,
            Err(Failed::Raft(e)) => panic!("{e}"),
            Ok(_) => panic!("taken"),
        }
    }

    #[test]
    fn what_is_misspelt_or_said_twice_is_refused_by_its_name() {
        let taken = asked(&[("addr", "h:1"), ("id", "4")]).take(["id", "addr"]).ok().unwrap();
        assert_eq!(taken, [Some("4".to_owned()), Some("h:1".to_owned())]);
        let reason = bad(asked(&[("node", "4")]).take(["id", "addr"]));
        assert_eq!(reason, "/members/add: what is \"node\"? It takes id, addr");
        let reason = bad(asked(&[("id", "4"), ("id", "5")]).take(["id"]));
        assert_eq!(reason, "/members/add: id is given twice");
    }

    #[test]
    fn an_id_or_address_that_is_none_is_refused_with_one_that_is() {
        for text in ["", "0", "-1", "four", "1 2", "99999999999999999999"] {
            assert!(bad(id("old", Some(text.to_owned()))).contains("such as old=4"), "{text}");
        }
        assert_eq!(bad(id("id", None)), "say which node: id=4");
        for text in ["", "10.0.0.4", ":5000", "h:", "h:0", "h:70000", "h:web", "http://h:5000"] {
            assert!(bad(addr(Some(text.to_owned()))).contains("10.0.0.4:5000"), "{text}");
        }
        for text in ["10.0.0.4:5000", "node-4:5000", "[::1]:5000"] {
            assert_eq!(addr(Some(text.to_owned())).ok().unwrap(), text);
        }
    }

    #[test]
    fn a_member_is_one_line_and_what_is_not_known_is_a_dash() {
        let mut member = MemberStatus { id: 2, addr: "h:2".to_owned(), ..MemberStatus::default() };
        let status = Status { leader_id: 1, ..Status::default() };
        let expected = "id=2 role=learner addr=h:2 incarnation=- matched=- lag=- state=- \
                        last_contact_ms=-\n";
        assert_eq!(line(&status, &member), expected);
        member.role = VotingRole::Voter;
        member.incarnation = "0123456789abcdef".to_owned();
        (member.matched, member.lag) = (Some(7), Some(2));
        (member.replication, member.snapshot_percent) = (Some(Replication::Snapshot), Some(40));
        member.last_contact_ms = Some(100);
        let expected = "id=2 role=voter addr=h:2 incarnation=01234567 matched=7 lag=2 \
                        state=snapshot:40% last_contact_ms=100\n";
        assert_eq!(line(&status, &member), expected);
        let leader = Status { leader_id: 2, ..Status::default() };
        assert!(line(&leader, &member).starts_with("id=2 role=leader "));
    }

    #[test]
    fn a_list_of_ids_has_commas_between() {
        assert_eq!(ids("voters", Some("1,2,3".to_owned())).ok().unwrap(), [1, 2, 3]);
        assert!(ids("learners", None).ok().unwrap().is_empty());
        assert!(bad(ids("voters", Some("1;2".to_owned()))).contains("voters=1;2"));
    }
}
