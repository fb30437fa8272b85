//! Wiping of secrets: no user key, value or API key that a client sent stays in the server's memory, whatever the
//! outcome of the request. Afterwards, all writable memory of the process is searched for them.
//!
//! Reading the memory of a process that is not dumpable requires root. Where that is refused, these tests report it and
//! check nothing, unless `OSC_TEST_MEMORY=required`, as in CI.

use std::fs;
use std::io::{self, Read, Seek as _, SeekFrom, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use opensecureconf::limits::{BODY_BYTES_MAX, KDF_ROUNDS};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use socket2::SockRef;

use crate::certificates::{Authority, over_tls};
use crate::support::{Client, Launch, Server, eventually, request};

const API: (&str, &str) = ("X-API-Key", "an-api-key-of-the-test");
const OWNER: (&str, &str) = ("X-User-Key", "the-owner-of-there");
/// Prefix of every secret that a client sends. It is short, because data that moves through registers comes in pieces
/// of 16 or 32 bytes, and fragments count, too.
const NEEDLE: &[u8] = b"mcanary-";

// --- the scan --------------------------------------------------------------------------------

/// Finds the occurrences of `needle` in the writable memory of a process. Fails if that memory cannot be read.
fn copies(pid: u32, needle: &[u8]) -> io::Result<Vec<String>> {
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
        if (&mut memory).take(end - start).read_to_end(&mut bytes).is_err() && bytes.is_empty() {
            continue;
        }
        found.extend(memchr::memmem::find_iter(&bytes, needle).map(|at| {
            let around = &bytes[at.saturating_sub(48)..bytes.len().min(at + 64)];
            format!("{:#x} in {line}: {}", start + at as u64, around.escape_ascii())
        }));
    }
    Ok(found)
}

/// Returns whether the memory of the server can be read.
#[expect(clippy::print_stderr, reason = "a test that does nothing should not look like one that passed")]
fn can_scan(server: &Server) -> bool {
    let Err(error) = copies(server.pid(), NEEDLE) else { return true };
    let is_required = std::env::var("OSC_TEST_MEMORY").is_ok_and(|value| value == "required");
    assert!(!is_required, "the memory of another process cannot be read here: {error}");
    eprintln!("skipped: the memory of another process cannot be read here: {error}");
    false
}

/// Fails if a secret is in memory. A thread may be about to wipe its copy, so the search is repeated.
fn check_clean(server: &Server, when: &str) {
    let mut found = Vec::new();
    for _ in 0..40 {
        found = copies(server.pid(), NEEDLE).expect("readable");
        if found.is_empty() {
            return;
        }
    }
    let shown = found.len().min(20);
    panic!("{when}: {} copies\n{}", found.len(), found[..shown].join("\n"));
}

// --- the clients -----------------------------------------------------------------------------

/// A connection, encrypted or not.
trait Wire: Read + Write {
    fn tcp(&self) -> &TcpStream;
}

impl Wire for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Wire for StreamOwned<ClientConnection, TcpStream> {
    fn tcp(&self) -> &TcpStream {
        &self.sock
    }
}

type AnyClient = Client<Box<dyn Wire>>;

/// A server, and how clients connect to it.
struct Endpoint {
    server: Server,
    tls: Option<Arc<ClientConfig>>,
}

impl Endpoint {
    fn start(over_tls: bool) -> Self {
        let launch = Launch::new();
        let launch = launch.set("OSC_API_KEY_REQUIRED", "true").set("OSC_API_KEY", API.1);
        // Many keys that the tests send are wrong.
        let launch = launch.set("OSC_FAILED_KEYS_PER_ADDRESS", "0");
        if !over_tls {
            return Self { server: launch.start(), tls: None };
        }
        let authority = Authority::new("an authority");
        authority.issue().write(launch.directory.path());
        let launch = launch.set("OSC_HTTPS_ENABLED", "true").set("OSC_SSL_CERTFILE", "cert.pem");
        let server = launch.set("OSC_SSL_KEYFILE", "key.pem").start();
        Self { server, tls: Some(authority.client(None)) }
    }

    fn connect(&self) -> AnyClient {
        let stream = self.server.connect().stream;
        Client::over(match &self.tls {
            None => Box::new(stream),
            Some(config) => Box::new(over_tls(stream, config).stream),
        })
    }

