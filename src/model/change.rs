//! A change as nodes tell it to each other: what an entry is since which version, sealed.

use super::{Ciphertext, Timestamp, Version};

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
    pub content: Option<Content>,
}

/// What an entry holds besides its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
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
pub struct Known {
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
