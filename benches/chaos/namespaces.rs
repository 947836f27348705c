//! A network namespace per node, on one bridge: the kernel's own TCP between the nodes, and cuts
//! that nobody is told of.
//!
//! Neighbours are written down by hand. A directed link is cut by giving the neighbour a hardware
//! address that nobody has: packets leave and are lost, one way, without an error. So nothing but
//! `ip` is needed, no packet filter.

use std::process::{Command, Stdio};

use crate::Failure;

const NOBODY: &str = "02:77:ff:ff:ff:ff";

/// The namespaces; taken down when dropped.
#[derive(Debug)]
pub(crate) struct Namespaces {
    /// Tells runs on one machine apart.
    tag: u32,
    ids: Vec<u64>,
}

impl Namespaces {
    /// Why there can be none here; None: there can.
    pub(crate) fn missing() -> Option<String> {
        let probe = format!("rlp{}", std::process::id());
        let tried = ip(&["netns", "add", &probe])
            .and_then(|()| ip(&["link", "add", &probe, "type", "bridge"]))
            .and_then(|()| ip(&["link", "del", &probe]));
        let _ = ip(&["netns", "del", &probe]);
        tried.err().map(|e| e.to_string())
    }

    /// Sets up a namespace per node.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn new(ids: Vec<u64>) -> Result<Self, Failure> {
        let all = Self { tag: std::process::id() % 100_000, ids };
        let bridge = all.bridge();
        ip(&["link", "add", &bridge, "type", "bridge"])?;
        ip(&["addr", "add", &format!("{}/24", all.addr(0)), "dev", &bridge])?;
        ip(&["link", "set", &bridge, "up"])?;
        for id in &all.ids {
            let (space, outside) = (all.space(*id), format!("rl{}v{id}", all.tag));
            ip(&["netns", "add", &space])?;
            let inside = ["peer", "name", "eth0", "address", &hardware(*id), "netns", &space];
            let link = ["link", "add", &outside, "type", "veth"];
            ip(&[&link[..], &inside[..]].concat())?;
            ip(&["link", "set", &outside, "master", &bridge, "up"])?;
            let own = format!("{}/24", all.addr(*id));
            ip(&["-n", &space, "addr", "add", &own, "dev", "eth0"])?;
            ip(&["-n", &space, "link", "set", "eth0", "up"])?;
            ip(&["-n", &space, "link", "set", "lo", "up"])?;
        }
        for from in &all.ids {
            for to in all.ids.iter().filter(|to| *to != from) {
                all.mend(*from, *to)?;
            }
        }
        Ok(all)
    }

    /// Where a node lives; 0 is the bridge.
    pub(crate) fn addr(&self, id: u64) -> String {
        format!("10.{}.{}.{}", 64 + self.tag / 256 % 64, self.tag % 256, 10 + id)
    }

    /// What to put before a program to run it in the namespace of a node.
    pub(crate) fn prefix(&self, id: u64) -> Vec<String> {
        ["ip", "netns", "exec", &self.space(id)].map(str::to_owned).into()
    }

    /// From now on nothing of one node reaches the other.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn cut(&self, from: u64, to: u64) -> Result<(), Failure> {
        self.neighbour(from, to, NOBODY)
    }

    /// The link is as before.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn mend(&self, from: u64, to: u64) -> Result<(), Failure> {
        self.neighbour(from, to, &hardware(to))
    }

    fn neighbour(&self, from: u64, to: u64, hardware: &str) -> Result<(), Failure> {
        let (space, addr) = (self.space(from), self.addr(to));
        let entry = ["neigh", "replace", &addr, "lladdr", hardware, "nud", "permanent"];
        ip(&[&["-n", &space], &entry[..], &["dev", "eth0"]].concat())
    }

    fn space(&self, id: u64) -> String {
        format!("rl{}n{id}", self.tag)
    }

    fn bridge(&self) -> String {
        format!("rl{}", self.tag)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for id in &self.ids {
            let _ = ip(&["netns", "del", &self.space(*id)]);
        }
        let _ = ip(&["link", "del", &self.bridge()]);
    }
}

fn hardware(id: u64) -> String {
    format!("02:77:00:00:00:{id:02x}")
}

fn ip(args: &[&str]) -> Result<(), Failure> {
    let output = Command::new("ip").args(args).stdin(Stdio::null()).output();
    let output = output.map_err(|e| format!("cannot run ip: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let told = String::from_utf8_lossy(&output.stderr);
    Err(format!("ip {}: {}", args.join(" "), told.trim()).into())
}
