//! Reads of entries in the order of their names, each by ranges of an index, without sorting.

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row, ToSql};

use std::sync::Arc;

use super::reader::{STORED_COLUMNS, parse_row, parse_stored, restrict};
use crate::limits::LIST_PAGE_ROWS_MAX;
use crate::model::{Filter, NameOrder, Revision, SealedEntry};
use crate::storage::engine::{NameScan, NameScanPage};
use crate::storage::error::Error;

/// Name of an environment as it is stored, which another program may have written; empty without an environment.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct StoredText(Vec<u8>);

impl ToSql for StoredText {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(&self.0)))
    }
}

/// Page that is being read.
struct Pages<'a> {
    scan: &'a NameScan,
    foreign: Revision,
    page: NameScanPage,
    bytes: usize,
}

/// Reads a page. Each statement is finished before the page is returned.
pub(super) fn read(
    connection: &Connection,
    scan: &NameScan,
    foreign: Revision,
) -> Result<NameScanPage, Error> {
    let mut reading = Pages { scan, foreign, page: NameScanPage::default(), bytes: 0 };
    let environment = &scan.filter.environment;
    // Within one environment the two orders are the same.
    let is_within_one =
        environment.is_some() && scan.after.as_ref().is_none_or(|after| after.environment == *environment);
    match scan.order {
        NameOrder::Key if !is_within_one => reading.read_by_key(connection)?,
        NameOrder::Key | NameOrder::Environment => reading.read_by_environment(connection)?,
    }
    Ok(reading.page)
}

