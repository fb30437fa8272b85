//! Counters and state of an engine, for metrics and health checks.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::feed::{Commit, Subscriber};
use crate::telemetry::{Counter, Durations, Gauge, Histogram};

/// Counters and state of an engine. Only one thread at a time adds to the counters.
#[derive(Debug)]
pub struct EngineCounts {
    /// Transactions, including failed ones.
    pub commits: Counter,
    /// Writes and other jobs in these transactions.
    pub jobs: Counter,
    /// Changes of entries that were committed.
    pub changes: Counter,
    durations: Durations,
    /// Time of the writer's last heartbeat, which falls between two transactions, in milliseconds since the store was
    /// opened.
    beat_ms: Gauge,
    opened: Instant,
    is_full: AtomicBool,
    /// Description of the file that was removed or replaced.
    displaced: Mutex<Option<String>>,
    spoils_reads: AtomicBool,
    wal_bytes: Gauge,
    is_checkpoint_blocked: AtomicBool,
}

impl Subscriber for EngineCounts {
    fn publish(&self, commit: &Commit) {
        self.changes.add(commit.changes.len() as u64);
    }
}

impl EngineCounts {
    pub(super) fn new(is_full: bool) -> Self {
        Self {
            commits: Counter::default(),
            jobs: Counter::default(),
            changes: Counter::default(),
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

    /// Returns the durations of transactions, including the fsync.
    pub fn durations(&self) -> Histogram {
        self.durations.sum()
    }

    /// Returns whether the last transaction, or startup if there was none since, lacked disk space.
    pub fn is_full(&self) -> bool {
        self.is_full.load(Relaxed)
    }

    /// Returns why writes would be lost, if a file was removed or replaced.
    pub fn displaced(&self) -> Option<String> {
        self.displaced.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns whether uncached reads are unreliable, too.
    pub(super) fn spoils_reads(&self) -> bool {
        self.spoils_reads.load(Relaxed)
    }

    pub(super) fn note_displaced(&self, cause: Option<String>, spoils_reads: bool) {
        self.spoils_reads.store(spoils_reads, Relaxed);
        *self.displaced.lock().unwrap_or_else(PoisonError::into_inner) = cause;
    }

    /// Returns the milliseconds since the last heartbeat of the writer, which beats between transactions, and once per
    /// second while idle.
    pub fn since_heartbeat_ms(&self) -> u64 {
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

    /// Records that disk space is available again.
    pub(super) fn note_room(&self) {
        self.is_full.store(false, Relaxed);
    }

    /// Returns the size of the WAL after the last transaction.
    pub fn wal_bytes(&self) -> u64 {
        self.wal_bytes.get()
    }

    pub(super) fn set_wal_bytes(&self, bytes: u64) {
        self.wal_bytes.set(bytes);
    }

    /// Returns whether a transaction of another program keeps the WAL from being emptied.
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
