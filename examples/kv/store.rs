//! The state machine: a map of keys to bytes. Plain and unlocked; the library serialises applies.

use std::collections::HashMap;

use async_trait::async_trait;
use raftline::{Result, Store};
use serde::{Deserialize, Serialize};

/// What is replicated.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Command {
    Put {
        key: String,
        value: Vec<u8>,
    },
    Delete {
        key: String,
    },
    /// Adds to the end of the value; a missing key counts as empty.
    Append {
        key: String,
        value: Vec<u8>,
    },
    /// Puts, if the key holds `expected` (None: if there is no such key).
    CompareAndSet {
        key: String,
        expected: Option<Vec<u8>>,
        value: Vec<u8>,
    },
}

impl Command {
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        Ok(bincode::serialize(self)?)
    }
}

/// The Store's reply to a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Written {
    /// Whether the key was there before.
    pub(crate) existed: bool,
    /// Whether the write changed anything: false where a comparison failed.
    pub(crate) changed: bool,
}

impl Written {
    pub(crate) fn decode(reply: &[u8]) -> Result<Self> {
        Ok(bincode::deserialize(reply)?)
    }
}

/// Keys and values.
#[derive(Debug, Default)]
pub(crate) struct Kv {
    map: HashMap<String, Vec<u8>>,
}

/// The answer of a query: nothing for a missing key, else 1 and the value. An empty value is not
/// a missing key.
pub(crate) fn decode_value(mut answer: Vec<u8>) -> Option<Vec<u8>> {
    if answer.is_empty() {
        return None;
    }
    answer.remove(0);
    Some(answer)
}

impl Kv {
    fn write(&mut self, command: Command) -> Written {
        let existed = match command {
            Command::Put { key, value } => self.map.insert(key, value).is_some(),
            Command::Delete { key } => {
                let existed = self.map.remove(&key).is_some();
                return Written { existed, changed: existed };
            }
            Command::Append { key, mut value } => {
                let existed = self.map.contains_key(&key);
                self.map.entry(key).or_default().append(&mut value);
                existed
            }
            Command::CompareAndSet { key, expected, value } => {
                let old = self.map.get(&key);
                let existed = old.is_some();
                if old != expected.as_ref() {
                    return Written { existed, changed: false };
                }
                self.map.insert(key, value);
                existed
            }
        };
        Written { existed, changed: true }
    }
}

#[async_trait]
impl Store for Kv {
    /// Answers with [`Written`].
    async fn apply(&mut self, message: &[u8]) -> Result<Vec<u8>> {
        let written = self.write(bincode::deserialize(message)?);
        Ok(bincode::serialize(&written)?)
    }

    async fn query(&self, query: &[u8]) -> Result<Vec<u8>> {
        let key = std::str::from_utf8(query).map_err(|_| "a key is text")?;
        Ok(self.map.get(key).map_or_else(Vec::new, |value| [&[1], value.as_slice()].concat()))
    }

    async fn snapshot(&self) -> Result<Vec<u8>> {
        Ok(bincode::serialize(&self.map)?)
    }

    async fn restore(&mut self, snapshot: &[u8]) -> Result<()> {
        self.map = bincode::deserialize(snapshot)?;
        Ok(())
    }

    fn check(message: &[u8]) -> Result<()> {
        bincode::deserialize::<Command>(message)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_says_whether_the_key_was_there_and_whether_it_changed_anything() {
        let mut kv = Kv::default();
        let key = || "k".to_owned();
        let cas = |expected: Option<&[u8]>| Command::CompareAndSet {
            key: key(),
            expected: expected.map(<[u8]>::to_vec),
            value: b"new".to_vec(),
        };
        let writes = [
            (Command::Delete { key: key() }, (false, false)),
            (cas(Some(b"")), (false, false)),
            (cas(None), (false, true)),
            (cas(None), (true, false)),
            (Command::Append { key: key(), value: b"er".to_vec() }, (true, true)),
            (cas(Some(b"new")), (true, false)),
            (cas(Some(b"newer")), (true, true)),
            (Command::Put { key: key(), value: Vec::new() }, (true, true)),
            (Command::Delete { key: key() }, (true, true)),
        ];
        for (command, (existed, changed)) in writes {
            let what = format!("{command:?}");
            assert_eq!(kv.write(command), Written { existed, changed }, "{what}");
        }
        assert!(kv.map.is_empty());
    }
}
