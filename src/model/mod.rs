//! Domain types: the parts of an entry, secrets, versions, and canonical JSON.
//!
//! Has no state, does no I/O and runs on any thread. Independent of HTTP, SQLite and cryptography.

pub mod change;
pub mod ciphertext;
pub mod entry;
pub mod filter;
pub mod json;
pub mod requester;
pub mod revision;
pub mod sealed_entry;
pub mod secret;
pub mod timestamp;
pub mod version;

pub use change::{Change, Digest, EntryId, SealedBody, VersionedDigest};
pub use ciphertext::Ciphertext;
pub use entry::{Category, EntryKey, Environment};
pub use filter::Filter;
pub use requester::Requester;
pub use revision::{Revision, Revisions};
pub use sealed_entry::{KeyEntries, OwnerTag, SealedEntry, allocation};
pub use secret::{ApiKey, ApiKeys, ClusterSecret, Plaintext, SecretBytes, UserKey, wipe_stack};
pub use timestamp::Timestamp;
pub use version::{HlcTimestamp, ReplicaId, TombstoneHorizon, Version};
