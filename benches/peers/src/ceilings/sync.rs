//! How long a write and fdatasync take, in a file whose blocks are there already.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::thread;
use std::time::Instant;

use peers::Result;

use crate::cluster::data_dir;
use crate::histogram::Histogram;

const BLOCK: usize = 4096;
const ROUNDS: usize = 2000;

fn rounds(path: PathBuf) -> Result<Histogram> {
    let file = File::create_new(path)?;
    file.write_all_at(&vec![0; BLOCK * ROUNDS], 0)?;
    file.sync_all()?;
    let mut latencies = Histogram::default();
    for round in 0..ROUNDS {
        let begin = Instant::now();
        file.write_all_at(&[7; BLOCK], (round * BLOCK) as u64)?;
        file.sync_data()?;
        latencies.add(begin.elapsed().as_micros() as u64);
    }
    Ok(latencies)
}

/// Median in microseconds, with so many files at once.
pub fn median_us(files: usize) -> Result<u64> {
    let dir = data_dir()?;
    let threads: Vec<_> = (0..files)
        .map(|n| dir.path().join(n.to_string()))
        .map(|path| thread::spawn(move || rounds(path)))
        .collect();
    let mut all = Histogram::default();
    for thread in threads {
        all.merge(&thread.join().map_err(|_| "a thread that syncs has panicked")??);
    }
    Ok(all.quantile(0.5))
}
