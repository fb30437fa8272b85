//! Rows and files: the database, its cache, and the salt file.
//!
//! Owns everything that is durable, and is the only module that knows SQLite. Never sees a user
//! key or a plaintext. Writes run on one writer thread; reads run on whichever thread calls, which
//! must not be an executor unless the answer is in the cache.

mod entry_cache;
mod error;
mod lock;
mod open;
mod reader;
mod row;
mod salt_file;
mod schema;
mod writer;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_channel::oneshot;

pub use entry_cache::{EntryCache, FillTicket};
pub use error::{Error, OpenError};
pub use reader::{Filter, Page};
pub use row::{Group, OwnerTag, Row};
pub use salt_file::{Adopted, SaltFile};
pub use writer::{Change, OnFatal, WriteError, WriteResult};

use crate::limits::SQLITE_VERSION_MIN;

/// How long SQLite waits for another process, such as a backup, before it gives up.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// The open store; shared by all threads.
#[derive(Debug)]
pub struct Store {
    readers: reader::Readers,
    cache: Arc<EntryCache>,
    salt: SaltFile,
    writer: Mutex<Option<Arc<writer::Writer>>>,
    copy: Option<PathBuf>,
    thread: Mutex<Option<JoinHandle<()>>>,
    _lock: lock::DataLock,
}

impl Store {
    /// Locks, checks, migrates and opens the files, and starts the writer.
    ///
    /// `on_fatal` is called on the writer's thread if it has to give up later on.
    ///
    /// # Errors
    /// When the files cannot be used; they are unchanged then, and the text says what to do.
    pub fn open(database: &Path, salt: &Path, on_fatal: OnFatal) -> Result<Self, OpenError> {
        assert!(
            rusqlite::version_number() >= SQLITE_VERSION_MIN,
            "SQLite {} can lose committed writes (WAL-reset bug); the build must bundle a newer one",
            rusqlite::version()
        );
        make_directory(database)?;
        make_directory(salt)?;
        let lock = lock::DataLock::acquire(database)?;
        let salt_file = SaltFile::open(salt)?;
        let opened = open::open(database, salt, salt_file.current().is_some())?;
        let cache = Arc::new(EntryCache::default());
        let no_environment = opened.generation.no_environment();
        let (writer, thread) = writer::Writer::start(
            opened.connection,
            database.to_owned(),
            no_environment,
            Arc::clone(&cache),
            on_fatal,
        )
        .map_err(|error| OpenError::access("start the writer of", database, error))?;
        Ok(Self {
            readers: reader::Readers::new(database.to_owned()),
            cache,
            salt: salt_file,
            writer: Mutex::new(Some(Arc::new(writer))),
            copy: opened.copy,
            thread: Mutex::new(Some(thread)),
            _lock: lock,
        })
    }

    /// The salt file.
    pub fn salt(&self) -> &SaltFile {
        &self.salt
    }

    /// Where the database was copied to before it was migrated, if it was.
    pub fn copy(&self) -> Option<&Path> {
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
    pub fn group(&self, key: &str) -> Result<Option<Arc<Group>>, Error> {
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
    pub fn exact(&self, key: &str, environment: Option<&str>) -> Result<Option<Arc<Row>>, Error> {
        Ok(self.readers.exact(key, environment)?.map(Arc::new))
    }

    /// Reads the next entries after an id, in the order of their ids.
    ///
    /// # Errors
    /// When SQLite cannot read.
    pub fn page(&self, filter: &Filter, after: i64) -> Result<Page, Error> {
        self.readers.page(filter, after)
    }

    /// Queues a change; it is answered when it is durable.
    ///
    /// # Errors
    /// When the queue is full or the store is closed.
    pub fn submit(&self, change: Change, owner: OwnerTag) -> Result<oneshot::Receiver<WriteResult>, Error> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).clone();
        writer.ok_or(Error::Stopped)?.submit(change, owner)
    }

    /// Finishes the queued writes, moves the WAL into the database and closes it.
    pub fn close(&self) {
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

impl Drop for Store {
    fn drop(&mut self) {
        self.close();
    }
}

fn make_directory(file: &Path) -> Result<(), OpenError> {
    let directory = open::directory_of(file);
    fs::create_dir_all(&directory).map_err(|error| OpenError::access("make the directory", &directory, error))
}

#[cfg(test)]
mod tests;
