//! State behind the lock of the key cache: the pending derivations, and two tiers of results.
//!
//! Every operation is short and wakes no task. Values that are expensive to drop are returned, so that the
//! caller drops them after releasing the lock.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use futures_channel::oneshot;

use super::derived_key::{DerivedKey, KeyId};
use crate::limits::{
    DERIVED_KEY_IDLE, DERIVED_KEYS_PROVEN_MAX, DERIVED_KEYS_UNPROVEN_MAX, KEY_SECOND_CHANCES_MAX,
};

/// Receiver of a key; resolves to `Canceled` if the derivation was abandoned.
pub type Waiter = oneshot::Receiver<Arc<DerivedKey>>;

pub(super) enum Slot {
    Pending(Pending),
    Ready(Arc<DerivedKey>),
}

pub(super) enum Found {
    Ready(Arc<DerivedKey>),
    Pending(Waiter),
    /// There was no slot; one was created for the claim with this number.
    Vacant(u64, Waiter),
}

#[derive(Clone, Copy)]
pub(super) enum Tier {
    Unproven,
    Proven,
}

/// Slots by user key. Each ready slot is in exactly one of the two queues, oldest first; a pending slot
/// is in neither.
#[derive(Default)]
pub(super) struct Slots {
    by_id: HashMap<KeyId, Slot>,
    unproven: VecDeque<Queued>,
    proven: VecDeque<Queued>,
    claims_count: u64,
}

/// Derivation that is queued or running. Their number is bounded by the queue of the pool.
pub(super) struct Pending {
    /// Number of the claim that owns the slot: a claim whose slot was cleared must not touch the slot of
    /// its successor.
    claim: u64,
    waiters: Vec<oneshot::Sender<Arc<DerivedKey>>>,
}

/// Entry of a key in the queue of its tier.
struct Queued {
    id: KeyId,
    /// When the key had last been used at the time it was queued; if it was used since, it gets a second
    /// chance.
    last_used_seconds: u64,
}

impl Slots {
    /// Finds the slot of `id`. If there is no key, joins the pending slot, or creates one.
    pub(super) fn find(&mut self, id: &KeyId, now_seconds: u64) -> Found {
        match self.by_id.get_mut(id) {
            Some(Slot::Ready(key)) => {
                key.touch(now_seconds);
                Found::Ready(Arc::clone(key))
            }
            Some(Slot::Pending(pending)) => Found::Pending(pending.join()),
            None => {
                self.claims_count += 1;
                let mut pending = Pending { claim: self.claims_count, waiters: Vec::new() };
                let waiter = pending.join();
                self.by_id.insert(*id, Slot::Pending(pending));
                Found::Vacant(self.claims_count, waiter)
            }
        }
    }

    /// Returns whether this claim has waiters; if it has none, removes its slot.
    pub(super) fn keep_if_wanted(&mut self, id: &KeyId, claim: u64) -> bool {
        let Some(pending) = self.pending(id, claim) else { return false };
        let wanted = pending.is_wanted();
        if !wanted {
            self.by_id.remove(id);
        }
        wanted
    }

    /// Removes the slot of a claim and returns it, with its waiters.
    pub(super) fn take_pending(&mut self, id: &KeyId, claim: u64) -> Option<Pending> {
        self.pending(id, claim)?;
        match self.by_id.remove(id) {
            Some(Slot::Pending(pending)) => Some(pending),
            _ => None,
        }
    }

    /// Turns the slot of a claim into a ready one and returns its waiters. Does nothing if the claim no
    /// longer owns the slot, because a key of a previous salt must not come back.
    pub(super) fn publish(&mut self, id: &KeyId, claim: u64, key: &Arc<DerivedKey>) -> Option<Pending> {
        let pending = self.take_pending(id, claim)?;
        self.by_id.insert(*id, Slot::Ready(Arc::clone(key)));
        self.enqueue(Tier::Unproven, *id, key);
        self.evict_unproven();
        Some(pending)
    }

    /// Examines the first `count` keys of a tier, and removes and returns the idle ones; the rest move to
    /// the end of the tier that they now belong to.
    pub(super) fn sweep_step(&mut self, tier: Tier, count: usize, now_seconds: u64) -> Vec<Slot> {
        let mut expired = Vec::new();
        for _ in 0..count {
            let Some(queued) = self.queue(tier).pop_front() else { break };
            match self.ready(&queued.id) {
                Some(key) if !is_idle(&key, now_seconds) => {
                    let tier = if key.is_proven() { Tier::Proven } else { tier };
                    self.enqueue(tier, queued.id, &key);
                    self.evict_proven();
                }
                _ => expired.extend(self.by_id.remove(&queued.id)),
            }
        }
        expired
    }

