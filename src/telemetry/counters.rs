//! Numbers that one thread adds to and any thread reads: no locked instruction, and no cache line that two cores
//! write.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Only ever grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// To be called by one thread only: additions of others could be lost.
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(count), Relaxed);
    }

    /// The sum so far.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that is set.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Sets it.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// What it was set to last.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Upper bounds of the buckets, in seconds.
pub(super) const BUCKETS_SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// How many durations fell into each bucket.
#[derive(Debug, Default)]
pub struct Durations {
    /// One for each bound, and one for what is longer than all of them.
    counts: [Counter; BUCKETS_SECONDS.len() + 1],
    nanoseconds: Counter,
}

/// A sum of [`Durations`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// As the buckets, each by itself.
    pub counts: [u64; BUCKETS_SECONDS.len() + 1],
    /// Of all durations.
    pub seconds: f64,
}

impl Durations {
    /// To be called by one thread only.
    pub fn add(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = BUCKETS_SECONDS.iter().position(|&bound| seconds <= bound);
        self.counts[bucket.unwrap_or(BUCKETS_SECONDS.len())].add(1);
        self.nanoseconds.add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// What was counted so far.
    pub fn sum(&self) -> Histogram {
        let mut histogram = Histogram::default();
        histogram.include(self);
        histogram
    }
}

impl Histogram {
    /// Adds what was counted so far.
    #[expect(clippy::cast_precision_loss, reason = "nanoseconds of centuries")]
    pub fn include(&mut self, durations: &Durations) {
        for (sum, count) in self.counts.iter_mut().zip(&durations.counts) {
            *sum += count.get();
        }
        self.seconds += durations.nanoseconds.get() as f64 / 1e9;
    }

    /// How many durations there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_the_first_bucket_that_holds_them() {
        let durations = Durations::default();
        for micros in [0, 500, 501, 20_000_000] {
            durations.add(Duration::from_micros(micros));
        }
        let mut histogram = Histogram::default();
        histogram.include(&durations);
        histogram.include(&durations);
        assert_eq!((histogram.counts[0], histogram.counts[1], histogram.counts[14]), (4, 2, 2));
        assert_eq!(histogram.count(), 8);
        assert!((histogram.seconds - 40.002_002).abs() < 1e-9);
    }
}
