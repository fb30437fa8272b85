//! `opensecureconf backup`, `restore`, `verify` and `migrate`, on the files of real servers.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rusqlite::Connection;

use crate::files::generation;
use crate::support::{Launch, OTHER_KEY, Server, USER_KEY, copy_files};

/// Exit code, standard output and standard error of a command.
struct CommandOutput {
    code: Option<i32>,
    output: String,
    errors: String,
}

impl CommandOutput {
    fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}{}", self.output, self.errors);
        self
    }

    fn says(self, words: &[&str]) -> Self {
        for word in words {
            let is_present = self.output.contains(word) || self.errors.contains(word);
            assert!(is_present, "{word:?} is not in: {}{}", self.output, self.errors);
        }
        self
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.output).unwrap_or_else(|error| panic!("{error}: {}", self.output))
    }
}

fn run(command: &mut Command, arguments: &[&str]) -> CommandOutput {
    let output = command.args(arguments).output().expect("the command starts");
    CommandOutput {
        code: output.status.code(),
        output: String::from_utf8(output.stdout).expect("UTF-8"),
        errors: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

fn at(server: &Server, arguments: &[&str]) -> CommandOutput {
    run(&mut Launch::at(Arc::clone(&server.directory)).command(), arguments)
}

fn start(server: &Server) -> Server {
    Launch::at(Arc::clone(&server.directory)).start()
}

/// Contents of the files of a directory, by name.
fn contents(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(directory).expect("exists").map(|entry| entry.expect("readable"));
    entries
        .filter(|entry| entry.path().is_file())
        .map(|entry| {
            (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).expect("readable"))
        })
        .collect()
}

/// Data files, which a refused command must not change. Any reader may rebuild the index of the WAL.
fn data(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = contents(directory);
    files.retain(|name, content| {
        let is_transient = name.ends_with("-shm") || name.ends_with(".lock");
        !(is_transient || name.ends_with("-wal") && content.is_empty())
    });
    files
}

/// Row 34 of the second field cases: the restored state is served, whatever other files are beside the database.
#[test]
fn a_restore_overrides_all_later_writes() {
    for (is_killed, restarts) in [(true, false), (true, true), (false, false)] {
        let mut server = Server::start();
        for key in ["a1", "a2", "a3"] {
            assert_eq!(server.create(key, "1").status, 201);
        }
        let backup = at(&server, &["backup", "b/1"]).expect(0).says(&["3 entries"]);
        assert!(backup.errors.is_empty(), "{}", backup.errors);
        if restarts {
            server.kill();
            server = start(&server);
        }
        for key in ["b1", "b2", "b3"] {
            assert_eq!(server.create(key, "2").status, 201);
        }
        assert_eq!(server.update("a1", "3").status, 200);
        match is_killed {
            true => server.kill(),
            false => assert!(server.stop().success()),
        }
        let restored = at(&server, &["restore", "b/1"]).expect(0).says(&["restored 3 entries", "kept as"]);
        assert!(restored.errors.is_empty(), "{}", restored.errors);
        // Ids assigned since the backup are not reused.
        let last_id: i64 = Connection::open(server.database())
            .and_then(|database| {
                database.query_row("SELECT value FROM osc_meta WHERE name = 'last_id'", [], |row| row.get(0))
            })
            .expect("recorded");
        assert_eq!(last_id, 6);
        let server = start(&server);
        assert_eq!(server.value("a1"), "1");
        assert_eq!(server.get("/configs/b1").status, 404);
        let created = server.create("b1", "4");
        assert!(created.status == 201 && created.text().contains(r#""id":7,"#), "{created:?}");

        // The replaced database opens under its new name, with its WAL.
        let kept = data(server.directory.path());
        let name = kept
            .keys()
            .find(|name| name.contains(".before-restore-"))
            .expect("the replaced database is kept")
            .clone();
        let other = Launch::new();
        copy_files(server.directory.path(), other.directory.path(), &["encryption.salt"]);
        for suffix in ["", "-wal"] {
            if let Some(content) = kept.get(&format!("{name}{suffix}")) {
                let path = other.directory.path().join(format!("configurations.db{suffix}"));
                fs::write(path, content).expect("writable");
            }
        }
        let before = other.start();
        assert_eq!((before.value("a1"), before.value("b3")), ("3".to_owned(), "2".to_owned()));
    }
}

/// A manual restore that leaves the WAL of the replaced database in place is refused, even within one cycle of the WAL.
#[test]
fn a_backup_copied_beside_another_wal_is_refused() {
    let mut server = Server::start();
    server.create("a", "1");
    at(&server, &["backup", "b"]).expect(0);
    server.create("b", "1");
    server.kill();
    fs::copy(server.directory.path().join("b/configurations.db"), server.database()).expect("writable");
    let before = data(server.directory.path());
    for arguments in [&["backup", "c"][..], &["verify"], &["migrate"]] {
        at(&server, arguments).expect(7).says(&["-wal", "do not belong together"]);
    }
    let refused = Launch::at(Arc::clone(&server.directory)).try_start().err().expect("the start must fail");
    assert!(refused.log.contains("do not belong together"), "{}", refused.log);
    assert_eq!(before, data(server.directory.path()));
    at(&server, &["restore", "b"]).expect(0);
    assert_eq!(start(&server).get("/configs/b").status, 404);
}

#[test]
fn a_backup_during_writes_is_consistent() {
    let server = Server::start();
    assert_eq!(server.create("first", "0").status, 201);
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut client = server.connect();
            let mut count = 0;
            while !is_done.load(Ordering::Relaxed) {
                let body = format!(r#"{{"key":"k{count}","value":{count}}}"#);
                let sent =
                    client.send("POST", "/configs", &[("X-User-Key", USER_KEY)], Some(body.as_bytes()));
                assert_eq!(sent.status, 201, "{sent:?}");
                count += 1;
            }
            count
        });
        for number in 0..5 {
            let directory = format!("b{number}");
            let acknowledged = server.get("/configs?limit=100000").text().matches("\"key\":").count();
            let made = at(&server, &["backup", &directory, "--json"]).expect(0).json();
            assert_eq!(made["manifest"]["online"], true);
            let entries = made["manifest"]["database"]["entries"].as_u64().expect("a number");
            assert!(entries >= acknowledged as u64, "{entries} of {acknowledged} acknowledged entries");
            // The backup holds the first entries in write order, without a gap.
            let path = server.directory.path().join(&directory).join("configurations.db");
            let copy = Connection::open(path).expect("a database");
            let last: i64 =
                copy.query_row("SELECT max(id) FROM configurations", [], |row| row.get(0)).expect("ids");
            assert_eq!(last.unsigned_abs(), entries);
        }
        is_done.store(true, Ordering::Relaxed);
        assert!(writer.join().expect("no panic") > 0);
    });
    let mut command = Launch::at(Arc::clone(&server.directory)).set("OSC_USER_KEY", USER_KEY).command();
    let verified = run(&mut command, &["verify", "--json"]).expect(0).json();
    assert_eq!(verified["user_key"]["opened"], verified["entries"]["total"]);
    assert_eq!(verified["online"], true);
}

