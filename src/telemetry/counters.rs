//! Single-writer metrics that any thread can read: no locked instruction, and no cache line that two cores write.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Monotonic counter.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to the counter. Must be called by one thread only; concurrent additions could be lost.
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(count), Relaxed);
    }

    /// Returns the current count.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Gauge.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Sets the value.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// Returns the current value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Upper bounds of the histogram buckets, in seconds.
pub(super) const BUCKETS_SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Single-writer histogram of durations.
#[derive(Debug, Default)]
pub struct Durations {
    /// Durations per bucket; the last one is for those above all bounds.
    counts: [Counter; BUCKETS_SECONDS.len() + 1],
    nanoseconds: Counter,
}

/// Sum of one or more [`Durations`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// Durations per bucket, not cumulative.
    pub counts: [u64; BUCKETS_SECONDS.len() + 1],
    /// Sum of all durations, in seconds.
    pub seconds: f64,
}

impl Durations {
    /// Adds a duration. Must be called by one thread only.
    pub fn add(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = BUCKETS_SECONDS.iter().position(|&bound| seconds <= bound);
        self.counts[bucket.unwrap_or(BUCKETS_SECONDS.len())].add(1);
        self.nanoseconds.add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Returns a snapshot.
    pub fn sum(&self) -> Histogram {
        let mut histogram = Histogram::default();
        histogram.include(self);
        histogram
    }
}

impl Histogram {
    /// Adds the current counts of `durations`.
    #[expect(clippy::cast_precision_loss, reason = "nanoseconds of centuries")]
    pub fn include(&mut self, durations: &Durations) {
        for (sum, count) in self.counts.iter_mut().zip(&durations.counts) {
            *sum += count.get();
        }
        self.seconds += durations.nanoseconds.get() as f64 / 1e9;
    }

    /// Returns the number of durations.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_counted_in_the_first_matching_bucket() {
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
