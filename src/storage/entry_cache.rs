//! Cache of encrypted entries, coherent with the database across all executors.
//!
//! Readers look up the entries of a key; on a miss they read the database and fill the cache. The writer updates
//! cached entries before it acknowledges a write. A fill that began before a commit must not overwrite the entries that
//! the commit published. Therefore each stripe has an epoch: the writer closes the stripe before COMMIT, publishes, and
//! reopens it with the next epoch. A fill is accepted only in the epoch in which its read began, and never while the
//! stripe is closed.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{Arc, PoisonError};

use hashbrown::HashTable;

use super::feed::{Commit, EntryChange, Subscriber};
use crate::limits::ENTRY_CACHE_STRIPES_COUNT;
use crate::model::{KeyEntries, SealedEntry, allocation};
use crate::sync::{Mutex, MutexGuard};

/// Process-wide cache of [`KeyEntries`], bounded by bytes, with second-chance (CLOCK) eviction.
#[derive(Debug)]
pub struct EntryCache {
    hasher: RandomState,
    stripes: Vec<Mutex<Stripe>>,
}

/// Permission to fill the cache with the result of a later read.
#[derive(Debug)]
pub struct FillTicket {
    hash: u64,
    epoch: Option<u64>,
}

#[derive(Debug, Default)]
struct Stripe {
    table: HashTable<usize>,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    hand: usize,
    bytes: usize,
    bytes_max: usize,
    epoch: u64,
    closed: bool,
}

#[derive(Debug)]
struct Slot {
    hash: u64,
    key: Box<str>,
    group: Arc<KeyEntries>,
    bytes: usize,
    used: bool,
}

impl EntryCache {
    /// Creates an empty cache that takes about `bytes_max` bytes when full.
    pub fn new(bytes_max: usize) -> Self {
        let stripe = || Stripe { bytes_max: bytes_max / ENTRY_CACHE_STRIPES_COUNT, ..Stripe::default() };
        Self {
            hasher: RandomState::new(),
            stripes: (0..ENTRY_CACHE_STRIPES_COUNT).map(|_| Mutex::new(stripe())).collect(),
        }
    }

    /// Returns the entries of a key, if they are cached.
    pub fn get(&self, key: &str) -> Option<Arc<KeyEntries>> {
        let hash = self.hasher.hash_one(key);
        self.stripe(hash).get(hash, key)
    }

    /// Issues a ticket for [`Self::fill`]. Must be called before the database is read.
    pub fn prepare_fill(&self, key: &str) -> FillTicket {
        let hash = self.hasher.hash_one(key);
        let stripe = self.stripe(hash);
        FillTicket { hash, epoch: (!stripe.closed).then_some(stripe.epoch) }
    }

    /// Caches entries read from the database, unless a commit has touched the stripe since the ticket was issued.
    pub fn fill(&self, ticket: &FillTicket, key: &str, group: &Arc<KeyEntries>) {
        let mut stripe = self.stripe(ticket.hash);
        let is_current = !stripe.closed && ticket.epoch == Some(stripe.epoch);
        // Entries that are cached already are the same and know more: their writer, and that they are canonical.
        if is_current && !group.rows.is_empty() && stripe.find(ticket.hash, key).is_none() {
            stripe.insert(ticket.hash, key, Arc::clone(group));
        }
    }

