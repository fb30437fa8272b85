//! SQLite engine: one writer thread, and reads on the pool for blocking work.
//!
//! The only module that knows SQLite. Database, WAL, lock file and reserve belong to it.

mod batch;
mod check;
mod column;
mod error;
mod identity;
mod immutable;
mod in_place;
mod lock;
pub mod maintenance;
mod open;
mod reader;
pub(super) mod repair;
mod replica;
mod reserve;
mod schema;
mod versions;
mod wal_index;
mod wal_watch;
mod writer;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::{fmt, fs};

use futures_channel::oneshot;

pub use self::writer::OnFatal;

use self::identity::Identity;
use self::reader::Readers;
use self::reserve::Reserve;
use self::versions::Versions;
use self::wal_index::WalIndex;
use self::writer::Writer;
use crate::blocking::BlockingPool;
use crate::limits::{CLOCK_AHEAD_MAX, SQLITE_VERSION_MIN};
use crate::model::{Change, EntryId, Filter, KeyEntries, ReplicaId, SealedEntry, TombstoneHorizon, Version};
use crate::storage::counts::EngineCounts;
use crate::storage::digest_table::DigestTable;
use crate::storage::engine::{Engine, NameScan, NameScanPage};
use crate::storage::error::{Error, OpenError};
use crate::storage::feed::{Feed, Subscriber};
use crate::storage::page_cache::Page;
use crate::storage::replication::{AppliedChanges, LogPage, PeerProgress, ReplicationLog, VersionsPage};
use crate::storage::reply::Reply;
use crate::storage::salt_store::SaltStore;
use crate::storage::versioning::{VersioningOptions, WallClock};
use crate::storage::write::{WriteBatch, WriteError};
use crate::storage::{paths, permissions};

/// Options for opening a database.
pub struct Options {
    /// SHA-256 of a salt file that is accepted although it is improper or does not match the database.
    pub accepted_salt: Option<[u8; 32]>,
    /// Pool for reads, which is stopped before the store is closed; `None` reads on the calling thread.
    pub pool: Option<Weak<BlockingPool>>,
    /// Number of threads that read concurrently.
    pub readers_count: usize,
    /// How versions are maintained.
    pub versions: VersioningOptions,
    /// Called on a thread of the engine after a fatal error.
    pub on_fatal: OnFatal,
}

impl Options {
    /// Creates the options of a standalone node that reads on the calling thread.
    pub fn standalone(on_fatal: OnFatal) -> Self {
        Self {
            accepted_salt: None,
            pool: None,
            readers_count: 1,
            versions: VersioningOptions::new(false),
            on_fatal,
        }
    }
}

/// Open database.
pub struct Sqlite {
    readers: Arc<Readers>,
    pool: Option<Weak<BlockingPool>>,
    counts: Arc<EngineCounts>,
    feed: Arc<Feed>,
    salt: Arc<SaltStore>,
    replica: Option<Replica>,
    writer: Mutex<Option<Arc<Writer>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    check: Mutex<Option<check::Background>>,
    _lock: lock::DataLock,
}

/// State of a store with versions.
struct Replica {
    id: ReplicaId,
    digests: Arc<DigestTable>,
    horizon: Arc<Mutex<TombstoneHorizon>>,
    wall_clock: WallClock,
}

impl Sqlite {
    /// Locks, checks, migrates and opens the files, and starts the writer thread.
    ///
    /// # Errors
    /// Fails if the files cannot be used. They are then unchanged, and the message contains the remedy.
    pub fn open(
        database: &Path,
        salt: &Path,
        subscribers: Vec<Arc<dyn Subscriber>>,
        options: Options,
    ) -> Result<Self, OpenError> {
        let opened = Self::open_files(database, salt, subscribers, options)
            .map_err(|error| error.with_denials(database, salt))?;
        permissions::warn_of_other_users(database, salt);
        Ok(opened)
    }

