//! Owner hints: which peer had an entry when it was last found or listed. A hint saves peer requests, and tells an entry
//! whose owner does not reply from one that does not exist, but is never trusted as the result.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::limits::OWNER_HINTS_COUNT;
use crate::model::EntryId;
use crate::service::PeerId;

/// Direct-mapped table of owner hints: an entry replaces the previous one in its slot. Empty slots are zero.
#[derive(Debug)]
pub(super) struct OwnerHints {
    slots: Box<[AtomicU64]>,
    hasher: RandomState,
    /// Number of the order of the peers, incremented when the order changes.
    order: AtomicU64,
}

/// Hint to the owner of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OwnerHint {
    pub(super) peer: PeerId,
    /// Whether no peer before it in the configuration had the entry.
    pub(super) is_nearest: bool,
}

const PEER_BITS: u32 = 24;

impl Default for OwnerHints {
    fn default() -> Self {
        let slots = (0..OWNER_HINTS_COUNT).map(|_| AtomicU64::new(0)).collect();
        Self { slots, hasher: RandomState::new(), order: AtomicU64::new(0) }
    }
}

impl OwnerHints {
    /// Returns the hint for an entry, if there is one.
    pub(super) fn get(&self, key: &str, environment: Option<&str>) -> Option<OwnerHint> {
        let (slot, tag) = self.slot(key, environment);
        let stored = slot.load(Ordering::Relaxed);
        let peer = u32::try_from(stored & ((1 << PEER_BITS) - 1)).ok()?.checked_sub(1).map(PeerId::new)?;
        let is_same = stored >> (PEER_BITS + 1) == tag;
        is_same.then_some(OwnerHint { peer, is_nearest: stored >> PEER_BITS & 1 == 1 })
    }

    /// Returns whether the last owner of an entry is among these peers.
    pub(super) fn is_at(&self, key: &str, environment: Option<&str>, peers: &[PeerId]) -> bool {
        self.get(key, environment).is_some_and(|hint| peers.contains(&hint.peer))
    }

    /// Records the owner of a listed entry, unless that would replace another hint: those of lookups matter more, and
    /// a long list would replace all of them.
    pub(super) fn learn(&self, id: &EntryId, peer: PeerId) {
        let environment = id.environment.as_deref();
        if self.slot(&id.key, environment).0.load(Ordering::Relaxed) == 0 {
            self.set(&id.key, environment, OwnerHint { peer, is_nearest: false }, self.order());
        }
    }

    /// Returns the number of the current order of the peers.
    pub(super) fn order(&self) -> u64 {
        self.order.load(Ordering::SeqCst)
    }

    /// Records the owner of an entry, found by a search that began under this order of the peers.
    pub(super) fn set(&self, key: &str, environment: Option<&str>, location: OwnerHint, order: u64) {
        let (slot, tag) = self.slot(key, environment);
        let peer = u64::from(location.peer.number()) + 1;
        if peer >= 1 << PEER_BITS {
            // Peer IDs above the limit (after millions of peers) get no hints, so all peers are queried.
            return;
        }
        let is_nearest = location.is_nearest && order == self.order();
        let value = tag << (PEER_BITS + 1) | u64::from(is_nearest) << PEER_BITS | peer;
        slot.store(value, Ordering::Relaxed);
    }

    /// Keeps the owners, but clears which of them are the nearest: the order of the peers has changed.
    pub(super) fn order_changed(&self) {
        self.order.fetch_add(1, Ordering::SeqCst);
        for slot in &self.slots {
            slot.fetch_and(!(1 << PEER_BITS), Ordering::Relaxed);
        }
    }

    /// Removes the hint for an entry.
    pub(super) fn forget(&self, key: &str, environment: Option<&str>) {
        if self.get(key, environment).is_some() {
            self.slot(key, environment).0.store(0, Ordering::Relaxed);
        }
    }

    /// Returns the slot of an entry, and the tag that distinguishes it from other entries of that slot.
    fn slot(&self, key: &str, environment: Option<&str>) -> (&AtomicU64, u64) {
        let hash = self.hasher.hash_one((key, environment));
        let index = usize::try_from(hash).unwrap_or(0) % OWNER_HINTS_COUNT;
        (&self.slots[index], hash >> (PEER_BITS + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(peer: u32, is_nearest: bool) -> OwnerHint {
        OwnerHint { peer: PeerId::new(peer), is_nearest }
    }

    #[test]
    fn the_last_owner_of_an_entry_is_recorded() {
        let hints = OwnerHints::default();
        assert_eq!(hints.get("k", None), None);
        hints.set("k", None, at(0, false), 0);
        hints.set("k", Some("e"), at(127, true), 0);
        assert_eq!(hints.get("k", None), Some(at(0, false)));
        assert_eq!(hints.get("k", Some("e")), Some(at(127, true)));
        hints.set("k", None, at(5, true), 0);
        assert_eq!(hints.get("k", None), Some(at(5, true)));
        hints.forget("k", None);
        assert_eq!(hints.get("k", None), None);
        hints.set("k", None, at(1 << PEER_BITS, false), 0);
        assert_eq!(hints.get("k", None), None);
        // Entries that share a slot are never confused, and memory does not grow.
        for number in 0..3 * OWNER_HINTS_COUNT {
            let peer = u32::try_from(number % 128).expect("it is small");
            hints.set(&number.to_string(), None, at(peer, false), 0);
        }
        for number in 0..3 * OWNER_HINTS_COUNT {
            let found = hints.get(&number.to_string(), None);
            assert!(found.is_none_or(|found| found.peer.number() as usize == number % 128));
        }
    }

    #[test]
    fn a_new_order_of_the_peers_keeps_the_owners_and_clears_the_nearest() {
        let hints = OwnerHints::default();
        hints.set("k", None, at(3, true), hints.order());
        let before = hints.order();
        hints.order_changed();
        assert_eq!(hints.get("k", None), Some(at(3, false)));
        // A search that began under the previous order.
        hints.set("k", None, at(3, true), before);
        assert_eq!(hints.get("k", None), Some(at(3, false)));
        hints.set("k", None, at(3, true), hints.order());
        assert_eq!(hints.get("k", None), Some(at(3, true)));
    }
}
