//! Engine selection, and the diagnostics where io_uring is unavailable.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

use crate::support::{Launch, Refused, Server};

/// System call numbers of io_uring, the same on every architecture.
const SETUP: i64 = 425;
const ENTER: i64 = 426;
const REGISTER: i64 = 427;
const ALL: [i64; 3] = [SETUP, ENTER, REGISTER];

const EPERM: SeccompAction = SeccompAction::Errno(1);
const ENOSYS: SeccompAction = SeccompAction::Errno(38);

/// Starts a server for which `action` applies to these system calls. A seccomp filter covers the thread that installs
/// it and everything that the thread starts.
pub(crate) fn start_without(calls: &[i64], action: SeccompAction, launch: Launch) -> Result<Server, Refused> {
    let rules: BTreeMap<i64, Vec<_>> = calls.iter().map(|call| (*call, Vec::new())).collect();
    let arch = std::env::consts::ARCH.try_into().expect("seccomp supports the architecture");
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, arch).expect("a filter");
    let program: BpfProgram = filter.try_into().expect("a filter");
    thread::scope(|scope| {
        let starting = scope.spawn(|| {
            apply_filter(&program).expect("the filter can be applied");
            launch.try_start()
        });
        starting.join().expect("no panic")
    })
}

fn on(engine: &str) -> Launch {
    Launch::new().set("OSC_ENGINE", engine)
}

fn warnings(log: &str) -> Vec<&str> {
    log.lines().filter(|line| line.contains("WARN")).collect()
}

/// Checks that the server works on this engine and exits cleanly.
fn serves(mut server: Server, engine: &str) {
    assert!(server.log().contains(&format!(" engine={engine}\n")), "{}", server.log());
    assert!(server.get("/health").text().contains(&format!(r#""engine":"{engine}""#)));
    assert_eq!(server.create("k", "1").status, 201);
    assert_eq!(server.value("k"), "1");
    assert!(server.stop().success(), "{}", server.log());
}

#[test]
fn epoll_is_used_where_io_uring_is_forbidden() {
    for (calls, action, failed) in [
        (&ALL[..], EPERM, "io_uring_setup: Operation not permitted"),
        (&ALL, ENOSYS, "io_uring_setup: Function not implemented"),
        (&[ENTER], EPERM, "io_uring_enter: Operation not permitted"),
        (&[REGISTER], EPERM, "io_uring_register: Operation not permitted"),
    ] {
        let text = ["a seccomp filter forbids io_uring", failed, "deploy/seccomp-io_uring.json"];
        let server = start_without(calls, action.clone(), on("auto")).expect("the server starts");
        let log = server.log();
        let warnings = warnings(&log);
        assert!(warnings.len() == 1 && text.iter().all(|text| warnings[0].contains(text)), "{log}");
        serves(server, "epoll");

        let Refused { status, log } =
            start_without(calls, action, on("uring")).err().expect("the start must fail");
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(text.iter().all(|text| log.contains(text)) && !log.contains("panicked"), "{log}");
    }
}

#[test]
fn the_epoll_engine_does_not_touch_io_uring() {
    let server = start_without(&ALL, SeccompAction::KillProcess, on("epoll")).expect("the server starts");
    assert!(warnings(&server.log()).is_empty(), "{}", server.log());
    serves(server, "epoll");
}

#[test]
fn io_uring_is_used_where_available() {
    for engine in ["auto", "uring"] {
        let server = on(engine).start();
        assert!(warnings(&server.log()).is_empty(), "{}", server.log());
        serves(server, "uring");
    }
}

#[test]
fn check_config_shows_the_effective_engine() {
    for (engine, effect) in [("auto", "uring"), ("epoll", "epoll")] {
        let output = on(engine).command().arg("check-config").output().expect("the binary starts");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains(&format!("OSC_ENGINE={engine}\n")), "{text}");
        assert!(text.ends_with(&format!("\n# engine on this machine: {effect}\n")), "{text}");
    }
}

/// A command that starts the server with this limit of locked memory and without the capability to exceed it.
fn with_locked_memory(kib: u32, launch: &Launch) -> Command {
    let inner = launch.command();
    let program = inner.get_program().to_str().expect("a plain path");
    let privileges =
        if may_exceed_limits() { "setpriv --bounding-set=-ipc_lock --inh-caps=-ipc_lock" } else { "" };
    let mut limited = Command::new("sh");
    limited.args(["-c", &format!("ulimit -l {kib} && exec {privileges} {program}")]);
    limited.current_dir(launch.directory.path());
    limited.envs(inner.get_envs().filter_map(|(name, value)| value.map(|value| (name, value))));
    limited
}

/// Whether this process has `CAP_IPC_LOCK`, as root does.
fn may_exceed_limits() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let capabilities =
        status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).expect("every process has CapEff");
    u64::from_str_radix(capabilities, 16).expect("hexadecimal") & 1 << 14 != 0
}

