//! A database and its salt: which salts are accepted, and that no entry is ever written under another one.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension};

use crate::files::{generation, refused_unchanged};
use crate::support::{Launch, Server, USER_KEY, eventually, proper_salt};

const DATABASE: &str = "configurations.db";
const SALT: &str = "encryption.salt";
const ALICE: &str = "alice-user-key";

/// A server with an entry, killed right after it has acknowledged the write.
fn killed_with_an_entry() -> Server {
    let mut server = Server::start();
    assert_eq!(server.create("k", "1").status, 201);
    server.kill();
    server
}

fn again(server: &Server) -> Launch {
    Launch::at(Arc::clone(&server.directory))
}

/// Digest of a file, computed as the documentation describes.
fn sha256sum(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().expect("coreutils are installed");
    let text = String::from_utf8(output.stdout).expect("ASCII");
    text.split_whitespace().next().expect("a digest").to_owned()
}

fn tag(database: &Path) -> Option<i64> {
    let connection = Connection::open(database).expect("a database");
    let sql = "SELECT value FROM osc_meta WHERE name = 'salt_tag'";
    connection.query_row(sql, [], |row| row.get(0)).optional().expect("the table exists")
}

#[test]
fn a_wrong_salt_is_refused_and_the_right_one_decrypts_the_entries() {
    let server = killed_with_an_entry();
    let right = fs::read(server.salt()).expect("created");
    for round in 0..2 {
        fs::write(server.salt(), proper_salt(round)).expect("writable");
        refused_unchanged(again(&server), &[DATABASE, SALT, "another salt", "OSC_ACCEPT_SALT"]);
        fs::write(server.salt(), &right).expect("writable");
        let mut back = again(&server).start();
        assert_eq!(back.value("k"), "1");
        // With and without a WAL beside the database.
        match round {
            0 => drop(back.stop()),
            _ => back.kill(),
        }
    }
}

#[test]
fn the_tag_is_stored_before_a_write_is_acknowledged() {
    for _ in 0..3 {
        let mut server = Server::start();
        assert_eq!(server.send("POST", "/cluster/salt", USER_KEY, None).status, 400);
        assert_eq!(server.get("/configs/nothing").status, 404);
        assert_eq!(tag(&server.database()), None, "nothing has been encrypted yet");
        assert_eq!(server.create("k", "1").status, 201);
        server.kill();
        let bound = tag(&server.database());
        assert!(bound.is_some());
        // Neither a restart nor another write changes it.
        let mut server = again(&server).start();
        assert_eq!(server.create("l", "1").status, 201);
        assert!(server.stop().success());
        assert_eq!(tag(&server.database()), bound);
    }
}

/// The old salt is not needed any more, so the next write binds the database to the new one.
#[test]
fn a_database_without_entries_accepts_any_salt() {
    let mut server = Server::start();
    assert_eq!(server.create("k", "1").status, 201);
    assert_eq!(server.send("DELETE", "/configs/k", USER_KEY, None).status, 200);
    assert!(server.stop().success());
    let bound = tag(&server.database());
    fs::write(server.salt(), proper_salt(1)).expect("writable");
    let mut server = again(&server).start();
    assert_eq!(server.create("k", "2").status, 201);
    server.kill();
    assert_ne!(tag(&server.database()), bound);
    fs::write(server.salt(), proper_salt(2)).expect("writable");
    refused_unchanged(again(&server), &["another salt"]);
}

#[test]
fn a_restored_backup_matches_its_own_salt_only() {
    let backup = |server: &Server| {
        let copy = server.directory.path().join("copy.db");
        let connection = Connection::open(server.database()).expect("a database");
        connection
            .backup("main", &copy, None::<fn(_)>)
            .expect("the database of a running server can be copied");
        copy
    };
    let (mut one, other) = (Server::start(), Server::start());
    for server in [&one, &other] {
        assert_eq!(server.create("k", "1").status, 201);
    }
    let (own, foreign) = (backup(&one), backup(&other));
    assert_eq!(one.create("later", "1").status, 201);
    assert!(one.stop().success());
    fs::copy(foreign, one.database()).expect("writable");
    refused_unchanged(again(&one), &[DATABASE, SALT, "another salt"]);
    fs::copy(own, one.database()).expect("writable");
    let back = again(&one).start();
    assert_eq!((back.value("k"), back.get("/configs/later").status), ("1".to_owned(), 404));
}

