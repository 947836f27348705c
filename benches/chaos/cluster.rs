//! The nodes of a run: where they live, which of them are up, who leads.

use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Duration;

use futures::future::join_all;
use serde_json::Value;
use tokio::time::{sleep, timeout};

use crate::Failure;
use crate::client::Client;
use crate::network::Network;
use crate::patience::Patience;
use crate::process::{Process, Recipe};
use crate::proxy::Pids;

/// A node that is not where it should be after this long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);
/// A node that does not tell its status within this is asked again.
const STATUS: Duration = Duration::from_secs(1);

/// The settings of every node: quick elections, and snapshots all the time.
const SETTINGS: &str = r#"{
    "heartbeat": "50ms", "election_tick": 8, "request_timeout": "1500ms",
    "snapshot_entries": 300, "snapshot_trailing_entries": 50, "log_segment_size": "256KiB"
}"#;

/// One node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: u64,
    pub(crate) http: String,
    pub(crate) data: PathBuf,
    /// Where it listens for the others, and where it reaches them.
    pub(crate) listen: String,
    pub(crate) peers: Vec<String>,
    recipe: Recipe,
    process: Option<Process>,
}

/// Where a node shall live.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) id: u64,
    pub(crate) prefix: Vec<String>,
    pub(crate) listen: String,
    pub(crate) advertise: String,
    pub(crate) http: String,
    pub(crate) data: PathBuf,
}

/// All nodes and what lies between them.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    /// What their processes run.
    pub(crate) program: PathBuf,
    pub(crate) network: Network,
    pub(crate) pids: Pids,
}

impl Cluster {
    /// Nodes at these places; none runs yet.
    ///
    /// # Errors
    /// When the settings cannot be written.
    pub(crate) fn new(
        places: Vec<Place>,
        program: &Path,
        dir: &Path,
        network: Network,
        pids: Pids,
    ) -> Result<Self, Failure> {
        Self::with_settings(places, program, dir, network, pids, SETTINGS)
    }

    /// The same with other settings of the library.
    ///
    /// # Errors
    /// When they cannot be written.
    pub(crate) fn with_settings(
        places: Vec<Place>,
        program: &Path,
        dir: &Path,
        network: Network,
        pids: Pids,
        json: &str,
    ) -> Result<Self, Failure> {
        let settings = dir.join("settings.json");
        std::fs::write(&settings, json)?;
        let addrs: Vec<_> = places.iter().map(|p| p.advertise.clone()).collect();
        let node = |place: Place| {
            let mut args: Vec<String> = ["node", "--id"].map(str::to_owned).into();
            args.push(place.id.to_string());
            let mut flag = |name: &str, value: &str| {
                args.extend([name.to_owned(), value.to_owned()]);
            };
            flag("--raft-addr", &place.listen);
            flag("--advertise-addr", &place.advertise);
            flag("--http-addr", &place.http);
            flag("--config", &settings.to_string_lossy());
            flag("--data-dir", &place.data.to_string_lossy());
            let others = addrs.iter().filter(|addr| **addr != place.advertise);
            let peers: Vec<_> = others.cloned().collect();
            for peer in &peers {
                flag("--peer", peer);
            }
            let recipe = Recipe {
                id: place.id,
                prefix: place.prefix.clone(),
                program: program.to_owned(),
                args,
                log: dir.join(format!("node-{}.log", place.id)),
            };
            let Place { id, listen, http, data, .. } = place;
            Node { id, http, data, listen, peers, recipe, process: None }
        };
        let nodes = places.into_iter().map(node).collect();
        Ok(Self { nodes, program: program.to_owned(), network, pids })
    }

    /// Starts all nodes, which found a cluster together; returns when all are voters.
    ///
    /// # Errors
    /// When they do not come together.
    pub(crate) async fn found(&mut self) -> Result<(), Failure> {
        for id in self.ids() {
            self.start(id)?;
        }
        self.wait_for_voters().await
    }

    /// Waits until every node knows that all of them vote.
    ///
    /// # Errors
    /// When they do not come together.
    pub(crate) async fn wait_for_voters(&mut self) -> Result<(), Failure> {
        let ids = self.ids();
        let voters = |s: &Value| {
            let members = s["members"].as_array();
            members.map_or(0, |all| all.iter().filter(|m| m["voter"] == true).count())
        };
        for id in ids.clone() {
            self.wait_until(id, "in the whole cluster", |s| voters(s) == ids.len()).await?;
        }
        Ok(())
    }

    pub(crate) fn ids(&self) -> Vec<u64> {
        self.nodes.iter().map(|n| n.id).collect()
    }

    /// Ids and HTTP addresses.
    pub(crate) fn faces(&self) -> Vec<(u64, String)> {
        self.nodes.iter().map(|n| (n.id, n.http.clone())).collect()
    }

    /// The nodes that run, paused ones included.
    pub(crate) fn up(&self) -> Vec<u64> {
        self.nodes.iter().filter(|n| n.process.is_some()).map(|n| n.id).collect()
    }

    fn node(&mut self, id: u64) -> Result<&mut Node, Failure> {
        let node = self.nodes.iter_mut().find(|n| n.id == id);
        Ok(node.ok_or_else(|| format!("there is no node {id}"))?)
    }

