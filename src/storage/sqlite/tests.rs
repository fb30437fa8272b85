//! Tests of the store on real files: batches of writes, coherence, and rows of external programs.

use std::time::Duration;

use futures_lite::future::block_on;

use super::test_store::{TestStore, WriteResult};
use super::*;
use crate::model::{Ciphertext, OwnerTag, Revision};
use crate::storage::Write;

struct Fixture {
    store: TestStore,
    directory: tempfile::TempDir,
}

const ALICE: OwnerTag = OwnerTag([1; 32]);
const BOB: OwnerTag = OwnerTag([2; 32]);

impl Fixture {
    fn new() -> Self {
        Self::at(tempfile::tempdir().expect("temporary directory"))
    }

    fn at(directory: tempfile::TempDir) -> Self {
        Self { store: TestStore::open(directory.path(), VersioningOptions::new(false)), directory }
    }

    fn write(&self, write: Write, owner: OwnerTag) -> WriteResult {
        self.store.write(write, owner)
    }

    fn create(&self, key: &str, environment: Option<&str>, sealed: &[u8]) -> WriteResult {
        self.write(create(key, environment, sealed), ALICE)
    }

    fn sealed(&self, key: &str, environment: Option<&str>) -> Option<Vec<u8>> {
        let entries = self.store.entries(key);
        let row = entries.exact(environment)?;
        row.ciphertext.as_ref().map(|sealed| sealed.as_bytes().to_vec())
    }
}

fn create(key: &str, environment: Option<&str>, sealed: &[u8]) -> Write {
    let id = EntryId { key: key.to_owned(), environment: environment.map(str::to_owned) };
    Write::create(id, None, Ciphertext::from_bytes(sealed.to_vec()))
}

fn update(seen: &SealedEntry, sealed: &[u8]) -> Write {
    Write::update(seen, None, None, Ciphertext::from_bytes(sealed.to_vec()))
}

#[test]
fn the_bundled_sqlite_is_new_enough() {
    assert!(rusqlite::version_number() >= SQLITE_VERSION_MIN, "{}", rusqlite::version());
}

#[test]
fn one_failing_job_does_not_fail_its_batch() {
    let fixture = Fixture::new();
    fixture.create("taken", None, b"first").expect("new");
    // A lock delays the writer, so that all of these are in one transaction.
    let locker = rusqlite::Connection::open(fixture.directory.path().join("c.db")).expect("there");
    locker.execute_batch("BEGIN IMMEDIATE").expect("no other writer");
    let submit = |write| fixture.store.queue(write, ALICE);
    let first = submit(create("head", None, b"h"));
    let receivers = [
        submit(create("a", None, b"a")),
        submit(create("taken", None, b"second")),
        submit(create("b", None, b"b")),
        submit(create("a", None, b"again")),
        submit(create("a", Some("e"), b"other environment")),
    ];
    locker.execute_batch("COMMIT").expect("no other writer");
    block_on(first).expect("new");
    let mut created = Vec::new();
    for receiver in receivers {
        created.push(block_on(receiver).is_ok());
    }
    assert_eq!(created, [true, false, true, false, true]);
    assert_eq!(fixture.sealed("taken", None).as_deref(), Some(&b"first"[..]));
    assert_eq!(fixture.sealed("a", None).as_deref(), Some(&b"a"[..]));
    assert_eq!(fixture.sealed("a", Some("e")).as_deref(), Some(&b"other environment"[..]));
    assert_eq!(fixture.sealed("b", None).as_deref(), Some(&b"b"[..]));
}

#[test]
fn a_change_requires_the_row_that_was_read_or_the_same_owner() {
    let fixture = Fixture::new();
    let first = fixture.create("k", None, b"1").expect("new");
    // The writer of a row is known only while the row is cached; afterwards the owner must read it again, too.
    fixture.store.entries("k");
    let second = fixture.write(update(&first, b"2"), ALICE).expect("seen");
    // Alice has written since, so the row that she read before is still valid for her.
    fixture.write(update(&first, b"3"), ALICE).expect("the same owner");
    // Bob must read it again.
    let refused = fixture.write(update(&second, b"4"), BOB);
    assert!(matches!(refused, Err(WriteError::Changed)), "{refused:?}");
    let refused = fixture.write(Write::delete(&second), BOB);
    assert!(matches!(refused, Err(WriteError::Changed)), "{refused:?}");
    assert_eq!(fixture.sealed("k", None).as_deref(), Some(&b"3"[..]));
    // A new entry of the same name is a different one.
    fixture.write(Write::delete(&second), ALICE).expect("the same owner");
    fixture.create("other", None, b"o").expect("new");
    fixture.write(create("k", None, b"5"), BOB).expect("gone");
    let refused = fixture.write(update(&second, b"6"), ALICE);
    assert!(matches!(refused, Err(WriteError::Changed)), "{refused:?}");
}

