//! Snapshots on their way in, and snapshot files.
//!
//! Checked: no chunks and no file make a node panic or allocate what is not there; a transfer is
//! taken exactly when its bytes are those that were announced, and leaves nothing behind
//! otherwise; a file that is read gives the bytes that its checksum speaks of, read whole or in
//! pieces.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, stream};
use prost::Message as _;
use tonic::Status;

use super::input::Input;
use super::runtime;
use crate::pb;
use crate::snapshot::dir::SnapshotDir;
use crate::transport::grpc::codec::decode;
use crate::transport::grpc::snapshot::body;
use crate::types::{ClusterId, ConfState, Membership, Position, SnapshotMeta};
use crate::vfs::{MemVfs, OpenMode, Vfs};
use pb::chunk::Part;

const DIR: &str = "/snapshots";
const POSITION: Position = Position { index: 9, term: 2 };
/// Chunks of one transfer, and changes of one file.
const MAX_STEPS: usize = 64;

/// See the module. The first byte says what the rest is: a transfer, or a file.
pub fn snapshot_stream(data: &[u8]) {
    let mut input = Input::new(data);
    match input.below(4) {
        0 | 1 => transfer(&mut input),
        2 => changed_file(&mut input),
        _ => drop(read_file(input.rest())),
    }
}

fn membership(index: u64) -> Membership {
    Membership {
        cluster_id: ClusterId::from_u128(9),
        index,
        conf_state: ConfState { voters: vec![1, 2], ..ConfState::default() },
        members: Vec::new(),
        next_raft_id: 3,
    }
}

fn open(vfs: &MemVfs) -> SnapshotDir {
    SnapshotDir::open(Arc::new(vfs.clone()), DIR).unwrap_or_else(|e| panic!("the directory: {e}"))
}

fn names(vfs: &MemVfs) -> Vec<String> {
    vfs.list(Path::new(DIR)).unwrap_or_else(|e| panic!("the directory: {e}"))
}

/// What a peer sends after its start: chunks in any order, well-formed or not.
fn chunks(input: &mut Input<'_>) -> Vec<Result<pb::Chunk, Status>> {
    let mut out = Vec::new();
    while !input.is_empty() && out.len() < MAX_STEPS {
        let part = match input.below(16) {
            0 => None,
            1 => Some(Part::Start(pb::SnapshotStart::default())),
            2 => Some(Part::Data(Bytes::new())),
            3 => {
                out.push(Err(Status::aborted("reset")));
                continue;
            }
            4..=6 => {
                // Bytes of the wire, read as the codec reads them.
                let frame = Bytes::copy_from_slice(input.blob());
                let chunk = decode::<pb::Chunk>(&mut frame.clone());
                out.push(chunk.map_err(|e| Status::invalid_argument(e.to_string())));
                continue;
            }
            7 => Some(Part::Data(vec![input.byte(); usize::from(input.u16())].into())),
            _ => Some(Part::Data(Bytes::copy_from_slice(input.blob()))),
        };
        out.push(Ok(pb::Chunk { part }));
    }
    out
}

fn transfer(input: &mut Input<'_>) {
    let lies = input.byte();
    let claimed = input.number(0);
    let index = input.number(5);
    let chunks = chunks(input);
    let sent: Vec<u8> = chunks
        .iter()
        .flatten()
        .filter_map(|c| match &c.part {
            Some(Part::Data(data)) => Some(&data[..]),
            Some(Part::Start(_)) | None => None,
        })
        .flatten()
        .copied()
        .collect();
    let size = if lies & 1 == 0 { sent.len() as u64 } else { claimed };
    let crc32 = if lies & 2 == 0 { crc32fast::hash(&sent) } else { claimed as u32 };
    let whole = chunks.iter().all(|c| {
        let data = c.as_ref().ok().and_then(|c| c.part.as_ref());
        matches!(data, Some(Part::Data(data)) if !data.is_empty())
    });
    let meta = SnapshotMeta { position: POSITION, membership: membership(index), size, crc32 };
    let vfs = MemVfs::default();
    let taken = receive(&open(&vfs), meta.clone(), chunks);
    let right = whole
        && index <= POSITION.index
        && (size, crc32) == (sent.len() as u64, crc32fast::hash(&sent));
    assert_eq!(taken.is_ok(), right, "{taken:?} for {} bytes, {meta:?}", sent.len());
    match taken {
        Ok(found) => {
            assert_eq!(found, meta, "another snapshot than the one announced");
            let reader = open(&vfs).open_snapshot(POSITION).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(reader.read_all().unwrap_or_else(|e| panic!("{e}")), sent);
        }
        Err(_) => assert_eq!(names(&vfs), Vec::<String>::new(), "a failed transfer left a file"),
    }
}

