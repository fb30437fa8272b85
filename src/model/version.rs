//! Which of two writes is the later one: hybrid logical clocks and one total order.

use std::fmt;
use std::time::Duration;

use super::Timestamp;
use crate::limits::CLOCK_LEAD_MAX;

/// A point of a hybrid logical clock: 48 bits of milliseconds since 1970, 16 bits of a counter.
///
/// Kulkarni et al., "Logical Physical Clocks", 2014: never behind the wall clock of its node, never
/// behind anything that its node has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HlcTimestamp(u64);

/// A data directory: a random number that is made with it. Not the configured node id, which several
/// nodes may share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId(u64);

/// When an entry was written, and by which node: the larger one wins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// When.
    pub stamp: HlcTimestamp,
    /// By whom; decides between equal stamps.
    pub node: ReplicaId,
}

/// How far back a store can be trusted to know of deletions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TombstoneHorizon {
    /// When it last held the same as another node; zero if it never did.
    pub synced: HlcTimestamp,
    /// Deletions from before this may be remembered no more.
    pub forgotten: HlcTimestamp,
}

impl TombstoneHorizon {
    /// Whether this store may lack deletions of which `other` has not heard, so that what was deleted would
    /// come back from there. Clocks may differ by `tolerance_ms`.
    pub fn is_beyond(&self, other: &Self, tolerance_ms: u64) -> bool {
        let was_in_cluster = other.synced > HlcTimestamp::default();
        was_in_cluster
            && self.forgotten.milliseconds() > other.synced.milliseconds().saturating_add(tolerance_ms)
    }
}

impl TombstoneHorizon {
    /// The same without what no clock that is about right can have told.
    #[must_use]
    pub fn at_most(self, latest: Timestamp) -> Self {
        let latest = HlcTimestamp::from_milliseconds(latest.as_milliseconds());
        Self { synced: self.synced.min(latest), forgotten: self.forgotten.min(latest) }
    }
}

const COUNTER_BITS: u32 = 16;

impl HlcTimestamp {
    /// The first stamp of a millisecond since 1970.
    pub fn from_milliseconds(milliseconds: u64) -> Self {
        Self(milliseconds.saturating_mul(1 << COUNTER_BITS).min(i64::MAX.unsigned_abs()))
    }

    /// Milliseconds since 1970.
    pub fn milliseconds(self) -> u64 {
        self.0 >> COUNTER_BITS
    }

    /// How many milliseconds it is ahead of a clock, if that is more than `bound`.
    pub fn ahead_of(self, now_ms: u64, bound: Duration) -> Option<u64> {
        let ahead_ms = self.milliseconds().saturating_sub(now_ms);
        (u128::from(ahead_ms) > bound.as_millis()).then_some(ahead_ms)
    }

    /// The next one; the counter runs over into the milliseconds.
    #[must_use]
    pub fn next(self) -> Self {
        Self((self.0 + 1).min(i64::MAX.unsigned_abs()))
    }

    /// As SQLite stores it.
    pub fn to_database(self) -> i64 {
        self.0.cast_signed()
    }

    /// What [`Self::to_database`] gave; a negative number is taken as the oldest stamp.
    pub fn from_database(number: i64) -> Self {
        Self(u64::try_from(number).unwrap_or(0))
    }
}

impl ReplicaId {
    /// A number for a new data directory, from random bits.
    pub fn from_random(bits: u64) -> Self {
        // SQLite's integers are signed, and 0 stands for "before there were versions".
        Self((bits >> 1).max(1))
    }

    /// As SQLite stores it.
    pub fn to_database(self) -> i64 {
        self.0.cast_signed()
    }

    /// What [`Self::to_database`] gave.
    pub fn from_database(number: i64) -> Self {
        Self(u64::try_from(number).unwrap_or(0))
    }
}

/// Sixteen hexadecimal digits, as in headers and logs.
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

/// The clock of one node.
#[derive(Clone, Copy, Debug, Default)]
pub struct HybridClock {
    last: HlcTimestamp,
}

impl HybridClock {
    /// A clock that goes on after `last`, which was kept from before.
    pub fn after(last: HlcTimestamp) -> Self {
        Self { last }
    }

    /// A stamp for a write now, later than every stamp given out before and than `seen`: the version
    /// that the write replaces. So a node whose clock is behind still overwrites what it has read, while no
    /// other entry's stamps follow it there.
    ///
    /// After a wall clock was set back by more than [`CLOCK_LEAD_MAX`] the clock goes back with it, because
    /// other nodes would refuse the stamps of the time before. An entry's own stamps grow all the same.
    pub fn stamp(&mut self, now_milliseconds: u64, seen: HlcTimestamp) -> HlcTimestamp {
        let was_set_back = self.last.ahead_of(now_milliseconds, CLOCK_LEAD_MAX).is_some();
        let last = if was_set_back { HlcTimestamp::default() } else { self.last };
        self.last = last.next().max(HlcTimestamp::from_milliseconds(now_milliseconds));
        if seen >= self.last { seen.next() } else { self.last }
    }

    /// The largest stamp of this node's own time.
    pub fn last(&self) -> HlcTimestamp {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_stamp_is_later_than_all_before_and_than_what_it_replaces() {
        let mut clock = HybridClock::default();
        let first = clock.stamp(1000, HlcTimestamp::default());
        assert_eq!(first.milliseconds(), 1000);
        // The wall clock went back.
        let second = clock.stamp(10, HlcTimestamp::default());
        assert!(second > first && second.milliseconds() == 1000);
        let future = HlcTimestamp::from_milliseconds(99_000);
        assert_eq!(clock.stamp(1001, future), future.next());
        // Another entry is not drawn into the future.
        assert_eq!(clock.stamp(1002, HlcTimestamp::default()).milliseconds(), 1002);
        // A clock that was an hour ahead and is right again.
        let hour_ms = 60 * 60 * 1000;
        let ahead = clock.stamp(1003 + hour_ms, HlcTimestamp::default());
        assert_eq!(clock.stamp(1004, HlcTimestamp::default()).milliseconds(), 1004);
        assert_eq!(clock.stamp(1005, ahead), ahead.next());
    }

    #[test]
    fn texts_and_numbers() {
        let node = ReplicaId::from_random(u64::MAX);
        assert_eq!(node.to_string().parse(), Ok(node));
        assert_eq!(ReplicaId::from_database(node.to_database()), node);
        let late = HlcTimestamp::from_milliseconds(u64::MAX);
        assert_eq!(HlcTimestamp::from_database(late.to_database()), late);
        assert_eq!(late.next(), late);
    }

    proptest! {
        #[test]
        fn never_back(times in proptest::collection::vec((0_u64..1 << 44, 0_u64..1 << 60), 1..50)) {
            let mut clock = HybridClock::default();
            let mut last = HlcTimestamp::default();
            for (now, seen) in times {
                let seen = HlcTimestamp::from_database(seen.cast_signed());
                let stamp = clock.stamp(now, seen);
                let was_set_back = last.ahead_of(now, CLOCK_LEAD_MAX).is_some();
                prop_assert!(stamp > seen && stamp >= clock.last());
                prop_assert!(clock.last() > last || was_set_back);
                prop_assert!(clock.last().ahead_of(now, CLOCK_LEAD_MAX + Duration::from_millis(1)).is_none());
                last = clock.last();
                clock = HybridClock::after(clock.last());
            }
        }
    }
}
