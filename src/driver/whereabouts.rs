//! Where nodes are, while the membership does not say.
//!
//! A node that moved tells the leader its new address: members that know only the old one cannot
//! reach it, and it may never hear who leads, so it asks. A node that misses members, because nobody
//! leads or because it leads and they are silent, asks at every address it knows who is there, then
//! at those that the answers name. So members that exchanged their addresses find each other, and
//! one that moved those that joined since, of whom it does not know, and they it. Invariants:
//! - a member is looked for elsewhere only where it has just answered; the handshake checks who it
//!   is, as always;
//! - what answers name is asked, not believed, and only so much of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use slog::{info, warn};
use tokio::time::{Instant, Interval};

use super::caller::Caller;
use super::changes;
use super::leave;
use super::shared::{Shared, View};
use super::wire;
use crate::error::{Error, Result};
use crate::node::event::{Change, Event};
use crate::pb::InfoAnswer;
use crate::pb::request::Kind;
use crate::pb::response::Kind as Answer;
use crate::status::{MemberStatus, Role, Status};
use crate::transport::Peer;
use crate::types::{ClusterId, Identity, Incarnation, Membership, RaftId};

/// Addresses of one answer, beside those that this node knows, that are asked in one round.
const MAX_NAMED: usize = 32;
/// A leader asks once in so many election timeouts: it has others to speak to.
const LEADER_ASKS: u32 = 8;

/// Who answered, and where.
type Answers = Vec<(String, InfoAnswer)>;

/// When a node looks for the members that it misses.
#[derive(Debug, Default)]
pub(crate) struct Search {
    rounds: u32,
}

impl Search {
    /// Whether to look now; asked once in an election timeout.
    pub(crate) fn is_due(&mut self, status: &Status) -> bool {
        if !misses(status) {
            self.rounds = 0;
            return false;
        }
        self.rounds = self.rounds.saturating_add(1);
        // An election may take one round, and nobody is lost.
        match status.role {
            Role::Leader => self.rounds % LEADER_ASKS == 2,
            _ => self.rounds > 1,
        }
    }
}

/// Whether this node needs members that it does not hear.
fn misses(status: &Status) -> bool {
    // One that was added and has not joined is nowhere yet.
    let silent = |m: &MemberStatus| m.reachable == Some(false) && !m.incarnation.is_empty();
    let leads = |m: &MemberStatus| m.id == status.leader_id;
    match status.role {
        Role::Leader => status.members.iter().any(silent),
        // Who does not vote keeps to a leader that is gone.
        _ => status.leader_id == 0 || status.members.iter().any(|m| leads(m) && silent(m)),
    }
}

/// Keeps the members informed of this node's address, and this node of theirs, at this pace: once
/// in an election timeout. Never ends.
pub(super) async fn keep(shared: &Arc<Shared>, addr: &str, mut pace: Interval) {
    let mut search = Search::default();
    // Once: a person who then records another address means it.
    let mut announced = false;
    let mut told = String::new();
    loop {
        let begun = Instant::now();
        let view = shared.view();
        let due = search.is_due(&shared.status.borrow());
        if !announced && moved(&view, addr).is_none() {
            let recorded = is_recorded(shared, &view, addr).await;
            announced = recorded && moved(&shared.view(), addr).is_none();
        }
        let moved = moved(&shared.view(), addr).filter(|_| !announced);
        if due || moved.is_some() {
            let answers = look_around(shared, &view, addr).await;
            if let Some(identity) = moved {
                announced = announce(shared, identity, addr, &answers, &mut told).await;
            }
        }
        // A round that took long is followed by a whole pause.
        if begun.elapsed() > pace.period() / 4 {
            pace.reset();
        }
        pace.tick().await;
    }
}

/// Whether the leader has this address recorded: what this node has applied may be old.
async fn is_recorded(shared: &Arc<Shared>, view: &View, addr: &str) -> bool {
    if shared.leads() {
        let status = shared.status.borrow();
        return status.applied >= status.commit;
    }
    let (Some(caller), Some(leader), Some((_, me))) =
        (shared.caller(), shared.leader(), view.cluster())
    else {
        return false;
    };
    let answers = caller.infos(&[leader.addr], shared.config.election_timeout()).await;
    let leads = |info: &&InfoAnswer| info.leader_id == info.node_id;
    let recorded =
        answers.iter().map(|(_, info)| info).find(leads).and_then(|info| info.membership.as_ref());
    let member = recorded.and_then(|m| m.members.iter().find(|member| member.raft_id == me));
    member.is_some_and(|member| member.addr == addr)
}

