//! Decaying counts of failures, in bounded memory.
//!
//! A count is a debt in milliseconds: each failure adds one interval, and time pays it off. That is
//! the generic cell rate algorithm, with a look at the debt apart from adding to it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::limits::{
    FAILURE_DELAY_MAX, FAILURE_WINDOW, FAILURES_TRACKED_COUNT_MAX_PER_SHARD, FAILURES_TRACKED_SHARDS,
};

/// What is known of one address, user key or entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    /// Until then some of the debt is left.
    pub(super) until_ms: u64,
    /// For the owner of the ledger.
    pub(super) mark: u64,
    /// When a warning was last logged.
    pub(super) warned_ms: Option<u64>,
}

/// How fast a debt grows. The time in which it is paid off is [`FAILURE_WINDOW`] for as many failures
/// as a window allows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    interval_ms: u64,
}

/// Records by keyed hash: no one can aim at another's record.
#[derive(Debug)]
pub(super) struct Ledger {
    shards: Vec<Mutex<HashMap<u64, Record>>>,
}

impl Pace {
    /// As many failures in a window as are free of any consequence.
    pub(super) fn per_window(count: u32) -> Self {
        Self { interval_ms: (window_ms() / u64::from(count.max(1))).max(1) }
    }

    /// How long it takes until another failure is allowed, if it is not now.
    pub(super) fn refusal(self, record: &Record, now_ms: u64) -> Option<Duration> {
        let debt_ms = record.until_ms.saturating_sub(now_ms) + self.interval_ms;
        let over_ms = debt_ms.saturating_sub(2 * window_ms());
        (over_ms > 0).then(|| Duration::from_millis(over_ms))
    }

    /// Adds a failure, and gives the time by which its response is delayed.
    ///
    /// # Errors
    /// With the time to wait, when no more failures are allowed now: nothing is added.
    pub(super) fn charge(self, record: &mut Record, now_ms: u64) -> Result<Duration, Duration> {
        if let Some(wait) = self.refusal(record, now_ms) {
            return Err(wait);
        }
        record.until_ms = record.until_ms.max(now_ms) + self.interval_ms;
        let over_ms = (record.until_ms - now_ms).saturating_sub(window_ms());
        Ok(Duration::from_millis(over_ms * as_ms(FAILURE_DELAY_MAX) / window_ms()))
    }
}

impl Ledger {
    pub(super) fn new() -> Self {
        Self { shards: (0..FAILURES_TRACKED_SHARDS).map(|_| Mutex::default()).collect() }
    }

    /// The record, if any of its debt is left.
    pub(super) fn get(&self, key: u64, now_ms: u64) -> Option<Record> {
        self.shard(key).get(&key).copied().filter(|record| record.until_ms > now_ms)
    }

    /// Changes a record, which is new if there is none.
    pub(super) fn change<R>(&self, key: u64, now_ms: u64, change: impl FnOnce(&mut Record) -> R) -> R {
        let mut shard = self.shard(key);
        if shard.len() >= FAILURES_TRACKED_COUNT_MAX_PER_SHARD && !shard.contains_key(&key) {
            shard.retain(|_, record| record.until_ms > now_ms);
            make_room(&mut shard);
        }
        change(shard.entry(key).or_default())
    }

    /// Forgets what is paid off, and returns the number of records that are left.
    pub(super) fn sweep(&self, now_ms: u64) -> usize {
        let mut left = 0;
        for shard in &self.shards {
            let mut shard = lock(shard);
            shard.retain(|_, record| record.until_ms > now_ms);
            shard.shrink_to_fit();
            left += shard.len();
        }
        left
    }

    fn shard(&self, key: u64) -> MutexGuard<'_, HashMap<u64, Record>> {
        let index = usize::try_from(key % FAILURES_TRACKED_SHARDS as u64).unwrap_or(0);
        lock(&self.shards[index])
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }
}

/// Forgets the smallest debt: those with large ones are the attackers.
fn make_room(shard: &mut HashMap<u64, Record>) {
    if shard.len() >= FAILURES_TRACKED_COUNT_MAX_PER_SHARD
        && let Some(key) = shard.iter().min_by_key(|(_, record)| record.until_ms).map(|(key, _)| *key)
    {
        shard.remove(&key);
    }
}

fn lock(shard: &Mutex<HashMap<u64, Record>>) -> MutexGuard<'_, HashMap<u64, Record>> {
    // Nothing in a critical section panics half-way through a change.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

fn window_ms() -> u64 {
    as_ms(FAILURE_WINDOW)
}

fn as_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNT: u32 = 30;

    #[test]
    fn failures_are_free_then_delayed_then_refused_and_decay() {
        let (pace, mut record, now_ms) = (Pace::per_window(COUNT), Record::default(), 1_000);
        for number in 0..COUNT {
            assert_eq!(pace.charge(&mut record, now_ms), Ok(Duration::ZERO), "{number}");
        }
        let mut last = Duration::ZERO;
        for number in 0..COUNT {
            let delay = pace.charge(&mut record, now_ms).expect("it is delayed only");
            assert!(last < delay && delay <= FAILURE_DELAY_MAX, "{number}: {delay:?}");
            last = delay;
        }
        assert_eq!(last, FAILURE_DELAY_MAX);
        let interval = FAILURE_WINDOW / COUNT;
        for _ in 0..100 {
            assert_eq!(pace.charge(&mut record, now_ms), Err(interval), "refusals add nothing");
        }
        // One more in each interval.
        let later_ms = now_ms + as_ms(interval);
        assert_eq!(pace.refusal(&record, later_ms), None);
        assert!(pace.charge(&mut record, later_ms).is_ok());
        assert!(pace.charge(&mut record, later_ms).is_err());
        // Everything is forgiven after two windows.
        assert_eq!(pace.charge(&mut record, later_ms + 2 * window_ms()), Ok(Duration::ZERO));
    }

    #[test]
    fn any_pace_bounds_the_failures_of_an_hour() {
        for count in [1, 7, 30, 60_000] {
            let (pace, mut record) = (Pace::per_window(count), Record::default());
            let tries = (0..60 * window_ms()).step_by(10);
            let allowed = tries.filter(|now_ms| pace.charge(&mut record, *now_ms).is_ok()).count();
            assert!(allowed <= 62 * count as usize, "{count}: {allowed}");
        }
    }

    #[test]
    fn a_ledger_is_bounded_and_keeps_the_largest_debts() {
        let (ledger, pace) = (Ledger::new(), Pace::per_window(COUNT));
        let attacker = 7;
        for _ in 0..COUNT {
            assert!(ledger.change(attacker, 0, |record| pace.charge(record, 0)).is_ok());
        }
        let bound = FAILURES_TRACKED_COUNT_MAX_PER_SHARD * FAILURES_TRACKED_SHARDS;
        for other in 0..2 * bound as u64 {
            ledger.change(1_000 + other, 0, |record| pace.charge(record, 0)).expect("its first failure");
        }
        assert_eq!(ledger.len(), bound);
        assert!(ledger.get(attacker, 0).is_some());
        assert_eq!(ledger.get(attacker, 2 * window_ms()), None);
        assert_eq!(ledger.sweep(window_ms() / 2), 1);
        assert_eq!(ledger.sweep(window_ms()), 0);
    }
}
