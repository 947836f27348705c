//! The state machine that is measured: a map of numbered keys to bytes.

use std::collections::HashMap;

use raftline::{Result, Store, async_trait};

const KEY: usize = 8;

#[derive(Debug, Default)]
pub(crate) struct Numbered(HashMap<u64, Vec<u8>>);

/// A put: the key, then the value.
pub(crate) fn put(key: u64, value: &[u8]) -> Vec<u8> {
    [&key.to_le_bytes(), value].concat()
}

#[async_trait]
impl Store for Numbered {
    async fn apply(&mut self, message: &[u8]) -> Result<Vec<u8>> {
        let (key, value) = message.split_first_chunk::<KEY>().ok_or("a put begins with its key")?;
        self.0.insert(u64::from_le_bytes(*key), value.to_vec());
        Ok(Vec::new())
    }

    async fn query(&self, query: &[u8]) -> Result<Vec<u8>> {
        let key: [u8; KEY] = query.try_into().map_err(|_| "a query is a key")?;
        Ok(self.0.get(&u64::from_le_bytes(key)).cloned().unwrap_or_default())
    }

    async fn snapshot(&self) -> Result<Vec<u8>> {
        let size = self.0.values().map(|v| KEY + 4 + v.len()).sum();
        let mut out = Vec::with_capacity(size);
        for (key, value) in &self.0 {
            out.extend_from_slice(&key.to_le_bytes());
            out.extend_from_slice(&(value.len() as u32).to_le_bytes());
            out.extend_from_slice(value);
        }
        Ok(out)
    }

    async fn restore(&mut self, mut rest: &[u8]) -> Result<()> {
        self.0.clear();
        while !rest.is_empty() {
            let torn = "a snapshot that ends early";
            let (key, tail) = rest.split_first_chunk::<KEY>().ok_or(torn)?;
            let (len, tail) = tail.split_first_chunk::<4>().ok_or(torn)?;
            let len = u32::from_le_bytes(*len) as usize;
            let (value, tail) = tail.split_at_checked(len).ok_or(torn)?;
            self.0.insert(u64::from_le_bytes(*key), value.to_vec());
            rest = tail;
        }
        Ok(())
    }
}
