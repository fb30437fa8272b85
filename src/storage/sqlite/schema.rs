//! Database schema: the table of the Python server in its three generations, and their single migration.
//!
//! `configurations` keeps its columns. A file of the 2.0 generation gets the three columns of the later generations;
//! they are nullable, so that the INSERT of the Python server keeps working. The unique index on the key becomes one on
//! key and environment. No table is STRICT, so that the SQLite of an older Python can still read the file. See
//! `docs/decisions/0003-one-table.md`.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};

use super::column::lossy_text;
use crate::model::{Revision, Revisions, Timestamp};
use crate::storage::error::{Error, OpenError};

/// Generation of the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Generation {
    /// No table yet.
    Fresh,
    /// Python server 2.0 and 2.1: no environments.
    V20,
    /// Python server 2.2 and 2.3: nullable environments; the key alone is unique.
    V23,
    /// Python server 3.x: environments are NOT NULL; key and environment together are unique.
    V3,
    /// Migrated by this server.
    Ours,
}

/// Encoding of missing values in a file: NULL, unless the column is NOT NULL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct NullEncoding {
    /// Value for "no environment", in files that came from 3.x.
    pub(super) no_environment: Option<&'static str>,
    /// Value for an unknown time, in files that came from 2.2 or later.
    pub(super) no_time: Option<&'static str>,
}

impl Generation {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Fresh => "new",
            Self::V20 => "2.0",
            Self::V23 => "2.3",
            Self::V3 => "3.x",
            Self::Ours => "current",
        }
    }
}

/// Name of the `osc_meta` row with the tag of the salt.
const SALT_TAG: &str = "salt_tag";
/// Version of this server's additions to the schema; a larger one was written by a later release.
const SCHEMA_VERSION: i64 = 3;

const TABLE: &str = r#"
CREATE TABLE configurations (
    id INTEGER NOT NULL,
    "key" VARCHAR(255) NOT NULL,
    encrypted_value TEXT NOT NULL,
    category VARCHAR(100),
    environment VARCHAR(100),
    created_at DATETIME,
    updated_at DATETIME,
    PRIMARY KEY (id)
);
"#;

/// Revisions, since schema 3. Zero is the revision of rows that another program has written: they have the revision at
/// which this server noticed. The trigger is disabled on the writer's connection.
const REVISIONS: &str = "
ALTER TABLE configurations ADD COLUMN osc_revision INTEGER NOT NULL DEFAULT 0;
CREATE TRIGGER osc_foreign_revision AFTER UPDATE ON configurations
WHEN new.osc_revision = old.osc_revision AND new.osc_revision <> 0 BEGIN
    UPDATE configurations SET osc_revision = 0 WHERE id = new.id;
END;
";
/// Name of the `osc_meta` row with the largest revision that may have been issued.
const RESERVED_REVISION: &str = "revision";

const LATER_COLUMNS: &str = "
ALTER TABLE configurations ADD COLUMN environment VARCHAR(100);
ALTER TABLE configurations ADD COLUMN created_at DATETIME;
ALTER TABLE configurations ADD COLUMN updated_at DATETIME;
";

