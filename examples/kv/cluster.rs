//! The drill: three processes, loaded with a text, the leader killed in the middle, then all of
//! them, and every acknowledged line verified on every node.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::Failure;
use crate::client::Client;
use crate::load::{self, Progress};
use crate::process::{Place, Process, places};
use crate::text::Text;
use crate::verify::{Found, read_back};

const NODES: u64 = 3;
/// Between two looks at a figure.
const PAUSE: Duration = Duration::from_millis(5);
/// A cluster that takes no write for this long after losing its leader has failed.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// A text to load instead of a generated one.
    #[arg(long)]
    file: Option<PathBuf>,
    /// Lines of the generated text.
    #[arg(long, default_value_t = 60_000)]
    lines: usize,
    /// Where the nodes keep their data and logs; must be empty. Default: a temporary directory.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Clients at a time.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    clients: u16,
}

/// Runs the drill.
///
/// # Errors
/// When a line is missing or different, or a node is not where it should be.
pub(crate) async fn run(flags: Flags) -> Result<(), Failure> {
    let temporary = tempfile::tempdir()?;
    let dir = flags.data_dir.clone().unwrap_or_else(|| temporary.path().to_owned());
    std::fs::create_dir_all(&dir)?;
    if std::fs::read_dir(&dir)?.next().is_some() {
        return Err(format!("{} is not empty", dir.display()).into());
    }
    let done = drill(&flags, &dir).await;
    if done.is_err() && flags.data_dir.is_none() {
        let kept = temporary.keep();
        eprintln!("data and logs of the nodes are kept in {}", kept.display());
    }
    done
}

async fn drill(flags: &Flags, dir: &std::path::Path) -> Result<(), Failure> {
    let text = match &flags.file {
        Some(file) => Text::read(file)?,
        None => generated(flags.lines, dir)?,
    };
    println!("a text of {} lines, three nodes on 127.0.0.1, data in {}", text.len(), dir.display());
    let places = places(NODES, dir)?;
    let nodes = found(&places).await?;

    let (nodes, progress) = load_and_kill(&text, &places, nodes, flags.clients).await?;

    let nodes = kill_all(nodes).await?;
    check(&text, &nodes, flags.clients).await?;
    let acknowledged = progress.acknowledged.load(Ordering::Relaxed);
    println!("done: {acknowledged} lines acknowledged, lost = 0, on each of {NODES} nodes");
    Ok(())
}

/// Writes the generated text to a file and reads it back: the lines come from a real file.
fn generated(lines: usize, dir: &std::path::Path) -> Result<Text, Failure> {
    let path = dir.join("text.txt");
    std::fs::write(&path, Text::generate(lines).join())?;
    Text::read(&path)
}

/// Starts empty nodes, all alike: they found one cluster together.
async fn found(places: &[Place]) -> Result<Vec<Process>, Failure> {
    let started = Instant::now();
    let mut nodes = Vec::new();
    for place in places {
        nodes.push(Process::start(place)?);
    }
    for node in &mut nodes {
        node.wait_until("in a cluster of three voters", |s| voters(s) == NODES as usize).await?;
    }
    println!("the cluster stands after {}", seconds(started.elapsed()));
    Ok(nodes)
}

fn voters(status: &Value) -> usize {
    let members = status["members"].as_array();
    members.map_or(0, |all| all.iter().filter(|m| m["voter"] == true).count())
}

