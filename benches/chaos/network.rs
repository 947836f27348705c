//! What lies between the nodes: proxies on loopback, or the kernel between namespaces.

use std::collections::HashSet;

use crate::Failure;
use crate::link::Mode;
use crate::namespaces::Namespaces;
use crate::proxy::Proxies;

/// The way from every node to every other.
#[derive(Debug)]
pub(crate) struct Network {
    kind: Kind,
    ids: Vec<u64>,
    touched: HashSet<(u64, u64)>,
}

#[derive(Debug)]
pub(crate) enum Kind {
    /// Can do all that [`Mode`] says.
    Proxies(Proxies),
    /// Can cut links, silently, and nothing else.
    Namespaces(Namespaces),
    /// Nothing between the nodes can be changed.
    Plain,
}

impl Network {
    pub(crate) fn new(kind: Kind, ids: Vec<u64>) -> Self {
        Self { kind, ids, touched: HashSet::new() }
    }

    /// Changes what a directed link does.
    ///
    /// # Errors
    /// When this kind of network cannot do that.
    pub(crate) fn set(&mut self, from: u64, to: u64, mode: Mode) -> Result<(), Failure> {
        self.touched.insert((from, to));
        match (&self.kind, mode) {
            (Kind::Proxies(proxies), mode) => proxies.set(from, to, mode),
            (Kind::Namespaces(ns), Mode::Open) => ns.mend(from, to)?,
            (Kind::Namespaces(ns), Mode::Hold | Mode::Refuse) => ns.cut(from, to)?,
            (Kind::Plain, Mode::Open) => {}
            (Kind::Namespaces(_) | Kind::Plain, mode) => {
                return Err(format!("{mode:?} needs proxies").into());
            }
        }
        Ok(())
    }

    /// All pairs of nodes, both ways.
    pub(crate) fn links(&self) -> Vec<(u64, u64)> {
        let pairs = self.ids.iter().flat_map(|a| self.ids.iter().map(|b| (*a, *b)));
        pairs.filter(|(a, b)| a != b).collect()
    }

    /// Resets what is open on a link, where there are proxies.
    pub(crate) fn reset(&self, from: u64, to: u64) {
        match &self.kind {
            Kind::Proxies(proxies) => proxies.reset(from, to),
            Kind::Namespaces(_) | Kind::Plain => {}
        }
    }

    /// Links that could be mistreated and never carried a thing: what was done to them proves
    /// nothing.
    pub(crate) fn unused(&self) -> Vec<(u64, u64)> {
        match &self.kind {
            Kind::Proxies(proxies) => proxies.unused(),
            // There is no other way between namespaces.
            Kind::Namespaces(_) | Kind::Plain => Vec::new(),
        }
    }

    /// Chunks that were delivered behind later ones.
    pub(crate) fn late(&self) -> usize {
        match &self.kind {
            Kind::Proxies(proxies) => proxies.late(),
            Kind::Namespaces(_) | Kind::Plain => 0,
        }
    }

    /// Opens every link.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn heal(&mut self) -> Result<(), Failure> {
        for (from, to) in std::mem::take(&mut self.touched) {
            self.set(from, to, Mode::Open)?;
        }
        self.touched.clear();
        Ok(())
    }
}
