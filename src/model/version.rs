//! Versions: hybrid logical clocks, and the total order of writes that they define.

use std::fmt;
use std::time::Duration;

use super::Timestamp;
use crate::limits::CLOCK_LEAD_MAX;

/// Timestamp of a hybrid logical clock: 48 bits of milliseconds since 1970, 16 bits of a counter.
///
/// Kulkarni et al., "Logical Physical Clocks", 2014: never behind the wall clock of its node, never
/// behind anything that its node has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HlcTimestamp(u64);

/// Identifier of a data directory: a random number that is generated with it. Not the configured node ID, which
/// several nodes may share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId(u64);

/// Version of an entry: when and by which node it was written. The larger version wins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Time of the write.
    pub timestamp: HlcTimestamp,
    /// Replica that wrote it; breaks the tie between equal timestamps.
    pub replica: ReplicaId,
}

/// How far back a store is known to have all tombstones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TombstoneHorizon {
    /// Time at which the store was last in sync with another node; zero if it never was.
    pub synced: HlcTimestamp,
    /// Tombstones older than this may have been garbage-collected.
    pub forgotten: HlcTimestamp,
}

impl TombstoneHorizon {
    /// Returns whether this store may have garbage-collected tombstones that `other` has not seen, so that `other`
    /// would resurrect deleted entries. The clocks may differ by `tolerance_ms`.
    pub fn has_outrun(&self, other: &Self, tolerance_ms: u64) -> bool {
        let was_in_cluster = other.synced > HlcTimestamp::default();
        was_in_cluster
            && self.forgotten.milliseconds() > other.synced.milliseconds().saturating_add(tolerance_ms)
    }
}

impl TombstoneHorizon {
    /// Returns the same horizon with times of at most `latest`: a roughly correct clock cannot have issued later ones.
    #[must_use]
    pub fn clamped_to(self, latest: Timestamp) -> Self {
        let latest = HlcTimestamp::from_milliseconds(latest.as_milliseconds());
        Self { synced: self.synced.min(latest), forgotten: self.forgotten.min(latest) }
    }
}

const COUNTER_BITS: u32 = 16;

impl HlcTimestamp {
    /// Returns the first timestamp of a millisecond since 1970.
    pub fn from_milliseconds(milliseconds: u64) -> Self {
        Self(milliseconds.saturating_mul(1 << COUNTER_BITS).min(i64::MAX.unsigned_abs()))
    }

    /// Returns the milliseconds since 1970.
    pub fn milliseconds(self) -> u64 {
        self.0 >> COUNTER_BITS
    }

    /// Returns by how many milliseconds it is ahead of a clock, if that is more than `bound`.
    pub fn ahead_of(self, now_ms: u64, bound: Duration) -> Option<u64> {
        let ahead_ms = self.milliseconds().saturating_sub(now_ms);
        (u128::from(ahead_ms) > bound.as_millis()).then_some(ahead_ms)
    }

    /// Returns the next timestamp; the counter overflows into the milliseconds.
    #[must_use]
    pub fn next(self) -> Self {
        Self((self.0 + 1).min(i64::MAX.unsigned_abs()))
    }

    /// Returns the integer that SQLite stores.
    pub fn to_database(self) -> i64 {
        self.0.cast_signed()
    }

    /// Restores a result of [`Self::to_database`]; a negative number is taken as the oldest timestamp.
    pub fn from_database(number: i64) -> Self {
        Self(u64::try_from(number).unwrap_or(0))
    }
}

impl ReplicaId {
    /// Creates the identifier of a new data directory from random bits.
    pub fn from_random(bits: u64) -> Self {
        // SQLite's integers are signed, and 0 means "written before versions were introduced".
        Self((bits >> 1).max(1))
    }

    /// Returns the integer that SQLite stores.
    pub fn to_database(self) -> i64 {
        self.0.cast_signed()
    }

    /// Restores a result of [`Self::to_database`].
    pub fn from_database(number: i64) -> Self {
        Self(u64::try_from(number).unwrap_or(0))
    }
}

