//! No key and no value leaves the server: not in its log, its error texts, its files, or a core dump. What stays in its
//! memory is the subject of `memory.rs`.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::{Launch, PATIENCE, Response, Server, USER_KEY as OWNER, request};

const API_KEY: &str = "canary-api-7d1e5c";
const USER_KEY: &str = "canary-user-key-93b0a2f4";
const WRONG_API_KEY: &str = "canary-wrong-api-04";
const WRONG_USER_KEY: &str = "canary-wrong-user-key-58";
const VALUE: &str = "\"canary-value-c3\"";
/// Parts of the above that no error text may contain.
const CREDENTIALS: [&str; 7] = [
    "canary-api",
    "canary-user",
    "canary-wrong",
    "canary-head",
    "canary-short",
    "canary-other",
    "canary-value",
];

const API: (&str, &str) = ("X-API-Key", API_KEY);
const USER: (&str, &str) = ("X-User-Key", USER_KEY);
const BACKUP: (&str, &str) = ("X-Backup-Password", "canary-other-password");
const BEARER: (&str, &str) = ("Authorization", "Bearer canary-other-token");

fn locked(level: &str, format: &str) -> Launch {
    Launch::new()
        .set("OSC_API_KEY_REQUIRED", "true")
        .set("OSC_API_KEY", API_KEY)
        .set("OSC_LOG_LEVEL", level)
        .set("OSC_LOG_FORMAT", format)
}

fn check_response(what: &str, response: &Response) {
    let body = String::from_utf8_lossy(&response.body);
    let headers = format!("{:?}", response.headers);
    for credential in CREDENTIALS {
        assert!(!body.contains(credential) && !headers.contains(credential), "{what}: {response:?}");
    }
}

