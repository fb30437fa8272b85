//! Start, stop, and the command line.

use std::fs::File;
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::support::{Launch, Server, USER_KEY, request};

fn run(launch: &Launch, arguments: &[&str]) -> (Output, String) {
    let output = launch.command().args(arguments).output().expect("the binary starts");
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output, text)
}

#[test]
fn the_command_line() {
    let launch = Launch::new();
    let (output, text) = run(&launch, &["--version"]);
    assert!(
        output.status.success() && text.trim() == format!("opensecureconf {}", env!("CARGO_PKG_VERSION")),
        "{text}"
    );
    let (output, text) = run(&launch, &["--help"]);
    assert!(output.status.success() && text.contains("check-config") && text.contains(".env"), "{text}");
    let (output, text) = run(&launch, &["--nonsense"]);
    assert!(!output.status.success() && text.contains("--nonsense"), "{text}");
    let (output, text) = run(&launch, &["check-config"]);
    assert!(output.status.success() && text.contains("OSC_DATABASE_PATH=configurations.db"), "{text}");
    // Checking the settings creates no files.
    assert_eq!(std::fs::read_dir(launch.directory.path()).expect("readable").count(), 0);
}

#[test]
fn check_config_hides_secrets() {
    let launch = Launch::new().set("OSC_API_KEY_REQUIRED", "true").set("OSC_API_KEY", "canary-api-key");
    let (output, text) = run(&launch, &["check-config"]);
    assert!(output.status.success() && !text.contains("canary"), "{text}");
}

#[test]
fn all_setting_errors_are_reported_together() {
    let launch = Launch::new()
        .set("OSC_HOST", "not a host")
        .set("OSC_HOST_PORT", "tcp://10.0.0.7:9000")
        .set("OSC_WORKERS", "0")
        .set("OSC_MIN_USER_KEY_LENGTH", "-1")
        .set("OSC_API_KEY_REQUIRED", "true")
        .set("OSC_API_KEY", "your-super-secret-api-key-here")
        .set("OSC_CLUSTER_ENABLED", "maybe");
    for arguments in [&[][..], &["serve"], &["check-config"]] {
        let (output, text) = run(&launch, arguments);
        assert_eq!(output.status.code(), Some(2), "{text}");
        for name in [
            "OSC_HOST:",
            "OSC_HOST_PORT:",
            "OSC_WORKERS:",
            "OSC_MIN_USER_KEY_LENGTH:",
            "OSC_API_KEY:",
            "OSC_CLUSTER_ENABLED:",
        ] {
            assert!(text.contains(name), "{name} is not in: {text}");
        }
    }
}

/// At boot the network may come up later: a supervisor retries after exit code 1, but not after 2.
#[test]
fn an_unresolvable_name_is_a_retryable_error() {
    for setting in ["OSC_HOST", "OSC_ADMIN_LISTEN"] {
        let value = if setting == "OSC_HOST" { "no.such.host.invalid" } else { "no.such.host.invalid:9" };
        let launch = Launch::new().set(setting, value);
        let (output, text) = run(&launch, &[]);
        assert!(output.status.code() == Some(1) && text.contains("cannot be resolved"), "{setting}: {text}");
        let (output, text) = run(&launch.set("OSC_WORKERS", "0"), &[]);
        assert_eq!(output.status.code(), Some(2), "{setting}: {text}");
    }
}

/// Log output on a terminal.
#[test]
fn a_terminal_gets_colors_unless_disabled() {
    for (variables, has_color) in [
        (&[("TERM", "xterm")][..], true),
        (&[("TERM", "dumb")], false),
        (&[("TERM", "xterm"), ("NO_COLOR", "1")], false),
    ] {
        let launch = Launch::new();
        let mut command = launch.command();
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&terminal).expect("granted");
        unlockpt(&terminal).expect("unlocked");
        let name = ptsname(&terminal, Vec::new()).expect("a name");
        let end = File::options().read(true).write(true).open(name.to_str().expect("UTF-8")).expect("opened");
        command.env_remove("NO_COLOR").envs(variables.iter().copied()).stderr(end);
        let mut child = command.spawn().expect("the server starts");
        drop(command);
        let mut terminal = File::from(terminal);
        let (mut log, mut bytes) = (Vec::new(), [0; 4096]);
        while !String::from_utf8_lossy(&log).contains("server started") {
            let count = terminal.read(&mut bytes).expect("the server runs");
            log.extend_from_slice(&bytes[..count]);
        }
        child.kill().expect("the server runs");
        child.wait().expect("killed");
        assert_eq!(log.contains(&0x1b), has_color, "{variables:?}: {}", String::from_utf8_lossy(&log));
    }
}

