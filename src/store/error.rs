//! What can go wrong with the files, by what the caller can do about it.

use std::io;
use std::path::{Path, PathBuf};

use super::permissions::Denials;
use super::room::{self, Shortage};

/// What to do about a damaged file.
pub(super) const RESTORE: &str = "restore it from a backup together with its -wal file, or save what can be read \
     with `sqlite3 FILE .recover` into a new file";

/// A read or write of the open store failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No space is left: free some and try again; reads go on.
    #[error("no space is left for the database")]
    Full,
    /// One of the files is another one than was opened, so a write would be lost; reads go on.
    #[error("a file of the store was removed or replaced")]
    Displaced,
    /// Another process holds the database, or the queue is full: try again soon.
    #[error("the database is busy")]
    Busy,
    /// The store is closed or its writer has given up after an I/O error.
    #[error("the store takes no more writes")]
    Stopped,
    /// The file was found damaged while it was in use.
    #[error("{path} is damaged ({what}): {RESTORE}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        what: String,
    },
    /// Everything else; nothing the client can do.
    #[error("database error")]
    Sqlite(#[source] rusqlite::Error),
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        if room::is_lack_of_room(&error) {
            return Self::Full;
        }
        match error.sqlite_error_code() {
            // No descriptor or no memory is left for one more connection.
            Some(rusqlite::ErrorCode::CannotOpen | rusqlite::ErrorCode::OutOfMemory) => Self::Busy,
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => Self::Busy,
            _ => Self::Sqlite(error),
        }
    }
}

/// The files cannot be used; nothing in them was changed. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another server has the database open.
    #[error(
        "{0} is in use by another server (this file or its lock file is locked, perhaps under another name): stop that \
         one first, or set OSC_DATABASE_PATH to another file"
    )]
    InUse(PathBuf),
    /// The directory or file cannot be read or written.
    #[error("cannot {action} {path}: {source}{hint}")]
    Access {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
        /// What to do, where that is known.
        hint: &'static str,
    },
    /// The user of this process lacks permissions.
    #[error("cannot use the data files: {0}")]
    Denied(Denials),
    /// There is no room for the file.
    #[error("cannot write {path}: {shortage}")]
    NoRoom {
        /// The file.
        path: PathBuf,
        /// What it has no room for.
        shortage: Shortage,
    },
    /// The file is no database of this kind.
    #[error("{path} {what}: {remedy}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
    /// There are not enough connections to read by.
    #[error("cannot open {path} for reading: {source}")]
    Readers {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: Error,
    },
    /// SQLite refused.
    #[error("cannot open {path}: {source}")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// SQLite's own error.
        source: rusqlite::Error,
    },
}

impl OpenError {
    pub(super) fn access(action: &'static str, path: &Path, source: io::Error) -> Self {
        if room::lacks_room(&source) {
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
        let no_file = source.sqlite_error_code() == Some(rusqlite::ErrorCode::CannotOpen);
        match room::is_lack_of_room(&source) || (no_file && !room::has_inodes(path)) {
            true => Self::no_room(path),
            false => Self::Sqlite { path: path.to_owned(), source },
        }
    }

    fn no_room(path: &Path) -> Self {
        Self::NoRoom { path: path.to_owned(), shortage: Shortage::of(path) }
    }
}
