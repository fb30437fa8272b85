//! Digests of the whole store, kept up with each commit, so that two nodes find what differs by
//! comparing a few kibibytes.
//!
//! Each live entry belongs to one of [`BUCKETS_COUNT`] buckets by its name, and a bucket's digest is
//! the XOR of the digests of its entries. Deleted entries count for nothing, so that forgetting a
//! tombstone changes no digest.

use std::sync::{Mutex, MutexGuard, PoisonError};

use sha2::{Digest as _, Sha256};

use crate::limits::BUCKETS_COUNT;
use crate::model::{Content, Digest, EntryId, Version};

/// The digests of all buckets.
#[derive(Debug)]
pub struct Buckets(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    digests: Vec<Digest>,
    entries_count: u64,
}

/// What one commit changes.
#[derive(Debug, Default)]
pub(super) struct Delta {
    flips: Vec<(usize, Digest)>,
    entries: i64,
}

impl Default for Buckets {
    fn default() -> Self {
        Self(Mutex::new(State { digests: vec![Digest::default(); BUCKETS_COUNT], entries_count: 0 }))
    }
}

impl Buckets {
    /// One digest for everything: equal on two nodes exactly when they hold the same entries.
    pub fn root(&self) -> Digest {
        root_of(&self.lock().digests)
    }

    /// The digest of each bucket.
    pub fn all(&self) -> Vec<Digest> {
        self.lock().digests.clone()
    }

    /// How many live entries there are.
    pub fn entries_count(&self) -> u64 {
        self.lock().entries_count
    }

    pub(super) fn apply(&self, delta: &Delta) {
        let mut state = self.lock();
        for (bucket, digest) in &delta.flips {
            state.digests[*bucket].0 ^= digest.0;
        }
        state.entries_count = state.entries_count.saturating_add_signed(delta.entries);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One digest for the digests of all buckets.
pub fn root_of(digests: &[Digest]) -> Digest {
    digests.iter().enumerate().fold(Digest::default(), |root, (index, digest)| {
        // Rotated, so that equal digests in two buckets do not cancel each other out.
        let turn = u32::try_from(index % 128).unwrap_or_default();
        Digest(root.0 ^ digest.0.rotate_left(turn))
    })
}

impl Delta {
    /// An entry goes from one digest to another; zero stands for "not there".
    pub(super) fn replace(&mut self, id: &EntryId, before: Digest, after: Digest) {
        let nothing = Digest::default();
        self.flips.push((bucket_of(id), Digest(before.0 ^ after.0)));
        self.entries += i64::from(after != nothing) - i64::from(before != nothing);
    }

    pub(super) fn truncate(&mut self, mark: &(usize, i64)) {
        self.flips.truncate(mark.0);
        self.entries = mark.1;
    }

    pub(super) fn mark(&self) -> (usize, i64) {
        (self.flips.len(), self.entries)
    }
}

/// The bucket of an entry; the same on every node.
pub(super) fn bucket_of(id: &EntryId) -> usize {
    let mut hash = Sha256::new();
    update_with_name(&mut hash, id);
    let bytes = hash.finalize();
    usize::from(u16::from_be_bytes([bytes[0], bytes[1]])) % BUCKETS_COUNT
}

/// The digest of a live entry, never zero.
pub(super) fn digest_of(id: &EntryId, version: Version, content: &Content) -> Digest {
    let mut hash = Sha256::new();
    update_with_name(&mut hash, id);
    hash.update(version.stamp.to_database().to_be_bytes());
    hash.update(version.node.to_database().to_be_bytes());
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

/// With its length, so that two texts in a row cannot be read as two others.
fn update_with_text(hash: &mut Sha256, text: Option<&str>) {
    let length = text.map_or(u64::MAX, |text| text.len() as u64);
    hash.update(length.to_be_bytes());
    hash.update(text.unwrap_or_default());
}