    /// Removes and returns everything. The numbers of existing claims are not reused.
    pub(super) fn take_all(&mut self) -> Self {
        let claims_count = self.claims_count;
        std::mem::replace(self, Self { claims_count, ..Self::default() })
    }

    pub(super) fn tier_len(&self, tier: Tier) -> usize {
        match tier {
            Tier::Unproven => self.unproven.len(),
            Tier::Proven => self.proven.len(),
        }
    }

    pub(super) fn pending_len(&self) -> usize {
        self.by_id.len() - self.unproven.len() - self.proven.len()
    }

    fn pending(&mut self, id: &KeyId, claim: u64) -> Option<&mut Pending> {
        match self.by_id.get_mut(id) {
            Some(Slot::Pending(pending)) if pending.claim == claim => Some(pending),
            _ => None,
        }
    }

    pub(super) fn ready(&self, id: &KeyId) -> Option<Arc<DerivedKey>> {
        match self.by_id.get(id) {
            Some(Slot::Ready(key)) => Some(Arc::clone(key)),
            _ => None,
        }
    }

    /// Returns whether each ready slot is in exactly one queue, and no other slot is in any.
    #[cfg(test)]
    pub(super) fn is_consistent(&self) -> bool {
        let queued = self.unproven.iter().chain(&self.proven).map(|queued| queued.id);
        let found: std::collections::HashSet<_> = queued.filter(|id| self.ready(id).is_some()).collect();
        let ready_count = self.by_id.values().filter(|slot| matches!(slot, Slot::Ready(_))).count();
        [ready_count, self.unproven.len() + self.proven.len()] == [found.len(); 2]
    }

    fn queue(&mut self, tier: Tier) -> &mut VecDeque<Queued> {
        match tier {
            Tier::Unproven => &mut self.unproven,
            Tier::Proven => &mut self.proven,
        }
    }

    fn enqueue(&mut self, tier: Tier, id: KeyId, key: &DerivedKey) {
        let last_used_seconds = key.last_used_seconds();
        self.queue(tier).push_back(Queued { id, last_used_seconds });
    }

    /// Reduces the unproven tier to its limit. Its oldest keys leave it: a key that was proven in the
    /// meantime moves to the other tier, so each key moves at most once and proving takes no lock.
    fn evict_unproven(&mut self) {
        while self.unproven.len() > DERIVED_KEYS_UNPROVEN_MAX {
            let Some(queued) = self.unproven.pop_front() else { return };
            match self.ready(&queued.id) {
                Some(key) if key.is_proven() => {
                    self.enqueue(Tier::Proven, queued.id, &key);
                    self.evict_proven();
                }
                _ => drop(self.by_id.remove(&queued.id)),
            }
        }
    }

    /// Reduces the proven tier to its limit: evicts approximately the least recently used key (CLOCK).
    fn evict_proven(&mut self) {
        let mut chances_left = KEY_SECOND_CHANCES_MAX;
        while self.proven.len() > DERIVED_KEYS_PROVEN_MAX {
            let Some(queued) = self.proven.pop_front() else { return };
            match self.ready(&queued.id) {
                Some(key) if chances_left > 0 && key.last_used_seconds() != queued.last_used_seconds => {
                    chances_left -= 1;
                    self.enqueue(Tier::Proven, queued.id, &key);
                }
                _ => drop(self.by_id.remove(&queued.id)),
            }
        }
    }
}

impl Pending {
    fn join(&mut self) -> Waiter {
        // Before the list grows, cancelled waiters are removed: it is at most twice as long as needed.
        if self.waiters.len() == self.waiters.capacity() {
            self.waiters.retain(|waiter| !waiter.is_canceled());
        }
        let (sender, waiter) = oneshot::channel();
        self.waiters.push(sender);
        waiter
    }

    fn is_wanted(&self) -> bool {
        self.waiters.iter().any(|waiter| !waiter.is_canceled())
    }

    /// Sends the key to all waiters. Must not be called under the lock, because it wakes them.
    pub(super) fn hand_out(self, key: &Arc<DerivedKey>) {
        for waiter in self.waiters {
            // `send` returns the key if the waiter was cancelled.
            drop(waiter.send(Arc::clone(key)));
        }
    }

    #[cfg(test)]
    pub(super) fn waiters_len(&self) -> usize {
        self.waiters.len()
    }
}

fn is_idle(key: &DerivedKey, now_seconds: u64) -> bool {
    now_seconds.saturating_sub(key.last_used_seconds()) > DERIVED_KEY_IDLE.as_secs()
}