    fn open_files(
        database: &Path,
        salt: &Path,
        mut subscribers: Vec<Arc<dyn Subscriber>>,
        options: Options,
    ) -> Result<Self, OpenError> {
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
        let salt = Arc::new(SaltStore::open(salt, options.accepted_salt)?);
        let mut opened = open::open(database, &salt)?;
        lock.hold_database(database)?;
        if opened.wal_index == WalIndex::Shared {
            lock.hold_index(database);
        }
        let identity = Identity::new(configured_path, &lock, Arc::clone(&salt));
        if opened.has_entries {
            salt.set_pinned();
        }
        let sqlite = |error| OpenError::sqlite(database, error);
        let mut revisions = schema::revisions(&opened.connection).map_err(sqlite)?;
        // Other programs may have changed rows while no server was running.
        let foreign_revision = revisions.issue();
        let wall_clock = Arc::clone(&options.versions.wall_clock);
        let (versions, replica) =
            open_versions(&mut opened, options.versions, wall_clock).map_err(sqlite)?.unzip();
        subscribers.extend(
            replica.iter().map(|replica: &Replica| Arc::clone(&replica.digests) as Arc<dyn Subscriber>),
        );
        // Peers may lack changes that were made before this startup.
        let log_position = versions.as_ref().map(Versions::last_sequence);
        let counts = Arc::new(EngineCounts::new(opened.lacks_room));
        subscribers.push(Arc::<EngineCounts>::clone(&counts));
        let feed = Arc::new(Feed::new(foreign_revision, log_position, subscribers));
        let readers = Readers::open(
            database.to_owned(),
            opened.wal_index,
            options.readers_count,
            Arc::clone(&counts),
            foreign_revision,
        )
        .map_err(|source| OpenError::Readers { path: database.to_owned(), source })?;
        let readers = Arc::new(readers);
        let on_fatal = Arc::new(options.on_fatal);
        let (writer, thread) = Writer::start(writer::Start {
            connection: opened.connection,
            path: database.to_owned(),
            spelling: opened.spelling,
            reserve: Reserve::of(database),
            identity,
            salt: Arc::clone(&salt),
            is_bound_to_salt: opened.is_bound_to_salt,
            feed: Arc::clone(&feed),
            readers: Arc::clone(&readers),
            revisions,
            versions,
            on_fatal: Arc::clone(&on_fatal),
            counts: Arc::clone(&counts),
        })
        .map_err(|error| OpenError::access("start the writer of", database, error))?;
        let start_check = || {
            check::Background::start(database.to_owned(), opened.wal_index, move |error| on_fatal(error))
                .map_err(|error| OpenError::access("start the check of", database, error))
        };
        let check = (!opened.is_checked).then(start_check).transpose()?;
        if let Some(copy) = &opened.copy {
            tracing::info!(copy = %copy.display(), "database migrated, keeping a copy of the previous file");
        }
        Ok(Self {
            readers,
            pool: options.pool,
            counts,
            feed,
            salt,
            replica,
            writer: Mutex::new(Some(Arc::new(writer))),
            thread: Mutex::new(Some(thread)),
            check: Mutex::new(check),
            _lock: lock,
        })
    }

    /// Reads on the pool. A short read may wait for the results of others, see decision 16.
    fn read<T: Send + 'static>(
        &self,
        is_short: bool,
        read: impl FnOnce(&Readers) -> Result<T, Error> + Send + 'static,
    ) -> Reply<T> {
        let Some(pool) = &self.pool else { return Reply::ready(read(&self.readers)) };
        let Some(pool) = pool.upgrade() else { return Reply::ready(Err(Error::Stopped)) };
        let readers = Arc::clone(&self.readers);
        let job = move || read(&readers);
        let queued = if is_short { pool.submit_batched(job) } else { pool.submit(job) };
        Reply::queued(queued.map_err(|_| Error::Busy))
    }

    fn queue<T>(
        &self,
        queue: impl FnOnce(&Writer) -> Result<oneshot::Receiver<Result<T, WriteError>>, Error>,
    ) -> Reply<T, WriteError> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Reply::queued(writer.ok_or(Error::Stopped).and_then(|writer| queue(&writer)))
    }
}

impl Engine for Sqlite {
    fn get(&self, key: &str) -> Reply<Option<KeyEntries>> {
        let key = key.to_owned();
        self.read(true, move |readers| readers.key_entries(&key))
    }

    fn get_exact(&self, id: &EntryId) -> Reply<Option<Arc<SealedEntry>>> {
        let id = id.clone();
        self.read(true, move |readers| Ok(readers.exact(&id.key, id.environment.as_deref())?.map(Arc::new)))
    }

    fn scan(&self, filter: &Filter, after: i64) -> Reply<Page> {
        let filter = filter.clone();
        self.read(false, move |readers| readers.page(&filter, after))
    }

