//! Durable storage: the database, its caches and the salt file.
//!
//! This module owns all durable state, and is the only one that uses SQLite. It never sees a user key or a
//! plaintext. Writes run on a single writer thread. Reads run on the calling thread, which must not be an executor
//! unless the result is cached.

mod batch;
mod check;
mod column;
pub(super) mod counts;
mod error;
mod identity;
mod immutable;
mod in_place;
mod lock;
pub mod maintenance;
mod open;
mod reader;
pub(super) mod repair;
pub(super) mod replica;
mod reserve;
mod schema;
mod versions;
mod wal_index;
mod wal_watch;
pub(super) mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{fmt, fs};

use futures_channel::oneshot;

pub use self::counts::WriterCounts;
pub use self::replica::{LogPage, VersionsPage};
pub use self::writer::{OnFatal, OnLogAppend};

use self::identity::Identity;
use self::reserve::Reserve;
use self::versions::Versions;
use self::wal_index::WalIndex;
use crate::limits::{CLOCK_AHEAD_MAX, ENTRY_CACHE_BYTES_MIN, PAGE_CACHE_PART, SQLITE_VERSION_MIN};
use crate::model::{Change, EntryId, ReplicaId, Timestamp, TombstoneHorizon, Version};
use crate::model::{Filter, KeyEntries, OwnerTag, SealedEntry};
use crate::storage::digest_table::DigestTable;
use crate::storage::entry_cache::EntryCache;
use crate::storage::error::{Error, OpenError};
use crate::storage::page_cache::{Page, PageCache};
use crate::storage::salt_file::SaltFile;
use crate::storage::write::{AppliedChanges, PeerProgress, Write, WriteError, WriteResult};
use crate::storage::{paths, permissions};

/// SQLite busy timeout: how long a lock of another process, such as a backup, is waited for.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// Options for opening a store.
pub struct Options {
    /// Memory for cached rows, in the entry cache and the page cache together.
    pub cache_bytes_max: usize,
    /// SHA-256 of a salt file that is accepted although it is improper or does not match the database.
    pub accepted_salt: Option<[u8; 32]>,
    /// Number of threads that read concurrently.
    pub readers_count: usize,
    /// How versions are maintained.
    pub versions: VersioningOptions,
    /// Called on a thread of the store after a fatal error.
    pub on_fatal: OnFatal,
    /// Called with the last position in the replication log: once when the store is opened, then on the writer thread
    /// after each commit that appended to it.
    pub on_log_append: OnLogAppend,
}

/// Options for the versions of entries.
pub struct VersioningOptions {
    /// Whether this node is in a cluster now. A node that ever was in one keeps maintaining versions.
    pub is_clustered: bool,
    /// Wall clock in milliseconds since 1970, from which version timestamps are derived.
    pub wall_clock: WallClock,
    /// Bits of the replica ID of a new data directory; random if `None`. The ID breaks ties between equal
    /// timestamps, so a reproducible test sets it.
    pub node_bits: Option<u64>,
}

/// Wall clock in milliseconds since 1970.
pub type WallClock = Arc<dyn Fn() -> u64 + Send + Sync>;

impl VersioningOptions {
    /// Creates options that use this machine's clock.
    pub fn new(is_clustered: bool) -> Self {
        Self { is_clustered, wall_clock: Arc::new(|| Timestamp::now().as_milliseconds()), node_bits: None }
    }
}

impl Options {
    /// Creates the options of a standalone node.
    pub fn standalone(on_fatal: OnFatal) -> Self {
        Self {
            cache_bytes_max: 4 * ENTRY_CACHE_BYTES_MIN,
            accepted_salt: None,
            readers_count: 1,
            versions: VersioningOptions::new(false),
            on_fatal,
            on_log_append: Box::new(|_| {}),
        }
    }
}

/// An open store, shared by all threads.
pub struct Store {
    readers: reader::Readers,
    cache: Arc<EntryCache>,
    pages: Arc<PageCache>,
    counts: Arc<WriterCounts>,
    buckets: Arc<DigestTable>,
    horizon: Arc<Mutex<TombstoneHorizon>>,
    node: Option<ReplicaId>,
    wall_clock: WallClock,
    salt: Arc<SaltFile>,
    writer: Mutex<Option<Arc<writer::Writer>>>,
    migration_backup: Option<PathBuf>,
    thread: Mutex<Option<JoinHandle<()>>>,
    check: Mutex<Option<check::Background>>,
    _lock: lock::DataLock,
}

