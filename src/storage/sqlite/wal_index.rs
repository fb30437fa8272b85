//! Location of the wal-index, which all connections of the process share.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

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
