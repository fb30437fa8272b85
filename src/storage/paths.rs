//! Paths of the files that belong to a database, and constants of its file format.

use std::fs;
use std::path::{Path, PathBuf};

/// Magic of a SQLite database, <https://sqlite.org/fileformat2.html>, section 1.3.
pub(super) const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// Size of the database header.
pub(super) const HEADER_BYTES: usize = 100;

/// Resolves a symbolic link, even a dangling one: SQLite creates its own files beside the target.
pub(super) fn resolved(path: &Path) -> PathBuf {
    if !path.is_symlink() {
        return path.to_owned();
    }
    path.canonicalize().unwrap_or_else(|_| match fs::read_link(path) {
        Ok(target) => directory_of(path).join(target),
        Err(_) => path.to_owned(),
    })
}

/// Returns `path` with `suffix` appended to the file name, as SQLite names its own files.
pub(super) fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Returns the directory of `path`; for a bare file name, the working directory.
pub(super) fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Returns the path of the lock file.
pub(super) fn lock_path(database: &Path) -> PathBuf {
    // Two paths to the same file must share a lock, so links are resolved first.
    let resolved = database.canonicalize().unwrap_or_else(|_| database.to_owned());
    let mut name = resolved.into_os_string();
    name.push(".lock");
    PathBuf::from(name)
}
