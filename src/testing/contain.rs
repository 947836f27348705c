//! Panics that a suite expects, catches and reports itself: kept from the output, with the place
//! where they happened.
//!
//! Everybody else's panics are printed as ever: only the thread that runs contained work is quiet,
//! and only while it does. The hook is put in front of the one that is there, once, and stays:
//! taking it out again could take out another test's.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::pin::pin;
use std::sync::Once;
use std::task::Poll;

use crate::store::panic_text;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
    /// Where this thread panicked last while it was quiet.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// A panic that was caught.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Panicked {
    pub(super) text: String,
    /// File, line and column.
    pub(super) place: Option<String>,
}

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(place) => write!(f, "{} (at {place})", self.text),
            None => f.write_str(&self.text),
        }
    }
}

/// Sets how loud this thread is, until it is dropped.
struct Loudness(bool);

impl Loudness {
    fn quiet(quiet: bool) -> Self {
        Self(QUIET.replace(quiet))
    }
}

impl Drop for Loudness {
    fn drop(&mut self) {
        QUIET.set(self.0);
    }
}

fn install() {
    static INSTALLED: Once = Once::new();
    // A thread that panics must not change the hook.
    if std::thread::panicking() {
        return;
    }
    INSTALLED.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            // NB: a thread that ends has no such value any more, and is not contained.
            if QUIET.try_with(Cell::get).unwrap_or(false) {
                let place = info.location().map(ToString::to_string);
                _ = PLACE.try_with(|last| last.replace(place));
            } else {
                others(info);
            }
        }));
    });
}

/// Runs this, and gives back its panic instead of printing it.
pub(super) fn contained<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    install();
    let _quiet = Loudness::quiet(true);
    PLACE.take();
    panic::catch_unwind(AssertUnwindSafe(work))
        .map_err(|panic| Panicked { text: panic_text(&*panic), place: PLACE.take() })
}

/// The same for a future; what its thread does between two polls is not contained.
pub(super) async fn contained_future<F: Future>(call: F) -> Result<F::Output, Panicked> {
    let mut call = pin!(call);
    std::future::poll_fn(move |context| match contained(|| call.as_mut().poll(context)) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
        Err(panicked) => Poll::Ready(Err(panicked)),
    })
    .await
}

/// Runs this as if nothing around it were contained.
pub(super) fn uncontained<T>(work: impl FnOnce() -> T) -> T {
    let _loud = Loudness::quiet(false);
    work()
}

/// Where contained work panicked last, although somebody in between has caught it.
pub(super) fn last_place() -> Option<String> {
    PLACE.take()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// Counts the panics that come through to the hook that was there before.
    fn heard(work: impl FnOnce()) -> u64 {
        static HEARD: AtomicU64 = AtomicU64::new(0);
        static LISTEN: Once = Once::new();
        install();
        // Behind ours in time, in front of it in line: it hears what ours would hand on.
        LISTEN.call_once(|| {
            let ours = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                let mine =
                    info.payload().downcast_ref::<&str>().is_some_and(|t| t.contains("heard"));
                if mine && !QUIET.get() {
                    HEARD.fetch_add(1, Ordering::Relaxed);
                } else {
                    ours(info);
                }
            }));
        });
        let before = HEARD.load(Ordering::Relaxed);
        work();
        HEARD.load(Ordering::Relaxed) - before
    }

    #[test]
    fn a_contained_panic_is_told_and_nobody_elses_is_kept_back() {
        let caught = contained(|| panic!("as it must")).expect_err("a panic");
        assert_eq!(caught.text, "as it must");
        assert!(caught.place.is_some_and(|p| p.contains("contain.rs:")), "it says where");
        let others = heard(|| {
            let inside = contained(|| {
                _ = std::thread::spawn(|| panic!("heard: another thread")).join();
                uncontained(|| panic::catch_unwind(|| panic!("heard: not ours")).is_err())
            });
            assert_eq!(inside, Ok(true));
            _ = panic::catch_unwind(|| panic!("heard: behind it"));
        });
        assert_eq!(others, 3, "panics of others go to the hook that was there");
    }

    #[tokio::test]
    async fn a_future_is_contained_while_it_is_polled_only() {
        let call = async {
            tokio::task::yield_now().await;
            assert!(QUIET.get());
            panic!("as it must")
        };
        let (caught, loud) = tokio::join!(contained_future(call), async { !QUIET.get() });
        let caught: Result<(), _> = caught;
        assert_eq!(caught.expect_err("a panic").text, "as it must");
        assert!(loud, "a task beside it is not contained");
    }
}
