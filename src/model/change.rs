//! Changes that nodes exchange: the sealed state of an entry as of a version.

use super::entry::{Category, EntryKey, Environment, LengthError};
use super::{Ciphertext, Timestamp, Version};

/// Reason why an entry cannot be exchanged with another node. The text names the invalid part without quoting it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The entry key is invalid.
    #[error("a key {0}")]
    Key(LengthError),
    /// The environment is invalid.
    #[error("an environment {0}")]
    Environment(LengthError),
    /// The category is invalid.
    #[error("a category {0}")]
    Category(LengthError),
    /// The value is not a token.
    #[error("a value is no token")]
    Token,
    /// The time of creation or of the last change is out of range.
    #[error("a time is before 1970 or after 9999")]
    Time,
}

/// Identity of an entry. "No environment" is `None`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId {
    /// Entry key.
    pub key: String,
    /// Environment.
    pub environment: Option<String>,
}

/// State of one entry as of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Identity of the entry.
    pub id: EntryId,
    /// Version that wrote this state.
    pub version: Version,
    /// Content; `None` for a tombstone.
    pub body: Option<SealedBody>,
}

/// Content of an entry apart from its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedBody {
    /// Category.
    pub category: Option<String>,
    /// Sealed value. Every node with the same salt can open it, but only with the user key.
    pub ciphertext: Ciphertext,
    /// Time of creation.
    pub created_at: Option<Timestamp>,
    /// Time of the last change.
    pub updated_at: Option<Timestamp>,
}

/// Version of an entry with a digest instead of the content, for comparing stores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionedDigest {
    /// Identity of the entry.
    pub id: EntryId,
    /// Version of the entry.
    pub version: Version,
    /// Digest of the version and the content; zero for a tombstone.
    pub digest: Digest,
}

impl VersionedDigest {
    /// Returns the deletion, if this is a tombstone.
    pub fn tombstone(self) -> Option<Change> {
        let is_tombstone = self.digest == Digest::default();
        is_tombstone.then_some(Change { id: self.id, version: self.version, body: None })
    }
}

/// Digest of one entry, or the XOR of the digests of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub u128);

impl EntryId {
    /// Checks that a client can name such an entry.
    ///
    /// # Errors
    /// Returns the part that is too long or empty.
    pub fn check(&self) -> Result<(), EntryError> {
        EntryKey::check(&self.key).map_err(EntryError::Key)?;
        self.environment.as_deref().map_or(Ok(()), Environment::check).map_err(EntryError::Environment)
    }
}

impl SealedBody {
    /// Checks that a client of a node could have written it, apart from its times.
    ///
    /// # Errors
    /// Returns the part that no client could have written.
    pub fn check(&self) -> Result<(), EntryError> {
        self.category.as_deref().map_or(Ok(()), Category::check).map_err(EntryError::Category)?;
        match self.ciphertext.has_token_shape() {
            true => Ok(()),
            false => Err(EntryError::Token),
        }
    }

    /// Checks that a message may contain its times.
    ///
    /// # Errors
    /// Fails if a time is out of range.
    pub fn check_times(&self) -> Result<(), EntryError> {
        match self.created_at.into_iter().chain(self.updated_at).all(Timestamp::is_exchangeable) {
            true => Ok(()),
            false => Err(EntryError::Time),
        }
    }
}
