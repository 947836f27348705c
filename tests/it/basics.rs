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

#[tokio::test]
async fn a_volatile_node_works_and_leaves_nothing_behind() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("d");
    let config = raftline::Config {
        data_dir: Some(dir.clone()),
        durability: raftline::Durability::Volatile,
        ..config()
    };
    let raft = Raft::new("127.0.0.1:0", Journal::default(), logger(), config).unwrap();
    let mailbox = raft.mailbox();
    let node = tokio::spawn(raft.lead(1));
    assert_eq!(number(&mailbox.propose("a").await.unwrap()), 1);
    mailbox.shutdown().await.unwrap();
    node.await.unwrap().unwrap();
    assert!(!dir.exists());
}

/// Refuses commands that are not text, before they are proposed.
struct Text;

#[raftline::async_trait]
impl raftline::Store for Text {
    async fn apply(&mut self, _message: &[u8]) -> raftline::Result<Vec<u8>> {
        Ok(b"applied".to_vec())
    }

    async fn query(&self, _query: &[u8]) -> raftline::Result<Vec<u8>> {
        Ok(Vec::new())
    }

    async fn snapshot(&self) -> raftline::Result<Vec<u8>> {
        Ok(Vec::new())
    }

    async fn restore(&mut self, _snapshot: &[u8]) -> raftline::Result<()> {
        Ok(())
    }

    fn check(message: &[u8]) -> raftline::Result<()> {
        std::str::from_utf8(message).map(|_| ()).map_err(|e| Error::rejected(e.to_string()))
    }
}

#[tokio::test]
async fn what_the_store_does_not_accept_never_enters_the_log() {
    let root = tempfile::tempdir().unwrap();
    let config = raftline::Config { data_dir: Some(root.path().join("d")), ..config() };
    let raft = Raft::new("127.0.0.1:0", Text, logger(), config).unwrap();
    let mailbox = raft.mailbox();
    let node = tokio::spawn(raft.lead(1));
    assert_eq!(mailbox.propose("text").await.unwrap(), b"applied");
    let before = mailbox.status().await.unwrap().last_index;
    let refused = mailbox.propose(vec![0xff]).await.unwrap_err();
    assert!(matches!(refused, Error::Invalid(_)), "{refused}");
    assert_eq!(refused.outcome(), raftline::Outcome::NotApplied);
    assert_eq!(mailbox.status().await.unwrap().last_index, before);
    mailbox.shutdown().await.unwrap();
    node.await.unwrap().unwrap();
}
