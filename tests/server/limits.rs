//! Every limit on the real binary, with its status. A client that exhausts a limit does not affect others.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use opensecureconf::limits;
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::answers::{narrow, resident_bytes};
use crate::support::{Client, Launch, Response, Server, USER_KEY, eventually, request};

const HEALTH: &str = "GET /cluster/health HTTP/1.1\r\nHost: x\r\n\r\n";

/// Sends the bytes and returns the response that closes the connection, whatever is sent after it.
fn last_response(client: &mut Client, bytes: &[u8]) -> Response {
    // The server may close the connection before the last byte.
    client.stream.write_all(bytes).ok();
    let response = client.receive(false);
    assert!(response.closes(), "{response:?}");
    assert_eq!(client.rest(), b"", "{response:?}");
    response
}

fn check_refused(server: &Server, what: &str, bytes: &[u8], status: u16) {
    let response = last_response(&mut server.connect(), &[bytes, HEALTH.as_bytes()].concat());
    assert_eq!(response.status, status, "{what}: {response:?}");
    assert!(!response.detail().is_empty(), "{what}");
}

fn check_accepted(server: &Server, what: &str, bytes: &[u8], status: u16) {
    let mut client = server.connect();
    client.write(&[bytes, HEALTH.as_bytes()].concat());
    let response = client.receive(false);
    assert!(response.status == status && !response.closes(), "{what}: {response:?}");
    assert_eq!(client.receive(false).status, 200, "{what}");
}

#[test]
fn heads() {
    let server = Server::start();
    // `GET ` and ` HTTP/1.1` count towards the line, its terminator does not.
    let line = |length: usize| format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(length - 14));
    check_accepted(&server, "line", line(limits::REQUEST_LINE_BYTES_MAX).as_bytes(), 404);
    check_refused(&server, "line", line(limits::REQUEST_LINE_BYTES_MAX + 1).as_bytes(), 414);
    check_refused(&server, "line without end", &[b'G'; limits::REQUEST_LINE_BYTES_MAX + 1], 414);

    let head = |length: usize| {
        let rest = length - "GET / HTTP/1.1\r\nHost: x\r\nA: \r\n\r\n".len();
        format!("GET / HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "x".repeat(rest))
    };
    check_accepted(&server, "head", head(limits::HEAD_BYTES_MAX).as_bytes(), 200);
    check_refused(&server, "head", head(limits::HEAD_BYTES_MAX + 1).as_bytes(), 431);

    let fields = |count: usize| format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(count - 1));
    check_accepted(&server, "fields", fields(limits::HEADERS_COUNT_MAX).as_bytes(), 200);
    check_refused(&server, "fields", fields(limits::HEADERS_COUNT_MAX + 1).as_bytes(), 431);
}

