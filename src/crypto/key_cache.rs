//! Derived keys of the process: at most one derivation per user key at a time, and a bounded memory
//! of their results.
//!
//! Running derivations and results share one map behind one lock, so there is no gap between the
//! look and the derivation. Results live in two tiers: a key that has opened something is proven,
//! and keys that have not (typing errors, guesses) only ever push out each other. A cached key that
//! turns out to be wrong costs a microsecond to find out, so nothing has to remember that it is.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use zeroize::Zeroizing;

use super::derived_key::DerivedKey;
use super::kdf::{Derivation, RawKey, Salt};
use super::key_map::{Found, KeyId, Slots, Tier, Waiter};
use super::mac::MacKey;
use crate::model::UserKey;

/// Entries that one hold of the lock looks at while sweeping.
const SWEEP_STEP: usize = 256;

/// What there is for a user key.
pub enum Lookup {
    /// The key was in the cache. It may be the wrong one for an entry.
    Ready(Arc<DerivedKey>),
    /// Somebody else is deriving it.
    Wait(Waiter),
    /// Nobody is: the caller gives the ticket to the pool, and waits as the others do.
    Derive(DerivationClaim, Waiter),
}

/// Figures for the statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Derivations that began.
    pub derivations_started: u64,
    /// Derivations that came to a key; the others were cancelled, or are running.
    pub derivations_completed: u64,
    /// Keys that are derived or queued for it.
    pub pending: usize,
    /// Keys in the tier for those that have opened nothing, as far as the cache has noticed.
    pub unproven: usize,
    /// Keys in the other tier.
    pub proven: usize,
}

/// The cache; clones are handles to the same one.
#[derive(Clone)]
pub struct KeyCache {
    shared: Arc<Shared>,
}

impl KeyCache {
    /// An empty cache with its own secret.
    ///
    /// # Panics
    /// If the operating system has no random bytes: Linux has them once it has booted.
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

    /// Identifies the user key with these header bytes within this process.
    pub fn id_of(&self, user_key: &[u8]) -> [u8; 32] {
        self.shared.id_key.mac(user_key)
    }

    /// The key of the user key with these header bytes if it is there; nobody is asked to derive it.
    pub fn cached(&self, user_key: &[u8], now_seconds: u64) -> Option<Arc<DerivedKey>> {
        let id = self.shared.id_key.mac(user_key);
        let key = self.shared.lock().ready(&id)?;
        key.touch(now_seconds);
        Some(key)
    }

    /// Finds the key of `user_key`, or who derives it. `now_seconds` is of any clock that never goes
    /// back; hits are the caller's to count, because a counter here would be one for all cores.
    pub fn lookup(&self, user_key: &UserKey, now_seconds: u64) -> Lookup {
        let id = self.shared.id_key.mac(user_key.header_bytes());
        let found = self.shared.lock().find(&id, now_seconds);
        match found {
            Found::Ready(key) => Lookup::Ready(key),
            Found::Pending(waiter) => Lookup::Wait(waiter),
            Found::Nothing(number, waiter) => {
                let (shared, user_key) = (Arc::clone(&self.shared), user_key.clone());
                Lookup::Derive(DerivationClaim { shared, id, number, user_key, now_seconds }, waiter)
            }
        }
    }

    /// Forgets keys that were not used for
    /// [`DERIVED_KEY_IDLE`](crate::limits::DERIVED_KEY_IDLE). For a background thread, now and then;
    /// holds the lock for short steps only.
    pub fn sweep(&self, now_seconds: u64) {
        for tier in [Tier::Unproven, Tier::Proven] {
            let mut left = self.shared.lock().tier_len(tier);
            while left > 0 {
                let step = left.min(SWEEP_STEP);
                let expired = self.shared.lock().sweep_step(tier, step, now_seconds);
                // The lock is free again while the keys are wiped.
                drop(expired);
                left -= step;
            }
        }
    }

    /// Forgets all keys and disowns the running derivations, whose waiters are told that they were
    /// given up: for a new salt, and for the end.
    pub fn clear(&self) {
        let everything = self.shared.lock().take_all();
        // The lock is free again while keys are wiped and waiters wake.
        drop(everything);
    }

