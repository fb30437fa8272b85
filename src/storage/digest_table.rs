//! Digest table of the store, updated with each commit, by which two nodes find their differences by comparing a few
//! kibibytes.
//!
//! Each live entry belongs by its name to one of [`BUCKETS_COUNT`] buckets. The digest of a bucket is the XOR of the
//! digests of its entries. Tombstones do not contribute, so collecting one does not change a digest.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::digest::{Delta, root_of};
use super::feed::{Commit, Subscriber};
use crate::limits::BUCKETS_COUNT;
use crate::model::Digest;

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
    fn apply(&self, delta: &Delta) {
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

impl Subscriber for DigestTable {
    fn publish(&self, commit: &Commit) {
        self.apply(&commit.digests);
    }
}

impl State {
    fn complete(&self) -> Option<&[Digest]> {
        (self.loaded_count == BUCKETS_COUNT).then_some(&self.digests)
    }
}
