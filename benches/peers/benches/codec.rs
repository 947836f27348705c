//! What messages of raft cost on their way to bytes and back: appends as a leader sends them, and
//! the heartbeat that an idle cluster is full of.
//!
//! ```sh
//! cargo bench --bench codec
//! ```

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group};
use peers::machine::Machine;
use prost::Message as _;
use raftline::pb;

/// Message types of the engine.
const APPEND: u32 = 3;
const HEARTBEAT: u32 = 8;
const PAYLOAD: usize = 128;

fn message(msg_type: u32, entries: Vec<pb::Entry>) -> pb::Message {
    pb::Message { msg_type, to: 2, from: 1, term: 7, index: 1000, entries, ..Default::default() }
}

/// One append of so many entries of so many bytes.
fn append(entries: u64, bytes: usize) -> pb::Batch {
    let data = Bytes::from(vec![7; bytes]);
    let entry =
        |n| pb::Entry { term: 7, index: 1001 + n, data: data.clone(), ..Default::default() };
    let messages = vec![message(APPEND, (0..entries).map(entry).collect())];
    pb::Batch { messages, ..Default::default() }
}

fn codec(c: &mut Criterion) {
    let heartbeat = pb::Batch { messages: vec![message(HEARTBEAT, vec![])], ..Default::default() };
    let cases = [
        ("heartbeat", heartbeat),
        ("append of 1 entry", append(1, PAYLOAD)),
        ("append of 256 entries", append(256, PAYLOAD)),
        // Proposals of one turn are packed into entries of up to 64 KiB.
        ("append of 16 packed entries", append(16, 64 << 10)),
    ];
    let mut group = c.benchmark_group("codec");
    for (name, batch) in cases {
        let encoded = Bytes::from(batch.encode_to_vec());
        group.throughput(Throughput::Bytes(encoded.len() as u64));
        group.bench_function(format!("encode/{name}"), |b| b.iter(|| batch.encode_to_vec()));
        group.bench_function(format!("decode/{name}"), |b| {
            b.iter(|| pb::Batch::decode(encoded.clone()).expect("it was encoded above"));
        });
    }
    group.finish();
}

criterion_group!(benches, codec);

fn main() {
    println!("{}\n", Machine::look());
    benches();
    Criterion::default().configure_from_args().final_summary();
}
