//! Notifications to systemd, the settings file, which is read again, and the log line of the start.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{Launch, PATIENCE, Server, eventually};

/// Notification socket of a service manager.
struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    fn at(launch: &Launch) -> Self {
        let socket = UnixDatagram::bind(launch.directory.path().join("notify")).expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("the timeout can be set");
        Self { socket }
    }

    fn message(&self) -> String {
        let mut bytes = [0; 4096];
        let count = self.socket.recv(&mut bytes).expect("a message");
        String::from_utf8(bytes[..count].to_vec()).expect("UTF-8")
    }

    /// Returns the next message other than a watchdog ping.
    fn report(&self) -> String {
        loop {
            let message = self.message();
            if !message.contains("WATCHDOG=1") {
                return message;
            }
        }
    }
}

fn start_notifying(launch: &Launch, watchdog: Option<Duration>) -> Server {
    let mut command = launch.command();
    command.env("NOTIFY_SOCKET", launch.directory.path().join("notify"));
    if let Some(watchdog) = watchdog {
        command.env("WATCHDOG_USEC", watchdog.as_micros().to_string());
    }
    Server::spawn(&mut command, Arc::clone(&launch.directory)).expect("the server starts")
}

fn monotonic_usec(message: &str) -> i128 {
    let line = message.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
    line.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("MONOTONIC_USEC is missing: {message}"))
}

#[test]
fn readiness_reloads_and_shutdown_are_reported() {
    let launch = Launch::new();
    let manager = Manager::at(&launch);
    let mut server = start_notifying(&launch, None);
    let ready = manager.report();
    assert!(ready.contains("READY=1") && ready.contains("STATUS=serving /"), "{ready}");
    let mut before = 0;
    for settings in ["OSC_LOG_LEVEL=DEBUG\n", "OSC_LOG_LEVEL=LOUD\n"] {
        fs::write(launch.directory.path().join(".env"), settings).expect("written");
        server.signal("HUP");
        let reloading = manager.report();
        assert!(reloading.contains("RELOADING=1"), "{reloading}");
        let time = monotonic_usec(&reloading);
        assert!(time > before, "{time}");
        before = time;
        assert!(manager.report().contains("READY=1"), "{settings}");
    }
    assert!(server.stop().success());
    assert!(manager.report().contains("STOPPING=1"));
}

#[test]
fn the_watchdog_is_reset_while_the_executors_run() {
    let launch = Launch::new();
    let manager = Manager::at(&launch);
    let _server = start_notifying(&launch, Some(Duration::from_secs(2)));
    let mut pings = 0;
    while pings < 3 {
        pings += usize::from(manager.message().contains("WATCHDOG=1"));
    }
}

#[test]
fn a_settings_file_is_read_again() {
    let launch = Launch::new();
    let path = launch.directory.path().join("settings");
    fs::write(&path, "OSC_API_KEY_REQUIRED=true\nOSC_API_KEY=the-first-api-key\n").expect("written");
    // A `.env` file beside it does not count.
    fs::write(launch.directory.path().join(".env"), "OSC_HOST=no host\n").expect("written");
    let server = launch.set("OSC_ENV_FILE", path.to_str().expect("UTF-8")).start();
    let status = |key| server.connect().send("GET", "/cluster/status", &[("X-API-Key", key)], None).status;
    assert_eq!((status("the-first-api-key"), status("the-second-api-key")), (200, 403));
    fs::write(&path, "OSC_API_KEY_REQUIRED=true\nOSC_API_KEY=the-second-api-key\n").expect("written");
    server.signal("HUP");
    eventually("the second key is accepted", || status("the-second-api-key") == 200);
    assert_eq!(status("the-first-api-key"), 403);
}

