//! Opens many rows with one key, all in the same memory.

use crate::crypto::DerivedKey;
use crate::model::{SecretBytes, json};
use crate::store::Row;

/// Memory for one value at a time.
pub(super) struct Opener<'a> {
    derived: &'a DerivedKey,
    value: SecretBytes,
    canonical: SecretBytes,
}

impl<'a> Opener<'a> {
    pub(super) fn new(derived: &'a DerivedKey) -> Self {
        Self { derived, value: SecretBytes::default(), canonical: SecretBytes::default() }
    }

    /// The row's value as canonical JSON, until the next one is opened; `None` if the key does not open it,
    /// or it holds no JSON.
    pub(super) fn open(&mut self, row: &Row) -> Option<&[u8]> {
        let sealed = row.ciphertext.as_ref()?.as_bytes();
        self.value.clear();
        self.derived.fernet().open_raw(sealed, self.value.with_room(sealed.len())).ok()?;
        self.derived.mark_proven();
        if row.is_canonical() {
            return Some(&self.value);
        }
        self.canonical.clear();
        json::canonicalize(&self.value, self.canonical.with_room(self.value.len())).ok()?;
        if self.canonical == self.value {
            row.set_canonical();
        }
        Some(&self.canonical)
    }
}
