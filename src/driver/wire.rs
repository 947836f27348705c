//! Errors and outcomes across the wire: what a node answers another, and how that reads there.
//!
//! Invariant: an outcome never becomes more certain on its way. What is unknown stays unknown,
//! and a code that is not understood is unknown.

use bytes::Bytes;
use prost::Message as _;

use crate::error::{Error, Leader, Outcome, Result};
use crate::node::event::Applied;
use crate::pb;
use crate::pb::refused::Code;
use crate::types::NodeId;
use crate::zoo::{self, Bug};

/// Bytes of an answer beside its outcomes, and of an outcome beside itself, generously.
const ANSWER_OVERHEAD: u64 = 1 << 10;
const OUTCOME_OVERHEAD: usize = 16;

/// The answer to a request that failed.
pub(crate) fn refuse(error: &Error, leader: Option<Leader>) -> pb::Refused {
    let code = match error {
        Error::NotLeader { .. } => Code::NotLeader,
        Error::NoLeader | Error::NotReady { .. } => Code::NoLeader,
        Error::Overloaded { .. } => Code::Overloaded,
        Error::TooLarge { .. } => Code::TooLarge,
        Error::Dropped => Code::Dropped,
        Error::ShuttingDown => Code::ShuttingDown,
        Error::Membership(_) => Code::Membership,
        Error::WrongCluster(_) => Code::WrongCluster,
        Error::Timeout => Code::Timeout,
        Error::Rejected(_)
        | Error::Invalid(_)
        | Error::Removed { .. }
        | Error::ClusterExists { .. }
        | Error::Config { .. }
        | Error::Listen { .. }
        | Error::DataDir { .. }
        | Error::Unreachable { .. } => Code::Invalid,
        Error::Fatal(_)
        | Error::Unknown { .. }
        | Error::Storage(_)
        | Error::StoreFailed { .. }
        | Error::Internal { .. } => Code::UnknownOutcome,
    };
    let message = match error {
        Error::Membership(m) | Error::WrongCluster(m) | Error::Unknown { reason: m } => m.clone(),
        other => other.to_string(),
    };
    let leader = error.leader().cloned().or(leader);
    let (leader_id, leader_addr) = leader.map_or((0, String::new()), |l| (l.id, l.addr));
    pb::Refused { code: code.into(), message, leader_id, leader_addr }
}

/// A refusal as the response to a whole request.
pub(crate) fn refused(error: &Error, leader: Option<Leader>) -> pb::Response {
    respond(pb::response::Kind::Refused(refuse(error, leader)))
}

pub(crate) fn respond(kind: pb::response::Kind) -> pb::Response {
    pb::Response { kind: Some(kind) }
}

/// What a refusal means here. `size` and `limit` are those of the request, for `TooLarge`.
pub(crate) fn error(refused: &pb::Refused, size: u64, limit: u64) -> Error {
    let message = refused.message.clone();
    if zoo::has(Bug::UnknownMeansNever) && refused.code == i32::from(Code::UnknownOutcome) {
        return Error::Dropped;
    }
    match Code::try_from(refused.code) {
        Ok(Code::UnknownOutcome) => Error::unknown(message),
        Ok(Code::NotLeader) => Error::NotLeader { leader: leader(refused) },
        Ok(Code::NoLeader) => Error::NoLeader,
        Ok(Code::Overloaded) => {
            Error::Overloaded { what: "work in flight on the leader", bound: limit }
        }
        Ok(Code::TooLarge) => Error::TooLarge { size, limit },
        Ok(Code::Dropped) => Error::Dropped,
        Ok(Code::ShuttingDown) => Error::NotLeader { leader: None },
        Ok(Code::Membership) => Error::Membership(message),
        Ok(Code::WrongCluster) => Error::WrongCluster(message),
        Ok(Code::Invalid) => Error::Membership(format!("the peer refused: {message}")),
        Ok(Code::Timeout) => Error::Timeout,
        Err(_) => Error::unknown(format!("the peer answered with an unknown code: {message}")),
    }
}

/// The leader that a refusal names.
pub(crate) fn leader(refused: &pb::Refused) -> Option<Leader> {
    (!refused.leader_addr.is_empty())
        .then(|| Leader { id: refused.leader_id as NodeId, addr: refused.leader_addr.clone() })
}

/// The answer to forwarded proposals, within `most` bytes: an answer that is larger would not
/// arrive at all, and leave every proposer of the request without an outcome. So a reply for which
/// there is no room stays behind, and only its own proposer does not hear what became of it.
pub(crate) fn proposed(mut outcomes: Vec<pb::Outcome>, most: u64) -> pb::response::Kind {
    let cost = |outcome: &pb::Outcome| outcome.encoded_len() + OUTCOME_OVERHEAD;
    let left_out = outcome(Err(Error::unknown("applied, but its reply is too large")), None);
    let least = cost(&left_out);
    let most = usize::try_from(most.saturating_sub(ANSWER_OVERHEAD)).unwrap_or(usize::MAX);
    let mut left = most.saturating_sub(outcomes.iter().map(|o| cost(o).min(least)).sum());
    for outcome in &mut outcomes {
        let more = cost(outcome).saturating_sub(least);
        match left.checked_sub(more) {
            Some(rest) => left = rest,
            None => *outcome = left_out.clone(),
        }
    }
    pb::response::Kind::Proposed(pb::Proposed { outcomes })
}

