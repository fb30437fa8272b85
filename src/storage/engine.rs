//! Interface of a storage engine.
//!
//! All calls return at once: an engine runs its work where it may block, and its callers choose no thread. See
//! `docs/decisions/0036-storage-engines.md`.

use std::fmt;
use std::sync::Arc;

use super::counts::EngineCounts;
use super::feed::Feed;
use super::page_cache::Page;
use super::replication::ReplicationLog;
use super::reply::Reply;
use super::salt_store::SaltStore;
use super::write::{WriteBatch, WriteError};
use crate::model::{EntryId, Filter, KeyEntries, SealedEntry};

/// Storage engine: stores sealed entries, and publishes each commit to its [`Feed`]. Caches are in front of it.
pub trait Engine: fmt::Debug + Send + Sync {
    /// Reads all entries of a key; `None` if there are too many to read together, see [`Self::get_exact`].
    fn get(&self, key: &str) -> Reply<Option<KeyEntries>>;

    /// Reads one entry of a key that has too many for [`Self::get`].
    fn get_exact(&self, id: &EntryId) -> Reply<Option<Arc<SealedEntry>>>;

    /// Reads the page of entries after an id, in ascending order of ids.
    fn scan(&self, filter: &Filter, after: i64) -> Reply<Page>;

    /// Reads a page of entries in the order of their names.
    fn scan_names(&self, scan: NameScan) -> Reply<NameScanPage>;

    /// Returns for each name whether there is such an entry.
    fn exist(&self, ids: Vec<EntryId>) -> Reply<Vec<bool>>;

    /// Counts the entries.
    fn count(&self) -> Reply<u64>;

    /// Commits a batch completely or not at all. The reply arrives once the changes are durable and published; an
    /// engine that does not know the outcome finds it out before it replies. A queued batch is committed even if the
    /// reply is dropped.
    fn commit(&self, batch: WriteBatch) -> Reply<Vec<Arc<SealedEntry>>, WriteError>;

    /// Runs a job on the salt, which may block, where this engine reads.
    fn offload(&self, job: Box<dyn FnOnce() + Send>) -> Reply<()>;

    /// Returns the feed of this engine's commits.
    fn feed(&self) -> &Arc<Feed>;

    /// Returns the salt, which belongs to the entries.
    fn salt(&self) -> &Arc<SaltStore>;

    /// Returns the replication log; `None` if this store was never in a cluster.
    fn replication(&self) -> Option<&dyn ReplicationLog>;

    /// Returns counters and state for metrics and health checks.
    fn counts(&self) -> &EngineCounts;

    /// Returns the number of queued batches; `None` once the engine is closed.
    fn queued_count(&self) -> Option<usize>;

    /// Commits what is queued, and closes the store.
    fn close(&self);
}

/// Query of a page of entries in the order of their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameScan {
    /// Filter of the entries.
    pub filter: Filter,
    /// Name after which the page starts.
    pub after: Option<EntryId>,
    /// Approximate maximum number of bytes; the page has at least one entry if there is any.
    pub bytes_max: usize,
    /// Whether to leave out everything but ids and names.
    pub names_only: bool,
}

/// Page of entries in the order of their names.
#[derive(Debug, Default)]
pub struct NameScanPage {
    /// Entries of the page.
    pub rows: Vec<SealedEntry>,
    /// Whether there are further entries.
    pub more: bool,
}
