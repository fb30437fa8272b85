//! One derived key, and what the cache has to know of it.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use super::fernet::FernetKey;
use super::kdf::{RawKey, Salt};
use super::key_map::KeyId;

/// A key ready for use, shared by the cache and whoever is using it; wiped by the last of them.
pub struct DerivedKey {
    id: KeyId,
    salt: Salt,
    fernet: FernetKey,
    proven: AtomicBool,
    last_used_seconds: AtomicU64,
}

impl DerivedKey {
    /// A key that has opened nothing yet.
    pub(super) fn new(id: KeyId, salt: Salt, raw_key: &RawKey, now_seconds: u64) -> Self {
        Self {
            id,
            salt,
            fernet: FernetKey::new(raw_key),
            proven: AtomicBool::new(false),
            last_used_seconds: AtomicU64::new(now_seconds),
        }
    }

    /// Which user key it was derived from, as this process names it; means nothing outside of it.
    pub fn id(&self) -> &[u8; 32] {
        &self.id
    }

    /// The salt that it was derived with.
    pub fn salt(&self) -> &Salt {
        &self.salt
    }

    /// Seals and opens tokens.
    pub fn fernet(&self) -> &FernetKey {
        &self.fernet
    }

    /// Says that this key has opened an entry, or sealed one that is stored: no flood of other keys
    /// evicts it then. Cheap enough to be called each time.
    pub fn mark_proven(&self) {
        // Looked at first, because a store takes the cache line away from the other cores.
        if !self.is_proven() {
            self.proven.store(true, Relaxed);
        }
    }

    /// Whether this key has opened anything.
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
