//! Versions: hybrid logical timestamps, and the total order of writes that they define.

use std::fmt;
use std::time::Duration;

use crate::limits::{CLOCK_AHEAD_MAX, TOMBSTONE_GRACE};

/// Timestamp of a hybrid logical clock: 48 bits of milliseconds since 1970, 16 bits of a counter.
///
/// As in Kulkarni et al., "Logical Physical Clocks", 2014, but with one clock for each entry: never behind the wall clock
/// of the node that writes, never behind the version that it replaces.
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

    /// Returns the same horizon without times that no correct clock can have caused: a wrong clock must not make correct
    /// nodes look outdated after it was corrected.
    #[must_use]
    pub fn clamped_at(self, now_ms: u64) -> Self {
        let latest = HlcTimestamp::from_milliseconds(now_ms).later(CLOCK_AHEAD_MAX);
        Self {
            synced: self.synced.min(latest),
            forgotten: self.forgotten.min(latest.earlier(TOMBSTONE_GRACE)),
        }
    }
}

const COUNTER_BITS: u32 = 16;

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

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

    /// Returns the timestamp of a write now that replaces the version `seen`: a node whose clock is behind can overwrite
    /// an entry that it has read. Depends on nothing else, so neither a restart nor a wrong clock affects the timestamps
    /// of other entries.
    pub fn of_write(now_ms: u64, seen: Self) -> Self {
        Self::from_milliseconds(now_ms).max(seen.next())
    }

    /// Returns the first timestamp of the time that is later by a duration.
    #[must_use]
    pub fn later(self, by: Duration) -> Self {
        Self::from_milliseconds(self.milliseconds().saturating_add(milliseconds(by)))
    }

    /// Returns the first timestamp of the time that is earlier by a duration.
    #[must_use]
    pub fn earlier(self, by: Duration) -> Self {
        Self::from_milliseconds(self.milliseconds().saturating_sub(milliseconds(by)))
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_timestamp_is_that_of_the_clock_or_follows_the_replaced_one() {
        let future = HlcTimestamp::from_milliseconds(99_000);
        assert_eq!(HlcTimestamp::of_write(1000, HlcTimestamp::default()).milliseconds(), 1000);
        assert_eq!(HlcTimestamp::of_write(1001, future), future.next());
        // Another entry does not follow into the future.
        assert_eq!(HlcTimestamp::of_write(1002, HlcTimestamp::default()).milliseconds(), 1002);
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
        fn the_timestamps_of_an_entry_only_grow(times in proptest::collection::vec(0_u64..1 << 44, 1..50)) {
            let mut last = HlcTimestamp::default();
            for now in times {
                let timestamp = HlcTimestamp::of_write(now, last);
                prop_assert!(timestamp > last && timestamp >= HlcTimestamp::from_milliseconds(now));
                last = timestamp;
            }
        }
    }
}
