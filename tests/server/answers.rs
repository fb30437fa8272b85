//! Large responses: streamed in pieces from the encrypted value, byte for byte correct for every kind of client.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use opensecureconf::crypto::{FernetKey, derive};
use opensecureconf::limits::{
    BODY_BYTES_MAX, LARGE_VALUE_BYTES, LIST_PAGE_BYTES, PIECE_BYTES, PIECE_COPIES, WRITE_STALL,
};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::certificates::{Authority, over_tls};
use crate::support::{Client, Launch, OTHER_KEY, PATIENCE, Response, Server, USER_KEY, eventually, request};
use crate::tls::launch_with_tls;

const MIB: usize = 1024 * 1024;
const KEY: [(&str, &str); 1] = [("X-User-Key", USER_KEY)];

/// A connection with a small receive buffer, so that the kernel buffers little for a client that does not read.
pub(crate) fn narrow(server: &Server) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(16 * 1024).expect("set before connecting");
    socket.connect(&SockAddr::from(server.address)).expect("the server listens");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).expect("the timeout can be set");
    stream
}

/// A JSON string of this many bytes in which no two positions look alike.
fn value(bytes_count: usize) -> String {
    let mut text = String::with_capacity(bytes_count + 8);
    text.push('"');
    let mut number = bytes_count;
    while text.len() < bytes_count - 1 {
        number += 1;
        text.push_str(&format!("{number:x} "));
    }
    text.truncate(bytes_count - 1);
    text + "\""
}

