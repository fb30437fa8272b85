//! Disk space for the files: available bytes, and causes of a shortage.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::statvfs;
use rustix::process::{Resource, getrlimit};

use super::paths::directory_of;
use crate::limits::RESERVE_BYTES;

/// Returns whether a system call lacked space.
pub(super) fn lacks_space(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// Returns the bytes that are available to this user on the file system of a file.
pub(super) fn available_bytes(file: &Path) -> u64 {
    statvfs(directory_of(file)).map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Returns whether the file system of a file has a free inode.
pub(super) fn has_inodes(file: &Path) -> bool {
    // File systems without a fixed number of inodes report a total of zero.
    statvfs(directory_of(file)).map_or(true, |disk| disk.f_files == 0 || disk.f_favail > 0)
}

/// Resource that is short for a file, displayed with the remedy.
#[derive(Debug)]
pub struct Shortage {
    directory: PathBuf,
    available_bytes: u64,
    has_inodes: bool,
    file_bytes_max: Option<u64>,
}

impl Shortage {
    /// Determines the current shortage.
    pub(super) fn of(file: &Path) -> Self {
        let directory = directory_of(file);
        let file_bytes_max = getrlimit(Resource::Fsize).current;
        Self {
            available_bytes: available_bytes(file),
            directory,
            has_inodes: has_inodes(file),
            file_bytes_max,
        }
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (directory, available) = (self.directory.display(), self.available_bytes);
        match self.file_bytes_max {
            _ if !self.has_inodes => {
                write!(f, "the file system of {directory} has no inode left: delete files")
            }
            Some(bytes) if available >= RESERVE_BYTES => write!(
                f,
                "the file size limit is {bytes} bytes: raise it (`ulimit -f`, systemd's LimitFSIZE=)"
            ),
            _ if available >= RESERVE_BYTES => {
                write!(
                    f,
                    "the disk quota of this user in {directory} is exhausted, or writes there fail: make room"
                )
            }
            _ => write!(f, "the file system of {directory} has {available} bytes left: make room"),
        }
    }
}
