//! Incidents reported by operators of comparable servers, each turned into a test of its whole class.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use opensecureconf::limits::WAL_PAGES_MAX;

use crate::support::{Client, Launch, Refused, Server, USER_KEY, copy_files, eventually, request};

const KEY_HEADER: (&str, &str) = ("X-User-Key", USER_KEY);
const DATABASE: &str = "configurations.db";
const WAL: &str = "configurations.db-wal";
const SHM: &str = "configurations.db-shm";

fn refused(launch: Launch) -> Refused {
    launch.try_start().err().expect("the start must fail")
}

/// A free port below the range that the system assigns to outgoing connections.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 9000).expect("small");
    loop {
        let port = 20_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Row 1. A Service named `osc-host` injects an invalid `OSC_HOST_PORT`; others inject variables that are merely
/// unusual.
#[test]
fn variables_that_kubernetes_injects() {
    let fatal = refused(
        Launch::new()
            .set("OSC_HOST_PORT", "tcp://10.0.0.7:9000")
            .set("OSC_HOST_SERVICE_HOST", "10.0.0.7")
            .set("OSC_HOST_SERVICE_PORT", "9000")
            .set("OSC_HOST_PORT_9000_TCP_ADDR", "10.0.0.7"),
    );
    assert_eq!(fatal.status.code(), Some(2));
    for word in ["OSC_HOST_PORT:", "tcp://10.0.0.7:9000", "allowed: 1 to 65535", "enableServiceLinks"] {
        assert!(fatal.log.contains(word), "{word}: {}", fatal.log);
    }
    assert_eq!(
        fatal.log.matches("OSC_").count(),
        1,
        "one error, nothing about the other variables: {}",
        fatal.log
    );

    for service in ["OSC", "OSC_HOST", "OSC_WORKERS", "OSC_API", "OSC_CLUSTER", "OSC_API_KEY"] {
        let mut launch = Launch::new();
        for (suffix, value) in [
            ("SERVICE_HOST", "10.0.0.7"),
            ("SERVICE_PORT", "9000"),
            ("SERVICE_PORT_HTTP", "9000"),
            ("PORT", "tcp://10.0.0.7:9000"),
            ("PORT_9000_TCP", "tcp://10.0.0.7:9000"),
            ("PORT_9000_TCP_PROTO", "tcp"),
            ("PORT_9000_TCP_PORT", "9000"),
            ("PORT_9000_TCP_ADDR", "10.0.0.7"),
        ] {
            let name = format!("{service}_{suffix}");
            if name != "OSC_HOST_PORT" {
                launch = launch.set(&name, value);
            }
        }
        let server = launch.set("OSC_NO_SUCH_SETTING", "1").start();
        assert_eq!(server.get("/cluster/health").status, 200);
        let log = server.log();
        let warnings: Vec<_> = log.lines().filter(|line| line.contains("WARN")).collect();
        assert_eq!(warnings.len(), 1, "only the variable that was set by hand: {log}");
        assert!(warnings[0].contains("OSC_NO_SUCH_SETTING"), "{log}");
    }
}

/// Row 2. An editor's byte order mark or line endings must not disable authentication.
#[test]
fn every_line_of_a_dotenv_file_is_read() {
    let check = |text: &str| {
        let port = free_port();
        let launch = Launch::new();
        let text = text.replace("9321", &port.to_string());
        fs::write(launch.directory.path().join(".env"), &text).expect("writable");
        let mut command = launch.command();
        command.env_remove("OSC_HOST_PORT").env_remove("OSC_WORKERS");
        let server = Server::spawn(&mut command, Arc::clone(&launch.directory))
            .unwrap_or_else(|refused| panic!("{text:?}: {}", refused.log));
        assert_eq!(server.address.port(), port, "{text:?}");
        let with =
            |headers: &[(&str, &str)]| server.connect().send("GET", "/configs/none", headers, None).status;
        assert_eq!(server.connect().send("GET", "/", &[], None).status, 403, "{text:?}");
        let api = ("X-API-Key", "k3y-for-an-example");
        assert_eq!(with(&[api, ("X-User-Key", "elevenbytes")]), 401, "{text:?}");
        assert_eq!(with(&[api, ("X-User-Key", "twelve bytes")]), 404, "{text:?}");
        assert!(server.log().contains("executors=1"), "{text:?}: {}", server.log());
        assert!(!server.log().contains("WARN"), "{text:?}: {}", server.log());
    };
    let lines = [
        "OSC_API_KEY_REQUIRED=true",
        "OSC_API_KEY=k3y-for-an-example",
        "export OSC_HOST_PORT=9321",
        "OSC_MIN_USER_KEY_LENGTH=12",
        "OSC_WORKERS=1",
    ];
    let quoted = [
        "export OSC_API_KEY_REQUIRED = \"true\"",
        "# a comment",
        "",
        "OSC_API_KEY='k3y-for-an-example' # another",
        "OSC_HOST_PORT=\"9321\"",
        "  OSC_MIN_USER_KEY_LENGTH=12",
        "export\tOSC_WORKERS=1   ",
    ];
    let commented = [&["# the file of the production server"][..], &lines].concat();
    for lines in [&lines[..], &quoted, &commented] {
        for (mark, end) in [("\u{feff}", "\r\n"), ("", "\r\n"), ("\u{feff}", "\n"), ("", "\n")] {
            check(&format!("{mark}{}{end}", lines.join(end)));
        }
        check(&format!("\u{feff}{}", lines.join("\r\n")));
    }
}

/// Row 2. A file in an unsupported encoding is not treated as a file without settings.
#[test]
fn a_dotenv_file_that_is_not_utf_8_is_refused() {
    let text = "OSC_API_KEY_REQUIRED=true\r\nOSC_API_KEY=k3y-for-an-example\r\n";
    let wide: Vec<u16> = text.encode_utf16().collect();
    let little = [&[0xFF, 0xFE][..], &wide.iter().flat_map(|unit| unit.to_le_bytes()).collect::<Vec<_>>()];
    let big = [&[0xFE, 0xFF][..], &wide.iter().flat_map(|unit| unit.to_be_bytes()).collect::<Vec<_>>()];
    let latin1 = [&b"OSC_CLUSTER_NODE_ID=caf\xE9\r\n"[..], text.as_bytes()];
    for bytes in [little.concat(), big.concat(), latin1.concat()] {
        let launch = Launch::new();
        fs::write(launch.directory.path().join(".env"), bytes).expect("writable");
        let refused = refused(launch);
        assert!(refused.log.contains(".env"), "{}", refused.log);
        assert!(!refused.log.contains("k3y"), "{}", refused.log);
    }
}

/// Ten megabytes of zeros, compressed to thirteen kilobytes (RFC 1951, fixed codes: a zero, then copies of it).
fn zeros_gzipped() -> Vec<u8> {
    const COPIES: u32 = 38_760;
    let mut bits: Vec<u8> = vec![1, 1, 0];
    bits.extend([0, 0, 1, 1, 0, 0, 0, 0]);
    for _ in 0..COPIES {
        bits.extend([1, 1, 0, 0, 0, 1, 0, 1]);
        bits.extend([0, 0, 0, 0, 0]);
    }
    bits.extend([0; 7]);
    let mut bytes = b"\x1f\x8b\x08\0\0\0\0\0\x02\x03".to_vec();
    bytes.extend(
        bits.chunks(8).map(|byte| byte.iter().enumerate().fold(0, |sum, (at, bit)| sum | (bit << at))),
    );
    bytes.extend(0xE6F5_5D5A_u32.to_le_bytes());
    bytes.extend((1 + 258 * COPIES).to_le_bytes());
    bytes
}

fn peak_kibibytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the server runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel reports it");
    line.split_whitespace().next().and_then(|text| text.parse().ok()).expect("a number")
}

