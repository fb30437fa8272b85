//! Cache of derived keys: single-flight derivation per user key, and a bounded number of results.
//!
//! Pending derivations and results share one map behind one lock, so there is no gap between lookup and
//! derivation. Results are in two tiers: a key that has decrypted something is proven, and keys that have
//! not (typing errors, guesses) only ever evict each other. It takes a microsecond to find out that a
//! cached key is the wrong one, so wrong keys need no negative cache.

use std::fmt;
use std::sync::{Arc, PoisonError};

use zeroize::Zeroizing;

use super::derived_key::{DerivedKey, KeyId};
use super::kdf::{Derivation, RawKey, Salt};
use super::key_map::{Found, Slots, Tier, Waiter};
use super::mac::MacKey;
use crate::limits::KEY_SWEEP_STEP;
use crate::model::UserKey;
use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};
use crate::sync::{Mutex, MutexGuard};

/// Result of a lookup.
pub enum Lookup {
    /// The key is in the cache. It may be the wrong one for an entry.
    Ready(Arc<DerivedKey>),
    /// The derivation of the key is pending.
    Wait(Waiter),
    /// The caller is the first one: it passes the claim to the pool, and then waits like later callers.
    Derive(DerivationClaim, Waiter),
}

/// Statistics of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Derivations that have started.
    pub derivations_started: u64,
    /// Derivations that have produced a key; the rest were cancelled, or are running.
    pub derivations_completed: u64,
    /// Keys whose derivation is queued or running.
    pub pending: usize,
    /// Keys in the unproven tier. Some may have been proven in the meantime: they move to the other tier later.
    pub unproven: usize,
    /// Keys in the proven tier.
    pub proven: usize,
}

/// Cache of derived keys; clones are handles to the same cache.
#[derive(Clone)]
pub struct KeyCache {
    shared: Arc<Shared>,
}

impl KeyCache {
    /// Creates an empty cache with a random secret.
    ///
    /// # Panics
    /// Panics if the operating system has no random bytes: Linux has them once it has booted.
    pub fn new() -> Self {
        let mut secret = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *secret).expect("Linux has random bytes once it has booted");
        let shared = Shared {
            id_key: MacKey::new(&*secret),
            slots: Mutex::default(),
            derivations_started: AtomicU64::new(0),
            derivations_completed: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Returns the identifier, within this process, of the user key with these header bytes.
    pub fn id_of(&self, user_key: &[u8]) -> [u8; 32] {
        self.shared.id_key.mac(user_key)
    }

    /// Returns the cached key of the user key with these header bytes. Does not start a derivation.
    pub fn cached(&self, user_key: &[u8], now_seconds: u64) -> Option<Arc<DerivedKey>> {
        let id = self.shared.id_key.mac(user_key);
        let key = self.shared.lock().ready(&id)?;
        key.touch(now_seconds);
        Some(key)
    }

    /// Looks up the key of `user_key`, and joins or creates its derivation if it is not cached. `now_seconds`
    /// is the time of any monotonic clock. Callers count the hits, because a counter in the cache would be
    /// shared by all cores.
    pub fn lookup(&self, user_key: &UserKey, now_seconds: u64) -> Lookup {
        let id = self.shared.id_key.mac(user_key.header_bytes());
        let found = self.shared.lock().find(&id, now_seconds);
        match found {
            Found::Ready(key) => Lookup::Ready(key),
            Found::Pending(waiter) => Lookup::Wait(waiter),
            Found::Vacant(number, waiter) => {
                let (shared, user_key) = (Arc::clone(&self.shared), user_key.clone());
                Lookup::Derive(DerivationClaim { shared, id, number, user_key, now_seconds }, waiter)
            }
        }
    }

    /// Removes the keys that were not used for
    /// [`DERIVED_KEY_IDLE`](crate::limits::DERIVED_KEY_IDLE). To be called periodically by a background
    /// thread; holds the lock for short steps only.
    pub fn sweep(&self, now_seconds: u64) {
        for tier in [Tier::Unproven, Tier::Proven] {
            let mut left = self.shared.lock().tier_len(tier);
            while left > 0 {
                let step = left.min(KEY_SWEEP_STEP);
                let expired = self.shared.lock().sweep_step(tier, step, now_seconds);
                // Wipes the keys, after the lock has been released.
                drop(expired);
                left -= step;
            }
        }
    }

    /// Removes all keys and abandons the pending derivations, whose waiters are cancelled: for a new salt,
    /// and for the shutdown.
    pub fn clear(&self) {
        let everything = self.shared.lock().take_all();
        // Wipes the keys and wakes the waiters, after the lock has been released.
        drop(everything);
    }

    /// Returns the statistics.
    pub fn counts(&self) -> Counts {
        let slots = self.shared.lock();
        Counts {
            derivations_started: self.shared.derivations_started.load(Relaxed),
            derivations_completed: self.shared.derivations_completed.load(Relaxed),
            pending: slots.pending_len(),
            unproven: slots.tier_len(Tier::Unproven),
            proven: slots.tier_len(Tier::Proven),
        }
    }
}

impl fmt::Debug for KeyCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyCache").field(&self.counts()).finish()
    }
}