#[test]
fn bodies() {
    let server = Server::start();
    let head = format!("POST /configs HTTP/1.1\r\nHost: x\r\nX-User-Key: {USER_KEY}\r\n");
    let whole = |length: usize| {
        let value = length - r#"{"key":"big","value":""}"#.len();
        format!(r#"{{"key":"big","value":"{}"}}"#, "x".repeat(value))
    };
    let body = whole(limits::BODY_BYTES_MAX);
    check_accepted(
        &server,
        "length",
        format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes(),
        201,
    );
    assert_eq!(server.value("big").len(), limits::BODY_BYTES_MAX - 22, "the whole value was stored");
    let half = limits::BODY_BYTES_MAX / 2;
    let pieces = format!("{half:x}\r\n{}\r\n{half:x}\r\n{}\r\n", &body[..half], &body[half..]);
    let coded = format!("{head}Transfer-Encoding: chunked\r\n\r\n{pieces}0\r\n\r\n");
    check_accepted(&server, "chunks", coded.as_bytes(), 400);

    // The length alone decides: no byte of the body is sent.
    for length in ["4194305", "5000000000", "99999999999999999999999999"] {
        let input = format!("{head}Content-Length: {length}\r\n\r\n");
        let response = last_response(&mut server.connect(), input.as_bytes());
        assert_eq!(response.status, 413, "{length}");
    }
    let coded = format!("{head}Transfer-Encoding: chunked\r\n\r\n");
    check_refused(&server, "one more byte", format!("{coded}{pieces}1\r\n").as_bytes(), 413);
    check_refused(&server, "a large chunk", format!("{coded}400001\r\n").as_bytes(), 413);

    let small = r#"{"key":"k","value":1}"#;
    let extended = |length: usize| format!("{coded}15;{}\r\n{small}\r\n0\r\n\r\n", "x".repeat(length - 1));
    check_accepted(&server, "extension", extended(limits::CHUNK_EXTENSION_BYTES_MAX).as_bytes(), 201);
    check_refused(&server, "extension", extended(limits::CHUNK_EXTENSION_BYTES_MAX + 1).as_bytes(), 400);
    let extension = "x".repeat(limits::CHUNK_EXTENSION_BYTES_MAX - 1);
    let many = |count: usize| format!("{coded}{}0\r\n\r\n", format!("1;{extension}\r\n \r\n").repeat(count));
    let most = limits::CHUNK_EXTENSIONS_BYTES_MAX / limits::CHUNK_EXTENSION_BYTES_MAX;
    check_accepted(&server, "extensions", many(most).as_bytes(), 422);
    check_refused(&server, "extensions", many(most + 1).as_bytes(), 400);
    let trailer =
        |length: usize| format!("{coded}15\r\n{small}\r\n0\r\nA: {}\r\n\r\n", "x".repeat(length - 5));
    check_accepted(&server, "trailers", trailer(limits::TRAILERS_BYTES_MAX).as_bytes(), 400);
    check_refused(&server, "trailers", trailer(limits::TRAILERS_BYTES_MAX + 1).as_bytes(), 431);
}

/// Checks that an unfinished request gets 408, and not before `at_least`.
fn check_timeout(server: &Server, what: &str, begin: &str, more: Option<&'static str>, at_least: Duration) {
    let mut client = server.connect();
    let begun = Instant::now();
    client.write(begin.as_bytes());
    let has_ended = AtomicBool::new(false);
    let response = thread::scope(|scope| {
        if let Some(more) = more {
            let mut stream = client.stream.try_clone().expect("the socket can be cloned");
            let has_ended = &has_ended;
            scope.spawn(move || {
                while !has_ended.load(Ordering::Relaxed) && stream.write_all(more.as_bytes()).is_ok() {
                    thread::sleep(Duration::from_millis(500));
                }
            });
        }
        let response = client.receive(false);
        has_ended.store(true, Ordering::Relaxed);
        response
    });
    let waited = begun.elapsed();
    assert!(response.status == 408 && response.closes(), "{what}: {response:?}");
    // The clock of the server ticks every 100 ms, so it may be ahead by as much.
    assert!(waited > at_least - Duration::from_millis(200), "{what}: {waited:?}");
    assert!(waited < at_least + Duration::from_secs(8), "{what}: {waited:?}");
}

#[test]
fn slow_requests_time_out() {
    let server = Server::start();
    let put = format!("PUT /configs/k HTTP/1.1\r\nHost: x\r\nX-User-Key: {USER_KEY}\r\n");
    let length = format!("{put}Content-Length: 100\r\n\r\n{{");
    let coded = format!("{put}Transfer-Encoding: chunked\r\n\r\n1\r\n");
    let enough_once = limits::TRANSFER_BYTES_MIN;
    let earned = format!("{put}Content-Length: 100000\r\n\r\n{}", " ".repeat(3 * enough_once));
    let cases = [
        ("half a head", "GET / HTTP/1.1\r\nHost:", None, limits::HEAD_DEADLINE),
        // Counted from the first byte, whatever follows it.
        ("a slow head", "GET / HTTP/1.1\r\n", Some("A: b\r\n"), limits::HEAD_DEADLINE),
        ("half a body", &length, None, limits::BODY_DEADLINE),
        ("a slow body", &length, Some(" "), limits::BODY_DEADLINE),
        ("half a chunk", &coded, None, limits::BODY_DEADLINE),
        // However much data arrives at once, it earns one window only.
        ("30 KiB at once", &earned, None, limits::BODY_DEADLINE),
    ];
    thread::scope(|scope| {
        for (what, begin, more, at_least) in cases {
            let server = &server;
            scope.spawn(move || check_timeout(server, what, begin, more, at_least));
        }
    });
}

/// Field case 15. Each of 200 idle connections sends a write within 50 ms of the moment at which the server closes it,
/// before or after.
#[test]
fn idle_connections_end_and_no_request_is_lost_half() {
    const COUNT: u64 = 200;
    let server = Server::start();
    let mut clients: Vec<Client> = (0..COUNT).map(|_| server.connect()).collect();
    for number in 0..COUNT {
        assert_eq!(server.create(&format!("k{number}"), "0").status, 201);
    }
    let mut quiet = server.connect();
    // The idle timeout counts from the last response.
    let responded_at: Vec<Instant> = clients
        .iter_mut()
        .map(|client| {
            assert_eq!(client.send("GET", "/cluster/health", &[], None).status, 200);
            Instant::now()
        })
        .collect();
    assert_eq!(quiet.send("GET", "/cluster/health", &[], None).status, 200);
    let idle_since = Instant::now();

    thread::scope(|scope| {
        let writing: Vec<_> = (0..COUNT)
            .zip(clients.iter_mut().zip(&responded_at))
            .map(|(number, (client, &responded_at))| {
                scope.spawn(move || {
                    // The server acts on the timeout at its next tick, up to 100 ms later.
                    let at = limits::KEEP_ALIVE_IDLE + Duration::from_millis(number * 200 / COUNT);
                    let early = Duration::from_millis(50);
                    let moment = responded_at + at - early;
                    thread::sleep(moment.saturating_duration_since(Instant::now()));
                    let target = format!("/configs/k{number}");
                    let fields = [("X-User-Key", USER_KEY)];
                    let put = request("PUT", &target, &fields, Some(br#"{"value":1}"#));
                    if client.stream.write_all(&put).is_err() {
                        return None;
                    }
                    client.try_receive(false).ok()
                })
            })
            .collect();
        for (number, writing) in writing.into_iter().enumerate() {
            let response = writing.join().expect("no panic");
            // A complete response and the change, or neither.
            match response {
                Some(response) => {
                    assert_eq!(response.status, 200, "{number}: {response:?}");
                    assert_eq!(server.value(&format!("k{number}")), "1", "{number}: a response arrived");
                }
                None => assert_eq!(server.value(&format!("k{number}")), "0", "{number}: no response arrived"),
            }
        }
    });

    // No response, which would be taken for that to the next request; and an orderly close, not a reset.
    let mut rest = Vec::new();
    quiet.stream.read_to_end(&mut rest).expect("the end of input, not a reset");
    let waited = idle_since.elapsed();
    assert_eq!(rest, b"");
    assert!(waited > limits::KEEP_ALIVE_IDLE - Duration::from_millis(200), "{waited:?}");
    assert!(waited < limits::KEEP_ALIVE_IDLE + Duration::from_secs(30), "{waited:?}");
}

/// TCP state of the server's side of a connection, as the kernel reports it.
fn state(server: &Server, client: SocketAddr) -> Option<String> {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("provided by Linux");
    let (server, client) = (format!(":{:04X}", server.address.port()), format!(":{:04X}", client.port()));
    table.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_it = words.get(1)?.ends_with(&server) && words.get(2)?.ends_with(&client);
        is_it.then(|| words.get(3).map(|state| (*state).to_owned())).flatten()
    })
}

#[test]
fn a_client_that_does_not_read_is_dropped() {
    const ESTABLISHED: &str = "01";
    let server = Server::start();
    // Far more than the kernel buffers for a client that does not read.
    let value = format!("\"{}\"", "x".repeat(1024 * 1024));
    for number in 0..24 {
        assert_eq!(server.create(&format!("k{number}"), &value).status, 201);
    }
    let mut stream = narrow(&server);
    let own = stream.local_addr().expect("connected");
    let begun = Instant::now();
    stream
        .write_all(&request("GET", "/configs", &[("X-User-Key", USER_KEY)], None))
        .expect("the server reads");
    let mut bystander = server.connect();
    eventually("the server has closed the connection", || {
        assert_eq!(
            bystander.send("GET", "/cluster/health", &[], None).status,
            200,
            "other clients are served"
        );
        state(&server, own).is_none_or(|state| state != ESTABLISHED)
    });
    assert!(begun.elapsed() > limits::WRITE_STALL - Duration::from_millis(200), "{:?}", begun.elapsed());
    // What the kernel has buffered still arrives, but cannot be mistaken for the complete list.
    let mut received = Vec::new();
    stream.read_to_end(&mut received).ok();
    assert!(received.starts_with(b"HTTP/1.1 200 ") && !received.ends_with(b"\r\n\r\n"));
    assert_eq!(server.value("k0"), value);
}

/// Raises the file descriptor limit of this process for `count` sockets; returns whether it suffices.
fn may_open(count: u64) -> bool {
    let mut limit = getrlimit(Resource::Nofile);
    // The other tests need file descriptors, too.
    let needed = count + 4000;
    if limit.current.is_none_or(|current| current >= needed) {
        return true;
    }
    if limit.maximum.is_some_and(|maximum| maximum < needed) {
        return false;
    }
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).is_ok()
}

