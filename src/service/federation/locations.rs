//! Which peer had an entry when it was last asked for: a guess that saves questions, never an answer.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::limits::LOCATIONS_COUNT;

/// One slot for each hash: what comes later takes the place of what was there. Empty slots are zero.
#[derive(Debug)]
pub(super) struct Locations {
    slots: Box<[AtomicU64]>,
    hasher: RandomState,
}

/// Where an entry probably is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Location {
    /// The peer's place in the configuration.
    pub(super) peer: usize,
    /// No nearer peer had it.
    pub(super) is_nearest: bool,
}

const PEER_BITS: u32 = 16;

impl Default for Locations {
    fn default() -> Self {
        let slots = (0..LOCATIONS_COUNT).map(|_| AtomicU64::new(0)).collect();
        Self { slots, hasher: RandomState::new() }
    }
}

impl Locations {
    pub(super) fn get(&self, key: &str, environment: Option<&str>) -> Option<Location> {
        let (slot, mark) = self.slot(key, environment);
        let stored = slot.load(Ordering::Relaxed);
        let peer = usize::try_from(stored & ((1 << PEER_BITS) - 1)).ok()?.checked_sub(1)?;
        let is_same = stored >> (PEER_BITS + 1) == mark;
        is_same.then_some(Location { peer, is_nearest: stored >> PEER_BITS & 1 == 1 })
    }

    pub(super) fn set(&self, key: &str, environment: Option<&str>, location: Location) {
        let (slot, mark) = self.slot(key, environment);
        let peer = location.peer as u64 + 1;
        debug_assert!(peer < 1 << PEER_BITS, "there are not so many peers");
        let value = mark << (PEER_BITS + 1) | u64::from(location.is_nearest) << PEER_BITS | peer;
        slot.store(value, Ordering::Relaxed);
    }

    /// Nothing is remembered any more.
    pub(super) fn clear(&self) {
        self.slots.iter().for_each(|slot| slot.store(0, Ordering::Relaxed));
    }

    pub(super) fn forget(&self, key: &str, environment: Option<&str>) {
        if self.get(key, environment).is_some() {
            self.slot(key, environment).0.store(0, Ordering::Relaxed);
        }
    }

    /// The slot, and what tells this entry from others of the same slot.
    fn slot(&self, key: &str, environment: Option<&str>) -> (&AtomicU64, u64) {
        let hash = self.hasher.hash_one((key, environment));
        let index = usize::try_from(hash).unwrap_or(0) % LOCATIONS_COUNT;
        (&self.slots[index], hash >> (PEER_BITS + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_place_of_an_entry_is_remembered() {
        let locations = Locations::default();
        let there = |peer, is_nearest| Location { peer, is_nearest };
        assert_eq!(locations.get("k", None), None);
        locations.set("k", None, there(0, false));
        locations.set("k", Some("e"), there(127, true));
        assert_eq!(locations.get("k", None), Some(there(0, false)));
        let cleared = Locations::default();
        cleared.set("k", None, there(0, false));
        cleared.clear();
        assert_eq!(cleared.get("k", None), None);
        assert_eq!(locations.get("k", Some("e")), Some(there(127, true)));
        locations.set("k", None, there(5, true));
        assert_eq!(locations.get("k", None), Some(there(5, true)));
        locations.forget("k", None);
        assert_eq!(locations.get("k", None), None);
        // However many there are, one is never taken for another, and memory does not grow.
        for number in 0..3 * LOCATIONS_COUNT {
            locations.set(&number.to_string(), None, there(number % 128, false));
        }
        for number in 0..3 * LOCATIONS_COUNT {
            let found = locations.get(&number.to_string(), None);
            assert!(found.is_none_or(|found| found.peer == number % 128));
        }
    }
}