    /// Starts a node that is down.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(&mut self, id: u64) -> Result<(), Failure> {
        let node = self.node(id)?;
        if node.process.is_none() {
            let process = Process::start(&node.recipe)?;
            let pid = process.pid();
            node.process = Some(process);
            self.pids.lock().unwrap_or_else(PoisonError::into_inner).insert(id, pid);
        }
        Ok(())
    }

    fn take(&mut self, id: u64) -> Result<Option<Process>, Failure> {
        self.pids.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        Ok(self.node(id)?.process.take())
    }

    /// Kills a node at once.
    ///
    /// # Errors
    /// When it had ended by itself.
    pub(crate) fn kill(&mut self, id: u64) -> Result<(), Failure> {
        let process = self.take(id)?;
        let killed = process.map_or(Ok(()), Process::kill);
        Ok(killed.map_err(|e| format!("node {id}: {e}"))?)
    }

    /// Asks a node to end and waits for it. One that was just started is given the time to learn
    /// how to end in order: before, the signal would simply kill it.
    ///
    /// # Errors
    /// When it does not, or fails.
    pub(crate) async fn stop(&mut self, id: u64) -> Result<(), Failure> {
        if self.node(id)?.process.is_none() {
            return Ok(());
        }
        self.wait_until(id, "answering", |_| true).await?;
        let Some(process) = self.take(id)? else { return Ok(()) };
        Ok(process.stop(PATIENCE).await.map_err(|e| format!("node {id}: {e}"))?)
    }

    /// Stops a node in its tracks.
    ///
    /// # Errors
    /// When it is gone.
    pub(crate) fn pause(&mut self, id: u64) -> Result<(), Failure> {
        self.node(id)?.process.as_mut().map_or(Ok(()), Process::pause)
    }

    /// Everything heals: links let through, paused nodes go on, dead ones are started.
    ///
    /// # Errors
    /// When a node cannot be started.
    pub(crate) fn heal(&mut self) -> Result<(), Failure> {
        self.network.heal()?;
        for id in self.ids() {
            self.start(id)?;
            if let Some(process) = self.node(id)?.process.as_mut().filter(|p| p.paused) {
                process.resume()?;
            }
        }
        Ok(())
    }

    /// Makes sure that no node ended without having been told to.
    ///
    /// # Errors
    /// Naming the node and its log.
    pub(crate) fn alive(&mut self) -> Result<(), Failure> {
        for node in &mut self.nodes {
            let Some(process) = &mut node.process else { continue };
            if let Some(status) = process.ended()? {
                let (id, log) = (node.id, node.recipe.log.display());
                return Err(format!("node {id} ended by itself ({status}); see {log}").into());
            }
        }
        Ok(())
    }

    /// How a node ended that was expected to, and the end of its log.
    ///
    /// # Errors
    /// When it goes on.
    pub(crate) async fn wait_for_end(&mut self, id: u64) -> Result<(bool, String), Failure> {
        let mut patience = Patience::new(PATIENCE);
        let node = self.node(id)?;
        let log = node.recipe.log.clone();
        while let Some(process) = &mut node.process {
            if let Some(status) = process.ended()? {
                drop(self.take(id)?);
                return Ok((status.success(), std::fs::read_to_string(log)?));
            }
            if patience.is_over() {
                return Err(format!("node {id} goes on although it should have ended").into());
            }
            sleep(PAUSE).await;
        }
        Err(format!("node {id} did not run").into())
    }

    /// Who leads, as the node of the highest term says that does.
    /// Nodes that do not answer within `limit` are left out.
    pub(crate) async fn leader(&self, limit: Duration) -> Option<u64> {
        let faces = self.faces();
        let all = join_all(faces.iter().map(|(_, http)| status(http, limit))).await;
        let leads = |status: Value| (status["role"] == "leader").then(|| status["term"].as_u64());
        let terms = all.into_iter().zip(&faces).filter_map(|(s, (id, _))| Some((leads(s?)??, *id)));
        terms.max().map(|(_, id)| id)
    }

    /// Waits for a leader.
    ///
    /// # Errors
    /// When there is none in time.
    pub(crate) async fn wait_for_leader(&mut self, limit: Duration) -> Result<u64, Failure> {
        let mut patience = Patience::new(limit);
        loop {
            self.alive()?;
            match self.leader(STATUS).await {
                Some(id) => return Ok(id),
                None if patience.is_over() => {
                    return Err(format!("no leader within {limit:?}").into());
                }
                None => sleep(PAUSE).await,
            }
        }
    }

    /// Waits until the status of a node satisfies a condition.
    ///
    /// # Errors
    /// When it never does; with the last status.
    pub(crate) async fn wait_until(
        &mut self,
        id: u64,
        what: &str,
        condition: impl Fn(&Value) -> bool,
    ) -> Result<Value, Failure> {
        let mut patience = Patience::new(PATIENCE);
        let http = self.node(id)?.http.clone();
        loop {
            self.alive()?;
            match status(&http, STATUS).await {
                Some(status) if condition(&status) => return Ok(status),
                last if patience.is_over() => {
                    let last = last.map_or("none".to_owned(), |s| s.to_string());
                    return Err(format!("node {id} is not {what} in time: {last}").into());
                }
                _ => sleep(PAUSE).await,
            }
        }
    }
}

/// The status of the node behind an address, if it tells it within `limit`.
async fn status(http: &str, limit: Duration) -> Option<Value> {
    let mut client = Client::new(http);
    timeout(limit, client.status()).await.ok()?.ok()
}