/// Row 7. A compressed body is neither decompressed nor parsed as JSON.
#[test]
fn compressed_bodies_are_refused_by_their_headers() {
    const GZIPPED: &[u8] =
        b"\x1f\x8b\x08\0\0\0\0\0\x02\x03\xabV\xcaN\xadT\xb2R\xcaV\xd2Q*K\xcc)MU\xb22\xac\x05\0\xfau\x81\xff\x15\0\0\0";
    let server = Server::start();
    assert_eq!(server.create("there", "1").status, 201);
    let zeros = zeros_gzipped();
    let plain = br#"{"key":"k","value":1}"#;
    let peak_before = peak_kibibytes(server.pid());
    let begun = Instant::now();
    for (method, target) in [("POST", "/configs"), ("PUT", "/configs/there"), ("POST", "/cluster/salt")] {
        for coding in [
            "gzip",
            "GZip",
            "x-gzip",
            "deflate",
            "br",
            "zstd",
            "gzip, identity",
            "identity, gzip",
            "nonsense",
        ] {
            for body in [GZIPPED, &zeros, plain] {
                let headers = [KEY_HEADER, ("Content-Encoding", coding)];
                let mut client = server.connect();
                // The server may respond and close the connection before it has read the whole body.
                client.stream.write_all(&request(method, target, &headers, Some(body))).ok();
                let response = client.receive(false);
                assert_eq!(response.status, 415, "{method} {coding}: {response:?}");
                assert_eq!(response.detail(), "Content-Encoding is not supported");
                assert_eq!(response.headers["accept-encoding"], "identity");
            }
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let grown = peak_kibibytes(server.pid()) - peak_before;
    assert!(grown < 8 * 1024, "{grown} KiB more");
    assert_eq!(server.get("/configs").text(), r#"[{"id":1,"key":"there","category":null,"value":1}]"#);

    for (number, coding) in ["identity", "Identity", ""].into_iter().enumerate() {
        let body = format!(r#"{{"key":"plain{number}","value":1}}"#);
        let headers = [KEY_HEADER, ("Content-Encoding", coding)];
        let response = server.connect().send("POST", "/configs", &headers, Some(body.as_bytes()));
        assert_eq!(response.status, 201, "{coding:?}: {response:?}");
    }
    // Where a body is ignored, its coding is ignored, too.
    let headers = [KEY_HEADER, ("Content-Encoding", "gzip")];
    assert_eq!(server.connect().send("GET", "/configs/there", &headers, Some(GZIPPED)).value(), "1");
}

/// Row 9. A proxy that filters `X-API-Key` must not be bypassed with the spelling `X_API_Key`.
#[test]
fn underscores_are_not_dashes_in_header_names() {
    let server = Launch::new().set("OSC_API_KEY_REQUIRED", "true").set("OSC_API_KEY", "right-key").start();
    let (dashed, wrong) = (("X-API-Key", "right-key"), ("X-API-Key", "wrong-key"));
    let (folded, folded_wrong) = (("X_API_Key", "right-key"), ("X_API_KEY", "wrong-key"));
    let mixed = ("X-API_Key", "right-key");
    let (user, folded_user) = (KEY_HEADER, ("X_User_Key", USER_KEY));
    for (headers, status) in [
        (&[folded, user][..], 403),
        (&[mixed, user], 403),
        (&[folded, wrong, user], 403),
        (&[wrong, folded, user], 403),
        (&[dashed, folded_wrong, user], 404),
        (&[folded_wrong, dashed, user], 404),
        (&[dashed, folded_user], 422),
        (&[dashed, ("X-User_Key", USER_KEY)], 422),
        (&[dashed, folded_user, ("X-User-Key", "short")], 401),
        (&[dashed, ("X_User_Key", "short"), user], 404),
        (&[("x-aPi-kEY", "right-key"), ("X-USER-KEY", USER_KEY)], 404),
    ] {
        let response = server.connect().send("GET", "/configs/k", headers, None);
        assert_eq!(response.status, status, "{headers:?}: {response:?}");
    }
    // The same holds for framing: treated as a dash, the underscore would let a request be smuggled past a proxy.
    let mut client = server.connect();
    let bytes = request("POST", "/configs", &[dashed, user, ("Content_Length", "0")], Some(b"{}"));
    client.write(&bytes);
    assert_eq!(client.receive(false).status, 422);
    assert_eq!(
        client.send("GET", "/configs/k", &[dashed, user], None).status,
        404,
        "the connection stays in sync"
    );
}

/// Row 10. Behind a TLS proxy, an absolute `http://` location makes clients drop their credentials.
#[test]
fn slash_redirects_are_relative() {
    let server = Launch::new().set("OSC_ALLOWED_HOSTS", "conf.example.org,test").start();
    let proxied = [
        KEY_HEADER,
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "evil.example"),
        ("Forwarded", "proto=https;host=evil.example"),
    ];
    let body = br#"{"key":"k","value":1}"#;
    for (method, target, location) in [
        ("GET", "/configs/", "/configs"),
        ("HEAD", "/configs/", "/configs"),
        ("POST", "/configs/", "/configs"),
        ("GET", "/configs/none/", "/configs/none"),
        ("PUT", "/configs/none/", "/configs/none"),
        ("DELETE", "/configs/none/", "/configs/none"),
        ("GET", "/cluster/health/", "/cluster/health"),
        ("GET", "/cluster/salt/", "/cluster/salt"),
    ] {
        let mut bytes = request(method, target, &proxied, matches!(method, "POST" | "PUT").then_some(body));
        let host = b"Host: test";
        let at = bytes.windows(host.len()).position(|window| window == host).expect("a Host field");
        bytes.splice(at..at + host.len(), *b"Host: conf.example.org");
        let mut client = server.connect();
        client.write(&bytes);
        let response = client.receive(method == "HEAD");
        assert_eq!((response.status, response.headers["location"].as_str()), (307, location), "{method}");
        assert!(!response.closes(), "the client follows on the same connection");
    }
    // A key that ends with a slash is served; without such an entry, its path redirects.
    assert_eq!(server.send("POST", "/configs", USER_KEY, Some(r#"{"key":"t/","value":1}"#)).status, 201);
    for (method, body) in [("GET", None), ("PUT", Some(r#"{"value":2}"#)), ("DELETE", None), ("GET", None)] {
        let there = server.send(method, "/configs/t/", USER_KEY, body).status;
        let expected = if method == "GET" && server.get("/configs").text() == "[]" { 307 } else { 200 };
        assert_eq!(there, expected, "{method}");
    }
}

/// Row 12. Numbers keep their text on every path and across a restart.
#[test]
fn numbers_keep_their_text_everywhere() {
    const NUMBERS: &str = r#"{"t":1749667779000,"n":123456789012345678901234567890,"z":-0,"e":81111e1,"f":1.0,"g":1E+2,"h":0.1000,"i":-0.0e-0,"j":18446744073709551616,"k":9007199254740993,"l":5e-324,"m":[1e-400,[10.10]]}"#;
    let mut server = Server::start();
    let entry = format!(r#"{{"id":1,"key":"k","category":null,"value":{NUMBERS}}}"#);
    for round in 0..2 {
        let written = match round {
            0 => server.create("k", NUMBERS),
            _ => server.update("k", NUMBERS),
        };
        assert_eq!(written.text(), entry);
        for _ in 0..2 {
            assert_eq!(server.get("/configs/k").text(), entry);
            assert_eq!(server.get("/configs").text(), format!("[{entry}]"));
            assert_eq!(server.get("/cluster/configs").text(), format!("[{entry}]"));
            server = server.restart();
        }
    }
    // A value that was read can be written back unchanged.
    let value = server.value("k");
    assert_eq!(server.update("k", &value).value(), NUMBERS);
    for top in ["1749667779000", "-0", "81111e1", "123456789012345678901234567890", "1.0"] {
        assert_eq!(server.update("k", top).value(), top);
        assert_eq!(server.value("k"), top);
    }

    // A row of the Python server, with numbers as Python formats them.
    let launch = Launch::new();
    let fixtures = std::env::var_os("OSC_TEST_FIXTURES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures"), Into::into);
    for (from, to) in [("v20.db", DATABASE), ("v20.salt", "encryption.salt")] {
        fs::copy(fixtures.join(from), launch.directory.path().join(to)).expect("fixture");
    }
    let server = launch.start();
    let python = r#"{"i":18446744073709551616,"f":1.0,"g":1e-07,"m":-0.0}"#;
    let alice = |method: &str, target: &str, body: Option<&str>| {
        server.send(method, target, "alice-user-key", body).text().to_owned()
    };
    assert!(alice("GET", "/configs/numbers", None).contains(python));
    assert!(alice("GET", "/configs", None).contains(python));
    assert!(alice("GET", "/cluster/configs", None).contains(python));
    let put = format!(r#"{{"value":{python}}}"#);
    assert!(alice("PUT", "/configs/numbers", Some(&put)).contains(python));
    assert!(alice("GET", "/configs/numbers", None).contains(python));
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

fn sockets(pid: u32) -> usize {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).expect("the server runs");
    let links = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
}

/// Row 20. A client that stops reading must not keep the WAL growing.
#[test]
fn stalled_clients_do_not_pin_the_wal() {
    const ENTRIES: usize = 160;
    const READERS: usize = 3;
    const WRITERS: usize = 4;
    const WRITES: u64 = 3000;
    // Each writer has at most one write in a transaction, so the slack is small.
    const WAL_BYTES_MAX: u64 = WAL_PAGES_MAX as u64 * (4096 + 24) + 4 * 1024 * 1024;

    let server = Server::start();
    let sockets_before = sockets(server.pid());
    let big = format!("\"{}\"", "x".repeat(128 * 1024));
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (server, big) = (&server, &big);
            scope.spawn(move || {
                for number in (writer..ENTRIES).step_by(WRITERS) {
                    assert_eq!(server.create(&format!("big{number}"), big).status, 201);
                }
            });
        }
    });
    for writer in 0..WRITERS {
        assert_eq!(server.create(&format!("w{writer}"), "0").status, 201);
    }
    eventually("the set-up connections are closed", || sockets(server.pid()) == sockets_before);
    let mut stalled: Vec<TcpStream> = (0..READERS)
        .map(|_| {
            let mut client = server.connect();
            client.write(&request("GET", "/configs", &[KEY_HEADER], None));
            client.stream.read_exact(&mut [0; 1024]).expect("the list begins");
            client.stream
        })
        .collect();

    let wal = server.directory.path().join(WAL);
    let (done, largest, shrinks) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (server, wal, done, largest, shrinks) = (&server, &wal, &done, &largest, &shrinks);
            scope.spawn(move || {
                let body = format!(r#"{{"value":"{}"}}"#, "y".repeat(10 * 1024));
                let target = format!("/configs/w{writer}");
                let (mut client, mut last) = (server.connect(), 0);
                while done.fetch_add(1, Ordering::Relaxed) < WRITES {
                    let response = client.send("PUT", &target, &[KEY_HEADER], Some(body.as_bytes()));
                    assert_eq!(response.status, 200, "{response:?}");
                    // The WAL is emptied after a response, so its largest size is visible here.
                    let now = size(wal);
                    largest.fetch_max(now, Ordering::Relaxed);
                    shrinks.fetch_add(u64::from(now < last), Ordering::Relaxed);
                    last = now;
                }
            });
        }
    });
    let (largest, shrinks) = (largest.into_inner(), shrinks.into_inner());
    assert!(largest < WAL_BYTES_MAX, "the WAL reached {largest} bytes");
    assert!(shrinks > 0, "the WAL was never emptied; it reached {largest} bytes");

    // The server does not wait for them indefinitely.
    eventually("the stalled clients are dropped", || sockets(server.pid()) <= sockets_before);
    for stream in &mut stalled {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).ok();
        assert!(!rest.ends_with(b"\r\n\r\n"), "the list did stall: {} bytes arrived", rest.len());
    }
}

/// Returns a command that runs a shell script and then the server in a dedicated mount namespace, so that the mounts
/// vanish with it. Fails if mounting is not permitted.
fn in_mount_namespace(launch: &Launch, script: &str) -> Result<Command, String> {
    let data = launch.directory.path();
    let wrapped = |script: &str, program: &std::ffi::OsStr| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-e", "-c", script]).arg(program).arg(data);
        command
    };
    let trial = wrapped(&format!("{script}true"), std::ffi::OsStr::new("true")).output();
    if !trial.as_ref().is_ok_and(|output| output.status.success()) {
        return Err(format!("no file system can be mounted here: {trial:?}"));
    }
    let inner = launch.command();
    let mut command = wrapped(&format!("{script}exec \"$0\""), inner.get_program());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    Ok(command)
}

const DATA_READ_ONLY: &str = "mount --bind \"$1\" \"$1\"; mount -o remount,bind,ro \"$1\"; cd \"$1\"; ";
const ROOT_READ_ONLY: &str = "mount --bind \"$1\" \"$1\"; mount -o remount,bind,ro /; cd /; ";

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("readable");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Row 23. On a read-only file system the error names the cause, instead of "unable to open".
#[test]
fn a_read_only_data_directory_is_refused() {
    for end in ["clean", "killed"] {
        let mut server = Server::start();
        assert_eq!(server.create("k", "1").status, 201);
        match end {
            "clean" => assert!(server.stop().success()),
            _ => server.kill(),
        }
        let before = names(server.directory.path());
        let launch = Launch::at(Arc::clone(&server.directory));
        let mut command = match in_mount_namespace(&launch, DATA_READ_ONLY) {
            Ok(command) => command,
            Err(why) => return println!("skipped: {why}"),
        };
        let refused = Server::spawn(&mut command, Arc::clone(&launch.directory)).err();
        let refused = refused.expect("the start must fail");
        assert!(!refused.status.success());
        for word in [DATABASE, "mounted read-only", "writable directory"] {
            assert!(refused.log.contains(word), "{end}: {word}: {}", refused.log);
        }
        assert_eq!(names(server.directory.path()), before);
        assert_eq!(Launch::at(Arc::clone(&server.directory)).start().value("k"), "1");
    }
}

/// Row 23. Containers with a read-only root have one writable volume and need no other.
#[test]
fn only_the_data_directory_must_be_writable() {
    let launch = Launch::new();
    let data = launch.directory.path().to_owned();
    let path = |name: &str| data.join(name).to_string_lossy().into_owned();
    let launch =
        launch.set("OSC_DATABASE_PATH", &path(DATABASE)).set("OSC_SALT_FILE_PATH", &path("encryption.salt"));
    let mut command = match in_mount_namespace(&launch, ROOT_READ_ONLY) {
        Ok(command) => command,
        Err(why) => return println!("skipped: {why}"),
    };
    let mut server = Server::spawn(&mut command, Arc::clone(&launch.directory))
        .unwrap_or_else(|refused| panic!("{}", refused.log));
    assert_eq!(server.create("k", "1").status, 201);
    assert_eq!(server.value("k"), "1");
    let root = fs::read_to_string(format!("/proc/{}/mounts", server.pid())).expect("the server runs");
    let root = root.lines().rfind(|line| line.split(' ').nth(1) == Some("/")).expect("a root mount");
    assert!(root.contains(" ro,"), "it was read-only: {root}");
    assert!(server.stop().success(), "{}", server.log());
    let [reserve, lock] = ["-reserve", ".lock"].map(|suffix| format!("{DATABASE}{suffix}"));
    assert_eq!(names(&data), [DATABASE, &reserve, &lock, "encryption.salt"]);
}

/// Row 23. A salt from a Kubernetes Secret is stored on a dedicated read-only volume.
#[test]
fn an_existing_salt_may_be_read_only() {
    let mut first = Server::start();
    assert_eq!(first.create("k", "1").status, 201);
    assert!(first.stop().success());
    let launch = Launch::new();
    let salts = launch.directory.path().join("secret");
    fs::create_dir(&salts).expect("writable");
    fs::copy(first.salt(), salts.join("encryption.salt")).expect("the file can be copied");
    let launch = launch.set("OSC_SALT_FILE_PATH", "secret/encryption.salt");
    let script =
        "mount --bind \"$1/secret\" \"$1/secret\"; mount -o remount,bind,ro \"$1/secret\"; cd \"$1\"; ";
    let mut command = match in_mount_namespace(&launch, script) {
        Ok(command) => command,
        Err(why) => return println!("skipped: {why}"),
    };
    let server = Server::spawn(&mut command, Arc::clone(&launch.directory))
        .unwrap_or_else(|refused| panic!("{}", refused.log));
    assert_eq!(server.create("k", "1").status, 201);
    assert_eq!(
        server.connect().send("GET", "/cluster/salt", &[], None).body,
        fs::read(first.salt()).expect("exists")
    );
}

/// Kills the server while clients write to it.
fn kill_under_load(server: &mut Server, writes: u64) {
    let done = AtomicU64::new(0);
    let address = server.address;
    thread::scope(|scope| {
        for writer in 0..3 {
            let done = &done;
            scope.spawn(move || {
                let mut client = Client::connect(address);
                for step in 0.. {
                    let body = format!(r#"{{"key":"load{writer}-{}","value":{step}}}"#, std::process::id());
                    let (method, target) = match step {
                        0 => ("POST", "/configs".to_owned()),
                        _ => ("PUT", format!("/configs/load{writer}-{}", std::process::id())),
                    };
                    let bytes = request(method, &target, &[KEY_HEADER], Some(body.as_bytes()));
                    if client.stream.write_all(&bytes).is_err() || client.try_receive(false).is_err() {
                        return;
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        eventually("writes are acknowledged", || done.load(Ordering::Relaxed) >= writes);
        server.kill();
    });
}

/// Writes the same state to three keys, so that a mixture of two states shows.
fn write_state(server: &Server, state: &str) {
    for key in ["a", "b", "c"] {
        let filler = "f".repeat(3000);
        let value = format!(r#"["{state}","{filler}"]"#);
        if server.update(key, &value).status == 404 {
            assert_eq!(server.create(key, &value).status, 201);
        }
    }
}

/// Returns the state, on which all entries must agree.
fn state(server: &Server) -> String {
    let states: Vec<String> = ["a", "b", "c"]
        .iter()
        .map(|key| {
            let value: serde_json::Value = serde_json::from_str(&server.value(key)).expect("JSON");
            value[0].as_str().expect("a string").to_owned()
        })
        .collect();
    assert!(states.iter().all(|state| *state == states[0]), "a mixture: {states:?}");
    states[0].clone()
}

fn start_again(server: &Server) -> Result<Server, Refused> {
    Launch::at(Arc::clone(&server.directory)).try_start()
}

fn stop_or_kill(server: &mut Server, is_crash: bool) {
    if is_crash {
        server.kill();
    } else {
        assert!(server.stop().success());
    }
}

/// Row 24. Yesterday's database beside today's WAL, with any number of checkpoints in between.
#[test]
fn a_database_restored_beside_another_wal_is_refused() {
    // A clean stop runs a checkpoint, and so does the start after a crash.
    for (checkpoints, is_crash) in [(1, false), (2, false), (3, false), (1, true), (2, true), (3, true)] {
        let mut server = Server::start();
        write_state(&server, "yesterday");
        assert!(server.stop().success());
        let backup = tempfile::tempdir().expect("temporary directory");
        copy_files(server.directory.path(), backup.path(), &[DATABASE]);
        for _ in 0..checkpoints {
            server = start_again(&server).expect("the server starts");
            write_state(&server, "today");
            stop_or_kill(&mut server, is_crash);
        }
        server = start_again(&server).expect("the server starts");
        write_state(&server, "now");
        kill_under_load(&mut server, 50);
        copy_files(backup.path(), server.directory.path(), &[DATABASE]);
        for keep_shm in [true, false] {
            if !keep_shm {
                fs::remove_file(server.directory.path().join(SHM)).expect("exists");
            }
            let refused = match start_again(&server) {
                Err(refused) => refused,
                Ok(mixed) => {
                    panic!(
                        "{checkpoints}, {is_crash}: the server started: {:.60}",
                        mixed.get("/configs").text()
                    )
                }
            };
            assert!(refused.log.contains(WAL), "{checkpoints}, {is_crash}: {}", refused.log);
        }
        fs::remove_file(server.directory.path().join(WAL)).expect("exists");
        assert_eq!(state(&start_again(&server).expect("the server starts")), "yesterday");
    }
}

/// Row 24. The reverse: an old WAL beside a newer database. Copied in the middle of a cycle, it holds older versions of
/// pages in the database.
#[test]
fn a_wal_restored_beside_a_newer_database_is_refused() {
    for (later_checkpoints, with_shm, is_crash) in [
        (0, false, false),
        (0, true, false),
        (1, false, false),
        (2, true, false),
        (1, false, true),
        (2, true, true),
    ] {
        let mut server = Server::start();
        write_state(&server, "before");
        assert!(server.stop().success());
        server = start_again(&server).expect("the server starts");
        write_state(&server, "old");
        let backup = tempfile::tempdir().expect("temporary directory");
        copy_files(server.directory.path(), backup.path(), &[WAL, SHM]);
        for key in ["a", "c"] {
            assert_eq!(server.send("DELETE", &format!("/configs/{key}"), USER_KEY, None).status, 200);
        }
        write_state(&server, "new");
        stop_or_kill(&mut server, is_crash);
        for _ in 0..later_checkpoints {
            server = start_again(&server).expect("the server starts");
            write_state(&server, "new");
            stop_or_kill(&mut server, is_crash);
        }
        copy_files(backup.path(), server.directory.path(), &[WAL]);
        if with_shm {
            copy_files(backup.path(), server.directory.path(), &[SHM]);
        }
        let refused = match start_again(&server) {
            Err(refused) => refused,
            Ok(mixed) => {
                panic!(
                    "{later_checkpoints}, {is_crash}: the server started: {:.60}",
                    mixed.get("/configs").text()
                )
            }
        };
        assert!(refused.log.contains(WAL), "{}", refused.log);
        if !is_crash {
            // After a clean stop, the database alone holds everything.
            fs::remove_file(server.directory.path().join(WAL)).expect("exists");
            fs::remove_file(server.directory.path().join(SHM)).ok();
            assert_eq!(state(&start_again(&server).expect("the server starts")), "new");
        }
    }
}

/// Row 24. Database and WAL of the same moment restore exactly the state of that moment, with or without `-shm`.
#[test]
fn database_and_wal_restored_together_are_consistent() {
    for with_shm in [true, false] {
        let mut server = Server::start();
        write_state(&server, "base");
        assert!(server.stop().success());
        server = start_again(&server).expect("the server starts");
        write_state(&server, "backup");
        server.kill();
        let backup = tempfile::tempdir().expect("temporary directory");
        let files = if with_shm { &[DATABASE, WAL, SHM][..] } else { &[DATABASE, WAL] };
        copy_files(server.directory.path(), backup.path(), files);

        server = start_again(&server).expect("the server starts");
        write_state(&server, "later");
        assert!(server.stop().success());
        server = start_again(&server).expect("the server starts");
        write_state(&server, "latest");
        kill_under_load(&mut server, 50);
        fs::remove_file(server.directory.path().join(SHM)).expect("exists");
        copy_files(backup.path(), server.directory.path(), files);
        let server = start_again(&server).unwrap_or_else(|refused| panic!("{}", refused.log));
        assert_eq!(state(&server), "backup");
        let list = server.get("/configs");
        assert!(!list.text().contains("load"), "no later write is visible: {list:?}");
    }
}

/// Row 30. Addresses of both families, in every common spelling.
#[test]
fn addresses_of_both_families() {
    let has_v6 = TcpListener::bind("[::1]:0").is_ok();
    if !has_v6 {
        println!("skipped in part: this machine has no IPv6 loopback");
    }
    let (four, six) = ("127.0.0.1", "[::1]");
    for (host, families) in [
        ("127.0.0.1", &[four][..]),
        ("localhost", &[four]),
        ("LOCALHOST", &[four]),
        ("::1", &[six]),
        ("[::1]", &[six]),
        // The only addresses that are reachable from other machines, for a moment: both families must respond.
        ("::", &[four, six]),
        ("[::]", &[four, six]),
    ] {
        if !has_v6 && families.contains(&six) {
            continue;
        }
        let port = free_port();
        let server = Launch::new().set("OSC_HOST", host).set("OSC_HOST_PORT", &port.to_string()).start();
        for family in families {
            let address: SocketAddr = format!("{family}:{port}").parse().expect("an address");
            let mut client = Client::connect(address);
            let health = client.send("GET", "/cluster/health", &[], None);
            let expected = format!(r#"{{"status":"healthy","node_id":"node-{port}"}}"#);
            assert_eq!(health.text(), expected, "{host} by {family}");
            let status = client.send("GET", "/cluster/status", &[], None);
            assert!(status.text().starts_with(r#"{"enabled":false,"#), "{status:?}");
        }
        let is_non_loopback = host.contains("::") && !host.contains('1');
        assert_eq!(
            server.log().contains("non-loopback address"),
            is_non_loopback,
            "{host}: {}",
            server.log()
        );
    }
}

/// Row 30. An invalid host is reported together with all other errors.
#[test]
fn an_invalid_host_is_reported_with_all_other_errors() {
    for host in [":::", "[::", "::1]", "[127.0.0.1]", "127.0.0.1:9000", "[::1]:9000", "tcp://10.0.0.7", "a b"]
    {
        let launch = Launch::new().set("OSC_HOST", host).set("OSC_HOST_PORT", "x").set("OSC_WORKERS", "-1");
        let refused = refused(launch);
        for word in ["OSC_HOST:", host, "allowed", "OSC_HOST_PORT:", "OSC_WORKERS:"] {
            assert!(refused.log.contains(word), "{host}: {word}: {}", refused.log);
        }
        assert_eq!(refused.status.code(), Some(2));
    }
}
