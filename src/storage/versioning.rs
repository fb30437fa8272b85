//! Versions of entries, which every engine maintains by the same rules.

use std::sync::Arc;

use super::write::WriteError;
use crate::limits::{CLOCK_AHEAD_MAX, TOMBSTONE_GRACE};
use crate::model::{Change, Digest, HlcTimestamp, ReplicaId, Timestamp, Version, VersionedDigest};

/// Wall clock in milliseconds since 1970.
pub type WallClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Options for the versions of entries.
pub struct VersioningOptions {
    /// Whether this node is in a cluster now. A node that ever was in one keeps maintaining versions.
    pub is_clustered: bool,
    /// Wall clock in milliseconds since 1970, from which version timestamps are derived.
    pub wall_clock: WallClock,
    /// Bits of the replica ID of a new data directory; random if `None`. The ID breaks ties between equal
    /// timestamps, so a reproducible test sets it.
    pub node_bits: Option<u64>,
}

impl VersioningOptions {
    /// Creates options that use this machine's clock.
    pub fn new(is_clustered: bool) -> Self {
        Self { is_clustered, wall_clock: Arc::new(|| Timestamp::now().as_milliseconds()), node_bits: None }
    }

    /// Returns the ID of a new replica.
    pub(super) fn new_replica(&self) -> ReplicaId {
        let mut random = [0; 8];
        getrandom::fill(&mut random).expect("Linux has random bytes once it has booted");
        ReplicaId::from_random(self.node_bits.unwrap_or(u64::from_ne_bytes(random)))
    }
}

/// Issues the version of a local change that replaces the version `seen`.
///
/// # Errors
/// Returns [`WriteError::Ahead`] if `seen` is too far ahead of the clock: peers would refuse the new version, or it
/// would not even supersede the old one.
pub(super) fn issue(
    now_ms: u64,
    replica: ReplicaId,
    seen: HlcTimestamp,
    is_clustered: bool,
) -> Result<Version, WriteError> {
    let version = Version { timestamp: HlcTimestamp::of_write(now_ms, seen), replica };
    match version.timestamp.ahead_of(now_ms, CLOCK_AHEAD_MAX) {
        Some(ahead_ms) if is_clustered || version.timestamp <= seen => Err(WriteError::Ahead { ahead_ms }),
        _ => Ok(version),
    }
}

/// Returns the time up to which tombstones may be collected, if all known peers have been in sync with this node at
/// `all_synced`, by the clocks of both. The grace period counts from there: a wrong clock of this node alone collects
/// nothing too early.
pub(super) fn collectable(before: HlcTimestamp, all_synced: HlcTimestamp) -> HlcTimestamp {
    before.min(all_synced.earlier(TOMBSTONE_GRACE))
}

/// Returns by how many milliseconds a change of another node is ahead of this node's clock, if that exceeds
/// [`CLOCK_AHEAD_MAX`].
pub(super) fn change_ahead_ms(change: &Change, now_ms: u64) -> Option<u64> {
    let times = change.body.iter().flat_map(|content| [content.created_at, content.updated_at]);
    let latest_ms = times.flatten().map(Timestamp::as_milliseconds).max().unwrap_or(0);
    let latest = HlcTimestamp::from_milliseconds(latest_ms);
    change.version.timestamp.max(latest).ahead_of(now_ms, CLOCK_AHEAD_MAX)
}

/// Returns whether a change of another node with this digest supersedes the local state.
pub(super) fn supersedes(change: &Change, digest: Digest, known: Option<&VersionedDigest>) -> bool {
    known.is_none_or(|known| (change.version, digest) > (known.version, known.digest))
}
