//! Replication log in memory: versions, tombstones, positions of local changes, and the progress of peers.

use std::collections::{BTreeMap, HashSet};

use crate::limits::{CHANGES_BYTES_PER_MESSAGE, CHANGES_PER_MESSAGE_MAX, REPLICATION_LOG_COUNT_MAX};
use crate::model::{
    Change, Digest, EntryId, HlcTimestamp, ReplicaId, SealedBody, TombstoneHorizon, Version, VersionedDigest,
};
use crate::storage::digest::{Delta, bucket_of, digest_of};
use crate::storage::replication::{LogPage, PeerProgress, VersionsPage};
use crate::storage::versioning::{self, WallClock};
use crate::storage::write::WriteError;

/// Versions of all entries, and the local changes that peers may lack.
pub(super) struct Log {
    replica: ReplicaId,
    wall_clock: WallClock,
    versions: BTreeMap<EntryId, VersionedDigest>,
    changed: BTreeMap<i64, EntryId>,
    last_sequence: i64,
    peers: BTreeMap<ReplicaId, Progress>,
    horizon: TombstoneHorizon,
    /// Versions that the running transaction has replaced, newest last.
    replaced: Vec<(EntryId, Option<VersionedDigest>)>,
    /// Last position before the running transaction.
    sequence_before: i64,
}

#[derive(Default)]
struct Progress {
    acknowledged: i64,
    synced: HlcTimestamp,
}

/// Size of a version in a message, without the name of its entry.
const VERSION_BYTES: usize = 128;

impl Log {
    pub(super) fn new(replica: ReplicaId, wall_clock: WallClock) -> Self {
        Self {
            replica,
            wall_clock,
            versions: BTreeMap::new(),
            changed: BTreeMap::new(),
            last_sequence: 0,
            peers: BTreeMap::new(),
            horizon: TombstoneHorizon::default(),
            replaced: Vec::new(),
            sequence_before: 0,
        }
    }

    pub(super) fn begin(&mut self) {
        self.replaced.clear();
        self.sequence_before = self.last_sequence;
    }

    pub(super) fn roll_back(&mut self) {
        while let Some((id, before)) = self.replaced.pop() {
            match before {
                Some(before) => self.versions.insert(id, before),
                None => self.versions.remove(&id),
            };
        }
        self.changed.split_off(&(self.sequence_before + 1));
        self.last_sequence = self.sequence_before;
    }

    /// Returns the last position, if the running transaction has appended to the log.
    pub(super) fn appended(&self) -> Option<i64> {
        Some(self.last_sequence).filter(|last| *last > self.sequence_before)
    }

    pub(super) fn record_own(
        &mut self,
        id: &EntryId,
        content: Option<&SealedBody>,
        delta: &mut Delta,
    ) -> Result<(), WriteError> {
        let seen = self.versions.get(id).map_or(HlcTimestamp::default(), |known| known.version.timestamp);
        let version = versioning::issue((self.wall_clock)(), self.replica, seen, true)?;
        self.record(id, version, content, delta);
        self.last_sequence += 1;
        self.changed.insert(self.last_sequence, id.clone());
        Ok(())
    }

    pub(super) fn ahead_ms(&self, change: &Change) -> Option<u64> {
        versioning::change_ahead_ms(change, (self.wall_clock)())
    }

    /// Records the version of a change of another node if it is newer than the local one, and returns whether it is.
    pub(super) fn record_if_newer(&mut self, change: &Change, delta: &mut Delta) -> bool {
        let content = change.body.as_ref();
        let digest =
            content.map_or(Digest::default(), |content| digest_of(&change.id, change.version, content));
        let is_newer = versioning::supersedes(change, digest, self.versions.get(&change.id));
        if is_newer {
            self.record(&change.id, change.version, content, delta);
        }
        is_newer
    }

    fn record(&mut self, id: &EntryId, version: Version, content: Option<&SealedBody>, delta: &mut Delta) {
        let digest = content.map_or(Digest::default(), |content| digest_of(id, version, content));
        let known = VersionedDigest { id: id.clone(), version, digest };
        let before = self.versions.insert(id.clone(), known);
        delta.replace(id, before.as_ref().map_or(Digest::default(), |known| known.digest), digest);
        self.replaced.push((id.clone(), before));
    }

