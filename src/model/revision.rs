//! Revisions: numbers of the changes of a store, in commit order.

use std::fmt;

use crate::limits::REVISIONS_RESERVED_COUNT;

/// Revision of a change. Later changes of a store have larger revisions; none is ever used twice, across restarts,
/// restored backups and migrations.
///
/// A number of 53 bits: milliseconds since 1970 and a counter of ten bits. A store begins with the larger of
/// the wall clock and its last reserved revision, then counts. So a restored backup, which knows only an old revision,
/// continues after everything that was issued since. JSON numbers represent it exactly until the year 2248.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(i64);

/// Bits below the milliseconds: a store may change a thousand entries per millisecond of its lifetime before its
/// revisions are ahead of the clock.
const COUNTER_BITS: u32 = 10;

impl Revision {
    /// Returns the first revision of a millisecond since 1970.
    pub fn from_milliseconds(milliseconds: u64) -> Self {
        Self(i64::try_from(milliseconds.saturating_mul(1 << COUNTER_BITS)).unwrap_or(i64::MAX))
    }

    /// Restores a stored revision.
    pub fn from_number(number: i64) -> Self {
        Self(number)
    }

    /// Returns the number to store.
    pub fn number(self) -> i64 {
        self.0
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Source of the revisions of one store. Only its writer has it.
#[derive(Clone, Copy, Debug)]
pub struct Revisions {
    last: Revision,
    /// Largest revision that may have been issued, as recorded in the store.
    reserved: Revision,
}

impl Revisions {
    /// Continues after `reserved`, the reservation in the store (zero if there is none), and after the wall clock.
    pub fn after(reserved: Revision, now_ms: u64) -> Self {
        Self { last: reserved.max(Revision::from_milliseconds(now_ms)), reserved }
    }

    /// Returns the revision that was issued last, or that the next one will exceed.
    pub fn last(&self) -> Revision {
        self.last
    }

    /// Issues the next revision.
    pub fn issue(&mut self) -> Revision {
        self.last.0 += 1;
        self.last
    }

    /// Returns the reservation to record in the transaction whose revisions were issued; `None` if the recorded one
    /// covers them.
    pub fn due_reservation(&self) -> Option<Revision> {
        (self.last > self.reserved).then_some(Revision(self.last.0 + REVISIONS_RESERVED_COUNT))
    }

    /// Notes that a reservation was committed.
    pub fn note_reserved(&mut self, reserved: Revision) {
        self.reserved = self.reserved.max(reserved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_increase_across_restarts_and_restored_backups() {
        const NOW_MS: u64 = 1_800_000_000_000;
        let mut revisions = Revisions::after(Revision::default(), NOW_MS);
        let first = revisions.issue();
        assert!(first > Revision::from_milliseconds(NOW_MS) && first.number() < 1 << 53);
        let reserved = revisions.due_reservation().expect("nothing is reserved yet");
        revisions.note_reserved(reserved);
        let last = (0..1000).map(|_| revisions.issue()).last().expect("some");
        assert_eq!((last.number(), revisions.due_reservation()), (first.number() + 1000, None));
        // Killed, and the clock set back by a day.
        let after_crash = Revisions::after(reserved, NOW_MS - 86_400_000).issue();
        assert!(after_crash > last);
        // A backup from before the first change, restored a minute later.
        assert!(Revisions::after(Revision::default(), NOW_MS + 60_000).issue() > after_crash);
    }
}
