//! What the lock of the key cache guards: the derivations that run, and two tiers of results.
//!
//! Every operation is short and wakes nobody; what has to be dropped with more effort is handed out.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use futures_channel::oneshot;

use super::derived_key::DerivedKey;
use crate::limits::{DERIVED_KEY_IDLE, DERIVED_KEYS_PROVEN_MAX, DERIVED_KEYS_UNPROVEN_MAX};

/// Keys that are given a second chance before one is evicted all the same.
pub(super) const SECOND_CHANCES_MAX: usize = 64;

/// Which user key: its MAC under a secret of this process, so that the map holds nothing from which
/// a user key could be found, and nobody can aim at a slot. Comparing it needs no constant time.
pub(super) type KeyId = [u8; 32];

/// Resolves to the key, or to `Canceled` when its derivation was given up.
pub type Waiter = oneshot::Receiver<Arc<DerivedKey>>;

pub(super) enum Slot {
    Pending(Pending),
    Ready(Arc<DerivedKey>),
}

pub(super) enum Found {
    Ready(Arc<DerivedKey>),
    Pending(Waiter),
    /// A slot was made for a ticket with this number.
    Nothing(u64, Waiter),
}

#[derive(Clone, Copy)]
pub(super) enum Tier {
    Unproven,
    Proven,
}

/// Each ready slot is in exactly one of the two queues, oldest first; a pending slot is in none.
#[derive(Default)]
pub(super) struct Slots {
    by_id: HashMap<KeyId, Slot>,
    unproven: VecDeque<Queued>,
    proven: VecDeque<Queued>,
    tickets_count: u64,
}

/// A derivation that is queued or runs. How many there are is bounded by the queue of the pool.
pub(super) struct Pending {
    /// Whose it is: a ticket whose slot was cleared must not touch the slot of its successor.
    ticket: u64,
    waiters: Vec<oneshot::Sender<Arc<DerivedKey>>>,
}

/// A key's place in the queue of its tier.
struct Queued {
    id: KeyId,
    /// When it had last been used as it was queued; used again since, it gets a second chance.
    last_used_seconds: u64,
}

impl Slots {
    /// Finds what there is for `id`, and joins or makes a pending slot where there is no key.
    pub(super) fn find(&mut self, id: &KeyId, now_seconds: u64) -> Found {
        match self.by_id.get_mut(id) {
            Some(Slot::Ready(key)) => {
                key.touch(now_seconds);
                Found::Ready(Arc::clone(key))
            }
            Some(Slot::Pending(pending)) => Found::Pending(pending.join()),
            None => {
                self.tickets_count += 1;
                let mut pending = Pending { ticket: self.tickets_count, waiters: Vec::new() };
                let waiter = pending.join();
                self.by_id.insert(*id, Slot::Pending(pending));
                Found::Nothing(self.tickets_count, waiter)
            }
        }
    }

    /// Whether anybody waits for this ticket; if nobody does, its slot is given up.
    pub(super) fn keep_if_wanted(&mut self, id: &KeyId, ticket: u64) -> bool {
        let Some(pending) = self.pending(id, ticket) else { return false };
        let wanted = pending.is_wanted();
        if !wanted {
            self.by_id.remove(id);
        }
        wanted
    }

    /// Takes the slot of a ticket away, with those who wait for it.
    pub(super) fn take_pending(&mut self, id: &KeyId, ticket: u64) -> Option<Pending> {
        self.pending(id, ticket)?;
        match self.by_id.remove(id) {
            Some(Slot::Pending(pending)) => Some(pending),
            _ => None,
        }
    }

    /// Turns the slot of a ticket into a ready one and returns who waits for it: nobody when the
    /// slot is no longer the ticket's, because a key of an old salt must not come back.
    pub(super) fn publish(&mut self, id: &KeyId, ticket: u64, key: &Arc<DerivedKey>) -> Option<Pending> {
        let pending = self.take_pending(id, ticket)?;
        self.by_id.insert(*id, Slot::Ready(Arc::clone(key)));
        self.enqueue(Tier::Unproven, *id, key);
        self.evict_unproven();
        Some(pending)
    }

    /// Looks at the first `count` keys of a tier and takes out those that are idle; the others go to
    /// the end of the tier where they now belong.
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

    /// Takes everything out; tickets that are about keep numbers that nobody else gets.
    pub(super) fn take_all(&mut self) -> Self {
        let tickets_count = self.tickets_count;
        std::mem::replace(self, Self { tickets_count, ..Self::default() })
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

    fn pending(&mut self, id: &KeyId, ticket: u64) -> Option<&mut Pending> {
        match self.by_id.get_mut(id) {
            Some(Slot::Pending(pending)) if pending.ticket == ticket => Some(pending),
            _ => None,
        }
    }

    pub(super) fn ready(&self, id: &KeyId) -> Option<Arc<DerivedKey>> {
        match self.by_id.get(id) {
            Some(Slot::Ready(key)) => Some(Arc::clone(key)),
            _ => None,
        }
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

    /// Brings the unproven tier back to its bound. Its oldest keys leave it: those that were proven
    /// meanwhile for the other tier, so each key moves at most once and proving takes no lock.
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

    /// Brings the proven tier back to its bound: about the least recently used key goes (CLOCK).
    fn evict_proven(&mut self) {
        let mut chances_left = SECOND_CHANCES_MAX;
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
        // Before the list grows, those who left make room: it is at most twice as long as needed.
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

    /// Hands the key to all who wait; not for under the lock, because it wakes them.
    pub(super) fn hand_out(self, key: &Arc<DerivedKey>) {
        for waiter in self.waiters {
            // The key comes back when that client has left: nobody is there to tell.
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