#[test]
fn an_entry_moves_to_a_free_environment_only() {
    let fixture = Fixture::new();
    let plain = fixture.create("k", None, b"1").expect("new");
    let production = fixture.create("k", Some("production"), b"2").expect("new");
    let to = |seen: &SealedEntry, environment: &str| {
        let ciphertext = Ciphertext::from_bytes(b"3".to_vec());
        Write::update(seen, Some("c".into()), Some(environment.to_owned()), ciphertext)
    };
    assert!(matches!(fixture.write(to(&plain, "production"), ALICE), Err(WriteError::AlreadyExists)));
    let moved = fixture.write(to(&plain, "staging"), ALICE).expect("free");
    assert_eq!(
        (moved.id, moved.environment.as_deref(), moved.category.as_deref()),
        (1, Some("staging"), Some("c"))
    );
    assert_eq!(fixture.sealed("k", None), None);
    assert_eq!(fixture.sealed("k", Some("staging")).as_deref(), Some(&b"3"[..]));
    assert_eq!(fixture.sealed("k", Some("production")).as_deref(), Some(&b"2"[..]));
    assert!(matches!(fixture.write(to(&plain, "x"), ALICE), Err(WriteError::Changed)), "the entry has moved");
    fixture.write(Write::delete(&production), ALICE).expect("there");
}

#[test]
fn cache_and_database_agree_after_each_write() {
    let fixture = Fixture::new();
    let mut row = fixture.create("k", None, b"0").expect("new");
    fixture.store.entries("k");
    for number in 1..50_u8 {
        row = fixture.write(update(&row, &[number]), ALICE).expect("seen");
        let cached = fixture.store.storage.cached("k").expect("a write keeps it cached");
        let cached = cached.exact(None).and_then(|row| row.ciphertext.clone()).expect("there");
        assert_eq!(cached.as_bytes(), [number]);
        let stored = fixture.store.exact("k").expect("there");
        assert_eq!(stored.ciphertext, Some(cached));
    }
    fixture.write(Write::delete(&row), ALICE).expect("there");
    assert!(fixture.store.storage.cached("k").is_none());
    assert_eq!(fixture.sealed("k", None), None);
}

#[test]
fn pages_end_where_the_next_begins() {
    let fixture = Fixture::new();
    let sealed = vec![1; 40_000];
    for number in 0..60 {
        let environment = (number % 3 == 0).then_some("e");
        fixture.create(&format!("key {number:02}"), environment, &sealed).expect("new");
    }
    let collect = |filter: &Filter| {
        let (mut ids, mut after, mut pages) = (Vec::new(), 0, 0);
        loop {
            let page = fixture.store.page(filter, after);
            pages += 1;
            ids.extend(page.rows.iter().map(|row| row.id));
            match page.next_after {
                Some(next) => after = next,
                None => return (ids, pages),
            }
        }
    };
    let (ids, pages) = collect(&Filter::default());
    assert_eq!(ids, (1..=60).collect::<Vec<_>>());
    assert!((3..=4).contains(&pages), "a page is about a mebibyte: {pages}");
    let environment = Filter { environment: Some("e".into()), ..Filter::default() };
    assert_eq!(collect(&environment).0.len(), 20);
    // `%` and `_` are ordinary characters, and case counts.
    for (prefix, count) in [("key 0", 10), ("key", 60), ("KEY", 0), ("key _", 0), ("%", 0), ("", 60)] {
        let filter = Filter { prefix: Some(prefix.into()), ..Filter::default() };
        assert_eq!(collect(&filter).0.len(), count, "{prefix:?}");
    }
}