/// Writes sixteen hexadecimal digits, as in headers and logs.
impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl std::str::FromStr for ReplicaId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

/// Hybrid logical clock of one node.
#[derive(Clone, Copy, Debug, Default)]
pub struct HybridClock {
    last: HlcTimestamp,
}

impl HybridClock {
    /// Creates a clock that continues after `last`, the persisted state of an earlier one.
    pub fn after(last: HlcTimestamp) -> Self {
        Self { last }
    }

    /// Issues the timestamp of a write now, later than all timestamps issued before and than `seen`, the version that
    /// the write replaces. A node whose clock is behind can therefore overwrite an entry that it has read, and the
    /// timestamps of other entries do not follow.
    ///
    /// If the wall clock was set back by more than [`CLOCK_LEAD_MAX`], this clock is set back as well, because other
    /// nodes would refuse the former timestamps. The timestamps of one entry grow nevertheless.
    pub fn stamp(&mut self, now_milliseconds: u64, seen: HlcTimestamp) -> HlcTimestamp {
        let was_set_back = self.last.ahead_of(now_milliseconds, CLOCK_LEAD_MAX).is_some();
        let last = if was_set_back { HlcTimestamp::default() } else { self.last };
        self.last = last.next().max(HlcTimestamp::from_milliseconds(now_milliseconds));
        if seen >= self.last { seen.next() } else { self.last }
    }

    /// Returns the largest timestamp of this node's own time.
    pub fn last(&self) -> HlcTimestamp {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_timestamp_is_later_than_all_before_it_and_than_the_replaced_one() {
        let mut clock = HybridClock::default();
        let first = clock.stamp(1000, HlcTimestamp::default());
        assert_eq!(first.milliseconds(), 1000);
        // The wall clock was set back a little.
        let second = clock.stamp(10, HlcTimestamp::default());
        assert!(second > first && second.milliseconds() == 1000);
        let future = HlcTimestamp::from_milliseconds(99_000);
        assert_eq!(clock.stamp(1001, future), future.next());
        // The timestamps of another entry do not follow into the future.
        assert_eq!(clock.stamp(1002, HlcTimestamp::default()).milliseconds(), 1002);
        // The wall clock was an hour ahead and is correct again.
        let hour_ms = 60 * 60 * 1000;
        let ahead = clock.stamp(1003 + hour_ms, HlcTimestamp::default());
        assert_eq!(clock.stamp(1004, HlcTimestamp::default()).milliseconds(), 1004);
        assert_eq!(clock.stamp(1005, ahead), ahead.next());
    }

    #[test]
    fn texts_and_numbers_are_restored() {
        let node = ReplicaId::from_random(u64::MAX);
        assert_eq!(node.to_string().parse(), Ok(node));
        assert_eq!(ReplicaId::from_database(node.to_database()), node);
        let late = HlcTimestamp::from_milliseconds(u64::MAX);
        assert_eq!(HlcTimestamp::from_database(late.to_database()), late);
        assert_eq!(late.next(), late);
    }

    proptest! {
        #[test]
        fn timestamps_only_grow(times in proptest::collection::vec((0_u64..1 << 44, 0_u64..1 << 60), 1..50)) {
            let mut clock = HybridClock::default();
            let mut last = HlcTimestamp::default();
            for (now, seen) in times {
                let seen = HlcTimestamp::from_database(seen.cast_signed());
                let timestamp = clock.stamp(now, seen);
                let was_set_back = last.ahead_of(now, CLOCK_LEAD_MAX).is_some();
                prop_assert!(timestamp > seen && timestamp >= clock.last());
                prop_assert!(clock.last() > last || was_set_back);
                prop_assert!(clock.last().ahead_of(now, CLOCK_LEAD_MAX + Duration::from_millis(1)).is_none());
                last = clock.last();
                clock = HybridClock::after(clock.last());
            }
        }
    }
}