impl Default for KeyCache {
    fn default() -> Self {
        Self::new()
    }
}

/// Exclusive claim to derive one key. If it is dropped before it is completed (a full queue, a panic, a
/// shutdown), its slot is removed and its waiters are cancelled, so no caller waits indefinitely and the
/// next lookup derives again.
pub struct DerivationClaim {
    shared: Arc<Shared>,
    id: KeyId,
    number: u64,
    user_key: UserKey,
    now_seconds: u64,
}

impl DerivationClaim {
    /// Starts the derivation, unless all of its waiters have been cancelled.
    pub(super) fn begin(&self, salt: &Salt) -> Option<Derivation> {
        self.is_wanted().then(|| {
            self.shared.derivations_started.fetch_add(1, Relaxed);
            Derivation::new(&self.user_key.password(), salt.as_bytes())
        })
    }

    /// Returns whether any caller still waits. If none does, the slot is removed immediately, so that the
    /// next caller derives again instead of joining a job that is about to end.
    pub fn is_wanted(&self) -> bool {
        self.shared.lock().keep_if_wanted(&self.id, self.number)
    }

    /// Inserts the derived key into the cache and wakes its waiters.
    pub fn complete(self, salt: &Salt, raw_key: &RawKey) {
        self.shared.derivations_completed.fetch_add(1, Relaxed);
        let key = Arc::new(DerivedKey::new(self.id, salt.clone(), raw_key, self.now_seconds));
        let pending = self.shared.lock().publish(&self.id, self.number, &key);
        if let Some(pending) = pending {
            pending.hand_out(&key);
        }
    }
}

impl Drop for DerivationClaim {
    fn drop(&mut self) {
        let abandoned = self.shared.lock().take_pending(&self.id, self.number);
        // Cancels and wakes the waiters, if there are any, after the lock has been released.
        drop(abandoned);
    }
}

