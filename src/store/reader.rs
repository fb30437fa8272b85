//! Reading: points by key and pages by id, on whichever thread asks.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, ToSql};

use super::counts::WriterCounts;
use super::error::Error;
use super::filter::Filter;
use super::identity::{self, Inode};
use super::room::WalIndex;
use super::sealed_entry::{KeyEntries, SealedEntry};
use crate::limits::{ENTRY_GROUP_COUNT_MAX, LIST_PAGE_BYTES, LIST_PAGE_ROWS_MAX};
use crate::model::{Ciphertext, EntryId, SealedBody, Timestamp};

/// Read-only connections, as many as threads that read at one time.
#[derive(Debug)]
pub(super) struct Readers {
    path: PathBuf,
    wal_index: WalIndex,
    /// The database that was opened: its path may lead to another one by now.
    inode: Option<Inode>,
    counts: Arc<WriterCounts>,
    idle: Mutex<Vec<Connection>>,
}

/// Some entries in the order of their ids.
#[derive(Clone, Debug)]
pub struct Page {
    /// The rows that passed the filter.
    pub rows: Vec<Arc<SealedEntry>>,
    /// Memory that they take, roughly.
    pub bytes: usize,
    /// Rows that cannot be shown to anyone: a key that is not text.
    pub unreadable_count: u64,
    /// Where the next page goes on; `None` after the last row.
    pub next_after: Option<i64>,
}

pub(super) const COLUMNS: &str =
    r#"id, "key", encrypted_value, category, environment, created_at, updated_at"#;

impl Readers {
    /// Opens so many connections.
    pub(super) fn open(
        path: PathBuf,
        wal_index: WalIndex,
        count: usize,
        counts: Arc<WriterCounts>,
    ) -> Result<Self, Error> {
        let inode = identity::inode(&path);
        let idle = (0..count).map(|_| connect(&path, wal_index)).collect::<Result<_, _>>()?;
        Ok(Self { path, wal_index, inode, counts, idle: Mutex::new(idle) })
    }