    /// Figures for the statistics.
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

/// The right and the duty to derive one key. Dropped before its time (a full queue, a panic, a
/// stop), it takes its slot along and its waiters are told, so nobody waits for ever and the next
/// lookup derives anew.
pub struct DerivationClaim {
    shared: Arc<Shared>,
    id: KeyId,
    number: u64,
    user_key: UserKey,
    now_seconds: u64,
}

impl DerivationClaim {
    /// Begins the derivation, unless all who waited for it have gone away.
    pub(super) fn begin(&self, salt: &Salt) -> Option<Derivation> {
        self.is_wanted().then(|| {
            self.shared.derivations_started.fetch_add(1, Relaxed);
            Derivation::new(&self.user_key.password(), salt.as_bytes())
        })
    }

    /// Whether anybody still waits. Once this is false the slot is given up at once, so that whoever
    /// comes next derives anew instead of joining a job that is about to end.
    pub fn is_wanted(&self) -> bool {
        self.shared.lock().keep_if_wanted(&self.id, self.number)
    }

    /// Puts the derived key into the cache and wakes all who wait for it.
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
        // Wakes the waiters, if there are any, when the lock is free again.
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
        // Nothing in a critical section panics half-way through a change.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use futures_lite::future::block_on;

    use super::super::fernet::FernetKey;
    use super::super::kdf::advance;
    use super::super::key_map::SECOND_CHANCES_MAX;
    use super::super::test_data::{salt, start};
    use super::*;
    use crate::limits::{DERIVED_KEY_IDLE, DERIVED_KEYS_PROVEN_MAX, DERIVED_KEYS_UNPROVEN_MAX};

    fn user_key(text: &str) -> UserKey {
        UserKey::from_header(text.as_bytes())
    }

    /// A key that is as good as derived, and quicker.
    fn raw_key() -> RawKey {
        RawKey::new([7; 32])
    }

    /// Puts a key into the cache.
    fn fill(cache: &KeyCache, text: &str, now_seconds: u64) -> Arc<DerivedKey> {
        match cache.lookup(&user_key(text), now_seconds) {
            Lookup::Derive(ticket, waiter) => {
                ticket.complete(&salt(), &raw_key());
                block_on(waiter).expect("the ticket was completed")
            }
            Lookup::Ready(_) | Lookup::Wait(_) => panic!("{text} is known already"),
        }
    }

    fn derive(ticket: DerivationClaim) {
        let mut derivation = ticket.begin(&salt()).expect("somebody waits for it");
        while !derivation.is_done() {
            advance([&mut derivation]);
        }
        ticket.complete(&salt(), &derivation.key());
    }

    fn is_cached(cache: &KeyCache, text: &str, now_seconds: u64) -> bool {
        // The ticket of a miss is dropped here, and its slot with it.
        matches!(cache.lookup(&user_key(text), now_seconds), Lookup::Ready(_))
    }

    fn join(cache: &KeyCache, text: &str) -> Waiter {
        match cache.lookup(&user_key(text), 0) {
            Lookup::Wait(waiter) => waiter,
            Lookup::Ready(_) | Lookup::Derive(..) => panic!("{text} is not being derived"),
        }
    }

    #[test]
    fn a_thousand_at_once_make_one_derivation() {
        const THREADS: usize = 1000;
        let (cache, barrier) = (KeyCache::new(), Barrier::new(THREADS));
        let ask = || {
            barrier.wait();
            match cache.lookup(&user_key("the same"), 0) {
                Lookup::Ready(key) => key,
                Lookup::Wait(waiter) => block_on(waiter).expect("it is derived"),
                Lookup::Derive(ticket, waiter) => {
                    derive(ticket);
                    block_on(waiter).expect("it is derived")
                }
            }
        };
        let keys: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(ask)).collect();
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
        let (ticket, waiter) = start(&cache, "pässwört");
        derive(ticket);
        let key = block_on(waiter).expect("it is derived");
        let password = user_key("pässwört").password();
        let expected = FernetKey::new(&super::super::derive(&password, salt().as_bytes()));
        assert!(key.fernet().verifies_raw(&expected.seal_raw(b"", 0)));
    }

    #[test]
    fn a_wrong_key_is_ready_from_the_cache_too() {
        let cache = KeyCache::new();
        let key = fill(&cache, "wrong", 0);
        let token = FernetKey::new(&RawKey::new([8; 32])).seal_raw(b"{}", 0);
        assert!(!key.fernet().verifies_raw(&token));
        assert!(is_cached(&cache, "wrong", 0));
    }