impl Pages<'_> {
    fn columns(&self) -> &'static str {
        match self.scan.names_only {
            true => r#"id, "key", NULL, NULL, environment, NULL, NULL"#,
            false => STORED_COLUMNS,
        }
    }

    fn read_by_key(&mut self, connection: &Connection) -> Result<(), Error> {
        let after = self.scan.after.as_ref();
        // The order of the unique index.
        let mut sql = format!(
            r#"SELECT {} FROM configurations
               WHERE ("key", ifnull(environment, '')) > (?, ?) AND typeof("key") = 'text'"#,
            self.columns()
        );
        let key = after.map_or("", |after| after.key.as_str());
        let environment = after.and_then(|after| after.environment.as_deref()).unwrap_or_default();
        let mut values: Vec<&dyn ToSql> = vec![&key, &environment];
        restrict(&self.scan.filter, &mut sql, &mut values);
        sql.push_str(r#" ORDER BY "key", ifnull(environment, '')"#);
        self.take_rows(connection, &sql, &values)
    }

    /// Reads one environment after the other: a comparison of environment and key together would scan the index from
    /// the beginning of the environment, and the range of a prefix exists only within one environment.
    fn read_by_environment(&mut self, connection: &Connection) -> Result<(), Error> {
        let filter = &self.scan.filter;
        let after = self.scan.after.clone();
        let (environment, mut after) =
            after.map_or_else(Default::default, |id| (id.environment.unwrap_or_default(), id.key));
        let mut environment = StoredText(environment.into_bytes());
        if let Some(only) = &filter.environment {
            let only = StoredText(only.clone().into_bytes());
            if only < environment {
                return Ok(());
            }
            if only > environment {
                (environment, after) = (only, String::new());
            }
        }
        loop {
            self.read_environment(connection, &environment, &after)?;
            if self.page.more || filter.environment.is_some() {
                return Ok(());
            }
            let Some(next) = next_environment(connection, filter, &environment)? else { return Ok(()) };
            (environment, after) = (next, String::new());
        }
    }

    fn read_environment(
        &mut self,
        connection: &Connection,
        environment: &StoredText,
        after: &str,
    ) -> Result<(), Error> {
        let filter = &self.scan.filter;
        let prefix = filter.prefix.as_deref().unwrap_or_default();
        let (from, relation) = if prefix > after { (prefix, ">=") } else { (after, ">") };
        let mut sql = format!(
            r#"SELECT {} FROM configurations
               WHERE ifnull(environment, '') = ? AND "key" {relation} ? AND typeof("key") = 'text'"#,
            self.columns()
        );
        let mut values: Vec<&dyn ToSql> = vec![environment, &from];
        let end = end_of_prefix(prefix);
        if let Some(end) = &end {
            sql.push_str(r#" AND "key" < ?"#);
            values.push(end);
        }
        restrict_to_category(filter, &mut sql, &mut values);
        if let Some(environment) = &filter.environment {
            // An empty environment is not a missing one here. The sign keeps other indexes out.
            sql.push_str(" AND +environment = ?");
            values.push(environment);
        }
        sql.push_str(r#" ORDER BY "key""#);
        self.take_rows(connection, &sql, &values)
    }

    fn take_rows(&mut self, connection: &Connection, sql: &str, values: &[&dyn ToSql]) -> Result<(), Error> {
        let mut statement = connection.prepare_cached(sql)?;
        let mut rows = statement.query(values)?;
        while let Some(row) = rows.next()? {
            let Some(parsed) = self.parse(row)? else { continue };
            let is_full = self.bytes >= self.scan.bytes_max || self.page.rows.len() >= LIST_PAGE_ROWS_MAX;
            if is_full && !self.page.rows.is_empty() {
                self.page.more = true;
                return Ok(());
            }
            self.bytes += parsed.weight();
            self.page.rows.push(Arc::new(parsed));
        }
        Ok(())
    }

    /// Parses a row; `None` if its environment is not stored as text, so that its place is not that of its name.
    fn parse(&self, row: &Row<'_>) -> Result<Option<SealedEntry>, Error> {
        let parsed = match self.scan.names_only {
            true => parse_row(row)?,
            false => parse_stored(row, self.foreign)?,
        };
        let is_text = match row.get_ref(4)? {
            ValueRef::Null => true,
            ValueRef::Text(bytes) => std::str::from_utf8(bytes).is_ok(),
            _ => false,
        };
        Ok(parsed.filter(|_| is_text))
    }
}

/// Returns the first environment after this one in which an entry may match; `None` after the last one.
fn next_environment(
    connection: &Connection,
    filter: &Filter,
    environment: &StoredText,
) -> Result<Option<StoredText>, Error> {
    let mut sql =
        "SELECT ifnull(environment, '') FROM configurations WHERE ifnull(environment, '') > ?".to_owned();
    let mut values: Vec<&dyn ToSql> = vec![environment];
    restrict_to_category(filter, &mut sql, &mut values);
    sql.push_str(" ORDER BY ifnull(environment, '') LIMIT 1");
    let mut statement = connection.prepare_cached(&sql)?;
    let next = statement.query_row(values.as_slice(), |row| {
        // Whatever is not text comes after all texts.
        Ok(match row.get_ref(0)? {
            ValueRef::Text(bytes) => Some(StoredText(bytes.to_vec())),
            _ => None,
        })
    });
    Ok(next.optional()?.flatten())
}

fn restrict_to_category<'a>(filter: &'a Filter, sql: &mut String, values: &mut Vec<&'a dyn ToSql>) {
    if let Some(category) = &filter.category {
        sql.push_str(" AND ifnull(category, '') = ? AND category IS NOT NULL");
        values.push(category);
    }
}

/// Returns the first text after all those that have a prefix; `None` if there is none.
fn end_of_prefix(prefix: &str) -> Option<String> {
    let mut end = prefix.to_owned();
    while let Some(last) = end.pop() {
        if let Some(next) = (u32::from(last) + 1..=u32::from(char::MAX)).find_map(char::from_u32) {
            end.push(next);
            return Some(end);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::model::EntryId;
    use crate::storage::sqlite::schema::{self, Generation};

    /// Entries of 10 environments, a hundredth of them in a rare category.
    fn database() -> Connection {
        let mut connection = Connection::open_in_memory().expect("in memory");
        schema::migrate(&mut connection, Generation::Fresh).expect("a new database");
        // Indexes of the Python server, which must not be preferred.
        let filled = connection.execute_batch(
            r#"CREATE INDEX ix_configurations_environment ON configurations (environment);
               CREATE INDEX ix_configurations_category ON configurations (category);
               WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 19999)
               INSERT INTO configurations ("key", encrypted_value, category, environment)
               SELECT printf('%02d/%05d', i / 10 % 100, i), 'gAAA', iif(i / 10 % 100 = 50, 'rare', 'usual'),
                      iif(i % 10 = 0, NULL, 'e' || (i % 10)) FROM n;"#,
        );
        filled.expect("valid");
        connection
    }

    fn filters() -> Vec<Filter> {
        let text = |text: &str| Some(text.to_owned());
        let (rare, prefix, environment) = (text("rare"), text("50/"), text("e7"));
        let parts = |bits: usize| Filter {
            category: rare.clone().filter(|_| bits & 1 != 0),
            environment: environment.clone().filter(|_| bits & 2 != 0),
            prefix: prefix.clone().filter(|_| bits & 4 != 0),
        };
        (0..8).map(parts).collect()
    }

    fn scan(filter: &Filter, after: Option<EntryId>, bytes_max: usize) -> NameScan {
        let order = NameOrder::Environment;
        NameScan { filter: filter.clone(), order, after, bytes_max, names_only: false }
    }

    /// A page costs as much in a large table as in a small one, and pages of one entry give the same list as large ones.
    #[test]
    fn a_page_does_not_scan_or_sort_the_table() {
        static STEPS: AtomicUsize = AtomicUsize::new(0);
        let mut connection = database();
        let count = || {
            STEPS.fetch_add(1, Ordering::Relaxed);
            false
        };
        connection.progress_handler(100, Some(count)).expect("a handler");
        for filter in filters() {
            let all = {
                let (mut all, mut after) = (Vec::new(), None);
                loop {
                    let page = read(&connection, &scan(&filter, after, usize::MAX), Revision::default());
                    let page = page.expect("readable");
                    all.extend(page.rows.iter().map(|row| row.entry_id()));
                    after = all.last().cloned();
                    if !page.more {
                        break all;
                    }
                }
            };
            assert!(all.is_sorted_by_key(|id| (id.environment.clone(), id.key.clone())));
            assert!(all.len() >= 20, "{filter:?}: {}", all.len());
            for index in [0, all.len() / 3, all.len() / 2, all.len() - 2] {
                let before = STEPS.load(Ordering::Relaxed);
                let page =
                    read(&connection, &scan(&filter, Some(all[index].clone()), 1), Revision::default());
                let page = page.expect("readable");
                let steps = STEPS.load(Ordering::Relaxed) - before;
                assert_eq!(page.rows[0].entry_id(), all[index + 1], "{filter:?}");
                assert!(steps < 20, "{filter:?} after {:?}: {steps}00 steps", all[index]);
            }
        }
    }

    #[test]
    fn names_that_are_not_text_are_left_out() {
        let connection = database();
        let inserted = connection.execute_batch(
            r#"DELETE FROM configurations WHERE id > 3;
               INSERT INTO configurations ("key", encrypted_value, environment) VALUES
               (CAST('blob' AS BLOB), 'gAAA', NULL), ('k', 'gAAA', CAST('blob' AS BLOB)),
               ('k', 'gAAA', CAST(x'65ff' AS TEXT)), (CAST(x'ff' AS TEXT), 'gAAA', 'e');"#,
        );
        inserted.expect("the table takes anything");
        let (mut after, mut pages) = (None, 0);
        loop {
            let page = read(&connection, &scan(&Filter::default(), after, 1), Revision::default());
            let page = page.expect("readable");
            after = page.rows.last().map(|row| row.entry_id());
            pages += 1;
            if !page.more {
                break;
            }
        }
        assert_eq!(pages, 3);
    }

    #[test]
    fn texts_with_a_prefix_end_before_the_next_prefix() {
        for (prefix, end) in [
            ("", None),
            ("a", Some("b")),
            ("a\0", Some("a\u{1}")),
            ("\u{d7ff}", Some("\u{e000}")),
            ("a\u{10ffff}\u{10ffff}", Some("b")),
            ("\u{10ffff}", None),
        ] {
            assert_eq!(end_of_prefix(prefix).as_deref(), end, "{prefix:?}");
        }
    }
}