#[test]
fn a_shortage_of_locked_memory_causes_no_fallback() {
    for engine in ["auto", "uring"] {
        let launch = on(engine);
        let begun = Instant::now();
        let refused = Server::spawn(&mut with_locked_memory(0, &launch), Arc::clone(&launch.directory));
        let Refused { status, log } = refused.err().expect("the start must fail");
        assert!(begun.elapsed() > Duration::from_secs(2), "the start is retried for a while");
        assert_eq!(status.code(), Some(1), "{log}");
        let text =
            ["io_uring cannot lock memory", "the limit is 0 KiB", "--ulimit memlock=", "LimitMEMLOCK="];
        assert!(text.iter().all(|text| log.contains(text)), "{log}");
    }
    let launch = on("epoll");
    let server = Server::spawn(&mut with_locked_memory(0, &launch), Arc::clone(&launch.directory));
    serves(server.expect("the server starts"), "epoll");
}

/// The start waits for locked memory of an exited server that the kernel has not released yet.
#[test]
fn memory_of_an_exited_server_is_waited_for() {
    let launch = on("auto");
    // Enough for one executor.
    let mut command = with_locked_memory(600, &launch);
    let mut start = || Server::spawn(&mut command, Arc::clone(&launch.directory)).expect("the server starts");
    for _ in 0..5 {
        start().kill();
    }
    serves(start(), "uring");
    // A server whose start fails half-way exits with the reason. Some kernels charge so little for an executor that
    // eight of them fit.
    let launch = on("auto").set("OSC_WORKERS", "64");
    let refused = Server::spawn(&mut with_locked_memory(600, &launch), Arc::clone(&launch.directory));
    let Refused { status, log } = refused.err().expect("the start must fail");
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("executor") && log.contains("failed"), "{log}");
}

/// glommio reads the cores of the machine from `/sys` if it has to choose among them.
#[test]
fn sys_is_not_required() {
    let without = || {
        let mut command = Command::new("unshare");
        command.arg("--mount");
        // In a user namespace the locked memory of root counts, too, and the test above uses it up.
        if !may_exceed_limits() {
            command.args(["--user", "--map-root-user"]);
        }
        command.args(["sh", "-c", "mount -t tmpfs none /sys && exec \"$0\""]);
        command
    };
    if !without().arg("true").status().is_ok_and(|status| status.success()) {
        // Not permitted in most containers. Written to the stream, because the harness captures `eprintln!`.
        writeln!(io::stderr(), "skipped: cannot create a mount namespace without /sys").ok();
        return;
    }
    let launch = on("auto");
    let inner = launch.command();
    let mut without = without();
    without.arg(inner.get_program()).current_dir(launch.directory.path());
    without.envs(inner.get_envs().filter_map(|(name, value)| value.map(|value| (name, value))));
    let server = Server::spawn(&mut without, Arc::clone(&launch.directory)).expect("the server starts");
    serves(server, "uring");
}
