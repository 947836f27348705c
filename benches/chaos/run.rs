//! One run: a cluster, clients on every node, faults; then everything heals, and the cluster must
//! be whole again and have kept what it acknowledged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use raftline::testing::rng::Rng;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::Failure;
use crate::client::Client;
use crate::clients::{PER_NODE, Workload, perform, read, read_own};
use crate::cluster::Cluster;
use crate::faults::{Kind, Timeline, deal};
use crate::history::{Op, Outcome, Record, longest_gap, save};
use crate::patience::Patience;
use crate::resources::{Seen, Watched, limits, watch};
use crate::verdict::judge;

/// About how long a fault and the calm behind it take; sets the pace of the clients.
const FAULT: Duration = Duration::from_millis(3_000);
/// After everything has healed there is a leader within this: almost forty of the longest election
/// timeouts. A cluster that has none by then will have none.
const LEADER: Duration = Duration::from_secs(30);
/// And a write of some client within this, after every single fault; the first one to come back
/// may still be in its first election.
const AGAIN: Duration = Duration::from_secs(30);
/// And a fresh write through every node within this.
const WRITE: Duration = Duration::from_secs(60);
/// Leaders that are killed on top, at most, if leadership never went to another node.
const MORE: usize = 10;
const PAUSE: Duration = Duration::from_millis(20);

/// What to do to a cluster.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) ops: usize,
    pub(crate) faults: usize,
    pub(crate) kinds: Vec<Kind>,
    pub(crate) seed: u64,
    /// Where histories, data and logs are.
    pub(crate) dir: PathBuf,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub(crate) nodes: usize,
    pub(crate) operations: usize,
    pub(crate) ok: usize,
    pub(crate) not_applied: usize,
    pub(crate) unknown: usize,
    pub(crate) faults: BTreeMap<Kind, usize>,
    pub(crate) leader_changes: usize,
    pub(crate) unavailable: Duration,
    /// The longest time from healing a fault to the next acknowledged write.
    pub(crate) again: Duration,
    /// From the restart of all to a fresh write through every node.
    pub(crate) recovery: Duration,
    /// Chunks delivered behind later ones.
    pub(crate) late: usize,
    pub(crate) peak: crate::resources::Peak,
    pub(crate) verdict: String,
}

/// Runs a plan on a cluster whose nodes do not run yet. The history and the timeline are written
/// whatever happens.
///
/// # Errors
/// When a promise was broken; in words.
pub(crate) async fn run(plan: &Plan, cluster: &mut Cluster) -> Result<Summary, Failure> {
    cluster.found().await?;
    let mut rng = Rng::new(plan.seed);
    let clients = cluster.nodes.len() * PER_NODE;
    let length = FAULT * u32::try_from(plan.faults).unwrap_or(u32::MAX);
    let think = length * u32::try_from(clients).unwrap_or(u32::MAX)
        / u32::try_from(plan.ops.max(1)).unwrap_or(u32::MAX);
    let work = Arc::new(Workload::new(think));
    let tasks = work.spawn(&cluster.faces(), &mut rng);
    let (stop, stopped) = oneshot::channel();
    let changes = Arc::<AtomicUsize>::default();
    let watched = cluster.nodes.iter().map(|n| Watched {
        id: n.id,
        http: n.http.clone(),
        data: n.data.clone(),
        program: cluster.program.clone(),
        listen: n.listen.clone(),
        peers: n.peers.clone(),
    });
    let watching = {
        let (nodes, pids) = (watched.collect(), cluster.pids.clone());
        tokio::spawn(watch(nodes, pids, Arc::clone(&changes), stopped))
    };

    let mut timeline = Timeline::default();
    let mistreated =
        mistreat(plan, cluster, &work, &mut timeline, &mut rng, (&changes, tasks)).await;
    let recovered = match mistreated {
        Ok(again) => recover(cluster, &work).await.map(|recovery| (again, recovery)),
        Err(e) => Err(e),
    };
    drop(stop);
    let seen = watching.await?;
    let records = work.history.records();
    save(&records, &plan.dir.join("history.jsonl"))?;
    write_timeline(&timeline, &plan.dir.join("timeline.txt"))?;
    let recovery = recovered?;
    within_limits(&seen, cluster.nodes.len())?;
    let verdict = judge(&records)?;
    let summary = summary(cluster, &records, &timeline, &seen, recovery, verdict);
    worth_it(plan, cluster, &records, &summary)?;
    Ok(summary)
}

