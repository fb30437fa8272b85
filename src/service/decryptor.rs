//! Decryption of rows with one derived key, in reused buffers.

use super::Error;
use crate::crypto::{DerivedKey, OpenError};
use crate::model::{Plaintext, SealedEntry, SecretBytes, json};

/// Decryptor with buffers for one value.
pub(super) struct Decryptor<'a> {
    derived: &'a DerivedKey,
    value: SecretBytes,
    canonical: SecretBytes,
}

/// Reason why a row cannot be decrypted.
#[derive(Clone, Copy, Debug)]
pub(super) enum DecryptError {
    NotAToken,
    /// Also a truncated token: it fails the HMAC just as a token of another key does.
    WrongKey,
    BadPadding,
    NotJson,
}

impl<'a> Decryptor<'a> {
    pub(super) fn new(derived: &'a DerivedKey) -> Self {
        Self { derived, value: SecretBytes::default(), canonical: SecretBytes::default() }
    }

    /// Returns the row's value as canonical JSON, valid until the next call. The Python server writes JSON with spaces
    /// and ASCII escapes, and sometimes text that is not valid JSON.
    ///
    /// # Errors
    /// Fails if the key does not decrypt the row, or if the value is not valid JSON.
    pub(super) fn open(&mut self, row: &SealedEntry) -> Result<&[u8], DecryptError> {
        self.fill(row).map(|value| &**value)
    }

    /// Returns the value of a single row as canonical JSON.
    ///
    /// # Errors
    /// Fails as [`Self::open`] does.
    pub(super) fn into_plaintext(mut self, row: &SealedEntry) -> Result<Plaintext, DecryptError> {
        self.fill(row).map(|value| std::mem::take(value).into())
    }

    fn fill(&mut self, row: &SealedEntry) -> Result<&mut SecretBytes, DecryptError> {
        let sealed = row.ciphertext.as_ref().ok_or(DecryptError::NotAToken)?.as_bytes();
        self.value.clear();
        let opened = self.derived.fernet().open_raw(sealed, self.value.with_room(sealed.len()));
        opened?;
        self.derived.mark_proven();
        if row.is_canonical() {
            return Ok(&mut self.value);
        }
        self.canonical.clear();
        json::canonicalize(&self.value, self.canonical.with_room(self.value.len()))
            .map_err(|_| DecryptError::NotJson)?;
        if self.canonical == self.value {
            row.set_canonical();
        }
        Ok(&mut self.canonical)
    }
}

impl From<OpenError> for DecryptError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::WrongKey | OpenError::Malformed => Self::WrongKey,
            OpenError::BadPadding => Self::BadPadding,
        }
    }
}

impl DecryptError {
    /// Converts to the error for the client that requested this row.
    pub(super) fn of(self, row: &SealedEntry) -> Error {
        let key = row.key.clone();
        match self {
            Self::WrongKey => Error::WrongUserKey { key },
            Self::NotAToken => Error::Unreadable { key, what: "it is not a Fernet token" },
            Self::BadPadding => Error::Unreadable { key, what: "its padding is wrong" },
            Self::NotJson => Error::Unreadable { key, what: "it is not valid JSON" },
        }
    }
}