const OURS: &str = r#"
DROP INDEX IF EXISTS ix_configurations_key;
CREATE UNIQUE INDEX osc_key_environment ON configurations ("key", ifnull(environment, ''));
CREATE TABLE osc_meta (name TEXT NOT NULL PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"#;

/// Cluster tables, since schema 2. Empty until the node is in a cluster for the first time.
const CLUSTER: &str = r#"
CREATE TABLE osc_versions (
    bucket INTEGER NOT NULL,
    "key" TEXT NOT NULL,
    environment TEXT NOT NULL,
    stamp INTEGER NOT NULL,
    node INTEGER NOT NULL,
    digest BLOB,
    PRIMARY KEY (bucket, "key", environment)
) WITHOUT ROWID;
CREATE TABLE osc_outbox (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    "key" TEXT NOT NULL,
    environment TEXT NOT NULL
);
CREATE TABLE osc_peers (
    node INTEGER NOT NULL PRIMARY KEY,
    acknowledged INTEGER NOT NULL,
    synced INTEGER NOT NULL
);
CREATE TABLE osc_foreign (
    "key" TEXT NOT NULL,
    environment TEXT NOT NULL,
    PRIMARY KEY ("key", environment)
) WITHOUT ROWID;
"#;

/// Name of the `osc_meta` row with the greatest id of a deleted entry.
pub(super) const LAST_ID: &str = "last_id";

/// Column as reported by `PRAGMA table_xinfo`.
struct Column {
    name: String,
    kind: String,
    not_null: bool,
    primary_key: bool,
}

/// Detects the generation of the file without writing to it.
///
/// # Errors
/// Fails if the schema is unknown; the message names what was found.
pub(super) fn detect(connection: &Connection, path: &Path) -> Result<Generation, OpenError> {
    let sql = |source| OpenError::sqlite(path, source);
    let columns = columns(connection).map_err(sql)?;
    if columns.is_empty() {
        let tables: i64 =
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(sql)?;
        if tables == 0 {
            return Ok(Generation::Fresh);
        }
        return Err(unknown_schema(
            path,
            "is a SQLite database of another program: it has no table \"configurations\"",
        ));
    }
    let generation = by_columns(&columns).ok_or_else(|| {
        let names: Vec<_> = columns.iter().map(|column| column.name.as_str()).collect();
        let what = format!("has a table \"configurations\" with unexpected columns ({})", names.join(", "));
        unknown_schema(path, &what)
    })?;
    match ours_version(connection).map_err(sql)? {
        None => Ok(generation),
        Some(version) if version > SCHEMA_VERSION => Err(OpenError::Unusable {
            path: path.to_owned(),
            what: format!(
                "was written by a later release (schema {version}, this one supports {SCHEMA_VERSION})"
            ),
            remedy: "use that release, or restore the copy that was made before its migration",
        }),
        Some(_) => Ok(Generation::Ours),
    }
}

fn unknown_schema(path: &Path, what: &str) -> OpenError {
    OpenError::Unusable {
        path: path.to_owned(),
        what: what.to_owned(),
        remedy: "set OSC_DATABASE_PATH to a file of OpenSecureConf, or to one that does not exist yet",
    }
}

fn columns(connection: &Connection) -> rusqlite::Result<Vec<Column>> {
    let mut statement = connection.prepare("PRAGMA table_xinfo(configurations)")?;
    let rows = statement.query_map([], |row| {
        Ok(Column {
            name: row.get("name")?,
            kind: row.get("type")?,
            not_null: row.get("notnull")?,
            primary_key: row.get::<_, i64>("pk")? == 1,
        })
    })?;
    rows.collect()
}

fn by_columns(columns: &[Column]) -> Option<Generation> {
    let find = |name: &str| columns.iter().find(|column| column.name == name);
    let id = find("id")?;
    if !(id.primary_key && id.kind.eq_ignore_ascii_case("INTEGER")) {
        return None;
    }
    find("key")?;
    find("encrypted_value")?;
    find("category")?;
    match (find("environment"), find("created_at"), find("updated_at")) {
        (None, None, None) => Some(Generation::V20),
        (Some(environment), Some(_), Some(_)) if environment.not_null => Some(Generation::V3),
        (Some(_), Some(_), Some(_)) => Some(Generation::V23),
        _ => None,
    }
}

fn ours_version(connection: &Connection) -> rusqlite::Result<Option<i64>> {
    let present = connection
        .query_row("SELECT 1 FROM sqlite_schema WHERE name = 'osc_meta'", [], |_| Ok(()))
        .optional()?;
    match present {
        Some(()) => meta(connection, "schema"),
        None => Ok(None),
    }
}

/// Begins a checkpoint cycle, in the first commit on an empty WAL, by recording the cycle that the WAL is based on.
///
/// The cycle number itself is rewritten unchanged, so that its page is in every prefix of the WAL: otherwise a WAL that
/// was copied too early would show the number of any database that it is beside.
pub(super) fn begin_cycle(connection: &Connection) -> rusqlite::Result<()> {
    let cycle: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    set_meta(connection, "wal_base", cycle)?;
    connection.pragma_update(None, "user_version", cycle)
}

/// Ends a checkpoint cycle, in the last commit before the WAL is emptied, which moves the next cycle number into the
/// database. `open::check_wal_belongs` relies on this: the database is never more than one ahead of `wal_base`.
pub(super) fn end_cycle(connection: &Connection) -> rusqlite::Result<()> {
    let base = meta(connection, "wal_base")?.unwrap_or(0);
    connection.pragma_update(None, "user_version", i32::try_from(base + 1).unwrap_or(0))
}

/// Reads the greatest id that any entry has or had; zero if there was no entry.
pub(super) fn last_id(connection: &Connection) -> rusqlite::Result<i64> {
    let greatest = connection
        .prepare_cached("SELECT max(id) FROM configurations")?
        .query_row([], |row| row.get::<_, Option<i64>>(0))?;
    Ok(greatest.max(meta(connection, LAST_ID)?).unwrap_or(0).max(0))
}

/// Records the id of an entry that is about to be deleted, if it is the greatest one.
pub(super) fn retire_id(connection: &Connection, id: i64) -> rusqlite::Result<()> {
    if last_id(connection)? == id { set_meta(connection, LAST_ID, id) } else { Ok(()) }
}

/// Probes whether writes are possible, by a write that changes nothing.
pub(super) fn touch(connection: &Connection) -> Result<(), Error> {
    connection
        .prepare_cached("UPDATE osc_meta SET value = value WHERE name = 'schema'")?
        .execute([])
        .map(|_| ())
        .map_err(Error::from)
}

/// Returns whether a database file, read without its WAL, contains a part of the cycle that the WAL begins: it is a
/// backup, or a reader interrupted a checkpoint.
pub(super) fn is_in_mid_cycle(file_alone: &Connection) -> rusqlite::Result<bool> {
    let cycle: i64 = file_alone.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    // In the first cycle of a file from an earlier release, the two are equal from the beginning.
    let is_known = cycle > 0 || meta(file_alone, "wal_base_precedes")?.is_some();
    Ok(is_known && meta(file_alone, "wal_base")? == Some(cycle))
}

/// Reads a number from the table `osc_meta`.
pub(super) fn meta(connection: &Connection, name: &str) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT value FROM osc_meta WHERE name = ?1")?
        .query_row([name], |row| row.get(0))
        .optional()
}

