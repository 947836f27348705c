//! The machine, and how a program was called: printed before any figure, because none means
//! anything without it.

use std::fmt;
use std::fs;

use serde::{Deserialize, Serialize};

/// What figures depend on.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Machine {
    /// Processors that this process may use.
    pub cores: usize,
    /// Their name.
    pub cpu: String,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Release of the kernel.
    pub kernel: String,
    /// The compiler.
    pub rustc: String,
    /// Its level of optimisation.
    pub opt_level: String,
    /// Runnable tasks, averaged over the last minute: what else the machine did at the start.
    pub busy: String,
    /// How the program was called.
    pub command: String,
}

/// What stands behind `name:` in a file of /proc.
fn field(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
}

fn first_word(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().next().unwrap_or_default().to_owned()
}

impl Machine {
    /// Asks the operating system.
    pub fn look() -> Self {
        let memory = field("/proc/meminfo", "MemTotal");
        let kib: u64 = memory.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or_default();
        let mut args = std::env::args();
        let program = args.next().unwrap_or_default();
        let name = program.rsplit('/').next().unwrap_or_default().to_owned();
        Self {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            cpu: field("/proc/cpuinfo", "model name"),
            memory_mib: kib / 1024,
            kernel: first_word("/proc/sys/kernel/osrelease"),
            rustc: env!("RUSTC_VERSION").to_owned(),
            opt_level: env!("BUILT_WITH").to_owned(),
            busy: first_word("/proc/loadavg"),
            command: [name].into_iter().chain(args).collect::<Vec<_>>().join(" "),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "machine: {} cores ({}), {} MiB, Linux {}",
            self.cores, self.cpu, self.memory_mib, self.kernel
        )?;
        writeln!(f, "built by {}, opt-level {}", self.rustc, self.opt_level)?;
        writeln!(f, "run as: {}", self.command)?;
        write!(f, "load average at the start: {}", self.busy)?;
        let busy: f64 = self.busy.parse().unwrap_or_default();
        if busy > 0.3 {
            write!(f, " (NOT IDLE: compare nothing but ratios, and those with care)")?;
        }
        Ok(())
    }
}