    /// Closes the stripes of keys, before COMMIT: until [`Self::reopen`] they reject fills.
    fn close<'a>(&self, keys: impl Iterator<Item = &'a str>) {
        for key in keys {
            self.stripe(self.hasher.hash_one(key)).closed = true;
        }
    }

    /// Replaces the cached entries of `key`, if there are any, by the result of `change`, after COMMIT.
    fn publish_one(&self, key: &str, change: impl FnOnce(&KeyEntries) -> KeyEntries) {
        let hash = self.hasher.hash_one(key);
        let mut stripe = self.stripe(hash);
        if let Some(old) = stripe.get(hash, key) {
            stripe.remove(hash, key);
            let new = change(&old);
            if !new.rows.is_empty() {
                stripe.insert(hash, key, Arc::new(new));
            }
        }
    }

    /// Reopens the stripes of keys, after publishing or a rollback: they accept fills from reads that begin now.
    fn reopen<'a>(&self, keys: impl Iterator<Item = &'a str>) {
        for key in keys {
            let mut stripe = self.stripe(self.hasher.hash_one(key));
            if stripe.closed {
                stripe.closed = false;
                stripe.epoch += 1;
            }
        }
    }

    /// Clears the cache, because another process has changed the database.
    fn clear(&self) {
        for stripe in &self.stripes {
            let mut stripe = stripe.lock().unwrap_or_else(PoisonError::into_inner);
            let Stripe { epoch, closed, bytes_max, .. } = *stripe;
            *stripe = Stripe { epoch: epoch + 1, closed, bytes_max, ..Stripe::default() };
        }
    }

    /// Returns the cached bytes and the number of cached keys.
    pub fn usage(&self) -> (usize, usize) {
        self.stripes.iter().fold((0, 0), |(bytes, keys), stripe| {
            let stripe = stripe.lock().unwrap_or_else(PoisonError::into_inner);
            (bytes + stripe.bytes, keys + stripe.table.len())
        })
    }

    /// Returns other keys in the stripe of this one.
    #[cfg(all(test, feature = "interleavings"))]
    pub(super) fn neighbours_of(&self, key: &str) -> impl Iterator<Item = String> {
        let index_of = |key: &str| stripe_index(self.hasher.hash_one(key));
        let index = index_of(key);
        (0..).map(|number: u32| number.to_string()).filter(move |other| index_of(other) == index)
    }

    fn stripe(&self, hash: u64) -> MutexGuard<'_, Stripe> {
        // A poisoned stripe is still valid: each operation leaves it consistent, or panics before it changes it.
        self.stripes[stripe_index(hash)].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stripe_index(hash: u64) -> usize {
    // The table uses the low bits of the hash, so higher bits select the stripe.
    usize::try_from(hash >> 32).unwrap_or_default() % ENTRY_CACHE_STRIPES_COUNT
}

impl Subscriber for EntryCache {
    fn prepare(&self, changes: &[EntryChange]) {
        self.close(changes.iter().map(key_of));
    }

    fn publish(&self, commit: &Commit) {
        for change in &commit.changes {
            self.publish_one(key_of(change), |group| with_row(group, change.entry().id, change.after()));
        }
    }

    fn settle(&self, changes: &[EntryChange]) {
        self.reopen(changes.iter().map(key_of));
    }

    fn known(&self, key: &str) -> Option<Arc<KeyEntries>> {
        self.get(key)
    }

    fn reset(&self) {
        self.clear();
    }
}

fn key_of(change: &EntryChange) -> &str {
    &change.entry().key
}

impl Stripe {
    fn find(&self, hash: u64, key: &str) -> Option<usize> {
        let same = |&index: &usize| self.slots[index].as_ref().is_some_and(|slot| &*slot.key == key);
        self.table.find(hash, same).copied()
    }

    fn get(&mut self, hash: u64, key: &str) -> Option<Arc<KeyEntries>> {
        let index = self.find(hash, key)?;
        let slot = self.slots[index].as_mut()?;
        slot.used = true;
        Some(Arc::clone(&slot.group))
    }

