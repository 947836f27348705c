//! Refusals and failures as gRPC statuses, and back.
//!
//! A [`Refusal`] travels in the details of a status, so that the peer gets the same value; a
//! status without such details says only that the connection or the peer failed.

use std::error::Error as _;

use prost::Message as _;
use tonic::{Code, Status};

use crate::pb;
use crate::transport::{Refusal, TransportError};
use pb::refusal::Kind;

/// Longest text of a refusal on the wire: it travels in a header, and headers are bounded.
const MAX_TEXT: usize = 512;

/// The status that tells this refusal.
pub(crate) fn refuse(refusal: Refusal) -> Status {
    let code = match &refusal {
        Refusal::Protocol { .. } | Refusal::Receiver(_) => Code::FailedPrecondition,
        Refusal::Cluster { .. } | Refusal::Removed(_) | Refusal::Sender(_) => {
            Code::PermissionDenied
        }
        Refusal::Busy(_) => Code::ResourceExhausted,
        Refusal::Malformed(_) => Code::InvalidArgument,
    };
    let text = clip(refusal.to_string());
    let kind = match refusal {
        Refusal::Protocol { theirs } => Kind::Protocol(theirs),
        Refusal::Cluster { ours, theirs } => {
            Kind::Cluster(pb::OtherCluster { ours: clip(ours), theirs: clip(theirs) })
        }
        Refusal::Receiver(text) => Kind::Receiver(clip(text)),
        Refusal::Removed(node) => Kind::Removed(node),
        Refusal::Sender(text) => Kind::Sender(clip(text)),
        Refusal::Busy(text) => Kind::Busy(clip(text)),
        Refusal::Malformed(text) => Kind::Malformed(clip(text)),
    };
    let details = pb::Refusal { kind: Some(kind) }.encode_to_vec();
    Status::with_details(code, text, details.into())
}

/// The refusal in a status, if it is one.
pub(crate) fn refusal(status: &Status) -> Option<Refusal> {
    if status.details().is_empty() {
        return None;
    }
    Some(match pb::Refusal::decode(status.details()).ok()?.kind? {
        Kind::Protocol(theirs) => Refusal::Protocol { theirs },
        Kind::Cluster(c) => Refusal::Cluster { ours: c.ours, theirs: c.theirs },
        Kind::Receiver(text) => Refusal::Receiver(text),
        Kind::Removed(node) => Refusal::Removed(node),
        Kind::Sender(text) => Refusal::Sender(text),
        Kind::Busy(text) => Refusal::Busy(text),
        Kind::Malformed(text) => Refusal::Malformed(text),
    })
}

/// What a failed request to `addr` means: nothing was sent only when the connection itself could
/// not be made.
pub(super) fn failure(addr: &str, status: &Status) -> TransportError {
    if let Some(refusal) = refusal(status) {
        return TransportError::Refused(refusal);
    }
    let reason = describe(status);
    if connect_failed(status) {
        return TransportError::Unreachable { addr: addr.to_owned(), reason };
    }
    TransportError::Lost { addr: addr.to_owned(), reason }
}

fn connect_failed(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// A status in words.
pub(super) fn describe(status: &Status) -> String {
    let mut text = status.message().to_owned();
    if text.is_empty() {
        text = status.code().description().to_owned();
    }
    append_causes(text, status.source())
}

/// An error and its causes in one line, without repeating what a cause already says.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    append_causes(error.to_string(), error.source())
}

fn append_causes(mut text: String, mut cause: Option<&dyn std::error::Error>) -> String {
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

fn clip(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        let end = (0..=MAX_TEXT).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_comes_back_as_it_was() {
        let all = [
            Refusal::Protocol { theirs: 9 },
            Refusal::Cluster { ours: "a".to_owned(), theirs: "b".to_owned() },
            Refusal::Receiver("r".to_owned()),
            Refusal::Removed(4),
            Refusal::Sender("s".to_owned()),
            Refusal::Busy("b".to_owned()),
            Refusal::Malformed("m".to_owned()),
        ];
        for one in all {
            assert_eq!(refusal(&refuse(one.clone())), Some(one));
        }
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        let status = refuse(Refusal::Busy("ä".repeat(1000)));
        assert_eq!(refusal(&status), Some(Refusal::Busy("ä".repeat(MAX_TEXT / 2))));
    }

    #[test]
    fn only_a_failed_connect_means_that_nothing_was_sent() {
        let cause = || Box::new(std::io::Error::other("no route"));
        let failed = Status::from_error(Box::new(tonic::ConnectError(cause())));
        let TransportError::Unreachable { reason, .. } = failure("h:1", &failed) else {
            panic!("{failed:?}")
        };
        assert!(reason.contains("no route"), "{reason}");
        assert!(matches!(
            failure("h:1", &Status::from_error(cause())),
            TransportError::Lost { .. }
        ));
    }

    #[test]
    fn a_plain_status_or_foreign_details_are_no_refusal() {
        assert_eq!(refusal(&Status::internal("x")), None);
        let foreign = Status::with_details(Code::Internal, "x", vec![0xff, 0xff].into());
        assert_eq!(refusal(&foreign), None);
        assert!(matches!(failure("h:1", &foreign), TransportError::Lost { .. }));
    }
}
