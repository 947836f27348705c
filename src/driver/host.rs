//! The node's thread and its runtime: the home of the event loop and the transport's tasks.
//!
//! It starts to serve peers before there is a node, so that others get an answer while this one
//! still looks for its cluster. A panic on it is caught and reported; it never reaches the host
//! program (the tasks of the runtime catch their own).

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use futures::future::LocalBoxFuture;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use super::caller::Caller;
use super::shared::{Lifetime, Phase, Shared};
use crate::error::{Error, Result};
use crate::store::panic_text;
use crate::transport::{Handler, Transport};

/// How long the transport may take to close its connections.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What the thread runs once there is a node.
pub(crate) struct Order {
    /// Makes and runs the event loop, on the thread.
    pub(crate) main: Box<dyn FnOnce() -> LocalBoxFuture<'static, Result<()>> + Send>,
    /// The log thread, waited for at the end.
    pub(crate) log_thread: JoinHandle<()>,
    /// Disconnected once the apply task and its Store are gone; waited for last of all.
    pub(crate) store_gone: mpsc::Receiver<()>,
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Order").field("log_thread", &self.log_thread).finish_non_exhaustive()
    }
}

/// The thread. Dropping it without an order ends it.
#[derive(Debug)]
pub(crate) struct Host {
    order: oneshot::Sender<Order>,
    ended: oneshot::Receiver<()>,
}

impl Host {
    /// Starts the thread and serves peers.
    ///
    /// # Errors
    /// When there is no thread, or the transport cannot serve.
    pub(crate) fn start(
        name: String,
        shared: &Arc<Shared>,
        transport: Arc<dyn Transport>,
        handler: Arc<dyn Handler>,
        lifetime: Arc<Lifetime>,
    ) -> Result<Self> {
        let (order, orders) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let (ready, started) = mpsc::sync_channel(1);
        let this = Thread { shared: shared.clone(), transport, lifetime };
        std::thread::Builder::new()
            .name(name)
            .spawn(move || {
                let patience = super::patience(&this.shared);
                let (lifetime, store_gone) = this.run(handler, orders, &ready);
                let _ = end.send(());
                if let Some(gone) = store_gone {
                    // NB: nothing is ever sent; a Store that hangs is left behind.
                    let _ = gone.recv_timeout(patience);
                }
                drop(lifetime);
            })
            .map_err(|e| internal(&e))?;
        match started.recv() {
            Ok(Ok(caller)) => {
                shared.set_caller(Some(caller));
                Ok(Self { order, ended })
            }
            Ok(Err(e)) => Err(internal(&e)),
            Err(_) => Err(Error::Internal {
                part: "node thread",
                reason: "it ended before it started".to_owned(),
            }),
        }
    }

    /// Hands the node over; the receiver hears when the thread has ended.
    pub(crate) fn run(self, order: Order) -> oneshot::Receiver<()> {
        // NB: a thread that is gone has reported why; `ended` says so at once.
        let _ = self.order.send(order);
        self.ended
    }

    /// Ends the thread without a node, and waits until it has ended.
    pub(crate) async fn cancel(self) -> Result<()> {
        drop(self.order);
        // NB: a thread that is gone already is as good.
        let _ = self.ended.await;
        Ok(())
    }
}

fn internal(e: &std::io::Error) -> Error {
    Error::Internal { part: "node thread", reason: e.to_string() }
}

struct Thread {
    shared: Arc<Shared>,
    transport: Arc<dyn Transport>,
    lifetime: Arc<Lifetime>,
}

impl Thread {
    fn run(
        self,
        handler: Arc<dyn Handler>,
        orders: oneshot::Receiver<Order>,
        ready: &mpsc::SyncSender<std::io::Result<Caller>>,
    ) -> (Arc<Lifetime>, Option<mpsc::Receiver<()>>) {
        let lifetime = self.lifetime.clone();
        let runtime = match self.serve(handler) {
            Ok(runtime) => runtime,
            Err(e) => {
                let _ = ready.send(Err(e));
                return (lifetime, None);
            }
        };
        let caller = Caller::new(runtime.handle().clone(), self.transport.clone());
        let _ = ready.send(Ok(caller));
        let (mut log_thread, mut store_gone) = (None, None);
        let ran = catch_unwind(AssertUnwindSafe(|| {
            runtime.block_on(async {
                let Ok(order) = orders.await else { return Ok(()) };
                log_thread = Some(order.log_thread);
                store_gone = Some(order.store_gone);
                (order.main)().await
            })
        }));
        match ran {
            Ok(Ok(())) => {}
            Ok(Err(e)) => self.shared.fatal.report(e),
            Err(panic) => self.report("event loop", &*panic),
        }
        self.end(runtime, log_thread);
        (lifetime, store_gone)
    }

    fn serve(&self, handler: Arc<dyn Handler>) -> std::io::Result<Runtime> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { self.transport.start(handler) })?;
        Ok(runtime)
    }

    fn end(self, runtime: Runtime, log_thread: Option<JoinHandle<()>>) {
        self.shared.enter(Phase::Stopping);
        self.shared.inbox.close();
        self.shared.set_caller(None);
        let closed = catch_unwind(AssertUnwindSafe(|| {
            runtime.block_on(async {
                // NB: what is not closed by then is dropped with the runtime.
                let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.transport.close()).await;
            });
        }));
        if let Err(panic) = closed {
            self.report("transport", &*panic);
        }
        runtime.shutdown_timeout(CLOSE_TIMEOUT);
        // The log thread holds the directory's lock; a panic of it has been reported by itself.
        if let Some(thread) = log_thread {
            let _ = thread.join();
        }
    }

    fn report(&self, part: &'static str, panic: &(dyn std::any::Any + Send)) {
        self.shared.fatal.report(Error::Internal { part, reason: panic_text(panic) });
    }
}
