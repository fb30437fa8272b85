//! What the parts count, gathered for the metrics, and what is wrong with them, for the health.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::{Error, Service};
use crate::crypto::Counts;
use crate::store::WriterCounts;
use crate::telemetry::ProcessNumbers;

/// How long a count of the entries is good: it looks at all of them.
const ENTRIES_COUNT_AGE_MAX: Duration = Duration::from_secs(10);
/// A transaction that takes longer than this is none that will end.
const WRITER_PATIENCE: Duration = Duration::from_secs(30);

/// Figures of one moment.
#[derive(Clone, Copy, Debug)]
pub struct Stats {
    /// Derived keys.
    pub keys: Counts,
    /// Derivations that wait for a thread.
    pub derivations_queued: usize,
    /// Derivations that may wait.
    pub derivations_queued_max: usize,
    /// Reads of the database that wait for a thread.
    pub reads_queued: usize,
    /// Reads that may wait.
    pub reads_queued_max: usize,
    /// Writes that wait for the writer.
    pub writes_queued: usize,
    /// Memory of cached rows.
    pub rows_cached_bytes: usize,
    /// Entry keys whose rows are cached.
    pub rows_cached: usize,
    /// Memory of cached pages of lists.
    pub pages_cached_bytes: usize,
    /// Pages of lists that are cached.
    pub pages_cached: usize,
}

impl Service {
    /// Figures of this moment.
    pub fn numbers(&self) -> Stats {
        let (rows_cached_bytes, rows_cached) = self.store.cache().usage();
        let (derivations_queued, reads_queued) = self.pool.queued_counts();
        let (derivations_queued_max, reads_queued_max) = self.pool.queues_max();
        let (pages_cached_bytes, pages_cached) = self.store.pages_usage();
        Stats {
            keys: self.keys.counts(),
            derivations_queued,
            derivations_queued_max,
            reads_queued,
            reads_queued_max,
            writes_queued: self.store.writes_queued().unwrap_or_default(),
            rows_cached_bytes,
            rows_cached,
            pages_cached_bytes,
            pages_cached,
        }
    }

    /// What the store's writer counts.
    pub fn writer_counts(&self) -> &WriterCounts {
        self.store.writer_counts()
    }

    /// What the operating system counts of this process, unless too much is going on to look.
    pub async fn process_numbers(&self) -> Option<ProcessNumbers> {
        self.pool.submit(ProcessNumbers::read).ok()?.await.ok()?
    }

    /// How many entries this node has; as of some seconds ago, perhaps.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn entries_count(&self) -> Result<u64, Error> {
        let known = *self.entries_counted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, count)) = known
            && at.elapsed() < ENTRIES_COUNT_AGE_MAX
        {
            return Ok(count);
        }
        let count = self.read_store(|store| store.entries_count()).await?;
        *self.entries_counted.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), count));
        Ok(count)
    }

    /// Why this node cannot do all that it should, if so.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let writer = self.store.writer_counts();
        if self.store.writes_queued().is_none() {
            faults.push("the database is closed".to_owned());
        } else if Duration::from_millis(writer.silent_ms()) > WRITER_PATIENCE {
            faults
                .push(format!("the writer has been at one transaction for {} s", writer.silent_ms() / 1000));
        }
        faults.extend(writer.displaced());
        if writer.is_full() {
            faults.push("no space is left to write; reading goes on".to_owned());
        }
        faults
    }
}
