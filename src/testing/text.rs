//! Bytes as a person wants to see them in a failure: text where they are text, cut at a bound.
//! It shows, and decides nothing.

use crate::error::Error;

/// Bytes of a command, a query or an answer that are shown.
const LONGEST: usize = 160;
/// Bytes that are shown before the first difference of two long answers.
const BEFORE: usize = 40;
/// Commands of a batch that are shown.
const MOST: usize = 4;

/// `"put a 1"`, or `b"\x00\xff"` where it is no text.
pub(super) fn shown(bytes: &[u8]) -> String {
    cut(bytes, 0)
}

/// Several of them, as far as they fit.
pub(super) fn shown_all<'a>(all: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut all = all.into_iter();
    let mut text: Vec<String> = all.by_ref().take(MOST).map(shown).collect();
    let more = all.count();
    if more > 0 {
        text.push(format!("{more} more"));
    }
    text.join(", ")
}

/// Two answers, each with what is around their first difference.
pub(super) fn shown_pair(one: &[u8], other: &[u8]) -> (String, String) {
    if one.len().max(other.len()) <= LONGEST {
        return (shown(one), shown(other));
    }
    let same = one.iter().zip(other).take_while(|(a, b)| a == b).count();
    let from = same.saturating_sub(BEFORE);
    (cut(one, from), cut(other, from))
}

/// What a Store answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Ok(Vec<u8>),
    Rejected(String),
    /// Anything but a rejection.
    Failed(String),
}

impl From<&Result<Vec<u8>, Error>> for Answer {
    fn from(answer: &Result<Vec<u8>, Error>) -> Self {
        match answer {
            Ok(bytes) => Self::Ok(bytes.clone()),
            Err(Error::Rejected(reason)) => Self::Rejected(reason.clone()),
            Err(error) => Self::Failed(error.to_string()),
        }
    }
}

impl Answer {
    /// Two answers that differ, for a person.
    pub(super) fn pair(&self, other: &Self) -> (String, String) {
        match (self, other) {
            (Self::Ok(one), Self::Ok(other)) => shown_pair(one, other),
            (one, other) => (one.to_string(), other.to_string()),
        }
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ok(bytes) => f.write_str(&shown(bytes)),
            Self::Rejected(reason) => write!(f, "the rejection {}", shown(reason.as_bytes())),
            Self::Failed(reason) => write!(f, "the error {}", shown(reason.as_bytes())),
        }
    }
}

fn cut(bytes: &[u8], from: usize) -> String {
    let text = std::str::from_utf8(bytes).ok().filter(|t| !t.chars().any(is_binary));
    // A character is shown whole or not at all.
    let at = |mut at: usize| {
        while text.is_some_and(|t| !t.is_char_boundary(at)) {
            at -= 1;
        }
        at
    };
    let from = at(from.min(bytes.len()));
    let to = at((from + LONGEST).min(bytes.len()));
    let shown = match text.and_then(|t| t.get(from..to)) {
        Some(text) => format!("\"{}\"", text.escape_debug()),
        None => format!("b\"{}\"", bytes.get(from..to).unwrap_or_default().escape_ascii()),
    };
    match (from, to == bytes.len()) {
        (0, true) => shown,
        (0, false) => format!("{shown}.. ({} bytes)", bytes.len()),
        (_, true) => format!("from byte {from} on {shown}"),
        (_, false) => format!("from byte {from} on {shown}.. ({} bytes)", bytes.len()),
    }
}

fn is_binary(c: char) -> bool {
    c.is_control() && !c.is_whitespace()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_shown_as_text_and_cut() {
        assert_eq!(shown(b"put \"a\"\n"), r#""put \"a\"\n""#);
        assert_eq!(shown("grün".as_bytes()), "\"grün\"");
        assert_eq!(shown(&[0, 255, b'a']), r#"b"\x00\xffa""#);
        assert_eq!(shown(&[1, 0]), r#"b"\x01\x00""#);
        let long = shown("ü".repeat(200).as_bytes());
        assert_eq!(long, format!("\"{}\".. (400 bytes)", "ü".repeat(80)));
    }

    #[test]
    fn long_answers_are_shown_where_they_differ() {
        let one = "ü".repeat(500);
        let other = format!("{}x", "ü".repeat(499));
        let (one, other) = shown_pair(one.as_bytes(), other.as_bytes());
        assert!(one.starts_with("from byte 958 on \"") && one.ends_with("ü\""), "{one}");
        assert!(other.ends_with("üx\""), "{other}");
    }

    #[test]
    fn a_batch_is_shown_as_far_as_it_fits() {
        let all = [&b"a"[..], b"b", b"c", b"d", b"e", b"f"];
        assert_eq!(shown_all(all), r#""a", "b", "c", "d", 2 more"#);
    }
}
