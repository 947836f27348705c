//! Many committed entries as one call of the Store, and what its answers amount to.
//!
//! Pure: it calls nobody and waits for nothing. It never splits an entry, and never answers a
//! proposer of an entry that did not count as applied.

use std::any::Any;
use std::collections::BTreeSet;
use std::mem;

use crate::error::{Error, Result};
use crate::node::effect::Committed;
use crate::node::envelope;
use crate::node::event::Applied;
use crate::store::{self, SKIP_REMEDY, panic_text};
use crate::types::Index;
use crate::zoo::{self, Bug};

/// Proposals after which a batch is given to the Store; the entry that reaches it ends it.
const MAX_BATCH: usize = 4096;
/// Bytes of proposals after which a batch is given to the Store.
const MAX_BATCH_BYTES: usize = 4 << 20;
/// Proposals of neighbouring entries, unpacked.
pub(crate) struct Batch<'a> {
    pub(crate) proposals: Vec<store::Committed<'a>>,
    /// How many of them each entry has; a skipped one has none.
    pub(crate) counts: Vec<usize>,
    /// Index of the last entry.
    pub(crate) last: Index,
    pub(crate) bytes: usize,
}

impl<'a> Batch<'a> {
    pub(crate) fn new(
        entries: &'a [Committed],
        skip: &BTreeSet<Index>,
        applied: Index,
    ) -> Result<Self> {
        let mut batch = Self { proposals: Vec::new(), counts: Vec::new(), last: applied, bytes: 0 };
        for entry in entries {
            if batch.proposals.len() >= MAX_BATCH || batch.bytes >= MAX_BATCH_BYTES {
                break;
            }
            let index = entry.index;
            if index <= batch.last {
                let reason = format!("entry {index} was to be applied behind {}", batch.last);
                return Err(Error::Internal { part: "applier", reason });
            }
            let before = batch.proposals.len();
            if !skip.contains(&index) {
                let commands = envelope::commands(&entry.data);
                batch.proposals.extend(commands.map(|data| store::Committed { index, data }));
            }
            batch.counts.push(batch.proposals.len() - before);
            batch.last = index;
            batch.bytes += entry.data.len();
        }
        Ok(batch)
    }
}

pub(crate) type Panic = Box<dyn Any + Send>;
pub(crate) type Answers = Vec<Result<Vec<u8>>>;

/// What a Store's answers to a batch amount to: the answers that count, and the entry from which
/// on nothing counts as applied, with the error that ends the node.
pub(crate) fn judge(
    proposals: &[store::Committed<'_>],
    answers: Result<Answers, Panic>,
) -> (Answers, Option<(Index, Error)>) {
    let first = proposals.first().map_or(0, |p| p.index);
    let last = proposals.last().map_or(0, |p| p.index);
    let broken = |reason: String| {
        let error = Error::StoreFailed { index: first, reason, remedy: SKIP_REMEDY };
        (Vec::new(), Some((first, error)))
    };
    let mut answers = match answers {
        Ok(answers) => answers,
        Err(panic) => {
            let text = panicked("apply_batch", &*panic);
            return broken(format!("{text} (in the batch of entries {first} to {last})"));
        }
    };
    let fatal = answers.iter().position(|a| !matches!(a, Ok(_) | Err(Error::Rejected(_))));
    let fatal = fatal.filter(|_| !zoo::has(Bug::StoreErrorIgnored));
    let (given, asked) = (answers.len(), proposals.len());
    if let Some((at, index)) = fatal.and_then(|at| Some((at, proposals.get(at)?.index))) {
        let failed = answers.drain(at..).next().and_then(Result::err);
        let error = match failed {
            Some(error @ Error::StoreFailed { .. }) => error,
            other => {
                let reason = other.map(reason_of).unwrap_or_default();
                Error::StoreFailed { index, reason, remedy: SKIP_REMEDY }
            }
        };
        return (answers, Some((index, error)));
    }
    if given != asked {
        return broken(format!(
            "apply_batch gave {given} answers to {asked} proposals (entries {first} to {last})"
        ));
    }
    (answers, None)
}

/// Answers the proposers of a batch, up to the entry that failed. The rest stays undecided: an
/// entry is applied whole or not at all.
pub(crate) fn answer(
    entries: &mut [Committed],
    counts: &[usize],
    answers: Answers,
    skip: &BTreeSet<Index>,
    failed: Option<Index>,
) {
    let mut answers = answers.into_iter();
    for (entry, &count) in entries.iter_mut().zip(counts) {
        let index = entry.index;
        if failed.is_some_and(|failed| index >= failed) {
            return;
        }
        let mut replies = mem::take(&mut entry.replies);
        if skip.contains(&index) {
            for reply in replies {
                let reason = format!("entry {index} is skipped by Config::skip_apply");
                reply.send(Err(Error::Rejected(reason)));
            }
            continue;
        }
        debug_assert!(
            replies.is_empty() || replies.len() == count,
            "an entry has a reply for each of its proposals, or none"
        );
        if zoo::has(Bug::AnswersSwapped) {
            replies.reverse();
        }
        let mut replies = replies.into_iter();
        for answer in answers.by_ref().take(count) {
            if let Some(reply) = replies.next() {
                reply.send(answer.map(|data| Applied { index, data }));
            }
        }
    }
}

pub(crate) fn panicked(call: &str, panic: &(dyn Any + Send)) -> String {
    format!("{call} panicked: {}", panic_text(panic))
}

/// An error of the Store and its causes, in one line.
pub(crate) fn reason_of(error: Error) -> String {
    let Error::Fatal(source) = error else { return error.to_string() };
    let mut text = source.to_string();
    let mut cause = source.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}