/// Sets a number in the table `osc_meta`.
pub(super) fn set_meta(connection: &Connection, name: &str, value: i64) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO osc_meta (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = ?2",
        )?
        .execute((name, value))
        .map(|_| ())
}

/// Returns the source of the revisions of this store, which continue after those that it may have issued.
pub(super) fn revisions(connection: &Connection) -> rusqlite::Result<Revisions> {
    let reserved = meta(connection, RESERVED_REVISION)?.map_or(Revision::default(), Revision::from_number);
    Ok(Revisions::after(reserved, Timestamp::now().as_milliseconds()))
}

/// Records the largest revision that may have been issued.
pub(super) fn reserve_revision(connection: &Connection, reserved: Revision) -> rusqlite::Result<()> {
    set_meta(connection, RESERVED_REVISION, reserved.number())
}

/// Reads the tag of the salt that encrypted the entries; `None` if it is unknown.
pub(super) fn salt_tag(connection: &Connection) -> rusqlite::Result<Option<i64>> {
    meta(connection, SALT_TAG)
}

/// Binds the database to the salt with this tag; with `None`, removes the binding.
pub(super) fn set_salt_tag(connection: &Connection, tag: Option<i64>) -> rusqlite::Result<()> {
    match tag {
        Some(tag) => set_meta(connection, SALT_TAG, tag),
        None => {
            connection.prepare_cached("DELETE FROM osc_meta WHERE name = ?1")?.execute([SALT_TAG]).map(|_| ())
        }
    }
}

/// Returns the key of two entries that have the same key and environment, which would violate the new unique index.
pub(super) fn duplicate_key(
    connection: &Connection,
    generation: Generation,
) -> rusqlite::Result<Option<String>> {
    let sql = match generation {
        Generation::V20 => "SELECT \"key\" FROM configurations GROUP BY \"key\" HAVING count(*) > 1 LIMIT 1",
        Generation::V23 | Generation::V3 => {
            "SELECT \"key\" FROM configurations GROUP BY \"key\", ifnull(environment, '') HAVING count(*) > 1 LIMIT 1"
        }
        Generation::Fresh | Generation::Ours => return Ok(None),
    };
    connection.query_row(sql, [], |row| row.get_ref(0).map(lossy_text)).optional()
}

/// Determines the encoding of missing values in the migrated file.
pub(super) fn null_encoding(connection: &Connection) -> rusqlite::Result<NullEncoding> {
    let not_null: Vec<String> =
        columns(connection)?.into_iter().filter(|column| column.not_null).map(|column| column.name).collect();
    let has = |name: &str| not_null.iter().any(|column| column == name);
    Ok(NullEncoding {
        no_environment: has("environment").then_some(""),
        no_time: has("created_at").then_some("1970-01-01 00:00:00.000000"),
    })
}

/// Returns whether the file needs no migration.
pub(super) fn is_current(connection: &Connection, generation: Generation) -> rusqlite::Result<bool> {
    Ok(generation == Generation::Ours && meta(connection, "schema")? == Some(SCHEMA_VERSION))
}

/// Migrates the file to the current schema in one transaction.
pub(super) fn migrate(connection: &mut Connection, generation: Generation) -> rusqlite::Result<()> {
    if is_current(connection, generation)? {
        return Ok(());
    }
    let transaction = Transaction::new(connection, TransactionBehavior::Immediate)?;
    match generation {
        Generation::Fresh => transaction.execute_batch(TABLE)?,
        Generation::V20 => transaction.execute_batch(LATER_COLUMNS)?,
        Generation::V23 | Generation::V3 | Generation::Ours => {}
    }
    if generation != Generation::Ours {
        transaction.execute_batch(OURS)?;
        let cycle: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        // The base is the previous cycle: in the file without its WAL, the base equals the cycle only if the file was
        // copied in the middle of one.
        set_meta(&transaction, "wal_base", cycle - 1)?;
        set_meta(&transaction, "wal_base_precedes", 1)?;
    }
    let version = meta(&transaction, "schema")?.unwrap_or(0);
    if version < 2 {
        transaction.execute_batch(CLUSTER)?;
    }
    if version < 3 {
        transaction.execute_batch(REVISIONS)?;
    }
    set_meta(&transaction, "schema", SCHEMA_VERSION)?;
    transaction.commit()?;
    Ok(())
}
