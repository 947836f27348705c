//! What a node costs without network and disk: the way of a call through its event loop, its engine
//! and its applier. Nodes of one process talk over the network in memory; the log is in memory, too.
//!
//! ```sh
//! cargo bench --bench node
//! ```

use std::sync::Arc;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group};
use futures::future::join_all;
use peers::machine::Machine;
use raftline::transport::memory::MemoryNetwork;
use raftline::{Config, Durability, Mailbox, Raft, Store, async_trait};
use tokio::runtime::Runtime;

const PAYLOAD: usize = 128;
/// Calls at once, where more than one.
const AT_ONCE: u64 = 256;

/// Does nothing: what is measured is the way to it.
struct Nothing;

#[async_trait]
impl Store for Nothing {
    async fn apply(&mut self, _: &[u8]) -> raftline::Result<Vec<u8>> {
        Ok(Vec::new())
    }

    async fn query(&self, _: &[u8]) -> raftline::Result<Vec<u8>> {
        Ok(Vec::new())
    }

    async fn snapshot(&self) -> raftline::Result<Vec<u8>> {
        Ok(Vec::new())
    }

    async fn restore(&mut self, _: &[u8]) -> raftline::Result<()> {
        Ok(())
    }
}

/// So many nodes; the mailbox of the one that leads.
async fn cluster(count: u64) -> Mailbox {
    let network = MemoryNetwork::new(1);
    let addr = |id| format!("node-{id}:1");
    let start = |id| {
        let config = Config { durability: Durability::Volatile, ..Config::default() };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let endpoint = Arc::new(network.endpoint(addr(id)));
        let raft = Raft::with_transport(endpoint, addr(id), Nothing, logger, config);
        let raft = raft.expect("the default configuration can work");
        let mailbox = raft.mailbox();
        tokio::spawn(raft.start(id, (1..=count).map(addr)));
        mailbox
    };
    let nodes: Vec<_> = (1..=count).map(start).collect();
    let ready = nodes.iter().map(|node| {
        node.wait_for(|s| s.leader_id != 0 && s.members.iter().filter(|m| m.voter).count() > 0)
    });
    let seen = join_all(ready).await;
    let leader = seen.into_iter().next().expect("a node").expect("a leader within 5 s").leader_id;
    nodes.into_iter().nth(leader as usize - 1).expect("the leader is a node")
}

fn node(c: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let command = Bytes::from(vec![7; PAYLOAD]);
    for count in [1, 3] {
        let leader = runtime.block_on(cluster(count));
        let mut group = c.benchmark_group(format!("node/{count} voters"));
        group.throughput(Throughput::Elements(1));
        group.bench_function("propose", |b| {
            b.to_async(&runtime)
                .iter(|| async { leader.propose(command.clone()).await.expect("applied") });
        });
        group.bench_function("query", |b| {
            b.to_async(&runtime)
                .iter(|| async { leader.query(Vec::new()).await.expect("answered") });
        });
        group.throughput(Throughput::Elements(AT_ONCE));
        group.bench_function(format!("propose, {AT_ONCE} callers"), |b| {
            b.to_async(&runtime).iter(|| async {
                let calls = (0..AT_ONCE).map(|_| leader.propose(command.clone()));
                join_all(calls).await.into_iter().for_each(|done| drop(done.expect("applied")));
            });
        });
        group.bench_function(format!("propose_many of {AT_ONCE}"), |b| {
            b.to_async(&runtime).iter(|| async {
                let commands = vec![command.clone(); AT_ONCE as usize];
                let done = leader.propose_many(commands).await;
                done.into_iter().for_each(|done| drop(done.expect("applied")));
            });
        });
        group.finish();
    }
}

criterion_group!(benches, node);

fn main() {
    println!("{}\n", Machine::look());
    benches();
    Criterion::default().configure_from_args().final_summary();
}
