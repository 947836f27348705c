//! Where the nodes of a run live, and the program that they run.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Failure;
use crate::cluster::{Cluster, Place};
use crate::namespaces::Namespaces;
use crate::network::{Kind, Network};
use crate::proxy::{Door, Pids, Proxies};

/// Below the ports that systems hand out for outgoing connections, so that nothing takes the port
/// of a node while it is down.
const PORTS: std::ops::Range<u16> = 10_000..30_000;

/// Nodes on loopback, a proxy in front of each.
///
/// # Errors
/// When there are not enough ports.
pub(crate) async fn on_loopback(
    nodes: u64,
    program: &Path,
    dir: &Path,
    seed: u64,
) -> Result<Cluster, Failure> {
    let mut ports = free_ports();
    let mut addr = || ports.next().map(|p| format!("127.0.0.1:{p}")).ok_or("no free ports");
    let mut places = Vec::new();
    for id in 1..=nodes {
        places.push(Place {
            id,
            prefix: Vec::new(),
            listen: addr()?,
            advertise: addr()?,
            http: addr()?,
            data: dir.join(format!("node-{id}")),
        });
    }
    let door = |p: &Place| Door { id: p.id, proxy: p.advertise.clone(), target: p.listen.clone() };
    let doors: Vec<_> = places.iter().map(door).collect();
    let pids = Pids::default();
    let proxies = Proxies::start(&doors, &pids, seed).await?;
    let network = Network::new(Kind::Proxies(proxies), (1..=nodes).collect());
    Cluster::new(places, program, dir, network, pids)
}

/// Nodes in a namespace each.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn in_namespaces(nodes: u64, program: &Path, dir: &Path) -> Result<Cluster, Failure> {
    let spaces = Namespaces::new((1..=nodes).collect())?;
    let place = |id| Place {
        id,
        prefix: spaces.prefix(id),
        listen: format!("{}:5000", spaces.addr(id)),
        advertise: format!("{}:5000", spaces.addr(id)),
        http: format!("{}:8000", spaces.addr(id)),
        data: dir.join(format!("node-{id}")),
    };
    let places = (1..=nodes).map(place).collect();
    let network = Network::new(Kind::Namespaces(spaces), (1..=nodes).collect());
    Cluster::new(places, program, dir, network, Pids::default())
}

/// Nodes on loopback with nothing between them, and the data of one in another place.
///
/// # Errors
/// When there are not enough ports.
pub(crate) fn plain(
    nodes: u64,
    program: &Path,
    dir: &Path,
    elsewhere: (u64, &Path),
) -> Result<Cluster, Failure> {
    let mut places = bare(nodes, dir)?;
    for place in places.iter_mut().filter(|place| place.id == elsewhere.0) {
        place.data = elsewhere.1.join(format!("node-{}", place.id));
    }
    let network = Network::new(Kind::Plain, (1..=nodes).collect());
    Cluster::new(places, program, dir, network, Pids::default())
}

/// Nodes on loopback with nothing between them and these settings.
///
/// # Errors
/// When there are not enough ports.
pub(crate) fn with_settings(
    nodes: u64,
    program: &Path,
    dir: &Path,
    settings: &str,
) -> Result<Cluster, Failure> {
    let network = Network::new(Kind::Plain, (1..=nodes).collect());
    let places = bare(nodes, dir)?;
    Cluster::with_settings(places, program, dir, network, Pids::default(), settings)
}

fn bare(nodes: u64, dir: &Path) -> Result<Vec<Place>, Failure> {
    let mut ports = free_ports();
    let mut addr = || ports.next().map(|p| format!("127.0.0.1:{p}")).ok_or("no free ports");
    let mut places = Vec::new();
    for id in 1..=nodes {
        let listen = addr()?;
        places.push(Place {
            id,
            prefix: Vec::new(),
            advertise: listen.clone(),
            listen,
            http: addr()?,
            data: dir.join(format!("node-{id}")),
        });
    }
    Ok(places)
}

fn free_ports() -> impl Iterator<Item = u16> {
    let span = u32::from(PORTS.end - PORTS.start);
    let first = std::process::id().wrapping_mul(31) % span;
    (0..span)
        .filter_map(move |n| u16::try_from((first + n) % span).ok())
        .map(|n| PORTS.start + n)
        .filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
}

/// The kv example, built if no program is given.
///
/// # Errors
/// When it cannot be built.
pub(crate) fn program(given: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(given) = given {
        return Ok(given.canonicalize().map_err(|e| format!("{}: {e}", given.display()))?);
    }
    let own = std::env::current_exe()?;
    // target/PROFILE/deps/chaos-HASH: the example is target/PROFILE/examples/kv.
    let profile = own.ancestors().nth(2).ok_or("not in a target directory; give --kv")?;
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--quiet", "--example", "kv", "--manifest-path"]);
    build.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
    if profile.ends_with("release") {
        build.arg("--release");
    }
    if let Some(target) = profile.parent() {
        build.arg("--target-dir").arg(target);
    }
    let built = build.status().map_err(|e| format!("cannot run cargo: {e}; give --kv"))?;
    if !built.success() {
        return Err("the kv example could not be built".into());
    }
    Ok(profile.join("examples/kv"))
}
