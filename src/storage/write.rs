//! Conditional writes of clients, and their outcomes.

use std::sync::Arc;

use super::error::Error;
use crate::model::{Ciphertext, EntryId, OwnerTag, Revision, SealedEntry, Timestamp};

/// Writes that are committed completely or not at all, in this order.
#[derive(Debug)]
pub struct WriteBatch {
    /// Writes.
    pub writes: Vec<Write>,
    /// Client that makes them; `None` on behalf of another node, whose client this process does not know.
    pub owner: Option<OwnerTag>,
}

/// Conditional write of one entry.
#[derive(Debug)]
pub enum Write {
    /// Creates or replaces the entry.
    Put {
        /// Entry.
        id: EntryId,
        /// Condition of the write.
        expect: Expect,
        /// New category; `None` keeps the present one.
        category: Option<String>,
        /// Environment to move the entry to; `None` keeps the present one.
        environment: Option<String>,
        /// New encrypted value.
        ciphertext: Ciphertext,
    },
    /// Deletes the entry.
    Delete {
        /// Entry.
        id: EntryId,
        /// Revision of the entry that the client's user key has decrypted.
        expect: Revision,
    },
}

/// Condition of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// There is no such entry.
    Absent,
    /// The entry still has the revision that the client's user key has decrypted. An engine may also accept a later
    /// one that the same client has written: concurrent writes of one client then need no retries.
    Revision(Revision),
}

impl Write {
    /// Creates a new entry.
    pub fn create(id: EntryId, category: Option<String>, ciphertext: Ciphertext) -> Self {
        Self::Put { id, expect: Expect::Absent, category, environment: None, ciphertext }
    }

    /// Replaces the value of an entry that the client's user key has decrypted.
    pub fn update(
        seen: &SealedEntry,
        category: Option<String>,
        environment: Option<String>,
        ciphertext: Ciphertext,
    ) -> Self {
        let expect = Expect::Revision(seen.revision);
        Self::Put { id: seen.entry_id(), expect, category, environment, ciphertext }
    }

    /// Deletes an entry that the client's user key has decrypted.
    pub fn delete(seen: &SealedEntry) -> Self {
        Self::Delete { id: seen.entry_id(), expect: seen.revision }
    }

    /// Returns the entry that is written.
    pub fn id(&self) -> &EntryId {
        match self {
            Self::Put { id, .. } | Self::Delete { id, .. } => id,
        }
    }

    /// Returns the entry as this write leaves it, without its new revision; `None` if it is deleted. `current` is the
    /// entry as it is, if there is one.
    ///
    /// # Errors
    /// Fails if the condition of the write is not met.
    pub(super) fn outcome(
        &self,
        current: Option<&Arc<SealedEntry>>,
        owner: Option<OwnerTag>,
        at: Timestamp,
    ) -> Result<Option<SealedEntry>, WriteError> {
        let expected = |expect: Revision| {
            let is_expected = |row: &&Arc<SealedEntry>| {
                row.revision == expect || (owner.is_some() && row.written_by == owner)
            };
            current.filter(is_expected).ok_or(WriteError::Changed)
        };
        let mut row = match self {
            Self::Put { expect: Expect::Absent, .. } if current.is_some() => {
                return Err(WriteError::AlreadyExists);
            }
            Self::Put { id, expect: Expect::Absent, category, environment: _, ciphertext } => {
                let EntryId { key, environment } = id.clone();
                let mut row = SealedEntry::new(0, key, environment, Some(ciphertext.clone()));
                row.category.clone_from(category);
                row.created_at = Some(at);
                row.updated_at = Some(at);
                row
            }
            Self::Put { id, expect: Expect::Revision(expect), category, environment, ciphertext } => {
                let current = expected(*expect)?;
                let environment = environment.as_ref().or(current.environment.as_ref()).cloned();
                let mut row =
                    SealedEntry::new(current.id, id.key.clone(), environment, Some(ciphertext.clone()));
                row.category = category.as_ref().or(current.category.as_ref()).cloned();
                row.created_at = current.created_at;
                // The clock may have been set back since the last change.
                row.updated_at = Some(at).max(current.updated_at).max(current.created_at);
                row
            }
            Self::Delete { expect, .. } => return expected(*expect).map(|_| None),
        };
        row.written_by = owner;
        if owner.is_some() {
            // The service encrypts only canonical JSON.
            row.set_canonical();
        }
        Ok(Some(row))
    }
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