impl Store {
    /// Locks, checks, migrates and opens the files, and starts the writer thread.
    ///
    /// # Errors
    /// Fails if the files cannot be used. They are then unchanged, and the message contains the remedy.
    pub fn open(database: &Path, salt: &Path, options: Options) -> Result<Self, OpenError> {
        let store =
            Self::open_files(database, salt, options).map_err(|error| error.with_denials(database, salt))?;
        permissions::warn_of_other_users(database, salt);
        Ok(store)
    }

    fn open_files(database: &Path, salt: &Path, options: Options) -> Result<Self, OpenError> {
        assert!(
            rusqlite::version_number() >= SQLITE_VERSION_MIN,
            "SQLite {} can lose committed writes (WAL-reset bug); the build must bundle a newer one",
            rusqlite::version()
        );
        let configured_path = database;
        let database = &paths::resolved(database);
        make_directory(database)?;
        make_directory(salt)?;
        let mut lock = lock::DataLock::acquire(database)?;
        let salt_file = Arc::new(SaltFile::open(salt, options.accepted_salt)?);
        let mut opened = open::open(database, &salt_file)?;
        lock.hold_database(database)?;
        if opened.wal_index == WalIndex::Shared {
            lock.hold_index(database);
        }
        let identity = Identity::new(configured_path, &lock, Arc::clone(&salt_file));
        if opened.has_entries {
            salt_file.set_pinned();
        }
        let buckets = Arc::new(DigestTable::default());
        let horizon = Arc::default();
        let wall_clock = Arc::clone(&options.versions.wall_clock);
        let versions = open_versions(&mut opened, options.versions, &buckets, &horizon)
            .map_err(|error| OpenError::sqlite(database, error))?;
        if let Some(versions) = &versions {
            // Peers may lack changes that were made before this startup.
            (options.on_log_append)(versions.last_sequence());
        }
        let node = versions.as_ref().map(Versions::node);
        let counts = Arc::new(WriterCounts::new(opened.lacks_room));
        let path = database.to_owned();
        let readers =
            reader::Readers::open(path, opened.wal_index, options.readers_count, Arc::clone(&counts))
                .map_err(|source| OpenError::Readers { path: database.to_owned(), source })?;
        let pages_bytes_max = options.cache_bytes_max / PAGE_CACHE_PART;
        let cache = Arc::new(EntryCache::new(options.cache_bytes_max - pages_bytes_max));
        let pages = Arc::new(PageCache::new(pages_bytes_max));
        let on_fatal = Arc::new(options.on_fatal);
        let (writer, thread) = writer::Writer::start(writer::Start {
            connection: opened.connection,
            path: database.to_owned(),
            spelling: opened.spelling,
            reserve: Reserve::of(database),
            identity,
            salt: Arc::clone(&salt_file),
            is_bound_to_salt: opened.is_bound_to_salt,
            cache: Arc::clone(&cache),
            pages: Arc::clone(&pages),
            versions,
            on_fatal: Arc::clone(&on_fatal),
            on_outbox: options.on_log_append,
            counts: Arc::clone(&counts),
        })
        .map_err(|error| OpenError::access("start the writer of", database, error))?;
        let check = match opened.is_checked {
            true => None,
            false => Some(
                check::Background::start(database.to_owned(), opened.wal_index, move |error| on_fatal(error))
                    .map_err(|error| OpenError::access("start the check of", database, error))?,
            ),
        };
        Ok(Self {
            readers,
            cache,
            pages,
            counts,
            buckets,
            horizon,
            node,
            wall_clock,
            salt: salt_file,
            writer: Mutex::new(Some(Arc::new(writer))),
            migration_backup: opened.copy,
            thread: Mutex::new(Some(thread)),
            check: Mutex::new(check),
            _lock: lock,
        })
    }

    /// Returns the counters of the writer.
    pub fn writer_counts(&self) -> &WriterCounts {
        &self.counts
    }

