//! Disk space for the files: available bytes, causes of a shortage, and the reserve for deletions.

use std::ffi::c_int;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags, ffi};
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::process::{Resource, getrlimit};

use super::paths::{directory_of, sibling};
use crate::limits::{RESERVE_BYTES, RESERVE_FREE_PART};

/// Location of the wal-index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WalIndex {
    /// The `-shm` file, so that other programs can use the database, too.
    Shared,
    /// Memory of this process, which then uses the database exclusively: for a disk on which the `-shm` file cannot be
    /// created. See <https://sqlite.org/vfs.html#standard_unix_vfses>, `unix-excl`.
    Private,
}

impl WalIndex {
    /// Opens an existing database. All connections of a process must use the same kind of wal-index.
    pub(super) fn connect(self, path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
        let vfs = match self {
            Self::Shared => c"unix",
            Self::Private => c"unix-excl",
        };
        Connection::open_with_flags_and_vfs(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX, vfs)
    }
}

/// Returns whether SQLite lacked space: on the disk, within a quota, or within the file size limit. SQLite reports
/// `SQLITE_FULL` only for the first, and a failed write for the others. Unlike after a failed sync, the state on disk
/// is then known.
pub(super) fn is_out_of_space(error: &rusqlite::Error) -> bool {
    const CODES: [c_int; 4] =
        [ffi::SQLITE_FULL, ffi::SQLITE_IOERR_WRITE, ffi::SQLITE_IOERR_SHMSIZE, ffi::SQLITE_IOERR_SHMOPEN];
    error.sqlite_error().is_some_and(|error| CODES.contains(&error.extended_code))
}

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

/// File that reserves disk space beside the database, and releases it for a deletion when the disk is full.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    was_released: bool,
    /// Time when creating the file last failed although there seemed to be space. It is not retried every second.
    failed: Option<Instant>,
}

/// Time until creating the reserve is retried.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);

impl Reserve {
    /// Returns the reserve of a database. Its file may not exist yet.
    pub(super) fn of(database: &Path) -> Self {
        Self { path: sibling(database, "-reserve"), was_released: false, failed: None }
    }

    /// Creates the file if there is space for it, and returns whether it exists.
    pub(super) fn keep(&mut self) -> bool {
        if fs::metadata(&self.path).is_ok_and(|found| found.len() >= RESERVE_BYTES) {
            return true;
        }
        // The reserve must not fill up a small disk.
        let parts = if self.was_released { 1 } else { RESERVE_FREE_PART };
        let has_just_failed = self.failed.is_some_and(|failed| failed.elapsed() < RETRY_INTERVAL);
        if has_just_failed || available_bytes(&self.path) / parts < RESERVE_BYTES {
            return false;
        }
        let created = create(&self.path);
        if created.is_err() {
            // A partial file would take the space of the next write.
            fs::remove_file(&self.path).ok();
            self.failed = Some(Instant::now());
        }
        created.is_ok()
    }

    /// Deletes the file.
    pub(super) fn give_up(&mut self) {
        self.was_released |= fs::remove_file(&self.path).is_ok();
    }
}

fn create(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    Ok(fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES)?)
}
