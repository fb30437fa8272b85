//! Durability of directory entries.

use std::fs::File;
use std::path::Path;

use super::error::OpenError;
use super::paths::directory_of;

/// Makes a new directory entry for `path` durable.
pub(super) fn sync_directory(path: &Path) -> Result<(), OpenError> {
    let directory = directory_of(path);
    File::open(&directory)
        .and_then(|handle| handle.sync_all())
        .map_err(|error| OpenError::access("sync the directory", &directory, error))
}