struct Shared {
    id_key: MacKey,
    slots: Mutex<Slots>,
    derivations_started: AtomicU64,
    derivations_completed: AtomicU64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Slots> {
        // No critical section panics in the middle of a change, so a poisoned lock is safe to use.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, feature = "interleavings"))]
mod interleavings;

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use futures_lite::future::block_on;

    use super::super::fernet::FernetKey;
    use super::super::kdf::advance;
    use super::super::test_data::{salt, start};
    use super::*;
    use crate::limits::KEY_SECOND_CHANCES_MAX;
    use crate::limits::{DERIVED_KEY_IDLE, DERIVED_KEYS_PROVEN_MAX, DERIVED_KEYS_UNPROVEN_MAX};

    fn user_key(text: &str) -> UserKey {
        UserKey::from_header(text.as_bytes())
    }

    /// Returns a fixed key, which takes no derivation.
    fn raw_key() -> RawKey {
        RawKey::new([7; 32])
    }

    /// Inserts a key into the cache.
    fn fill(cache: &KeyCache, text: &str, now_seconds: u64) -> Arc<DerivedKey> {
        match cache.lookup(&user_key(text), now_seconds) {
            Lookup::Derive(claim, waiter) => {
                claim.complete(&salt(), &raw_key());
                block_on(waiter).expect("the claim was completed")
            }
            Lookup::Ready(_) | Lookup::Wait(_) => panic!("{text} is known already"),
        }
    }

    fn derive(claim: DerivationClaim) {
        let mut derivation = claim.begin(&salt()).expect("a waiter is left");
        while !derivation.is_done() {
            advance([&mut derivation]);
        }
        claim.complete(&salt(), &derivation.key());
    }

    fn is_cached(cache: &KeyCache, text: &str, now_seconds: u64) -> bool {
        // The claim of a miss is dropped immediately, and its slot with it.
        matches!(cache.lookup(&user_key(text), now_seconds), Lookup::Ready(_))
    }

    fn join(cache: &KeyCache, text: &str) -> Waiter {
        match cache.lookup(&user_key(text), 0) {
            Lookup::Wait(waiter) => waiter,
            Lookup::Ready(_) | Lookup::Derive(..) => panic!("{text} is not being derived"),
        }
    }

    #[test]
    fn a_thousand_concurrent_lookups_make_one_derivation() {
        const THREADS: usize = 1000;
        let (cache, barrier) = (KeyCache::new(), Barrier::new(THREADS));
        let look_up = || {
            barrier.wait();
            match cache.lookup(&user_key("the same"), 0) {
                Lookup::Ready(key) => key,
                Lookup::Wait(waiter) => block_on(waiter).expect("it is derived"),
                Lookup::Derive(claim, waiter) => {
                    derive(claim);
                    block_on(waiter).expect("it is derived")
                }
            }
        };
        let keys: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(look_up)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no thread panics")).collect()
        });
        assert!(keys.iter().all(|key| Arc::ptr_eq(key, &keys[0])));
        let expected =
            Counts { derivations_started: 1, derivations_completed: 1, pending: 0, unproven: 1, proven: 0 };
        assert_eq!(cache.counts(), expected);
    }

    #[test]
    fn derives_with_the_password_of_the_user_key() {
        let cache = KeyCache::new();
        let (claim, waiter) = start(&cache, "pässwört");
        derive(claim);
        let key = block_on(waiter).expect("it is derived");
        let password = user_key("pässwört").password();
        let expected = FernetKey::new(&super::super::derive(&password, salt().as_bytes()));
        assert!(key.fernet().verifies_raw(&expected.seal_raw(b"", 0)));
    }

    #[test]
    fn a_wrong_key_is_cached_too() {
        let cache = KeyCache::new();
        let key = fill(&cache, "wrong", 0);
        let token = FernetKey::new(&RawKey::new([8; 32])).seal_raw(b"{}", 0);
        assert!(!key.fernet().verifies_raw(&token));
        assert!(is_cached(&cache, "wrong", 0));
    }

    #[test]
    fn unproven_keys_evict_only_unproven_ones() {
        let cache = KeyCache::new();
        for number in 0..20 {
            fill(&cache, &format!("good {number}"), 0).mark_proven();
        }
        for number in 0..10_000 {
            fill(&cache, &format!("junk {number}"), 0);
        }
        assert!((0..20).all(|number| is_cached(&cache, &format!("good {number}"), 0)));
        assert!(is_cached(&cache, "junk 9999", 0));
        assert!(!is_cached(&cache, "junk 0", 0));
        let counts = cache.counts();
        assert_eq!((counts.unproven, counts.proven), (DERIVED_KEYS_UNPROVEN_MAX, 20));
        assert_eq!(counts.pending, 0);
        assert!(cache.shared.lock().is_consistent());
    }

    #[test]
    fn a_full_proven_tier_evicts_unused_keys() {
        let cache = KeyCache::new();
        let all = DERIVED_KEYS_PROVEN_MAX + DERIVED_KEYS_UNPROVEN_MAX;
        for number in 0..all {
            fill(&cache, &format!("good {number}"), 0).mark_proven();
        }
        assert!(is_cached(&cache, "good 0", 1), "the tiers have just enough room");
        for number in 0..KEY_SECOND_CHANCES_MAX {
            fill(&cache, &format!("late {number}"), 1).mark_proven();
        }
        assert!(is_cached(&cache, "good 0", 1), "it was used since");
        assert!(!is_cached(&cache, "good 1", 1));
        assert_eq!(cache.counts().proven, DERIVED_KEYS_PROVEN_MAX);
        assert_eq!(cache.counts().unproven, DERIVED_KEYS_UNPROVEN_MAX);
    }

    #[test]
    fn eviction_ends_even_if_all_keys_are_in_use() {
        let cache = KeyCache::new();
        let all = DERIVED_KEYS_PROVEN_MAX + DERIVED_KEYS_UNPROVEN_MAX;
        for number in 0..all {
            fill(&cache, &format!("good {number}"), 0).mark_proven();
        }
        for number in 0..all {
            assert!(is_cached(&cache, &format!("good {number}"), 1));
        }
        fill(&cache, "one more", 1);
        assert_eq!(cache.counts().proven, DERIVED_KEYS_PROVEN_MAX);
    }

    #[test]
    fn idle_keys_expire_and_used_ones_stay() {
        let cache = KeyCache::new();
        let idle_seconds = DERIVED_KEY_IDLE.as_secs();
        for number in 0..KEY_SWEEP_STEP {
            fill(&cache, &format!("idle {number}"), 0).mark_proven();
        }
        let kept = fill(&cache, "kept", 0);
        kept.mark_proven();
        fill(&cache, "unproven", idle_seconds);
        cache.sweep(idle_seconds);
        let counts = cache.counts();
        assert_eq!((counts.unproven, counts.proven), (1, KEY_SWEEP_STEP + 1));
        assert!(is_cached(&cache, "kept", idle_seconds));
        cache.sweep(idle_seconds + 1);
        let counts = cache.counts();
        assert_eq!((counts.unproven, counts.proven), (1, 1));
        assert!(is_cached(&cache, "kept", idle_seconds + 1));
        cache.sweep(10 * idle_seconds);
        let counts = cache.counts();
        assert_eq!((counts.pending, counts.unproven, counts.proven), (0, 0, 0));
        assert_eq!(Arc::strong_count(&kept), 1);
    }

    #[test]
    fn a_dropped_claim_cancels_its_waiters_and_the_next_lookup_derives() {
        let cache = KeyCache::new();
        let (claim, first) = start(&cache, "key");
        let second = join(&cache, "key");
        drop(claim);
        assert!(block_on(first).is_err() && block_on(second).is_err());
        assert_eq!(cache.counts().pending, 0);
        fill(&cache, "key", 0);
        assert!(is_cached(&cache, "key", 0));
    }

    #[test]
    fn a_panic_in_a_derivation_cancels_its_waiters() {
        let cache = KeyCache::new();
        let (claim, waiter) = start(&cache, "key");
        let panicked = thread::spawn(move || {
            let _claim = claim;
            panic!("on purpose");
        });
        assert!(panicked.join().is_err());
        assert!(block_on(waiter).is_err());
    }

    #[test]
    fn a_derivation_is_wanted_as_long_as_it_has_waiters() {
        let cache = KeyCache::new();
        let (claim, first) = start(&cache, "key");
        let second = join(&cache, "key");
        drop(first);
        assert!(claim.is_wanted());
        drop(second);
        assert!(!claim.is_wanted());
        // The slot is free immediately, and the old claim does not affect the new one.
        let (next, waiter) = start(&cache, "key");
        assert!(!claim.is_wanted());
        assert!(claim.begin(&salt()).is_none());
        drop(claim);
        assert_eq!(cache.counts().derivations_started, 0);
        next.complete(&salt(), &raw_key());
        assert!(block_on(waiter).is_ok());
    }

    #[test]
    fn cancelled_waiters_do_not_accumulate() {
        let cache = KeyCache::new();
        let (claim, _waiter) = start(&cache, "key");
        for _ in 0..10_000 {
            drop(join(&cache, "key"));
        }
        let pending = cache.shared.lock().take_pending(&claim.id, claim.number);
        assert!(pending.expect("it is being derived").waiters_len() < 16);
    }

    #[test]
    fn no_key_of_an_old_salt_survives_a_clear() {
        let cache = KeyCache::new();
        fill(&cache, "ready", 0);
        let (claim, waiter) = start(&cache, "pending");
        cache.clear();
        assert!(!is_cached(&cache, "ready", 0));
        assert!(block_on(waiter).is_err());
        let (next, _waiter) = start(&cache, "pending");
        claim.complete(&salt(), &raw_key());
        assert!(!is_cached(&cache, "pending", 0));
        assert!(next.is_wanted());
    }

    #[test]
    fn two_caches_give_a_user_key_different_ids() {
        let (one, other) = (KeyCache::new(), KeyCache::new());
        assert_ne!(start(&one, "key").0.id, start(&other, "key").0.id);
    }
}