#[test]
fn configuration_files_that_cannot_be_read_are_refused() {
    let refused = |launch: Launch, variable: &str, part: &str| {
        let refused = launch.try_start().err().unwrap_or_else(|| panic!("the server starts: {part}"));
        assert_eq!(refused.status.code(), Some(2), "{}", refused.log);
        let line = refused.log.lines().find(|line| line.starts_with(&format!("{variable}: ")));
        assert!(line.is_some_and(|line| line.contains(part)), "{part}: {}", refused.log);
    };
    let fifo = |path: &std::path::Path| {
        assert!(Command::new("mkfifo").arg(path).status().expect("mkfifo is installed").success());
    };
    type Make<'a> = &'a dyn Fn(&std::path::Path);
    let kinds: [(Make<'_>, &str); 4] = [
        (&|path| fifo(path), "is not a regular file"),
        (&|path| std::os::unix::fs::symlink("nowhere", path).expect("linked"), "a file that does not exist"),
        (&|path| fs::write(path, b"\xff\xfeO\0S\0C\0").expect("written"), "is UTF-16"),
        (&|path| fs::write(path, b"OSC_HOST=127.0.0.1\0\n").expect("written"), "contains a NUL character"),
    ];
    for (make, part) in kinds {
        let launch = Launch::new();
        make(&launch.directory.path().join(".env"));
        refused(launch, ".env", part);
        for (variable, switch) in
            [("OSC_API_KEY_FILE", "OSC_API_KEY_REQUIRED"), ("OSC_CLUSTER_SECRET_FILE", "OSC_CLUSTER_ENABLED")]
        {
            let launch = Launch::new().set(switch, "true").set(variable, "file");
            make(&launch.directory.path().join("file"));
            refused(launch, variable, part);
        }
        let launch = Launch::new().set("OSC_ENV_FILE", "file");
        make(&launch.directory.path().join("file"));
        refused(launch, "OSC_ENV_FILE", part);
    }
    for (variable, switch) in [("OSC_API_KEY_FILE", "OSC_API_KEY_REQUIRED"), ("OSC_ENV_FILE", "OSC_WORKERS")]
    {
        let value = if switch == "OSC_WORKERS" { "1" } else { "true" };
        let launch = Launch::new().set(switch, value).set(variable, "directory");
        fs::create_dir(launch.directory.path().join("directory")).expect("created");
        refused(launch, variable, "is a directory");
    }
    refused(Launch::new().set("OSC_ENV_FILE", "absent"), "OSC_ENV_FILE", "cannot be read: No such file");
    // A Python virtual environment may have this name.
    let launch = Launch::new();
    fs::create_dir(launch.directory.path().join(".env")).expect("created");
    let server = launch.start();
    assert!(server.log().contains(".env: is a directory"), "{}", server.log());
}

#[test]
fn suspicious_settings_cause_warnings() {
    let server = Launch::new()
        .set("OSC_API_KEY_REQUIRED", "true")
        .set("OSC_API_KEY", "\"k3y-in-quotes-of-an-env-file\"")
        .set("OSC_CLUSTER_NODES", "127.0.0.1:9")
        .set("OSC_SSL_CA_CERTS", "ca.pem")
        .start();
    let log = server.log();
    for part in [
        "OSC_API_KEY: the value begins and ends with a quote",
        "OSC_CLUSTER_NODES: set but not used, because OSC_CLUSTER_ENABLED is not true",
        "OSC_SSL_CA_CERTS: set but not used, because OSC_HTTPS_ENABLED is not true",
    ] {
        assert!(log.contains(part), "{part}: {log}");
    }
    assert!(!log.contains("k3y-in"), "{log}");
}

#[test]
fn one_line_reports_what_runs_and_where() {
    let server = Launch::new().start();
    let mut line = String::new();
    eventually("it is logged", || {
        let log = server.log();
        line = log.lines().find(|line| line.contains("server started")).unwrap_or_default().to_owned();
        !line.is_empty()
    });
    for part in [
        format!("version=\"{}\"", env!("CARGO_PKG_VERSION")),
        format!("url=\"http://{}\"", server.address),
        format!("database=\"{}\"", server.database().display()),
        format!("salt=\"{}\"", server.salt().display()),
        "engine=\"".to_owned(),
        "mode=\"single\"".to_owned(),
    ] {
        assert!(line.contains(&part), "{part}: {line}");
    }
}

/// A settings file that was never read before, or a misspelt path.
#[test]
fn new_files_beside_existing_ones_cause_a_warning() {
    let launch = Launch::new();
    let directory = Arc::clone(&launch.directory);
    let mut server = launch.start();
    assert_eq!(server.create("k", "1").status, 201);
    assert!(!server.log().contains("WARN"), "{}", server.log());
    assert!(server.stop().success());
    fs::create_dir(directory.path().join("data")).expect("created");
    let settings = "OSC_DATABASE_PATH=data/configurations.db\nOSC_SALT_FILE_PATH=data/encryption.salt\n";
    fs::write(directory.path().join(".env"), settings).expect("written");
    let mut server = Launch::at(Arc::clone(&directory)).start();
    let log = server.log();
    for (name, file) in
        [("OSC_DATABASE_PATH", "configurations.db"), ("OSC_SALT_FILE_PATH", "encryption.salt")]
    {
        let text = format!(
            "{name} (from the settings file): a new file will be created at data/{file}; {file} in the working \
             directory is not used"
        );
        assert!(log.contains(&text), "{log}");
    }
    assert_eq!(server.create("k", "2").status, 201);
    assert!(server.stop().success());
    // From then on they are what the operator wants.
    let server = Launch::at(Arc::clone(&directory)).start();
    assert!(!server.log().contains("WARN"), "{}", server.log());
}

/// As systemd passes them with `LoadCredential=`.
#[test]
fn credentials_are_named_by_their_directory() {
    let launch = Launch::new();
    let directory = launch.directory.path().join("credentials");
    fs::create_dir(&directory).expect("created");
    fs::write(directory.join("api-keys"), "an-api-key-from-a-credential\n").expect("written");
    let settings = "OSC_API_KEY_REQUIRED=true\nOSC_API_KEY_FILE=${CREDENTIALS_DIRECTORY}/api-keys\n";
    fs::write(launch.directory.path().join("settings"), settings).expect("written");
    let mut command = launch.command();
    command.env("OSC_ENV_FILE", "settings").env("CREDENTIALS_DIRECTORY", &directory);
    let server = Server::spawn(&mut command, Arc::clone(&launch.directory)).expect("the server starts");
    let mut client = server.connect();
    let user_key = ("X-User-Key", crate::support::USER_KEY);
    for (key, status) in [("an-api-key-from-a-credential", 404), ("another-api-key-of-that-length", 403)] {
        let response = client.send("GET", "/configs/k", &[("X-API-Key", key), user_key], None);
        assert_eq!(response.status, status, "{response:?}");
    }
}
