//! Requests to other nodes from outside the node's runtime.
//!
//! Invariant: the transport is only ever called inside the node's own runtime; a caller
//! elsewhere waits for a task there.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::runtime::Handle;

use super::shared::Shared;
use crate::pb;
use crate::pb::response::Kind as Answer;
use crate::transport::{Transport, TransportError};
use crate::types::ClusterId;

/// Asks nodes by address; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    runtime: Handle,
    transport: Arc<dyn Transport>,
}

impl Caller {
    pub(crate) fn new(runtime: Handle, transport: Arc<dyn Transport>) -> Self {
        Self { runtime, transport }
    }

    /// Tells the transport who the peers are, as of the moment when it is told: before there is a
    /// loop that does, and when a peer has said where it is. In the node's own runtime, where the
    /// loop does the same, the newest view is always told last.
    pub(crate) fn set_peers(&self, shared: Arc<Shared>) {
        let transport = self.transport.clone();
        let tell = async move { shared.view().peers().map(|peers| transport.set_peers(peers)) };
        drop(self.runtime.spawn(tell));
    }

    /// Asks one node.
    pub(crate) async fn call(
        &self,
        addr: &str,
        cluster: Option<ClusterId>,
        kind: pb::request::Kind,
        timeout: Duration,
    ) -> Result<Option<Answer>, TransportError> {
        let cluster_id =
            cluster.map_or_else(Bytes::new, |id| Bytes::copy_from_slice(&id.to_bytes()));
        let request = pb::Request { cluster_id, kind: Some(kind) };
        let (transport, to) = (self.transport.clone(), addr.to_owned());
        let task = self.runtime.spawn(async move { transport.call(&to, request, timeout).await });
        match task.await {
            Ok(response) => Ok(response?.kind),
            Err(_) => Err(TransportError::Lost {
                addr: addr.to_owned(),
                reason: "this node is shutting down".to_owned(),
            }),
        }
    }

    /// Asks all of these at once who they are; the answers as they come, silence left out.
    pub(crate) async fn infos(
        &self,
        addrs: &[String],
        timeout: Duration,
    ) -> Vec<(String, pb::InfoAnswer)> {
        self.infos_until(addrs, timeout, |_| false).await
    }

    /// As [`Caller::infos`], up to the first answer that is enough: who is silent is not waited
    /// for then.
    pub(crate) async fn infos_until(
        &self,
        addrs: &[String],
        timeout: Duration,
        enough: impl Fn(&pb::InfoAnswer) -> bool,
    ) -> Vec<(String, pb::InfoAnswer)> {
        let mut asked: FuturesUnordered<_> = addrs
            .iter()
            .map(|addr| async move {
                let kind = pb::request::Kind::Info(pb::Info {});
                (addr, self.call(addr, None, kind, timeout).await)
            })
            .collect();
        let mut answers = Vec::new();
        while let Some((addr, answer)) = asked.next().await {
            if let Ok(Some(Answer::Info(info))) = answer {
                let last = enough(&info);
                answers.push((addr.clone(), info));
                if last {
                    break;
                }
            }
        }
        answers
    }
}
