//! Errors of the store, classified by the caller's remedy.

use std::io;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

use super::disk_space::{self, Shortage};
use super::permissions::{self, Denials};

/// Remedy for a damaged file.
pub(super) const RESTORE: &str = "restore it from a backup together with its -wal file, or save what can be read \
     with `sqlite3 FILE .recover` into a new file";

/// Failure of a read or write of the open store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No disk space is left. Reads keep working; writes can be retried once space is freed.
    #[error("no space left for the database")]
    Full,
    /// One of the open files was removed or replaced, so a write would be lost. Reads keep working.
    #[error("a data file was removed or replaced")]
    Displaced,
    /// Another process has locked the database, or the queue is full. The call can be retried soon.
    #[error("the database is busy")]
    Busy,
    /// The store is closed, or its writer has stopped after a fatal error.
    #[error("the store no longer accepts writes")]
    Stopped,
    /// The file was found damaged while in use.
    #[error("{path} is damaged ({what}): {RESTORE}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// SQLite's description of the damage.
        what: String,
    },
    /// Any other error. The client has no remedy.
    #[error("database error")]
    Sqlite(#[source] rusqlite::Error),
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        if disk_space::is_out_of_space(&error) {
            return Self::Full;
        }
        match error.sqlite_error_code() {
            // No file descriptor or memory is left for another connection.
            Some(rusqlite::ErrorCode::CannotOpen | rusqlite::ErrorCode::OutOfMemory) => Self::Busy,
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => Self::Busy,
            _ => Self::Sqlite(error),
        }
    }
}

/// Failure to open the files, which are unchanged. The message contains the remedy.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another server has the database open.
    #[error(
        "{0} is in use by another server (this file or its lock file is locked, perhaps under another name): stop that \
         server, or set OSC_DATABASE_PATH to another file"
    )]
    InUse(PathBuf),
    /// The directory or file cannot be read or written.
    #[error("cannot {action} {path}: {source}{hint}")]
    Access {
        /// The failed operation.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
        /// The remedy in parentheses; empty if unknown.
        hint: &'static str,
    },
    /// The user of this process lacks permissions.
    #[error("cannot use the data files: {0}")]
    Denied(Denials),
    /// There is no disk space for the file.
    #[error("cannot write {path}: {shortage}")]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// The resource that is short.
        shortage: Shortage,
    },
    /// The file is not a usable database or salt file.
    #[error("{path} {what}: {remedy}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// The problem; follows the path in a sentence.
        what: String,
        /// The remedy.
        remedy: &'static str,
    },
    /// The connections for reading cannot be opened.
    #[error("cannot open {path} for reading: {source}")]
    Readers {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Error,
    },
    /// SQLite cannot open the file.
    #[error("cannot open {path}: {source}")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// SQLite's error.
        source: rusqlite::Error,
    },
}

impl OpenError {
    pub(super) fn access(action: &'static str, path: &Path, source: io::Error) -> Self {
        if disk_space::lacks_space(&source) {
            return Self::no_room(path);
        }
        let hint = match source.kind() {
            io::ErrorKind::ReadOnlyFilesystem => {
                " (the file system is mounted read-only; the server needs a writable directory for its data)"
            }
            io::ErrorKind::PermissionDenied => " (the server's user needs read and write permission)",
            _ => "",
        };
        Self::Access { action, path: path.to_owned(), source, hint }
    }

    pub(super) fn sqlite(path: &Path, source: rusqlite::Error) -> Self {
        let cannot_open = source.sqlite_error_code() == Some(ErrorCode::CannotOpen);
        match disk_space::is_out_of_space(&source) || (cannot_open && !disk_space::has_inodes(path)) {
            true => Self::no_room(path),
            false => Self::Sqlite { path: path.to_owned(), source },
        }
    }

    /// Replaces an error caused by missing permissions with one that names all of them. The check follows the failure,
    /// because a capability may permit an access that `access` denies.
    pub(super) fn with_denials(self, database: &Path, salt: &Path) -> Self {
        let is_permission_error = match &self {
            Self::Access { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
            Self::Sqlite { source, .. } => matches!(
                source.sqlite_error_code(),
                Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied)
            ),
            _ => false,
        };
        match is_permission_error.then(|| permissions::denials(database, salt)).flatten() {
            Some(denials) => Self::Denied(denials),
            None => self,
        }
    }

    fn no_room(path: &Path) -> Self {
        Self::NoSpace { path: path.to_owned(), shortage: Shortage::of(path) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_errors_are_kept() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let (database, salt) = (directory.path().join("c.db"), directory.path().join("s"));
        let in_use = OpenError::access("read", &database, io::ErrorKind::NotFound.into())
            .with_denials(&database, &salt);
        assert!(matches!(in_use, OpenError::Access { .. }), "{in_use}");
        // No permission is missing: a security module may be the cause.
        let denied = OpenError::access("read", &database, io::ErrorKind::PermissionDenied.into());
        let kept = denied.with_denials(&database, &salt);
        assert!(matches!(kept, OpenError::Access { .. }), "{kept}");
    }
}