/// Asks who is where; members that have answered are looked for there from now on.
async fn look_around(shared: &Arc<Shared>, view: &View, addr: &str) -> Answers {
    let Some((cluster, me)) = view.cluster() else { return Vec::new() };
    let Some(caller) = shared.caller() else { return Vec::new() };
    let patience = shared.config.election_timeout() / 2;
    let known = known(view, addr);
    let mut answers = ask(&caller, cluster, &known, patience).await;
    let named = named(&answers, |at| at != addr && !known.contains(at));
    answers.extend(ask(&caller, cluster, &named, patience).await);

    let starts = shared.starts();
    let runs = |info: &InfoAnswer| starts.judge(info.raft_id, info.boot, &info.addr).is_ok();
    let running = || answers.iter().filter(|(_, info)| info.raft_id != me && runs(info));
    if !shared.was_removed() && running().any(|(_, info)| removes(info, me)) {
        // As when a peer turns this node away for that; whoever leads may not know where it is.
        info!(shared.logger, "this node was removed from the cluster");
        shared.note_removal();
        drop(tokio::spawn(leave::depart(shared.clone())));
    }
    let there = running().map(|(at, info)| (info.raft_id, at.clone())).collect();
    let mut news = false;
    shared.update_view(|View { membership, hints, said, .. }| {
        // What was heard meanwhile may be newer than the answers.
        let same = *said == view.said;
        let Some(m) = membership.as_ref().filter(|_| same) else { return };
        news = hints.found(m, &there);
        for peer in running().filter_map(|(at, info)| stranger(at, info)) {
            news |= hints.met(m, peer);
        }
    });
    drop(starts);
    if news {
        info!(shared.logger, "members were found elsewhere, or are not there any more";
            "places" => shared.view().hints.beside().collect::<Vec<_>>().join(" "));
        caller.set_peers(shared.clone());
    }
    answers
}

/// Whether a member of this cluster knows that this node is none any more.
fn removes(info: &InfoAnswer, me: RaftId) -> bool {
    let membership = info.membership.clone().map(Membership::from_pb);
    membership.is_some_and(|m| m.is_ok_and(|m| m.was_removed(me)))
}

/// Who answers, by the membership that it tells.
fn stranger(at: &str, info: &InfoAnswer) -> Option<Peer> {
    let member = info.membership.as_ref()?.members.iter().find(|m| m.raft_id == info.raft_id)?;
    Some(Peer {
        raft_id: info.raft_id,
        node_id: info.node_id,
        incarnation: Incarnation::from_slice(&member.incarnation)?,
        addr: at.to_owned(),
    })
}

/// The members of this cluster that answer there.
async fn ask(
    caller: &Caller,
    cluster: ClusterId,
    addrs: &BTreeSet<String>,
    patience: Duration,
) -> Answers {
    let addrs: Vec<String> = addrs.iter().cloned().collect();
    let mut answers = caller.infos(&addrs, patience).await;
    answers.retain(|(_, info)| info.cluster_id[..] == cluster.to_bytes());
    answers
}

/// Where this node asks first. Where it was itself, another one may be by now.
fn known(view: &View, addr: &str) -> BTreeSet<String> {
    let places = view.membership.iter().flat_map(|m| view.hints.places(m));
    let all = places.chain(view.seeds.iter().map(String::as_str));
    all.filter(|at| *at != addr).map(str::to_owned).collect()
}

/// What the answers name beside that.
fn named(answers: &Answers, new: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let of_one = |info: &InfoAnswer| {
        let members = info.membership.iter().flat_map(|m| &m.members);
        let told = info.places.iter().chain(members.map(|member| &member.addr));
        let fit = told.filter(|at| new(at) && changes::check_addr(at).is_ok());
        fit.take(MAX_NAMED).cloned().collect::<Vec<_>>()
    };
    answers.iter().flat_map(|(_, info)| of_one(info)).collect()
}

