//! The Store of each machine: applies, answers, captures and installs, with its invariants.

use super::Cluster;
use crate::node::effect::{Committed, Effect};
use crate::node::envelope;
use crate::node::event::{Applied, Event};
use crate::node::tests::disk::File;
use crate::types::{Membership, NodeId, Position, SnapshotMeta};

impl Cluster {
    /// Lets the Store work off its queue; says whether anything was done.
    pub(in crate::node::tests) fn run_store(&mut self, id: NodeId, count: usize) -> bool {
        let mut any = false;
        for _ in 0..count {
            let Some(effect) = self.at(id).fifo.pop_front() else { break };
            any = true;
            match effect {
                Effect::Apply(items) => self.apply(id, items),
                Effect::Query(reads) => {
                    let store = &self.at(id).store;
                    let (index, data) = (store.applied, store.state.join(" ").into_bytes());
                    for read in reads {
                        read.reply.send(Ok(Applied { index, data: data.clone() }));
                    }
                }
                Effect::Capture { position, membership } => self.capture(id, position, membership),
                Effect::Install { meta } => self.install(id, &meta),
                _ => unreachable!("not the Store's"),
            }
        }
        any
    }

    fn apply(&mut self, id: NodeId, items: Vec<Committed>) {
        let last = items.last().map_or(0, |c| c.index);
        for item in items {
            let Self { machines, history, changes, .. } = self;
            let m = machines.get_mut(&id).expect("machine");
            let (disk, store) = (&m.disk, &mut m.store);
            let next = store.applied.max(1) + 1;
            assert_eq!(item.index, next, "R8: node {id} applies out of order");
            assert!(disk.keeps(item.index), "R3: applied before it is durable");
            let changed = changes.range(..=item.index).next_back().copied().unwrap_or(0);
            let recorded = disk.members().map_or(0, |m| m.index);
            assert!(recorded >= changed, "R7: record {recorded}, the Store hears of {changed}");
            let commands: Vec<String> = envelope::commands(&item.data)
                .map(|c| String::from_utf8(c.to_vec()).expect("text"))
                .collect();
            let known = history.entry(item.index).or_insert_with(|| commands.clone());
            assert_eq!(*known, commands, "I5: node {id} differs at {}", item.index);
            store.applied = item.index;
            let replies = item.replies;
            assert!(replies.is_empty() || replies.len() == commands.len(), "one reply each");
            store.state.extend(commands);
            let count = store.state.len();
            for r in replies {
                let data = count.to_string().into_bytes();
                r.send(Ok(Applied { index: item.index, data }));
            }
        }
        self.tell(id, Event::Applied { index: last });
    }

    fn capture(&mut self, id: NodeId, position: Position, membership: Membership) {
        let m = self.at(id);
        assert_eq!(m.store.applied, position.index, "index and data are one cut");
        let last = self.changes.range(..=position.index).next_back().copied();
        assert_eq!(Some(membership.index), last, "index and membership are one cut");
        let m = self.at(id);
        let body = m.store.state.clone();
        let meta = SnapshotMeta { position, membership, size: body.len() as u64, crc32: 0 };
        m.disk.files.insert(position.index, File { meta: meta.clone(), body, damaged: false });
        self.tell(id, Event::SnapshotBuilt { meta });
    }

    fn install(&mut self, id: NodeId, meta: &SnapshotMeta) {
        let m = self.at(id);
        let index = meta.position.index;
        let record = m.disk.snapshot.expect("R11: installed before its record is durable");
        assert!(record.position.index >= index, "R11: installed before its record is durable");
        m.store.state = m.disk.files[&index].body.clone();
        m.store.applied = index;
        self.tell(id, Event::Installed { index });
    }
}
