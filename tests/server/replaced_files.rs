//! Data files that other programs overwrite, truncate or empty while the server runs.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use rusqlite::Connection;

use crate::support::{Launch, Server, eventually};

/// A server with entries `a` and `b` in the database, and `c` in the WAL; and contents to overwrite its database with:
/// the database as it was before `b`, as a file and as SQLite copies it, and contents that are not a database.
fn with_copies() -> (Server, BTreeMap<&'static str, Vec<u8>>) {
    let mut copies = BTreeMap::new();
    let server = Server::start();
    assert_eq!(server.create("a", "1").status, 201);
    let server = server.restart();
    copies.insert("an old file", fs::read(server.database()).expect("exists"));
    assert_eq!(server.create("b", "1").status, 201);
    let server = server.restart();
    assert_eq!(server.create("c", "1").status, 201);
    let path = server.directory.path().join("copy.db");
    let database = Connection::open(server.database()).expect("exists");
    database.execute("VACUUM INTO ?1", [path.to_str().expect("a plain path")]).expect("a copy");
    copies.insert("a copy of this cycle", fs::read(&path).expect("exists"));
    let backup = server.directory.path().join("backup");
    let mut command = Launch::at(Arc::clone(&server.directory)).command();
    assert!(command.arg("backup").arg(&backup).output().expect("the command runs").status.success());
    copies.insert("a backup", fs::read(backup.join("configurations.db")).expect("exists"));
    copies.insert("nothing", Vec::new());
    copies.insert("its beginning", fs::read(server.database()).expect("exists")[..4096].to_vec());
    copies.insert("something else", vec![b'x'; 65536]);
    (server, copies)
}

fn write_in_place(path: &Path, bytes: &[u8]) {
    // Truncated and rewritten, as `cp` does it.
    fs::write(path, bytes).expect("writable");
}

fn check_refused(server: &Server, what: &str) {
    eventually("the change is detected", || server.get("/health").status == 503);
    let health = server.get("/health");
    assert!(
        health.text().contains("was overwritten or truncated while the server runs"),
        "{what}: {health:?}"
    );
    for refused in [server.create("lost", "1"), server.get("/configs/never-read")] {
        assert_eq!(refused.status, 503, "{what}: {refused:?}");
        assert!(refused.text().contains("or overwritten"), "{what}: {refused:?}");
    }
    assert_eq!(server.value("c"), "1", "{what}: cached entries are correct");
    assert_eq!(server.get("/ready").status, 503, "{what}");
}

#[test]
fn a_database_that_is_overwritten_in_place_is_detected() {
    for what in
        ["an old file", "a copy of this cycle", "a backup", "nothing", "its beginning", "something else"]
    {
        let (mut server, copies) = with_copies();
        assert_eq!(server.value("c"), "1");
        let wal = server.directory.path().join("configurations.db-wal");
        let log = fs::read(&wal).expect("exists");
        write_in_place(&server.database(), &copies[what]);
        check_refused(&server, what);
        assert!(server.stop().success(), "{what}: {}", server.log());
        assert_eq!(
            fs::read(server.database()).expect("exists"),
            copies[what],
            "{what}: nothing is written to it"
        );
        assert!(fs::read(&wal).expect("exists") == log, "{what}: the WAL is unchanged");
        // The start is refused, so that the two are never mixed.
        let directory = Arc::clone(&server.directory);
        let refused = Launch::at(Arc::clone(&directory)).try_start();
        assert!(refused.is_err(), "{what}");
        let mut command = Launch::at(Arc::clone(&directory)).command();
        let output = command.arg("restore").arg("backup").output().expect("the command runs");
        assert!(output.status.success(), "{what}: {output:?}");
        let server = Launch::at(directory).start();
        assert_eq!(
            (server.value("a"), server.value("b"), server.value("c")),
            ("1".into(), "1".into(), "1".into())
        );
    }
}

#[test]
fn a_wal_that_is_overwritten_in_place_is_detected() {
    for what in ["an old log", "nothing", "its beginning", "something else"] {
        let server = Server::start();
        let wal = server.directory.path().join("configurations.db-wal");
        assert_eq!(server.create("a", "1").status, 201);
        let old = fs::read(&wal).expect("exists");
        let mut server = server.restart();
        assert_eq!(server.create("c", "1").status, 201);
        assert_eq!(server.value("c"), "1");
        let now = fs::read(&wal).expect("exists");
        assert_ne!(now[..32], old[..32], "each WAL has its own salt");
        let bytes = match what {
            "an old log" => old,
            "nothing" => Vec::new(),
            "its beginning" => now[..4096].to_vec(),
            _ => vec![b'x'; 65536],
        };
        write_in_place(&wal, &bytes);
        check_refused(&server, what);
        assert!(server.stop().success(), "{what}: {}", server.log());
    }
}

