//! Data lock: at most one server uses a database.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::storage::error::OpenError;
use crate::storage::paths::{lock_path, sibling};

/// Guard of the data lock, which is released when it is dropped or the process exits in any way.
///
/// The lock is an advisory `flock` on a dedicated file beside the database, and on the database itself, which may have
/// other names: hard links, and mounts of the single file. On Linux it does not interact with the POSIX locks by which
/// SQLite protects the file. Closing any file descriptor of the database drops those POSIX locks
/// (<https://sqlite.org/howtocorrupt.html>, section 2.2), so the guard must outlive all connections.
#[derive(Debug)]
pub(super) struct DataLock {
    path: PathBuf,
    _file: File,
    database: Option<Arc<File>>,
    index: Option<Arc<File>>,
}

impl DataLock {
    /// Acquires the lock without waiting.
    ///
    /// # Errors
    /// Fails if another process holds the lock, or the lock file cannot be created.
    pub(super) fn acquire(database: &Path) -> Result<Self, OpenError> {
        let path = lock_path(database);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|source| OpenError::access("create the lock file", &path, source))?;
        try_lock(&file, &path, database)?;
        let mut lock = Self { path, _file: file, database: None, index: None };
        if database.exists() {
            lock.hold_database(database)?;
        }
        Ok(lock)
    }

    /// Returns the path of the lock file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the database file, for reading. No holder may outlive the store.
    pub(super) fn database(&self) -> Arc<File> {
        Arc::clone(self.database.as_ref().expect("the database is locked before its file is used"))
    }

    /// Returns the wal-index of the database, if it is a file. No holder may outlive the store.
    pub(super) fn index(&self) -> Option<Arc<File>> {
        self.index.clone()
    }

    /// Opens the wal-index once it exists. SQLite has locks on that file, too.
    pub(super) fn hold_index(&mut self, database: &Path) {
        self.index = File::open(sibling(database, "-shm")).ok().map(Arc::new);
    }

    /// Locks the database itself once it exists.
    ///
    /// # Errors
    /// Fails if another process holds the lock under another name.
    pub(super) fn hold_database(&mut self, database: &Path) -> Result<(), OpenError> {
        if self.database.is_none() {
            let file = File::open(database).map_err(|source| OpenError::access("read", database, source))?;
            try_lock(&file, database, database)?;
            self.database = Some(Arc::new(file));
        }
        Ok(())
    }
}

fn try_lock(file: &File, path: &Path, database: &Path) -> Result<(), OpenError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(database.to_owned())),
        Err(TryLockError::Error(source)) => Err(OpenError::access("lock", path, source)),
    }
}
