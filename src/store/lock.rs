//! One server at a time on a database.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::OpenError;
use super::open::sibling;

/// Holds the lock until it is dropped, or the process ends in any way.
///
/// The lock is an advisory `flock` on a file of its own beside the database, and on the database itself, which may
/// have other names: hard links, and mounts of the one file. On Linux it does not meet the POSIX locks by which SQLite
/// protects the file. Closing any descriptor of the database drops those
/// (<https://sqlite.org/howtocorrupt.html>, section 2.2), so this must outlive all connections.
#[derive(Debug)]
pub(super) struct DataLock {
    path: PathBuf,
    _file: File,
    database: Option<Arc<File>>,
    index: Option<Arc<File>>,
}

impl DataLock {
    /// # Errors
    /// When another process holds it, or the lock file cannot be made.
    pub(super) fn acquire(database: &Path) -> Result<Self, OpenError> {
        let path = lock_path(database);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|source| OpenError::access("create the lock file", &path, source))?;
        take(&file, &path, database)?;
        let mut lock = Self { path, _file: file, database: None, index: None };
        if database.exists() {
            lock.hold_database(database)?;
        }
        Ok(lock)
    }

    /// The lock file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The database, for reading. No holder of this may outlive the store.
    pub(super) fn database(&self) -> Arc<File> {
        Arc::clone(self.database.as_ref().expect("it is locked before it is looked at"))
    }

    /// The wal-index of the database, likewise, if it is a file.
    pub(super) fn index(&self) -> Option<Arc<File>> {
        self.index.clone()
    }

    /// Opens the wal-index, once it is there. SQLite has its locks on that file, too.
    pub(super) fn hold_index(&mut self, database: &Path) {
        self.index = File::open(sibling(database, "-shm")).ok().map(Arc::new);
    }

    /// Locks the database itself, once it is there.
    ///
    /// # Errors
    /// When another process holds it under another name.
    pub(super) fn hold_database(&mut self, database: &Path) -> Result<(), OpenError> {
        if self.database.is_none() {
            let file = File::open(database).map_err(|source| OpenError::access("read", database, source))?;
            take(&file, database, database)?;
            self.database = Some(Arc::new(file));
        }
        Ok(())
    }
}

fn take(file: &File, path: &Path, database: &Path) -> Result<(), OpenError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(database.to_owned())),
        Err(TryLockError::Error(source)) => Err(OpenError::access("lock", path, source)),
    }
}

pub(super) fn lock_path(database: &Path) -> PathBuf {
    // Two paths to one file must meet at one lock, so links are resolved first.
    let resolved = database.canonicalize().unwrap_or_else(|_| database.to_owned());
    let mut name = resolved.into_os_string();
    name.push(".lock");
    PathBuf::from(name)
}