#[test]
fn a_backup_is_private_complete_and_never_overwritten() {
    let mut server = Server::start();
    // Without entries, no salt is required.
    at(&server, &["backup", "empty"]).expect(0).says(&["0 entries", "salt       none"]);
    server.create("k", "1");
    assert!(server.stop().success());
    let before = data(server.directory.path());
    let made = at(&server, &["backup", "b", "--json"]).expect(0).json();
    assert_eq!(made["manifest"]["online"], false);
    assert_eq!(before, data(server.directory.path()), "the data files are not changed");
    let backup = server.directory.path().join("b");
    let files = contents(&backup);
    assert_eq!(Vec::from_iter(files.keys()), ["configurations.db", "encryption.salt", "manifest.json"]);
    for path in files.keys().map(|name| backup.join(name)) {
        assert_eq!(fs::metadata(&path).expect("exists").permissions().mode() & 0o777, 0o600, "{path:?}");
    }
    assert_eq!(fs::metadata(&backup).expect("exists").permissions().mode() & 0o777, 0o700);
    at(&server, &["backup", "b"]).expect(5).says(&["not an empty directory"]);
    at(&server, &["backup", "configurations.db"]).expect(5);
    assert_eq!(files, contents(&backup));
    at(&server, &["verify", "b"]).expect(0);
    assert_eq!(files, contents(&backup), "verify creates no file in a backup");
    at(&server, &["restore", "b"]).expect(0);
    assert_eq!(start(&server).value("k"), "1");

    let nothing = Launch::new();
    run(&mut nothing.command(), &["backup", "b"]).expect(3).says(&["configurations.db does not exist"]);
    assert!(data(nothing.directory.path()).is_empty() && !nothing.directory.path().join("b").exists());
}

