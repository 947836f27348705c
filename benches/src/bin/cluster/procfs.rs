//! What processes cost, from /proc.

use std::fs;

use crate::Failure;

/// /proc counts processor time in hundredths of a second (USER_HZ), on every Linux.
const TICKS: f64 = 100.0;

/// User and system seconds of a process so far.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64, Failure> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in parentheses, which may hold anything.
    let (_, rest) = stat.rsplit_once(") ").ok_or("unexpected /proc/<pid>/stat")?;
    let field = |n: usize| rest.split(' ').nth(n).and_then(|f| f.parse::<f64>().ok());
    let (user, system) = field(11).zip(field(12)).ok_or("unexpected /proc/<pid>/stat")?;
    Ok((user + system) / TICKS)
}

/// The largest resident size of a process so far, in MiB.
pub(crate) fn peak_mib(pid: u32) -> Result<f64, Failure> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}
