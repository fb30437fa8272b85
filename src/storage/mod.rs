//! Durable storage: an engine that stores entries, the caches in front of it, and the salt.
//!
//! Never sees a user key or a plaintext. All calls return at once; what an engine has to do for them runs elsewhere.

mod counts;
mod digest;
mod digest_table;
mod disk_space;
mod engine;
mod entry_cache;
mod error;
mod feed;
#[cfg(all(test, feature = "interleavings"))]
mod interleavings;
pub mod memory;
mod page_cache;
mod paths;
mod permissions;
mod replication;
mod reply;
mod salt;
mod salt_store;
pub mod sqlite;
mod sync;
mod write;

use std::path::Path;
use std::sync::Arc;

use futures_channel::oneshot;

pub use counts::EngineCounts;
pub use digest::{bucket_of, root_of};
pub use digest_table::DigestTable;
pub use disk_space::Shortage;
pub use engine::{Engine, NameScan, NameScanPage};
pub use entry_cache::{EntryCache, FillTicket};
pub use error::{BoxedError, Error, OpenError};
pub use feed::{Commit, EntryChange, Feed, Lagged, Subscriber};
pub use page_cache::Page;
pub use permissions::Denials;
pub use replication::{AppliedChanges, LogPage, PeerProgress, ReplicationLog, VersionsPage};
pub use reply::Reply;
pub use salt::SaltProblem;
pub use salt_store::{ImportResult, ReplaceResult, SaltStore};
pub use sqlite::maintenance;
pub use sqlite::repair::{Repaired, repair_versions};
pub use versioning::{VersioningOptions, WallClock};
pub use write::{Expect, Write, WriteBatch, WriteError};

use self::page_cache::PageCache;
use crate::limits::PAGE_CACHE_PART;
use crate::model::{EntryId, Filter, KeyEntries, OwnerTag, SealedEntry};

mod versioning;

/// Storage of this process: an engine and its caches, shared by all threads.
#[derive(Debug)]
pub struct Storage {
    engine: Box<dyn Engine>,
    entries: Arc<EntryCache>,
    pages: Arc<PageCache>,
}

