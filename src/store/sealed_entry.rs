//! Rows of the table `configurations` in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::model::{Ciphertext, EntryId, Timestamp};

/// Who sealed a row, as far as this process saw it: an opaque identity of a user key, random for
/// each process and never stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerTag(pub [u8; 32]);

/// One entry, its value sealed.
#[derive(Debug)]
pub struct SealedEntry {
    /// The row id, which is the entry's `id`.
    pub id: i64,
    /// The entry key.
    pub key: String,
    /// The category, which may be an empty text.
    pub category: Option<String>,
    /// The environment; "none" is `None`, in whichever way the file spells it.
    pub environment: Option<String>,
    /// The sealed value; `None` when the column holds no base64url text.
    pub ciphertext: Option<Ciphertext>,
    /// When it was made; unknown for rows of the 2.0 server.
    pub created_at: Option<Timestamp>,
    /// When it was last changed; unknown for rows of the 2.0 server.
    pub updated_at: Option<Timestamp>,
    /// Whose write this row is, if it was written by this process and not read from the file.
    pub written_by: Option<OwnerTag>,
    canonical: AtomicBool,
}

impl SealedEntry {
    /// A row whose plaintext nobody has looked at yet.
    pub fn new(id: i64, key: String, environment: Option<String>, ciphertext: Option<Ciphertext>) -> Self {
        Self {
            id,
            key,
            category: None,
            environment,
            ciphertext,
            created_at: None,
            updated_at: None,
            written_by: None,
            canonical: AtomicBool::new(false),
        }
    }

    /// Whether the plaintext is known to be canonical JSON, so that it needs no parsing. The same
    /// ciphertext always opens to the same plaintext, so this stays true once it is.
    pub fn is_canonical(&self) -> bool {
        self.canonical.load(Ordering::Relaxed)
    }

    /// Remembers that the plaintext is canonical JSON.
    pub fn set_canonical(&self) {
        self.canonical.store(true, Ordering::Relaxed);
    }

    /// The row's name.
    pub fn entry_id(&self) -> EntryId {
        EntryId { key: self.key.clone(), environment: self.environment.clone() }
    }

    /// Bytes of its texts besides the value.
    pub fn names_bytes(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        self.key.len() + text(&self.category) + text(&self.environment)
    }

    /// Memory that this row takes, roughly, for the bound of the cache.
    pub fn weight(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, |text| allocation(text.len()));
        // In an `Arc`, whose counters are two words.
        allocation(size_of::<Self>() + 2 * size_of::<usize>())
            + allocation(self.key.len())
            + text(&self.category)
            + text(&self.environment)
            + self.ciphertext.as_ref().map_or(0, |sealed| allocation(sealed.as_bytes().len()))
    }
}

/// All entries of one key, one for each environment, by id.
#[derive(Debug, Default)]
pub struct KeyEntries {
    /// The rows; empty when no entry has this key.
    pub rows: Vec<Arc<SealedEntry>>,
}

impl KeyEntries {
    /// The entry of exactly this environment.
    pub fn exact(&self, environment: Option<&str>) -> Option<&Arc<SealedEntry>> {
        self.rows.iter().find(|row| row.environment.as_deref() == environment)
    }

    /// Memory that this group takes, roughly.
    pub fn weight(&self) -> usize {
        let own = size_of::<Self>() + 2 * size_of::<usize>();
        let rows: usize = self.rows.iter().map(|row| row.weight()).sum();
        allocation(own) + allocation(self.rows.capacity() * size_of::<Arc<SealedEntry>>()) + rows
    }
}

/// Memory that something on the heap takes, roughly: allocators hand out whole units of 16 bytes, after
/// one of their own.
pub(super) fn allocation(bytes: usize) -> usize {
    bytes.next_multiple_of(16) + 16
}