    pub(super) fn record_progress(&mut self, progress: &PeerProgress) {
        match progress {
            PeerProgress::Acknowledged { peer, sequence } => {
                let peer = self.peers.entry(*peer).or_default();
                peer.acknowledged = peer.acknowledged.max(*sequence);
                let all = self.peers.values().map(|peer| peer.acknowledged).min().unwrap_or(0);
                self.changed = self.changed.split_off(&(all + 1));
            }
            PeerProgress::Synced { peer, stamp, forgotten } => {
                let new = Progress { acknowledged: self.last_sequence, ..Progress::default() };
                let peer = self.peers.entry(*peer).or_insert(new);
                peer.synced = peer.synced.max(*stamp);
                self.move_horizon(TombstoneHorizon { synced: *stamp, forgotten: *forgotten });
            }
            PeerProgress::Members { peers, before } => {
                self.peers.retain(|peer, progress| peers.contains(peer) || progress.synced >= *before);
            }
            PeerProgress::Collect { before } => self.collect(*before),
        }
    }

    fn collect(&mut self, before: HlcTimestamp) {
        while self.changed.len() as u64 > REPLICATION_LOG_COUNT_MAX {
            self.changed.pop_first();
        }
        let Some(all_synced) = self.peers.values().map(|peer| peer.synced).min() else { return };
        let forgotten = versioning::collectable(before, all_synced);
        self.move_horizon(TombstoneHorizon { forgotten, ..TombstoneHorizon::default() });
        self.versions
            .retain(|_, known| known.digest != Digest::default() || known.version.timestamp >= forgotten);
    }

    /// Moves the horizon, only ever forward. The values of a peer are untrusted.
    fn move_horizon(&mut self, to: TombstoneHorizon) {
        let to = to.clamped_at((self.wall_clock)());
        self.horizon.synced = self.horizon.synced.max(to.synced);
        self.horizon.forgotten = self.horizon.forgotten.max(to.forgotten);
    }

    pub(super) fn horizon(&self) -> TombstoneHorizon {
        self.horizon.clamped_at((self.wall_clock)())
    }

    pub(super) fn range(&self) -> (i64, i64) {
        (self.changed.first_key_value().map_or(0, |(first, _)| *first), self.last_sequence)
    }

    pub(super) fn acknowledged(&self) -> Vec<(ReplicaId, i64)> {
        self.peers.iter().map(|(peer, progress)| (*peer, progress.acknowledged)).collect()
    }

    pub(super) fn versions(&self, buckets: &[usize], bytes_max: usize) -> VersionsPage {
        let mut of_buckets: BTreeMap<usize, Vec<&VersionedDigest>> = BTreeMap::new();
        for known in self.versions.values() {
            of_buckets.entry(bucket_of(&known.id)).or_default().push(known);
        }
        let (mut page, mut bytes) = (VersionsPage::default(), 0);
        for bucket in buckets {
            if bytes >= bytes_max {
                break;
            }
            for known in of_buckets.get(bucket).into_iter().flatten() {
                bytes +=
                    known.id.key.len() + known.id.environment.as_ref().map_or(0, String::len) + VERSION_BYTES;
                page.known.push((*known).clone());
            }
            page.buckets_count += 1;
        }
        page
    }

    /// Returns the current state of entries, up to the size of one message; at least one if any exists.
    pub(super) fn changes(
        &self,
        ids: &[EntryId],
        content_of: impl Fn(&EntryId) -> Option<SealedBody>,
    ) -> Vec<Change> {
        let (mut changes, mut bytes) = (Vec::new(), 0);
        for known in ids.iter().filter_map(|id| self.versions.get(id)) {
            let change = Change { id: known.id.clone(), version: known.version, body: content_of(&known.id) };
            bytes += weight(&change);
            if !changes.is_empty() && bytes > CHANGES_BYTES_PER_MESSAGE {
                break;
            }
            changes.push(change);
        }
        changes
    }

    /// Returns the local changes after a position, up to the size of one message.
    pub(super) fn page(&self, after: i64, content_of: impl Fn(&EntryId) -> Option<SealedBody>) -> LogPage {
        let mut page = LogPage { sequence: after, ..LogPage::default() };
        let (mut seen, mut bytes) = (HashSet::new(), 0);
        for (sequence, id) in self.changed.range(after + 1..) {
            // A change that a peer has since overwritten is pushed by that peer.
            let own = self.versions.get(id).filter(|known| known.version.replica == self.replica);
            if seen.insert(id)
                && let Some(known) = own
            {
                let change = Change { id: id.clone(), version: known.version, body: content_of(id) };
                bytes += weight(&change);
                let is_full =
                    page.changes.len() >= CHANGES_PER_MESSAGE_MAX || bytes > CHANGES_BYTES_PER_MESSAGE;
                if is_full && !page.changes.is_empty() {
                    page.more = true;
                    return page;
                }
                page.changes.push(change);
            }
            page.sequence = *sequence;
        }
        page.sequence = page.sequence.max(self.last_sequence);
        page
    }
}

fn weight(change: &Change) -> usize {
    change.id.key.len() + 64 + change.body.as_ref().map_or(0, |content| content.ciphertext.as_bytes().len())
}