#[test]
fn a_backup_needs_the_salt_of_its_entries() {
    let mut server = Server::start();
    server.create("k", "1");
    assert!(server.stop().success());
    let salt = fs::read(server.salt()).expect("exists");
    fs::remove_file(server.salt()).expect("exists");
    at(&server, &["backup", "b"]).expect(7).says(&["encryption.salt is missing"]);
    at(&server, &["verify"]).expect(7).says(&["encryption.salt is missing"]);
    fs::write(server.salt(), crate::support::proper_salt(7)).expect("writable");
    at(&server, &["backup", "b"]).expect(7).says(&["another salt"]);
    at(&server, &["verify"]).expect(7).says(&["another salt"]);
    assert!(!server.directory.path().join("b").exists(), "a failed backup leaves nothing");
    fs::write(server.salt(), salt).expect("writable");
    at(&server, &["backup", "b"]).expect(0);
}

#[test]
fn a_restore_to_another_machine_includes_the_salt_and_keeps_the_replaced_one() {
    let server = Server::start();
    server.create("k", "1");
    at(&server, &["backup", "b"]).expect(0);
    let backup = server.directory.path().join("b");
    let backup = backup.to_str().expect("UTF-8");

    let empty = Launch::new().set("OSC_DATABASE_PATH", "d/x.db").set("OSC_SALT_FILE_PATH", "s/x.salt");
    run(&mut empty.command(), &["restore", backup, "--dry-run"]).expect(0).says(&["would restore 1 entries"]);
    assert!(!empty.directory.path().join("d").exists(), "a dry run creates nothing");
    run(&mut empty.command(), &["restore", backup]).expect(0);
    assert_eq!(empty.start().value("k"), "1");

    let mut other = Server::start();
    other.create("own", "2");
    let before = data(other.directory.path());
    at(&other, &["restore", backup]).expect(5).says(&["in use by another server"]);
    assert!(other.stop().success());
    let replaced_salt = fs::read(other.salt()).expect("exists");
    let restored = at(&other, &["restore", backup, "--json"]).expect(0).json();
    let kept: Vec<_> =
        restored["kept"].as_array().expect("a list").iter().filter_map(|name| name.as_str()).collect();
    assert!(
        kept.iter().any(|name| fs::read(name).expect("kept") == replaced_salt),
        "{kept:?} {:?}",
        before.keys()
    );
    let other = start(&other);
    assert_eq!((other.value("k"), other.get("/configs/own").status), ("1".to_owned(), 404));
}

#[test]
fn a_damaged_backup_is_detected_and_not_restored() {
    let mut server = Server::start();
    server.create("k", "1");
    at(&server, &["backup", "b"]).expect(0);
    server.create("later", "1");
    assert!(server.stop().success());
    let before = data(server.directory.path());
    let good = contents(&server.directory.path().join("b"));
    let check_damage = |name: &str, content: Option<&[u8]>, code: i32, word: &str| {
        let path = server.directory.path().join("b").join(name);
        match content {
            Some(content) => fs::write(&path, content).expect("writable"),
            None => fs::remove_file(&path).expect("exists"),
        }
        at(&server, &["verify", "b"]).expect(code).says(&[word]);
        at(&server, &["restore", "b"]).expect(code).says(&[word]);
        at(&server, &["restore", "b", "-n"]).expect(code);
        assert_eq!(before, data(server.directory.path()), "{name} {word}");
        fs::write(&path, &good[name]).expect("writable");
    };
    let mut flipped = good["configurations.db"].clone();
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    let database = &good["configurations.db"];
    for (name, content, code, word) in [
        ("configurations.db", Some(&flipped[..]), 7, "is not the file of the manifest"),
        ("configurations.db", Some(&database[..database.len() / 2]), 7, "configurations.db"),
        ("configurations.db", Some(b"".as_slice()), 7, "is not the file of the manifest"),
        ("configurations.db", None, 3, "configurations.db"),
        ("encryption.salt", Some(&crate::support::proper_salt(9)), 7, "is not the file of the manifest"),
        ("encryption.salt", None, 3, "encryption.salt"),
        ("manifest.json", Some(b"{}"), 7, "is not the manifest"),
        ("manifest.json", None, 3, "manifest.json does not exist"),
    ] {
        check_damage(name, content, code, word);
    }
    let manifest = String::from_utf8(good["manifest.json"].clone()).expect("UTF-8");
    let later = manifest.replace("\"format\": 1", "\"format\": 2");
    check_damage("manifest.json", Some(later.as_bytes()), 7, "later release");
    at(&server, &["restore", "b"]).expect(0);
}

