//! Data files of the generations of the Python server, and files that must be refused without changing a byte.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::Connection;

use crate::support::{Launch, OTHER_KEY, Refused, Server, copy_files, eventually};

const ALICE: &str = "alice-user-key";
const BOB: &str = "bob-user-key-2";

/// The committed fixture, or the one that CI has just generated with the libraries of the Python server.
fn fixture(name: &str) -> PathBuf {
    let regenerated = std::env::var_os("OSC_TEST_FIXTURES").map(PathBuf::from);
    regenerated.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")).join(name)
}

pub(super) fn generation(name: &str) -> Launch {
    let launch = Launch::new();
    let directory = launch.directory.path();
    fs::copy(fixture(&format!("{name}.db")), directory.join("configurations.db")).expect("fixture");
    fs::copy(fixture(&format!("{name}.salt")), directory.join("encryption.salt")).expect("fixture");
    launch
}

fn read(server: &Server, target: &str, user_key: &str) -> (u16, String) {
    let response = server.send("GET", target, user_key, None);
    (response.status, response.text().to_owned())
}

/// Checks the entries that the file of every generation holds.
fn check_common(server: &Server) {
    let (status, text) = read(server, "/configs/plain", ALICE);
    assert_eq!(status, 200, "{text}");
    assert_eq!(
        text,
        r#"{"id":1,"key":"plain","category":"database","value":{"host":"localhost","port":5432}}"#
    );
    let (_, text) = read(server, "/configs/%D0%BA%D0%BB%D1%8E%D1%87-%F0%9F%94%91", ALICE);
    assert_eq!(text, r#"{"id":2,"key":"ключ-🔑","category":"кат","value":{"значение":"ünï","z":1,"a":2}}"#);
    let (_, text) = read(server, "/configs/numbers", ALICE);
    assert!(text.ends_with(r#""value":{"i":18446744073709551616,"f":1.0,"g":1e-07,"m":-0.0}}"#), "{text}");
    assert_eq!(read(server, "/configs/sla/sh", ALICE).0, 200);
    assert_eq!(read(server, "/configs/theirs", ALICE).0, 401);
    assert_eq!(read(server, "/configs/theirs", BOB).0, 200);
    assert_eq!(read(server, "/configs/not%20json", ALICE).0, 422);
    assert_eq!(read(server, "/configs/not%20a%20token", ALICE).0, 422);
    let list = server.send("GET", "/configs", BOB, None);
    assert_eq!(list.text(), r#"[{"id":5,"key":"theirs","category":null,"value":{"b":1}}]"#);
    assert!(list.headers["x-entries-hidden"].parse::<u32>().expect("a number") >= 6);
}

fn rows(path: &Path) -> Vec<(i64, String, String, Option<String>)> {
    let database = Connection::open(path).expect("a database");
    let mut statement = database
        .prepare(r#"SELECT id, "key", encrypted_value, category FROM configurations ORDER BY id"#)
        .expect("columns of the Python server");
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)));
    rows.expect("readable").collect::<Result<_, _>>().expect("readable")
}

#[test]
fn each_generation_opens_in_place_and_is_copied_once() {
    for (name, label) in [("v20", "2.0"), ("v23", "2.3"), ("v3", "3.x")] {
        let launch = generation(name);
        let directory = Arc::clone(&launch.directory);
        let before = rows(&fixture(&format!("{name}.db")));
        let server = launch.start();
        check_common(&server);
        assert_eq!(server.send("PUT", "/configs/plain", ALICE, Some(r#"{"value":{"new":1}}"#)).status, 200);
        assert_eq!(server.send("DELETE", "/configs/sla/sh", ALICE, None).status, 200);
        let created = server.send("POST", "/configs", ALICE, Some(r#"{"key":"new","value":[1]}"#));
        assert_eq!(created.status, 201, "{name}: {created:?}");
        let server = server.restart();
        assert_eq!(read(&server, "/configs/new", ALICE).0, 200);
        assert_eq!(read(&server, "/configs/sla/sh", ALICE).0, 404);
        drop(server);
        let copy = directory.path().join(format!("configurations.db.backup-{label}"));
        assert_eq!(rows(&copy), before, "{name}: the copy holds the previous rows");
        let copies = fs::read_dir(directory.path()).expect("readable").filter(|entry| {
            entry.as_ref().expect("readable").file_name().to_string_lossy().contains("backup")
        });
        assert_eq!(copies.count(), 1, "{name}: one copy, not one per start");
        assert_eq!(fs::metadata(copy).expect("exists").permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn environments_of_later_generations() {
    let server = generation("v23").start();
    let entry =
        r#""key":"with environment","category":null,"environment":"production","value":["list",1,true]"#;
    assert_eq!(read(&server, "/configs/with%20environment", ALICE).1, format!(r#"{{"id":8,{entry}}}"#));
    let full = read(&server, "/configs/with%20environment?mode=full", ALICE).1;
    let times = r#""created_at":"2026-01-31T10:00:00.123456Z","updated_at":"2026-02-01T11:30:00.000000Z""#;
    assert_eq!(full, format!(r#"{{"id":8,{entry},{times}}}"#));
    // Keys were unique in that generation; now they are unique within an environment.
    let body = r#"{"key":"plain","value":2,"environment":"production"}"#;
    assert_eq!(server.send("POST", "/configs", ALICE, Some(body)).status, 201);

    let server = generation("v3").start();
    let (status, text) = read(&server, "/configs/shared", ALICE);
    assert!(status == 400 && text.contains("production") && text.contains("staging"), "{text}");
    assert!(read(&server, "/configs/shared?environment=staging", ALICE).1.contains(r#""value":{"e":"s"}"#));
    // "No environment" is the empty string in this generation's column, where NULL is not allowed.
    let created = server.send("POST", "/configs", ALICE, Some(r#"{"key":"shared","value":0}"#));
    assert_eq!(created.text(), r#"{"id":10,"key":"shared","category":null,"value":0}"#);
    let moved = server.send("PUT", "/configs/plain", ALICE, Some(r#"{"value":1,"environment":"staging"}"#));
    assert!(moved.text().contains(r#""environment":"staging""#), "{moved:?}");
    drop(server);
}

/// The statements are those that SQLAlchemy sends for the Python server 2.0.
#[test]
fn a_2_0_file_can_be_used_by_the_python_server_again() {
    let launch = generation("v20");
    let directory = Arc::clone(&launch.directory);
    let mut server = launch.start();
    assert_eq!(server.send("POST", "/configs", ALICE, Some(r#"{"key":"ours","value":{}}"#)).status, 201);
    assert!(server.stop().success());
    let path = directory.path().join("configurations.db");
    {
        let database = Connection::open(&path).expect("a database");
        let insert = r#"INSERT INTO configurations ("key", encrypted_value, category) VALUES (?1, ?2, NULL)"#;
        assert!(database.execute(insert, ("ours", "x")).is_err(), "the key is still unique");
        let token = rows(&path).into_iter().find(|row| row.1 == "ours").expect("exists").2;
        assert_eq!(database.execute(insert, ("theirs too", &token)).expect("valid"), 1);
        database.execute(r#"DELETE FROM configurations WHERE id = 4"#, []).expect("valid");
    }
    let server = Launch::at(directory).start();
    assert_eq!(
        read(&server, "/configs/theirs%20too", ALICE).1,
        r#"{"id":9,"key":"theirs too","category":null,"value":{}}"#
    );
    assert_eq!(read(&server, "/configs/sla/sh", ALICE).0, 404);
    let full = read(&server, "/configs/theirs%20too?environment=&mode=full", ALICE).1;
    assert_eq!(full, r#"{"id":9,"key":"theirs too","category":null,"value":{}}"#);
}

/// Files of a directory with their contents, except empty ones such as the lock file, and SQLite's shared memory.
fn contents(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(directory).expect("readable").map(|entry| entry.expect("readable").path());
    entries
        .filter(|path| path.is_file())
        .filter(|path| !path.to_string_lossy().ends_with("-shm"))
        .map(|path| (path.to_string_lossy().into_owned(), fs::read(&path).expect("readable")))
        .filter(|(_, bytes)| !bytes.is_empty())
        .collect()
}

pub(super) fn refused_unchanged(launch: Launch, words: &[&str]) -> Refused {
    let directory = Arc::clone(&launch.directory);
    let before = contents(directory.path());
    let refused = launch.try_start().err().unwrap_or_else(|| panic!("the server starts despite {words:?}"));
    assert!(!refused.status.success());
    for word in words {
        assert!(refused.log.contains(word), "{word:?} is not in: {}", refused.log);
    }
    let after = contents(directory.path());
    let changed: Vec<_> = after
        .iter()
        .filter(|(name, bytes)| before.get(*name) != Some(*bytes))
        .map(|(name, _)| name)
        .collect();
    assert!(
        changed.is_empty() && after.len() == before.len(),
        "{words:?}: the refused start changed {changed:?}"
    );
    refused
}

fn with_database(bytes: &[u8]) -> Launch {
    let launch = generation("v20");
    fs::write(launch.directory.path().join("configurations.db"), bytes).expect("writable");
    launch
}

#[test]
fn unusable_databases_are_refused_unchanged() {
    let good = fs::read(fixture("v20.db")).expect("fixture");
    refused_unchanged(with_database(&good[..good.len() / 2]), &["configurations.db", "truncated", "backup"]);
    refused_unchanged(with_database(&good[..50]), &["truncated"]);
    refused_unchanged(with_database(b"# not a database, but longer than a header of one hundred bytes, as one can see here, can't one?"), &["configurations.db"]);
    refused_unchanged(with_database(&[b'x'; 5000]), &["not a SQLite database", "OSC_DATABASE_PATH"]);

    let mut damaged = good.clone();
    damaged[4096..4200].fill(0xAA);
    refused_unchanged(with_database(&damaged), &["damaged", ".recover"]);

    let foreign = Launch::new();
    let path = foreign.directory.path().join("configurations.db");
    Connection::open(&path)
        .expect("a new database")
        .execute_batch("CREATE TABLE music (title TEXT)")
        .expect("valid");
    refused_unchanged(foreign, &["another program", "configurations"]);

    let odd = Launch::new();
    let path = odd.directory.path().join("configurations.db");
    let table = "CREATE TABLE configurations (id INTEGER PRIMARY KEY, name TEXT)";
    Connection::open(&path).expect("a new database").execute_batch(table).expect("valid");
    refused_unchanged(odd, &["unexpected columns", "id, name"]);

    let twice = generation("v20");
    let path = twice.directory.path().join("configurations.db");
    Connection::open(&path)
        .expect("exists")
        .execute_batch(
            r#"DROP INDEX ix_configurations_key;
               INSERT INTO configurations ("key", encrypted_value) VALUES ('plain', 'x')"#,
        )
        .expect("valid");
    refused_unchanged(twice, &["two entries", "plain"]);

    let directory = Launch::new();
    fs::create_dir(directory.directory.path().join("configurations.db")).expect("writable");
    refused_unchanged(directory, &["not a regular file"]);
}

#[test]
fn a_file_of_a_later_release_is_refused() {
    let mut server = Server::start();
    server.stop();
    let database = Connection::open(server.database()).expect("exists");
    database.execute("UPDATE osc_meta SET value = 99 WHERE name = 'schema'", []).expect("valid");
    drop(database);
    refused_unchanged(Launch::at(Arc::clone(&server.directory)), &["later release"]);
}

#[test]
fn a_wal_without_its_database_is_refused() {
    for replacement in [None, Some(&b""[..])] {
        let mut server = Server::start();
        server.create("k", "1");
        server.kill();
        let wal = server.directory.path().join("configurations.db-wal");
        assert!(fs::metadata(&wal).expect("a killed server leaves a WAL").len() > 0);
        match replacement {
            None => fs::remove_file(server.database()).expect("exists"),
            Some(bytes) => fs::write(server.database(), bytes).expect("writable"),
        }
        refused_unchanged(Launch::at(Arc::clone(&server.directory)), &["-wal"]);
    }
}

#[test]
fn salt_files() {
    let empty = generation("v20");
    fs::write(empty.directory.path().join("encryption.salt"), b"").expect("writable");
    refused_unchanged(empty, &["encryption.salt", "empty"]);

    let missing = generation("v20");
    fs::remove_file(missing.directory.path().join("encryption.salt")).expect("exists");
    refused_unchanged(missing, &["encryption.salt", "missing", "restore"]);

    // Without entries there is nothing that a new salt could orphan.
    let launch = generation("v20");
    let path = launch.directory.path().join("configurations.db");
    Connection::open(&path).expect("exists").execute("DELETE FROM configurations", []).expect("valid");
    fs::remove_file(launch.directory.path().join("encryption.salt")).expect("exists");
    let server = launch.start();
    assert!(!server.salt().exists(), "the salt is created on first use");
    assert_eq!(server.create("k", "1").status, 201);
    let metadata = fs::metadata(server.salt()).expect("created");
    assert_eq!((metadata.len(), metadata.permissions().mode() & 0o777), (64, 0o600));
    assert_eq!(
        fs::metadata(server.database()).expect("exists").permissions().mode() & 0o004,
        0o004,
        "the mode is kept"
    );
}

#[test]
fn new_files_are_private_and_directories_are_created() {
    let launch = Launch::new().set("OSC_DATABASE_PATH", "a/b/c.db").set("OSC_SALT_FILE_PATH", "d/e/c.salt");
    let directory = Arc::clone(&launch.directory);
    let server = launch.start();
    assert_eq!(server.create("k", "1").status, 201);
    for name in ["a/b/c.db", "a/b/c.db-wal", "d/e/c.salt"] {
        let mode = fs::metadata(directory.path().join(name)).expect(name).permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn a_second_server_on_the_same_files_is_refused() {
    let server = Server::start();
    assert_eq!(server.create("k", "1").status, 201);
    let refused = Launch::at(Arc::clone(&server.directory)).try_start().err().expect("the start must fail");
    assert!(refused.log.contains("in use by another server"), "{}", refused.log);
    // Another path to the same file is recognised.
    symlink(server.database(), server.directory.path().join("link.db")).expect("linked");
    let through_link = Launch::at(Arc::clone(&server.directory)).set("OSC_DATABASE_PATH", "link.db");
    assert!(
        through_link.try_start().err().expect("the start must fail").log.contains("in use by another server")
    );
    assert_eq!(server.value("k"), "1");
}

/// An operator may remove entries whose user key is lost.
#[test]
fn changes_by_another_program_are_detected() {
    let server = Server::start();
    for key in ["kept", "removed"] {
        server.create(key, "1");
        assert_eq!(server.value(key), "1");
    }
    let database = Connection::open(server.database()).expect("exists");
    database.execute(r#"DELETE FROM configurations WHERE "key" = 'removed'"#, []).expect("valid");
    eventually("the entry is gone", || server.get("/configs/removed").status == 404);
    assert_eq!(server.value("kept"), "1");
    assert_eq!(server.send("GET", "/configs/kept", OTHER_KEY, None).status, 401);
}

/// Yesterday's database with today's WAL would be a mixture of two states.
#[test]
fn a_restored_database_with_another_wal_is_refused() {
    let mut server = Server::start();
    server.create("k", "\"yesterday\"");
    assert!(server.stop().success());
    let backup = tempfile::tempdir().expect("temporary directory");
    copy_files(server.directory.path(), backup.path(), &["configurations.db"]);

    let mut server = Launch::at(Arc::clone(&server.directory)).start();
    server.update("k", "\"today\"");
    assert!(server.stop().success());
    let mut server = Launch::at(Arc::clone(&server.directory)).start();
    server.update("k", "\"now\"");
    server.kill();
    copy_files(backup.path(), server.directory.path(), &["configurations.db"]);
    refused_unchanged(Launch::at(Arc::clone(&server.directory)), &["-wal", "do not belong together"]);

    // The remedy in the error text works.
    for name in ["configurations.db-wal", "configurations.db-shm"] {
        fs::remove_file(server.directory.path().join(name)).expect("exists");
    }
    let server = Launch::at(Arc::clone(&server.directory)).start();
    assert_eq!(server.value("k"), "\"yesterday\"");
}

/// A database above the size that is checked before the server listens: 70,000 small entries of some 85 MiB, none of
/// them encrypted.
fn large() -> Launch {
    let mut server = Server::start();
    server.create("k", "1");
    assert!(server.stop().success());
    let database = Connection::open(server.database()).expect("exists");
    database
        .execute_batch(
            r#"PRAGMA synchronous=OFF;
               WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 70000)
               INSERT INTO configurations ("key", encrypted_value) SELECT 'filler-' || i, hex(zeroblob(550)) FROM n;
               PRAGMA wal_checkpoint(TRUNCATE);"#,
        )
        .expect("valid");
    drop(database);
    let bytes = fs::metadata(server.database()).expect("exists").len();
    assert!(bytes > opensecureconf::limits::CHECK_AT_START_BYTES_MAX, "{bytes}");
    Launch::at(Arc::clone(&server.directory))
}

#[test]
fn a_large_database_is_checked_in_the_background() {
    let launch = large();
    let directory = Arc::clone(&launch.directory);
    let mut server = launch.start();
    assert_eq!(server.value("k"), "1");
    eventually("the check has passed", || server.log().contains("database check passed"));
    assert!(server.stop().success());

    let path = directory.path().join("configurations.db");
    let good = fs::read(&path).expect("readable");
    fs::write(&path, &good[..good.len() / 2]).expect("writable");
    refused_unchanged(Launch::at(Arc::clone(&directory)), &["truncated"]);

    // Damage a page in the middle.
    let mut damaged = good.clone();
    let middle = damaged.len() / 2 / 4096 * 4096;
    damaged[middle..middle + 4096].fill(0xAA);
    fs::write(&path, &damaged).expect("writable");
    let mut server = Launch::at(Arc::clone(&directory)).start();
    assert_eq!(server.wait().code(), Some(1), "{}", server.log());
    for word in ["configurations.db is damaged", ".recover"] {
        assert!(server.log().contains(word), "{word:?} is not in: {}", server.log());
    }
    // The next start is refused immediately, before the check finds the damage again.
    let refused = refused_unchanged(Launch::at(Arc::clone(&directory)), &["configurations.db is damaged"]);
    assert!(!refused.log.contains("listening"), "{}", refused.log);
    // The remedy in the error text works.
    fs::write(&path, &good).expect("writable");
    let server = Launch::at(Arc::clone(&directory)).start();
    assert_eq!(server.value("k"), "1");
    drop(server);
    assert!(!directory.path().join("configurations.db.damaged").exists());
}

/// Damage at either end or in the schema is found before the server listens, however large the file is.
#[test]
fn a_large_database_with_a_damaged_end_is_refused() {
    let launch = large();
    let directory = Arc::clone(&launch.directory);
    let path = directory.path().join("configurations.db");
    let good = fs::read(&path).expect("readable");
    let database = Connection::open(&path).expect("exists");
    let root: u32 = database
        .query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'osc_key_environment'", [], |row| {
            row.get(0)
        })
        .expect("the index");
    drop(database);
    let root = usize::try_from(root).expect("small");
    for (at, count) in [((root - 1) * 4096, 4096), (100, 8)] {
        let mut damaged = good.clone();
        damaged[at..at + count].fill(0xAA);
        fs::write(&path, &damaged).expect("writable");
        let refused =
            refused_unchanged(Launch::at(Arc::clone(&directory)), &["configurations.db is damaged"]);
        assert!(!refused.log.contains("listening"), "{}", refused.log);
    }
}

/// The server refuses writes that would be lost with the file, reports why, and resumes when the file is back.
#[test]
fn a_file_that_is_replaced_under_the_server_is_detected() {
    for name in ["configurations.db", "configurations.db-wal", "configurations.db.lock", "encryption.salt"] {
        let server = Server::start();
        assert_eq!(server.create("before", "1").status, 201);
        let path = server.directory.path().join(name);
        let aside = server.directory.path().join("aside");
        for is_replaced in [false, true] {
            fs::rename(&path, &aside).expect("exists");
            if is_replaced {
                let content =
                    if name.ends_with("salt") { vec![7; 64] } else { fs::read(&aside).expect("exists") };
                fs::write(&path, content).expect("writable");
            }
            let refused = server.create("lost", "1");
            assert_eq!(refused.status, 503, "{name}: {refused:?}");
            assert!(refused.text().contains("removed or replaced"), "{name}: {refused:?}");
            assert!(refused.header("retry-after").is_some());
            let health = server.get("/health");
            assert_eq!((health.status, server.get("/ready").status), (503, 503), "{name}: {health:?}");
            assert!(health.text().contains("was removed or replaced"), "{name}: {health:?}");
            assert_eq!(server.value("before"), "1", "{name}");
            fs::rename(&aside, &path).expect("renamed");
            // Detected without a write.
            eventually("the server is healthy", || server.get("/health").status == 200);
            assert_eq!(server.create("after", "1").status, if is_replaced { 400 } else { 201 }, "{name}");
        }
        eventually("it is logged", || server.log().matches("refusing writes").count() == 2);
        let server = server.restart();
        assert_eq!((server.value("before"), server.get("/configs/lost").status), ("1".to_owned(), 404));
    }
}

/// Kubernetes replaces the files of a Secret in this way. An idle server also detects a missing database on its own.
#[test]
fn the_same_salt_in_a_new_file_is_accepted() {
    let server = Server::start();
    assert_eq!(server.create("k", "1").status, 201);
    let salt = fs::read(server.salt()).expect("exists");
    fs::write(server.directory.path().join("new"), &salt).expect("writable");
    fs::rename(server.directory.path().join("new"), server.salt()).expect("writable");
    assert_eq!(server.create("l", "1").status, 201);
    fs::remove_file(server.database()).expect("exists");
    eventually("an idle server detects it", || server.get("/health").status == 503);
}

/// Files that an operator has put in place of the data files are left untouched at shutdown.
#[test]
fn a_replaced_database_and_its_wal_are_left_untouched() {
    let mut server = Server::start();
    assert_eq!(server.create("k", "1").status, 201);
    let wal = server.directory.path().join("configurations.db-wal");
    for path in [&server.database(), &wal] {
        fs::remove_file(path).expect("exists");
        fs::write(path, b"of the operator").expect("writable");
    }
    eventually("the replacement is detected", || server.get("/health").status == 503);
    assert!(server.stop().success(), "{}", server.log());
    for path in [&server.database(), &wal] {
        assert_eq!(fs::read(path).expect("exists"), b"of the operator");
    }
}

#[test]
fn a_hard_link_to_a_database_in_use_is_refused() {
    let server = Server::start();
    assert_eq!(server.create("k", "1").status, 201);
    let other = Launch::new();
    fs::hard_link(server.database(), other.directory.path().join("configurations.db"))
        .expect("one file system");
    fs::copy(server.salt(), other.directory.path().join("encryption.salt")).expect("exists");
    let refused = other.try_start().err().expect("the start must fail");
    assert!(refused.log.contains("in use by another server"), "{}", refused.log);
    assert_eq!(server.create("l", "1").status, 201);
}

/// For every order of backup, writes and crash, the restored state is served or the start is refused.
#[test]
fn a_restored_database_is_never_undone_by_an_old_wal() {
    for rounds in 0..3 {
        let mut server = Server::start();
        for round in 0..rounds {
            assert_eq!(server.create(&format!("round{round}"), "1").status, 201);
            server = server.restart();
        }
        assert_eq!(server.create("a", "1").status, 201);
        let copy = server.directory.path().join("copy.db");
        let database = Connection::open(server.database()).expect("exists");
        database.execute("VACUUM INTO ?1", [copy.to_str().expect("a plain path")]).expect("a backup");
        let mut online = Connection::open(server.directory.path().join("online.db")).expect("a new file");
        let backup = rusqlite::backup::Backup::new(&database, &mut online).expect("a backup");
        backup.run_to_completion(100, std::time::Duration::ZERO, None).expect("a backup");
        drop(backup);
        drop((database, online));
        assert_eq!(server.create("b", "1").status, 201);
        server.kill();
        // As the crash left them, the files hold everything.
        let files =
            ["configurations.db", "configurations.db-wal"].map(|name| server.directory.path().join(name));
        let saved = files.clone().map(|path| fs::read(path).expect("exists"));
        for name in ["copy.db", "online.db"] {
            for (path, bytes) in files.iter().zip(&saved) {
                fs::write(path, bytes).expect("writable");
            }
            // File timestamps have a granularity of some milliseconds.
            eventually("the copy is newer than the WAL", || {
                fs::copy(server.directory.path().join(name), &files[0]).expect("exists");
                let [database, wal] = files.each_ref().map(|path| {
                    let found = fs::metadata(path).expect("exists");
                    (found.ctime(), found.ctime_nsec())
                });
                database > wal
            });
            let launch = Launch::at(Arc::clone(&server.directory));
            match launch.try_start() {
                Err(refused) => {
                    assert!(refused.log.contains("-wal"), "{name}, {rounds}: {}", refused.log);
                    fs::remove_file(&files[1]).expect("removed, as the error text advises");
                    let restored = Launch::at(Arc::clone(&server.directory)).start();
                    assert_eq!(restored.value("a"), "1", "{name}, {rounds}");
                    assert_eq!(restored.get("/configs/b").status, 404, "{name}, {rounds}");
                }
                Ok(restored) => assert_eq!(restored.get("/configs/b").status, 404, "{name}, {rounds}"),
            }
        }
        for (path, bytes) in files.iter().zip(&saved) {
            fs::write(path, bytes).expect("writable");
        }
        let crashed = Launch::at(Arc::clone(&server.directory)).start();
        assert_eq!((crashed.value("a"), crashed.value("b")), ("1".to_owned(), "1".to_owned()), "{rounds}");
    }
}

/// A refused start changes nothing, whatever the reason.
#[test]
fn a_refused_start_changes_no_file() {
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = taken.local_addr().expect("bound").port().to_string();
    for settings in [
        &[("OSC_HOST_PORT", port.as_str())][..],
        &[("OSC_HOST", "192.0.2.1")],
        &[("OSC_HTTPS_ENABLED", "true")],
        &[("OSC_WORKERS", "x")],
        &[("OSC_ACCEPT_SALT", "x")],
    ] {
        for name in ["v20", "v3"] {
            let launch =
                settings.iter().fold(generation(name), |launch, (name, value)| launch.set(name, value));
            let directory = Arc::clone(&launch.directory);
            let before = contents(directory.path());
            let refused = launch.try_start().err().expect("the start must fail");
            assert!(refused.status.code().is_some_and(|code| code > 0), "{settings:?}: {}", refused.log);
            assert_eq!(contents(directory.path()), before, "{settings:?}: {}", refused.log);
        }
    }
}

#[test]
fn ids_are_never_reused() {
    let mut server = Server::start();
    let id = |response: &crate::support::Response| {
        let entry: serde_json::Value = serde_json::from_slice(&response.body).expect("an entry");
        entry["id"].as_i64().expect("an id")
    };
    for number in 0..3 {
        assert_eq!(id(&server.create(&format!("a{number}"), "1")), number + 1);
    }
    let delete = |server: &Server, key: &str| {
        assert_eq!(
            server.send("DELETE", &format!("/configs/{key}"), crate::support::USER_KEY, None).status,
            200
        );
    };
    delete(&server, "a2");
    delete(&server, "a1");
    assert_eq!(id(&server.create("b", "1")), 4);
    assert_eq!(server.get("/configs?limit=3&after=3").text().matches("\"key\":\"b\"").count(), 1);
    delete(&server, "b");
    delete(&server, "a0");
    server = server.restart();
    assert_eq!(id(&server.create("c", "1")), 5);
    delete(&server, "c");
    server.kill();
    let server = Launch::at(Arc::clone(&server.directory)).start();
    assert_eq!(id(&server.create("d", "1")), 6);
}

/// The clock was ahead when the entry was created, and has been corrected since.
#[test]
fn times_of_an_entry_never_go_backwards() {
    let mut server = Server::start();
    assert_eq!(server.create("k", "1").status, 201);
    assert!(server.stop().success());
    let database = Connection::open(server.database()).expect("exists");
    let ahead = "2999-01-01 00:00:00.000000";
    database.execute("UPDATE configurations SET created_at = ?1, updated_at = ?1", [ahead]).expect("valid");
    drop(database);
    let server = Launch::at(Arc::clone(&server.directory)).start();
    let updated = server.update("k", "2");
    assert_eq!(updated.status, 200);
    let database = Connection::open(server.database()).expect("exists");
    let times: (String, String) = database
        .query_row("SELECT created_at, updated_at FROM configurations", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .expect("one row");
    assert_eq!(times, (ahead.to_owned(), ahead.to_owned()));
}
