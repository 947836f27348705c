//! A limit for every call of a Store under test: one that does not come back ends its test with
//! its name, instead of holding it up for ever.
//!
//! The work runs on a thread of its own, because nothing else can be done about a call that blocks
//! its thread; a hung thread is left behind. No success depends on time: the limit is far above
//! what any call takes, and counts only while not a single call ends.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::text::shown_all;

/// How long a call may take, unless the environment says otherwise.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often the caller looks. A machine that sleeps, or a process that is stopped, counts as one
/// look.
const LOOK: Duration = Duration::from_millis(250);
/// Bytes of a call's commands that are remembered.
const MOST_BYTES: usize = 4096;

/// What the working thread is doing, told to whoever waits for it.
#[derive(Clone, Debug, Default)]
pub(super) struct Calls(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Calls that began and ended: odd while one is under way.
    turns: AtomicU64,
    call: Mutex<Call>,
}

#[derive(Debug, Default)]
struct Call {
    place: (u64, u64),
    name: &'static str,
    bytes: Vec<u8>,
    ends: Vec<usize>,
    more: usize,
}

/// A call that has not come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hang {
    /// Where it was made, as its maker said.
    pub(super) place: (u64, u64),
    /// `query of "a" does not come back ..`.
    pub(super) text: String,
}

/// A call is under way until this is dropped.
#[derive(Debug)]
pub(super) struct Under<'a>(&'a Calls);

impl Drop for Under<'_> {
    fn drop(&mut self) {
        self.0.0.turns.fetch_add(1, Ordering::Release);
    }
}

impl Calls {
    /// A call begins: where, its name, its commands or query.
    pub(super) fn enter<'a>(
        &self,
        place: (u64, u64),
        name: &'static str,
        arguments: impl IntoIterator<Item = &'a [u8]>,
    ) -> Under<'_> {
        let mut call = self.lock();
        (call.place, call.name, call.more) = (place, name, 0);
        call.bytes.clear();
        call.ends.clear();
        for argument in arguments {
            if call.bytes.len() >= MOST_BYTES {
                call.more += 1;
                continue;
            }
            call.bytes.extend_from_slice(argument);
            let end = call.bytes.len();
            call.ends.push(end);
        }
        drop(call);
        self.0.turns.fetch_add(1, Ordering::Release);
        Under(self)
    }

    fn lock(&self) -> MutexGuard<'_, Call> {
        self.0.call.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hang(&self, patience: Duration) -> Hang {
        let call = self.lock();
        let begins = std::iter::once(&0).chain(&call.ends);
        let all = begins.zip(&call.ends).filter_map(|(from, to)| call.bytes.get(*from..*to));
        let mut text = call.name.to_owned();
        if !call.ends.is_empty() {
            text.push_str(" of ");
            text.push_str(&shown_all(all));
        }
        if call.more > 0 {
            text.push_str(" and more");
        }
        let seconds = patience.as_secs_f64();
        text.push_str(&format!(
            " does not come back: waited for it for {seconds} s (RAFTLINE_PATIENCE sets the seconds)"
        ));
        Hang { place: call.place, text }
    }
}

/// How long calls may take: `RAFTLINE_PATIENCE` seconds, for those who step through a Store in a
/// debugger, or are tired of waiting for one that is known to hang.
#[expect(clippy::panic, reason = "a test that is told nonsense must say so")]
pub(super) fn patience() -> Duration {
    let Ok(text) = std::env::var("RAFTLINE_PATIENCE") else { return PATIENCE };
    match text.parse::<u64>() {
        Ok(seconds) if seconds > 0 => Duration::from_secs(seconds),
        Ok(_) | Err(_) => panic!("RAFTLINE_PATIENCE={text} is not a number of seconds"),
    }
}

/// Does this work on a thread of its own.
///
/// # Errors
/// When a call that it told of has not come back for so long.
pub(super) fn watched<T: Send + 'static>(
    patience: Duration,
    work: impl FnOnce(&Calls) -> T + Send + 'static,
) -> Result<T, Hang> {
    let calls = Calls::default();
    let theirs = calls.clone();
    let (done, ended) = channel();
    // The name of the test, so that what it prints has one.
    let name = std::thread::current().name().unwrap_or("raftline-suite").to_owned();
    let thread = std::thread::Builder::new()
        .name(name)
        .spawn(move || {
            // NB: who has lost patience does not listen any more.
            _ = done.send(work(&theirs));
        })
        .expect("a test process can have one thread more");
    let look = LOOK.min(patience);
    let looks = (patience.as_nanos() / look.as_nanos().max(1)).max(1);
    let (mut seen, mut idle) = (0, 0);
    loop {
        match ended.recv_timeout(look) {
            Ok(output) => {
                // Whatever it still has to drop is the work's, too.
                if let Err(panic) = thread.join() {
                    resume_unwind(panic);
                }
                return Ok(output);
            }
            Err(RecvTimeoutError::Disconnected) => match thread.join() {
                Err(panic) => resume_unwind(panic),
                Ok(()) => unreachable!("the work ended without a result"),
            },
            Err(RecvTimeoutError::Timeout) => {}
        }
        let turns = calls.0.turns.load(Ordering::Acquire);
        idle = if turns == seen && turns % 2 == 1 { idle + 1 } else { 0 };
        seen = turns;
        if idle >= looks {
            return Err(calls.hang(patience));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_does_not_come_back_is_named() {
        let (end, hangs) = channel::<()>();
        let hang = watched(Duration::from_millis(50), move |calls| {
            drop(calls.enter((1, 1), "apply", [&b"fine"[..]]));
            let _under = calls.enter((7, 3), "apply_batch", [&b"a"[..], b"b"]);
            // Until the test is over.
            _ = hangs.recv();
        });
        let hang = hang.expect_err("it hangs");
        drop(end);
        assert_eq!(hang.place, (7, 3));
        let begin = "apply_batch of \"a\", \"b\" does not come back";
        assert!(hang.text.starts_with(begin), "{}", hang.text);
    }

    #[test]
    fn work_that_makes_no_call_may_take_as_long_as_it_likes() {
        let (go, wait) = channel::<()>();
        let waits = std::thread::spawn(move || {
            watched(Duration::from_nanos(1), move |_| {
                _ = wait.recv();
                5
            })
        });
        drop(go);
        assert_eq!(waits.join().expect("no panic"), Ok(5));
    }

    #[test]
    fn a_panic_of_the_work_is_the_callers() {
        let ran =
            std::panic::catch_unwind(|| watched(PATIENCE, |_| resume_unwind(Box::new("mine"))));
        let panic = ran.map(|_: Result<(), Hang>| ()).expect_err("a panic");
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"mine"));
    }
}