#[test]
fn invalid_salt_files_are_refused_unless_accepted_by_digest() {
    let only_15: Vec<u8> = (0..64).map(|at| at % 15).collect();
    for (bytes, reason) in [
        (&b"ten bytes."[..], "has 10 bytes instead of 64, as OpenSecureConf 2.0 leaves it"),
        (&proper_salt(0)[..63], "has 63 bytes instead of 64"),
        (&[proper_salt(0), proper_salt(9)].concat(), "has 128 bytes instead of 64: "),
        (&[0; 64], "is not random (distinct byte values: 1)"),
        (&only_15, "is not random (distinct byte values: 15)"),
    ] {
        // With entries that were written by a release that accepted any salt.
        let launch = generation("v20");
        let salt = launch.directory.path().join(SALT);
        fs::write(&salt, bytes).expect("writable");
        let directory = Arc::clone(&launch.directory);
        refused_unchanged(launch, &[SALT, reason, "OSC_ACCEPT_SALT"]);
        let another = Launch::at(Arc::clone(&directory)).set("OSC_ACCEPT_SALT", &"0".repeat(64));
        refused_unchanged(another, &[SALT, reason]);
        let accepting = || Launch::at(Arc::clone(&directory)).set("OSC_ACCEPT_SALT", &sha256sum(&salt));
        for key in ["first", "second"] {
            let mut server = accepting().start();
            let log = server.log();
            assert!(log.contains("WARN") && log.contains("because OSC_ACCEPT_SALT names it"), "{log}");
            assert_eq!(server.create(key, "1").status, 201);
            assert_eq!(server.value("first"), "1");
            assert!(server.stop().success());
            assert_eq!(tag(&server.database()).is_some(), bytes.len() >= 16, "a short salt could be guessed");
        }
        refused_unchanged(Launch::at(Arc::clone(&directory)), &[SALT, reason]);
        assert_eq!(fs::read(&salt).expect("exists"), bytes);
    }
}

#[test]
fn databases_of_the_python_server_are_bound_at_their_migration() {
    for name in ["v20", "v23", "v3"] {
        let launch = generation(name);
        let directory = Arc::clone(&launch.directory);
        let (database, salt) = (directory.path().join(DATABASE), directory.path().join(SALT));
        let right = fs::read(&salt).expect("a fixture");
        let mut server = launch.start();
        assert!(server.log().contains("bound to this salt"), "{name}: {}", server.log());
        assert!(server.stop().success());
        assert!(tag(&database).is_some(), "{name}");
        fs::write(&salt, proper_salt(1)).expect("writable");
        refused_unchanged(Launch::at(Arc::clone(&directory)), &[DATABASE, SALT, "another salt"]);
        fs::write(&salt, right).expect("writable");
        let server = Launch::at(directory).start();
        assert_eq!(server.send("GET", "/configs/plain", ALICE, None).status, 200, "{name}");
    }
}

/// Without a tag and without a user key, a wrong salt cannot be detected.
#[test]
fn a_wrong_salt_at_the_first_start_can_be_corrected() {
    let launch = generation("v20");
    let directory = Arc::clone(&launch.directory);
    let salt = directory.path().join(SALT);
    let right = fs::read(&salt).expect("a fixture");
    fs::write(&salt, proper_salt(1)).expect("writable");
    let mut server = launch.start();
    assert_eq!(server.send("GET", "/configs/plain", ALICE, None).status, 401);
    assert!(server.stop().success());
    fs::write(&salt, right).expect("writable");
    let at = || Launch::at(Arc::clone(&directory));
    refused_unchanged(at(), &["another salt", "OSC_ACCEPT_SALT"]);
    let mut server = at().set("OSC_ACCEPT_SALT", &sha256sum(&salt)).start();
    assert!(server.log().contains("the database had another salt"), "{}", server.log());
    assert_eq!(server.send("GET", "/configs/plain", ALICE, None).status, 200);
    assert!(server.stop().success());
    // Once is enough, and from now on the wrong salt is refused.
    let mut server = at().start();
    assert_eq!(server.send("GET", "/configs/plain", ALICE, None).status, 200);
    assert!(server.stop().success());
    fs::write(&salt, proper_salt(1)).expect("writable");
    refused_unchanged(at(), &["another salt"]);
}

#[test]
fn a_degenerate_salt_is_not_accepted_from_a_client() {
    let server = Server::start();
    for (body, reason) in [
        (vec![0; 64], "Invalid salt: it is not random (distinct byte values: 1)"),
        (
            b"0123456789abcde".repeat(5)[..64].to_vec(),
            "Invalid salt: it is not random (distinct byte values: 15)",
        ),
        (vec![0; 63], "Invalid salt size: 63 bytes (expected 64)"),
    ] {
        let response = server.connect().send("POST", "/cluster/salt", &[], Some(&body));
        assert_eq!((response.status, response.detail().as_str()), (400, reason));
        assert!(!server.salt().exists());
    }
    // A file that appears while the server runs is checked as at the start.
    fs::write(server.salt(), [0; 64]).expect("writable");
    assert_eq!(server.create("k", "1").status, 503);
    eventually("the salt is refused in the log", || server.log().contains("is not random"));
    fs::write(server.salt(), proper_salt(3)).expect("writable");
    assert_eq!(server.create("k", "1").status, 201);
}
