//! Permissions of the data files: a server without access reports which, and one whose files are open to all users logs
//! a warning.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use crate::support::{Launch, Refused, Server};

/// User that owns nothing else. No other test uses it.
const USER: u32 = 44_720;

/// A copy of the binary that every user can run: the build directory may be accessible to root only.
struct Program(tempfile::TempDir);

impl Program {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let everyone = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755));
        everyone(directory.path()).expect("own directory");
        let program = Self(directory);
        fs::copy(env!("CARGO_BIN_EXE_opensecureconf"), program.path()).expect("a copy");
        everyone(&program.path()).expect("own file");
        program
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("opensecureconf")
    }

    fn start(&self, directory: &Arc<tempfile::TempDir>) -> Result<Server, Refused> {
        let inner = Launch::at(Arc::clone(directory))
            .set("OSC_DATABASE_PATH", "data/configurations.db")
            .set("OSC_SALT_FILE_PATH", "data/encryption.salt")
            .command();
        let mut command = Command::new("setpriv");
        command.args([&format!("--reuid={USER}"), &format!("--regid={USER}"), "--clear-groups"]);
        command.arg(self.path()).current_dir(directory.path());
        command.envs(inner.get_envs().filter_map(|(name, value)| value.map(|value| (name, value))));
        Server::spawn(&mut command, Arc::clone(directory))
    }
}

fn give(path: &Path, owner: u32, mode: u32) {
    chown(path, Some(owner), Some(owner)).expect("permitted for root");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("permitted for root");
}

/// For each file in turn: one line that names the file, its owner, its mode and the user of the server.
#[test]
fn a_file_of_another_user_is_named() {
    if !rustix::process::geteuid().is_root() {
        // Written to the stream, because the harness captures `eprintln!`.
        writeln!(io::stderr(), "skipped: only root can become another user").ok();
        return;
    }
    let program = Program::new();
    let directory = Arc::new(tempfile::tempdir().expect("temporary directory"));
    give(directory.path(), USER, 0o700);
    let data = directory.path().join("data");
    let server = program.start(&directory).expect("the server starts");
    assert_eq!(server.create("kept", "1").status, 201);
    drop(server);
    for (name, mode, words) in [
        ("configurations.db", 0o600, "is not readable"),
        ("configurations.db", 0o644, "is not writable"),
        ("configurations.db-wal", 0o600, "is not readable"),
        ("configurations.db-wal", 0o644, "is not writable"),
        ("configurations.db-shm", 0o600, "is not readable"),
        ("configurations.db.lock", 0o600, "is not readable"),
        ("configurations.db.lock", 0o444, "is not writable"),
        ("encryption.salt", 0o600, "is not readable"),
        ("", 0o700, "cannot be searched"),
    ] {
        let path = data.join(name);
        let name = path.to_str().expect("a plain path").trim_end_matches('/').to_owned();
        give(&path, 0, mode);
        let Refused { status, log } =
            program.start(&directory).err().unwrap_or_else(|| panic!("{name} {mode:o}: the server starts"));
        assert_eq!(status.code(), Some(1), "{name} {mode:o}: {log}");
        assert_eq!(log.lines().count(), 1, "{name} {mode:o}: {log}");
        let denial = format!("{name} {words} (owner 0:0, mode {mode:04o})");
        assert!(log.contains(&denial) && log.matches("owner 0:0").count() == 1, "{denial}: {log}");
        assert!(log.contains(&format!("runs as {USER}:{USER}")), "{log}");
        give(&path, USER, if path.is_dir() { 0o700 } else { 0o600 });
    }
    // All of these files together.
    for name in ["configurations.db", "configurations.db.lock", "encryption.salt"] {
        give(&data.join(name), 0, 0o600);
    }
    let Refused { log, .. } = program.start(&directory).err().expect("the start must fail");
    assert!(log.lines().count() == 1 && log.matches("is not readable (owner 0:0").count() == 3, "{log}");
    for name in ["configurations.db", "configurations.db.lock", "encryption.salt"] {
        give(&data.join(name), USER, 0o600);
    }
    let server = program.start(&directory).expect("the server starts");
    assert_eq!(server.value("kept"), "1");
}

/// New files are private whatever the umask; existing files may not be.
#[test]
fn new_files_are_private_and_open_ones_cause_a_warning() {
    let launch = Launch::new();
    let directory = Arc::clone(&launch.directory);
    let inner = launch.command();
    let mut command = Command::new("sh");
    command.args(["-c", "umask 0; exec \"$0\""]).arg(inner.get_program()).current_dir(directory.path());
    command.envs(inner.get_envs().filter_map(|(name, value)| value.map(|value| (name, value))));
    let server = Server::spawn(&mut command, Arc::clone(&directory)).expect("the server starts");
    assert_eq!(server.create("k", "1").status, 201);
    let mut count = 0;
    for entry in fs::read_dir(directory.path()).expect("readable").flatten() {
        let mode = entry.metadata().expect("exists").permissions().mode() & 0o7777;
        assert_eq!(mode, 0o600, "{}", entry.path().display());
        count += 1;
    }
    assert!(count >= 5, "database, -wal, -shm, lock and salt: {count}");
    assert!(!server.log().contains("all users of this machine"), "{}", server.log());
    drop(server);

    // Existing files, for example of a Python server.
    for (name, mode) in [("configurations.db", 0o644), ("encryption.salt", 0o604)] {
        let file = directory.path().join(name);
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("own file");
        let server = Launch::at(Arc::clone(&directory)).start();
        let log = server.log();
        let warnings: Vec<_> =
            log.lines().filter(|line| line.contains("all users of this machine")).collect();
        assert_eq!(warnings.len(), 1, "{log}");
        assert!(warnings[0].contains("WARN"), "{log}");
        assert!(warnings[0].contains(&format!("{name} (mode {mode:04o})")), "{log}");
        assert_eq!(server.value("k"), "1");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("own file");
        drop(server);
        let server = Launch::at(Arc::clone(&directory)).start();
        assert!(
            !server.log().contains(&format!("{name} (mode")),
            "group access is allowed: {}",
            server.log()
        );
    }
}
