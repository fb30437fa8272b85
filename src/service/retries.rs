//! Creations and deletions whose clients may not know that they were made, so that a retry gets the response of the
//! first request.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::crypto::DerivedKey;
use crate::limits::{UNCONFIRMED_WRITE_AGE_MAX, UNCONFIRMED_WRITES_COUNT_MAX};
use crate::model::{Ciphertext, EntryId, OwnerTag, SealedEntry};

/// Record of the writes that are stored and whose response was a 503 or was lost, by the name in the request.
#[derive(Clone, Debug, Default)]
pub(super) struct UnconfirmedWrites(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    by_name: Mutex<BTreeMap<EntryId, (Made, Instant)>>,
    hasher: RandomState,
}

/// What an unconfirmed write has made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Made {
    /// An entry; with the hash of its encrypted value, which is different in every version.
    Entry(u64),
    /// A deletion.
    Deletion {
        /// Client that has made it.
        owner: OwnerTag,
        /// Environment of the deleted entry, which the request need not have named.
        environment: Option<String>,
    },
}

/// Receipt of a write. Unless it is confirmed, the write is recorded when this is dropped: its client may not know
/// that it was made.
#[derive(Debug)]
#[must_use = "a write whose receipt is dropped counts as unconfirmed"]
pub struct Receipt {
    writes: UnconfirmedWrites,
    write: Option<(EntryId, Made)>,
}

impl Made {
    /// Returns what the deletion of an entry makes.
    pub(super) fn deletion(derived: &DerivedKey, row: &SealedEntry) -> Self {
        Self::Deletion { owner: OwnerTag(*derived.id()), environment: row.environment.clone() }
    }

    /// Returns whether this is a deletion by the same client as `before`, but of another entry: a retry without an
    /// environment would delete the next entry of the same key.
    pub(super) fn is_next_of(&self, before: &Self) -> bool {
        match (self, before) {
            (Self::Deletion { owner, .. }, Self::Deletion { owner: before_owner, .. }) => {
                owner == before_owner && self != before
            }
            _ => false,
        }
    }
}

impl Receipt {
    /// Confirms that the client has the response: a second request is not a retry.
    pub fn confirm(mut self) {
        if let Some((name, _)) = self.write.take() {
            self.writes.lock().remove(&name);
        }
    }

    /// Discards the receipt of a write that was not made.
    pub(super) fn discard(mut self) {
        self.write = None;
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if let Some((name, made)) = self.write.take() {
            self.writes.record(name, made, Instant::now());
        }
    }
}

impl UnconfirmedWrites {
    /// Returns what the creation of an entry with this encrypted value makes.
    pub(super) fn entry(&self, ciphertext: Option<&Ciphertext>) -> Made {
        Made::Entry(self.0.hasher.hash_one(ciphertext.map(Ciphertext::as_bytes)))
    }

    /// Returns the receipt of a write that is about to be made.
    pub(super) fn receipt(&self, name: EntryId, made: Made) -> Receipt {
        Receipt { writes: self.clone(), write: Some((name, made)) }
    }

    /// Returns what the unconfirmed write of this name has made.
    pub(super) fn made(&self, name: &EntryId) -> Option<Made> {
        self.made_at(name, Instant::now())
    }

    /// Returns whether a row is the result of the unconfirmed creation of this name.
    pub(super) fn has_created(&self, name: &EntryId, row: &SealedEntry) -> bool {
        self.made(name).is_some_and(|made| made == self.entry(row.ciphertext.as_ref()))
    }

    /// Removes expired records.
    pub(super) fn sweep(&self) {
        let now = Instant::now();
        self.lock().retain(|_, (_, at)| is_fresh(*at, now));
    }

    fn made_at(&self, name: &EntryId, now: Instant) -> Option<Made> {
        let by_name = self.lock();
        by_name.get(name).filter(|(_, at)| is_fresh(*at, now)).map(|(made, _)| made.clone())
    }

    fn record(&self, name: EntryId, made: Made, now: Instant) {
        let mut by_name = self.lock();
        if by_name.len() >= UNCONFIRMED_WRITES_COUNT_MAX && !by_name.contains_key(&name) {
            let oldest = by_name.iter().min_by_key(|(_, (_, at))| *at).map(|(name, _)| name.clone());
            oldest.and_then(|oldest| by_name.remove(&oldest));
        }
        by_name.insert(name, (made, now));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<EntryId, (Made, Instant)>> {
        self.0.by_name.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_fresh(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) < UNCONFIRMED_WRITE_AGE_MAX
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn name(number: usize) -> EntryId {
        EntryId { key: number.to_string(), environment: None }
    }

    #[test]
    fn a_write_is_recorded_until_a_receipt_is_confirmed() {
        let writes = UnconfirmedWrites::default();
        let made = writes.entry(Some(&Ciphertext::from_bytes(b"sealed".to_vec())));
        writes.receipt(name(1), made.clone()).confirm();
        writes.receipt(name(2), made.clone()).discard();
        assert!(writes.lock().is_empty());
        drop(writes.receipt(name(1), made.clone()));
        let row = |sealed: &[u8]| {
            SealedEntry::new(1, "1".into(), None, Some(Ciphertext::from_bytes(sealed.to_vec())))
        };
        assert!(writes.has_created(&name(1), &row(b"sealed")));
        assert!(
            !writes.has_created(&name(1), &row(b"other")) && !writes.has_created(&name(2), &row(b"sealed"))
        );
        // A retry that fails, too, keeps the record.
        drop(writes.receipt(name(1), made.clone()));
        writes.receipt(name(1), made.clone()).discard();
        assert_eq!(writes.made(&name(1)), Some(made.clone()));
        writes.receipt(name(1), made).confirm();
        assert_eq!(writes.made(&name(1)), None);
    }

    #[test]
    fn records_expire_and_are_bounded() {
        let (writes, start) = (UnconfirmedWrites::default(), Instant::now());
        let at = |number: usize| start + Duration::from_millis(u64::try_from(number).expect("small"));
        for number in 0..=UNCONFIRMED_WRITES_COUNT_MAX {
            writes.record(name(number), Made::Entry(7), at(number));
        }
        assert_eq!(writes.lock().len(), UNCONFIRMED_WRITES_COUNT_MAX);
        assert_eq!([0, 1].map(|number| writes.made_at(&name(number), start).is_some()), [false, true]);
        let late = at(1) + UNCONFIRMED_WRITE_AGE_MAX;
        assert_eq!([1, 2].map(|number| writes.made_at(&name(number), late).is_some()), [false, true]);
    }
}