#[test]
fn a_required_api_key_must_be_set_and_not_the_example() {
    for key in ["", "your-super-secret-api-key-here"] {
        let launch = Launch::new().set("OSC_API_KEY_REQUIRED", "true").set("OSC_API_KEY", key);
        let refused = launch.try_start().err().expect("the start must fail");
        assert!(refused.log.contains("OSC_API_KEY:"), "{}", refused.log);
    }
    let refused =
        Launch::new().set("OSC_API_KEY_REQUIRED", "true").try_start().err().expect("the start must fail");
    assert!(refused.log.contains("OSC_API_KEY:"), "{}", refused.log);
}

#[test]
fn a_non_loopback_address_without_a_key_causes_a_warning() {
    // `check-config` does not listen: tests stay on the loopback interface.
    let (_, text) = run(&Launch::new().set("OSC_HOST", "0.0.0.0"), &["check-config"]);
    assert!(
        text.contains("WARN") && text.contains("OSC_HOST") && text.contains("without requiring an API key"),
        "{text}"
    );
    let with_key = Launch::new()
        .set("OSC_HOST", "0.0.0.0")
        .set("OSC_API_KEY_REQUIRED", "true")
        .set("OSC_API_KEY", "a-really-long-api-key");
    for quiet in [Launch::new(), with_key] {
        assert!(!run(&quiet, &["check-config"]).1.contains("WARN"));
    }
}

#[test]
fn signals_stop_the_server_cleanly() {
    for signal in ["TERM", "INT"] {
        let mut server = Server::start();
        assert_eq!(server.create("k", "1").status, 201);
        let mut idle = server.connect();
        assert_eq!(idle.send("GET", "/cluster/health", &[], None).status, 200);
        let begun = Instant::now();
        server.signal(signal);
        assert_eq!(server.wait().code(), Some(0), "{}", server.log());
        assert!(begun.elapsed() < Duration::from_secs(5), "an idle connection does not delay the shutdown");
        assert_eq!(idle.rest(), b"", "closed without a response");
        // The last checkpoint left everything in the database itself.
        let wal = server.directory.path().join("configurations.db-wal");
        assert!(!wal.exists(), "the WAL is removed by a clean stop");
    }
}

