//! What the store counts for the metrics, and by which one sees that its writer is alive.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
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
    /// Which file is another one than was opened.
    displaced: Mutex<Option<String>>,
    spoils_reads: AtomicBool,
    wal_bytes: Gauge,
    is_checkpoint_blocked: AtomicBool,
}

impl WriterCounts {
    pub(super) fn new(is_full: bool) -> Self {
        Self {
            commits: Counter::default(),
            jobs: Counter::default(),
            durations: Durations::default(),
            beat_ms: Gauge::default(),
            opened: Instant::now(),
            is_full: AtomicBool::new(is_full),
            displaced: Mutex::default(),
            spoils_reads: AtomicBool::new(false),
            wal_bytes: Gauge::default(),
            is_checkpoint_blocked: AtomicBool::new(false),
        }
    }

    /// How long transactions took, the fsync included.
    pub fn durations(&self) -> Histogram {
        self.durations.sum()
    }

    /// Whether there was no room for the last transaction, or at the start, and none since.
    pub fn is_full(&self) -> bool {
        self.is_full.load(Relaxed)
    }

    /// Why writes would be lost, if a file was removed or replaced.
    pub fn displaced(&self) -> Option<String> {
        self.displaced.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the database cannot be read either.
    pub(super) fn spoils_reads(&self) -> bool {
        self.spoils_reads.load(Relaxed)
    }

    pub(super) fn note_displaced(&self, fault: Option<String>, spoils_reads: bool) {
        self.spoils_reads.store(spoils_reads, Relaxed);
        *self.displaced.lock().unwrap_or_else(PoisonError::into_inner) = fault;
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

    /// There is room again.
    pub(super) fn note_room(&self) {
        self.is_full.store(false, Relaxed);
    }

    /// Size of the write-ahead log after the last transaction.
    pub fn wal_bytes(&self) -> u64 {
        self.wal_bytes.get()
    }

    pub(super) fn set_wal_bytes(&self, bytes: u64) {
        self.wal_bytes.set(bytes);
    }

    /// Whether a transaction of another program keeps the write-ahead log from being emptied.
    pub fn is_checkpoint_blocked(&self) -> bool {
        self.is_checkpoint_blocked.load(Relaxed)
    }

    pub(super) fn set_checkpoint_blocked(&self, is_blocked: bool) {
        self.is_checkpoint_blocked.store(is_blocked, Relaxed);
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
