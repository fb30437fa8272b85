//! Which peer had an entry when it was last asked for: a guess that saves questions, never an answer.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::limits::LOCATIONS_COUNT;
use crate::service::PeerId;

/// One slot for each hash: what comes later takes the place of what was there. Empty slots are zero.
#[derive(Debug)]
pub(super) struct OwnerHints {
    slots: Box<[AtomicU64]>,
    hasher: RandomState,
    /// Raised when the order of the peers changes.
    order: AtomicU64,
}

/// Where an entry probably is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) peer: PeerId,
    /// No nearer peer had it.
    pub(super) is_nearest: bool,
}

const PEER_BITS: u32 = 24;

impl Default for OwnerHints {
    fn default() -> Self {
        let slots = (0..LOCATIONS_COUNT).map(|_| AtomicU64::new(0)).collect();
        Self { slots, hasher: RandomState::new(), order: AtomicU64::new(0) }
    }
}

impl OwnerHints {
    pub(super) fn get(&self, key: &str, environment: Option<&str>) -> Option<Location> {
        let (slot, mark) = self.slot(key, environment);
        let stored = slot.load(Ordering::Relaxed);
        let peer = u32::try_from(stored & ((1 << PEER_BITS) - 1)).ok()?.checked_sub(1).map(PeerId::new)?;
        let is_same = stored >> (PEER_BITS + 1) == mark;
        is_same.then_some(Location { peer, is_nearest: stored >> PEER_BITS & 1 == 1 })
    }

    /// Which order of the peers counts.
    pub(super) fn order(&self) -> u64 {
        self.order.load(Ordering::SeqCst)
    }

    /// Remembers where an entry was found by a search that began with this order of the peers.
    pub(super) fn set(&self, key: &str, environment: Option<&str>, location: Location, order: u64) {
        let (slot, mark) = self.slot(key, environment);
        let peer = u64::from(location.peer.number()) + 1;
        if peer >= 1 << PEER_BITS {
            // After millions of peers, entries are looked for with all of them.
            return;
        }
        let is_nearest = location.is_nearest && order == self.order();
        let value = mark << (PEER_BITS + 1) | u64::from(is_nearest) << PEER_BITS | peer;
        slot.store(value, Ordering::Relaxed);
    }

    /// Keeps where entries are, and forgets which peer is the nearest.
    pub(super) fn order_changed(&self) {
        self.order.fetch_add(1, Ordering::SeqCst);
        for slot in &self.slots {
            slot.fetch_and(!(1 << PEER_BITS), Ordering::Relaxed);
        }
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

    const fn there(peer: u32, is_nearest: bool) -> Location {
        Location { peer: PeerId::new(peer), is_nearest }
    }

    #[test]
    fn the_last_place_of_an_entry_is_remembered() {
        let locations = OwnerHints::default();
        assert_eq!(locations.get("k", None), None);
        locations.set("k", None, there(0, false), 0);
        locations.set("k", Some("e"), there(127, true), 0);
        assert_eq!(locations.get("k", None), Some(there(0, false)));
        assert_eq!(locations.get("k", Some("e")), Some(there(127, true)));
        locations.set("k", None, there(5, true), 0);
        assert_eq!(locations.get("k", None), Some(there(5, true)));
        locations.forget("k", None);
        assert_eq!(locations.get("k", None), None);
        locations.set("k", None, there(1 << PEER_BITS, false), 0);
        assert_eq!(locations.get("k", None), None);
        // However many there are, one is never taken for another, and memory does not grow.
        for number in 0..3 * LOCATIONS_COUNT {
            let peer = u32::try_from(number % 128).expect("it is small");
            locations.set(&number.to_string(), None, there(peer, false), 0);
        }
        for number in 0..3 * LOCATIONS_COUNT {
            let found = locations.get(&number.to_string(), None);
            assert!(found.is_none_or(|found| found.peer.number() as usize == number % 128));
        }
    }

    #[test]
    fn a_new_order_of_the_peers_leaves_the_places_and_not_the_nearest() {
        let locations = OwnerHints::default();
        locations.set("k", None, there(3, true), locations.order());
        let before = locations.order();
        locations.order_changed();
        assert_eq!(locations.get("k", None), Some(there(3, false)));
        // A search that began before.
        locations.set("k", None, there(3, true), before);
        assert_eq!(locations.get("k", None), Some(there(3, false)));
        locations.set("k", None, there(3, true), locations.order());
        assert_eq!(locations.get("k", None), Some(there(3, true)));
    }
}
