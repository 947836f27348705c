#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::driver::starts::MAX_SENDERS;
use crate::types::{ConfState, Identity, Member, Membership};

fn view() -> View {
    View {
        identity: Some(Identity {
            node_id: 1,
            incarnation: Incarnation::from_u128(1),
            cluster: Some((ClusterId::from_u128(9), 1)),
            boot: 4,
        }),
        membership: Some(Membership {
            cluster_id: ClusterId::from_u128(9),
            index: 5,
            conf_state: ConfState { voters: vec![1, 2], ..ConfState::default() },
            members: vec![Member::numbered(1), Member::numbered(2)],
            next_raft_id: 4,
        }),
        addr: "n1:1".to_owned(),
        ..View::default()
    }
}

fn hello() -> pb::Hello {
    pb::Hello {
        protocol: PROTOCOL,
        cluster_id: Bytes::copy_from_slice(&ClusterId::from_u128(9).to_bytes()),
        from: 2,
        to: 1,
        from_node: 2,
        from_incarnation: Bytes::copy_from_slice(&Incarnation::from_u128(2).to_bytes()),
        to_incarnation: Bytes::copy_from_slice(&Incarnation::from_u128(1).to_bytes()),
        from_boot: 1,
        from_addr: "n2:1".to_owned(),
    }
}

fn handler(config: crate::config::Config) -> PeerHandler {
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let shared = Arc::new(Shared::new(config, logger, |_| Ok(())));
    shared.update_view(|now| *now = view());
    PeerHandler::new(shared)
}

fn code(response: &pb::Response) -> Option<pb::refused::Code> {
    let Some(Answer::Refused(refused)) = &response.kind else { return None };
    pb::refused::Code::try_from(refused.code).ok()
}

#[test]
fn an_older_copy_of_a_directory_is_refused_by_its_boot_counter() {
    let handler = handler(crate::config::Config::default());
    handler.admit(&pb::Hello { from_boot: 5, ..hello() }).unwrap();
    handler.admit(&pb::Hello { from_boot: 5, ..hello() }).unwrap();
    let refusal = handler.admit(&pb::Hello { from_boot: 4, ..hello() }).unwrap_err();
    assert!(matches!(refusal, Refusal::Sender(_)), "{refusal}");
    handler.admit(&pb::Hello { from_boot: 6, ..hello() }).unwrap();
}

/// A directory that loses its data again and again has a new raft id each time: what is known of
/// those that were removed makes room for the next.
#[test]
fn room_is_made_for_newcomers_where_removed_members_were_heard() {
    let handler = handler(crate::config::Config::default());
    let last = MAX_SENDERS as RaftId + 10;
    for from in 10..last {
        handler.admit(&pb::Hello { from, from_node: from, ..hello() }).unwrap();
    }
    let next = pb::Hello { from: last, from_node: last, ..hello() };
    assert!(
        matches!(handler.admit(&next), Err(Refusal::Busy(_))),
        "all of them may be members yet"
    );
    handler.shared.update_view(|view| {
        view.membership.as_mut().unwrap().next_raft_id = last;
    });
    handler.admit(&next).unwrap();
    handler.admit(&pb::Hello { from: last + 1, from_node: 7, ..hello() }).unwrap();
}

#[test]
fn a_copy_of_a_directory_that_runs_beside_it_is_refused_by_its_address() {
    let handler = handler(crate::config::Config::default());
    handler.admit(&hello()).unwrap();
    let refusal = handler.admit(&pb::Hello { from_addr: "n9:1".to_owned(), ..hello() });
    let refusal = refusal.unwrap_err().to_string();
    assert!(refusal.contains("two processes run on copies of one directory"), "{refusal}");
    handler.admit(&hello()).unwrap();
}

