//! One server at a time on a database.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::error::OpenError;

/// Holds the lock until it is dropped, or the process ends in any way.
///
/// The lock is an advisory `flock` on a file of its own beside the database. It cannot be on the
/// database itself: closing any descriptor of that file would drop the POSIX locks by which SQLite
/// protects it (<https://sqlite.org/howtocorrupt.html>, section 2.2).
#[derive(Debug)]
pub(super) struct DataLock {
    _file: File,
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
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(OpenError::InUse(database.to_owned())),
            Err(TryLockError::Error(source)) => Err(OpenError::access("lock", &path, source)),
        }
    }
}

fn lock_path(database: &Path) -> PathBuf {
    // Two paths to one file must meet at one lock, so links are resolved first.
    let resolved = database.canonicalize().unwrap_or_else(|_| database.to_owned());
    let mut name = resolved.into_os_string();
    name.push(".lock");
    PathBuf::from(name)
}