/// Operators inspect entries and repair them with sqlite3.
#[test]
fn checkpoints_of_other_programs_are_allowed() {
    let server = Server::start();
    assert_eq!(server.create("a", "1").status, 201);
    let other = Connection::open(server.database()).expect("exists");
    let checkpoint = |kind: &str| {
        other
            .query_row(&format!("PRAGMA wal_checkpoint({kind})"), [], |_| Ok(()))
            .expect("the checkpoint runs");
    };
    for (round, kind) in ["PASSIVE", "FULL", "RESTART", "TRUNCATE", "TRUNCATE"].into_iter().enumerate() {
        checkpoint(kind);
        assert_eq!(server.create(&format!("after-{round}"), "1").status, 201, "{kind}");
        other.execute("UPDATE configurations SET category = ?1", [kind]).expect("valid");
        checkpoint(kind);
        assert_eq!(server.create(&format!("again-{round}"), "1").status, 201, "{kind}");
    }
    other.execute("DELETE FROM configurations WHERE \"key\" LIKE 'after-%'", []).expect("deleted");
    other.execute_batch("VACUUM").expect("valid");
    checkpoint("TRUNCATE");
    assert_eq!(server.create("last", "1").status, 201);
    drop(other);
    assert_eq!(server.get("/health").status, 200, "{}", server.get("/health").text());
    let server = server.restart();
    assert_eq!((server.value("again-4"), server.value("last")), ("1".into(), "1".into()));
    assert_eq!(server.get("/configs/after-1").status, 404);
}

/// SQLite keeps its WAL beside the target of the link.
#[test]
fn a_database_behind_a_link_works_like_any_other() {
    let launch = Launch::new();
    let directory = Arc::clone(&launch.directory);
    let (link, data) = (directory.path().join("configurations.db"), directory.path().join("data"));
    fs::create_dir(&data).expect("created");
    symlink("data/c.db", &link).expect("linked");
    let (target, wal) = (data.join("c.db"), data.join("c.db-wal"));
    // Created at the target of the link.
    let server = launch.start();
    assert_eq!(server.create("a", "1").status, 201);
    assert!(target.is_file() && wal.is_file() && link.is_symlink());

    // Replace the WAL.
    fs::rename(&wal, data.join("aside")).expect("renamed");
    fs::write(&wal, b"").expect("written");
    assert_eq!(server.create("lost", "1").status, 503);
    fs::rename(data.join("aside"), &wal).expect("renamed");
    eventually("the server is healthy again", || server.get("/health").status == 200);
    // Point the link elsewhere.
    fs::remove_file(&link).expect("removed");
    symlink("data/other.db", &link).expect("linked");
    fs::copy(&target, data.join("other.db")).expect("copied");
    assert_eq!(server.create("lost", "1").status, 503);
    fs::remove_file(&link).expect("removed");
    symlink("data/c.db", &link).expect("linked");
    eventually("the server is healthy again", || server.get("/health").status == 200);
    let old = fs::read(&target).expect("exists");
    let mut server = server.restart();
    assert_eq!(server.create("b", "1").status, 201);

    // After a crash: the WAL alone, and with an old database.
    server.kill();
    let now = fs::read(&target).expect("exists");
    let refusal = || {
        let refused = Launch::at(Arc::clone(&directory)).try_start().err().expect("the start must fail");
        refused.log
    };
    fs::remove_file(&target).expect("removed");
    assert!(refusal().contains("has content"), "{}", refusal());
    fs::write(&target, &old).expect("written");
    assert!(refusal().contains("do not belong together") || refusal().contains("-wal"), "{}", refusal());
    fs::write(&target, &now).expect("written");
    let mut touch = std::process::Command::new("touch");
    assert!(touch.arg(&wal).status().expect("touch is installed").success());
    let mut server = Launch::at(Arc::clone(&directory)).start();
    assert_eq!((server.value("a"), server.value("b")), ("1".to_owned(), "1".to_owned()));

    // Backup and restore keep the link.
    let mut command = Launch::at(Arc::clone(&directory)).command();
    assert!(command.args(["backup", "saved"]).output().expect("the command runs").status.success());
    assert_eq!(server.create("c", "1").status, 201);
    assert!(server.stop().success());
    let mut command = Launch::at(Arc::clone(&directory)).command();
    let output = command.args(["restore", "saved"]).output().expect("the command runs");
    assert!(output.status.success(), "{output:?}");
    assert!(link.is_symlink() && target.is_file());
    let server = Launch::at(Arc::clone(&directory)).start();
    assert_eq!((server.value("b"), server.get("/configs/c").status), ("1".to_owned(), 404));
}