    /// Everything stored under `key`; `None` when that is more than is read or cached at once.
    pub(super) fn group(&self, key: &str) -> Result<Option<KeyEntries>, Error> {
        self.with(|connection| {
            let sql =
                format!(r#"SELECT {COLUMNS} FROM configurations WHERE "key" = ?1 ORDER BY id LIMIT ?2"#);
            let mut statement = connection.prepare_cached(&sql)?;
            let limit = i64::try_from(ENTRY_GROUP_COUNT_MAX + 1).unwrap_or(i64::MAX);
            let mut rows = statement.query((key, limit))?;
            let mut group = KeyEntries::default();
            while let Some(row) = rows.next()? {
                group.rows.extend(parse_row(row)?.map(Arc::new));
            }
            Ok((group.rows.len() <= ENTRY_GROUP_COUNT_MAX).then_some(group))
        })
    }

    /// The one entry of a key that has very many.
    pub(super) fn exact(&self, key: &str, environment: Option<&str>) -> Result<Option<SealedEntry>, Error> {
        self.with(|connection| exact(connection, key, environment))
    }

    /// The next rows after the id `after`.
    pub(super) fn page(&self, filter: &Filter, after: i64) -> Result<Page, Error> {
        self.with(|connection| page(connection, filter, after))
    }

    /// The next rows in the order of their names.
    pub(super) fn page_by_name(
        &self,
        filter: &Filter,
        after: Option<&EntryId>,
        bytes_max: usize,
        names_only: bool,
    ) -> Result<(Vec<SealedEntry>, bool), Error> {
        self.with(|connection| page_by_name(connection, filter, after, bytes_max, names_only))
    }

    /// How many entries there are.
    pub(super) fn entries_count(&self) -> Result<u64, Error> {
        self.with(|connection| {
            let mut statement = connection.prepare_cached("SELECT count(*) FROM configurations")?;
            let count: i64 = statement.query_row([], |row| row.get(0))?;
            Ok(count.unsigned_abs())
        })
    }

    /// Closes the connections that nobody uses.
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

/// For reading only.
pub(super) fn connect(path: &Path, wal_index: WalIndex) -> Result<Connection, Error> {
    let connection = wal_index.connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.busy_timeout(super::BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(64);
    connection.execute_batch("PRAGMA query_only=1; PRAGMA mmap_size=0; PRAGMA trusted_schema=OFF;")?;
    // Opens the WAL, too.
    connection.query_row("PRAGMA user_version", [], |_| Ok(()))?;
    Ok(connection)
}

pub(super) fn exact(
    connection: &Connection,
    key: &str,
    environment: Option<&str>,
) -> Result<Option<SealedEntry>, Error> {
    let sql =
        format!(r#"SELECT {COLUMNS} FROM configurations WHERE "key" = ?1 AND ifnull(environment, '') = ?2"#);
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query((key, environment.unwrap_or_default()))?;
    match rows.next()? {
        Some(row) => Ok(parse_row(row)?),
        None => Ok(None),
    }
}

/// The statement is finished, and its snapshot let go, before the page is given out, so a slow
/// client never keeps the WAL from being emptied.
fn page(connection: &Connection, filter: &Filter, after: i64) -> Result<Page, Error> {
    let mut sql = format!("SELECT {COLUMNS} FROM configurations WHERE id > ?");
    let mut values: Vec<&dyn ToSql> = vec![&after];
    filter.restrict(&mut sql, &mut values);
    sql.push_str(" ORDER BY id");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(values.as_slice())?;
    let mut page = Page { rows: Vec::new(), bytes: 0, unreadable_count: 0, next_after: None };
    while let Some(row) = rows.next()? {
        match parse_row(row)? {
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

/// Rows whose key is stored as a text, which is all that any server has ever written: only those have an order
/// that all nodes agree on.
fn page_by_name(
    connection: &Connection,
    filter: &Filter,
    after: Option<&EntryId>,
    bytes_max: usize,
    names_only: bool,
) -> Result<(Vec<SealedEntry>, bool), Error> {
    let columns = match names_only {
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
    filter.restrict(&mut sql, &mut values);
    sql.push_str(r#" ORDER BY "key", ifnull(environment, '')"#);
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(values.as_slice())?;
    let (mut page, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let Some(row) = parse_row(row)? else { continue };
        let is_full = bytes >= bytes_max || page.len() >= LIST_PAGE_ROWS_MAX;
        if is_full && !page.is_empty() {
            return Ok((page, true));
        }
        bytes += row.weight();
        page.push(row);
    }
    Ok((page, false))
}

/// `None` when the key is no text, so that nobody can name the entry.
pub(super) fn parse_row(row: &rusqlite::Row<'_>) -> Result<Option<SealedEntry>, Error> {
    let Some(key) = text(row.get_ref(1)?) else { return Ok(None) };
    let environment = text(row.get_ref(4)?).filter(|environment| !environment.is_empty());
    // The column may hold a BLOB as well as a TEXT; neither need be a token.
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

/// What a row holds for other nodes; `None` if its value is no token, which opens nowhere.
pub(super) fn content_of(row: &SealedEntry) -> Option<SealedBody> {
    Some(SealedBody {
        category: row.category.clone(),
        ciphertext: row.ciphertext.clone()?,
        created_at: row.created_at,
        updated_at: row.updated_at,
    })
}

fn text(value: ValueRef<'_>) -> Option<String> {
    match value {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => std::str::from_utf8(bytes).ok().map(str::to_owned),
        ValueRef::Integer(number) => Some(number.to_string()),
        ValueRef::Real(number) => Some(number.to_string()),
        ValueRef::Null => None,
    }
}

/// For messages about rows that may be damaged.
pub(super) fn lossy_text(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        other => text(other).unwrap_or_default(),
    }
}