#[test]
fn what_a_copy_of_a_directory_announces_is_not_recorded() {
    let handler = handler(crate::config::Config::default());
    let said = |addr: &str, boot| {
        let Member { node_id, incarnation, .. } = Member::numbered(2);
        let change = Change::Update { node_id, incarnation, addr: addr.to_owned() };
        handler.check_start(&change, boot).map_err(|e| e.to_string())
    };
    assert_eq!(said("n9:1", 1), Ok(()), "nothing was heard of it");
    handler.admit(&pb::Hello { from_boot: 2, ..hello() }).unwrap();
    assert!(said("n9:1", 2).unwrap_err().contains("two processes run on copies"));
    assert!(said("n9:1", 1).unwrap_err().contains("an older copy was restored"));
    assert_eq!(said("n2:1", 2), Ok(()));
    assert_eq!(said("n9:1", 3), Ok(()), "it was started again, elsewhere");
    assert_eq!(said("n9:1", 0), Ok(()), "an earlier release does not tell");
}

#[test]
fn a_peer_that_moved_is_reached_where_its_newest_start_says() {
    let handler = handler(crate::config::Config::default());
    let reached = || {
        let peers = handler.shared.view().peers().unwrap();
        peers.others.into_iter().map(|p| (p.raft_id, p.addr)).collect::<Vec<_>>()
    };
    let moved = pb::Hello { from_boot: 2, from_addr: "n2:9".to_owned(), ..hello() };
    handler.admit(&moved).unwrap();
    assert_eq!(reached(), [(2, "n2:9".to_owned())]);
    handler.admit(&hello()).unwrap_err();
    assert_eq!(reached(), [(2, "n2:9".to_owned())], "an older start says nothing");
    // Or two streams would take turns in saying something new.
    handler.admit(&pb::Hello { from_boot: 2, from_addr: String::new(), ..hello() }).unwrap();
    assert_eq!(reached(), [(2, "n2:9".to_owned())], "nor does a stream without an address");
    // One that joined after what this node has applied.
    let newer = pb::Hello { from: 4, from_node: 7, from_addr: "n7:1".to_owned(), ..hello() };
    handler.admit(&newer).unwrap();
    assert_eq!(reached(), [(2, "n2:9".to_owned()), (4, "n7:1".to_owned())]);
    let no_place = pb::Hello { from: 5, from_addr: "nowhere".to_owned(), ..newer };
    handler.admit(&no_place).unwrap();
    assert_eq!(reached().len(), 2, "no host:port");
    // An older release comes back: it is where the membership has it.
    handler.admit(&pb::Hello { from_boot: 3, from_addr: String::new(), ..hello() }).unwrap();
    assert_eq!(reached()[0], (2, "n2:1".to_owned()));
}

#[tokio::test]
async fn requests_of_strangers_other_clusters_and_to_followers_are_refused() {
    use pb::refused::Code;
    let handler = handler(crate::config::Config::default());
    let ours = Bytes::copy_from_slice(&ClusterId::from_u128(9).to_bytes());
    let remove = || Kind::Change(pb::Change { kind: Some(pb::change::Kind::Remove(2)), boot: 0 });
    let cases = [
        (Bytes::new(), Some(remove()), Code::WrongCluster),
        (Bytes::from_static(&[3; 16]), Some(Kind::Info(pb::Info {})), Code::WrongCluster),
        (ours.clone(), None, Code::Membership),
        (ours, Some(remove()), Code::NotLeader),
        (Bytes::new(), Some(Kind::Join(pb::Join::default())), Code::NotLeader),
    ];
    for (cluster_id, kind, expected) in cases {
        let asked = format!("{cluster_id:?} {kind:?}");
        let response = handler.call(pb::Request { cluster_id, kind }).await;
        assert_eq!(code(&response), Some(expected), "{asked}");
    }
    let info = pb::Request { kind: Some(Kind::Info(pb::Info {})), ..pb::Request::default() };
    let Some(Answer::Info(info)) = handler.call(info).await.kind else { panic!("no info") };
    assert_eq!((info.node_id, info.cluster_id.len()), (1, 16));
}

