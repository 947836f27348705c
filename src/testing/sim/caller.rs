//! Calls of a Store under test: watched, so that one that hangs is named; contained, so that its
//! panic is told and not printed; on a clock that runs when nothing else is to do.

use futures::FutureExt;
use tokio::runtime::{Builder, Runtime};

use super::subject::Subject;
use crate::store::Store;
use crate::testing::contain::{Panicked, contained_future, uncontained};
use crate::testing::text::shown_all;
use crate::testing::watch::Calls;
use crate::types::NodeId;

pub(super) struct Caller {
    runtime: Runtime,
    calls: Calls,
}

impl Caller {
    pub(super) fn new(calls: Calls) -> Self {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("a runtime without IO needs nothing of the system");
        Self { runtime, calls }
    }

    /// The Store of a machine at its start.
    pub(super) fn make(&self, subject: &Subject, id: NodeId, wiped: bool) -> Box<dyn Store> {
        let _under = self.calls.enter((id, 0), "the closure that makes it", []);
        let _in = self.runtime.enter();
        (subject.make)(id, wiped)
    }

    /// The outcome of a Store's call; most are ready at once.
    pub(super) fn call<'a, F: Future>(
        &self,
        id: NodeId,
        name: &'static str,
        arguments: impl IntoIterator<Item = &'a [u8]>,
        call: F,
    ) -> Result<F::Output, Panicked> {
        let _under = self.calls.enter((id, 0), name, arguments);
        let _in = self.runtime.enter();
        let mut call = Box::pin(contained_future(call));
        match call.as_mut().now_or_never() {
            Some(output) => output,
            // Tasks that the Store has spawned run in here, too.
            None => uncontained(|| self.runtime.block_on(call)),
        }
    }

    /// The same of a call whose panic ends the run.
    pub(super) fn must<F: Future>(
        &self,
        id: NodeId,
        name: &'static str,
        argument: Option<&[u8]>,
        call: F,
    ) -> F::Output {
        self.call(id, name, argument, call).unwrap_or_else(|panicked| {
            let of = argument.map_or_else(String::new, |a| format!(" of {}", shown_all([a])));
            panic!("{} panics in {name}{of}: {panicked}", who(id))
        })
    }
}

/// Whose Store it is.
pub(super) fn who(id: NodeId) -> String {
    match id {
        0 => "the Store of the reference replica, which nodes are compared with,".to_owned(),
        id => format!("the Store of node {id}"),
    }
}