impl Storage {
    /// Opens an engine, which gets the subscribers of its feed: the caches first, then `subscribers`.
    /// `cache_bytes_max` is the memory for cached entries and pages together.
    ///
    /// # Errors
    /// Returns the error of the engine.
    pub fn open<E: Engine + 'static>(
        cache_bytes_max: usize,
        subscribers: Vec<Arc<dyn Subscriber>>,
        open: impl FnOnce(Vec<Arc<dyn Subscriber>>) -> Result<E, OpenError>,
    ) -> Result<Self, OpenError> {
        let pages_bytes_max = cache_bytes_max / PAGE_CACHE_PART;
        let entries = Arc::new(EntryCache::new(cache_bytes_max - pages_bytes_max));
        let pages = Arc::new(PageCache::new(pages_bytes_max));
        let mut all: Vec<Arc<dyn Subscriber>> =
            vec![Arc::<EntryCache>::clone(&entries), Arc::<PageCache>::clone(&pages)];
        all.extend(subscribers);
        Ok(Self { engine: Box::new(open(all)?), entries, pages })
    }

    /// Opens the files of an SQLite database, see [`sqlite::Sqlite::open`].
    ///
    /// # Errors
    /// Fails if the files cannot be used. They are then unchanged, and the message contains the remedy.
    pub fn open_sqlite(
        database: &Path,
        salt: &Path,
        cache_bytes_max: usize,
        subscribers: Vec<Arc<dyn Subscriber>>,
        options: sqlite::Options,
    ) -> Result<Self, OpenError> {
        Self::open(cache_bytes_max, subscribers, |all| sqlite::Sqlite::open(database, salt, all, options))
    }

    /// Creates a store in memory.
    pub fn in_memory(
        cache_bytes_max: usize,
        subscribers: Vec<Arc<dyn Subscriber>>,
        versioning: VersioningOptions,
    ) -> Self {
        Self::open(cache_bytes_max, subscribers, |all| Ok(memory::Memory::new(all, versioning)))
            .expect("no file is opened")
    }

    /// Returns the engine without its caches.
    pub fn engine(&self) -> &dyn Engine {
        &*self.engine
    }

    /// Returns the entries of a key, if they are cached.
    pub fn cached(&self, key: &str) -> Option<Arc<KeyEntries>> {
        self.entries.get(key)
    }

    /// Reads all entries of a key, and caches them. Returns `None` if there are too many; use [`Self::get_exact`] then.
    ///
    /// # Errors
    /// Fails if the engine cannot read.
    pub async fn get(&self, key: &str) -> Result<Option<Arc<KeyEntries>>, Error> {
        if let Some(entries) = self.entries.get(key) {
            return Ok(Some(entries));
        }
        let ticket = self.entries.prepare_fill(key);
        let entries = self.engine.get(key).await?.map(Arc::new);
        if let Some(entries) = &entries {
            self.entries.fill(&ticket, key, entries);
        }
        Ok(entries)
    }

    /// Reads one entry.
    ///
    /// # Errors
    /// Fails if the engine cannot read.
    pub async fn get_exact(&self, id: &EntryId) -> Result<Option<Arc<SealedEntry>>, Error> {
        match self.get(&id.key).await? {
            Some(entries) => Ok(entries.exact(id.environment.as_deref()).cloned()),
            None => self.engine.get_exact(id).await,
        }
    }

    /// Reads the page of entries after an id, in ascending order of ids, and caches it.
    ///
    /// # Errors
    /// Fails if the engine cannot read.
    pub async fn scan(&self, filter: &Filter, after: i64) -> Result<Arc<Page>, Error> {
        if let Some(page) = self.pages.get(filter, after) {
            return Ok(page);
        }
        let since = self.engine.feed().last();
        let page = self.engine.scan(filter, after).await?;
        Ok(self.pages.fill(self.engine.feed(), since, filter, after, page))
    }

    /// Reads a page of entries in the order of their names.
    pub fn scan_names(&self, scan: NameScan) -> Reply<NameScanPage> {
        self.engine.scan_names(scan)
    }

    /// Returns for each name whether there is such an entry.
    pub fn exist(&self, ids: Vec<EntryId>) -> Reply<Vec<bool>> {
        self.engine.exist(ids)
    }

    /// Counts the entries.
    pub fn count(&self) -> Reply<u64> {
        self.engine.count()
    }

    /// Commits a batch, see [`Engine::commit`].
    pub fn commit(&self, batch: WriteBatch) -> Reply<Vec<Arc<SealedEntry>>, WriteError> {
        self.engine.commit(batch)
    }

    /// Commits a single write, and returns the new entry, or the deleted one.
    ///
    /// # Errors
    /// Fails if the condition of the write is not met, or if the engine cannot write.
    pub async fn commit_one(
        &self,
        write: Write,
        owner: Option<OwnerTag>,
    ) -> Result<Arc<SealedEntry>, WriteError> {
        let committed = self.commit(WriteBatch { writes: vec![write], owner }).await?;
        Ok(committed.into_iter().next().expect("one result per write"))
    }

    /// Returns the salt.
    pub fn salt(&self) -> &Arc<SaltStore> {
        self.engine.salt()
    }

    /// Runs a job on the salt that may write its file. Once begun it is completed, even if the caller is cancelled.
    ///
    /// # Errors
    /// Fails if the engine is busy or closed; the inner error is that of the job.
    pub async fn change_salt<T: Send + 'static>(
        &self,
        job: impl FnOnce(&SaltStore) -> Result<T, OpenError> + Send + 'static,
    ) -> Result<Result<T, OpenError>, Error> {
        let (sender, receiver) = oneshot::channel();
        let salt = Arc::clone(self.engine.salt());
        let job = move || drop(sender.send(job(&salt)));
        self.engine.offload(Box::new(job)).await?;
        receiver.await.map_err(|_| Error::Stopped)
    }

    /// Returns the feed of all commits.
    pub fn feed(&self) -> &Feed {
        self.engine.feed()
    }

    /// Returns the replication log; `None` if this store was never in a cluster.
    pub fn replication(&self) -> Option<&dyn ReplicationLog> {
        self.engine.replication()
    }

    /// Returns counters and state of the engine for metrics and health checks.
    pub fn counts(&self) -> &EngineCounts {
        self.engine.counts()
    }

    /// Returns the number of queued batches; `None` once the store is closed.
    pub fn queued_count(&self) -> Option<usize> {
        self.engine.queued_count()
    }

    /// Returns the bytes of cached entries and the number of their keys.
    pub fn entries_usage(&self) -> (usize, usize) {
        self.entries.usage()
    }

    /// Returns the bytes and the number of cached pages.
    pub fn pages_usage(&self) -> (usize, usize) {
        self.pages.usage()
    }

    /// Commits what is queued, and closes the store.
    pub fn close(&self) {
        self.engine.close();
    }
}

#[cfg(test)]
impl Storage {
    /// Returns the page of entries after an id, if it is cached.
    fn cached_page(&self, filter: &Filter, after: i64) -> Option<Arc<Page>> {
        self.pages.get(filter, after)
    }

    /// Empties the page cache.
    fn clear_pages(&self) {
        self.pages.reset();
    }
}
