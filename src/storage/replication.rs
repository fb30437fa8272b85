//! Interface of the replication log: versions of all entries, local changes to push, and the progress of peers.

use super::digest_table::DigestTable;
use super::reply::Reply;
use super::write::WriteError;
use crate::model::{Change, EntryId, HlcTimestamp, ReplicaId, TombstoneHorizon, Version, VersionedDigest};

/// Replication log of a store that is, or once was, in a cluster. Its engine maintains it in the transaction of each
/// change.
pub trait ReplicationLog: Send + Sync {
    /// Returns the replica ID of the store.
    fn replica(&self) -> ReplicaId;

    /// Returns the digests of all entries.
    fn digests(&self) -> &DigestTable;

    /// Returns the tombstone horizon: how far back the deletions known to this store reach.
    fn horizon(&self) -> TombstoneHorizon;

    /// Returns by how many milliseconds a version of another node is ahead of this node's clock, if that is too far.
    fn ahead_ms(&self, version: Version) -> Option<u64>;

    /// Applies those changes of other nodes that supersede the local state. The reply arrives once they are durable.
    fn apply(&self, changes: Vec<Change>) -> Reply<AppliedChanges, WriteError>;

    /// Records the progress of peers.
    fn record_progress(&self, progress: PeerProgress) -> Reply<(), WriteError>;

    /// Reads the local changes after a position in the log, up to the size of one message.
    fn log_changes(&self, after: i64) -> Reply<LogPage>;

    /// Reads the first position that is in the log, and the last one that was ever assigned.
    fn log_range(&self) -> Reply<(i64, i64)>;

    /// Reads for each known peer the position up to which it has the local changes.
    fn acknowledged(&self) -> Reply<Vec<(ReplicaId, i64)>>;

    /// Reads the versions of all entries in some buckets, tombstones included: whole buckets, at least one, until they
    /// amount to about `bytes_max` bytes.
    fn versions(&self, buckets: Vec<usize>, bytes_max: usize) -> Reply<VersionsPage>;

    /// Reads the current state of entries, up to the size of one message; at least one if any exists.
    fn changes(&self, ids: Vec<EntryId>) -> Reply<Vec<Change>>;
}

/// Versions of all entries in some buckets, tombstones included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VersionsPage {
    /// Versions of the entries.
    pub known: Vec<VersionedDigest>,
    /// Number of requested buckets that are covered, which are the first ones.
    pub buckets_count: usize,
}

/// Local changes that a peer does not have yet.
#[derive(Debug, Default)]
pub struct LogPage {
    /// Changes, with each entry once in its current state.
    pub changes: Vec<Change>,
    /// Last position in the replication log that these changes cover. A peer that has them has all changes up to it.
    pub sequence: i64,
    /// Whether there are further changes after that position.
    pub more: bool,
}

/// Outcome of applying changes of other nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppliedChanges {
    /// Number of changes that were newer than the local state.
    pub won: usize,
    /// Changes that were refused as ahead of this node's clock: their origin, and their lead in milliseconds.
    pub ahead: Vec<(ReplicaId, u64)>,
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
        /// Timestamp of the sync, by the earlier clock of both nodes.
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
    /// Garbage collection of the tombstones before this timestamp that all peers have had for the grace period.
    Collect {
        /// Timestamp.
        before: HlcTimestamp,
    },
}
