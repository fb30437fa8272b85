//! Rows and files: the database, its cache, and the salt file.
//!
//! Owns everything that is durable, and is the only module that knows SQLite. Never sees a user
//! key or a plaintext. Writes run on one writer thread; reads run on whichever thread calls, which
//! must not be an executor unless the answer is in the cache.

mod batch;
mod check;
mod counts;
mod digest_table;
mod entry_cache;
mod error;
mod filter;
mod identity;
mod immutable;
mod in_place;
mod lock;
pub mod maintenance;
mod open;
mod page_cache;
mod permissions;
mod reader;
mod repair;
mod replica;
mod room;
mod salt;
mod salt_file;
mod schema;
mod sealed_entry;
mod versions;
mod wal_watch;
mod write;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{fmt, fs};

use futures_channel::oneshot;

pub use counts::WriterCounts;
pub use digest_table::{DigestTable, bucket_of, root_of};
pub use entry_cache::{EntryCache, FillTicket};
pub use error::{Error, OpenError};
pub use filter::Filter;
pub use permissions::Denials;
pub use reader::Page;
pub use repair::{Repaired, repair_versions};
pub use replica::{OutboxPage, VersionsPage};
pub use room::Shortage;
pub use salt::SaltProblem;
pub use salt_file::{ImportResult, SaltFile, Yielded};
pub use sealed_entry::{KeyEntries, OwnerTag, SealedEntry};
pub use write::{AppliedChanges, PeerProgress, Write, WriteError, WriteResult};
pub use writer::{OnFatal, OnOutbox};

use self::identity::Identity;
use self::page_cache::PageCache;
use self::room::{Reserve, WalIndex};
use self::versions::Versions;
use crate::limits::{CLOCK_AHEAD_MAX, ENTRY_CACHE_BYTES_MIN, PAGE_CACHE_PART, SQLITE_VERSION_MIN};
use crate::model::{Change, EntryId, ReplicaId, Timestamp, TombstoneHorizon, Version};

/// How long SQLite waits for another process, such as a backup, before it gives up.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// How a store is opened.
pub struct Options {
    /// Memory for cached rows, alone and in pages.
    pub cache_bytes_max: usize,
    /// The SHA-256 of a salt file that is used although it is not proper, or not the one of the database.
    pub accepted_salt: Option<[u8; 32]>,
    /// How many threads read at a time.
    pub readers_count: usize,
    /// How versions are kept.
    pub versions: VersioningOptions,
    /// Called on a thread of the store if it has to give up.
    pub on_fatal: OnFatal,
    /// Called with the last line of the outbox: once when the store is opened, then on the writer's thread after each
    /// commit that added one.
    pub on_outbox: OnOutbox,
}

/// How versions are kept.
pub struct VersioningOptions {
    /// Whether this node is one of a cluster now. One that ever was goes on counting versions.
    pub is_clustered: bool,
    /// Milliseconds since 1970, which versions are made from.
    pub wall_clock: WallClock,
    /// What the number of a new data directory is made of; random if `None`. Equal stamps are decided by
    /// it, so a test that must run the same again says it.
    pub node_bits: Option<u64>,
}

/// Tells the time.
pub type WallClock = Arc<dyn Fn() -> u64 + Send + Sync>;

impl VersioningOptions {
    /// By this machine's clock.
    pub fn new(is_clustered: bool) -> Self {
        Self { is_clustered, wall_clock: Arc::new(|| Timestamp::now().as_milliseconds()), node_bits: None }
    }
}

impl Options {
    /// For a node that stands alone.
    pub fn alone(on_fatal: OnFatal) -> Self {
        Self {
            cache_bytes_max: 4 * ENTRY_CACHE_BYTES_MIN,
            accepted_salt: None,
            readers_count: 1,
            versions: VersioningOptions::new(false),
            on_fatal,
            on_outbox: Box::new(|_| {}),
        }
    }
}

/// The open store; shared by all threads.
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
    copy: Option<PathBuf>,
    thread: Mutex<Option<JoinHandle<()>>>,
    check: Mutex<Option<check::Background>>,
    _lock: lock::DataLock,
}

impl Store {
    /// Locks, checks, migrates and opens the files, and starts the writer.
    ///
    /// # Errors
    /// When the files cannot be used; they are unchanged then, and the text says what to do.
    pub fn open(database: &Path, salt: &Path, options: Options) -> Result<Self, OpenError> {
        let store = Self::open_files(database, salt, options)
            .map_err(|error| permissions::explain(error, database, salt))?;
        permissions::warn_of_others(database, salt);
        Ok(store)
    }