    /// Returns the number of queued writes; `None` once the store is closed.
    pub fn writes_queued(&self) -> Option<usize> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.as_ref().map(|writer| writer.queued_count())
    }

    /// Returns the bytes and the number of pages in the page cache.
    pub fn pages_usage(&self) -> (usize, usize) {
        self.pages.usage()
    }

    /// Counts the entries, by a scan of all of them.
    ///
    /// # Errors
    /// Fails if the database cannot be read.
    pub fn entries_count(&self) -> Result<u64, Error> {
        self.readers.entries_count()
    }

    /// Returns the salt file.
    pub fn salt(&self) -> &SaltFile {
        &self.salt
    }

    /// Returns the path of the copy that was made before a migration, if there was one.
    pub fn migration_backup(&self) -> Option<&Path> {
        self.migration_backup.as_deref()
    }

    /// Returns the entry cache. Besides [`Self::cached_page`], it is the only part that an executor may query directly.
    pub fn cache(&self) -> &EntryCache {
        &self.cache
    }

    /// Reads all entries of a key and caches them. Returns `None` if there are too many; use [`Self::exact`] then.
    ///
    /// # Errors
    /// Fails if SQLite cannot read.
    pub fn key_entries(&self, key: &str) -> Result<Option<Arc<KeyEntries>>, Error> {
        let ticket = self.cache.prepare_fill(key);
        let group = self.readers.key_entries(key)?.map(Arc::new);
        if let Some(group) = &group {
            self.cache.fill(&ticket, key, group);
        }
        Ok(group)
    }

    /// Reads one entry of a key that has too many for [`Self::key_entries`].
    ///
    /// # Errors
    /// Fails if SQLite cannot read.
    pub fn exact(&self, key: &str, environment: Option<&str>) -> Result<Option<Arc<SealedEntry>>, Error> {
        Ok(self.readers.exact(key, environment)?.map(Arc::new))
    }

    /// Returns the page of entries after an id, if it is cached. Executors may call this.
    pub fn cached_page(&self, filter: &Filter, after: i64) -> Option<Arc<Page>> {
        self.pages.get(filter, after)
    }

    /// Returns the page of entries after an id, in ascending order of ids. A page that is not cached is read from the
    /// database and cached.
    ///
    /// # Errors
    /// Fails if SQLite cannot read.
    pub fn page(&self, filter: &Filter, after: i64) -> Result<Arc<Page>, Error> {
        if let Some(page) = self.pages.get(filter, after) {
            return Ok(page);
        }
        let ticket = self.pages.prepare_fill();
        let page = self.readers.page(filter, after)?;
        Ok(self.pages.fill(&ticket, filter, after, page))
    }

    /// Reads the entries after `after` in the order of their names, up to about `bytes_max` bytes, and whether there
    /// are more. With `names_only` they have no values.
    ///
    /// # Errors
    /// Fails if SQLite cannot read.
    pub fn page_by_name(
        &self,
        filter: &Filter,
        after: Option<&EntryId>,
        bytes_max: usize,
        names_only: bool,
    ) -> Result<(Vec<SealedEntry>, bool), Error> {
        self.readers.page_by_name(filter, after, bytes_max, names_only)
    }

    /// Queues a write. The receiver gets the result once the write is durable.
    ///
    /// # Errors
    /// Fails if the queue is full or the store is closed.
    pub fn write(&self, write: Write, owner: OwnerTag) -> Result<oneshot::Receiver<WriteResult>, Error> {
        self.writer()?.write(write, Some(owner))
    }

    /// Queues a write on behalf of another node, whose client this process does not know.
    ///
    /// # Errors
    /// Fails if the queue is full or the store is closed.
    pub fn write_for_peer(&self, write: Write) -> Result<oneshot::Receiver<WriteResult>, Error> {
        self.writer()?.write(write, None)
    }

    /// Queues changes of other nodes. The receiver gets the outcome once it is durable.
    ///
    /// # Errors
    /// Fails if the queue is full or the store is closed.
    pub fn apply(
        &self,
        changes: Vec<Change>,
    ) -> Result<oneshot::Receiver<Result<AppliedChanges, WriteError>>, Error> {
        self.writer()?.apply(changes)
    }

    /// Queues an update of the recorded peer progress.
    ///
    /// # Errors
    /// Fails if the queue is full or the store is closed.
    pub fn record_progress(
        &self,
        progress: PeerProgress,
    ) -> Result<oneshot::Receiver<Result<(), WriteError>>, Error> {
        self.writer()?.note(progress)
    }

    /// Returns the replica ID of this data directory, if it is or was in a cluster.
    pub fn node(&self) -> Option<ReplicaId> {
        self.node
    }

    /// Returns by how many milliseconds a version of another node is ahead of this node's clock, if that exceeds
    /// [`CLOCK_AHEAD_MAX`].
    pub fn ahead_ms(&self, version: Version) -> Option<u64> {
        version.timestamp.ahead_of((self.wall_clock)(), CLOCK_AHEAD_MAX)
    }

    /// Returns the digests of all entries; zero in a store without versions.
    pub fn digest_table(&self) -> &DigestTable {
        &self.buckets
    }

    /// Returns the tombstone horizon: how far back the deletions known to this store reach.
    pub fn horizon(&self) -> TombstoneHorizon {
        *versions::lock(&self.horizon)
    }

    /// Reads the local changes after a position in the replication log, up to the size of one message.
    ///
    /// # Errors
    /// Fails if SQLite cannot read.
    pub fn log_changes(&self, after: i64) -> Result<LogPage, Error> {
        self.readers.log_changes(self.node.unwrap_or_default(), after)
    }

    /// Reads the first position that is in the replication log, and the last one that was ever assigned.
    ///
    /// # Errors
    /// Fails if SQLite cannot read.
    pub fn log_range(&self) -> Result<(i64, i64), Error> {
        self.readers.log_range()
    }

    /// Reads for each known peer the position in the replication log up to which it has the local changes.
    ///
    /// # Errors
    /// Fails if SQLite cannot read.
    pub fn acknowledged(&self) -> Result<Vec<(ReplicaId, i64)>, Error> {
        self.readers.acknowledged()
    }

    /// Reads the versions of all entries in some buckets, tombstones included: whole buckets, at least one, until they
    /// amount to about `bytes_max` bytes.
    ///
    /// # Errors
    /// Fails if SQLite cannot read.
    pub fn versions(&self, buckets: &[usize], bytes_max: usize) -> Result<VersionsPage, Error> {
        self.readers.versions(buckets, bytes_max)
    }

    /// Reads the current state of entries, up to the size of one message.
    ///
    /// # Errors
    /// Fails if SQLite cannot read.
    pub fn changes(&self, ids: &[EntryId]) -> Result<Vec<Change>, Error> {
        self.readers.changes(ids)
    }

    fn writer(&self) -> Result<Arc<writer::Writer>, Error> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or(Error::Stopped)
    }

    /// Finishes the queued writes, checkpoints the WAL and closes the database.
    pub fn close(&self) {
        if let Some(check) = self.check.lock().unwrap_or_else(PoisonError::into_inner).take() {
            check.stop();
        }
        // SQLite removes the WAL when its last connection closes, which should be that of the writer.
        self.readers.close();
        self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the writer thread panicked");
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.close();
    }
}

