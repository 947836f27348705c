//! One node: proposals, queries, outcomes.

use raftline::{Error, Raft, Role};

use crate::support::{Journal, config, logger, number};

#[tokio::test]
async fn a_single_node_leads_applies_answers_and_stops() {
    let dir = tempfile::tempdir().unwrap();
    let config = raftline::Config { data_dir: Some(dir.path().join("d")), ..config() };
    let raft = Raft::new("127.0.0.1:0", Journal::default(), logger(), config).unwrap();
    let mailbox = raft.mailbox();
    let node = tokio::spawn(raft.lead(1));
    assert_eq!(number(&mailbox.propose(b"a".to_vec()).await.unwrap()), 1);
    let many = mailbox.propose_many([b"b".to_vec(), b"reject".to_vec(), b"".to_vec()]).await;
    assert_eq!(number(many[0].as_ref().unwrap()), 2);
    assert!(matches!(&many[1], Err(Error::Rejected(r)) if r.contains("as asked")));
    assert_eq!(number(many[2].as_ref().unwrap()), 3);
    assert_eq!(mailbox.query(b"1".to_vec()).await.unwrap(), b"b");
    let status = mailbox.status().await.unwrap();
    assert_eq!((status.role, status.leader_id), (Role::Leader, 1));
    mailbox.shutdown().await.unwrap();
    node.await.unwrap().unwrap();
    assert!(matches!(mailbox.propose(b"x".to_vec()).await, Err(Error::ShuttingDown)));
}