#[expect(clippy::print_stderr, reason = "a test that does nothing should not look like one that passed")]
fn skip(why: &str) {
    eprintln!("skipped: {why}");
}

#[test]
fn slow_clients_do_not_delay_others() {
    const COUNT: u64 = 1000;
    const READS: u32 = 200;
    if !may_open(COUNT) {
        return skip("too few file descriptors");
    }
    let server = Server::start();
    assert_eq!(server.create("k", "1").status, 201);
    let mut slow: Vec<Client> = (0..COUNT).map(|_| server.connect()).collect();
    let is_over = AtomicBool::new(false);
    let slowest = thread::scope(|scope| {
        scope.spawn(|| {
            // Each sends one byte per second.
            for byte in HEALTH.as_bytes() {
                for client in &mut slow {
                    client.write(&[*byte]);
                }
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
                thread::sleep(Duration::from_secs(1));
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        let mut client = server.connect();
        let mut slowest = Duration::ZERO;
        for _ in 0..READS {
            let begun = Instant::now();
            let response = client.send("GET", "/configs/k", &[("X-User-Key", USER_KEY)], None);
            slowest = slowest.max(begun.elapsed());
            assert_eq!(response.value(), "1");
            // Spreads the reads over some of those seconds.
            thread::sleep(Duration::from_millis(20));
        }
        is_over.store(true, Ordering::Relaxed);
        slowest
    });
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
}

#[test]
fn too_many_connections() {
    let most = u64::try_from(limits::CONNECTIONS_COUNT_MAX).expect("a small number");
    if !may_open(most) {
        return skip("too few file descriptors");
    }
    let server = Server::start();
    let mut clients = Vec::new();
    for number in 0..limits::CONNECTIONS_COUNT_MAX {
        clients.push(server.connect());
        // The accept queue of the listening socket holds fewer than that.
        if number % 1000 == 999 {
            let newest = clients.last_mut().expect("just added");
            assert_eq!(newest.send("GET", "/cluster/health", &[], None).status, 200);
        }
    }
    assert_eq!(
        clients.last_mut().expect("not empty").send("GET", "/", &[], None).status,
        200,
        "the last connection"
    );
    let mut one_too_many = server.connect();
    let response = one_too_many.receive(false);
    assert_eq!((response.status, response.headers["retry-after"].as_str()), (503, "1"), "{response:?}");
    assert!(response.closes() && !response.detail().is_empty());
    assert_eq!(one_too_many.rest(), b"");
    // Typical clients send their request before they look for a response.
    let mut one_too_many = server.connect();
    one_too_many.stream.write_all(HEALTH.as_bytes()).ok();
    assert_eq!(one_too_many.receive(false).status, 503);
    // Accepted connections keep working, and closing some makes room.
    assert_eq!(clients[0].send("GET", "/cluster/health", &[], None).status, 200);
    clients.truncate(limits::CONNECTIONS_COUNT_MAX - 100);
    eventually("there is room again", || {
        let mut client = server.connect();
        client.stream.write_all(HEALTH.as_bytes()).ok();
        client.try_receive(false).is_ok_and(|response| response.status == 200)
    });
}

#[test]
fn unfinished_bodies_use_up_a_budget_and_give_way() {
    const COUNT: usize = 32;
    let server = Server::start();
    assert_eq!(server.create("k", "1").status, 201);
    let before = resident_bytes(&server);
    let head = format!(
        "POST /configs HTTP/1.1\r\nHost: x\r\nX-User-Key: {USER_KEY}\r\nContent-Length: {}\r\n\r\n",
        limits::BODY_BYTES_MAX
    );
    let almost = [head.as_bytes(), &vec![b' '; limits::BODY_BYTES_MAX - 1]].concat();
    let mut clients: Vec<Client> = (0..COUNT).map(|_| server.connect()).collect();
    for client in &mut clients {
        // Those without room are closed while they send.
        client.stream.write_all(&almost).ok();
    }
    let begun = Instant::now();
    // Reads of other clients are served.
    assert_eq!(server.value("k"), "1");
    // A body that makes progress, from the same address, needs a stalled one to give way, which takes two seconds.
    let value = format!("\"{}\"", "x".repeat(1024 * 1024));
    let mut attempts = 0;
    eventually("there is room for a body that arrives", || {
        attempts += 1;
        let response = server.create("honest", &value);
        assert!(response.status == 201 || response.status == 503 && response.headers["retry-after"] == "1");
        response.status == 201
    });
    let waited = begun.elapsed();
    assert!(waited < limits::BODY_DEADLINE / 2, "{waited:?}, {attempts} attempts");
    assert_eq!(server.value("honest"), value);
    let grown = resident_bytes(&server).saturating_sub(before);
    assert!(grown < limits::BODIES_BYTES_MAX_PER_EXECUTOR + 32 * 1024 * 1024, "{grown} bytes");
    // Each gets a retryable status, because another body needed its room or because its deadline passed.
    for client in &mut clients {
        if let Ok(response) = client.try_receive(false) {
            assert!([408, 503].contains(&response.status) && response.closes(), "{response:?}");
        }
    }
    let full = format!("\"{}\"", "x".repeat(3 * 1024 * 1024));
    assert_eq!(server.update("k", &full).status, 200);
}

#[test]
fn a_full_derivation_queue() {
    const COUNT: usize = 400;
    // The queue is the only limit in this test.
    let server = Launch::new().set("OSC_FAILED_KEYS_PER_ADDRESS", "0").start();
    assert_eq!(server.create("k", "1").status, 201);
    let mut clients: Vec<Client> = (0..COUNT).map(|_| server.connect()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        let user_key = format!("one-of-many-user-keys-{number}");
        client.write(&request("GET", "/configs/k", &[("X-User-Key", &user_key)], None));
    }
    // Cached entries wait for none of them.
    let mut bystander = server.connect();
    let begun = Instant::now();
    for _ in 0..100 {
        let response = bystander.send("GET", "/configs/k", &[("X-User-Key", USER_KEY)], None);
        assert_eq!(response.value(), "1");
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let (mut derived, mut refused) = (0, 0);
    for client in &mut clients {
        let response = client.receive(false);
        match response.status {
            401 => derived += 1,
            503 => {
                assert_eq!(response.headers["retry-after"], "1");
                refused += 1;
            }
            _ => panic!("{response:?}"),
        }
        assert!(!response.closes(), "the connection stays open: {response:?}");
    }
    assert!(derived > 0 && refused > 0, "{derived} derived, {refused} refused");
    assert_eq!(derived + refused, COUNT);
    // The queue is empty again.
    let response = clients[COUNT - 1].send("GET", "/configs/k", &[("X-User-Key", "yet-another-key")], None);
    assert_eq!(response.status, 401, "{response:?}");
}

/// More data arrives at once than a ring has buffers for; every connection is served nevertheless.
#[test]
fn many_simultaneous_requests() {
    const COUNT: usize = 600;
    let server = Server::start();
    let mut clients: Vec<Client> = (0..COUNT).map(|_| server.connect()).collect();
    for client in &mut clients {
        // Accepted, and waiting for the next request.
        assert_eq!(client.send("GET", "/cluster/health", &[], None).status, 200);
    }
    for round in 0..3 {
        server.signal("STOP");
        for client in &mut clients {
            client.write(&request("GET", "/cluster/health", &[], None));
            client.write(&request("GET", "/", &[], None));
        }
        server.signal("CONT");
        for (index, client) in clients.iter_mut().enumerate() {
            for _ in 0..2 {
                assert_eq!(client.receive(false).status, 200, "round {round}, client {index}");
            }
        }
    }
}
