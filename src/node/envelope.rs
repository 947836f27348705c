//! The payload of a normal entry: versioned, so that an older node never misreads a newer entry
//! and an empty command is not the leader's no-op.
//!
//! ```text
//! byte 0      version, 1
//! byte 1      kind: 1 commands, 2 membership update
//! commands:   { length u32 LE, bytes } *
//! membership: pb::MembershipChange
//! ```

use bytes::Bytes;

const VERSION: u8 = 1;
const COMMANDS: u8 = 1;
const MEMBERSHIP: u8 = 2;
/// Version and kind.
const HEADER: usize = 2;

/// What an entry of ours holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Envelope {
    /// The empty entry that a new leader appends.
    Empty,
    /// Packed commands; the iterator of [`commands`] reads them.
    Commands(Bytes),
    /// A `pb::MembershipChange` that concerns addresses only.
    Membership(Bytes),
}

/// Packs commands into one payload.
#[derive(Debug)]
pub(crate) struct Packer {
    data: Vec<u8>,
}

impl Packer {
    pub(crate) fn new(capacity: usize) -> Self {
        let mut data = Vec::with_capacity(capacity + HEADER);
        data.extend_from_slice(&[VERSION, COMMANDS]);
        Self { data }
    }

    /// Adds a command. Its length fits: `max_entry_size` is at most 1 GiB.
    pub(crate) fn push(&mut self, command: &[u8]) {
        let len = u32::try_from(command.len()).expect("invariant: max_entry_size fits in a u32");
        self.data.extend_from_slice(&len.to_le_bytes());
        self.data.extend_from_slice(command);
    }

    /// Bytes so far.
    pub(crate) fn len(&self) -> usize {
        self.data.len()
    }

    pub(crate) fn finish(self) -> Bytes {
        self.data.into()
    }
}

/// The payload of a membership update.
pub(crate) fn membership(change: &[u8]) -> Bytes {
    let mut data = Vec::with_capacity(change.len() + HEADER);
    data.extend_from_slice(&[VERSION, MEMBERSHIP]);
    data.extend_from_slice(change);
    data.into()
}

/// Reads a payload.
///
/// # Errors
/// A sentence that says what is wrong: it was written by a newer release, or is malformed.
pub(crate) fn open(data: &Bytes) -> Result<Envelope, String> {
    if data.is_empty() {
        return Ok(Envelope::Empty);
    }
    match data.get(..HEADER) {
        Some(&[VERSION, COMMANDS]) => {
            let body = data.slice(HEADER..);
            check_commands(&body)?;
            Ok(Envelope::Commands(body))
        }
        Some(&[VERSION, MEMBERSHIP]) => Ok(Envelope::Membership(data.slice(HEADER..))),
        Some(&[version, kind]) => Err(format!(
            "entry of version {version}, kind {kind}: written by a newer release; upgrade this node"
        )),
        _ => Err("entry of one byte".to_owned()),
    }
}

fn check_commands(body: &[u8]) -> Result<(), String> {
    let mut rest = body;
    while !rest.is_empty() {
        let (_, tail) = split(rest).ok_or("packed commands end early")?;
        rest = tail;
    }
    Ok(())
}

fn split(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = rest.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_le_bytes(*len) as usize)
}

/// The commands in the body of [`Envelope::Commands`], which was checked by [`open`].
pub(crate) fn commands(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = body;
    std::iter::from_fn(move || {
        let (command, tail) = split(rest)?;
        rest = tail;
        Some(command)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_commands_come_back_in_order_and_empty_ones_count() {
        let mut packer = Packer::new(0);
        for c in [&b"a"[..], b"", b"ccc"] {
            packer.push(c);
        }
        let data = packer.finish();
        let Ok(Envelope::Commands(body)) = open(&data) else { panic!("not commands") };
        assert_eq!(commands(&body).collect::<Vec<_>>(), [&b"a"[..], b"", b"ccc"]);
    }

    #[test]
    fn newer_and_torn_payloads_are_refused_in_words() {
        assert_eq!(open(&Bytes::new()), Ok(Envelope::Empty));
        assert!(open(&Bytes::from_static(&[9, 1])).is_err_and(|e| e.contains("newer release")));
        assert!(open(&Bytes::from_static(&[1])).is_err());
        assert!(open(&Bytes::from_static(&[1, 1, 5, 0, 0, 0, 1])).is_err());
    }
}
