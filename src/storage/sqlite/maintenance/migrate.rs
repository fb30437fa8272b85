//! Offline migration of a database to the current schema, or a trial on a copy.

use std::path::PathBuf;

use rusqlite::Connection;
use rusqlite::types::ValueRef;
use sha2::{Digest, Sha256};

use super::DataFiles;
use super::error::MaintenanceError;
use super::source::Source;
use crate::storage::paths::resolved;
use crate::storage::salt_store::SaltStore;
use crate::storage::sqlite::lock::DataLock;
use crate::storage::sqlite::schema::{self, Generation};
use crate::storage::sqlite::{check, open};

/// Outcome of a migration or of a trial.
#[derive(Debug)]
pub struct Migration {
    /// Previous generation of the schema, as in [`super::DatabaseRecord`].
    pub from: &'static str,
    /// Whether the database had a schema other than the current one.
    pub is_due: bool,
    /// Number of entries.
    pub entries_count: u64,
    /// Size of the database in bytes; the copy made before the migration needs as much space.
    pub bytes: u64,
    /// Copy made before the migration, if there is one.
    pub copy: Option<PathBuf>,
}

/// Migrates the database to the current schema, as startup does. With `is_trial`, migrates a copy in a temporary SQLite
/// database instead, and compares all entries.
///
/// # Errors
/// Fails if a server is running, or would refuse the files at startup.
pub fn migrate(files: &DataFiles<'_>, is_trial: bool) -> Result<Migration, MaintenanceError> {
    let path = &resolved(files.database);
    let sql = |source| MaintenanceError::sqlite(path, source);
    let source = Source::open(path)?;
    let is_due = !schema::is_current(&source.connection, source.generation).map_err(sql)?;
    let count = |connection: &Connection| {
        connection.query_row("SELECT count(*) FROM configurations", [], |row| row.get::<_, i64>(0))
    };
    let mut migration = Migration {
        from: source.generation.name(),
        is_due,
        entries_count: count(&source.connection).map_err(sql)?.unsigned_abs(),
        bytes: std::fs::metadata(path).map_or(0, |found| found.len()),
        copy: None,
    };
    match is_trial {
        true => try_on_copy(files, &source)?,
        false if is_due => {
            drop(source);
            let _lock = DataLock::acquire(path)?;
            let salt = SaltStore::open(files.salt, files.accepted_salt)?;
            let opened = open::open(path, &salt)?;
            schema::end_cycle(&opened.connection).map_err(sql)?;
            opened.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(sql)?;
            migration.copy = opened.copy;
        }
        false => {}
    }
    Ok(migration)
}

fn try_on_copy(files: &DataFiles<'_>, source: &Source) -> Result<(), MaintenanceError> {
    let path = files.database;
    let sql = |error| MaintenanceError::sqlite(path, error);
    let invalid = |what: String, remedy| MaintenanceError::Invalid { path: path.to_owned(), what, remedy };
    let salt = SaltStore::open(files.salt, files.accepted_salt)?;
    let damage = "restore it from a backup; nothing was changed";
    if let Some(what) = check::whole(&source.connection).map_err(sql)? {
        return Err(invalid(format!("is damaged ({what})"), damage));
    }
    if open::has_entries(&source.connection).map_err(sql)? {
        open::check_salt(&source.connection, path, &salt, source.generation)?;
    }
    open::refuse_duplicate(&source.connection, path, source.generation)?;
    // A temporary database of SQLite, deleted when it is closed.
    let mut copy = Connection::open("").map_err(sql)?;
    open::copy_into(&source.connection, &mut copy).map_err(sql)?;
    let before = fingerprint(&copy, source.generation).map_err(sql)?;
    schema::migrate(&mut copy, source.generation).map_err(sql)?;
    let after = fingerprint(&copy, source.generation).map_err(sql)?;
    let is_migrated = schema::detect(&copy, path)? == Generation::Ours;
    let damaged = check::whole(&copy).map_err(sql)?;
    if before != after || !is_migrated || damaged.is_some() {
        return Err(invalid(
            "would not have the same entries after its migration".to_owned(),
            "report this as a bug, and keep using the previous release; nothing was changed",
        ));
    }
    Ok(())
}

/// Computes a digest of all entries, over the columns of their generation.
fn fingerprint(connection: &Connection, generation: Generation) -> rusqlite::Result<[u8; 32]> {
    let more = if generation == Generation::V20 { "" } else { ", environment, created_at, updated_at" };
    let sql = format!(r#"SELECT id, "key", encrypted_value, category{more} FROM configurations ORDER BY id"#);
    let mut statement = connection.prepare(&sql)?;
    let columns_count = statement.column_count();
    let mut rows = statement.query([])?;
    let mut digest = Sha256::new();
    while let Some(row) = rows.next()? {
        for column in 0..columns_count {
            let (kind, bytes): (u8, &[u8]) = match row.get_ref(column)? {
                ValueRef::Null => (0, &[]),
                ValueRef::Integer(number) => (1, &number.to_be_bytes()),
                ValueRef::Real(number) => (2, &number.to_be_bytes()),
                ValueRef::Text(bytes) => (3, bytes),
                ValueRef::Blob(bytes) => (4, bytes),
            };
            digest.update([kind]);
            digest.update((bytes.len() as u64).to_be_bytes());
            digest.update(bytes);
        }
    }
    Ok(digest.finalize().into())
}
