//! The context of a ReadIndex round: 24 bytes that no other round ever carries.
//!
//! raft-rs answers a reused context with the index of the earlier round, which is a stale read
//! (H3). So a context names its asker, the asker's start, and a counter that grows with every
//! attempt, retries included (R15).
//!
//! ```text
//! bytes  0..8   raft id of the asker, u64 LE
//! bytes  8..16  nonce of the asker's start, u64 LE
//! bytes 16..24  counter of the attempt, u64 LE
//! ```

use crate::types::RaftId;

/// Names one attempt to learn the read index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ReadContext {
    /// Who asks; not 0.
    pub(crate) raft_id: RaftId,
    /// Drawn anew at each start, so that a restarted node never repeats a counter.
    pub(crate) nonce: u64,
    /// Grows with every attempt.
    pub(crate) counter: u64,
}

impl ReadContext {
    /// Length of the bytes.
    pub(crate) const LEN: usize = 24;

    /// The bytes of the wire.
    pub(crate) fn encode(self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        for (place, number) in out.chunks_exact_mut(8).zip([self.raft_id, self.nonce, self.counter])
        {
            place.copy_from_slice(&number.to_le_bytes());
        }
        out
    }

    /// The context in these bytes; None unless there are exactly 24 and the asker is not 0.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (raft_id, rest) = bytes.split_first_chunk::<8>()?;
        let (nonce, rest) = rest.split_first_chunk::<8>()?;
        let counter: [u8; 8] = rest.try_into().ok()?;
        let out = Self {
            raft_id: u64::from_le_bytes(*raft_id),
            nonce: u64::from_le_bytes(*nonce),
            counter: u64::from_le_bytes(counter),
        };
        (out.raft_id != 0).then_some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_three_little_endian_numbers() {
        let context = ReadContext { raft_id: 1, nonce: 0x0203, counter: u64::MAX };
        let bytes = context.encode();
        assert_eq!(bytes[..8], [1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[8..16], [3, 2, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[16..], [255; 8]);
        assert_eq!(ReadContext::decode(&bytes), Some(context));
    }

    #[test]
    fn other_lengths_and_an_asker_of_0_are_no_context() {
        let bytes = ReadContext { raft_id: 1, nonce: 2, counter: 3 }.encode();
        for len in 0..ReadContext::LEN {
            assert_eq!(ReadContext::decode(&bytes[..len]), None, "{len} bytes");
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert_eq!(ReadContext::decode(&longer), None);
        assert_eq!(ReadContext::decode(&[0; ReadContext::LEN]), None);
    }
}
