//! Opens rows with one key, all in the same memory.

use super::Error;
use crate::crypto::{DerivedKey, OpenError};
use crate::model::{Plaintext, SecretBytes, json};
use crate::store::SealedEntry;

/// Memory for one value at a time.
pub(super) struct Decryptor<'a> {
    derived: &'a DerivedKey,
    value: SecretBytes,
    canonical: SecretBytes,
}

/// Why a row does not open.
#[derive(Clone, Copy, Debug)]
pub(super) enum DecryptError {
    NotAToken,
    /// A token that was cut short cannot be told from one of another key: both fail the HMAC.
    WrongKey,
    BadPadding,
    NotJson,
}

impl<'a> Decryptor<'a> {
    pub(super) fn new(derived: &'a DerivedKey) -> Self {
        Self { derived, value: SecretBytes::default(), canonical: SecretBytes::default() }
    }

    /// The row's value as canonical JSON, until the next one is opened. The original writes JSON with spaces and
    /// ASCII escapes, and sometimes what is no JSON at all.
    ///
    /// # Errors
    /// When the key does not open it, or it holds no JSON.
    pub(super) fn open(&mut self, row: &SealedEntry) -> Result<&[u8], DecryptError> {
        self.fill(row).map(|value| &**value)
    }

    /// The same for a single row.
    ///
    /// # Errors
    /// As for [`Self::open`].
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
    /// As whoever asked for this row is told.
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