/// After a power failure at any point of a restore, the next start is refused and another restore completes it.
#[test]
fn an_interrupted_restore_is_not_served() {
    let mut server = Server::start();
    server.create("k", "1");
    at(&server, &["backup", "b"]).expect(0);
    server.create("later", "1");
    server.kill();
    let directory = server.directory.path();
    let all = contents(directory);
    let suffix = ".before-restore-20260101000000";
    let moved = ["configurations.db", "configurations.db-wal"];
    // Number of files renamed so far, and whether the restored one is already in place.
    for (moved_count, is_placed) in [(0, false), (1, false), (2, false), (2, true)] {
        for (name, content) in &all {
            fs::write(directory.join(name), content).expect("writable");
        }
        fs::write(directory.join("configurations.db.restore-unfinished"), suffix).expect("writable");
        for name in &moved[..moved_count] {
            let kept = name.replacen("configurations.db", &format!("configurations.db{suffix}"), 1);
            fs::rename(directory.join(name), directory.join(kept)).expect("exists");
        }
        if is_placed {
            fs::copy(directory.join("b/configurations.db"), server.database()).expect("writable");
        }
        let refused =
            Launch::at(Arc::clone(&server.directory)).try_start().err().expect("the start must fail");
        assert!(refused.log.contains("restore was interrupted"), "{}", refused.log);
        for arguments in [&["backup", "c"][..], &["verify"]] {
            at(&server, arguments).expect(7).says(&["restore was interrupted"]);
        }
        at(&server, &["restore", "b"]).expect(0);
        let after = contents(directory);
        assert!(!after.keys().any(|name| name.ends_with("unfinished")), "{:?}", after.keys());
        let kept =
            after.iter().find(|(name, _)| name.contains(".before-restore-") && !name.ends_with("-wal"));
        assert_eq!(kept.expect("kept").1, &all["configurations.db"], "the previous database is kept");
        let mut restored = start(&server);
        assert_eq!((restored.value("k"), restored.get("/configs/later").status), ("1".to_owned(), 404));
        restored.kill();
        for name in after.keys().filter(|name| name.starts_with("configurations.db")) {
            fs::remove_file(directory.join(name)).ok();
        }
    }
}

#[test]
fn files_of_the_python_server_are_backed_up_unchanged() {
    for name in ["v20", "v23", "v3"] {
        let launch = generation(name);
        let before = data(launch.directory.path());
        run(&mut launch.command(), &["backup", "b"]).expect(0);
        // One entry is not a Fernet token; it is backed up anyway.
        run(&mut launch.command(), &["verify", "b"]).expect(7).says(&["not a token"]);
        let tried = run(&mut launch.command(), &["migrate", "--dry-run", "--json"]).expect(0).json();
        assert_eq!((&tried["due"], &tried["copy"]), (&true.into(), &serde_json::Value::Null), "{tried}");
        assert_eq!(before, data(launch.directory.path()), "{name}");
        run(&mut launch.command(), &["migrate"]).expect(0).says(&["migrated", "kept as"]);
        run(&mut launch.command(), &["migrate", "-n"]).expect(0).says(&["nothing to migrate"]);
        run(&mut launch.command(), &["restore", "b"]).expect(0);
        let restored = fs::read(launch.directory.path().join("configurations.db")).expect("exists");
        assert!(!restored.windows(8).any(|window| window == b"osc_meta"), "{name} is unchanged");
        assert_eq!(launch.start().send("GET", "/configs/plain", "alice-user-key", None).status, 200);
    }
}

#[test]
fn a_dry_run_detects_a_migration_that_would_fail() {
    let launch = generation("v20");
    Connection::open(launch.directory.path().join("configurations.db"))
        .expect("exists")
        .execute_batch(
            r#"DROP INDEX ix_configurations_key;
               INSERT INTO configurations ("key", encrypted_value) VALUES ('plain', 'x')"#,
        )
        .expect("valid");
    let before = data(launch.directory.path());
    for arguments in [&["migrate", "-n"][..], &["migrate"]] {
        run(&mut launch.command(), arguments).expect(7).says(&["two entries", "plain"]);
    }
    assert_eq!(before, data(launch.directory.path()));
}