/// Opens what only a store of a cluster has, with the digests of a small one.
fn open_versions(
    opened: &mut open::Opened,
    options: VersioningOptions,
    buckets: &Arc<DigestTable>,
    horizon: &Arc<Mutex<TombstoneHorizon>>,
) -> rusqlite::Result<Option<Versions>> {
    use rusqlite::config::DbConfig;
    let connection = &mut opened.connection;
    if !options.is_clustered && !versions::are_kept(connection)? {
        return Ok(None);
    }
    let mut random = [0; 8];
    getrandom::fill(&mut random).expect("Linux has random bytes once it has booted");
    let random = options.node_bits.unwrap_or(u64::from_ne_bytes(random));
    let (buckets, horizon) = (Arc::clone(buckets), Arc::clone(horizon));
    let mut versions = Versions::open(connection, random, options, buckets, horizon)?;
    // The triggers record changes by other programs; this connection records its own.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    if opened.is_checked {
        // For a large store, the writer does this between transactions.
        while versions.load_next_bucket(connection)? {}
    }
    Ok(Some(versions))
}

fn make_directory(file: &Path) -> Result<(), OpenError> {
    let directory = paths::directory_of(file);
    fs::create_dir_all(&directory)
        .map_err(|error| OpenError::access("create the directory", &directory, error))
}

/// Salt for tests that do not encrypt anything with it.
#[cfg(test)]
const PROPER_SALT: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

#[cfg(test)]
mod cluster_tests;
#[cfg(test)]
mod page_tests;
#[cfg(test)]
mod tests;
