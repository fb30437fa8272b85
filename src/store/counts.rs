//! What the store counts for the metrics, and by which one sees that its writer is alive.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use crate::telemetry::{Counter, Durations, Gauge, Histogram};

/// Only the writer's thread adds.
#[derive(Debug)]
pub struct WriterCounts {
    /// Transactions, also those that failed.
    pub commits: Counter,
    /// Writes and other jobs in them.
    pub jobs: Counter,
    durations: Durations,
    /// When the writer was last seen between two transactions, in milliseconds after the store was opened.
    beat_ms: Gauge,
    opened: Instant,
    is_full: AtomicBool,
}

impl WriterCounts {
    pub(super) fn new() -> Self {
        Self {
            commits: Counter::default(),
            jobs: Counter::default(),
            durations: Durations::default(),
            beat_ms: Gauge::default(),
            opened: Instant::now(),
            is_full: AtomicBool::new(false),
        }
    }

    /// How long transactions took, the fsync included.
    pub fn durations(&self) -> Histogram {
        self.durations.sum()
    }

    /// Whether the disk had no space left for the last transaction.
    pub fn is_full(&self) -> bool {
        self.is_full.load(Relaxed)
    }

    /// How long the writer has been at its last transaction, in milliseconds; an idle one shows itself each second.
    pub fn silent_ms(&self) -> u64 {
        self.now_ms().saturating_sub(self.beat_ms.get())
    }

    pub(super) fn beat(&self) {
        self.beat_ms.set(self.now_ms());
    }

    pub(super) fn note(&self, jobs: usize, began: Instant, is_full: bool) {
        self.commits.add(1);
        self.jobs.add(jobs as u64);
        self.durations.add(began.elapsed());
        self.is_full.store(is_full, Relaxed);
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
