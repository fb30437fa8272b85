//! Requests to the writer and their outcomes.

use std::sync::Arc;

use super::error::Error;
use crate::model::{Ciphertext, HlcTimestamp, ReplicaId, SealedEntry};

/// Write of a client of this node.
#[derive(Debug)]
pub enum Write {
    /// A new entry.
    Create {
        /// Key.
        key: String,
        /// Environment.
        environment: Option<String>,
        /// Category.
        category: Option<String>,
        /// Encrypted value.
        ciphertext: Ciphertext,
    },
    /// A new value for an entry that the client's user key has decrypted.
    Update {
        /// Row that was decrypted.
        seen: Arc<SealedEntry>,
        /// New category; `None` keeps the present one.
        category: Option<String>,
        /// New environment; `None` keeps the present one.
        environment: Option<String>,
        /// New encrypted value.
        ciphertext: Ciphertext,
    },
    /// Deletion of an entry that the client's user key has decrypted.
    Delete {
        /// Row that was decrypted.
        seen: Arc<SealedEntry>,
    },
}

/// Progress of peers, which is persisted.
#[derive(Clone, Debug)]
pub enum PeerProgress {
    /// The peer has the local changes up to this position in the replication log.
    Acknowledged {
        /// Peer.
        peer: ReplicaId,
        /// Position.
        sequence: i64,
    },
    /// The peer was in sync with this node.
    Synced {
        /// Peer.
        peer: ReplicaId,
        /// Timestamp of the sync, by this node's clock.
        stamp: HlcTimestamp,
        /// Tombstones older than this may have been garbage-collected on the peer.
        forgotten: HlcTimestamp,
    },
    /// The complete list of peers. The progress of any other node is dropped, unless it was in sync recently.
    Members {
        /// Peers.
        peers: Vec<ReplicaId>,
        /// Nodes that are not peers are kept if they were in sync at or after this timestamp, because they may return.
        before: HlcTimestamp,
    },
    /// Garbage collection of the tombstones before this timestamp that all peers have.
    Collect {
        /// Timestamp.
        before: HlcTimestamp,
    },
}

/// Failure of one write.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The key exists in this environment.
    #[error("the entry already exists")]
    AlreadyExists,
    /// The row was changed or deleted since it was read. The caller must read it again.
    #[error("the entry was changed concurrently")]
    Changed,
    /// The stored version is too far ahead of this node's clock: other nodes would refuse a later one.
    #[error("the version of the entry is {ahead_ms} ms ahead of the clock")]
    Ahead {
        /// Lead of the new version in milliseconds.
        ahead_ms: u64,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] Error),
}

/// Outcome of applying changes of other nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppliedChanges {
    /// Number of changes that were newer than the local state.
    pub won: usize,
    /// Changes that were refused as ahead of this node's clock: their origin, and their lead in milliseconds.
    pub ahead: Vec<(ReplicaId, u64)>,
}

/// Result of a write: the new row, or the deleted one.
pub type WriteResult = Result<Arc<SealedEntry>, WriteError>;
