//! The work: a map that every peer replicates, and the command that changes it.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

/// Different keys.
pub const KEYS: u64 = 100_000;
/// Bytes of a key.
pub const KEY: usize = 8;

type Map = HashMap<u64, Vec<u8>>;

/// The map; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Kv(Arc<RwLock<Map>>);

/// A command: the key, then `payload` bytes of value.
pub fn put(key: u64, payload: usize) -> Vec<u8> {
    let mut command = Vec::with_capacity(KEY + payload);
    command.extend_from_slice(&key.to_le_bytes());
    command.resize(KEY + payload, b'x');
    command
}

/// Key and value of a command. The key of one that is too short is 0: nobody sends any.
pub fn parts(command: &[u8]) -> (u64, &[u8]) {
    let split = command.split_first_chunk::<KEY>();
    split.map_or((0, &[]), |(key, value)| (u64::from_le_bytes(*key), value))
}

impl Kv {
    /// Carries out a command.
    pub fn apply(&self, command: &[u8]) {
        let (key, value) = parts(command);
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(key, value.to_vec());
    }

    /// The value of a key; empty when there is none.
    pub fn get(&self, key: u64) -> Vec<u8> {
        let map = self.0.read().unwrap_or_else(PoisonError::into_inner);
        map.get(&key).cloned().unwrap_or_default()
    }

    /// Everything: key, length, value, and so on.
    pub fn snapshot(&self) -> Vec<u8> {
        let map = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut out = Vec::with_capacity(map.values().map(|v| KEY + 4 + v.len()).sum());
        for (key, value) in map.iter() {
            out.extend_from_slice(&key.to_le_bytes());
            out.extend_from_slice(&(value.len() as u32).to_le_bytes());
            out.extend_from_slice(value);
        }
        out
    }

    /// Replaces everything by what `snapshot` gave.
    pub fn restore(&self, snapshot: &[u8]) {
        let (mut map, mut rest) = (Map::new(), snapshot);
        while let Some((key, tail)) = rest.split_first_chunk::<KEY>() {
            let Some((len, tail)) = tail.split_first_chunk::<4>() else { break };
            let Some((value, tail)) = tail.split_at_checked(u32::from_le_bytes(*len) as usize)
            else {
                break;
            };
            map.insert(u64::from_le_bytes(*key), value.to_vec());
            rest = tail;
        }
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = map;
    }
}
