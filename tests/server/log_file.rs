//! Destinations of the log, and the files that logging leaves unchanged.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::support::{Launch, eventually};

/// Starts the server, waits until `log` says that it listens, and stops it. Returns the log.
fn run(launch: &Launch, log: impl Fn() -> String) -> String {
    run_with(launch.command().stderr(Stdio::null()), log)
}

fn run_with(command: &mut Command, log: impl Fn() -> String) -> String {
    let mut child = command.spawn().expect("the server starts");
    eventually("the server listens", || log().contains("listening"));
    terminate(&child);
    assert!(child.wait().expect("the process exits").success());
    log()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn terminate(child: &std::process::Child) {
    let status = std::process::Command::new("kill").arg(child.id().to_string()).status();
    assert!(status.expect("kill is installed").success());
}

#[test]
fn the_log_goes_to_a_daily_file() {
    let launch = Launch::new();
    let directory = std::sync::Arc::clone(&launch.directory);
    let path = directory.path().join("osc.log");
    // Standard error then has no line with the address.
    let mut command = launch
        .set("OSC_LOG_FILE", path.to_str().expect("UTF-8"))
        .set("OSC_LOG_FORMAT", "json")
        .set("OSC_LOG_LEVEL", "DEBUG")
        .command();
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().expect("the server starts");
    eventually("the server listens", || {
        fs::read_to_string(&path).is_ok_and(|text| text.contains("listening"))
    });
    terminate(&child);
    let status = child.wait().expect("the process exits");
    assert!(status.success());
    assert!(path.symlink_metadata().expect("exists").is_symlink());
    let text = fs::read_to_string(&path).expect("the file of today");
    assert!(text.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{text}");
    assert!(text.contains("stopped"), "{text}");
}

#[test]
fn an_existing_regular_file_is_kept_and_reported() {
    let launch = Launch::new().set("OSC_LOG_FILE", "app.log");
    let directory = std::sync::Arc::clone(&launch.directory);
    fs::write(directory.path().join("app.log"), "old").expect("written");
    let mut child = launch.command().stderr(std::process::Stdio::null()).spawn().expect("the server starts");
    let daily_log = || {
        let entries = fs::read_dir(directory.path()).expect("readable").flatten();
        let mut found = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("app.log."));
        found.next().and_then(|entry| fs::read_to_string(entry.path()).ok()).unwrap_or_default()
    };
    eventually("the server listens", || daily_log().contains("listening"));
    assert!(daily_log().contains("existing file kept"), "{}", daily_log());
    terminate(&child);
    assert!(child.wait().expect("the process exits").success());
    assert_eq!(fs::read_to_string(directory.path().join("app.log")).expect("exists"), "old");
}

#[test]
fn the_start_fails_if_the_log_cannot_be_written() {
    let launch = Launch::new();
    let refused = launch.set("OSC_LOG_FILE", "/proc/nowhere/osc.log").try_start();
    let refused = refused.map(|_| ()).expect_err("the start must fail");
    assert_eq!(refused.status.code(), Some(1), "the directory may appear later: a supervisor retries");
    assert!(refused.log.contains("cannot log to /proc/nowhere/osc.log"), "{}", refused.log);
    let launch = Launch::new();
    fs::create_dir(launch.directory.path().join("log")).expect("a directory");
    let refused = launch.set("OSC_LOG_FILE", "log").try_start().map(|_| ()).expect_err("the start must fail");
    assert_eq!(refused.status.code(), Some(2));
    assert!(refused.log.contains("cannot log to log: is a directory"), "{}", refused.log);
}

#[test]
fn a_foreign_link_is_written_through() {
    for target_exists in [true, false] {
        let launch = Launch::new().set("OSC_LOG_FILE", "osc.log");
        let (link, target) =
            (launch.directory.path().join("osc.log"), launch.directory.path().join("target"));
        if target_exists {
            fs::write(&target, "old\n").expect("written");
        }
        symlink("target", &link).expect("linked");
        let log = run(&launch, || read(&target));
        assert_eq!(log.starts_with("old\n"), target_exists, "{log}");
        assert_eq!(fs::read_link(&link).expect("a link"), Path::new("target"));
        let names = fs::read_dir(launch.directory.path()).expect("readable").flatten();
        assert_eq!(
            names.filter(|entry| entry.file_name().to_string_lossy().starts_with("osc.log")).count(),
            1
        );
    }
}

#[test]
fn existing_pipes_and_links_are_written_to_and_not_replaced() {
    let launch = Launch::new().set("OSC_LOG_FILE", "pipe");
    let (pipe, link) = (launch.directory.path().join("pipe"), launch.directory.path().join("link"));
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo is installed").success());
    symlink("pipe", &link).expect("linked");
    for name in ["pipe", "link"] {
        // A reader that holds the pipe open keeps what was written until it is read.
        let mut reader =
            Command::new("cat").arg(&pipe).stdout(Stdio::piped()).spawn().expect("cat is installed");
        let copy = launch.directory.path().join(format!("copy of {name}"));
        let mut from = reader.stdout.take().expect("piped");
        let mut to = File::create(&copy).expect("created");
        let copying = std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        let launch = Launch::at(Arc::clone(&launch.directory)).set("OSC_LOG_FILE", name);
        run(&launch, || read(&copy));
        reader.wait().expect("the reader exits with the server");
        copying.join().expect("no panic").expect("copied");
        assert!(read(&copy).contains("stopped"), "{}", read(&copy));
    }
    assert!(pipe.symlink_metadata().expect("exists").file_type().is_fifo());
    assert_eq!(fs::read_link(&link).expect("a link"), Path::new("pipe"));
}

/// As in a container. Standard output may be a socket, which cannot be opened again.
#[test]
fn standard_output_can_be_the_log_file() {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let launch = Launch::new().set("OSC_LOG_FILE", "/dev/stdout");
    let before = fs::read_link("/dev/stdout").expect("a link");
    let copy = launch.directory.path().join("copy");
    let mut to = File::create(&copy).expect("created");
    let copying = std::thread::spawn(move || std::io::copy(&mut &ours, &mut to));
    let mut command = launch.command();
    command.stderr(Stdio::null()).stdout(Stdio::from(std::os::fd::OwnedFd::from(theirs)));
    run_with(&mut command, || read(&copy));
    drop(command);
    copying.join().expect("no panic").expect("copied");
    assert!(read(&copy).contains("stopped"), "{}", read(&copy));
    assert_eq!(fs::read_link("/dev/stdout").expect("a link"), before);
}

#[test]
fn the_link_of_an_earlier_day_is_updated() {
    let launch = Launch::new().set("OSC_LOG_FILE", "osc.log");
    let directory = fs::canonicalize(launch.directory.path()).expect("exists");
    let link = directory.join("osc.log");
    for target in [
        Path::new("osc.log.2020-01-02"),
        &directory.join("osc.log.2020-01-02"),
        Path::new("./osc.log.2020-01-02"),
    ] {
        fs::remove_file(&link).ok();
        symlink(target, &link).expect("linked");
        run(&launch, || read(&link));
        let now = fs::read_link(&link).expect("a link");
        assert!(now != target && now.to_str().expect("UTF-8").starts_with("osc.log.2"), "{now:?}");
        // Its listening line would otherwise satisfy the wait of the next start.
        fs::remove_file(directory.join(now)).expect("exists");
    }
    assert!(!directory.join("osc.log.2020-01-02").exists());
}

#[test]
fn the_log_is_private_whatever_the_umask() {
    let launch = Launch::new().set("OSC_LOG_FILE", "osc.log");
    let link = launch.directory.path().join("osc.log");
    let inner = launch.command();
    let mut command = Command::new("sh");
    command
        .args(["-c", "umask 0; exec \"$0\""])
        .arg(inner.get_program())
        .current_dir(launch.directory.path());
    command.envs(inner.get_envs().filter_map(|(name, value)| value.map(|value| (name, value))));
    run_with(command.stderr(Stdio::null()), || read(&link));
    assert_eq!(link.metadata().expect("exists").permissions().mode() & 0o777, 0o640);
}