#[test]
fn readable_rows_of_external_programs_are_listed() {
    let fixture = Fixture::new();
    let database = rusqlite::Connection::open(fixture.directory.path().join("c.db")).expect("there");
    database
        .execute_batch(
            r#"INSERT INTO configurations ("key", encrypted_value, category, created_at) VALUES
                ('blob', CAST('gAAA' AS BLOB), 7, 'yesterday'),
                (CAST(x'ff' AS TEXT), 'gAAA', NULL, NULL),
                ('number', 5, NULL, '2026-01-31 10:00:00.000001');"#,
        )
        .expect("the table takes anything");
    let page = fixture.store.page(&Filter::default(), 0);
    assert_eq!((page.rows.len(), page.unreadable_count), (2, 1));
    assert!(page.rows[0].ciphertext.is_some() && page.rows[0].created_at.is_none());
    assert_eq!(page.rows[0].category.as_deref(), Some("7"));
    assert!(page.rows[1].created_at.is_some());
}

#[test]
fn the_wal_is_emptied_and_its_cycles_are_counted() {
    let fixture = Fixture::new();
    let wal = fixture.directory.path().join("c.db-wal");
    let largest = crate::limits::WAL_PAGES_MAX as u64 * 4200 + (1 << 20);
    let sealed = vec![9; 500_000];
    for number in 0..60 {
        fixture.create(&format!("k{number}"), None, &sealed).expect("new");
        assert!(fs::metadata(&wal).expect("there").len() < largest, "after {number}");
    }
    fixture.store.storage.close();
    assert!(!wal.exists());
    let database = fs::read(fixture.directory.path().join("c.db")).expect("there");
    let cycle = u32::from_be_bytes(database[60..64].try_into().expect("four bytes"));
    assert!(cycle >= 2, "one per time that the WAL was emptied: {cycle}");
}

#[test]
fn a_closed_store_refuses_writes() {
    let fixture = Fixture::new();
    fixture.create("k", None, b"1").expect("new");
    fixture.store.storage.close();
    let refused = fixture.write(create("x", None, b"1"), ALICE);
    assert!(matches!(refused, Err(WriteError::Store(Error::Stopped))), "{refused:?}");
    let Fixture { store, directory } = fixture;
    drop(store);
    let reopened = Fixture::at(directory);
    assert_eq!(reopened.sealed("k", None).as_deref(), Some(&b"1"[..]));
}

