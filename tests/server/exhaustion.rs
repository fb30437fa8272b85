//! Resource exhaustion, at the start and later: one clear error line, and everything that can continue does.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use crate::support::{Launch, Refused, Response, Server, USER_KEY, eventually};

/// Size of a memory page, and of a block of a tmpfs.
const PAGE_BYTES: u64 = 4096;
const MIB: u64 = 1024 * 1024;

fn skipped(what: &str) {
    // Written to the stream, because the harness captures `eprintln!`.
    writeln!(io::stderr(), "skipped: {what}").ok();
}

/// Starts a server under a limit of `prlimit`.
fn start_within(limits: &str, directory: &Arc<tempfile::TempDir>) -> Result<Server, Refused> {
    start_by(&["prlimit", limits], directory)
}

/// Starts a server through another program.
fn start_by(program: &[&str], directory: &Arc<tempfile::TempDir>) -> Result<Server, Refused> {
    let inner = Launch::at(Arc::clone(directory)).command();
    let mut command = Command::new(program[0]);
    command.args(&program[1..]).arg(inner.get_program()).current_dir(directory.path());
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.envs(inner.get_envs().filter_map(|(name, value)| value.map(|value| (name, value))));
    Server::spawn(&mut command, Arc::clone(directory))
}

/// Checks that the start failed with one line and with an exit code after which a supervisor retries.
fn check_line(refused: &Refused, words: &[&str]) {
    let Refused { status, log } = refused;
    assert_eq!(status.code(), Some(1), "{status}: {log}");
    assert_eq!(log.lines().count(), 1, "{log}");
    assert!(words.iter().all(|word| log.contains(word)), "{words:?}: {log}");
}

/// Checks that the server handles some requests and exits cleanly.
fn works(mut server: Server, what: &str) {
    assert_eq!(server.create("worked", "1").status, 201, "{what}");
    assert_eq!(server.get("/configs").status, 200, "{what}");
    assert_eq!(server.send("DELETE", "/configs/worked", USER_KEY, None).status, 200, "{what}");
    assert!(server.stop().success(), "{what}: {}", server.log());
}

/// Raises a limit until a server starts, which must then work.
fn until_it_serves(name: &str, limits: impl Iterator<Item = u64>, words: &[&str]) {
    let directory = Arc::new(tempfile::tempdir().expect("temporary directory"));
    for (refused_count, limit) in limits.enumerate() {
        match start_within(&format!("--{name}={limit}"), &directory) {
            Ok(server) => {
                assert!(refused_count > 0, "{name}={limit} is not a limit");
                return works(server, &format!("{name}={limit}"));
            }
            Err(refused) => check_line(&refused, words),
        }
    }
    panic!("{name}: no limit is high enough");
}

/// With fewer than the first limit, the program itself cannot be loaded.
#[test]
fn file_descriptors() {
    until_it_serves("nofile", 4..200, &["open files", "LimitNOFILE="]);
}

#[test]
fn memory() {
    until_it_serves("data", (8..).step_by(8).map(|size| size * MIB), &["memory limit of data", "LimitDATA="]);
    until_it_serves("as", (96..).step_by(32).map(|size| size * MIB), &["address space", "LimitAS="]);
}

/// User of the thread test, which must not be root and whose processes are counted. No other test uses it.
const THREADS_USER: u32 = 44_719;

#[test]
fn threads() {
    if !rustix::process::geteuid().is_root() {
        return skipped("only root can become a user without processes");
    }
    let directory = Arc::new(tempfile::tempdir().expect("temporary directory"));
    // A copy, because the build directory may be accessible to root only.
    let program = directory.path().join("opensecureconf");
    fs::copy(env!("CARGO_BIN_EXE_opensecureconf"), &program).expect("a copy");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("own file");
    chown(directory.path(), Some(THREADS_USER), Some(THREADS_USER)).expect("root may");
    let user = format!("--reuid={THREADS_USER}");
    let group = format!("--regid={THREADS_USER}");
    for (refused_count, limit) in (1..100).enumerate() {
        let inner = Launch::at(Arc::clone(&directory)).command();
        let mut command = Command::new("setpriv");
        command.args([&user, &group, "--clear-groups", "prlimit", &format!("--nproc={limit}")]);
        command.arg(&program).current_dir(directory.path());
        command.envs(inner.get_envs().filter_map(|(name, value)| value.map(|value| (name, value))));
        match Server::spawn(&mut command, Arc::clone(&directory)) {
            Ok(server) => {
                assert!(refused_count > 0);
                return works(server, &format!("{limit} processes"));
            }
            Err(refused) => check_line(&refused, &["thread", "`ulimit -u`", "TasksMax="]),
        }
    }
    panic!("no limit is high enough");
}