/// Loads the text; in the middle of it the leader is killed, and started again.
async fn load_and_kill(
    text: &Text,
    places: &[Place],
    mut nodes: Vec<Process>,
    clients: u16,
) -> Result<(Vec<Process>, Arc<Progress>), Failure> {
    let progress = Arc::new(Progress::default());
    let load = {
        let (text, progress) = (text.clone(), progress.clone());
        let addrs: Vec<_> = places.iter().map(|p| p.http.clone()).collect();
        tokio::spawn(async move { load::write(&text, &addrs, clients, &progress).await })
    };
    reach(&progress, text.len() / 2, &load).await?;

    let victim = leader(&mut nodes).await?;
    let before = progress.acknowledged.load(Ordering::Relaxed);
    let place = nodes.remove(victim).kill()?;
    let killed = Instant::now();
    println!("killed the leader, node {}, after {before} acknowledged lines", place.id);
    first_write(&nodes).await?;
    println!("the others took the first write {} after the kill", seconds(killed.elapsed()));

    let started = Instant::now();
    let mut node = Process::start(&place)?;
    let commit = nodes[0].wait_until("running", |_| true).await?["commit"].as_u64().unwrap_or(0);
    node.wait_until("caught up", |s| s["applied"].as_u64() >= Some(commit)).await?;
    println!("node {} had caught up {} after its restart", place.id, seconds(started.elapsed()));
    nodes.insert(victim, node);

    let took = load.await??;
    println!("{}", load::summary(text, &progress, took));
    Ok((nodes, progress))
}

/// Waits until this many lines are acknowledged.
async fn reach<T>(progress: &Progress, lines: usize, load: &JoinHandle<T>) -> Result<(), Failure> {
    while progress.acknowledged.load(Ordering::Relaxed) < lines {
        if load.is_finished() {
            return Err("the load ended before the middle".into());
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Position of the leader among the nodes.
async fn leader(nodes: &mut [Process]) -> Result<usize, Failure> {
    let knows = |s: &Value| s["leader_id"].as_u64().is_some_and(|id| id != 0);
    let status = nodes[0].wait_until("in touch with a leader", knows).await?;
    let leader = nodes.iter().position(|n| status["leader_id"] == n.place.id);
    Ok(leader.ok_or("the leader is none of the nodes")?)
}

/// Writes through the nodes in turn until one of them acknowledges.
async fn first_write(nodes: &[Process]) -> Result<(), Failure> {
    let started = Instant::now();
    let mut clients: Vec<_> = nodes.iter().map(|n| Client::new(n.place.http.as_str())).collect();
    while started.elapsed() < PATIENCE {
        for client in &mut clients {
            if client.request("PUT", "/kv/probe", b"p").await.is_ok_and(|r| r.status == 200) {
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
    Err(format!("no write was taken within {PATIENCE:?} after the kill").into())
}

/// Kills all nodes at once and starts them again, from their disks alone.
async fn kill_all(nodes: Vec<Process>) -> Result<Vec<Process>, Failure> {
    let mut places = Vec::new();
    for node in nodes {
        places.push(node.kill()?);
    }
    println!("killed all {NODES} nodes");
    let started = Instant::now();
    let mut nodes = places.iter().map(Process::start).collect::<Result<Vec<_>, _>>()?;
    for node in &mut nodes {
        node.wait_until("running", |_| true).await?;
    }
    first_write(&nodes).await?;
    println!("started them again: first write {} later", seconds(started.elapsed()));
    Ok(nodes)
}

/// Reads every line from every node: linearizable, and then what the node itself holds.
async fn check(text: &Text, nodes: &[Process], clients: u16) -> Result<(), Failure> {
    let intact = Found { intact: text.len(), ..Found::default() };
    for node in nodes {
        let id = node.place.id;
        // The linearizable reads bring the node up to date, so that the stale ones must see all.
        for (stale, how) in [(false, "linearizable"), (true, "its own copy")] {
            let (found, took) = read_back(text, &node.place.http, stale, clients).await?;
            let rate = text.len() as f64 / took.as_secs_f64();
            println!("node {id}, {how}: {} lines intact, {rate:.0} reads/s", found.intact);
            if found != intact {
                let (missing, different) = (found.missing, found.different);
                return Err(format!(
                    "node {id} ({how}) lost acknowledged lines: {missing} missing, {different} \
                     different"
                )
                .into());
            }
        }
    }
    Ok(())
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
