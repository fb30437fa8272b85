//! Derived key, with the state that the cache keeps for it.

use std::fmt;

use super::fernet::FernetKey;
use super::kdf::{RawKey, Salt};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Identifier of a user key: its MAC under a secret of this process, so that the map holds nothing from
/// which a user key could be found, and no client can aim at a slot. It need not be compared in constant
/// time.
pub(super) type KeyId = [u8; 32];

/// Derived key, shared by the cache and the requests that use it; wiped when the last reference is dropped.
pub struct DerivedKey {
    id: KeyId,
    salt: Salt,
    fernet: FernetKey,
    proven: AtomicBool,
    last_used_seconds: AtomicU64,
}

impl DerivedKey {
    /// Creates a key that has not decrypted anything yet.
    pub(super) fn new(id: KeyId, salt: Salt, raw_key: &RawKey, now_seconds: u64) -> Self {
        Self {
            id,
            salt,
            fernet: FernetKey::new(raw_key),
            proven: AtomicBool::new(false),
            last_used_seconds: AtomicU64::new(now_seconds),
        }
    }

    /// Returns the identifier of the user key that it was derived from; meaningful within this process only.
    pub fn id(&self) -> &[u8; 32] {
        &self.id
    }

    /// Returns the salt that it was derived with.
    pub fn salt(&self) -> &Salt {
        &self.salt
    }

    /// Returns the Fernet key, which encrypts and decrypts tokens.
    pub fn fernet(&self) -> &FernetKey {
        &self.fernet
    }

    /// Records that this key has decrypted an entry, or encrypted one that is stored: no flood of other keys
    /// evicts it then. Cheap enough to be called every time.
    pub fn mark_proven(&self) {
        // Loads first, because a store takes the cache line away from the other cores.
        if !self.is_proven() {
            self.proven.store(true, Relaxed);
        }
    }

    /// Returns whether this key is proven, see [`Self::mark_proven`].
    pub fn is_proven(&self) -> bool {
        self.proven.load(Relaxed)
    }

    pub(super) fn last_used_seconds(&self) -> u64 {
        self.last_used_seconds.load(Relaxed)
    }

    pub(super) fn touch(&self, now_seconds: u64) {
        if self.last_used_seconds() != now_seconds {
            self.last_used_seconds.store(now_seconds, Relaxed);
        }
    }
}

impl fmt::Debug for DerivedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DerivedKey(redacted)")
    }
}