#[test]
fn file_sizes() {
    // With a new database.
    let directory = Arc::new(tempfile::tempdir().expect("temporary directory"));
    let mut limits = [1, 63, 64, 4095].into_iter().chain((1..).map(|pages| pages * PAGE_BYTES));
    let server = loop {
        match start_within(&format!("--fsize={}", limits.next().expect("endless")), &directory) {
            Ok(server) => break server,
            Err(refused) => {
                check_line(&refused, &["cannot write configurations.db", "file size limit", "LimitFSIZE="]);
            }
        }
    };
    drop(server);

    // With an existing database, which is always readable.
    let mut server = Server::start();
    assert_eq!(server.create("kept", "1").status, 201);
    server.kill();
    let directory = Arc::clone(&server.directory);
    for limit in [1, 64, 4096, 20_000, 32_768, 65_536, 200_000] {
        let mut server = start_within(&format!("--fsize={limit}"), &directory).expect("the server starts");
        assert_eq!(server.value("kept"), "1", "{limit}");
        let large = server.create("large", &format!("\"{}\"", "x".repeat(300_000)));
        check_no_room(&server, &large);
        eventually("the limit is named", || server.log().contains("LimitFSIZE="));
        assert!(server.stop().success(), "{limit}: {}", server.log());
    }
    works(Launch::at(directory).start(), "without a limit");
}

fn check_no_room(server: &Server, refused: &Response) {
    assert_eq!(refused.status, 507, "{refused:?}");
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    for target in ["/health", "/ready"] {
        let response = server.get(target);
        assert_eq!(response.status, 503, "{target}: {response:?}");
        assert!(response.text().contains("no space is left to write"), "{target}: {response:?}");
    }
    eventually("it is logged", || server.log().contains("no space for writes, serving reads only"));
}

/// A small dedicated file system, unmounted when the test ends.
struct SmallDisk(Arc<tempfile::TempDir>);

