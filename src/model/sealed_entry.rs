//! Entries as they are stored: with an encrypted value.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Ciphertext, EntryId, Revision, SealedBody, Timestamp};

/// Writer of a row, as far as this process saw it: an opaque identity of a user key, random per process and never
/// stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerTag(pub [u8; 32]);

/// Entry with an encrypted value.
#[derive(Debug)]
pub struct SealedEntry {
    /// Row id, which is the entry's `id`.
    pub id: i64,
    /// Entry key.
    pub key: String,
    /// Category, which may be an empty text.
    pub category: Option<String>,
    /// Environment; `None` if there is none, however the file encodes that.
    pub environment: Option<String>,
    /// Encrypted value; `None` if the column does not contain base64url text.
    pub ciphertext: Option<Ciphertext>,
    /// Creation time; unknown for rows of the 2.0 server.
    pub created_at: Option<Timestamp>,
    /// Time of the last change; unknown for rows of the 2.0 server.
    pub updated_at: Option<Timestamp>,
    /// Revision that wrote it.
    pub revision: Revision,
    /// Writer of this row, if this process wrote it and did not read it from the file.
    pub written_by: Option<OwnerTag>,
    canonical: AtomicBool,
}

impl SealedEntry {
    /// Creates a row whose plaintext is not known to be canonical.
    pub fn new(id: i64, key: String, environment: Option<String>, ciphertext: Option<Ciphertext>) -> Self {
        Self {
            id,
            key,
            category: None,
            environment,
            ciphertext,
            created_at: None,
            updated_at: None,
            revision: Revision::default(),
            written_by: None,
            canonical: AtomicBool::new(false),
        }
    }

    /// Returns a copy with another encrypted value, whose plaintext is not known to be canonical.
    #[must_use]
    pub fn copy_with(&self, ciphertext: Option<Ciphertext>) -> Self {
        Self {
            category: self.category.clone(),
            created_at: self.created_at,
            updated_at: self.updated_at,
            revision: self.revision,
            ..Self::new(self.id, self.key.clone(), self.environment.clone(), ciphertext)
        }
    }

    /// Returns the part that nodes exchange; `None` if the value is not a token, which no key decrypts.
    pub fn body(&self) -> Option<SealedBody> {
        Some(SealedBody {
            category: self.category.clone(),
            ciphertext: self.ciphertext.clone()?,
            created_at: self.created_at,
            updated_at: self.updated_at,
        })
    }

    /// Returns whether the plaintext is known to be canonical JSON, which needs no parsing. The same ciphertext always
    /// decrypts to the same plaintext, so this stays true once it is.
    pub fn is_canonical(&self) -> bool {
        self.canonical.load(Ordering::Relaxed)
    }

    /// Marks the plaintext as canonical JSON.
    pub fn set_canonical(&self) {
        self.canonical.store(true, Ordering::Relaxed);
    }

    /// Returns the name of the entry.
    pub fn entry_id(&self) -> EntryId {
        EntryId { key: self.key.clone(), environment: self.environment.clone() }
    }

    /// Returns the bytes of all texts except the value.
    pub fn names_bytes(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        self.key.len() + text(&self.category) + text(&self.environment)
    }

    /// Returns the approximate memory of this row in bytes, for the bound of the cache.
    pub fn weight(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, |text| allocation(text.len()));
        // The row is in an `Arc`, whose counters are two words.
        allocation(size_of::<Self>() + 2 * size_of::<usize>())
            + allocation(self.key.len())
            + text(&self.category)
            + text(&self.environment)
            + self.ciphertext.as_ref().map_or(0, |sealed| allocation(sealed.as_bytes().len()))
    }
}

/// All entries of one key, one per environment, ordered by id.
#[derive(Debug, Default)]
pub struct KeyEntries {
    /// Rows; empty if no entry has this key.
    pub rows: Vec<Arc<SealedEntry>>,
}

impl KeyEntries {
    /// Returns the entry of exactly this environment.
    pub fn exact(&self, environment: Option<&str>) -> Option<&Arc<SealedEntry>> {
        self.rows.iter().find(|row| row.environment.as_deref() == environment)
    }

    /// Returns the approximate memory of these entries in bytes.
    pub fn weight(&self) -> usize {
        let header = size_of::<Self>() + 2 * size_of::<usize>();
        let rows: usize = self.rows.iter().map(|row| row.weight()).sum();
        allocation(header) + allocation(self.rows.capacity() * size_of::<Arc<SealedEntry>>()) + rows
    }
}

/// Returns the approximate memory of a heap allocation in bytes: allocators round up to units of 16 bytes, and precede
/// them by a header of one unit.
pub fn allocation(bytes: usize) -> usize {
    bytes.next_multiple_of(16) + 16
}
