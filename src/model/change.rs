//! A change as nodes tell it to each other: what an entry is since which version, sealed.

use super::entry::{Category, EntryKey, Environment, LengthError};
use super::{Ciphertext, Timestamp, Version};

/// Why an entry cannot be exchanged with another node. Says what is wrong without quoting any of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// Its key.
    #[error("a key {0}")]
    Key(LengthError),
    /// Its environment.
    #[error("an environment {0}")]
    Environment(LengthError),
    /// Its category.
    #[error("a category {0}")]
    Category(LengthError),
    /// Its value.
    #[error("a value is no token")]
    Token,
    /// When it was made or changed.
    #[error("a time is before 1970 or after 9999")]
    Time,
}

/// The name of an entry. "No environment" is `None`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId {
    /// The entry key.
    pub key: String,
    /// The environment.
    pub environment: Option<String>,
}

/// One entry as of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which entry.
    pub id: EntryId,
    /// Since when it is so.
    pub version: Version,
    /// What it holds; `None` when it was deleted.
    pub content: Option<SealedBody>,
}

/// What an entry holds besides its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedBody {
    /// Its category.
    pub category: Option<String>,
    /// Its sealed value: opens on every node that has the salt, and tells nothing to one that has no user key.
    pub ciphertext: Ciphertext,
    /// When it was made.
    pub created_at: Option<Timestamp>,
    /// When it was last changed.
    pub updated_at: Option<Timestamp>,
}

/// A version of an entry without its content, for comparing stores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionedDigest {
    /// Which entry.
    pub id: EntryId,
    /// Its version.
    pub version: Version,
    /// A digest of the version and the content; zero for a deleted entry.
    pub digest: Digest,
}

/// A digest of one entry, or the XOR of the digests of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub u128);

impl EntryId {
    /// Whether a client can name such an entry.
    ///
    /// # Errors
    /// Which name is too long or empty.
    pub fn check(&self) -> Result<(), EntryError> {
        EntryKey::check(&self.key).map_err(EntryError::Key)?;
        self.environment.as_deref().map_or(Ok(()), Environment::check).map_err(EntryError::Environment)
    }
}

impl SealedBody {
    /// Whether a client of a node could have made it, apart from its times.
    ///
    /// # Errors
    /// What no client could have made.
    pub fn check(&self) -> Result<(), EntryError> {
        self.category.as_deref().map_or(Ok(()), Category::check).map_err(EntryError::Category)?;
        match self.ciphertext.has_token_shape() {
            true => Ok(()),
            false => Err(EntryError::Token),
        }
    }

    /// Whether its times are such as a message may hold.
    ///
    /// # Errors
    /// When one is not.
    pub fn check_times(&self) -> Result<(), EntryError> {
        match self.created_at.into_iter().chain(self.updated_at).all(Timestamp::is_exchangeable) {
            true => Ok(()),
            false => Err(EntryError::Time),
        }
    }
}
