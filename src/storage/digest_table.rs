//! Digest table of the store, updated with each commit, by which two nodes find their differences by comparing a few
//! kibibytes.
//!
//! Each live entry belongs by its name to one of [`BUCKETS_COUNT`] buckets. The digest of a bucket is the XOR of the
//! digests of its entries. Tombstones do not contribute, so collecting one does not change a digest.

use std::sync::{Mutex, MutexGuard, PoisonError};

use sha2::{Digest as _, Sha256};

use crate::limits::BUCKETS_COUNT;
use crate::model::{Digest, EntryId, HlcTimestamp, SealedBody, Version};

/// Digests of all buckets.
#[derive(Debug)]
pub struct DigestTable(Mutex<State>);

#[derive(Debug)]
struct State {
    digests: Vec<Digest>,
    entries_count: u64,
    /// Number of loaded buckets, which are the first ones. Commits are not applied to the other buckets: loading them
    /// later includes those commits.
    loaded_count: usize,
}

/// Changes of one commit to the digests, with the other state that moves with it.
#[derive(Debug, Default)]
pub(super) struct Delta {
    changes: Vec<DigestChange>,
    noted: DeltaState,
}

/// State of the versions that moves with a commit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DeltaState {
    /// Last position that was appended to the replication log.
    pub(super) outbox_line: Option<i64>,
    /// New upper bound of the reserved timestamps.
    pub(super) reserved: Option<HlcTimestamp>,
}

/// Savepoint of a [`Delta`].
#[derive(Clone, Copy)]
pub(super) struct DigestSavepoint {
    changes_count: usize,
    noted: DeltaState,
}

/// Change of the digest of one bucket.
#[derive(Debug)]
struct DigestChange {
    bucket: usize,
    /// XOR of the digests before and after.
    digest: Digest,
    /// Change of the number of live entries.
    entries: i64,
}

impl Default for DigestTable {
    fn default() -> Self {
        let digests = vec![Digest::default(); BUCKETS_COUNT];
        Self(Mutex::new(State { digests, entries_count: 0, loaded_count: BUCKETS_COUNT }))
    }
}

impl DigestTable {
    /// Returns the digest of the whole store, which is equal on two nodes exactly if they hold the same entries. `None`
    /// while the buckets of a large store are being loaded.
    pub fn root(&self) -> Option<Digest> {
        self.lock().complete().map(root_of)
    }

    /// Returns the digest of each bucket; `None` as for [`Self::root`].
    pub fn all(&self) -> Option<Vec<Digest>> {
        self.lock().complete().map(<[Digest]>::to_vec)
    }

    /// Returns the number of live entries.
    pub fn entries_count(&self) -> u64 {
        self.lock().entries_count
    }

    /// Applies a committed delta to the loaded buckets.
    pub(super) fn apply(&self, delta: &Delta) {
        let mut state = self.lock();
        let loaded_count = state.loaded_count;
        for change in delta.changes.iter().filter(|change| change.bucket < loaded_count) {
            state.digests[change.bucket].0 ^= change.digest.0;
            state.entries_count = state.entries_count.saturating_add_signed(change.entries);
        }
    }

    /// Unloads all buckets.
    pub(super) fn forget(&self) {
        let mut state = self.lock();
        state.loaded_count = 0;
        state.entries_count = 0;
    }

    /// Returns the next bucket to load, if there is one.
    pub(super) fn next_unloaded(&self) -> Option<usize> {
        Some(self.lock().loaded_count).filter(|bucket| *bucket < BUCKETS_COUNT)
    }

    /// Loads the next bucket from the digests of its entries. They must be read by the thread that calls
    /// [`Self::apply`], with no commit in between.
    pub(super) fn load_bucket(&self, digests: &[Digest]) {
        let mut state = self.lock();
        let bucket = state.loaded_count;
        state.digests[bucket] = Digest(digests.iter().fold(0, |sum, digest| sum ^ digest.0));
        state.entries_count += digests.len() as u64;
        state.loaded_count += 1;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn complete(&self) -> Option<&[Digest]> {
        (self.loaded_count == BUCKETS_COUNT).then_some(&self.digests)
    }
}

/// Combines the digests of all buckets into one.
pub fn root_of(digests: &[Digest]) -> Digest {
    digests.iter().enumerate().fold(Digest::default(), |root, (index, digest)| {
        // Rotated, so that equal digests of two buckets do not cancel out.
        let rotation = u32::try_from(index % 128).unwrap_or_default();
        Digest(root.0 ^ digest.0.rotate_left(rotation))
    })
}

impl Delta {
    /// Replaces the digest of an entry; zero means that the entry does not exist.
    pub(super) fn replace(&mut self, id: &EntryId, before: Digest, after: Digest) {
        let nothing = Digest::default();
        self.changes.push(DigestChange {
            bucket: bucket_of(id),
            digest: Digest(before.0 ^ after.0),
            entries: i64::from(after != nothing) - i64::from(before != nothing),
        });
    }

    pub(super) fn state_mut(&mut self) -> &mut DeltaState {
        &mut self.noted
    }

    pub(super) fn state(&self) -> DeltaState {
        self.noted
    }

    /// Returns a savepoint for [`Self::truncate`].
    pub(super) fn savepoint(&self) -> DigestSavepoint {
        DigestSavepoint { changes_count: self.changes.len(), noted: self.noted }
    }

    /// Rolls back to a savepoint.
    pub(super) fn truncate(&mut self, savepoint: DigestSavepoint) {
        self.changes.truncate(savepoint.changes_count);
        self.noted = savepoint.noted;
    }
}

/// Returns the bucket of an entry, which is the same on every node.
pub fn bucket_of(id: &EntryId) -> usize {
    let mut hash = Sha256::new();
    update_with_name(&mut hash, id);
    let bytes = hash.finalize();
    usize::from(u16::from_be_bytes([bytes[0], bytes[1]])) % BUCKETS_COUNT
}

/// Computes the digest of a live entry, which is never zero.
pub(super) fn digest_of(id: &EntryId, version: Version, content: &SealedBody) -> Digest {
    let mut hash = Sha256::new();
    update_with_name(&mut hash, id);
    hash.update(version.timestamp.to_database().to_be_bytes());
    hash.update(version.replica.to_database().to_be_bytes());
    update_with_text(&mut hash, content.category.as_deref());
    hash.update(content.ciphertext.as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finalize()[..16]);
    Digest(u128::from_be_bytes(bytes).max(1))
}

fn update_with_name(hash: &mut Sha256, id: &EntryId) {
    update_with_text(hash, Some(&id.key));
    update_with_text(hash, id.environment.as_deref());
}

/// Hashes a text with its length, so that two consecutive texts are unambiguous.
fn update_with_text(hash: &mut Sha256, text: Option<&str>) {
    let length = text.map_or(u64::MAX, |text| text.len() as u64);
    hash.update(length.to_be_bytes());
    hash.update(text.unwrap_or_default());
}
