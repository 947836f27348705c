//! The codec between tonic and prost, with a bound on what bytes may grow into.
//!
//! Two bytes on the wire can become some hundred in memory (an empty message inside a batch), so
//! that the limit on the message size alone would let a peer take all memory. Before anything is
//! decoded, the tags are walked and the cost in memory is added up; above the bound the message
//! is refused. Payloads are not copied in decoding.

use std::marker::PhantomData;

use tonic::Status;
use tonic::codec::{BufferSettings, DecodeBuf, Decoder, EncodeBuf, Encoder};

use super::status::refuse;
use crate::pb;
use crate::transport::Refusal;

/// What every message may cost in memory, whatever its size on the wire.
const BASE_COST: usize = 64 << 20;
/// What it may cost on top, for each of its bytes: the smallest entries that a log really holds
/// cost twelve.
const COST_PER_BYTE: usize = 16;
/// A `Bytes` or `String` in memory.
const FIELD_COST: usize = 32;
/// Bytes that are encoded before they are handed to the connection.
const YIELD_THRESHOLD: usize = 64 << 10;
const BUFFER_SIZE: usize = 16 << 10;

/// The codec of the generated client and server.
#[derive(Debug)]
pub(crate) struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: prost::Message + 'static,
    U: Shaped + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self::default()
    }

    fn decoder(&mut self) -> Self {
        Self::default()
    }
}

impl<T: prost::Message, U> Encoder for Codec<T, U> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        // One allocation instead of a growing buffer: appends are large.
        buf.reserve(item.encoded_len());
        item.encode(buf).map_err(|e| Status::internal(e.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_SIZE, YIELD_THRESHOLD)
    }
}

impl<T, U: Shaped> Decoder for Codec<T, U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        use bytes::Buf;
        if buf.chunk().len() != buf.remaining() {
            return Err(Status::internal("invariant: a message is decoded from one buffer"));
        }
        decode(buf).map(Some).map_err(refuse)
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_SIZE, YIELD_THRESHOLD)
    }
}

/// The message in one contiguous buffer, within its bound.
///
/// # Errors
/// `Malformed`, with what is wrong.
pub(crate) fn decode<U: Shaped>(wire: &mut impl bytes::Buf) -> Result<U, Refusal> {
    check(wire.chunk(), U::SHAPE).map_err(Refusal::Malformed)?;
    U::decode(wire).map_err(|e| Refusal::Malformed(e.to_string()))
}

/// What a message looks like inside, as far as memory goes.
#[derive(Debug)]
pub(crate) struct Shape {
    /// Bytes in memory of one of it, in all forms that it takes on its way.
    size: usize,
    /// The fields that are messages themselves.
    parts: &'static [(u64, &'static Shape)],
}

/// A message that comes from peers.
pub(crate) trait Shaped: prost::Message + Default {
    /// Its shape.
    const SHAPE: &'static Shape;
}

const fn leaf(size: usize) -> Shape {
    Shape { size, parts: &[] }
}

const fn of(size: usize, parts: &'static [(u64, &'static Shape)]) -> Shape {
    Shape { size, parts }
}

static HELLO: Shape = leaf(size_of::<pb::Hello>());
static CONF_STATE: Shape = leaf(size_of::<pb::ConfState>() * 3);
static MEMBER: Shape = leaf(size_of::<pb::Member>() * 2);
static MEMBERSHIP: Shape = of(size_of::<pb::Membership>() * 2, &[(3, &CONF_STATE), (4, &MEMBER)]);
static HEADER: Shape = of(size_of::<pb::SnapshotHeader>() * 2, &[(3, &MEMBERSHIP)]);
static ENTRY: Shape = leaf(size_of::<pb::Entry>() + size_of::<crate::types::eraftpb::Entry>());
static MESSAGE: Shape = of(
    size_of::<pb::Message>() + size_of::<crate::types::Message>(),
    &[(7, &ENTRY), (10, &HEADER)],
);
static START: Shape = of(0, &[(1, &HELLO), (2, &MESSAGE)]);
static WELCOME: Shape = of(0, &[(1, &HELLO)]);
static BATCH: Shape = of(0, &[(1, &HELLO), (2, &MESSAGE)]);
static CHUNK: Shape = of(0, &[(1, &START)]);
static REFUSED: Shape = leaf(size_of::<pb::Refused>());
static OUTCOME: Shape = of(size_of::<pb::Outcome>() * 2, &[(4, &REFUSED)]);
static PROPOSE: Shape = leaf(0);
static CHANGE: Shape = of(0, &[(2, &MEMBER)]);
static FOUNDER: Shape = of(size_of::<pb::Founder>() * 2, &[(6, &MEMBERSHIP)]);
static FOUND: Shape = of(0, &[(1, &FOUNDER), (2, &MEMBERSHIP)]);
static REQUEST: Shape = of(0, &[(4, &PROPOSE), (5, &CHANGE), (7, &FOUND)]);
static INFO: Shape = of(0, &[(5, &MEMBERSHIP), (6, &FOUNDER)]);
static JOINED: Shape = of(0, &[(3, &MEMBERSHIP)]);
static PROPOSED: Shape = of(0, &[(1, &OUTCOME)]);
static RESPONSE: Shape = of(0, &[(1, &INFO), (2, &JOINED), (3, &PROPOSED), (5, &REFUSED)]);
static RECEIVED: Shape = leaf(0);

macro_rules! shaped {
    ($($message:ty = $shape:ident),* $(,)?) => {
        $(impl Shaped for $message {
            const SHAPE: &'static Shape = &$shape;
        })*
    };
}

