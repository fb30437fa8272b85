//! Errors of SQLite as errors of the storage layer. No type of SQLite leaves this engine.

use std::ffi::c_int;
use std::io;
use std::path::Path;

use rusqlite::{ErrorCode, ffi};

use crate::storage::error::{BoxedError, Error, OpenError};
use crate::storage::write::WriteError;
use crate::storage::{disk_space, permissions};

/// Returns whether SQLite lacked space: on the disk, within a quota, or within the file size limit. SQLite reports
/// `SQLITE_FULL` only for the first, and a failed write for the others. Unlike after a failed sync, the state on disk
/// is then known.
pub(super) fn is_out_of_space(error: &rusqlite::Error) -> bool {
    const CODES: [c_int; 4] =
        [ffi::SQLITE_FULL, ffi::SQLITE_IOERR_WRITE, ffi::SQLITE_IOERR_SHMSIZE, ffi::SQLITE_IOERR_SHMOPEN];
    error.sqlite_error().is_some_and(|error| CODES.contains(&error.extended_code))
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        if is_out_of_space(&error) {
            return Self::Full;
        }
        match error.sqlite_error_code() {
            // No file descriptor or memory is left for another connection.
            Some(ErrorCode::CannotOpen | ErrorCode::OutOfMemory) => Self::Busy,
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy,
            _ => Self::Engine(error.into()),
        }
    }
}

impl From<rusqlite::Error> for WriteError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error.into())
    }
}

/// Returns SQLite's code of an error, if SQLite reported it.
pub(super) fn code(error: &Error) -> Option<ErrorCode> {
    match error {
        Error::Engine(source) => sqlite_error(source)?.sqlite_error_code(),
        _ => None,
    }
}

/// Returns whether an error means that the file is damaged.
pub(super) fn is_damage(source: &BoxedError) -> bool {
    sqlite_error(source).is_some_and(reports_damage)
}

/// Returns whether SQLite reports with this error that the file is damaged.
pub(super) fn reports_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

fn sqlite_error(source: &BoxedError) -> Option<&rusqlite::Error> {
    source.downcast_ref()
}

/// Converts an error for a caller that returns errors of SQLite.
pub(super) fn into_rusqlite(error: Error) -> rusqlite::Error {
    match error {
        Error::Engine(source) => match source.downcast() {
            Ok(source) => *source,
            Err(other) => rusqlite::Error::ToSqlConversionFailure(other),
        },
        other => rusqlite::Error::ToSqlConversionFailure(Box::new(other)),
    }
}

impl OpenError {
    pub(super) fn sqlite(path: &Path, source: rusqlite::Error) -> Self {
        let cannot_open = source.sqlite_error_code() == Some(ErrorCode::CannotOpen);
        match is_out_of_space(&source) || (cannot_open && !disk_space::has_inodes(path)) {
            true => Self::no_room(path),
            false => Self::Engine { path: path.to_owned(), source: source.into() },
        }
    }

    /// Replaces an error caused by missing permissions with one that names all of them. The check follows the failure,
    /// because a capability may permit an access that `access` denies.
    pub(super) fn with_denials(self, database: &Path, salt: &Path) -> Self {
        let is_permission_error = match &self {
            Self::Access { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
            Self::Engine { source, .. } => matches!(
                sqlite_error(source).and_then(rusqlite::Error::sqlite_error_code),
                Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied)
            ),
            _ => false,
        };
        match is_permission_error.then(|| permissions::denials(database, salt)).flatten() {
            Some(denials) => Self::Denied(denials),
            None => self,
        }
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