    /// Sends one request on a dedicated connection.
    fn send(&self, method: &str, target: &str, headers: &[(&str, &str)], body: Option<&str>) -> u16 {
        let mut client = self.connect();
        // The response to an unwanted body arrives before the server has read it.
        client.stream.write_all(&request(method, target, headers, body.map(str::as_bytes))).ok();
        client.receive(method == "HEAD").status
    }
}

/// Secrets of one scenario, so that a failure names it.
struct Canary {
    name: &'static str,
    user_key: String,
    value: String,
}

impl Canary {
    fn new(name: &'static str) -> Self {
        let user_key = format!("mcanary-u-{name}");
        Self { name, user_key, value: format!("mcanary-v-{name}") }
    }

    fn headers(&self) -> [(&str, &str); 2] {
        [API, ("X-User-Key", &self.user_key)]
    }

    fn target(&self) -> String {
        format!("/configs/{}", self.name)
    }

    fn entry(&self, value: &str) -> String {
        format!(r#"{{"key":"{}","value":"{value}"}}"#, self.name)
    }

    fn create(&self, endpoint: &Endpoint) {
        let body = self.entry(&self.value);
        assert_eq!(endpoint.send("POST", "/configs", &self.headers(), Some(&body)), 201);
    }

    /// Repeats the value to about this many bytes.
    fn large(&self, bytes: usize) -> String {
        self.value.repeat(bytes / self.value.len())
    }
}

fn reset(client: AnyClient) {
    SockRef::from(client.stream.tcp()).set_linger(Some(Duration::ZERO)).expect("a socket");
}

// --- the scenarios ---------------------------------------------------------------------------

type Scenario = fn(&Endpoint, &Canary);

const SCENARIOS: [(&str, Scenario); 19] = [
    ("stored", stored),
    ("large", large),
    ("spelt", non_canonical_values),
    ("refused", refused_bodies),
    ("toolarge", too_large),
    ("chunked", chunked),
    ("wrongkey", wrong_user_key),
    ("wrongapi", wrong_api_key),
    ("noroute", no_such_route),
    ("coded", coded),
    ("expect", expected),
    ("fields", other_fields),
    ("malformed", malformed_heads),
    ("largehead", large_head),
    ("pipelined", pipelined),
    ("bytewise", byte_by_byte),
    ("halfway", abandoned_half_way),
    ("gone", disconnected_before_the_response),
    ("aborted", aborted_responses),
];

fn stored(endpoint: &Endpoint, canary: &Canary) {
    let (headers, target) = (canary.headers(), canary.target());
    canary.create(endpoint);
    // On one connection that stays open throughout.
    let mut client = endpoint.connect();
    let update = format!(r#"{{"value":["{}"],"category":"c"}}"#, canary.value);
    let entry = canary.entry(&canary.value);
    for (method, target, body, status) in [
        ("POST", "/configs", Some(&entry), 400),
        ("PUT", &target, Some(&update), 200),
        ("PUT", &target, Some(&update), 200),
        ("GET", &target, None, 200),
        ("HEAD", &target, None, 200),
        ("GET", &format!("{target}?mode=full"), None, 200),
        ("GET", "/configs", None, 200),
        ("GET", "/configs?category=c", None, 200),
        ("GET", "/configs?limit=x", None, 422),
        ("DELETE", &target, None, 200),
        ("GET", &target, None, 404),
    ] {
        let response = client.send(method, target, &headers, body.map(String::as_bytes));
        assert_eq!(response.status, status, "{method} {target}: {response:?}");
    }
}

fn large(endpoint: &Endpoint, canary: &Canary) {
    let (headers, target, large) = (canary.headers(), canary.target(), canary.large(1024 * 1024));
    assert_eq!(endpoint.send("POST", "/configs", &headers, Some(&canary.entry(&large))), 201);
    let update = format!(r#"{{"value":{{"a":"{large}"}}}}"#);
    assert_eq!(endpoint.send("PUT", &target, &headers, Some(&update)), 200);
    for target in [&target, "/configs"] {
        assert_eq!(endpoint.send("GET", target, &headers, None), 200);
    }
}

/// The canonical form of each value differs from what was sent.
fn non_canonical_values(endpoint: &Endpoint, canary: &Canary) {
    let value = &canary.value;
    let escaped = value.replace('m', r"\u006d");
    for value in [
        format!(r#"{{"a":"{value}","b":[ ],"a":"{value}2"}}"#),
        format!(r#"[ "{escaped}" , "{value}" ]"#),
        format!(r#"{{ "{value}" : "{escaped}", "{escaped}" : "{value}" }}"#),
    ] {
        let body = format!(r#"{{"value":0,"value":{value}}}"#);
        assert_eq!(endpoint.send("PUT", &canary.target(), &canary.headers(), Some(&body)), 404);
        let body = format!("\u{feff}{{\"key\":\"{}\",\"value\":{value}}}", canary.name);
        assert_eq!(endpoint.send("POST", "/configs", &canary.headers(), Some(&body)), 201);
        assert_eq!(endpoint.send("DELETE", &canary.target(), &canary.headers(), None), 200);
    }
}

fn refused_bodies(endpoint: &Endpoint, canary: &Canary) {
    let [api, user] = canary.headers();
    let (large, too_long) = (canary.large(300_000), canary.large(400));
    let text = ("Content-Type", "text/plain");
    let json = ("Content-Type", "application/json");
    for value in [&canary.value, &large] {
        for (content_type, body) in [
            (json, format!(r#"{{"value":"{value}"}}"#)),
            (json, format!(r#"{{"key":"k","vaule":"{value}"}}"#)),
            (json, format!(r#"["{value}"]"#)),
            (json, format!(r#""{value}""#)),
            (text, value.clone()),
            (json, format!(r#"{{"key":"k","value":"{value}"#)),
            (json, format!(r#"{{"key":"k","value":"{value}",}}"#)),
            (json, format!("{{\"key\":\"k\",\"value\":\"{value}\u{1}\"}}")),
            (json, format!(r#"{{"key":"k","value":["{value}",NaN]}}"#)),
            (json, format!(r#"{{"key":{{"a":"{value}"}},"value":1}}"#)),
            (json, format!(r#"{{"key":"","value":"{value}"}}"#)),
            (json, format!(r#"{{"key":"k","category":["{value}"],"value":"{value}"}}"#)),
            (json, format!(r#"{{"key":"k","environment":"{too_long}","value":1}}"#)),
            (json, format!(r#"{{"key":"k","category":"\u0061{too_long}","value":1}}"#)),
        ] {
            let status = endpoint.send("POST", "/configs", &[api, user, content_type], Some(&body));
            assert_eq!(status, 422, "{body:.80}");
        }
    }
    let mut client = endpoint.connect();
    let not_text = [b"{\"value\":\"", canary.value.as_bytes(), b"\xff\"}"].concat();
    assert_eq!(client.send("PUT", "/configs/there", &[api, user], Some(&not_text)).status, 400);
}

fn too_large(endpoint: &Endpoint, canary: &Canary) {
    let body = canary.entry(&canary.large(BODY_BYTES_MAX + 1000));
    assert_eq!(endpoint.send("POST", "/configs", &canary.headers(), Some(&body)), 413);
    let mut client = endpoint.connect();
    let mut bytes =
        request("POST", "/configs", &[API, canary.headers()[1], ("Transfer-Encoding", "chunked")], None);
    for piece in body.as_bytes().chunks(50_000) {
        bytes.extend(format!("{:x}\r\n", piece.len()).into_bytes());
        bytes.extend([piece, b"\r\n"].concat());
    }
    client.stream.write_all(&bytes).ok();
    assert_eq!(client.receive(false).status, 413);
}

fn chunked(endpoint: &Endpoint, canary: &Canary) {
    let body = canary.entry(&canary.large(100_000));
    let head =
        request("POST", "/configs", &[API, canary.headers()[1], ("Transfer-Encoding", "chunked")], None);
    for (size, end, status) in [(7000, "0\r\n\r\n", 201), (13, "0\r\n\r\n", 400), (7000, "nonsense\r\n", 400)]
    {
        let mut client = endpoint.connect();
        let mut bytes = head.clone();
        for piece in body.as_bytes().chunks(size) {
            bytes.extend(format!("{:x}\r\n", piece.len()).into_bytes());
            bytes.extend([piece, b"\r\n"].concat());
        }
        bytes.extend_from_slice(end.as_bytes());
        client.stream.write_all(&bytes).ok();
        assert_eq!(client.receive(false).status, status, "chunks of {size}, {end:?}");
    }
}

fn wrong_user_key(endpoint: &Endpoint, canary: &Canary) {
    let update = format!(r#"{{"value":"{}"}}"#, canary.value);
    let entry = format!(r#"{{"key":"there","value":"{}"}}"#, canary.value);
    let mut client = endpoint.connect();
    for (method, target, body, status) in [
        ("GET", "/configs/there", None, 401),
        ("PUT", "/configs/there", Some(&update), 401),
        ("DELETE", "/configs/there", None, 401),
        ("POST", "/configs", Some(&entry), 400),
        ("PUT", "/configs/nowhere", Some(&update), 404),
    ] {
        let response = client.send(method, target, &canary.headers(), body.map(String::as_bytes));
        assert_eq!(response.status, status, "{method} {target}: {response:?}");
    }
}

fn wrong_api_key(endpoint: &Endpoint, canary: &Canary) {
    let wrong = format!("mcanary-a-{}", canary.name);
    let user = canary.headers()[1];
    let body = canary.entry(&canary.value);
    for headers in [&[("X-API-Key", &*wrong), user][..], &[user]] {
        let mut client = endpoint.connect();
        for (method, target) in [("POST", "/configs"), ("GET", "/configs/there"), ("GET", "/")] {
            let body = (method == "POST").then_some(body.as_bytes());
            assert_eq!(client.send(method, target, headers, body).status, 403);
        }
    }
}

fn no_such_route(endpoint: &Endpoint, canary: &Canary) {
    let body = canary.entry(&canary.value);
    for (method, target, status) in [
        ("POST", "/nope", 404),
        ("PATCH", "/configs", 405),
        ("BREW", "/configs", 501),
        ("GET", "/configs/there/", 307),
    ] {
        assert_eq!(
            endpoint.send(method, target, &canary.headers(), Some(&body)),
            status,
            "{method} {target}"
        );
    }
}

fn coded(endpoint: &Endpoint, canary: &Canary) {
    let [api, user] = canary.headers();
    let body = canary.entry(&canary.value);
    let headers = [api, user, ("Content-Encoding", "gzip")];
    assert_eq!(endpoint.send("POST", "/configs", &headers, Some(&body)), 415);
}

fn expected(endpoint: &Endpoint, canary: &Canary) {
    let [api, user] = canary.headers();
    let body = canary.entry(&canary.value);
    let whole = request("POST", "/configs", &[api, user, ("Expect", "100-continue")], Some(body.as_bytes()));
    let mut client = endpoint.connect();
    let (head, body) = whole.split_at(whole.len() - body.len());
    client.write(head);
    assert_eq!(client.receive(false).status, 100);
    client.write(body);
    assert_eq!(client.receive(false).status, 201);
}

/// Secrets for other servers, or in header fields that this server ignores.
fn other_fields(endpoint: &Endpoint, canary: &Canary) {
    let bearer = format!("Bearer {}", canary.value);
    let [api, user] = canary.headers();
    let headers =
        [api, user, ("Authorization", &*bearer), ("Cookie", &*bearer), ("X-Backup-Password", &*canary.value)];
    assert_eq!(endpoint.send("GET", "/configs/there", &headers, None), 401);
    assert_eq!(endpoint.send("GET", "/nope", &headers, None), 404);
}

fn malformed_heads(endpoint: &Endpoint, canary: &Canary) {
    for (head, status) in [
        (format!("GET / HTTP/1.1\r\nX-User-Key: {}\r\nHost x\r\n\r\n", canary.user_key), 400),
        (format!("GET / HTTP/1.1\r\nX-User-Key: {}\r\n\r\n", canary.user_key), 400),
        (format!("GET / HTTP/2.0\r\nHost: x\r\nX-User-Key: {}\r\n\r\n", canary.user_key), 505),
        (format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", canary.large(9000)), 414),
        (format!("GET / HTTP/1.1\r\nHost: x\r\nX-User-Key: {}\r\n\r\n", canary.large(20_000)), 431),
    ] {
        let mut client = endpoint.connect();
        client.stream.write_all(head.as_bytes()).ok();
        assert_eq!(client.receive(false).status, status, "{head:.60}");
    }
}

/// The read buffer grows while the key is in it.
fn large_head(endpoint: &Endpoint, canary: &Canary) {
    let filler = "f".repeat(6000);
    let [api, user] = canary.headers();
    let mut client = endpoint.connect();
    for piece in request("GET", "/configs/there", &[api, user, ("X-Filler", &filler)], None).chunks(700) {
        client.write(piece);
    }
    assert_eq!(client.receive(false).status, 401);
}

fn pipelined(endpoint: &Endpoint, canary: &Canary) {
    let body = format!(r#"{{"value":"{}"}}"#, canary.large(3000));
    let mut client = endpoint.connect();
    let mut bytes = Vec::new();
    for _ in 0..20 {
        bytes.extend(request("GET", "/configs/there", &canary.headers(), None));
        bytes.extend(request("PUT", "/configs/there", &canary.headers(), Some(body.as_bytes())));
    }
    client.write(&bytes);
    for _ in 0..40 {
        assert_eq!(client.receive(false).status, 401);
    }
}

fn byte_by_byte(endpoint: &Endpoint, canary: &Canary) {
    let body = canary.entry(&canary.value);
    let mut client = endpoint.connect();
    for byte in request("POST", "/configs", &canary.headers(), Some(body.as_bytes())) {
        client.write(&[byte]);
    }
    assert_eq!(client.receive(false).status, 201);
}

fn abandoned_half_way(endpoint: &Endpoint, canary: &Canary) {
    let body = canary.entry(&canary.large(100_000));
    let whole = request("POST", "/configs", &canary.headers(), Some(body.as_bytes()));
    let head_end = whole.len() - body.len();
    for count in [head_end - 4, head_end, head_end + 5000, whole.len() - 1] {
        for ends in [
            |client: AnyClient| drop(client),
            reset,
            |mut client: AnyClient| {
                client.stream.tcp().shutdown(Shutdown::Write).expect("the connection is open");
                client.rest();
            },
        ] {
            let mut client = endpoint.connect();
            client.write(&whole[..count]);
            ends(client);
        }
    }
}

/// A client that disconnects while its key is derived.
fn disconnected_before_the_response(endpoint: &Endpoint, canary: &Canary) {
    let update = format!(r#"{{"value":"{}"}}"#, canary.large(50_000));
    for ends in [|client: AnyClient| drop(client), reset] {
        let mut client = endpoint.connect();
        client.write(&request("PUT", "/configs/there", &canary.headers(), Some(update.as_bytes())));
        ends(client);
    }
}

fn aborted_responses(endpoint: &Endpoint, canary: &Canary) {
    let large = canary.large(3 * 1024 * 1024);
    assert_eq!(endpoint.send("POST", "/configs", &canary.headers(), Some(&canary.entry(&large))), 201);
    for target in [&canary.target(), "/configs"] {
        for count in [1, 10_000, 300_000] {
            let mut client = endpoint.connect();
            client.write(&request("GET", target, &canary.headers(), None));
            client.stream.read_exact(&mut vec![0; count]).expect("more bytes follow");
            reset(client);
        }
    }
}

// --- the tests -------------------------------------------------------------------------------

/// Checks that a request in flight is found; otherwise the scan would find nothing at all.
fn check_control(endpoint: &Endpoint) {
    let control = Canary::new("control");
    let body = control.entry(&control.value);
    let whole = request("POST", "/configs", &control.headers(), Some(body.as_bytes()));
    let mut client = endpoint.connect();
    client.write(&whole[..whole.len() - 1]);
    for needle in [&control.user_key, &control.value] {
        eventually("the scan finds a request in flight", || {
            !copies(endpoint.server.pid(), needle.as_bytes()).expect("readable").is_empty()
        });
    }
    // Secrets of the configuration stay in memory for the life of the process.
    assert!(!copies(endpoint.server.pid(), API.1.as_bytes()).expect("readable").is_empty());
}

fn check_requests(over_tls: bool) {
    let endpoint = Endpoint::start(over_tls);
    if !can_scan(&endpoint.server) {
        return;
    }
    let there = r#"{"key":"there","value":1}"#;
    assert_eq!(endpoint.send("POST", "/configs", &[API, OWNER], Some(there)), 201);
    check_control(&endpoint);
    check_clean(&endpoint.server, "after the control");
    // A body that stalls times out after a while; the scenarios run in the meantime.
    let stalled = Canary::new("stalled");
    let body = stalled.entry(&stalled.value);
    let mut late = endpoint.connect();
    let bytes = request("POST", "/configs", &stalled.headers(), Some(body.as_bytes()));
    late.write(&bytes[..bytes.len() - 1]);
    for (name, scenario) in SCENARIOS {
        scenario(&endpoint, &Canary::new(name));
    }
    assert_eq!(late.receive(false).status, 408);
    check_clean(&endpoint.server, "after all requests");
    // An idle keep-alive connection.
    let canary = Canary::new("idle");
    let mut idle = endpoint.connect();
    let body = canary.entry(&canary.large(10_000));
    for (method, target, body, status) in
        [("POST", "/configs", Some(body.as_bytes()), 201), ("GET", &canary.target(), None, 200)]
    {
        assert_eq!(idle.send(method, target, &canary.headers(), body).status, status);
    }
    check_clean(&endpoint.server, "while a connection waits");
}

#[test]
fn nothing_of_a_request_stays_in_memory() {
    check_requests(false);
}

#[test]
fn nothing_of_a_request_stays_in_memory_over_tls() {
    check_requests(true);
}

/// Checks connections that are still open, and reads from the database as well as from memory.
#[test]
fn nothing_of_a_read_stays_in_memory() {
    let endpoint = Endpoint::start(false);
    if !can_scan(&endpoint.server) {
        return;
    }
    let canary = Canary::new("read");
    for number in 0..12 {
        for (size, name) in [(number, "small"), (150_000, "large")] {
            let value = format!(r#"["{}","é{}"]"#, canary.value, canary.large(size));
            let body = format!(r#"{{"key":"{name}-{number}","value":{value}}}"#);
            assert_eq!(endpoint.send("POST", "/configs", &canary.headers(), Some(&body)), 201);
        }
    }
    let Endpoint { mut server, tls } = endpoint;
    assert!(server.stop().success());
    let launch = Launch::at(Arc::clone(&server.directory));
    let launch = launch.set("OSC_API_KEY_REQUIRED", "true").set("OSC_API_KEY", API.1);
    let endpoint = Endpoint { server: launch.start(), tls };
    let mut open = Vec::new();
    for target in [
        "/configs/small-1",
        "/configs/large-1",
        "/configs/large-2?mode=full",
        "/configs?prefix=small",
        "/configs?prefix=small&limit=3",
        "/configs?mode=full",
        "/configs",
        "/cluster/configs",
    ] {
        let mut client = endpoint.connect();
        for method in ["GET", "GET", "HEAD"] {
            let response = client.send(method, target, &canary.headers(), None);
            assert_eq!(response.status, 200, "{method} {target}");
            assert_eq!(response.text().contains(&canary.value), method == "GET", "{method} {target}");
        }
        open.push(client);
        check_clean(&endpoint.server, target);
    }
    drop(open);
    check_clean(&endpoint.server, "after the connections");
}

/// Of a derived key, only what the cache computed from it stays: the AES round keys, which begin with the second half,
/// and the states of the MAC, from which the first half cannot be derived.
#[test]
fn a_derived_key_stays_in_the_cache_only() {
    let endpoint = Endpoint::start(false);
    if !can_scan(&endpoint.server) {
        return;
    }
    let canary = Canary::new("derived");
    canary.create(&endpoint);
    assert_eq!(endpoint.send("GET", &canary.target(), &canary.headers(), None), 200);
    let salt = fs::read(endpoint.server.salt()).expect("created");
    let raw = pbkdf2::pbkdf2_hmac_array::<sha2::Sha256, 32>(canary.user_key.as_bytes(), &salt, KDF_ROUNDS);
    let count = |needle: &[u8]| copies(endpoint.server.pid(), needle).expect("readable").len();
    let words: Vec<u8> =
        raw.as_chunks().0.iter().flat_map(|&word| u32::from_be_bytes(word).to_ne_bytes()).collect();
    assert!(count(&raw[16..]) >= 1, "the cache has the key");
    assert_eq!((count(&raw[..16]), count(&words[..16])), (0, 0), "the first half is not in memory");
}