#[tokio::test]
async fn a_refusal_names_the_leader_where_it_is_reached() {
    let handler = handler(crate::config::Config::default());
    let leads = |addr: &str| {
        handler.shared.status.send_modify(|s| {
            (s.leader_id, s.leader_addr) = (2, addr.to_owned());
        });
    };
    let cluster_id = Bytes::copy_from_slice(&ClusterId::from_u128(9).to_bytes());
    let named = async || {
        let kind =
            Some(Kind::Change(pb::Change { kind: Some(pb::change::Kind::Remove(3)), boot: 0 }));
        let request = pb::Request { cluster_id: cluster_id.clone(), kind };
        let Some(Answer::Refused(refused)) = handler.call(request).await.kind else {
            panic!("not refused")
        };
        let Answer::Info(info) = handler.info().kind.unwrap() else { panic!("no info") };
        assert_eq!(info.leader_addr, refused.leader_addr);
        refused.leader_addr
    };
    leads("n2:1");
    assert_eq!(named().await, "n2:1");
    handler.admit(&pb::Hello { from_addr: "n2:9".to_owned(), ..hello() }).unwrap();
    assert_eq!(named().await, "n2:9");
    // The node knows a newer membership already: it may be another data directory.
    leads("n2:5");
    assert_eq!(named().await, "n2:5");
}

#[tokio::test]
async fn peers_take_permits_like_everybody() {
    use pb::refused::Code;
    let config = crate::config::Config {
        max_pending_requests: 1,
        request_timeout: std::time::Duration::from_millis(1),
        ..crate::config::Config::default()
    };
    let handler = handler(config);
    handler.shared.status.send_modify(|s| s.role = crate::status::Role::Leader);
    let commands = vec![Bytes::from_static(b"a"), Bytes::from_static(b"b")];
    let request = pb::Request {
        cluster_id: Bytes::copy_from_slice(&ClusterId::from_u128(9).to_bytes()),
        kind: Some(Kind::Propose(pb::Propose { commands })),
    };
    let Some(Answer::Proposed(p)) = handler.call(request).await.kind else {
        panic!("not proposed")
    };
    let codes: Vec<_> = p
        .outcomes
        .iter()
        .map(|o| match &o.kind {
            Some(pb::outcome::Kind::Refused(r)) => Code::try_from(r.code).ok(),
            _ => None,
        })
        .collect();
    assert_eq!(codes, [Some(Code::Timeout), Some(Code::Overloaded)]);
}

#[test]
fn a_fitting_hello_is_answered_with_our_own() {
    let back = judge(&view(), &hello()).unwrap();
    assert_eq!((back.from, back.to, back.from_boot), (1, 2, 4));
    let newcomer = pb::Hello { from: 4, from_node: 7, ..hello() };
    judge(&view(), &newcomer).unwrap();
}

/// A node of another cluster at a reused address, a lost disk at a known one, an older copy: what
/// people are told says what to do.
#[tokio::test]
async fn whoever_is_turned_away_is_told_the_remedy() {
    let handler = handler(crate::config::Config::default());
    let told = |hello: pb::Hello| handler.admit(&hello).unwrap_err().to_string();
    let other = Bytes::copy_from_slice(&ClusterId::from_u128(8).to_bytes());
    let text = told(pb::Hello { cluster_id: other.clone(), ..hello() });
    assert!(text.contains("correct the address or the data directory"), "{text}");
    let nonce = Bytes::copy_from_slice(&Incarnation::from_u128(7).to_bytes());
    let text = told(pb::Hello { to_incarnation: nonce.clone(), ..hello() });
    assert!(text.contains("another node is at this address: node 1"), "{text}");
    assert!(text.contains("correct the address, or, if it has lost its disk"), "{text}");
    let text = told(pb::Hello { from_incarnation: nonce, ..hello() });
    assert!(text.contains("raft id 2 is node 2"), "{text}");
    assert!(text.contains("join with an empty directory"), "{text}");
    handler.admit(&pb::Hello { from_boot: 5, ..hello() }).unwrap();
    let text = told(pb::Hello { from_boot: 4, ..hello() });
    assert!(text.contains("an older copy was restored"), "{text}");
    assert!(text.contains("Start the node with an empty directory"), "{text}");

    let asked = pb::Request { cluster_id: other, kind: Some(Kind::Info(pb::Info {})) };
    let Some(Answer::Refused(refused)) = handler.call(asked).await.kind else { panic!() };
    let text = wire::error(&refused, 0, 0).to_string();
    assert!(text.contains("this node belongs to cluster"), "{text}");
    assert!(text.contains("correct the address"), "{text}");
}