/// The outcome of one proposal, for the node that forwarded it.
pub(crate) fn outcome(result: Result<Applied>, leader: Option<Leader>) -> pb::Outcome {
    use pb::outcome::Kind;
    let (index, kind) = match result {
        Ok(applied) => (applied.index, Kind::Reply(applied.data.into())),
        Err(Error::Rejected(reason)) => (0, Kind::Rejected(reason)),
        Err(e) => (0, Kind::Refused(refuse(&e, leader))),
    };
    pb::Outcome { index, kind: Some(kind) }
}

/// The outcome of one proposal that was forwarded.
pub(crate) fn applied(outcome: pb::Outcome, size: u64, limit: u64) -> Result<Applied> {
    use pb::outcome::Kind;
    match outcome.kind {
        Some(Kind::Reply(data)) => Ok(Applied { index: outcome.index, data: into_vec(data) }),
        Some(Kind::Rejected(reason)) => Err(Error::Rejected(reason)),
        Some(Kind::Refused(r)) => Err(error(&r, size, limit)),
        None => Err(Error::unknown("the leader's answer holds no outcome")),
    }
}

/// Whether a refused request surely did nothing and may do better elsewhere or later.
pub(crate) fn may_retry(error: &Error) -> bool {
    match error {
        Error::NotLeader { .. } | Error::NoLeader | Error::Unreachable { .. } => {
            debug_assert!(error.outcome() == Outcome::NotApplied);
            true
        }
        _ => zoo::has(Bug::RetryUnknown) && error.outcome_unknown(),
    }
}

fn into_vec(data: Bytes) -> Vec<u8> {
    data.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_never_becomes_more_certain_on_its_way() {
        let errors = [
            Error::unknown("lost"),
            Error::NotLeader { leader: None },
            Error::NoLeader,
            Error::NotReady { reason: "waiting".to_owned() },
            Error::Dropped,
            Error::Overloaded { what: "x", bound: 1 },
            Error::TooLarge { size: 2, limit: 1 },
            Error::ShuttingDown,
            Error::Timeout,
            Error::Membership("no".to_owned()),
            Error::fatal("broken"),
            Error::Internal { part: "x", reason: String::new() },
        ];
        for e in errors {
            let there = error(&refuse(&e, None), 2, 1);
            assert_eq!(there.outcome(), e.outcome(), "{e} became {there}");
        }
        let strange = pb::Refused { code: 77, ..pb::Refused::default() };
        assert!(error(&strange, 0, 0).outcome_unknown());
        assert!(applied(pb::Outcome::default(), 0, 0).is_err_and(|e| e.outcome_unknown()));
    }

    #[test]
    fn a_reply_that_does_not_fit_is_left_out_alone() {
        let reply = |size| outcome(Ok(Applied { index: 7, data: vec![1; size] }), None);
        let sizes = [40_000, 10, 70_000, 40_000, 30_000, 10];
        let most = 100_000;
        let answer = proposed(sizes.map(reply).into(), most);
        let size = respond(answer.clone()).encoded_len() as u64;
        assert!(size <= most, "{size} bytes");
        let pb::response::Kind::Proposed(p) = answer else { panic!("{answer:?}") };
        let fits: Vec<bool> = p
            .outcomes
            .into_iter()
            .map(|o| match applied(o, 0, 0) {
                Ok(_) => true,
                Err(e) => !e.outcome_unknown(),
            })
            .collect();
        assert_eq!(fits, [true, true, false, true, false, true]);
    }

    #[test]
    fn replies_rejections_and_leaders_survive_the_wire() {
        let applied_here = Applied { index: 7, data: b"ok".to_vec() };
        assert_eq!(applied(outcome(Ok(applied_here.clone()), None), 0, 0).ok(), Some(applied_here));
        let rejected = applied(outcome(Err(Error::rejected("no")), None), 0, 0);
        assert!(matches!(rejected, Err(Error::Rejected(r)) if r == "no"));
        let hint = Leader { id: 3, addr: "c:1".to_owned() };
        let e = error(&refuse(&Error::NoLeader, Some(hint.clone())), 0, 0);
        assert!(matches!(e, Error::NoLeader));
        let e = error(&refuse(&Error::NotLeader { leader: None }, Some(hint.clone())), 0, 0);
        assert_eq!(e.leader(), Some(&hint));
    }
}
