//! The value of an entry on its way to a client.

use std::sync::Arc;

use super::decryptor::DecryptError;
use crate::crypto::DerivedKey;
use crate::limits::LARGE_VALUE_BYTES;
use crate::model::Plaintext;
use crate::store::SealedEntry;

/// A value: canonical JSON.
#[derive(Debug)]
pub enum Value {
    /// Opened.
    Plain(Plaintext),
    /// A large one, which is opened piece by piece as its client takes it.
    Sealed(SealedValue),
}

/// A value in its row, proven to be authentic. All readers of an entry share the row, and each has only the piece
/// in memory that it sends.
#[derive(Debug)]
pub struct SealedValue {
    row: Arc<SealedEntry>,
    derived: Arc<DerivedKey>,
    len: usize,
    opened_len: usize,
}

impl Value {
    /// Leaves a large value sealed, if its row has the same text as `plaintext`.
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
    /// Proves that the key opens the row, without opening it. The row must be canonical.
    ///
    /// # Errors
    /// When the key does not open it.
    pub(super) fn verify(derived: &Arc<DerivedKey>, row: &Arc<SealedEntry>) -> Result<Self, DecryptError> {
        debug_assert!(row.is_canonical(), "other rows need to be rewritten");
        let sealed = row.ciphertext.as_ref().ok_or(DecryptError::NotAToken)?;
        let len = derived.fernet().message_len(sealed.as_bytes())?;
        derived.mark_proven();
        Ok(Self { row: Arc::clone(row), derived: Arc::clone(derived), len, opened_len: 0 })
    }

    /// Bytes that [`Self::open_next`] has not given yet.
    pub fn remaining(&self) -> usize {
        self.len - self.opened_len
    }

    /// Which row it is among those in memory, and the memory of that row: readers of one entry share it.
    pub fn row(&self) -> (usize, usize) {
        (Arc::as_ptr(&self.row).addr(), self.row.weight())
    }

    /// Appends the next bytes, no more than there are, to `out`, whose owner wipes it.
    pub fn open_next(&mut self, count: usize, out: &mut Vec<u8>) {
        let Some(sealed) = &self.row.ciphertext else { return };
        let range = self.opened_len..self.len.min(self.opened_len + count);
        self.opened_len = range.end;
        self.derived.fernet().open_range(sealed.as_bytes(), range, out);
    }
}
