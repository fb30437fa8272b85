//! Database read by a maintenance command, concurrently with a running server or with the data lock held.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use rustix::process::geteuid;

use super::error::MaintenanceError;
use super::unfinished::refuse_unfinished;
use crate::limits::SQLITE_BUSY_TIMEOUT;
use crate::storage::error::OpenError;
use crate::storage::paths;
use crate::storage::sqlite::lock::DataLock;
use crate::storage::sqlite::open;
use crate::storage::sqlite::schema::{self, Generation};
use crate::storage::sqlite::wal_index::WalIndex;

/// Open database, which is not changed.
#[derive(Debug)]
pub(super) struct Source {
    // Closed before the lock is released.
    pub(super) connection: Connection,
    pub(super) generation: Generation,
    pub(super) lock: Option<DataLock>,
}

impl Source {
    /// Opens the database of a node.
    ///
    /// # Errors
    /// Fails if a server would refuse the database, too.
    pub(super) fn open(path: &Path) -> Result<Self, MaintenanceError> {
        let path = &paths::resolved(path);
        if !path.exists() {
            refuse_unfinished(path)?;
            let remedy = "set OSC_DATABASE_PATH to the database of the node";
            return Err(MaintenanceError::Missing { path: path.to_owned(), remedy });
        }
        let (connection, lock) = match DataLock::acquire(path) {
            Ok(lock) => {
                leave_to_owner(path)?;
                (offline(path)?, Some(lock))
            }
            Err(OpenError::InUse { .. }) => (read_only(path)?, None),
            Err(error) => return Err(error.into()),
        };
        let generation = detect(&connection, path)?;
        Ok(Self { connection, generation, lock })
    }

    /// Opens the database of a node whose lock the caller holds.
    ///
    /// # Errors
    /// Fails if a server would refuse the database, too.
    pub(super) fn open_locked(path: &Path) -> Result<Self, MaintenanceError> {
        let path = &paths::resolved(path);
        let connection = offline(path)?;
        let generation = detect(&connection, path)?;
        Ok(Self { connection, generation, lock: None })
    }

    /// Reads the greatest id that any entry has or is known to have had.
    pub(super) fn last_id(&self) -> rusqlite::Result<i64> {
        last_id(&self.connection, self.generation)
    }

    /// Returns whether a server has the database open.
    pub(super) fn is_online(&self) -> bool {
        self.lock.is_none()
    }
}

fn last_id(connection: &Connection, generation: Generation) -> rusqlite::Result<i64> {
    let present: i64 =
        connection.query_row("SELECT ifnull(max(id), 0) FROM configurations", [], |row| row.get(0))?;
    let deleted = match generation {
        Generation::Ours => schema::meta(connection, schema::LAST_ID)?,
        _ => None,
    };
    Ok(present.max(deleted.unwrap_or(0)))
}

/// Records in a database with the current schema that the ids up to `used` are used.
pub(super) fn retire_ids(connection: &Connection, used: i64) -> rusqlite::Result<()> {
    if last_id(connection, Generation::Ours)? < used {
        schema::set_meta(connection, schema::LAST_ID, used)?;
    }
    Ok(())
}

/// Gives the lock file, if root has created it, to the owner of the database: the server's user must be able to open
/// it.
pub(super) fn leave_to_owner(database: &Path) -> Result<(), MaintenanceError> {
    let resolved = database.canonicalize().unwrap_or_else(|_| database.to_owned());
    let lock = paths::sibling(&resolved, ".lock");
    if let (true, Ok(owner)) = (geteuid().is_root(), fs::metadata(database)) {
        chown(&lock, Some(owner.uid()), Some(owner.gid()))
            .map_err(|error| MaintenanceError::access("change the owner of", &lock, error))?;
    }
    Ok(())
}

/// Returns the generation of a database that has the table of entries.
pub(super) fn detect(connection: &Connection, path: &Path) -> Result<Generation, MaintenanceError> {
    match schema::detect(connection, path)? {
        Generation::Fresh => Err(MaintenanceError::Invalid {
            path: path.to_owned(),
            what: "is an empty database".to_owned(),
            remedy: "name the database of a node",
        }),
        generation => Ok(generation),
    }
}

/// Opens a database without a server. Applies the checks of startup, so that the WAL of another state is not read.
fn offline(path: &Path) -> Result<Connection, MaintenanceError> {
    refuse_unfinished(path)?;
    let header = open::read_header(path)?;
    if header.is_none() {
        open::refuse_orphaned_wal(path)?;
    }
    let connection = open::connect(path, WalIndex::Shared, false)?;
    let sql = |source| MaintenanceError::sqlite(path, source);
    // Closing must not checkpoint the WAL; without a WAL, closing removes the empty one that opening creates.
    let wal_has_content = open::has_content(&paths::sibling(path, "-wal"));
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, wal_has_content).map_err(sql)?;
    connection.busy_timeout(SQLITE_BUSY_TIMEOUT).map_err(sql)?;
    if let Some(header) = &header
        && schema::detect(&connection, path)? == Generation::Ours
    {
        open::check_wal_belongs(&connection, path, header)?;
    }
    Ok(connection)
}

fn read_only(path: &Path) -> Result<Connection, MaintenanceError> {
    let connect = || {
        let connection = WalIndex::Shared.connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        connection.busy_timeout(SQLITE_BUSY_TIMEOUT)?;
        Ok(connection)
    };
    connect().map_err(|source| MaintenanceError::sqlite(path, source))
}
