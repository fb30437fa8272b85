//! No key and no value gets out of the server: not into its log, its error texts, its files, a core
//! dump, or what stays in its memory.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::Arc;

use crate::support::{Client, Launch, Response, Server, USER_KEY as OWNER, eventually, request};

const API_KEY: &str = "canary-api-7d1e5c";
const USER_KEY: &str = "canary-user-key-93b0a2f4";
const WRONG_API_KEY: &str = "canary-wrong-api-04";
const WRONG_USER_KEY: &str = "canary-wrong-user-key-58";
const VALUE: &str = "\"canary-value-c3\"";
/// The parts of the above that no error text may hold; values come back where they are refused.
const CREDENTIALS: [&str; 6] =
    ["canary-api", "canary-user", "canary-wrong", "canary-head", "canary-short", "canary-other"];

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

fn check_answer(what: &str, response: &Response) {
    let body = String::from_utf8_lossy(&response.body);
    let headers = format!("{:?}", response.headers);
    for credential in CREDENTIALS {
        assert!(!body.contains(credential) && !headers.contains(credential), "{what}: {response:?}");
    }
}

/// Requests of every outcome that a client can bring about with a well-formed head.
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
        ("OPTIONS", "/configs", &[API, USER], &None, 405),
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
        // The answer to a body that is too large comes before the server has read it.
        std::io::Write::write_all(&mut client.stream, &bytes).ok();
        let response = client.receive(false);
        assert_eq!(response.status, status, "{method} {target} {headers:?}: {response:?}");
        if status >= 300 {
            check_answer(&format!("{method} {target}"), &response);
        }
    }
}

/// Heads that cannot be parsed, with a credential at the very place.
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
        check_answer(head.get(..80).unwrap_or(head), &response);
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
        client.stream.shutdown(std::net::Shutdown::Write).expect("it is connected");
        let answer = String::from_utf8_lossy(&client.rest()).into_owned();
        assert!(!answer.contains("canary"), "{answer}");
    }
}

#[test]
fn the_log_and_the_error_texts_hold_no_secret() {
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

/// What stops the start is told with the value; unless that is a secret.
#[test]
fn faults_of_the_settings_hold_no_secret() {
    let faulty = [
        locked("INFO", "xml").set("OSC_API_KEY", "canary-api-\u{1}"),
        locked("INFO", "json").set("OSC_HOST_PORT", "nonsense"),
        Launch::new().set("OSC_API_KEY", API_KEY).set("OSC_API_KEY_REQUIRED", "maybe"),
    ];
    for launch in faulty {
        let refused = launch.try_start().err().expect("it must not start");
        assert!(!refused.log.contains("canary"), "{}", refused.log);
    }
    // A quote that is never closed takes in the lines behind it.
    let launch = Launch::new();
    let text = format!("OSC_WORKERS=\"\nOSC_API_KEY_REQUIRED=true\nOSC_API_KEY={API_KEY}\n");
    fs::write(launch.directory.path().join(".env"), text).expect("writable");
    match launch.set("OSC_LOG_LEVEL", "DEBUG").try_start() {
        Ok(server) => assert!(!server.log().contains("canary"), "{}", server.log()),
        Err(refused) => assert!(!refused.log.contains("canary"), "{}", refused.log),
    }
}

#[test]
fn files_hold_no_secret() {
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
    // Once with everything in the log of the database, once with everything in the database.
    server.kill();
    let names = check(&server, "after a kill");
    let all = ["", "-shm", "-wal", ".lock"].map(|suffix| format!("configurations.db{suffix}"));
    assert!(all.iter().all(|name| names.contains(name)), "{names:?}");
    let mut server = Launch::at(Arc::clone(&server.directory)).start();
    assert!(server.stop().success());
    check(&server, "after a clean end");
}

/// Runs `program` with core dumps allowed as far as the limit goes.
fn with_core_dumps(program: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -c unlimited && exec \"$0\" \"$@\"", program]);
    command
}

fn is_dead(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state stands behind the name, which may hold anything but a closing bracket after it.
    stat.rsplit(") ").next().is_none_or(|rest| rest.starts_with('Z') || rest.is_empty())
}

/// A core dump would hold user keys and values, and is often sent elsewhere.
#[test]
fn there_is_no_core_dump() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let mut control = with_core_dumps("sh");
    control.args(["-c", "kill -ABRT $$"]).current_dir(directory.path());
    let control = control.status().expect("sh is there");
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
        let mut server = Server::spawn(&mut command, Arc::clone(&launch.directory)).expect("it starts");
        assert_eq!(server.create("k", "1").status, 201);
        // Rust's handler for stack overflows lets the first SIGSEGV pass.
        eventually("it dies", || {
            server.signal(name);
            is_dead(server.pid())
        });
        let status = server.wait();
        assert_eq!(status.signal(), Some(number), "{status}");
        assert!(!status.core_dumped(), "{status}");
    }
}

