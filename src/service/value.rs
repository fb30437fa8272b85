//! Value of an entry in a response.

use std::sync::Arc;

use super::decryptor::DecryptError;
use crate::crypto::DerivedKey;
use crate::limits::LARGE_VALUE_BYTES;
use crate::model::{Plaintext, SealedEntry};

/// Value as canonical JSON.
#[derive(Debug)]
pub enum Value {
    /// Decrypted value.
    Plain(Plaintext),
    /// Large value, which is decrypted piecewise as the client reads the response.
    Sealed(SealedValue),
}

/// Encrypted value that was verified to be authentic. All readers of an entry share its row, and each holds only the
/// piece that it is sending in memory.
#[derive(Debug)]
pub struct SealedValue {
    row: Arc<SealedEntry>,
    derived: Arc<DerivedKey>,
    len: usize,
    opened_len: usize,
}

impl Value {
    /// Creates the value of a row. A large value stays encrypted if the row contains the same text as `plaintext`.
    pub(super) fn of(derived: &Arc<DerivedKey>, row: &Arc<SealedEntry>, plaintext: Plaintext) -> Self {
        if plaintext.expose().len() > LARGE_VALUE_BYTES
            && row.is_canonical()
            && let Ok(sealed) = SealedValue::verify(derived, row)
            && sealed.remaining() == plaintext.expose().len()
        {
            return Self::Sealed(sealed);
        }
        Self::Plain(plaintext)
    }
}

impl SealedValue {
    /// Verifies that the key decrypts the row, without decrypting it. The row must be canonical.
    ///
    /// # Errors
    /// Fails if the key does not decrypt the row.
    pub(super) fn verify(derived: &Arc<DerivedKey>, row: &Arc<SealedEntry>) -> Result<Self, DecryptError> {
        debug_assert!(row.is_canonical(), "a row that is not canonical must be rewritten");
        let sealed = row.ciphertext.as_ref().ok_or(DecryptError::NotAToken)?;
        let len = derived.fernet().message_len(sealed.as_bytes())?;
        derived.mark_proven();
        Ok(Self { row: Arc::clone(row), derived: Arc::clone(derived), len, opened_len: 0 })
    }

    /// Returns the number of bytes that [`Self::open_next`] has not returned yet.
    pub fn remaining(&self) -> usize {
        self.len - self.opened_len
    }

    /// Returns an identifier of the row in memory, which the readers of an entry share, and the memory of the row.
    pub fn row(&self) -> (usize, usize) {
        (Arc::as_ptr(&self.row).addr(), self.row.weight())
    }

    /// Decrypts up to `count` further bytes and appends them to `out`, which its owner wipes.
    pub fn open_next(&mut self, count: usize, out: &mut Vec<u8>) {
        let Some(sealed) = &self.row.ciphertext else { return };
        let range = self.opened_len..self.len.min(self.opened_len + count);
        self.opened_len = range.end;
        self.derived.fernet().open_range(sealed.as_bytes(), range, out);
    }
}
