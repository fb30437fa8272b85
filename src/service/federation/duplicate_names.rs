//! Names that were found on several nodes: each is counted and logged once.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};

use crate::limits::DUPLICATE_NAMES_COUNT_MAX;
use crate::model::EntryId;

/// Names that were found on several nodes since the start, as hashes; above the limit, no further ones are recorded.
#[derive(Debug, Default)]
pub(super) struct DuplicateNames {
    hashes: Mutex<BTreeSet<u64>>,
    hasher: RandomState,
}

impl DuplicateNames {
    /// Records a name that several nodes have.
    pub(super) fn note(&self, id: &EntryId) {
        let hash = self.hasher.hash_one(id);
        let mut hashes = self.hashes.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = hashes.len() < DUPLICATE_NAMES_COUNT_MAX && hashes.insert(hash);
        drop(hashes);
        if is_new {
            let EntryId { key, environment } = id;
            tracing::warn!(key, environment, "several nodes have an entry of this name");
        }
    }

    /// Returns the number of recorded names.
    pub(super) fn count(&self) -> usize {
        self.hashes.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}