/// The first phase: faults, one after another, while the clients go on.
async fn mistreat(
    plan: &Plan,
    cluster: &mut Cluster,
    work: &Arc<Workload>,
    timeline: &mut Timeline,
    rng: &mut Rng,
    (leader_changes, mut clients): (&AtomicUsize, JoinSet<Result<(), Failure>>),
) -> Result<Duration, Failure> {
    let mut longest = Duration::ZERO;
    let mut faults = deal(&plan.kinds, plan.faults, rng);
    faults.reverse();
    let mut more = 0;
    while let Some(kind) = faults.pop().or_else(|| {
        // On a slow machine a short fault may end before its effect begins.
        let vain = plan.faults >= 5 && leader_changes.load(Ordering::Relaxed) == 0;
        more += usize::from(vain);
        (vain && more <= MORE).then_some(Kind::KillLeader)
    }) {
        timeline.inflict(kind, cluster, rng, || work.history.now()).await?;
        // Now and then the next fault meets a cluster that has not recovered yet.
        if !rng.one_in(4) {
            longest = longest.max(again(cluster, work).await?);
        }
        sleep(Duration::from_millis(rng.below(1_600))).await;
        ended(&mut clients)?;
    }
    work.think(Duration::ZERO);
    while work.done.load(Ordering::Relaxed) < plan.ops {
        cluster.alive()?;
        ended(&mut clients)?;
        sleep(PAUSE).await;
    }
    work.stop();
    while let Some(done) = clients.join_next().await {
        done??;
    }
    Ok(longest)
}

/// Waits for an acknowledged write; tells how long it took.
async fn again(cluster: &mut Cluster, work: &Workload) -> Result<Duration, Failure> {
    let mut patience = Patience::new(AGAIN);
    let (healed, before) = (Instant::now(), work.acknowledged.load(Ordering::Relaxed));
    while work.acknowledged.load(Ordering::Relaxed) == before {
        cluster.alive()?;
        if patience.is_over() {
            return Err(format!("no write was acknowledged within {AGAIN:?} of healing").into());
        }
        sleep(PAUSE).await;
    }
    Ok(healed.elapsed())
}

/// Clients end when they are told to; one that ended before has seen nonsense.
fn ended(clients: &mut JoinSet<Result<(), Failure>>) -> Result<(), Failure> {
    match clients.try_join_next() {
        None => Ok(()),
        Some(done) => {
            done??;
            Err("a client ended by itself".into())
        }
    }
}

/// The second phase: all nodes start from their disks alone, and must find together, take writes,
/// and hold the same.
async fn recover(cluster: &mut Cluster, work: &Workload) -> Result<Duration, Failure> {
    for id in cluster.up() {
        cluster.kill(id)?;
    }
    let (started, mut patience) = (Instant::now(), Patience::new(WRITE));
    cluster.heal()?;
    cluster.wait_for_leader(LEADER).await?;
    let faces = cluster.faces();
    let mut clients: Vec<_> = faces.iter().map(|(_, addr)| Client::new(addr.as_str())).collect();
    let mut number = usize::MAX;
    for ((node, _), client) in faces.iter().zip(&mut clients) {
        loop {
            let op = Op::Put { value: format!("fresh{number}.") };
            let key = format!("fresh-{node}");
            number -= 1;
            // NB: several tries are several clients: one whose write may yet be applied is gone.
            cluster.alive()?;
            if client.open().await.is_ok() {
                let done = perform(&work.history, client, number, *node, &key, op).await?;
                if matches!(done, Outcome::Written { .. }) {
                    break;
                }
            }
            if patience.is_over() {
                return Err(format!("node {node} took no fresh write within {WRITE:?}").into());
            }
            sleep(PAUSE).await;
        }
    }
    let recovery = started.elapsed();
    converged(cluster, work, &mut clients, number).await?;
    Ok(recovery)
}