/// While another program reads for a long time, the writer keeps working, and the WAL that has grown is emptied
/// afterwards.
#[test]
fn the_wal_is_emptied_once_a_long_reader_has_finished() {
    let fixture = Fixture::new();
    fixture.create("first", None, b"1").expect("new");
    let path = fixture.directory.path().join("c.db");
    let wal = || fs::metadata(paths::sibling(&path, "-wal")).map_or(0, |metadata| metadata.len());
    let mut reader = rusqlite::Connection::open(&path).expect("there");
    let snapshot = reader.transaction().expect("a snapshot");
    let count = |connection: &rusqlite::Connection| -> i64 {
        let sql = "SELECT count(*) FROM configurations";
        connection.query_row(sql, [], |row| row.get(0)).expect("readable")
    };
    assert_eq!(count(&snapshot), 1);
    for number in 0..30 {
        fixture.create(&format!("k{number}"), None, &[7; 1 << 20]).expect("new");
    }
    assert!(wal() > 30 << 20, "{}", wal());
    assert_eq!(count(&snapshot), 1);
    drop(snapshot);
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while wal() > 0 {
        assert!(std::time::Instant::now() < deadline, "{} bytes", wal());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn each_change_has_a_larger_revision_which_its_row_keeps() {
    let fixture = Fixture::new();
    let began = fixture.store.storage.feed().last();
    let first = fixture.create("k", None, b"1").expect("new");
    let other = fixture.create("other", None, b"1").expect("new");
    let second = fixture.write(update(&first, b"2"), ALICE).expect("seen");
    let environment = Some("e".to_owned());
    let moved = Write::update(&second, None, environment, Ciphertext::from_bytes(b"3".to_vec()));
    let moved = fixture.write(moved, ALICE).expect("free");
    fixture.write(Write::delete(&other), ALICE).expect("there");
    let changes = fixture.store.storage.feed().changes_since(began).expect("few changes");
    let described: Vec<_> = changes
        .iter()
        .map(|change| {
            (change.entry().key.as_str(), change.entry().environment.as_deref(), change.after().is_some())
        })
        .collect();
    assert_eq!(
        described,
        [
            ("k", None, true),
            ("other", None, true),
            ("k", None, true),
            ("k", None, false),
            ("k", Some("e"), true),
            ("other", None, false)
        ]
    );
    assert!(changes.windows(2).all(|pair| pair[0].revision() < pair[1].revision()));
    assert!(first.revision < other.revision && other.revision < second.revision);
    assert_eq!(fixture.store.entries("k").rows[0].revision, moved.revision);
    let last = fixture.store.storage.feed().last();
    let Fixture { store, directory } = fixture;
    drop(store);

    let restarted = Fixture::at(directory);
    assert!(restarted.store.storage.feed().last() > last, "also without a change");
    assert_eq!(restarted.store.entries("k").rows[0].revision, moved.revision);
    assert_eq!(restarted.store.page(&Filter::default(), 0).rows[0].revision, moved.revision);
    let new = restarted.create("new", None, b"4").expect("new");
    assert!(new.revision > last);
}

#[test]
fn a_row_that_another_program_changes_gets_a_larger_revision() {
    let fixture = Fixture::new();
    let (first, kept) = (fixture.create("k", None, b"1").expect("new"), fixture.create("kept", None, b"1"));
    let kept = kept.expect("new");
    let path = fixture.directory.path().join("c.db");
    let other = rusqlite::Connection::open(&path).expect("there");
    other
        .execute_batch(
            r#"UPDATE configurations SET category = 'c' WHERE "key" = 'k';
               INSERT INTO configurations ("key", encrypted_value) VALUES ('foreign', 'gAAA');"#,
        )
        .expect("valid");
    // A write that expects the earlier revision detects the change.
    let refused = fixture.write(update(&first, b"2"), BOB);
    assert!(matches!(refused, Err(WriteError::Changed)), "{refused:?}");
    let revision = |key: &str| fixture.store.entries(key).rows[0].revision;
    assert!(revision("k") > kept.revision && revision("foreign") == revision("k"));
    assert_eq!(revision("kept"), kept.revision);
    let seen = fixture.store.exact("k").expect("there");
    let written = fixture.write(update(&seen, b"3"), BOB).expect("seen");
    assert!(written.revision > seen.revision);
    assert_eq!(revision("k"), written.revision);
}

/// The state on disk at any time is the one after kill -9: a copy of it issues only larger revisions.
#[test]
fn revisions_are_not_repeated_after_a_crash() {
    let fixture = Fixture::new();
    let mut last = fixture.create("k", None, &[0]).expect("new");
    for round in 1..4_u8 {
        last = fixture.write(update(&last, &[round]), ALICE).expect("seen");
        let copy = tempfile::tempdir().expect("temporary directory");
        for suffix in ["", "-wal"] {
            let name = format!("c.db{suffix}");
            fs::copy(fixture.directory.path().join(&name), copy.path().join(&name)).expect("copied");
        }
        let crashed = Fixture::at(copy);
        assert!(crashed.store.storage.feed().last() > last.revision);
        assert!(crashed.create("new", None, b"1").expect("new").revision > last.revision);
        assert_eq!(crashed.store.entries("k").rows[0].revision, last.revision);
    }
}

/// Schemas of earlier releases: 1 has no cluster tables, 2 no revisions.
#[test]
fn databases_of_earlier_schemas_get_revisions() {
    for schema in [1, 2] {
        let fixture = Fixture::new();
        fixture.create("old", None, b"1").expect("new");
        let Fixture { store, directory } = fixture;
        drop(store);
        let database = rusqlite::Connection::open(directory.path().join("c.db")).expect("there");
        let undo_revisions = "DROP TRIGGER osc_foreign_revision; \
             ALTER TABLE configurations DROP COLUMN osc_revision; DELETE FROM osc_meta WHERE name = 'revision';";
        let undo_cluster = "DROP TABLE osc_versions; DROP TABLE osc_outbox; DROP TABLE osc_peers; \
             DROP TABLE osc_foreign;";
        database.execute_batch(undo_revisions).expect("schema 2");
        if schema == 1 {
            database.execute_batch(undo_cluster).expect("schema 1");
        }
        database.execute("UPDATE osc_meta SET value = ?1 WHERE name = 'schema'", [schema]).expect("there");
        drop(database);

        let migrated = Fixture::at(directory);
        assert_eq!(migrated.sealed("old", None).as_deref(), Some(&b"1"[..]), "schema {schema}");
        let old = migrated.store.exact("old").expect("there");
        assert!(old.revision > Revision::default());
        let new = migrated.write(update(&old, b"2"), ALICE).expect("seen");
        assert!(new.revision > old.revision);
    }
}
