//! Which of two writes is the later one: hybrid logical clocks and one total order.

use std::fmt;

/// A point of a hybrid logical clock: 48 bits of milliseconds since 1970, 16 bits of a counter.
///
/// Kulkarni et al., "Logical Physical Clocks", 2014: never behind the wall clock of its node, never
/// behind anything that its node has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp(u64);

/// A data directory: a random number that is made with it. Not the configured node id, which several
/// nodes may share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeNumber(u64);

/// When an entry was written, and by which node: the larger one wins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// When.
    pub stamp: Stamp,
    /// By whom; decides between equal stamps.
    pub node: NodeNumber,
}

/// How far back a store can be trusted to know of deletions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Horizon {
    /// When it last held the same as another node; zero if it never did.
    pub synced: Stamp,
    /// Deletions from before this may be remembered no more.
    pub forgotten: Stamp,
}

impl Horizon {
    /// Whether this store may lack deletions of which `other` has not heard, so that what was deleted would
    /// come back from there. Clocks may differ by `tolerance_ms`.
    pub fn is_beyond(&self, other: &Self, tolerance_ms: u64) -> bool {
        let was_in_cluster = other.synced > Stamp::default();
        was_in_cluster
            && self.forgotten.milliseconds() > other.synced.milliseconds().saturating_add(tolerance_ms)
    }
}

const COUNTER_BITS: u32 = 16;

impl Stamp {
    /// The first stamp of a millisecond since 1970.
    pub fn from_milliseconds(milliseconds: u64) -> Self {
        Self(milliseconds.saturating_mul(1 << COUNTER_BITS).min(i64::MAX.unsigned_abs()))
    }

    /// Milliseconds since 1970.
    pub fn milliseconds(self) -> u64 {
        self.0 >> COUNTER_BITS
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

impl NodeNumber {
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
impl fmt::Display for NodeNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl std::str::FromStr for NodeNumber {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

/// The clock of one node.
#[derive(Clone, Copy, Debug, Default)]
pub struct HybridClock {
    last: Stamp,
}

impl HybridClock {
    /// A clock that goes on after `last`, which was kept from before.
    pub fn after(last: Stamp) -> Self {
        Self { last }
    }

    /// A stamp for a write now, later than every stamp given out before and than `seen`: the version
    /// that the write replaces. So a node whose clock is behind still overwrites what it has read,
    /// and a stamp from far in the future is beaten by the next write of that entry, while no other
    /// entry's stamps follow it there.
    pub fn stamp(&mut self, now_milliseconds: u64, seen: Stamp) -> Stamp {
        self.last = self.last.next().max(Stamp::from_milliseconds(now_milliseconds));
        if seen >= self.last { seen.next() } else { self.last }
    }

    /// The largest stamp of this node's own time.
    pub fn last(&self) -> Stamp {
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
        let first = clock.stamp(1000, Stamp::default());
        assert_eq!(first.milliseconds(), 1000);
        // The wall clock went back.
        let second = clock.stamp(10, Stamp::default());
        assert!(second > first && second.milliseconds() == 1000);
        let future = Stamp::from_milliseconds(99_000);
        assert_eq!(clock.stamp(1001, future), future.next());
        // Another entry is not drawn into the future.
        assert_eq!(clock.stamp(1002, Stamp::default()).milliseconds(), 1002);
    }

    #[test]
    fn texts_and_numbers() {
        let node = NodeNumber::from_random(u64::MAX);
        assert_eq!(node.to_string().parse(), Ok(node));
        assert_eq!(NodeNumber::from_database(node.to_database()), node);
        let late = Stamp::from_milliseconds(u64::MAX);
        assert_eq!(Stamp::from_database(late.to_database()), late);
        assert_eq!(late.next(), late);
    }

    proptest! {
        #[test]
        fn never_back(times in proptest::collection::vec((0_u64..1 << 44, 0_u64..1 << 60), 1..50)) {
            let mut clock = HybridClock::default();
            let mut last = Stamp::default();
            for (now, seen) in times {
                let seen = Stamp::from_database(seen.cast_signed());
                let stamp = clock.stamp(now, seen);
                prop_assert!(stamp > seen && clock.last() > last && stamp >= clock.last());
                last = clock.last();
                clock = HybridClock::after(clock.last());
            }
        }
    }
}
