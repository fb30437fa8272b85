//! Decaying failure counters in bounded memory.
//!
//! A count is a debt in milliseconds: each failure adds one interval, and the debt decreases as time passes. This is
//! the generic cell rate algorithm, with the check separate from the increment.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::limits::{
    FAILURE_DELAY_MAX, FAILURE_WINDOW, FAILURES_TRACKED_COUNT_MAX_PER_SHARD, FAILURES_TRACKED_SHARDS,
};

/// Failure record of one address, user key or entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    /// Time at which the debt is paid off, in milliseconds.
    pub(super) until_ms: u64,
    /// Mark whose meaning the owner of the ledger defines.
    pub(super) mark: u64,
    /// Time of the last warning in the log, in milliseconds.
    pub(super) warned_ms: Option<u64>,
}

/// Rate at which failures add debt. The failures that one window allows are paid off within [`FAILURE_WINDOW`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    interval_ms: u64,
}

/// Table of records by keyed hash, so that an attacker cannot target the record of another client.
#[derive(Debug)]
pub(super) struct Ledger {
    shards: Vec<Mutex<HashMap<u64, Record>>>,
}

impl Pace {
    /// Creates a pace that allows `count` failures per window without any consequence.
    pub(super) fn per_window(count: u32) -> Self {
        Self { interval_ms: (window_ms() / u64::from(count.max(1))).max(1) }
    }

    /// Returns the time until another failure is allowed; `None` if one is allowed now.
    pub(super) fn refusal(self, record: &Record, now_ms: u64) -> Option<Duration> {
        let debt_ms = record.until_ms.saturating_sub(now_ms) + self.interval_ms;
        let over_ms = debt_ms.saturating_sub(2 * window_ms());
        (over_ms > 0).then(|| Duration::from_millis(over_ms))
    }

    /// Adds a failure, and returns the delay of its response.
    ///
    /// # Errors
    /// Returns the time to wait if no more failures are allowed now. In that case nothing is added.
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

    /// Returns the record, if it has any debt left.
    pub(super) fn get(&self, key: u64, now_ms: u64) -> Option<Record> {
        self.shard(key).get(&key).copied().filter(|record| record.until_ms > now_ms)
    }

    /// Changes a record, which is created if it does not exist.
    pub(super) fn change<R>(&self, key: u64, now_ms: u64, change: impl FnOnce(&mut Record) -> R) -> R {
        let mut shard = self.shard(key);
        if shard.len() >= FAILURES_TRACKED_COUNT_MAX_PER_SHARD && !shard.contains_key(&key) {
            shard.retain(|_, record| record.until_ms > now_ms);
            make_room(&mut shard);
        }
        change(shard.entry(key).or_default())
    }

    /// Removes records that are paid off, and returns the number of remaining ones.
    pub(super) fn sweep(&self, now_ms: u64) -> usize {
        let mut remaining = 0;
        for shard in &self.shards {
            let mut shard = lock(shard);
            shard.retain(|_, record| record.until_ms > now_ms);
            shard.shrink_to_fit();
            remaining += shard.len();
        }
        remaining
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

/// Removes the record with the smallest debt from a full shard: attackers have large debts.
fn make_room(shard: &mut HashMap<u64, Record>) {
    if shard.len() >= FAILURES_TRACKED_COUNT_MAX_PER_SHARD
        && let Some(key) = shard.iter().min_by_key(|(_, record)| record.until_ms).map(|(key, _)| *key)
    {
        shard.remove(&key);
    }
}

fn lock(shard: &Mutex<HashMap<u64, Record>>) -> MutexGuard<'_, HashMap<u64, Record>> {
    // No critical section panics in the middle of a change.
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
            let delay = pace.charge(&mut record, now_ms).expect("only delayed");
            assert!(last < delay && delay <= FAILURE_DELAY_MAX, "{number}: {delay:?}");
            last = delay;
        }
        assert_eq!(last, FAILURE_DELAY_MAX);
        let interval = FAILURE_WINDOW / COUNT;
        for _ in 0..100 {
            assert_eq!(pace.charge(&mut record, now_ms), Err(interval), "refusals add nothing");
        }
        // One more failure is allowed per interval.
        let later_ms = now_ms + as_ms(interval);
        assert_eq!(pace.refusal(&record, later_ms), None);
        assert!(pace.charge(&mut record, later_ms).is_ok());
        assert!(pace.charge(&mut record, later_ms).is_err());
        // The debt is paid off after two windows.
        assert_eq!(pace.charge(&mut record, later_ms + 2 * window_ms()), Ok(Duration::ZERO));
    }

    #[test]
    fn every_pace_bounds_the_failures_per_hour() {
        for count in [1, 7, 30, 60_000] {
            let (pace, mut record) = (Pace::per_window(count), Record::default());
            let attempts = (0..60 * window_ms()).step_by(10);
            let allowed = attempts.filter(|now_ms| pace.charge(&mut record, *now_ms).is_ok()).count();
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
            ledger
                .change(1_000 + other, 0, |record| pace.charge(record, 0))
                .expect("first failure of this record");
        }
        assert_eq!(ledger.len(), bound);
        assert!(ledger.get(attacker, 0).is_some());
        assert_eq!(ledger.get(attacker, 2 * window_ms()), None);
        assert_eq!(ledger.sweep(window_ms() / 2), 1);
        assert_eq!(ledger.sweep(window_ms()), 0);
    }
}