/// Every key, read from every node: linearizable, as part of the history, and what the node
/// itself holds, which must be the same then.
async fn converged(
    cluster: &mut Cluster,
    work: &Workload,
    clients: &mut [Client],
    mut number: usize,
) -> Result<(), Failure> {
    let keys = work.keys();
    let ids = cluster.ids();
    let mut contents: BTreeMap<&str, Option<String>> = BTreeMap::new();
    let mut own: Vec<BTreeMap<&str, Option<String>>> = Vec::new();
    for (n, (client, node)) in clients.iter_mut().zip(&ids).enumerate() {
        let mut held = BTreeMap::new();
        for key in &keys {
            // One linearizable read brings the node up to date; the first node reads all so.
            if n == 0 || held.is_empty() {
                let value = read(&work.history, client, &mut number, *node, key).await?;
                if n == 0 {
                    contents.insert(key, value);
                }
            }
            held.insert(key.as_str(), read_own(client, *node, key).await?);
        }
        own.push(held);
    }
    for (held, node) in own.iter().zip(&ids) {
        if let Some((key, value)) =
            held.iter().find(|(key, value)| contents.get(*key) != Some(value))
        {
            let leader = contents.get(key);
            return Err(format!(
                "node {node} did not converge: {key} is {value:?} there and {leader:?} in truth"
            )
            .into());
        }
    }
    Ok(())
}

/// A run in which nothing happened proves nothing.
fn worth_it(
    plan: &Plan,
    cluster: &Cluster,
    records: &[Record],
    summary: &Summary,
) -> Result<(), Failure> {
    let answered = |id: &u64| {
        let mut ok = records.iter().filter(|r| r.node == *id);
        ok.any(|r| matches!(r.outcome, Outcome::Written { .. }))
    };
    let idle: Vec<_> = cluster.ids().into_iter().filter(|id| !answered(id)).collect();
    let faults: usize = summary.faults.values().sum();
    let unused = cluster.network.unused();
    let vain = [
        (faults < plan.faults, format!("only {faults} faults")),
        (summary.operations < plan.ops, format!("only {} operations", summary.operations)),
        (summary.ok < summary.operations / 2, format!("only {} of them ok", summary.ok)),
        (!idle.is_empty(), format!("no write through nodes {idle:?}")),
        (!unused.is_empty(), format!("no connection on the links {unused:?}")),
        (faults >= 5 && summary.leader_changes == 0, "one leader all the time".to_owned()),
        (
            summary.faults.contains_key(&Kind::Reorder) && summary.late == 0,
            "nothing was reordered".to_owned(),
        ),
    ];
    match vain.into_iter().find(|(vain, _)| *vain) {
        Some((_, why)) => Err(format!("the run proves nothing: {why}").into()),
        None => Ok(()),
    }
}

fn within_limits(seen: &Seen, nodes: usize) -> Result<(), Failure> {
    if let Some(rivals) = seen.rivals.first() {
        return Err(rivals.clone().into());
    }
    if seen.samples == 0 {
        return Err("no node was ever sampled".into());
    }
    let (peak, limits) = (seen.peak, limits(nodes));
    if peak.is_within(limits) {
        Ok(())
    } else {
        Err(format!("a node used {peak}; the limit is {limits}").into())
    }
}

fn summary(
    cluster: &Cluster,
    records: &[Record],
    timeline: &Timeline,
    seen: &Seen,
    (again, recovery): (Duration, Duration),
    verdict: String,
) -> Summary {
    let count = |outcome: &Outcome| records.iter().filter(|r| r.outcome == *outcome).count();
    let (not_applied, unknown) = (count(&Outcome::NotApplied), count(&Outcome::Unknown));
    Summary {
        nodes: cluster.nodes.len(),
        operations: records.len(),
        ok: records.len() - not_applied - unknown,
        not_applied,
        unknown,
        faults: timeline.counts.clone(),
        leader_changes: seen.leader_changes(),
        unavailable: longest_gap(records),
        again,
        recovery,
        late: cluster.network.late(),
        peak: seen.peak,
        verdict,
    }
}

fn write_timeline(timeline: &Timeline, path: &Path) -> Result<(), Failure> {
    let line = |(at, told): &(Duration, String)| format!("{:9.3} s  {told}\n", at.as_secs_f64());
    Ok(std::fs::write(path, timeline.entries.iter().map(line).collect::<String>())?)
}
