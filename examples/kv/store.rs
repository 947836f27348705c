//! The state machine: a map of keys to bytes. Plain and unlocked; the library serialises applies.

use std::collections::HashMap;

use async_trait::async_trait;
use raftline::{Result, Store};
use serde::{Deserialize, Serialize};

/// What is replicated.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Command {
    Put { key: String, value: Vec<u8> },
    Delete { key: String },
}

impl Command {
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        Ok(bincode::serialize(self)?)
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

#[async_trait]
impl Store for Kv {
    /// Answers 1 when the key was there before, else 0.
    async fn apply(&mut self, message: &[u8]) -> Result<Vec<u8>> {
        let old = match bincode::deserialize(message)? {
            Command::Put { key, value } => self.map.insert(key, value),
            Command::Delete { key } => self.map.remove(&key),
        };
        Ok(vec![u8::from(old.is_some())])
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