impl SmallDisk {
    fn mount(options: &str) -> Option<Self> {
        let directory = tempfile::tempdir().expect("temporary directory");
        let options = format!("{options},mode=0700");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(directory.path())
            .output()
            .is_ok_and(|output| output.status.success());
        if !mounted {
            skipped("mounting a tmpfs is not permitted here");
        }
        mounted.then(|| Self(Arc::new(directory)))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Fills the file system until this many pages are free.
    fn fill(&self, pages_left: u64) {
        let filler = File::create(self.path().join("filler")).expect("an inode");
        let taken = self.pages_free().saturating_sub(pages_left);
        if taken > 0 {
            fallocate(&filler, FallocateFlags::empty(), 0, taken * PAGE_BYTES).expect("space is left");
        }
        assert_eq!(self.pages_free(), pages_left);
    }

    fn pages_free(&self) -> u64 {
        statvfs(self.path()).expect("mounted").f_bavail
    }

    fn empty(&self) {
        fs::remove_file(self.path().join("filler")).expect("exists");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(self.path()).status().ok();
    }
}

/// Copies the files that a server has left behind, with or without the reserve.
fn copy_files(from: &Path, to: &Path, with_reserve: bool) {
    for entry in fs::read_dir(to).expect("readable").flatten() {
        fs::remove_file(entry.path()).expect("created by this test");
    }
    for entry in fs::read_dir(from).expect("readable").flatten() {
        let name = entry.file_name();
        if with_reserve || !name.to_string_lossy().ends_with("-reserve") {
            fs::copy(entry.path(), to.join(name)).expect("space is left");
        }
    }
}

/// Checks that after a stop or a kill, with any amount of free space, the server serves its entries. Writes succeed or
/// are refused, and acknowledged writes are stored.
fn check_full_disk(is_killed: bool, with_reserve: bool) {
    let Some(disk) = SmallDisk::mount("size=4m") else { return };
    let mut server = Server::start();
    for number in 0..10 {
        assert_eq!(server.create(&format!("k{number}"), &format!("\"{}\"", "x".repeat(2000))).status, 201);
    }
    match is_killed {
        true => server.kill(),
        false => assert!(server.stop().success()),
    }
    for pages in 0..=64 {
        copy_files(server.directory.path(), disk.path(), with_reserve);
        disk.fill(pages);
        let mut full = Launch::at(Arc::clone(&disk.0)).start();
        assert_eq!(full.value("k3").len(), 2002, "{pages}");
        assert_eq!(full.get("/configs").status, 200, "{pages}");
        let written = full.create("new", "1").status;
        assert!([201, 507].contains(&written), "{pages}: {written}");
        let large = full.create("large", &format!("\"{}\"", "x".repeat(400_000)));
        check_no_room(&full, &large);
        if with_reserve {
            for number in 0..10 {
                let deleted = full.send("DELETE", &format!("/configs/k{number}"), USER_KEY, None);
                assert_eq!(deleted.status, 200, "{pages}, {number}: {deleted:?}");
            }
        }
        disk.empty();
        if pages % 32 == 0 {
            // The server recovers on its own, without a write.
            eventually("it recovers", || full.get("/ready").status == 200);
        }
        assert_eq!(full.create("after", "1").status, 201, "{pages}");
        assert!(full.stop().success(), "{pages}: {}", full.log());
        let again = Launch::at(Arc::clone(&disk.0)).start();
        assert_eq!(again.get("/configs/new").status, if written == 201 { 200 } else { 404 }, "{pages}");
        assert_eq!(again.value("after"), "1", "{pages}");
    }
}

#[test]
fn a_full_disk_after_a_stop() {
    check_full_disk(false, true);
}

#[test]
fn a_full_disk_after_a_kill() {
    check_full_disk(true, true);
}

#[test]
fn a_full_disk_without_a_reserve() {
    check_full_disk(false, false);
}

#[test]
fn a_new_database_on_a_full_disk_is_refused() {
    let Some(disk) = SmallDisk::mount("size=1m") else { return };
    disk.fill(0);
    let refused = Launch::at(Arc::clone(&disk.0)).try_start().err().expect("the start must fail");
    check_line(&refused, &["cannot write", "configurations.db", "0 bytes left: make room"]);
    disk.empty();
    works(Launch::at(Arc::clone(&disk.0)).start(), "after space was freed");
}

/// The WAL never grows so large that it could not be emptied into the database.
#[test]
fn entries_can_be_deleted_after_the_server_has_filled_the_disk() {
    let Some(disk) = SmallDisk::mount("size=8m") else { return };
    let server = Launch::at(Arc::clone(&disk.0)).start();
    let value = format!("\"{}\"", "x".repeat(50_000));
    let mut keys = Vec::new();
    let refused = loop {
        let key = format!("k{}", keys.len());
        let response = server.create(&key, &value);
        if response.status != 201 {
            break response;
        }
        keys.push(key);
    };
    check_no_room(&server, &refused);
    // Entries use more than half of the disk.
    assert!(keys.len() > 80, "{}", keys.len());
    for key in &keys {
        assert_eq!(server.value(key), value, "{key}");
        assert_eq!(server.send("DELETE", &format!("/configs/{key}"), USER_KEY, None).status, 200, "{key}");
    }
    works(server, "after all entries were deleted");
}

#[test]
fn the_log_goes_to_standard_error_while_its_file_system_is_full() {
    let Some(disk) = SmallDisk::mount("size=1m,nr_inodes=4") else { return };
    let fillers: Vec<_> = (0..3).map(|index| disk.path().join(format!("filler{index}"))).collect();
    for filler in &fillers {
        File::create(filler).expect("space is left");
    }
    let path = disk.path().join("osc.log");
    let mut server = Launch::new().set("OSC_LOG_FILE", path.to_str().expect("UTF-8")).start();
    assert!(server.log().contains("cannot write to the log file"), "{}", server.log());
    assert_eq!(server.create("k", "1").status, 201);
    for filler in &fillers {
        fs::remove_file(filler).expect("removed");
    }
    eventually("the log is in the file", || {
        server.get("/nowhere");
        fs::read_to_string(&path).is_ok_and(|text| text.contains("/nowhere"))
    });
    assert!(server.stop().success());
}

#[test]
fn inodes() {
    let Some(disk) = SmallDisk::mount("size=4m,nr_inodes=24") else { return };
    let mut server = Launch::at(Arc::clone(&disk.0)).start();
    assert_eq!(server.create("kept", "1").status, 201);
    assert!(server.stop().success());
    let names = (0..).map(|number| disk.path().join(format!("filler{number}")));
    let fillers: Vec<_> = names.take_while(|name| File::create(name).is_ok()).collect();
    assert!(!fillers.is_empty());
    for filler in &fillers {
        match Launch::at(Arc::clone(&disk.0)).try_start() {
            Ok(server) => {
                assert_eq!(server.value("kept"), "1");
                assert!([201, 507].contains(&server.create("new", "1").status));
                return;
            }
            Err(refused) => check_line(&refused, &["no inode left"]),
        }
        fs::remove_file(filler).expect("exists");
    }
    panic!("no number of inodes is enough");
}
