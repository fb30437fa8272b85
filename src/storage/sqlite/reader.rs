//! Reads of the database: lookups by key and pages by id, on the calling thread.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, ToSql};

use super::column::text;
use super::identity::{self, Inode};
use super::wal_index::WalIndex;
use crate::limits::{ENTRY_GROUP_COUNT_MAX, LIST_PAGE_BYTES, LIST_PAGE_ROWS_MAX, SQLITE_BUSY_TIMEOUT};
use crate::model::{Ciphertext, EntryId, Revision, Timestamp};
use crate::model::{Filter, KeyEntries, SealedEntry};
use crate::storage::counts::EngineCounts;
use crate::storage::engine::{NameScan, NameScanPage};
use crate::storage::error::Error;
use crate::storage::page_cache::Page;

/// Pool of read-only connections, one per concurrent reader.
#[derive(Debug)]
pub(super) struct Readers {
    path: PathBuf,
    wal_index: WalIndex,
    /// Inode of the opened database: its path may refer to another file by now.
    inode: Option<Inode>,
    counts: Arc<EngineCounts>,
    idle: Mutex<Vec<Connection>>,
    /// Revision of rows that another program has written.
    foreign_revision: AtomicI64,
}

/// Columns of [`parse_row`].
pub(super) const COLUMNS: &str =
    r#"id, "key", encrypted_value, category, environment, created_at, updated_at"#;
/// Columns of [`Readers::parse`].
const STORED_COLUMNS: &str =
    r#"id, "key", encrypted_value, category, environment, created_at, updated_at, osc_revision"#;

impl Readers {
    /// Opens `count` connections.
    pub(super) fn open(
        path: PathBuf,
        wal_index: WalIndex,
        count: usize,
        counts: Arc<EngineCounts>,
        foreign_revision: Revision,
    ) -> Result<Self, Error> {
        let inode = identity::inode(&path);
        let idle = (0..count).map(|_| connect(&path, wal_index)).collect::<Result<_, _>>()?;
        let foreign_revision = AtomicI64::new(foreign_revision.number());
        Ok(Self { path, wal_index, inode, counts, idle: Mutex::new(idle), foreign_revision })
    }

    /// Sets the revision of rows that another program has written.
    pub(super) fn set_foreign_revision(&self, revision: Revision) {
        self.foreign_revision.store(revision.number(), Ordering::Release);
    }

    fn foreign_revision(&self) -> Revision {
        Revision::from_number(self.foreign_revision.load(Ordering::Acquire))
    }

    /// Reads all entries of a key; `None` if there are more than [`ENTRY_GROUP_COUNT_MAX`].
    pub(super) fn key_entries(&self, key: &str) -> Result<Option<KeyEntries>, Error> {
        self.with(|connection| {
            let sql = format!(
                r#"SELECT {STORED_COLUMNS} FROM configurations WHERE "key" = ?1 ORDER BY id LIMIT ?2"#
            );
            let foreign = self.foreign_revision();
            let mut statement = connection.prepare_cached(&sql)?;
            let limit = i64::try_from(ENTRY_GROUP_COUNT_MAX + 1).unwrap_or(i64::MAX);
            let mut rows = statement.query((key, limit))?;
            let mut entries = KeyEntries::default();
            while let Some(row) = rows.next()? {
                entries.rows.extend(parse_stored(row, foreign)?.map(Arc::new));
            }
            Ok((entries.rows.len() <= ENTRY_GROUP_COUNT_MAX).then_some(entries))
        })
    }

    /// Reads a single entry of a key.
    pub(super) fn exact(&self, key: &str, environment: Option<&str>) -> Result<Option<SealedEntry>, Error> {
        self.with(|connection| self.exact_on(connection, key, environment))
    }

    /// Reads the page of rows after the id `after`.
    pub(super) fn page(&self, filter: &Filter, after: i64) -> Result<Page, Error> {
        self.with(|connection| page(connection, filter, after, self.foreign_revision()))
    }