    #[test]
    fn junk_evicts_junk_only() {
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
    }

    #[test]
    fn a_full_proven_tier_evicts_what_is_not_used() {
        let cache = KeyCache::new();
        let all = DERIVED_KEYS_PROVEN_MAX + DERIVED_KEYS_UNPROVEN_MAX;
        for number in 0..all {
            fill(&cache, &format!("good {number}"), 0).mark_proven();
        }
        assert!(is_cached(&cache, "good 0", 1), "the tiers have just enough room");
        for number in 0..SECOND_CHANCES_MAX {
            fill(&cache, &format!("late {number}"), 1).mark_proven();
        }
        assert!(is_cached(&cache, "good 0", 1), "it was used since");
        assert!(!is_cached(&cache, "good 1", 1));
        assert_eq!(cache.counts().proven, DERIVED_KEYS_PROVEN_MAX);
        assert_eq!(cache.counts().unproven, DERIVED_KEYS_UNPROVEN_MAX);
    }

    #[test]
    fn eviction_ends_even_if_all_are_in_use() {
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
        for number in 0..SWEEP_STEP {
            fill(&cache, &format!("idle {number}"), 0).mark_proven();
        }
        let kept = fill(&cache, "kept", 0);
        kept.mark_proven();
        fill(&cache, "unproven", idle_seconds);
        cache.sweep(idle_seconds);
        let counts = cache.counts();
        assert_eq!((counts.unproven, counts.proven), (1, SWEEP_STEP + 1));
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
    fn a_dropped_ticket_tells_those_who_wait_and_the_next_derives() {
        let cache = KeyCache::new();
        let (ticket, first) = start(&cache, "key");
        let second = join(&cache, "key");
        drop(ticket);
        assert!(block_on(first).is_err() && block_on(second).is_err());
        assert_eq!(cache.counts().pending, 0);
        fill(&cache, "key", 0);
        assert!(is_cached(&cache, "key", 0));
    }

    #[test]
    fn a_panic_in_a_derivation_tells_those_who_wait() {
        let cache = KeyCache::new();
        let (ticket, waiter) = start(&cache, "key");
        let panicked = thread::spawn(move || {
            let _ticket = ticket;
            panic!("on purpose");
        });
        assert!(panicked.join().is_err());
        assert!(block_on(waiter).is_err());
    }

    #[test]
    fn a_derivation_is_wanted_as_long_as_anybody_waits() {
        let cache = KeyCache::new();
        let (ticket, first) = start(&cache, "key");
        let second = join(&cache, "key");
        drop(first);
        assert!(ticket.is_wanted());
        drop(second);
        assert!(!ticket.is_wanted());
        // The slot is free at once, and the old ticket can't harm the new one.
        let (next, waiter) = start(&cache, "key");
        assert!(!ticket.is_wanted());
        assert!(ticket.begin(&salt()).is_none());
        drop(ticket);
        assert_eq!(cache.counts().derivations_started, 0);
        next.complete(&salt(), &raw_key());
        assert!(block_on(waiter).is_ok());
    }

    #[test]
    fn waiters_that_left_do_not_pile_up() {
        let cache = KeyCache::new();
        let (ticket, _waiter) = start(&cache, "key");
        for _ in 0..10_000 {
            drop(join(&cache, "key"));
        }
        let pending = cache.shared.lock().take_pending(&ticket.id, ticket.number);
        assert!(pending.expect("it is being derived").waiters_len() < 16);
    }

    #[test]
    fn nothing_of_an_old_salt_survives_a_clear() {
        let cache = KeyCache::new();
        fill(&cache, "ready", 0);
        let (ticket, waiter) = start(&cache, "pending");
        cache.clear();
        assert!(!is_cached(&cache, "ready", 0));
        assert!(block_on(waiter).is_err());
        let (next, _waiter) = start(&cache, "pending");
        ticket.complete(&salt(), &raw_key());
        assert!(!is_cached(&cache, "pending", 0));
        assert!(next.is_wanted());
    }

    #[test]
    fn no_two_caches_agree_on_the_id_of_a_user_key() {
        let (one, other) = (KeyCache::new(), KeyCache::new());
        assert_ne!(start(&one, "key").0.id, start(&other, "key").0.id);
    }
}