#[test]
fn requests_in_flight_complete_before_shutdown() {
    let mut server = Server::start();
    assert_eq!(server.create("k", "1").status, 201);
    let mut clients: Vec<_> = (0..3).map(|_| server.connect()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        // A new user key for each, so that the response waits for a derivation.
        let user_key = format!("another-user-key-{number}");
        client.write(&request("GET", "/configs/k", &[("X-User-Key", &user_key)], None));
    }
    // They are in flight once a later request on the same executor has its response.
    assert_eq!(server.get("/configs/k").status, 200);
    server.signal("TERM");
    for client in &mut clients {
        let response = client.receive(false);
        assert_eq!(response.status, 401, "{response:?}");
        assert_eq!(client.rest(), b"", "then the connection closes");
    }
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn an_unfinished_request_does_not_block_the_shutdown() {
    let mut server = Server::start();
    let mut half = server.connect();
    half.write(b"POST /configs HTTP/1.1\r\nHost: x\r\nX-User-Key: 12345678\r\nContent-Length: 100\r\n\r\n{");
    server.get("/configs/nope");
    let begun = Instant::now();
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_second_signal_stops_the_server_immediately() {
    let mut server = Server::start();
    let mut half = server.connect();
    half.write(b"GET / HT");
    server.get("/configs/nope");
    server.signal("TERM");
    crate::support::eventually("the shutdown has begun", || server.log().contains("stopping"));
    server.signal("TERM");
    let status = server.wait();
    assert!(status.code() == Some(130) || status.code() == Some(0), "{status}");
    assert_eq!(status.signal(), None);
}

#[test]
fn a_port_in_use_is_refused() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("bound").port().to_string();
    let refused = Launch::new().set("OSC_HOST_PORT", &port).try_start().err().expect("the start must fail");
    assert!(
        refused.log.contains("cannot listen on") && refused.log.contains("OSC_HOST_PORT"),
        "{}",
        refused.log
    );

    // A second opensecureconf server on the port, which SO_REUSEPORT alone would allow.
    let first = Server::start();
    let port = first.address.port().to_string();
    let refused = Launch::new().set("OSC_HOST_PORT", &port).try_start().err().expect("the start must fail");
    assert!(refused.log.contains("cannot listen on"), "{}", refused.log);
}

/// A command that starts the server with this limit of open files.
pub(crate) fn with_descriptors(launch: &Launch, count: usize) -> Command {
    let inner = launch.command();
    let mut limited = Command::new("sh");
    limited
        .args(["-c", &format!("ulimit -n {count} && exec \"$0\"")])
        .arg(inner.get_program())
        .current_dir(launch.directory.path());
    limited.envs(inner.get_envs().filter_map(|(name, value)| value.map(|value| (name, value))));
    limited
}

/// However many connections there are, file descriptors are left to open files with.
#[test]
fn connections_leave_file_descriptors_for_the_database() {
    let launch = Launch::new().set("OSC_WORKERS", "1");
    let mut limited = with_descriptors(&launch, 128);
    let server = Server::spawn(&mut limited, Arc::clone(&launch.directory))
        .unwrap_or_else(|refused| panic!("{}: {}", refused.status, refused.log));
    assert!(server.log().contains("allows fewer connections than"), "{}", server.log());
    let mut first = server.connect();
    assert_eq!(first.send("GET", "/health", &[], None).status, 200);
    let mut more: Vec<_> = (0..100).map(|_| server.connect()).collect();
    let last = more.last_mut().expect("not empty").receive(false);
    assert_eq!(last.status, 503);
    let user = [("X-User-Key", USER_KEY)];
    let body = br#"{"key":"k","value":1}"#;
    assert_eq!(first.send("POST", "/configs", &user, Some(body)).status, 201);
    for target in ["/configs/k", "/configs", "/health", "/metrics"] {
        assert_eq!(first.send("GET", target, &user, None).status, 200, "{target}");
    }
    assert_eq!(first.send("DELETE", "/configs/k", &user, None).status, 200);
}

#[test]
fn more_executors_than_cores_serve_together() {
    let server = Launch::new().set("OSC_WORKERS", "7").start();
    assert!(server.log().contains("executors=7"), "{}", server.log());
    server.create("k", "1");
    thread::scope(|scope| {
        for _ in 0..28 {
            scope.spawn(|| {
                let mut client = server.connect();
                for _ in 0..20 {
                    let response = client.send("GET", "/configs/k", &[("X-User-Key", USER_KEY)], None);
                    assert_eq!(response.value(), "1");
                }
            });
        }
    });
}

#[test]
fn entries_ids_and_salt_survive_a_restart() {
    let server = Server::start();
    assert_eq!(server.create("k", "{\"a\":1}").status, 201);
    let salt = std::fs::read(server.salt()).expect("created");
    let server = server.restart();
    assert_eq!(server.get("/configs/k").text(), r#"{"id":1,"key":"k","category":null,"value":{"a":1}}"#);
    assert_eq!(std::fs::read(server.salt()).expect("exists"), salt);
}

/// The kernel frees the address of a process that used io_uring shortly after the process has exited.
#[test]
fn a_killed_server_can_be_restarted_immediately() {
    let first = Launch::new();
    let directory = Arc::clone(&first.directory);
    let mut server = first.start();
    let port = server.address.port().to_string();
    for round in 0..10 {
        server.kill();
        let again = Launch::at(Arc::clone(&directory)).set("OSC_HOST_PORT", &port).try_start();
        server = again.unwrap_or_else(|refused| panic!("round {round}: {}", refused.log));
    }
}