shaped! {
    pb::Batch = BATCH,
    pb::Welcome = WELCOME,
    pb::Chunk = CHUNK,
    pb::SnapshotReceived = RECEIVED,
    pb::Request = REQUEST,
    pb::Response = RESPONSE,
}

/// Whether these bytes stay within their bound once decoded; the reason when not.
fn check(wire: &[u8], shape: &'static Shape) -> Result<(), String> {
    let bound = BASE_COST + COST_PER_BYTE * wire.len();
    let mut left = bound;
    walk(wire, shape, &mut left)
        .ok_or_else(|| format!("torn, or more than {bound} bytes in memory"))
}

/// Subtracts what the message costs; None when it is torn or `left` does not suffice. The depth
/// of the recursion is that of the shapes, which hold no cycle.
fn walk(mut wire: &[u8], shape: &'static Shape, left: &mut usize) -> Option<()> {
    while !wire.is_empty() {
        let tag = varint(&mut wire)?;
        match tag & 7 {
            0 => {
                varint(&mut wire)?;
                // Repeated numbers.
                *left = left.checked_sub(size_of::<u64>())?;
            }
            1 => wire = wire.get(8..)?,
            2 => {
                let len = usize::try_from(varint(&mut wire)?).ok()?;
                let (body, rest) = wire.split_at_checked(len)?;
                wire = rest;
                match shape.parts.iter().find(|(field, _)| *field == tag >> 3) {
                    Some((_, part)) => {
                        *left = left.checked_sub(part.size)?;
                        walk(body, part, left)?;
                    }
                    // Packed numbers grow up to eightfold, within COST_PER_BYTE.
                    None => *left = left.checked_sub(FIELD_COST)?,
                }
            }
            5 => wire = wire.get(4..)?,
            _ => return None,
        }
    }
    Some(())
}

fn varint(wire: &mut &[u8]) -> Option<u64> {
    prost::encoding::decode_varint(wire).ok()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_judged_without_a_panic(bytes: Vec<u8>) {
            for shape in [&BATCH, &CHUNK, &REQUEST, &RESPONSE, &WELCOME] {
                let _ = check(&bytes, shape);
            }
        }

        #[test]
        fn what_prost_writes_passes(from: u64, data: Vec<u8>, index: u64, voters: Vec<u64>) {
            let conf_state = Some(pb::ConfState { voters, ..pb::ConfState::default() });
            let membership = Some(pb::Membership { conf_state, ..pb::Membership::default() });
            let snapshot = Some(pb::SnapshotHeader { membership, ..Default::default() });
            let entry = pb::Entry { index, data: data.into(), ..pb::Entry::default() };
            let entries = vec![entry];
            let message = pb::Message { from, entries, snapshot, ..Default::default() };
            let batch = pb::Batch { messages: vec![message], ..pb::Batch::default() };
            prop_assert_eq!(check(&batch.encode_to_vec(), &BATCH), Ok(()));
        }
    }

    #[test]
    fn many_empty_messages_are_refused_before_they_cost_memory() {
        // Two bytes each; half a gigabyte once decoded.
        let wire = [0x12, 0].repeat(1 << 20);
        assert!(check(&wire, &BATCH).is_err());
        assert!(check(&wire[..1000], &BATCH).is_ok());
    }

    #[test]
    fn many_empty_members_are_refused_wherever_they_hide() {
        let inside = |fields: &[u8], mut wire: Vec<u8>| {
            for field in fields {
                let mut outer = vec![field << 3 | 2];
                prost::encoding::encode_varint(wire.len() as u64, &mut outer);
                outer.append(&mut wire);
                wire = outer;
            }
            wire
        };
        let all: [(&'static Shape, &[u8]); 5] = [
            (&RESPONSE, &[5, 1]),
            (&RESPONSE, &[6, 6, 1]),
            (&RESPONSE, &[3, 2]),
            (&REQUEST, &[6, 1, 7]),
            (&REQUEST, &[2, 7]),
        ];
        for (shape, path) in all {
            let members = |n| inside(path, [0x22, 0].repeat(n));
            assert!(check(&members(1 << 20), shape).is_err(), "{path:?}");
            assert_eq!(check(&members(100), shape), Ok(()), "{path:?}");
        }
    }

    #[test]
    fn an_append_of_the_smallest_real_entries_passes() {
        let data = vec![1; 8].into();
        let entry = pb::Entry { term: 1, index: 1 << 20, data, ..pb::Entry::default() };
        let one = pb::Message { entries: vec![entry], ..pb::Message::default() };
        let message = one.encode_to_vec().repeat(1 << 20);
        let mut batch = vec![0x12];
        prost::encoding::encode_varint(message.len() as u64, &mut batch);
        batch.extend_from_slice(&message);
        assert_eq!(check(&batch, &BATCH), Ok(()));
    }

    #[test]
    fn torn_and_grouped_bytes_are_refused() {
        let whole = pb::Batch {
            hello: Some(pb::Hello { from: 1 << 40, ..pb::Hello::default() }),
            ..pb::Batch::default()
        }
        .encode_to_vec();
        check(&whole, &BATCH).unwrap();
        for end in 1..whole.len() {
            assert!(check(&whole[..end], &BATCH).is_err(), "cut at {end}");
        }
        assert!(check(&[0x0b, 0x0c], &BATCH).is_err(), "groups are not ours");
        assert!(check(&[0xff; 11], &BATCH).is_err(), "an endless varint");
    }
}