/// The path of a transfer through gRPC into the directory; the disk work runs here and now.
fn receive(
    dir: &SnapshotDir,
    meta: SnapshotMeta,
    chunks: Vec<Result<pb::Chunk, Status>>,
) -> Result<SnapshotMeta, String> {
    // The stall of a stream needs a timer, which never comes due: every chunk is there.
    let _context = runtime().enter();
    let mut body = body(stream::iter(chunks), meta.size, std::time::Duration::from_secs(60));
    let mut writer = dir.receive(meta).map_err(|e| e.to_string())?;
    loop {
        let next = body.next().now_or_never().unwrap_or_else(|| panic!("a chunk was not taken"));
        match next {
            Some(Ok(chunk)) => writer.write(&chunk).map_err(|e| e.to_string())?,
            Some(Err(e)) => return Err(e.to_string()),
            None => return writer.finish().map_err(|e| e.to_string()),
        }
    }
}

/// A file that was right once, changed; its head may be signed again, so that what is behind the
/// checksum is reached.
fn changed_file(input: &mut Input<'_>) {
    let vfs = MemVfs::default();
    let dir = open(&vfs);
    let body = input.blob();
    let mut writer = dir.create(POSITION, membership(5)).unwrap_or_else(|e| panic!("{e}"));
    writer.write(body).unwrap_or_else(|e| panic!("{e}"));
    writer.finish().unwrap_or_else(|e| panic!("{e}"));
    let mut bytes = contents(&vfs);
    let original = bytes.clone();
    let mut signed = false;
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        let kind = input.below(6);
        let at = usize::from(input.u16()) % (bytes.len() + 1);
        match kind {
            0 => bytes.truncate(at),
            1 => bytes.extend_from_slice(input.blob()),
            2 => signed |= sign(&mut bytes),
            3 => drop(bytes.splice(at..at, input.blob().iter().copied())),
            _ => bytes.iter_mut().skip(at).zip(input.blob()).for_each(|(b, x)| *b ^= x),
        }
    }
    let read = read_file(&bytes);
    if !signed {
        // CRC-32 finds every change of so few bits; of others it misses one in four billion.
        assert!(read.is_none() || bytes == original, "a changed file was taken for whole");
    }
    if bytes == original {
        assert_eq!(read.as_deref(), Some(body));
    }
}

/// Gives a head the checksum that it should have; true when it was changed by that.
fn sign(bytes: &mut [u8]) -> bool {
    let length = bytes.get(12..16).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let end = length.and_then(|n| (n as usize).checked_sub(4));
    let Some((head, rest)) = end.and_then(|end| bytes.split_at_mut_checked(end)) else {
        return false;
    };
    let Some(place) = rest.first_chunk_mut::<4>() else { return false };
    let right = crc32fast::hash(head).to_le_bytes();
    std::mem::replace(place, right) != right
}

fn contents(vfs: &MemVfs) -> Vec<u8> {
    let names = names(vfs);
    let [name] = &names[..] else { panic!("one file, not {names:?}") };
    let file = vfs.open(&Path::new(DIR).join(name), OpenMode::Read);
    let file = file.unwrap_or_else(|e| panic!("{e}"));
    let mut bytes = vec![0; file.len().unwrap_or(0) as usize];
    let n = crate::vfs::read_full(&*file, &mut bytes, 0).unwrap_or(0);
    assert_eq!(n, bytes.len());
    bytes
}

/// Any bytes under the name of a snapshot; its body, if it is right.
fn read_file(bytes: &[u8]) -> Option<Vec<u8>> {
    let vfs = MemVfs::default();
    let dir = open(&vfs);
    // The name is that of a snapshot of ours; what is in it is not.
    let writer = dir.create(POSITION, membership(1)).unwrap_or_else(|e| panic!("{e}"));
    writer.finish().unwrap_or_else(|e| panic!("{e}"));
    let path = Path::new(DIR).join(&names(&vfs)[0]);
    let mut file = vfs.open(&path, OpenMode::Write).unwrap_or_else(|e| panic!("{e}"));
    file.set_len(0).and_then(|()| file.write_all_at(bytes, 0)).unwrap_or_else(|e| panic!("{e}"));
    let meta = dir.meta(POSITION).ok();
    let whole = dir.open_snapshot(POSITION).and_then(crate::snapshot::SnapshotReader::read_all);
    let pieces = read_pieces(&dir);
    assert_eq!(whole.as_ref().ok(), pieces.as_ref(), "whole and in pieces differ");
    if let (Some(meta), Ok(body)) = (&meta, &whole) {
        assert_eq!((meta.size, meta.crc32), (body.len() as u64, crc32fast::hash(body)));
        assert_eq!(meta.position, POSITION);
        let again = pb::SnapshotHeader::decode(meta.to_pb().encode_to_vec().as_slice());
        assert_eq!(
            again.map_err(|e| e.to_string()).and_then(SnapshotMeta::from_pb).as_ref(),
            Ok(meta)
        );
    }
    assert!(meta.is_some() || whole.is_err(), "a body without a head");
    whole.ok()
}

fn read_pieces(dir: &SnapshotDir) -> Option<Vec<u8>> {
    let mut reader = dir.open_snapshot(POSITION).ok()?;
    let mut out = Vec::new();
    while let Some(chunk) = reader.next_chunk(7).ok()? {
        assert!((1..=7).contains(&chunk.len()), "a chunk of {} bytes", chunk.len());
        out.extend_from_slice(&chunk);
    }
    Some(out)
}