/// Where `needle` is in the memory of a process, or why that cannot be found out.
fn copies(pid: u32, needle: &[u8]) -> std::io::Result<Vec<String>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mut memory = fs::File::open(format!("/proc/{pid}/mem"))?;
    let mut found = Vec::new();
    for line in maps.lines() {
        let mut parts = line.split_whitespace();
        let (Some(range), Some(rights)) = (parts.next(), parts.next()) else { continue };
        let Some((start, end)) = range.split_once('-') else { continue };
        if !rights.starts_with("rw") {
            continue;
        }
        let number = |text: &str| u64::from_str_radix(text, 16).expect("addresses are hexadecimal");
        let (start, end) = (number(start), number(end));
        let mut bytes = Vec::new();
        memory.seek(SeekFrom::Start(start))?;
        // Rings of the kernel cannot be read this way, and hold no bytes of requests.
        if memory.by_ref().take(end - start).read_to_end(&mut bytes).is_err() && bytes.is_empty() {
            continue;
        }
        found.extend(memchr::memmem::find_iter(&bytes, needle).map(|at| {
            let around = &bytes[at.saturating_sub(48)..bytes.len().min(at + 64)];
            format!("{:#x} in {line}: {}", start + at as u64, around.escape_ascii())
        }));
    }
    Ok(found)
}

/// A key of its own for each way, so that a failure tells which one it was. The distinctive part is
/// in front: copies that were cut short count, too.
struct Canary {
    user_key: String,
}

impl Canary {
    fn new(name: &str) -> Self {
        Self { user_key: format!("memory-{name}-canary-{name}") }
    }

    fn header(&self) -> (&str, &str) {
        ("X-User-Key", &self.user_key)
    }

    /// Only a part, because what is moved through registers comes in pieces of 16 or 32 bytes.
    fn needle(&self) -> &[u8] {
        &self.user_key.as_bytes()[..14]
    }
}

type Way = fn(&Server, &mut Client, &Canary);