    fn open_files(database: &Path, salt: &Path, options: Options) -> Result<Self, OpenError> {
        assert!(
            rusqlite::version_number() >= SQLITE_VERSION_MIN,
            "SQLite {} can lose committed writes (WAL-reset bug); the build must bundle a newer one",
            rusqlite::version()
        );
        let given = database;
        let database = &open::resolved(database);
        make_directory(database)?;
        make_directory(salt)?;
        let mut lock = lock::DataLock::acquire(database)?;
        let salt_file = Arc::new(SaltFile::open(salt, options.accepted_salt)?);
        let mut opened = open::open(database, &salt_file)?;
        lock.hold_database(database)?;
        if opened.wal_index == WalIndex::Shared {
            lock.hold_index(database);
        }
        let identity = Identity::new(given, &lock, Arc::clone(&salt_file));
        if opened.has_entries {
            salt_file.set_pinned();
        }
        let buckets = Arc::new(DigestTable::default());
        let horizon = Arc::default();
        let wall_clock = Arc::clone(&options.versions.wall_clock);
        let mut versions = open_versions(&mut opened.connection, options.versions, &buckets, &horizon)
            .map_err(|error| OpenError::sqlite(database, error))?;
        if opened.is_checked
            && let Some(versions) = &mut versions
        {
            // Of a large store the writer does it.
            while versions
                .load_next_bucket(&opened.connection)
                .map_err(|error| OpenError::sqlite(database, error))?
            {}
        }
        if let Some(versions) = &versions {
            // Peers may lack changes from before this start.
            (options.on_outbox)(versions.last_sequence());
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
            on_outbox: options.on_outbox,
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
            copy: opened.copy,
            thread: Mutex::new(Some(thread)),
            check: Mutex::new(check),
            _lock: lock,
        })
    }

    /// What the writer counts.
    pub fn writer_counts(&self) -> &WriterCounts {
        &self.counts
    }

    /// Writes that wait; `None` once the store is closed.
    pub fn writes_queued(&self) -> Option<usize> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.as_ref().map(|writer| writer.queued_count())
    }

    /// Bytes and pages of lists that are cached.
    pub fn pages_usage(&self) -> (usize, usize) {
        self.pages.usage()
    }

    /// How many entries there are; looks at all of them.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn entries_count(&self) -> Result<u64, Error> {
        self.readers.entries_count()
    }

    /// The salt file.
    pub fn salt(&self) -> &SaltFile {
        &self.salt
    }

    /// Where the database was copied to before it was migrated, if it was.
    pub fn migration_backup(&self) -> Option<&Path> {
        self.copy.as_deref()
    }

    /// The cache: the only part that an executor may ask by itself.
    pub fn cache(&self) -> &EntryCache {
        &self.cache
    }

    /// Reads all entries of a key and caches them. `None`: there are too many, ask [`Self::exact`].
    ///
    /// # Errors
    /// When SQLite cannot read.
    pub fn group(&self, key: &str) -> Result<Option<Arc<KeyEntries>>, Error> {
        let ticket = self.cache.prepare_fill(key);
        let group = self.readers.group(key)?.map(Arc::new);
        if let Some(group) = &group {
            self.cache.fill(&ticket, key, group);
        }
        Ok(group)
    }

    /// Reads one entry of a key that has too many for [`Self::group`].
    ///
    /// # Errors
    /// When SQLite cannot read.
    pub fn exact(&self, key: &str, environment: Option<&str>) -> Result<Option<Arc<SealedEntry>>, Error> {
        Ok(self.readers.exact(key, environment)?.map(Arc::new))
    }

    /// The next entries after an id, if they are in memory; an executor may ask.
    pub fn cached_page(&self, filter: &Filter, after: i64) -> Option<Arc<Page>> {
        self.pages.get(filter, after)
    }

    /// The next entries after an id, in the order of their ids. Those that are not in memory are read, and
    /// kept for the next list.
    ///
    /// # Errors
    /// When SQLite cannot read.
    pub fn page(&self, filter: &Filter, after: i64) -> Result<Arc<Page>, Error> {
        if let Some(page) = self.pages.get(filter, after) {
            return Ok(page);
        }
        let ticket = self.pages.prepare_fill();
        let page = self.readers.page(filter, after)?;
        Ok(self.pages.fill(&ticket, filter, after, page))
    }

    /// The next entries in the order of their names, as many as have about `bytes_max` bytes, and whether
    /// there are more. Without their values if only names are wanted.
    ///
    /// # Errors
    /// When SQLite cannot read.
    pub fn page_by_name(
        &self,
        filter: &Filter,
        after: Option<&EntryId>,
        bytes_max: usize,
        names_only: bool,
    ) -> Result<(Vec<SealedEntry>, bool), Error> {
        self.readers.page_by_name(filter, after, bytes_max, names_only)
    }

    /// Queues a write; it is answered when it is durable.
    ///
    /// # Errors
    /// When the queue is full or the store is closed.
    pub fn write(&self, write: Write, owner: OwnerTag) -> Result<oneshot::Receiver<WriteResult>, Error> {
        self.writer()?.write(write, Some(owner))
    }

    /// The same for another node, whose client this process does not know.
    ///
    /// # Errors
    /// When the queue is full or the store is closed.
    pub fn write_for_peer(&self, write: Write) -> Result<oneshot::Receiver<WriteResult>, Error> {
        self.writer()?.write(write, None)
    }

    /// Queues changes of other nodes; answers what became of them, when that is durable.
    ///
    /// # Errors
    /// When the queue is full or the store is closed.
    pub fn apply(
        &self,
        changes: Vec<Change>,
    ) -> Result<oneshot::Receiver<Result<AppliedChanges, WriteError>>, Error> {
        self.writer()?.apply(changes)
    }

    /// Queues a note about a peer.
    ///
    /// # Errors
    /// When the queue is full or the store is closed.
    pub fn note(&self, note: PeerProgress) -> Result<oneshot::Receiver<Result<(), WriteError>>, Error> {
        self.writer()?.note(note)
    }

    /// This data directory's number, if it is or was one of a cluster.
    pub fn node(&self) -> Option<ReplicaId> {
        self.node
    }

    /// How many milliseconds a version of another node is ahead of this node's clock, if that is too much.
    pub fn ahead_ms(&self, version: Version) -> Option<u64> {
        version.stamp.ahead_of((self.wall_clock)(), CLOCK_AHEAD_MAX)
    }

    /// Digests of everything that is stored; zero in a store without versions.
    pub fn buckets(&self) -> &DigestTable {
        &self.buckets
    }

    /// How far back this store knows of deletions.
    pub fn horizon(&self) -> TombstoneHorizon {
        *versions::lock(&self.horizon)
    }

    /// Own changes after a line of the outbox, as many as fit one message.
    ///
    /// # Errors
    /// When SQLite cannot read.
    pub fn outbox(&self, after: i64) -> Result<OutboxPage, Error> {
        self.readers.outbox(self.node.unwrap_or_default(), after)
    }

    /// The first line of the outbox and the last one that was ever written.
    ///
    /// # Errors
    /// When SQLite cannot read.
    pub fn outbox_range(&self) -> Result<(i64, i64), Error> {
        self.readers.outbox_range()
    }

    /// The line of the outbox up to which each known peer has the own changes.
    ///
    /// # Errors
    /// When SQLite cannot read.
    pub fn acknowledged(&self) -> Result<Vec<(ReplicaId, i64)>, Error> {
        self.readers.acknowledged()
    }

    /// The versions of all entries of some buckets, deleted ones too: of whole buckets until there are
    /// about `bytes_max` bytes, and of one at least.
    ///
    /// # Errors
    /// When SQLite cannot read.
    pub fn versions(&self, buckets: &[usize], bytes_max: usize) -> Result<VersionsPage, Error> {
        self.readers.versions(buckets, bytes_max)
    }

    /// These entries as they are now, as many as fit one message.
    ///
    /// # Errors
    /// When SQLite cannot read.
    pub fn changes(&self, ids: &[EntryId]) -> Result<Vec<Change>, Error> {
        self.readers.changes(ids)
    }

    fn writer(&self) -> Result<Arc<writer::Writer>, Error> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or(Error::Stopped)
    }

    /// Finishes the queued writes, moves the WAL into the database and closes it.
    pub fn close(&self) {
        if let Some(check) = self.check.lock().unwrap_or_else(PoisonError::into_inner).take() {
            check.stop();
        }
        // SQLite removes the WAL when its last connection closes, and that should be the writer's.
        self.readers.close();
        self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the writer ended by a panic");
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

fn open_versions(
    connection: &mut rusqlite::Connection,
    keeping: VersioningOptions,
    buckets: &Arc<DigestTable>,
    horizon: &Arc<Mutex<TombstoneHorizon>>,
) -> rusqlite::Result<Option<Versions>> {
    use rusqlite::config::DbConfig;
    if !keeping.is_clustered && !versions::are_kept(connection)? {
        return Ok(None);
    }
    let mut random = [0; 8];
    getrandom::fill(&mut random).expect("Linux has random bytes once it has booted");
    let random = keeping.node_bits.unwrap_or(u64::from_ne_bytes(random));
    let (buckets, horizon) = (Arc::clone(buckets), Arc::clone(horizon));
    let versions = Versions::open(connection, random, keeping, buckets, horizon)?;
    // The triggers are for other programs; this connection keeps its own books.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    Ok(Some(versions))
}

fn make_directory(file: &Path) -> Result<(), OpenError> {
    let directory = open::directory_of(file);
    fs::create_dir_all(&directory).map_err(|error| OpenError::access("make the directory", &directory, error))
}

/// A salt for tests that seal nothing with it.
#[cfg(test)]
const PROPER_SALT: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

#[cfg(test)]
mod cluster_tests;
#[cfg(test)]
mod page_tests;
#[cfg(test)]
mod tests;
