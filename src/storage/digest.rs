//! Digests of entries and of buckets of entries, and their changes by a commit.

use sha2::{Digest as _, Sha256};

use crate::limits::BUCKETS_COUNT;
use crate::model::{Digest, EntryId, SealedBody, Version};

/// Changes of one commit to the digests, with the other state that moves with it.
#[derive(Debug, Default)]
pub struct Delta {
    pub(super) changes: Vec<DigestChange>,
    noted: DeltaState,
}

/// State of the versions that moves with a commit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DeltaState {
    /// Last position that was appended to the replication log.
    pub(super) outbox_line: Option<i64>,
}

/// Savepoint of a [`Delta`].
#[derive(Clone, Copy)]
pub(super) struct DigestSavepoint {
    changes_count: usize,
    noted: DeltaState,
}

/// Change of the digest of one bucket.
#[derive(Debug)]
pub(super) struct DigestChange {
    pub(super) bucket: usize,
    /// XOR of the digests before and after.
    pub(super) digest: Digest,
    /// Change of the number of live entries.
    pub(super) entries: i64,
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