    fn insert(&mut self, hash: u64, key: &str, group: Arc<KeyEntries>) {
        self.remove(hash, key);
        let bytes = size_of::<Slot>() + allocation(key.len()) + group.weight();
        if bytes > self.bytes_max / 2 {
            return;
        }
        while self.bytes + bytes > self.bytes_max {
            self.evict_one();
        }
        let slot = Some(Slot { hash, key: key.into(), group, bytes, used: false });
        let index = match self.free.pop() {
            Some(index) => {
                self.slots[index] = slot;
                index
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        };
        let slots = &self.slots;
        self.table.insert_unique(hash, index, |&other| slots[other].as_ref().map_or(0, |slot| slot.hash));
        self.bytes += bytes;
    }

    fn remove(&mut self, hash: u64, key: &str) {
        if let Some(index) = self.find(hash, key) {
            self.remove_slot(index);
        }
    }

    fn remove_slot(&mut self, index: usize) {
        let Some(slot) = self.slots[index].take() else { return };
        if let Ok(entry) = self.table.find_entry(slot.hash, |&other| other == index) {
            entry.remove();
        }
        self.free.push(index);
        self.bytes -= slot.bytes;
    }

    /// Evicts one slot. Called only while something is cached, so it terminates after at most two rounds.
    fn evict_one(&mut self) {
        loop {
            self.hand = (self.hand + 1) % self.slots.len().max(1);
            match self.slots.get_mut(self.hand) {
                Some(Some(slot)) if slot.used => slot.used = false,
                Some(Some(_)) => return self.remove_slot(self.hand),
                Some(None) => {}
                None => return,
            }
        }
    }
}

/// Returns the entries after the row `id` was created or changed (`after`), or removed (`None`).
fn with_row(group: &KeyEntries, id: i64, after: Option<&Arc<SealedEntry>>) -> KeyEntries {
    let mut rows: Vec<_> = group.rows.iter().filter(|row| row.id != id).map(Arc::clone).collect();
    if let Some(row) = after {
        rows.push(Arc::clone(row));
        rows.sort_by_key(|row| row.id);
    }
    KeyEntries { rows }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Ciphertext;

    const BYTES_MAX: usize = 16 << 20;
    const STRIPE_BYTES_MAX: usize = BYTES_MAX / ENTRY_CACHE_STRIPES_COUNT;

    fn group(key: &str, bytes: usize) -> Arc<KeyEntries> {
        let row = SealedEntry::new(1, key.to_owned(), None, Some(Ciphertext::from_bytes(vec![7; bytes])));
        Arc::new(KeyEntries { rows: vec![Arc::new(row)] })
    }

    fn fill(cache: &EntryCache, key: &str, bytes: usize) {
        let ticket = cache.prepare_fill(key);
        cache.fill(&ticket, key, &group(key, bytes));
    }

    fn size(cache: &EntryCache, key: &str) -> Option<usize> {
        let group = cache.get(key)?;
        group.rows[0].ciphertext.as_ref().map(|sealed| sealed.as_bytes().len())
    }

    #[test]
    fn a_fill_that_began_before_a_commit_is_rejected() {
        let cache = EntryCache::new(BYTES_MAX);
        let early = cache.prepare_fill("k");
        cache.close(["k"].into_iter());
        let during = cache.prepare_fill("k");
        cache.fill(&early, "k", &group("k", 1));
        cache.fill(&during, "k", &group("k", 2));
        assert_eq!(size(&cache, "k"), None);
        cache.reopen(["k"].into_iter());
        cache.fill(&early, "k", &group("k", 1));
        cache.fill(&during, "k", &group("k", 2));
        assert_eq!(size(&cache, "k"), None);
        fill(&cache, "k", 3);
        assert_eq!(size(&cache, "k"), Some(3));
    }

    #[test]
    fn publishing_replaces_cached_entries_and_adds_none() {
        let cache = EntryCache::new(BYTES_MAX);
        fill(&cache, "k", 3);
        let new = group("k", 4);
        for key in ["k", "other"] {
            cache.close([key].into_iter());
            cache.publish_one(key, |old| with_row(old, 1, Some(&new.rows[0])));
            cache.reopen([key].into_iter());
        }
        assert_eq!(size(&cache, "k"), Some(4));
        assert_eq!(size(&cache, "other"), None);
        cache.publish_one("k", |old| with_row(old, 1, None));
        assert_eq!(size(&cache, "k"), None);
        assert_eq!(cache.usage(), (0, 0));
    }

    #[test]
    fn bytes_are_bounded_and_used_entries_stay() {
        let cache = EntryCache::new(BYTES_MAX);
        fill(&cache, "hot", 100);
        for number in 0..200 {
            fill(&cache, &format!("junk-{number}"), STRIPE_BYTES_MAX / 10);
            assert_eq!(size(&cache, "hot"), Some(100), "after {number}");
        }
        let (bytes, keys) = cache.usage();
        assert!(bytes <= BYTES_MAX, "{bytes}");
        assert!(keys > ENTRY_CACHE_STRIPES_COUNT && keys < 200, "{keys}");
        fill(&cache, "huge", STRIPE_BYTES_MAX);
        assert_eq!(size(&cache, "huge"), None);
        cache.clear();
        assert_eq!(cache.usage(), (0, 0));
    }
}
