//! What a node that founds together with others says to people: for whom it waits, and why it
//! will not go on.

use super::decide::{Answer, Answers, Candidate, proposer};
use crate::error::Error;
use crate::types::{ClusterId, Membership, NodeId};

/// Addresses that are named in one sentence; of more, only how many.
const MOST: usize = 16;

fn list<'a>(addrs: impl Iterator<Item = &'a String>) -> String {
    let all: Vec<&str> = addrs.map(String::as_str).collect();
    let named = all.iter().take(MOST).copied().collect::<Vec<_>>().join(", ");
    match all.len().saturating_sub(MOST) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

/// Two nodes were started with different lists, or numbers of founding members.
pub(super) fn terms_differ(me: &Candidate, other: &Candidate) -> String {
    let terms = |c: &Candidate| {
        let addrs = list(c.terms.addrs.iter());
        match c.terms.expect {
            None => format!("founds with [{addrs}]"),
            Some(n) => format!("expects {n} founding members behind [{addrs}]"),
        }
    };
    format!(
        "node {} at {} {}, but node {} at {} {}. Start every node with the same list, in which \
         each one stands under the address that the others reach it at (Config::advertise_addr), \
         and with the same bootstrap_expect",
        me.node_id,
        me.addr,
        terms(me),
        other.node_id,
        other.addr,
        terms(other),
    )
}

pub(super) fn same_id(id: NodeId, here: &str, there: &str) -> String {
    format!(
        "node id {id} is used by the node at {here} and by the one at {there}; give every node an \
         id of its own"
    )
}

pub(super) fn itself(me: &Candidate, addr: &str) -> Error {
    Error::Config {
        field: "advertise_addr",
        reason: format!(
            "{addr} is this node itself, which says that it is reached at {}; set advertise_addr \
             to {addr}, or write the other one into the list of every node",
            me.addr
        ),
    }
}

pub(super) fn twice(a: &str, b: &str) -> Error {
    Error::Config {
        field: "peers",
        reason: format!("{a} and {b} are the same node; write every node into the list once"),
    }
}

pub(super) fn two_clusters(a: (&String, ClusterId), b: (&String, ClusterId)) -> Error {
    Error::WrongCluster(format!(
        "{} belongs to cluster {}, but {} to cluster {}; leave the one that this node shall not \
         enter out of its list",
        a.0, a.1, b.0, b.1
    ))
}

/// A node has agreed to found with some, and is asked by others.
pub(super) fn agreed_elsewhere(agreed: &Membership) -> String {
    let members = agreed.members.iter().map(|m| &m.addr);
    format!("it has agreed to found a cluster with [{}]", list(members))
}

/// A node has agreed to found with some, and was given another list since.
pub(super) fn agreed_before(agreed: &Membership) -> String {
    let elsewhere = agreed_elsewhere(agreed);
    format!(
        "{elsewhere}, not with those that it is given now; waiting for them, unless its data \
        directory is emptied"
    )
}

/// A cluster is there, but the one that this node agreed to found may be, too.
pub(super) fn may_be_founded(agreed: &Membership, addr: &str) -> String {
    let (id, at) = proposer(agreed).map_or((0, ""), |p| (p.node_id, p.addr.as_str()));
    format!(
        "{addr} belongs to a cluster, but this node has agreed to found another with node {id} at \
         {at}; waiting for that node to say whether it did"
    )
}

/// Founding members are missing.
pub(super) fn missing<'a>(
    count: usize,
    here: usize,
    awaited: impl Iterator<Item = &'a String>,
    answers: &Answers,
) -> String {
    let awaited: Vec<String> = awaited
        .map(|addr| match answers.get(addr) {
            None => format!("{addr} (no answer)"),
            Some(Answer::Other) => {
                format!(
                    "{addr} (answers, but does not found: it leads, joins or waits for a cluster. If all \
                     data directories are lost, stop every node before the first starts again)"
                )
            }
            Some(Answer::Empty(c)) if c.addr != *addr => {
                format!("{addr} (says that it is reached at {})", c.addr)
            }
            Some(Answer::Empty(c)) => match &c.agreed {
                Some(agreed) => format!("{addr} ({})", agreed_elsewhere(agreed)),
                None => format!("{addr} (not among the founding members)"),
            },
            Some(Answer::Member { .. }) => format!("{addr} (belongs to a cluster)"),
        })
        .collect();
    format!(
        "{here} of {count} founding members are here; a cluster is founded when all of them are; \
         waiting for {}. If there is a cluster already, give the address of one of its members",
        list(awaited.iter())
    )
}
