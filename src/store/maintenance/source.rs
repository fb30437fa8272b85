//! A database that a maintenance command reads, beside the server that has it open or with its lock held.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use rustix::process::geteuid;

use super::super::error::OpenError;
use super::super::lock::DataLock;
use super::super::room::WalIndex;
use super::super::schema::{self, Generation};
use super::super::{BUSY_TIMEOUT, open};
use super::error::MaintenanceError;
use super::restore;

/// An open database. Nothing in it is changed.
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
    /// When a server would refuse it, too.
    pub(super) fn open(path: &Path) -> Result<Self, MaintenanceError> {
        let path = &open::resolved(path);
        if !path.exists() {
            restore::refuse_unfinished(path)?;
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
    /// As for [`Self::open`].
    pub(super) fn open_locked(path: &Path) -> Result<Self, MaintenanceError> {
        let path = &open::resolved(path);
        let connection = offline(path)?;
        let generation = detect(&connection, path)?;
        Ok(Self { connection, generation, lock: None })
    }

    /// The greatest id that any entry has or is known to have had.
    pub(super) fn last_id(&self) -> rusqlite::Result<i64> {
        last_id(&self.connection, self.generation)
    }

    /// Whether a server has the database open.
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

/// Notes in a database in the current shape that the ids up to this one are used.
pub(super) fn retire_ids(connection: &Connection, used: i64) -> rusqlite::Result<()> {
    if last_id(connection, Generation::Ours)? < used {
        schema::set_meta(connection, schema::LAST_ID, used)?;
    }
    Ok(())
}

/// Leaves the lock file, if root has made it, to the owner of the database: the server's user must open it.
pub(super) fn leave_to_owner(database: &Path) -> Result<(), MaintenanceError> {
    let resolved = database.canonicalize().unwrap_or_else(|_| database.to_owned());
    let lock = open::sibling(&resolved, ".lock");
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

/// Applies the checks of a start: a WAL of another state is not read.
fn offline(path: &Path) -> Result<Connection, MaintenanceError> {
    restore::refuse_unfinished(path)?;
    let header = open::read_header(path)?;
    if header.is_none() {
        open::refuse_orphaned_wal(path)?;
    }
    let connection = open::connect(path, WalIndex::Shared, false)?;
    let sql = |source| MaintenanceError::sqlite(path, source);
    // Closing must not move the WAL into the database; without a WAL it removes the empty one of opening.
    let wal_has_content = open::has_content(&open::sibling(path, "-wal"));
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, wal_has_content).map_err(sql)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(sql)?;
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
        connection.busy_timeout(BUSY_TIMEOUT)?;
        Ok(connection)
    };
    connect().map_err(|source| MaintenanceError::sqlite(path, source))
}
