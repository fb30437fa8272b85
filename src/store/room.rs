//! Room for the files: how much there is, why there is none, and a reserve of it.

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

use super::open::{directory_of, sibling};
use crate::limits::{RESERVE_BYTES, RESERVE_FREE_PART};

/// Where SQLite keeps the index of the WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WalIndex {
    /// In the `-shm` file, so that other programs can use the database, too.
    Shared,
    /// In memory of this process, which has the database for itself: for a disk on which no `-shm` file can be made.
    /// See <https://sqlite.org/vfs.html#standard_unix_vfses>, `unix-excl`.
    Private,
}

impl WalIndex {
    /// Opens a database that is there. All connections of a process must be of one kind.
    pub(super) fn connect(self, path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
        let vfs = match self {
            Self::Shared => c"unix",
            Self::Private => c"unix-excl",
        };
        Connection::open_with_flags_and_vfs(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX, vfs)
    }
}

/// Whether SQLite lacked room: on the disk, by a quota, or by the limit of file sizes. It says `SQLITE_FULL` only of
/// the first; of the others that a write has failed. That leaves nothing in doubt, unlike a sync that fails.
pub(super) fn is_lack_of_room(error: &rusqlite::Error) -> bool {
    const CODES: [c_int; 4] =
        [ffi::SQLITE_FULL, ffi::SQLITE_IOERR_WRITE, ffi::SQLITE_IOERR_SHMSIZE, ffi::SQLITE_IOERR_SHMOPEN];
    error.sqlite_error().is_some_and(|error| CODES.contains(&error.extended_code))
}

/// The same of a call of the system.
pub(super) fn lacks_room(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// Bytes that are free on the file system of a file, for this user.
pub(super) fn available_bytes(file: &Path) -> u64 {
    statvfs(directory_of(file)).map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Whether the file system of a file can have another one.
pub(super) fn has_inodes(file: &Path) -> bool {
    // File systems without a fixed number of inodes say that they have none in all.
    statvfs(directory_of(file)).map_or(true, |disk| disk.f_files == 0 || disk.f_favail > 0)
}

/// What a file has no room for, and what to do about it.
#[derive(Debug)]
pub struct Shortage {
    directory: PathBuf,
    available_bytes: u64,
    has_inodes: bool,
    file_bytes_max: Option<u64>,
}

impl Shortage {
    /// As it is now.
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
                "the limit of file sizes is {bytes} bytes: raise it (`ulimit -f`, systemd's LimitFSIZE=)"
            ),
            _ if available >= RESERVE_BYTES => {
                write!(
                    f,
                    "the quota of this user in {directory} is used up, or writing there fails: make room"
                )
            }
            _ => write!(f, "the file system of {directory} has {available} bytes left: make room"),
        }
    }
}

/// A file that takes room beside the database, and gives it up for a deletion when there is no other.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    was_given_up: bool,
    /// When making it last failed, although there seemed to be room: it is not tried again every second.
    failed: Option<Instant>,
}

/// Until the reserve is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);

impl Reserve {
    /// That of a database. It need not be there yet.
    pub(super) fn of(database: &Path) -> Self {
        Self { path: sibling(database, "-reserve"), was_given_up: false, failed: None }
    }

    /// Makes the file if there is room for it, and says whether it is there.
    pub(super) fn keep(&mut self) -> bool {
        if fs::metadata(&self.path).is_ok_and(|found| found.len() >= RESERVE_BYTES) {
            return true;
        }
        // It must not be what makes a small disk a full one.
        let parts = if self.was_given_up { 1 } else { RESERVE_FREE_PART };
        let has_just_failed = self.failed.is_some_and(|failed| failed.elapsed() < RETRY_INTERVAL);
        if has_just_failed || available_bytes(&self.path) / parts < RESERVE_BYTES {
            return false;
        }
        let made = make(&self.path);
        if made.is_err() {
            // The next write would fail for what there is of it.
            fs::remove_file(&self.path).ok();
            self.failed = Some(Instant::now());
        }
        made.is_ok()
    }

    /// Deletes the file.
    pub(super) fn give_up(&mut self) {
        self.was_given_up |= fs::remove_file(&self.path).is_ok();
    }
}

fn make(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    Ok(fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES)?)
}
