//! What the writer is asked for, and what became of it.

use std::sync::Arc;

use super::error::Error;
use super::sealed_entry::SealedEntry;
use crate::model::{Ciphertext, HlcTimestamp, ReplicaId};

/// What a client of this node wants to be written.
#[derive(Debug)]
pub enum Write {
    /// A new entry.
    Create {
        /// Its key.
        key: String,
        /// Its environment.
        environment: Option<String>,
        /// Its category.
        category: Option<String>,
        /// Its sealed value.
        ciphertext: Ciphertext,
    },
    /// A new value for an entry that the writer's user key was seen to open.
    Update {
        /// The row that was opened.
        seen: Arc<SealedEntry>,
        /// The new category; `None` keeps it.
        category: Option<String>,
        /// The environment to move to; `None` stays.
        environment: Option<String>,
        /// The new sealed value.
        ciphertext: Ciphertext,
    },
    /// The end of an entry that the writer's user key was seen to open.
    Delete {
        /// The row that was opened.
        seen: Arc<SealedEntry>,
    },
}

/// What this node learns of a peer, and keeps.
#[derive(Clone, Debug)]
pub enum PeerProgress {
    /// It has the own changes up to this line of the outbox.
    Acknowledged {
        /// Which peer.
        peer: ReplicaId,
        /// The line.
        sequence: i64,
    },
    /// It was found to hold the same as this node.
    Synced {
        /// Which peer.
        peer: ReplicaId,
        /// When, by this node's clock.
        stamp: HlcTimestamp,
        /// The peer may have forgotten deletions from before this.
        forgotten: HlcTimestamp,
    },
    /// These are all peers there are: of others nothing need be kept any more, unless they were equal since.
    Members {
        /// The peers.
        peers: Vec<ReplicaId>,
        /// Others that were equal after this may come back.
        before: HlcTimestamp,
    },
    /// Tombstones from before this may go, if all peers have them.
    Collect {
        /// Before when.
        before: HlcTimestamp,
    },
}

/// Why one write was not made.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The key exists in this environment.
    #[error("the entry exists already")]
    AlreadyExists,
    /// The row is not the one that was seen, or gone: look again.
    #[error("the entry has changed meanwhile")]
    Changed,
    /// The stored version is too far ahead of this node's clock: no other node would take a later one.
    #[error("the version of the entry is {ahead_ms} ms ahead of the clock")]
    Ahead {
        /// By how many milliseconds the new version would be.
        ahead_ms: u64,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] Error),
}

impl From<rusqlite::Error> for WriteError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error.into())
    }
}

/// What became of the changes of another node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppliedChanges {
    /// How many were later than what was here.
    pub won: usize,
    /// Those that were refused because they are ahead of this node's clock: whose they are, and by how many
    /// milliseconds.
    pub ahead: Vec<(ReplicaId, u64)>,
}

/// What a write leaves behind: the new row, or the one that was deleted.
pub type WriteResult = Result<Arc<SealedEntry>, WriteError>;
