//! Statistics of the components for the metrics, and their problems for the health check.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::context::Context;
use super::{Error, Guard};
use crate::crypto::Counts;
use crate::limits::{ENTRIES_COUNT_AGE_MAX, WRITER_TIMEOUT};
use crate::model::Revision;
use crate::storage::EngineCounts;
use crate::telemetry::ProcessStats;

/// Snapshot of the statistics.
#[derive(Clone, Copy, Debug)]
pub struct Stats {
    /// Counts of the derived-key cache.
    pub keys: Counts,
    /// Number of queued derivations.
    pub derivations_queued: usize,
    /// Maximum number of queued derivations.
    pub derivations_queued_max: usize,
    /// Number of queued database reads.
    pub reads_queued: usize,
    /// Maximum number of queued database reads.
    pub reads_queued_max: usize,
    /// Number of queued writes.
    pub writes_queued: usize,
    /// Bytes of memory of cached rows.
    pub rows_cached_bytes: usize,
    /// Number of entry keys whose rows are cached.
    pub rows_cached: usize,
    /// Bytes of memory of cached list pages.
    pub pages_cached_bytes: usize,
    /// Number of cached list pages.
    pub pages_cached: usize,
}

/// Statistics and health of this node.
#[derive(Debug)]
pub struct Statistics {
    context: Arc<Context>,
    /// Time and result of the last count of the entries.
    entries_counted: Mutex<Option<(Instant, u64)>>,
}

impl Statistics {
    pub(super) fn new(context: Arc<Context>) -> Self {
        Self { context, entries_counted: Mutex::default() }
    }

    /// Returns the current statistics.
    pub fn snapshot(&self) -> Stats {
        let (rows_cached_bytes, rows_cached) = self.context.storage.entries_usage();
        let (pages_cached_bytes, pages_cached) = self.context.storage.pages_usage();
        Stats {
            keys: self.context.keys.counts(),
            derivations_queued: self.context.deriver.queued_count(),
            derivations_queued_max: self.context.deriver.queue_max(),
            reads_queued: self.context.pool.queued_count(),
            reads_queued_max: self.context.pool.queue_max(),
            writes_queued: self.context.storage.queued_count().unwrap_or_default(),
            rows_cached_bytes,
            rows_cached,
            pages_cached_bytes,
            pages_cached,
        }
    }

    /// Returns the counters of the store's writer.
    pub fn engine_counts(&self) -> &EngineCounts {
        self.context.storage.counts()
    }

    /// Returns the revision of the last change of an entry.
    pub fn revision(&self) -> Revision {
        self.context.storage.feed().last()
    }

    /// Reads the process statistics of the operating system; `None` if the pool is busy.
    pub async fn process_stats(&self) -> Option<ProcessStats> {
        self.context.pool.submit(ProcessStats::read).ok()?.await.ok()?
    }

    /// Returns the number of entries on this node, which may be a few seconds old.
    ///
    /// # Errors
    /// Fails if the database cannot be read.
    pub async fn entries_count(&self) -> Result<u64, Error> {
        let cached = *self.entries_counted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, count)) = cached
            && at.elapsed() < ENTRIES_COUNT_AGE_MAX
        {
            return Ok(count);
        }
        let count = self.context.storage.count().await?;
        *self.entries_counted.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), count));
        Ok(count)
    }

    /// Returns the health problems of this node, empty if it is healthy.
    pub fn health_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let writer = self.context.storage.counts();
        if self.context.storage.queued_count().is_none() {
            problems.push("the database is closed".to_owned());
        } else if Duration::from_millis(writer.since_heartbeat_ms()) > WRITER_TIMEOUT {
            problems.push(format!(
                "the writer has been at one transaction for {} s",
                writer.since_heartbeat_ms() / 1000
            ));
        }
        problems.extend(writer.displaced());
        if writer.is_full() {
            problems.push("no space is left to write; reading goes on".to_owned());
        }
        problems
    }

    /// Returns the guard, for its counts.
    pub fn guard(&self) -> &Guard {
        &self.context.guard
    }

    /// Returns the time since the start.
    pub fn uptime(&self) -> Duration {
        self.context.uptime()
    }
}