/// Sends requests of every outcome that a well-formed head can have.
fn send_everything(server: &Server) {
    let body = |text: &str| Some(text.as_bytes().to_vec());
    let create = body(&format!(r#"{{"key":"k","value":{VALUE}}}"#));
    let update = body(&format!(r#"{{"value":{VALUE}}}"#));
    let huge = Some(vec![b' '; 4 * 1024 * 1024 + 1]);
    let wrong_api = ("X-API-Key", WRONG_API_KEY);
    let wrong_user = ("X-User-Key", WRONG_USER_KEY);
    let short_api = ("X-API-Key", "canary-short");
    let short_user = ("X-User-Key", "canary-");
    let coded = ("Content-Encoding", "gzip");
    let text_plain = ("Content-Type", "text/plain");
    for (method, target, headers, body, status) in [
        ("POST", "/configs", &[API, USER][..], &create, 201),
        ("POST", "/configs", &[API, USER, BACKUP, BEARER], &create, 400),
        ("POST", "/configs", &[API, wrong_user], &create, 400),
        ("PUT", "/configs/k", &[API, USER], &update, 200),
        ("PUT", "/configs/k", &[API, wrong_user], &update, 401),
        ("PUT", "/configs/nope", &[API, wrong_user], &update, 404),
        ("GET", "/configs/k", &[API, USER, BACKUP], &None, 200),
        ("GET", "/configs/k", &[API, wrong_user], &None, 401),
        ("GET", "/configs/k", &[API, short_user], &None, 401),
        ("GET", "/configs/k", &[wrong_api, USER], &None, 403),
        ("GET", "/configs/k", &[short_api, USER], &None, 403),
        ("GET", "/configs/k", &[USER], &None, 403),
        ("GET", "/configs/k", &[API], &None, 422),
        ("GET", "/configs/k/", &[API, USER], &None, 307),
        ("GET", "/configs?limit=x", &[API, USER], &None, 422),
        ("GET", "/configs", &[API, USER], &None, 200),
        ("GET", "/configs", &[API, wrong_user], &None, 200),
        ("GET", "/cluster/configs", &[API, USER], &None, 200),
        ("GET", "/cluster/salt", &[API, USER], &None, 200),
        ("POST", "/cluster/salt", &[API, USER], &create, 409),
        ("GET", "/", &[wrong_api, USER], &None, 403),
        ("GET", "/nope", &[API, USER, BACKUP, BEARER], &None, 404),
        ("POST", "/nope", &[API, USER], &create, 404),
        ("PATCH", "/configs/k", &[API, USER], &update, 405),
        ("OPTIONS", "/configs", &[API, USER], &None, 204),
        ("BREW", "/configs", &[API, USER], &None, 501),
        ("POST", "/configs", &[API, USER, coded], &create, 415),
        ("POST", "/configs", &[API, USER, text_plain], &create, 422),
        ("POST", "/configs", &[API, USER], &huge, 413),
        ("POST", "/configs", &[API, USER], &body(r#"{"key":"k","value":"canary-value"#), 422),
        ("POST", "/configs", &[API, USER], &body(r#"{"value":"canary-value"}"#), 422),
        ("POST", "/configs", &[API, USER], &body(r#"["canary-value"]"#), 422),
        ("POST", "/configs", &[API, USER], &body("{\"value\":\"canary-value\u{1}\"}"), 422),
        ("PUT", "/configs/k", &[API, USER], &body(r#"{"value":null,"x":"canary-value"}"#), 422),
        ("PUT", "/configs/k", &[API, USER], &Some(b"\"canary-value\xff\"".to_vec()), 400),
        ("DELETE", "/configs/k", &[API, wrong_user], &None, 401),
        ("DELETE", "/configs/k", &[API, USER], &None, 200),
        ("DELETE", "/configs/k", &[API, USER], &None, 404),
        ("POST", "/configs", &[API, USER], &create, 201),
    ] {
        let mut client = server.connect();
        let bytes = request(method, target, headers, body.as_deref());
        // The response to a body that is too large arrives before the server has read it.
        std::io::Write::write_all(&mut client.stream, &bytes).ok();
        let response = client.receive(false);
        assert_eq!(response.status, status, "{method} {target} {headers:?}: {response:?}");
        if status >= 300 {
            check_response(&format!("{method} {target}"), &response);
        }
    }
}

/// Sends heads that cannot be parsed, with a credential at the very place.
fn send_malformed(server: &Server) {
    let long = "canary-head".repeat(2000);
    let many = "X-User-Key: canary-head-key\r\n".repeat(70);
    for head in [
        "GET /configs HTTP/1.1\r\nHost: x\r\nX-User-Key canary-head-key\r\n\r\n",
        "GET /configs HTTP/1.1\r\nHost: x\r\nX-User-Key : canary-head-key\r\n\r\n",
        "GET /configs HTTP/1.1\r\nHost: x\r\nX-User-Key:\r\n canary-head-key\r\n\r\n",
        "GET /configs HTTP/1.1\r\nHost: x\r\nX-User-Key: canary-head\u{1}key\r\n\r\n",
        "GET /configs HTTP/1.1\r\nHost: x\r\nX-User-Key: canary-head\rkey\r\n\r\n",
        "GET /configs HTTP/1.1\r\nHost: x\r\nHost: canary-head\r\nX-User-Key: canary-head-key\r\n\r\n",
        "GET /configs HTTP/1.1\r\nX-User-Key: canary-head-key\r\n\r\n",
        "GET /configs HTTP/9.canary-head\r\nHost: x\r\n\r\n",
        "GET /configs HTTP/2.0\r\nHost: x\r\nX-User-Key: canary-head-key\r\n\r\n",
        "GET canary-head-key HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /configs canary-head-key HTTP/1.1\r\nHost: x\r\n\r\n",
        "canary-head-key / HTTP/1.1\r\nHost: x\r\n\r\n",
        "canary-head(key) / HTTP/1.1\r\nHost: x\r\n\r\n",
        "canary-head-key\r\n\r\n",
        "POST /configs HTTP/1.1\r\nHost: x\r\nContent-Length: canary-head\r\n\r\n",
        "POST /configs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: canary-head\r\n\r\n",
        "POST /configs HTTP/1.1\r\nHost: x\r\nExpect: canary-head\r\nContent-Length: 1\r\n\r\n",
        "POST /cluster/salt HTTP/1.1\r\nHost: x\r\nX-API-Key: canary-api-7d1e5c\r\nTransfer-Encoding: chunked\r\n\r\ncanary-head\r\n",
        &format!("GET /configs/{long} HTTP/1.1\r\nHost: x\r\n\r\n"),
        &format!("GET / HTTP/1.1\r\nHost: x\r\nX-User-Key: {long}\r\n\r\n"),
        &format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n"),
    ] {
        let mut client = server.connect();
        client.write(head.as_bytes());
        let response = client.receive(false);
        assert!((400..600).contains(&response.status) && response.status != 500, "{head:.80}: {response:?}");
        check_response(head.get(..80).unwrap_or(head), &response);
    }
    // Cut off in the middle: of the head, of the key, of the body.
    for part in [
        format!("GET /configs HTTP/1.1\r\nX-User-Key: {USER_KEY}"),
        format!(
            "POST /configs HTTP/1.1\r\nHost: x\r\nX-API-Key: {API_KEY}\r\nX-User-Key: {USER_KEY}\r\nContent-Length: 99\r\n\r\n{VALUE}"
        ),
    ] {
        let mut client = server.connect();
        client.write(part.as_bytes());
        client.stream.shutdown(std::net::Shutdown::Write).expect("the connection is open");
        let response = String::from_utf8_lossy(&client.rest()).into_owned();
        assert!(!response.contains("canary"), "{response}");
    }
}

/// Clients log error texts, so a 422 response shows names that are wrong, and never a value.
#[test]
fn a_422_response_shows_no_value() {
    let server = Server::start();
    assert_eq!(server.create("k", "1").status, 201);
    let (json, text) = (("Content-Type", "application/json"), ("Content-Type", "text/plain"));
    let key_header = ("X-User-Key", OWNER);
    let long = "canary-value".repeat(30);
    let escaped = long.replace('v', r"\u0076");
    let name = "n".repeat(256);
    for (method, content_type, body, input) in [
        ("POST", json, r#"{"value":"canary-value"}"#, "{}"),
        ("POST", json, r#"{"key":"k","vaule":"canary-value"}"#, "{}"),
        ("PUT", json, r#"{"vaule":"canary-value"}"#, "{}"),
        ("POST", json, r#"["canary-value"]"#, "[]"),
        ("POST", json, r#""canary-value""#, r#""""#),
        ("PUT", json, "12345678", "null"),
        ("PUT", text, "canary-value", r#""""#),
        ("POST", json, r#"{"value":"canary-value}"#, "{}"),
        ("POST", json, r#"{"key":{"a":"canary-value"},"value":1}"#, "{}"),
        ("PUT", json, r#"{"category":["canary-value"],"value":1}"#, "[]"),
        ("PUT", json, &format!(r#"{{"category":"{long}","value":1}}"#), r#""""#),
        ("POST", json, &format!(r#"{{"key":"{escaped}","value":1}}"#), r#""""#),
        // Names are shown.
        ("POST", json, r#"{"key":7,"value":"canary-value"}"#, "7"),
        ("POST", json, &format!(r#"{{"key":"{name}","value":"canary-value"}}"#), &format!(r#""{name}""#)),
    ] {
        let target = if method == "PUT" { "/configs/k" } else { "/configs" };
        let response =
            server.connect().send(method, target, &[key_header, content_type], Some(body.as_bytes()));
        assert_eq!(response.status, 422, "{body}: {response:?}");
        assert!(response.text().contains(&format!(r#""input":{input}"#)), "{body}: {}", response.text());
        assert!(!response.text().contains("canary"), "{body}: {}", response.text());
    }
    let response = server.get(&format!("/configs?limit={long}"));
    assert_eq!((response.status, response.text().contains("canary")), (422, false), "{}", response.text());
}

#[test]
fn the_log_and_the_error_texts_contain_no_secrets() {
    for format in ["console", "json"] {
        let mut server = locked("DEBUG", format).start();
        send_everything(&server);
        send_malformed(&server);
        assert!(server.stop().success());
        let log = server.log();
        assert!(log.contains("stopped"), "there is a log: {log}");
        assert!(!log.contains("canary"), "{log}");
    }
}

/// Start-up errors show the value, unless it is a secret.
#[test]
fn setting_errors_contain_no_secrets() {
    let invalid = [
        locked("INFO", "xml").set("OSC_API_KEY", "canary-api-\u{1}"),
        locked("INFO", "json").set("OSC_HOST_PORT", "nonsense"),
        Launch::new().set("OSC_API_KEY", API_KEY).set("OSC_API_KEY_REQUIRED", "maybe"),
    ];
    for launch in invalid {
        let refused = launch.try_start().err().expect("the start must fail");
        assert!(!refused.log.contains("canary"), "{}", refused.log);
    }
    // An unterminated quote includes the lines after it.
    let launch = Launch::new();
    let text = format!("OSC_WORKERS=\"\nOSC_API_KEY_REQUIRED=true\nOSC_API_KEY={API_KEY}\n");
    fs::write(launch.directory.path().join(".env"), text).expect("writable");
    match launch.set("OSC_LOG_LEVEL", "DEBUG").try_start() {
        Ok(server) => assert!(!server.log().contains("canary"), "{}", server.log()),
        Err(refused) => assert!(!refused.log.contains("canary"), "{}", refused.log),
    }
}

#[test]
fn files_contain_no_secrets() {
    let mut server = locked("DEBUG", "json").start();
    send_everything(&server);
    let moved = r#"{"value":"canary-value","environment":"e"}"#;
    let response = server.connect().send("PUT", "/configs/k", &[API, USER], Some(moved.as_bytes()));
    assert_eq!(response.status, 200);
    let check = |server: &Server, when: &str| {
        let mut names = Vec::new();
        for entry in fs::read_dir(server.directory.path()).expect("readable") {
            let path = entry.expect("readable").path();
            let bytes = fs::read(&path).expect("readable");
            assert!(memchr::memmem::find(&bytes, b"canary").is_none(), "{when}: {}", path.display());
            names.push(path.file_name().expect("a name").to_string_lossy().into_owned());
        }
        names.sort();
        names
    };
    // Once with everything in the WAL, once with everything in the database.
    server.kill();
    let names = check(&server, "after a kill");
    let all = ["", "-shm", "-wal", ".lock"].map(|suffix| format!("configurations.db{suffix}"));
    assert!(all.iter().all(|name| names.contains(name)), "{names:?}");
    let mut server = Launch::at(Arc::clone(&server.directory)).start();
    assert!(server.stop().success());
    check(&server, "after a clean stop");
}

/// Returns a command that runs `program` with core dumps of unlimited size.
fn with_core_dumps(program: &str) -> Command {
    let mut command = Command::new("sh");
    // A shell that starts the tests in the background makes them ignore SIGQUIT.
    let script = "ulimit -c unlimited
        env --default-signal true 2>/dev/null && exec env --default-signal \"$0\" \"$@\"
        exec \"$0\" \"$@\"";
    command.args(["-c", script, program]);
    command
}

fn is_dead(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which may contain anything but `) `.
    stat.rsplit(") ").next().is_none_or(|rest| rest.starts_with('Z') || rest.is_empty())
}

/// State and wait channel of each thread of a process.
fn tasks(pid: u32) -> String {
    let tasks =
        fs::read_dir(format!("/proc/{pid}/task")).map(Iterator::collect::<Vec<_>>).unwrap_or_default();
    let describe = |task: PathBuf| {
        let read = |name: &str| fs::read_to_string(task.join(name)).unwrap_or_default();
        format!("\n{}{}\n{}", read("stat"), read("wchan"), read("status"))
    };
    tasks.into_iter().flatten().map(|task| describe(task.path())).collect()
}

/// A core dump would contain user keys and values, and is often sent elsewhere.
#[test]
fn there_is_no_core_dump() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let mut control = with_core_dumps("sh");
    control.args(["-c", "kill -ABRT $$"]).current_dir(directory.path());
    let control = control.status().expect("sh is installed");
    if !control.core_dumped() {
        println!("skipped: this system dumps no core of any process ({control})");
        return;
    }
    for (name, number) in [("ABRT", 6), ("SEGV", 11), ("QUIT", 3)] {
        let launch = Launch::new();
        let inner = launch.command();
        let mut command = with_core_dumps(&inner.get_program().to_string_lossy());
        command.current_dir(launch.directory.path());
        command.envs(inner.get_envs().filter_map(|(name, value)| value.map(|value| (name, value))));
        let mut server =
            Server::spawn(&mut command, Arc::clone(&launch.directory)).expect("the server starts");
        assert_eq!(server.create("k", "1").status, 201);
        // Rust's handler for stack overflows lets the first SIGSEGV pass.
        let begun = Instant::now();
        while !is_dead(server.pid()) {
            server.signal(name);
            assert!(
                begun.elapsed() < PATIENCE,
                "{name} does not terminate the server: {}",
                tasks(server.pid())
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        let status = server.wait();
        assert_eq!(status.signal(), Some(number), "{status}");
        assert!(!status.core_dumped(), "{status}");
    }
}
