//! Where the log goes, and what it leaves as it is.

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
    let mut child = command.spawn().expect("it starts");
    eventually("it listens", || log().contains("listening"));
    terminate(&child);
    assert!(child.wait().expect("it ends").success());
    log()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn terminate(child: &std::process::Child) {
    let status = std::process::Command::new("kill").arg(child.id().to_string()).status();
    assert!(status.expect("kill is there").success());
}

#[test]
fn the_log_goes_to_a_file_of_the_day() {
    let launch = Launch::new();
    let directory = std::sync::Arc::clone(&launch.directory);
    let path = directory.path().join("osc.log");
    // Standard error has no line with the address then.
    let mut command = launch
        .set("OSC_LOG_FILE", path.to_str().expect("UTF-8"))
        .set("OSC_LOG_FORMAT", "json")
        .set("OSC_LOG_LEVEL", "DEBUG")
        .command();
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().expect("it starts");
    eventually("it listens", || fs::read_to_string(&path).is_ok_and(|text| text.contains("listening")));
    terminate(&child);
    let status = child.wait().expect("it ends");
    assert!(status.success());
    assert!(path.symlink_metadata().expect("it is there").is_symlink());
    let text = fs::read_to_string(&path).expect("a file of today");
    assert!(text.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{text}");
    assert!(text.contains("stopped"), "{text}");
}

#[test]
fn a_file_that_is_no_link_stays_and_is_told_of() {
    let launch = Launch::new().set("OSC_LOG_FILE", "app.log");
    let directory = std::sync::Arc::clone(&launch.directory);
    fs::write(directory.path().join("app.log"), "old").expect("written");
    let mut child = launch.command().stderr(std::process::Stdio::null()).spawn().expect("it starts");
    let of_the_day = || {
        let entries = fs::read_dir(directory.path()).expect("readable").flatten();
        let mut found = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("app.log."));
        found.next().and_then(|entry| fs::read_to_string(entry.path()).ok()).unwrap_or_default()
    };
    eventually("it listens", || of_the_day().contains("listening"));
    assert!(of_the_day().contains("existing file kept"), "{}", of_the_day());
    terminate(&child);
    assert!(child.wait().expect("it ends").success());
    assert_eq!(fs::read_to_string(directory.path().join("app.log")).expect("there"), "old");
}

#[test]
fn a_log_that_cannot_be_written_is_a_refusal() {
    let launch = Launch::new();
    let refused = launch.set("OSC_LOG_FILE", "/proc/nowhere/osc.log").try_start();
    let refused = refused.map(|_| ()).expect_err("it must not start");
    assert_eq!(refused.status.code(), Some(1), "it may be there later: a supervisor tries again");
    assert!(refused.log.contains("cannot log to /proc/nowhere/osc.log"), "{}", refused.log);
    let launch = Launch::new();
    fs::create_dir(launch.directory.path().join("log")).expect("a directory");
    let refused = launch.set("OSC_LOG_FILE", "log").try_start().map(|_| ()).expect_err("it must not start");
    assert_eq!(refused.status.code(), Some(2));
    assert!(refused.log.contains("cannot log to log: is a directory"), "{}", refused.log);
}

#[test]
fn a_foreign_link_is_written_through() {
    for is_there in [true, false] {
        let launch = Launch::new().set("OSC_LOG_FILE", "osc.log");
        let (link, target) =
            (launch.directory.path().join("osc.log"), launch.directory.path().join("target"));
        if is_there {
            fs::write(&target, "old\n").expect("written");
        }
        symlink("target", &link).expect("linked");
        let log = run(&launch, || read(&target));
        assert_eq!(log.starts_with("old\n"), is_there, "{log}");
        assert_eq!(fs::read_link(&link).expect("a link"), Path::new("target"));
        let names = fs::read_dir(launch.directory.path()).expect("readable").flatten();
        assert_eq!(
            names.filter(|entry| entry.file_name().to_string_lossy().starts_with("osc.log")).count(),
            1
        );
    }
}

#[test]
fn what_is_there_is_written_to_and_not_replaced() {
    let launch = Launch::new().set("OSC_LOG_FILE", "pipe");
    let (pipe, link) = (launch.directory.path().join("pipe"), launch.directory.path().join("link"));
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo is there").success());
    symlink("pipe", &link).expect("linked");
    for name in ["pipe", "link"] {
        // One that holds it open for reading keeps what was written until it is read.
        let mut reader = Command::new("cat").arg(&pipe).stdout(Stdio::piped()).spawn().expect("cat is there");
        let copy = launch.directory.path().join(format!("copy of {name}"));
        let mut from = reader.stdout.take().expect("piped");
        let mut to = File::create(&copy).expect("made");
        let copying = std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        let launch = Launch::at(Arc::clone(&launch.directory)).set("OSC_LOG_FILE", name);
        run(&launch, || read(&copy));
        reader.wait().expect("it ends with the server");
        copying.join().expect("no panic").expect("copied");
        assert!(read(&copy).contains("stopped"), "{}", read(&copy));
    }
    assert!(pipe.symlink_metadata().expect("there").file_type().is_fifo());
    assert_eq!(fs::read_link(&link).expect("a link"), Path::new("pipe"));
}

/// As a container would have it; standard output may be a socket, which cannot be opened again.
#[test]
fn standard_output_is_a_log_file() {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let launch = Launch::new().set("OSC_LOG_FILE", "/dev/stdout");
    let before = fs::read_link("/dev/stdout").expect("a link");
    let copy = launch.directory.path().join("copy");
    let mut to = File::create(&copy).expect("made");
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
fn the_link_of_an_earlier_day_moves_on() {
    let launch = Launch::new().set("OSC_LOG_FILE", "osc.log");
    let directory = fs::canonicalize(launch.directory.path()).expect("there");
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
        // Its "listening" would otherwise count for the next start.
        fs::remove_file(directory.join(now)).expect("it is there");
    }
    assert!(!directory.join("osc.log.2020-01-02").exists());
}

#[test]
fn others_cannot_read_the_log_whatever_the_umask_is() {
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
    assert_eq!(link.metadata().expect("there").permissions().mode() & 0o777, 0o640);
}