    /// Reads one entry on a connection, which may be that of the writer.
    pub(super) fn exact_on(
        &self,
        connection: &Connection,
        key: &str,
        environment: Option<&str>,
    ) -> Result<Option<SealedEntry>, Error> {
        exact_with(
            connection,
            key,
            environment,
            |row| parse_stored(row, self.foreign_revision()),
            STORED_COLUMNS,
        )
    }

    /// Reads rows in the order of their names.
    pub(super) fn page_by_name(&self, scan: &NameScan) -> Result<NameScanPage, Error> {
        self.with(|connection| page_by_name(connection, scan))
    }

    /// Returns for each name whether there is such an entry.
    pub(super) fn exist(&self, ids: &[EntryId]) -> Result<Vec<bool>, Error> {
        self.with(|connection| {
            let sql = r#"SELECT 1 FROM configurations WHERE "key" = ?1 AND ifnull(environment, '') = ?2"#;
            let mut statement = connection.prepare_cached(sql)?;
            let exists =
                |id: &EntryId| statement.exists((&id.key, id.environment.as_deref().unwrap_or_default()));
            Ok(ids.iter().map(exists).collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Counts the entries.
    pub(super) fn entries_count(&self) -> Result<u64, Error> {
        self.with(|connection| {
            let mut statement = connection.prepare_cached("SELECT count(*) FROM configurations")?;
            let count: i64 = statement.query_row([], |row| row.get(0))?;
            Ok(count.unsigned_abs())
        })
    }

    /// Closes the idle connections.
    pub(super) fn close(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(super) fn with<T>(&self, read: impl FnOnce(&Connection) -> Result<T, Error>) -> Result<T, Error> {
        if self.counts.spoils_reads() {
            return Err(Error::Displaced);
        }
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = match idle {
            Some(connection) => connection,
            None if identity::inode(&self.path) != self.inode => return Err(Error::Displaced),
            None => connect(&self.path, self.wal_index)?,
        };
        let result = read(&connection);
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        result
    }
}

/// Opens a read-only connection.
pub(super) fn connect(path: &Path, wal_index: WalIndex) -> Result<Connection, Error> {
    let connection = wal_index.connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.busy_timeout(SQLITE_BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(64);
    connection.execute_batch("PRAGMA query_only=1; PRAGMA mmap_size=0; PRAGMA trusted_schema=OFF;")?;
    // This read also opens the WAL.
    connection.query_row("PRAGMA user_version", [], |_| Ok(()))?;
    Ok(connection)
}

/// Reads one entry without its revision.
pub(super) fn exact(
    connection: &Connection,
    key: &str,
    environment: Option<&str>,
) -> Result<Option<SealedEntry>, Error> {
    exact_with(connection, key, environment, parse_row, COLUMNS)
}

fn exact_with(
    connection: &Connection,
    key: &str,
    environment: Option<&str>,
    parse: impl FnOnce(&rusqlite::Row<'_>) -> Result<Option<SealedEntry>, Error>,
    columns: &str,
) -> Result<Option<SealedEntry>, Error> {
    let sql =
        format!(r#"SELECT {columns} FROM configurations WHERE "key" = ?1 AND ifnull(environment, '') = ?2"#);
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query((key, environment.unwrap_or_default()))?;
    rows.next()?.map_or(Ok(None), parse)
}

/// Reads a page. The statement is finished and its snapshot released before the page is returned, so a slow client
/// never keeps the WAL from being emptied.
fn page(connection: &Connection, filter: &Filter, after: i64, foreign: Revision) -> Result<Page, Error> {
    let mut sql = format!("SELECT {STORED_COLUMNS} FROM configurations WHERE id > ?");
    let mut values: Vec<&dyn ToSql> = vec![&after];
    restrict(filter, &mut sql, &mut values);
    sql.push_str(" ORDER BY id");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(values.as_slice())?;
    let mut page = Page { rows: Vec::new(), bytes: 0, unreadable_count: 0, next_after: None };
    while let Some(row) = rows.next()? {
        match parse_stored(row, foreign)? {
            Some(parsed) => {
                page.bytes += parsed.weight();
                page.next_after = Some(parsed.id);
                page.rows.push(Arc::new(parsed));
            }
            None => page.unreadable_count += 1,
        }
        if page.bytes >= LIST_PAGE_BYTES || page.rows.len() >= LIST_PAGE_ROWS_MAX {
            return Ok(page);
        }
    }
    page.next_after = None;
    Ok(page)
}

/// Reads rows in the order of their names. Only rows whose key is stored as text have an order that all nodes agree on;
/// servers have never written any other.
fn page_by_name(connection: &Connection, scan: &NameScan) -> Result<NameScanPage, Error> {
    let after = scan.after.as_ref();
    let columns = match scan.names_only {
        true => r#"id, "key", NULL, NULL, environment, NULL, NULL"#,
        false => COLUMNS,
    };
    // The order of the unique index.
    let mut sql = format!(
        r#"SELECT {columns} FROM configurations
           WHERE ("key", ifnull(environment, '')) > (?, ?) AND typeof("key") = 'text'"#
    );
    let key = after.map_or("", |after| after.key.as_str());
    let environment = after.and_then(|after| after.environment.as_deref()).unwrap_or_default();
    let mut values: Vec<&dyn ToSql> = vec![&key, &environment];
    restrict(&scan.filter, &mut sql, &mut values);
    sql.push_str(r#" ORDER BY "key", ifnull(environment, '')"#);
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(values.as_slice())?;
    let (mut page, mut bytes) = (NameScanPage::default(), 0);
    while let Some(row) = rows.next()? {
        let Some(row) = parse_row(row)? else { continue };
        let is_full = bytes >= scan.bytes_max || page.rows.len() >= LIST_PAGE_ROWS_MAX;
        if is_full && !page.rows.is_empty() {
            page.more = true;
            break;
        }
        bytes += row.weight();
        page.rows.push(row);
    }
    Ok(page)
}

/// Appends the conditions of a filter to a statement, and their parameters to `values`.
fn restrict<'a>(filter: &'a Filter, sql: &mut String, values: &mut Vec<&'a dyn ToSql>) {
    if let Some(category) = &filter.category {
        sql.push_str(" AND category = ?");
        values.push(category);
    }
    if let Some(environment) = &filter.environment {
        sql.push_str(" AND environment = ?");
        values.push(environment);
    }
    if let Some(prefix) = &filter.prefix {
        // LIKE would fold case and treat `%` and `_` as wildcards.
        sql.push_str(r#" AND substr("key", 1, length(?)) = ?"#);
        values.push(prefix);
        values.push(prefix);
    }
}

/// Parses a row; `None` if the key is not text, so that no client can name the entry.
pub(super) fn parse_row(row: &rusqlite::Row<'_>) -> Result<Option<SealedEntry>, Error> {
    let Some(key) = text(row.get_ref(1)?) else { return Ok(None) };
    let environment = text(row.get_ref(4)?).filter(|environment| !environment.is_empty());
    // The column may hold a BLOB as well as a TEXT, and either may not be a token.
    let ciphertext = match row.get_ref(2)? {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Ciphertext::from_text(bytes),
        _ => None,
    };
    let time = |value: ValueRef<'_>| text(value).as_deref().and_then(Timestamp::from_database);
    let mut parsed = SealedEntry::new(row.get(0)?, key, environment, ciphertext);
    parsed.category = text(row.get_ref(3)?);
    parsed.created_at = time(row.get_ref(5)?);
    parsed.updated_at = time(row.get_ref(6)?);
    Ok(Some(parsed))
}

/// Parses a row with its revision, which is `foreign` if another program has written it.
fn parse_stored(row: &rusqlite::Row<'_>, foreign: Revision) -> Result<Option<SealedEntry>, Error> {
    let mut parsed = parse_row(row)?;
    if let Some(entry) = &mut parsed {
        // Another program may have stored anything in this column.
        let number = row.get_ref(7)?.as_i64().unwrap_or(0);
        entry.revision = if number > 0 { Revision::from_number(number) } else { foreign };
    }
    Ok(parsed)
}