#[test]
fn verify_counts_the_entries_that_a_user_key_decrypts() {
    let mut server = Server::start();
    for key in ["a", "b"] {
        server.create(key, "1");
    }
    server.send("POST", "/configs", OTHER_KEY, Some(r#"{"key":"theirs","value":1}"#));
    at(&server, &["backup", "b"]).expect(0);
    let key_file = server.directory.path().join("user-key");
    fs::write(&key_file, format!("{OTHER_KEY}\nnot this line\n")).expect("writable");
    let verify = |variables: &[(&str, &str)], arguments: &[&str]| {
        let mut command = Launch::at(Arc::clone(&server.directory)).command();
        run(command.envs(variables.iter().copied()).arg("verify"), arguments)
    };
    for path in [&[][..], &["b"]] {
        verify(&[("OSC_USER_KEY", USER_KEY)], path).expect(0).says(&["decrypts 2; 1 have another key"]);
        verify(&[("OSC_USER_KEY_FILE", "user-key")], path)
            .expect(0)
            .says(&["decrypts 1; 2 have another key"]);
        verify(&[("OSC_USER_KEY", "no-such-user-key")], path).expect(4).says(&["decrypts no entry"]);
        verify(&[], path).expect(0);
    }
    let both = [("OSC_USER_KEY", USER_KEY), ("OSC_USER_KEY_FILE", "user-key")];
    verify(&both, &[]).expect(2).says(&["cannot be combined"]);
    verify(&[("OSC_USER_KEY_FILE", "no-such-file")], &[]).expect(2).says(&["cannot be read"]);
    verify(&[], &["--ask-user-key"]).expect(9).says(&["no terminal", "OSC_USER_KEY_FILE"]);
    let unknown = verify(&[], &["--json", "no-such-path"]).expect(3);
    assert!(
        unknown.output.is_empty() && unknown.errors.contains(r#""error":"not_found""#),
        "{}",
        unknown.errors
    );

    assert!(server.stop().success());
    Connection::open(server.database())
        .expect("exists")
        .execute(r#"UPDATE configurations SET encrypted_value = 'gAAA' WHERE "key" = 'a'"#, [])
        .expect("valid");
    let verified = at(&server, &["verify", "--json"]).expect(7).json();
    assert_eq!(verified["entries"]["malformed_entries"][0]["key"], "a");
    assert_eq!(verified["ok"], false);
    // A malformed token does not prevent a backup.
    at(&server, &["backup", "c"]).expect(0).says(&[r#"the value of "a" is not a Fernet token"#]);

    let mut damaged = fs::read(server.database()).expect("exists");
    damaged[4096..8192].fill(0xAA);
    fs::write(server.database(), damaged).expect("writable");
    at(&server, &["verify"]).expect(7);
    at(&server, &["backup", "d"]).expect(7);
    assert!(!server.directory.path().join("d").exists());
}

/// `script` runs the command on a terminal.
#[test]
fn the_user_key_is_prompted_for_without_echo() {
    let mut server = Server::start();
    server.create("k", "1");
    assert!(server.stop().success());
    let binary = env!("CARGO_BIN_EXE_opensecureconf");
    let line = format!("'{binary}' verify --ask-user-key");
    let mut child = Command::new("script")
        .args(["-q", "-e", "-c", &line, "/dev/null"])
        .current_dir(server.directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script of util-linux");
    let mut output = child.stdout.take().expect("piped");
    let mut shown = Vec::new();
    let mut byte = [0];
    // The echo is off before the prompt is shown.
    while !shown.ends_with(b"User key: ") {
        assert_eq!(output.read(&mut byte).expect("readable"), 1, "{}", String::from_utf8_lossy(&shown));
        shown.push(byte[0]);
    }
    let mut input = child.stdin.take().expect("piped");
    input.write_all(format!("{USER_KEY}\n").as_bytes()).expect("the process reads");
    output.read_to_end(&mut shown).expect("readable");
    assert!(child.wait().expect("the process exits").success());
    let shown = String::from_utf8_lossy(&shown).into_owned();
    assert!(shown.contains("decrypts 1") && !shown.contains(USER_KEY), "{shown}");
}