/// Two voters whose records lag must not turn each other away: each may need the other's vote.
#[test]
fn a_member_that_is_still_expected_here_is_let_in_and_spoken_to() {
    let handler = handler(crate::config::Config::default());
    handler.shared.update_view(|view| {
        let member = view.membership.as_mut().unwrap().members.iter_mut().find(|m| m.raft_id == 2);
        member.unwrap().incarnation = Incarnation::from_u128(0);
    });
    assert_eq!(handler.shared.view().peers().unwrap().others, []);
    let other = pb::Hello { from_node: 3, ..hello() };
    let text = handler.admit(&other).unwrap_err().to_string();
    assert!(text.contains("raft id 2 is node 2"), "{text}");
    handler.admit(&hello()).unwrap();
    let others = handler.shared.view().peers().unwrap().others;
    assert_eq!(others[0].incarnation, Incarnation::from_u128(2));
}

/// Who belongs to a cluster says so to one that would found another.
#[tokio::test]
async fn whoever_would_found_is_told_of_the_cluster() {
    let handler = handler(crate::config::Config::default());
    let kind = Some(Kind::Found(Box::default()));
    let asked = pb::Request { cluster_id: Bytes::new(), kind };
    let Some(Answer::Info(info)) = handler.call(asked).await.kind else { panic!("no info") };
    assert_eq!((info.cluster_id.len(), info.founder), (16, None));
    assert_eq!(info.membership.unwrap().members.len(), 2);
}

#[test]
fn each_field_that_does_not_fit_is_refused_by_its_name() {
    type Case = (fn(&mut pb::Hello), fn(&Refusal) -> bool);
    let cases: [Case; 9] = [
        (|h| h.protocol = 2, |r| matches!(r, Refusal::Protocol { theirs: 2 })),
        (|h| h.cluster_id.clear(), |r| matches!(r, Refusal::Malformed(_))),
        (|h| h.cluster_id = Bytes::from_static(&[3; 16]), |r| matches!(r, Refusal::Cluster { .. })),
        (|h| h.to = 2, |r| matches!(r, Refusal::Receiver(_))),
        (
            |h| h.to_incarnation = Bytes::from_static(&[3; 16]),
            |r| matches!(r, Refusal::Receiver(_)),
        ),
        (
            |h| h.from_incarnation = Bytes::from_static(&[3; 16]),
            |r| matches!(r, Refusal::Sender(_)),
        ),
        (|h| h.from_node = 3, |r| matches!(r, Refusal::Sender(_))),
        (|h| h.from = 3, |r| matches!(r, Refusal::Removed(2))),
        (|h| h.from = 1, |r| matches!(r, Refusal::Sender(_))),
    ];
    for (i, (spoil, fits)) in cases.into_iter().enumerate() {
        let mut h = hello();
        spoil(&mut h);
        let refusal = judge(&view(), &h).unwrap_err();
        assert!(fits(&refusal), "case {i}: {refusal}");
    }
    let homeless = View::default();
    assert!(matches!(judge(&homeless, &hello()), Err(Refusal::Busy(_))));
}
