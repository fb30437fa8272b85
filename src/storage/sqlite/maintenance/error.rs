//! Errors of maintenance commands, classified by the operator's remedy.

use std::path::{Path, PathBuf};

use crate::storage::error::OpenError;
use crate::storage::sqlite::error::is_damage;

/// Failure of a maintenance command. The data files are unchanged.
#[derive(Debug, thiserror::Error)]
pub enum MaintenanceError {
    /// A file or directory is missing.
    #[error("{path} does not exist: {remedy}")]
    Missing {
        /// The missing file or directory.
        path: PathBuf,
        /// The remedy.
        remedy: &'static str,
    },
    /// The target of a backup is not an empty directory.
    #[error("{0} exists and is not an empty directory: name another one for the backup")]
    Exists(PathBuf),
    /// A file is damaged, or two files do not belong together.
    #[error("{path} {what}: {remedy}")]
    Invalid {
        /// The file or directory.
        path: PathBuf,
        /// The problem; follows the path in a sentence.
        what: String,
        /// The remedy.
        remedy: &'static str,
    },
    /// The data files cannot be used.
    #[error(transparent)]
    Files(#[from] OpenError),
}

/// Class of an error, for the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaintenanceErrorKind {
    /// A file or directory is missing.
    Missing,
    /// Another process or file conflicts with the command.
    Conflict,
    /// A file is damaged or of another kind.
    Invalid,
    /// An I/O error.
    Failed,
}

impl MaintenanceError {
    /// Returns the class of this error.
    pub fn kind(&self) -> MaintenanceErrorKind {
        match self {
            Self::Missing { .. } => MaintenanceErrorKind::Missing,
            Self::Exists(_) | Self::Files(OpenError::InUse { .. }) => MaintenanceErrorKind::Conflict,
            Self::Invalid { .. } | Self::Files(OpenError::Unusable { .. }) => MaintenanceErrorKind::Invalid,
            Self::Files(OpenError::Engine { source, .. }) if is_damage(source) => {
                MaintenanceErrorKind::Invalid
            }
            Self::Files(_) => MaintenanceErrorKind::Failed,
        }
    }

    /// Creates the error for a backup, or a file of one, that fails verification.
    pub(super) fn unverified(path: &Path, problems: &[String]) -> Self {
        Self::Invalid {
            path: path.to_owned(),
            what: format!("fails verification: {}", problems.join("; ")),
            remedy: "use another backup; nothing was changed",
        }
    }

    pub(super) fn sqlite(path: &Path, source: rusqlite::Error) -> Self {
        Self::Files(OpenError::sqlite(path, source))
    }

    pub(super) fn access(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Files(OpenError::access(action, path, source))
    }
}