fn put_and_get(_: &Server, client: &mut Client, canary: &Canary) {
    let headers = [canary.header()];
    let create = format!(r#"{{"key":"{}","value":1}}"#, &canary.user_key[7..12]);
    let target = format!("/configs/{}", &canary.user_key[7..12]);
    assert_eq!(client.send("POST", "/configs", &headers, Some(create.as_bytes())).status, 201);
    assert_eq!(client.send("GET", &target, &headers, None).status, 200);
    assert_eq!(client.send("PUT", &target, &headers, Some(b"{\"value\":2}")).status, 200);
    assert_eq!(client.send("GET", "/configs", &headers, None).status, 200);
}

fn wrong_endpoints(_: &Server, client: &mut Client, canary: &Canary) {
    let headers = [canary.header()];
    for (method, target, status) in [
        ("GET", "/nope", 404),
        ("GET", "/configs/nope", 404),
        ("PATCH", "/configs", 405),
        ("GET", "/", 200),
        ("GET", "/configs/", 307),
        ("GET", "/configs?limit=x", 422),
        ("GET", "/configs/there", 401),
        ("DELETE", "/configs/there", 401),
    ] {
        assert_eq!(client.send(method, target, &headers, None).status, status, "{method} {target}");
    }
    assert_eq!(client.send("PUT", "/configs/there", &headers, Some(b"{")).status, 422);
}

fn pipelined(_: &Server, client: &mut Client, canary: &Canary) {
    let headers = [canary.header()];
    let body = vec![b' '; 3000];
    let mut bytes = Vec::new();
    for _ in 0..20 {
        bytes.extend(request("GET", "/configs/there", &headers, None));
        bytes.extend(request("PUT", "/configs/there", &headers, Some(&body)));
    }
    client.write(&bytes);
    for _ in 0..20 {
        assert_eq!(client.receive(false).status, 401);
        assert_eq!(client.receive(false).status, 422);
    }
}

fn byte_by_byte(_: &Server, client: &mut Client, canary: &Canary) {
    for byte in request("GET", "/configs/there", &[canary.header()], None) {
        client.write(&[byte]);
    }
    assert_eq!(client.receive(false).status, 401);
}

/// The read buffer grows while the key is in it.
fn in_a_large_head(_: &Server, client: &mut Client, canary: &Canary) {
    let filler = "f".repeat(6000);
    let bytes = request("GET", "/configs/there", &[canary.header(), ("X-Filler", &filler)], None);
    for piece in bytes.chunks(700) {
        client.write(piece);
    }
    assert_eq!(client.receive(false).status, 401);
}

fn in_a_large_body(_: &Server, client: &mut Client, canary: &Canary) {
    let body = format!(r#"{{"value":"{}"}}"#, "b".repeat(300_000));
    let headers = [canary.header()];
    assert_eq!(client.send("PUT", "/configs/there", &headers, Some(body.as_bytes())).status, 401);
}

/// These connections end, so what they had is freed.
fn on_connections_that_end(server: &Server, _: &mut Client, canary: &Canary) {
    let headers = [canary.header(), ("Connection", "close")];
    assert_eq!(server.connect().send("GET", "/configs/there", &headers, None).status, 401);
    let malformed = format!("GET / HTTP/1.1\r\nX-User-Key: {}\r\nHost x\r\n\r\n", canary.user_key);
    let mut client = server.connect();
    client.write(malformed.as_bytes());
    assert_eq!(client.receive(false).status, 400);
    let mut half = server.connect();
    half.write(format!("GET / HTTP/1.1\r\nHost: x\r\nX-User-Key: {}", canary.user_key).as_bytes());
    half.stream.shutdown(std::net::Shutdown::Write).expect("it is connected");
    half.rest();
}

/// A client that goes away while its key is derived.
fn gone_before_the_answer(server: &Server, _: &mut Client, canary: &Canary) {
    let mut client = server.connect();
    client.write(&request("GET", "/configs/there", &[canary.header()], None));
    drop(client);
}

#[test]
fn user_keys_do_not_stay_in_memory() {
    let ways: [(&str, Way); 8] = [
        ("putget", put_and_get),
        ("wrong-", wrong_endpoints),
        ("pipeli", pipelined),
        ("bytewi", byte_by_byte),
        ("lahead", in_a_large_head),
        ("labody", in_a_large_body),
        ("ended-", on_connections_that_end),
        ("gone--", gone_before_the_answer),
    ];
    let server = Server::start();
    assert_eq!(server.create("there", "1").status, 201);

    // The scan must find what is there: a head that is not complete yet.
    let control = Canary::new("control");
    let mut waiting = server.connect();
    waiting.write(format!("GET / HTTP/1.1\r\nX-User-Key: {}\r\n", control.user_key).as_bytes());
    if let Err(error) = copies(server.pid(), control.needle()) {
        println!("skipped: the memory of another process cannot be read here: {error}");
        return;
    }
    eventually("the scan finds a key that is in use", || {
        !copies(server.pid(), control.needle()).expect("readable").is_empty()
    });

    for (name, way) in ways {
        let canary = Canary::new(name);
        let mut client = server.connect();
        way(&server, &mut client, &canary);
        // The connection stays open. A thread of the pool may be a moment from wiping its copy.
        let mut last = Vec::new();
        for _ in 0..40 {
            last = copies(server.pid(), canary.needle()).expect("readable");
            if last.is_empty() {
                break;
            }
        }
        assert!(last.is_empty(), "{name}:\n{}", last.join("\n"));
    }
}

#[test]
fn values_of_lists_do_not_stay_in_memory() {
    const NEEDLE: &[u8] = b"canary-of-the-list";
    let server = Server::start();
    if let Err(error) = copies(server.pid(), NEEDLE) {
        println!("skipped: the memory of another process cannot be read here: {error}");
        return;
    }
    let value = |filler: usize| format!(r#"["canary-of-the-list","é{}"]"#, "x".repeat(filler));
    for number in 0..20 {
        assert_eq!(server.create(&format!("small-{number}"), &value(number)).status, 201);
        assert_eq!(server.create(&format!("large-{number}"), &value(150_000)).status, 201);
    }
    // What the writes may have left behind is no concern of this test.
    let server = server.restart();
    let mut client = server.connect();
    let targets =
        ["/configs?prefix=small", "/configs?prefix=small&limit=3", "/configs?mode=full", "/configs"];
    for target in targets {
        // Read from the database, then from memory.
        for _ in 0..2 {
            let answer = client.send("GET", target, &[("X-User-Key", OWNER)], None);
            assert_eq!(answer.status, 200);
            assert!(answer.text().contains("canary-of-the-list"), "{target}");
        }
        let mut last = Vec::new();
        for _ in 0..40 {
            last = copies(server.pid(), NEEDLE).expect("readable");
            if last.is_empty() {
                break;
            }
        }
        assert!(last.is_empty(), "{target}:\n{}", last.join("\n"));
    }
}