/// Sizes around the limits of a block, of a piece, and of what is sent in one piece.
fn sizes() -> Vec<usize> {
    let around = |bound: usize| [bound - 17, bound - 16, bound - 1, bound, bound + 1, bound + 16];
    // The Fernet token adds at most 73 bytes to the value.
    let mut sizes: Vec<usize> =
        [LARGE_VALUE_BYTES - 73, LARGE_VALUE_BYTES, 3 * PIECE_BYTES, 32 * PIECE_BYTES]
            .into_iter()
            .flat_map(around)
            .collect();
    sizes.push(BODY_BYTES_MAX - r#"{"key":"k","value":}"#.len());
    sizes
}

fn check(response: &Response, status: u16, before: &str, value: &str) {
    assert_eq!(response.status, status);
    let length = value.len();
    assert_eq!(response.header("content-length"), Some(&*response.body.len().to_string()), "{length}");
    assert_eq!(response.header("transfer-encoding"), None, "{length}");
    assert!(response.text().starts_with(before), "{length}: {}", &response.text()[..100]);
    // Not `assert_eq`: it would print megabytes.
    assert!(response.text()[before.len()..].starts_with(value), "{length}");
}

fn check_sizes<S: Read + Write>(client: &mut Client<S>) {
    // Each size creates and deletes the entry, and ids are never reused.
    for (size, id) in sizes().into_iter().zip(1..) {
        let value = value(size);
        let before = &*format!(r#"{{"id":{id},"key":"k","category":null,"value":"#);
        let created = client.send(
            "POST",
            "/configs",
            &KEY,
            Some(format!(r#"{{"key":"k","value":{value}}}"#).as_bytes()),
        );
        check(&created, 201, before, &value);
        let read = client.send("GET", "/configs/k", &KEY, None);
        check(&read, 200, before, &value);
        assert_eq!(read.text().len(), before.len() + size + 1);
        let head = client.send("HEAD", "/configs/k", &KEY, None);
        assert_eq!((head.status, head.header("content-length")), (200, read.header("content-length")));
        // The response has content after the value, too.
        let full = client.send(
            "PUT",
            "/configs/k?environment=",
            &KEY,
            Some(format!(r#"{{"value":{value}}}"#).as_bytes()),
        );
        check(&full, 200, before, &value);
        // Several pipelined requests, with small ones between them, on one connection.
        let reads = ["/configs/k", "/health", "/configs/k?mode=full", "/configs/missing", "/configs/k"];
        client.write(&reads.map(|target| request("GET", target, &KEY, None)).concat());
        for target in reads {
            let response = client.receive(false);
            match target {
                "/health" => assert_eq!(response.status, 200),
                "/configs/missing" => assert_eq!(response.status, 404),
                _ => check(&response, 200, before, &value),
            }
        }
        assert_eq!(client.send("DELETE", "/configs/k", &KEY, None).status, 200);
    }
}

#[test]
fn large_values_arrive_byte_for_byte() {
    let server = Server::start();
    check_sizes(&mut Client::over(narrow(&server)));
}

#[test]
fn large_values_arrive_byte_for_byte_over_tls() {
    let authority = Authority::new("an authority");
    let server = launch_with_tls(&authority).start();
    check_sizes(&mut over_tls(narrow(&server), &authority.client(None)));
}

/// Values that the Python server stored with spaces are re-serialised; another user key still does not decrypt them.
#[test]
fn large_values_are_returned_in_canonical_form() {
    let mut server = Server::start();
    let text = value(200_000);
    let canonical = format!(r#"{{"b":{text},"a":[1,2]}}"#);
    for key in ["ours", "theirs"] {
        let body = format!(r#"{{"key":"{key}","environment":"prod","value":{canonical}}}"#);
        assert_eq!(server.send("POST", "/configs", USER_KEY, Some(&body)).status, 201);
    }
    assert!(server.stop().success());
    let salt = std::fs::read(server.salt()).expect("created");
    let key = FernetKey::new(&derive(USER_KEY.as_bytes(), &salt));
    let token = key.seal(format!(r#"{{"b": {text}, "a": [1, 2]}}"#).as_bytes(), 1_700_000_000);
    let database = rusqlite::Connection::open(server.database()).expect("a database");
    let update = r#"UPDATE configurations SET encrypted_value = ?1 WHERE "key" = 'theirs'"#;
    assert_eq!(database.execute(update, [token]).expect("valid"), 1);
    drop(database);
    let server = Launch::at(std::sync::Arc::clone(&server.directory)).start();
    for (id, key) in [(1, "ours"), (2, "theirs")] {
        let before = format!(r#"{{"id":{id},"key":"{key}","category":null,"environment":"prod","value":"#);
        // The first read takes the row from the file, the second from memory.
        for _ in 0..2 {
            let read = server.get(&format!("/configs/{key}?environment=prod&mode=full"));
            check(&read, 200, &before, &canonical);
            let after = &read.text()[before.len() + canonical.len()..];
            assert!(after.starts_with(r#","created_at":"#) && after.ends_with('}'), "{after}");
            assert_eq!(server.send("GET", &format!("/configs/{key}"), OTHER_KEY, None).status, 401);
        }
    }
}

/// Resident memory of the server, in bytes.
pub(crate) fn resident_bytes(server: &Server) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("the server runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("provided by Linux");
    let kib: usize = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib * 1024
}

fn check_stalled_readers(target: &str, count: usize, bytes_max_each: usize) {
    let server = Server::start();
    let value = value(3 * MIB);
    assert_eq!(server.create("k", &value).status, 201);
    assert_eq!(server.value("k"), value);
    let before = resident_bytes(&server);
    let get = request("GET", target, &KEY, None);
    let mut readers: Vec<TcpStream> = (0..count).map(|_| narrow(&server)).collect();
    for reader in &mut readers {
        reader.write_all(&get).expect("the server reads");
        // The response has begun, so its memory is allocated.
        reader.read_exact(&mut [0; 12]).expect("a response");
    }
    let grown = resident_bytes(&server).saturating_sub(before);
    assert!(grown < count * bytes_max_each, "{grown} bytes for {count} clients that do not read");
    // Other clients read the same entry in the meantime.
    assert_eq!(server.value("k"), value);
    eventually("the stalled clients are dropped", || {
        let metrics = server.get("/metrics");
        let held = metrics.text().lines().find_map(|line| line.strip_prefix("osc_answers_waiting_bytes "));
        held.expect("the metric").parse::<f64>().expect("a number") == 0.0
    });
}

#[test]
fn clients_that_do_not_read_share_one_value() {
    // Twice the budgeted size: the allocator and the connections take memory, too.
    check_stalled_readers("/configs/k", 120, 2 * PIECE_COPIES * PIECE_BYTES);
}

/// Each client holds its own decrypted page of the list.
#[test]
fn clients_that_do_not_read_a_list_are_bounded() {
    check_stalled_readers("/configs", 20, 3 * MIB + LIST_PAGE_BYTES);
}

/// An occasional byte does not count as progress: it would hold the memory for hours.
#[test]
fn a_client_that_reads_too_slowly_is_dropped() {
    let server = Server::start();
    assert_eq!(server.create("k", &value(4_000_000)).status, 201);
    let mut reader = narrow(&server);
    reader.write_all(&request("GET", "/configs/k", &KEY, None)).expect("the server reads");
    reader.set_read_timeout(Some(Duration::from_millis(500))).expect("the timeout can be set");
    let begun = Instant::now();
    eventually("the server has dropped the client", || {
        // The read timeout paces this loop; a byte may not have arrived yet.
        reader.read_exact(&mut [0; 1]).ok();
        server.get("/metrics").text().contains(r#"endpoint="/configs/{key}",status_code="499"} 1"#)
    });
    assert!(begun.elapsed() > WRITE_STALL - Duration::from_millis(200), "{:?}", begun.elapsed());
}

#[test]
fn a_large_response_completes_before_shutdown() {
    let mut server = Launch::new().start();
    let value = value(4_000_000);
    assert_eq!(server.create("k", &value).status, 201);
    let mut reader = Client::over(narrow(&server));
    reader.write(&request("GET", "/configs/k", &KEY, None));
    let mut first = [0; 12];
    reader.stream.read_exact(&mut first).expect("a response");
    assert_eq!(&first, b"HTTP/1.1 200");
    server.signal("TERM");
    eventually("the shutdown has begun", || server.log().contains("stopping"));
    let rest = String::from_utf8(reader.rest()).expect("text");
    let (_, body) = rest.split_once("\r\n\r\n").expect("a head");
    assert!(body.ends_with(&(value + "}")), "{}", body.len());
    assert!(server.wait().success());
}