    fn scan_names(&self, scan: NameScan) -> Reply<NameScanPage> {
        self.read(false, move |readers| readers.page_by_name(&scan))
    }

    fn exist(&self, ids: Vec<EntryId>) -> Reply<Vec<bool>> {
        self.read(false, move |readers| readers.exist(&ids))
    }

    fn count(&self) -> Reply<u64> {
        self.read(false, Readers::entries_count)
    }

    fn commit(&self, batch: WriteBatch) -> Reply<Vec<Arc<SealedEntry>>, WriteError> {
        self.queue(|writer| writer.write(batch))
    }

    fn offload(&self, job: Box<dyn FnOnce() + Send>) -> Reply<()> {
        self.read(false, move |_| {
            job();
            Ok(())
        })
    }

    fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    fn salt(&self) -> &Arc<SaltStore> {
        &self.salt
    }

    fn replication(&self) -> Option<&dyn ReplicationLog> {
        self.replica.is_some().then_some(self)
    }

    fn counts(&self) -> &EngineCounts {
        &self.counts
    }

    fn queued_count(&self) -> Option<usize> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.as_ref().map(|writer| writer.queued_count())
    }

    /// Finishes the queued writes, checkpoints the WAL and closes the database.
    fn close(&self) {
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

impl Sqlite {
    fn replica(&self) -> &Replica {
        self.replica.as_ref().expect("only a store with versions is used as a replication log")
    }
}

impl ReplicationLog for Sqlite {
    fn replica(&self) -> ReplicaId {
        self.replica().id
    }

    fn digests(&self) -> &DigestTable {
        &self.replica().digests
    }

    fn horizon(&self) -> TombstoneHorizon {
        let replica = self.replica();
        versions::lock(&replica.horizon).clamped_at((replica.wall_clock)())
    }

    fn ahead_ms(&self, version: Version) -> Option<u64> {
        version.timestamp.ahead_of((self.replica().wall_clock)(), CLOCK_AHEAD_MAX)
    }

    fn apply(&self, changes: Vec<Change>) -> Reply<AppliedChanges, WriteError> {
        self.queue(|writer| writer.apply(changes))
    }

    fn record_progress(&self, progress: PeerProgress) -> Reply<(), WriteError> {
        self.queue(|writer| writer.note(progress))
    }

    fn log_changes(&self, after: i64) -> Reply<LogPage> {
        let replica = self.replica().id;
        self.read(false, move |readers| readers.log_changes(replica, after))
    }

    fn log_range(&self) -> Reply<(i64, i64)> {
        self.read(false, Readers::log_range)
    }

    fn acknowledged(&self) -> Reply<Vec<(ReplicaId, i64)>> {
        self.read(false, Readers::acknowledged)
    }

    fn versions(&self, buckets: Vec<usize>, bytes_max: usize) -> Reply<VersionsPage> {
        self.read(false, move |readers| readers.versions(&buckets, bytes_max))
    }

    fn changes(&self, ids: Vec<EntryId>) -> Reply<Vec<Change>> {
        self.read(false, move |readers| readers.changes(&ids))
    }
}

impl fmt::Debug for Sqlite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sqlite").finish_non_exhaustive()
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        self.close();
    }
}

/// Opens the versions of a store that is or was in a cluster, with the digests of a small one.
fn open_versions(
    opened: &mut open::Opened,
    options: VersioningOptions,
    wall_clock: WallClock,
) -> rusqlite::Result<Option<(Versions, Replica)>> {
    let connection = &mut opened.connection;
    if !options.is_clustered && !versions::are_kept(connection)? {
        return Ok(None);
    }
    let (digests, horizon) = (Arc::<DigestTable>::default(), Arc::default());
    let mut versions = Versions::open(connection, options, Arc::clone(&digests), Arc::clone(&horizon))?;
    if opened.is_checked {
        // For a large store, the writer does this between transactions.
        while versions.load_next_bucket(connection)? {}
    }
    let id = versions.node();
    Ok(Some((versions, Replica { id, digests, horizon, wall_clock })))
}

fn make_directory(file: &Path) -> Result<(), OpenError> {
    let directory = paths::directory_of(file);
    fs::create_dir_all(&directory)
        .map_err(|error| OpenError::access("create the directory", &directory, error))
}

#[cfg(test)]
mod cluster_tests;
#[cfg(test)]
mod page_tests;
#[cfg(test)]
mod test_store;
#[cfg(test)]
mod tests;
