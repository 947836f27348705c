//! Which start of each data directory was heard of last, and where it said that it is: an older copy
//! of a directory has a lower boot counter, a copy that runs beside it is elsewhere.

use std::collections::BTreeMap;

use crate::transport::Refusal;
use crate::types::{Membership, RaftId};

/// Raft ids that are remembered: members, earlier ones, and ids that are claimed to be newer than
/// what this node has applied.
pub(crate) const MAX_SENDERS: usize = 4096;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Starts {
    by_raft: BTreeMap<RaftId, (u64, String)>,
}

impl Starts {
    /// Takes in what a start says in its hello. True when it has not said the same before; None when
    /// it says less: where it is stays true when the same start says nothing.
    ///
    /// # Errors
    /// `Sender` when it is not the start that runs; `Busy` when there is no room.
    pub(crate) fn take_in(
        &mut self,
        membership: Option<&Membership>,
        from: RaftId,
        boot: u64,
        addr: &str,
    ) -> Result<Option<bool>, Refusal> {
        if self.by_raft.len() >= MAX_SENDERS && !self.by_raft.contains_key(&from) {
            // Those are refused before they come here.
            self.by_raft.retain(|id, _| !membership.is_some_and(|m| m.was_removed(*id)));
        }
        if self.by_raft.len() >= MAX_SENDERS && !self.by_raft.contains_key(&from) {
            return Err(Refusal::Busy(format!("{MAX_SENDERS} senders were heard of already")));
        }
        self.judge(from, boot, addr).map_err(Refusal::Sender)?;
        let said = (boot, addr.to_owned());
        let known = self.by_raft.get(&from);
        if known.is_some_and(|(b, at)| *b == boot && addr.is_empty() && !at.is_empty()) {
            return Ok(None);
        }
        let fresh = known != Some(&said);
        self.by_raft.insert(from, said);
        Ok(Some(fresh))
    }

    /// Whether this start of a data directory may be the one that runs, by what was heard.
    ///
    /// # Errors
    /// Why it cannot be, and what to do.
    pub(crate) fn judge(&self, from: RaftId, boot: u64, addr: &str) -> Result<(), String> {
        let Some((highest, at)) = self.by_raft.get(&from) else { return Ok(()) };
        if boot < *highest {
            return Err(format!(
                "its data directory has been started {boot} times, but {highest} starts were heard \
                 of: an older copy was restored. Start the node with an empty directory"
            ));
        }
        if boot == *highest && !addr.is_empty() && !at.is_empty() && at != addr {
            return Err(format!(
                "the same start of its data directory was heard of at {at}, and now at {addr}: two \
                 processes run on copies of one directory. Stop one, and let it join with an empty \
                 directory"
            ));
        }
        Ok(())
    }
}