/// Who this node is, when the membership has it at another address.
fn moved(view: &View, addr: &str) -> Option<Identity> {
    let (_, me) = view.cluster()?;
    let member = view.membership.as_ref()?.by_raft(me)?;
    view.identity.filter(|_| member.addr != addr)
}

/// True once the members know this address, or are going to.
async fn announce(
    shared: &Arc<Shared>,
    identity: Identity,
    addr: &str,
    answers: &Answers,
    told: &mut String,
) -> bool {
    let Err(e) = tell(shared, identity, addr, answers).await else {
        info!(shared.logger, "announced a new address"; "addr" => addr.to_owned());
        return true;
    };
    let reason = e.to_string();
    if *told != reason {
        warn!(shared.logger, "could not announce the new address yet";
            "addr" => addr.to_owned(), "reason" => &reason);
        *told = reason;
    }
    false
}

async fn tell(
    shared: &Arc<Shared>,
    Identity { node_id, incarnation, cluster, boot }: Identity,
    addr: &str,
    answers: &Answers,
) -> Result<()> {
    let change = Change::Update { node_id, incarnation, addr: addr.to_owned() };
    let patience = shared.config.election_timeout();
    if shared.leads() {
        shared.ask(patience, |reply| Event::Change { change, reply }).await?;
        return Ok(());
    }
    let Some(caller) = shared.caller() else { return Err(Error::ShuttingDown) };
    let cluster = cluster.map(|(id, _)| id);
    // A member that is cut off may name one that led long ago.
    let leaders: BTreeSet<&String> = answers.iter().map(|(_, info)| &info.leader_addr).collect();
    let mut told = Err(Error::NoLeader);
    for leader in leaders.into_iter().filter(|at| !at.is_empty()) {
        let mut kind = changes::to_request(&change);
        if let Kind::Change(change) = &mut kind {
            change.boot = boot;
        }
        told = match caller.call(leader, cluster, kind, patience).await {
            Ok(Some(Answer::Done(_))) => return Ok(()),
            Ok(Some(Answer::Refused(refused))) => Err(wire::error(&refused, 0, 0)),
            Ok(_) => Err(Error::unknown("the leader's answer does not fit")),
            Err(e) => Err(Error::Unreachable { addr: leader.clone(), reason: e.to_string() }),
        };
    }
    told
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::driver::inbox::Classes;
    use crate::types::{ConfState, Member};
    use tokio::time::{interval, timeout};

    fn pace() -> Interval {
        interval(Config::default().election_timeout())
    }

    fn view() -> View {
        let membership = Membership {
            cluster_id: ClusterId::from_u128(9),
            index: 5,
            conf_state: ConfState { voters: vec![1, 2, 3], ..ConfState::default() },
            members: [1, 2, 3].map(Member::numbered).into(),
            next_raft_id: 4,
        };
        View { membership: Some(membership), ..View::default() }
    }

    #[test]
    fn a_leader_searches_for_silent_members_and_others_for_a_leader() {
        let silent = |incarnation: &str| MemberStatus {
            reachable: Some(false),
            incarnation: incarnation.to_owned(),
            ..MemberStatus::default()
        };
        let rounds = |status: &Status| {
            let mut search = Search::default();
            (0..20).filter(|_| search.is_due(status)).count()
        };
        let alone = Status::default();
        assert_eq!(rounds(&alone), 19, "all but the first");
        let follows = Status { leader_id: 2, ..alone.clone() };
        assert_eq!(rounds(&follows), 0);
        let gone = MemberStatus { id: 2, ..silent("x") };
        assert_eq!(rounds(&Status { members: vec![gone], ..follows.clone() }), 19);
        let other = MemberStatus { id: 3, ..silent("x") };
        assert_eq!(rounds(&Status { members: vec![other], ..follows }), 0, "its leader tells");
        let leads = Status { role: Role::Leader, leader_id: 1, ..alone };
        assert_eq!(rounds(&leads), 0);
        assert_eq!(rounds(&Status { members: vec![silent("x")], ..leads.clone() }), 3);
        assert_eq!(rounds(&Status { members: vec![silent("")], ..leads }), 0, "not there yet");
    }

    /// The leader, as [`view`] has it, at n1:1.
    fn leader() -> Arc<Shared> {
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let shared = Arc::new(Shared::new(Config::default(), logger, |_| Ok(())));
        let Member { node_id, incarnation, .. } = Member::numbered(1);
        let cluster = Some((ClusterId::from_u128(9), 1));
        let identity = Some(Identity { node_id, incarnation, cluster, boot: 1 });
        shared.update_view(|now| *now = View { identity, ..view() });
        let status = Status { role: Role::Leader, leader_id: 1, ..Status::default() };
        shared.status.send_replace(status);
        shared
    }

    fn is_recorded_at(shared: &Shared, addr: &str) {
        shared.update_view(|view| {
            addr.clone_into(&mut view.membership.as_mut().unwrap().members[0].addr);
        });
    }

    /// The address that it asks to have recorded within a minute.
    async fn tells(shared: &Arc<Shared>) -> Option<String> {
        let mut taken = Classes::default();
        let asked = async {
            loop {
                shared.inbox.turn(Instant::now() + Duration::from_secs(3600), false).await;
                shared.inbox.take(&mut taken);
                if let Some(Event::Change { change: Change::Update { addr, .. }, .. }) =
                    taken.requests.drain(..).next()
                {
                    return addr;
                }
            }
        };
        timeout(Duration::from_secs(60), asked).await.ok()
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_a_person_records_is_not_taken_back() {
        let shared = leader();
        let keeps = shared.clone();
        let keeps = tokio::spawn(async move { keep(&keeps, "n1:1", pace()).await });
        assert_eq!(tells(&shared).await, None, "it is where the membership has it");
        is_recorded_at(&shared, "n1:9");
        assert_eq!(tells(&shared).await, None);
        keeps.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn an_older_move_that_is_applied_late_is_put_right() {
        let shared = leader();
        // It holds more than it has applied.
        shared.status.send_modify(|s| s.commit = 7);
        let keeps = shared.clone();
        let keeps = tokio::spawn(async move { keep(&keeps, "n1:1", pace()).await });
        assert_eq!(tells(&shared).await, None);
        is_recorded_at(&shared, "n1:9");
        shared.status.send_modify(|s| s.applied = 7);
        assert_eq!(tells(&shared).await.as_deref(), Some("n1:1"));
        keeps.abort();
    }

    #[test]
    fn all_places_are_asked_but_this_one() {
        let mut view = view();
        let Member { raft_id, node_id, incarnation, .. } = Member::numbered(3);
        let moved = Peer { raft_id, node_id, incarnation, addr: "n3:9".to_owned() };
        view.hints.heard(view.membership.as_ref(), moved, true);
        view.seeds = ["seed:1", "n1:9"].map(str::to_owned).into();
        let known = known(&view, "n1:9");
        // The first is where this node was.
        assert_eq!(Vec::from_iter(known), ["n1:1", "n2:1", "n3:1", "n3:9", "seed:1"]);
    }

    #[test]
    fn an_answer_tells_a_removed_node_that_it_is() {
        let membership = view().membership.map(|m| m.to_pb());
        let info = InfoAnswer { membership, ..InfoAnswer::default() };
        assert!(!removes(&info, 3), "a member");
        assert!(!removes(&info, 4), "one that joined later");
        let mut without = view().membership.unwrap();
        without.members.pop();
        without.conf_state.voters.pop();
        let info = InfoAnswer { membership: Some(without.to_pb()), ..InfoAnswer::default() };
        assert!(removes(&info, 3));
        assert!(!removes(&InfoAnswer::default(), 3));
    }

    #[test]
    fn what_answers_name_is_asked_once_and_not_without_end() {
        let places = (100..300).map(|n| format!("n{n}:1"));
        let places = places.chain(["n1:1".to_owned(), String::new(), "x".repeat(9999)]).collect();
        let membership = view().membership.as_ref().map(Membership::to_pb);
        let info = InfoAnswer { membership, places, ..InfoAnswer::default() };
        let named = named(&vec![("n2:1".to_owned(), info)], |at| at != "n1:1");
        assert_eq!(named.len(), MAX_NAMED);
        assert!(named.contains("n100:1") && !named.contains("n1:1") && !named.contains(""));
    }
}
