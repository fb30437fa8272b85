//! Digests of the whole store, kept up with each commit, so that two nodes find what differs by
//! comparing a few kibibytes.
//!
//! Each live entry belongs to one of [`BUCKETS_COUNT`] buckets by its name, and a bucket's digest is
//! the XOR of the digests of its entries. Deleted entries count for nothing, so that forgetting a
//! tombstone changes no digest.

use std::sync::{Mutex, MutexGuard, PoisonError};

use sha2::{Digest as _, Sha256};

use crate::limits::BUCKETS_COUNT;
use crate::model::{Digest, EntryId, HlcTimestamp, SealedBody, Version};

/// The digests of all buckets.
#[derive(Debug)]
pub struct DigestTable(Mutex<State>);

#[derive(Debug)]
struct State {
    digests: Vec<Digest>,
    entries_count: u64,
    /// The buckets before this one are known. Of the others nothing is noted, because what is committed
    /// meanwhile is found when they are added up.
    known_count: usize,
}

/// What one commit changes.
#[derive(Debug, Default)]
pub(super) struct Delta {
    flips: Vec<DigestChange>,
    noted: Noted,
}

/// What a commit moves besides.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Noted {
    /// The last line that was added to the outbox.
    pub(super) outbox_line: Option<i64>,
    /// Up to where stamps are reserved from now on.
    pub(super) reserved: Option<HlcTimestamp>,
}

/// How far a [`Delta`] has come.
#[derive(Clone, Copy)]
pub(super) struct DigestSavepoint {
    flips_count: usize,
    noted: Noted,
}

#[derive(Debug)]
struct DigestChange {
    bucket: usize,
    digest: Digest,
    entries: i64,
}

impl Default for DigestTable {
    fn default() -> Self {
        let digests = vec![Digest::default(); BUCKETS_COUNT];
        Self(Mutex::new(State { digests, entries_count: 0, known_count: BUCKETS_COUNT }))
    }
}

impl DigestTable {
    /// One digest for everything: equal on two nodes exactly when they hold the same entries. `None` as long
    /// as the entries of a large store are being added up.
    pub fn root(&self) -> Option<Digest> {
        self.lock().complete().map(root_of)
    }

    /// The digest of each bucket; `None` as for [`Self::root`].
    pub fn all(&self) -> Option<Vec<Digest>> {
        self.lock().complete().map(<[Digest]>::to_vec)
    }

    /// How many live entries there are.
    pub fn entries_count(&self) -> u64 {
        self.lock().entries_count
    }

    pub(super) fn apply(&self, delta: &Delta) {
        let mut state = self.lock();
        let known_count = state.known_count;
        for flip in delta.flips.iter().filter(|flip| flip.bucket < known_count) {
            state.digests[flip.bucket].0 ^= flip.digest.0;
            state.entries_count = state.entries_count.saturating_add_signed(flip.entries);
        }
    }

    /// Nothing is known any more.
    pub(super) fn forget(&self) {
        let mut state = self.lock();
        state.known_count = 0;
        state.entries_count = 0;
    }

    /// The bucket that is to be added up next, if there is one.
    pub(super) fn next_unknown(&self) -> Option<usize> {
        Some(self.lock().known_count).filter(|bucket| *bucket < BUCKETS_COUNT)
    }

    /// The entries of that bucket, read by the thread that calls [`Self::apply`], with no commit in between.
    pub(super) fn load_bucket(&self, digests: &[Digest]) {
        let mut state = self.lock();
        let bucket = state.known_count;
        state.digests[bucket] = Digest(digests.iter().fold(0, |sum, digest| sum ^ digest.0));
        state.entries_count += digests.len() as u64;
        state.known_count += 1;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn complete(&self) -> Option<&[Digest]> {
        (self.known_count == BUCKETS_COUNT).then_some(&self.digests)
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
        self.flips.push(DigestChange {
            bucket: bucket_of(id),
            digest: Digest(before.0 ^ after.0),
            entries: i64::from(after != nothing) - i64::from(before != nothing),
        });
    }

    pub(super) fn note(&mut self) -> &mut Noted {
        &mut self.noted
    }

    pub(super) fn noted(&self) -> Noted {
        self.noted
    }

    pub(super) fn mark(&self) -> DigestSavepoint {
        DigestSavepoint { flips_count: self.flips.len(), noted: self.noted }
    }

    /// Back to where it was then.
    pub(super) fn truncate(&mut self, mark: DigestSavepoint) {
        self.flips.truncate(mark.flips_count);
        self.noted = mark.noted;
    }
}

/// The bucket of an entry; the same on every node.
pub fn bucket_of(id: &EntryId) -> usize {
    let mut hash = Sha256::new();
    update_with_name(&mut hash, id);
    let bytes = hash.finalize();
    usize::from(u16::from_be_bytes([bytes[0], bytes[1]])) % BUCKETS_COUNT
}

/// The digest of a live entry, never zero.
pub(super) fn digest_of(id: &EntryId, version: Version, content: &SealedBody) -> Digest {
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
