//! Errors of the store, classified by the caller's remedy.

use std::io;
use std::path::{Path, PathBuf};

use super::disk_space::{self, Shortage};
use super::permissions::Denials;

/// Remedy for a damaged file.
pub(super) const RESTORE: &str = "restore it from a backup together with its -wal file, or save what can be read \
     with `sqlite3 FILE .recover` into a new file";

/// Error of an engine, whose type its callers do not know.
pub type BoxedError = Box<dyn std::error::Error + Send + Sync>;

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
        /// The engine's description of the damage.
        what: String,
    },
    /// Any other error. The client has no remedy.
    #[error("database error")]
    Engine(#[source] BoxedError),
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
    /// The engine cannot open the file.
    #[error("cannot open {path}: {source}")]
    Engine {
        /// The file.
        path: PathBuf,
        /// The engine's error.
        source: BoxedError,
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

    pub(super) fn no_room(path: &Path) -> Self {
        Self::NoSpace { path: path.to_owned(), shortage: Shortage::of(path) }
    }
}
