//! Request framing, on the real binary: inputs from real request smuggling bugs, and everything that lets one
//! connection carry many requests.

use std::net::Shutdown;
use std::thread;

use crate::support::{Client, Launch, OTHER_KEY, Response, Server, USER_KEY, request};

/// Its response contains "healthy", unlike any other.
const PIPELINED: &str = "GET /cluster/health HTTP/1.1\r\nHost: x\r\n\r\n";
/// Concurrent connections, few enough not to disturb the other tests.
const THREADS: usize = 8;

/// A row of the table: the bug, the bytes, and the statuses that are correct.
struct Hostile {
    name: &'static str,
    input: String,
    statuses: &'static [u16],
}

fn hostile(name: &'static str, input: impl Into<String>, statuses: &'static [u16]) -> Hostile {
    Hostile { name, input: input.into(), statuses }
}

/// A request with these header lines, whose body the server would read.
fn post(fields: &str, body: &str) -> String {
    format!("POST /configs HTTP/1.1\r\nHost: x\r\nX-User-Key: {USER_KEY}\r\n{fields}\r\n{body}")
}

/// A request with this chunked body, given in its encoded form.
fn chunked(body: &str) -> String {
    post("Transfer-Encoding: chunked\r\n", body)
}

fn lengths() -> Vec<Hostile> {
    let mut rows = vec![
        hostile("1 hyper CVE-2021-32715", post("Content-Length: +3\r\n", "abc"), &[400]),
        hostile("5 several lengths", post("Content-Length: 3\r\nContent-Length: 3\r\n", "abc"), &[400]),
        hostile(
            "17 twisted CVE-2020-10108",
            post("Content-Length: 1\r\nContent-Length: 5\r\n", "hello"),
            &[400],
        ),
        hostile("17 cheroot#737", post("Content-Length: 0\r\nContent-Length: 30\r\n", ""), &[400]),
        hostile(
            "18 HAProxy CVE-2023-40225",
            post("Content-Length:\r\nContent-Length: 5\r\n", "hello"),
            &[400],
        ),
    ];
    for value in ["+5", "-5", "0x5", "\x0b5", "5\x0c"] {
        let input = post(&format!("Content-Length: {value}\r\n"), "hello");
        rows.push(hostile("16 twisted CVE-2022-24801", input, &[400]));
    }
    for value in ["", "5,", "5,5", "5, 5"] {
        let input = post(&format!("Content-Length: {value}\r\n"), "hello");
        rows.push(hostile("18 a list or nothing", input, &[400]));
    }
    rows
}

fn transfer_codings() -> Vec<Hostile> {
    let both = |name, fields| hostile(name, post(fields, "0\r\n\r\n"), &[400, 501]);
    let mut rows = vec![
        both("3 hyper CVE-2021-21299", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"),
        both("3 hyper CVE-2021-21299", "Transfer-Encoding: chunked\r\nTransfer-Encoding: cow\r\n"),
        both("4 hyper#4123", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
        both("5 actix CVE-2021-38512", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"),
        both("8 Netty CVE-2020-7238", "Content-Length: 1\r\nTransfer-Encoding: chunked, something\r\n"),
        both("17 length, then coding", "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n"),
    ];
    for fields in [
        "Transfer-Encoding: gzip\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: chunked, gzip\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    ] {
        rows.push(hostile("9 gunicorn CVE-2024-1135", post(fields, "hello"), &[400, 501]));
    }
    for value in ["chunked,", "chunked, gzip", ",chunked", "\"chunked\"", "xchunked"] {
        let input = post(&format!("Transfer-Encoding: {value}\r\n"), "0\r\n\r\n");
        rows.push(hostile("25 tinyproxy CVE-2026-54387", input, &[400, 501]));
    }
    let body = format!("{:x}\r\n{PIPELINED}\r\n0\r\n\r\n", PIPELINED.len());
    let fields = "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n";
    rows.push(hostile("28 LiteSpeed#392", post(fields, &body), &[400]));
    rows
}

fn header_lines() -> Vec<Hostile> {
    let first = format!(
        "POST /configs HTTP/1.1\r\n Content-Length: 5\r\nHost: x\r\nX-User-Key: {USER_KEY}\r\n\r\nhello"
    );
    vec![
        hostile("6 Netty CVE-2019-16869", post("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"), &[400]),
        hostile("7 Netty CVE-2019-20444", post("Content-Length:\r\n6\r\n", "hello!"), &[400]),
        hostile("13 Node CVE-2022-32213", post("Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n"), &[400]),
        hostile("13 Node CVE-2024-27982", post(" Content-Length: 5\r\n", "hello"), &[400]),
        hostile("13 space before the first field", first, &[400]),
        hostile("14 Node CVE-2022-32214, LF", post("X: y\nContent-Length: 5\r\n", "hello"), &[400]),
        hostile("14 Node CVE-2022-35256, CR", post("X: y\rContent-Length: 5\r\n", "hello"), &[400]),
        hostile("14 LF only", "GET / HTTP/1.1\nHost: x\n\n", &[400]),
        hostile("14 CR only", "GET / HTTP/1.1\rHost: x\r\r", &[400]),
        hostile(
            "15 Node CVE-2023-30589",
            post("X-Abc: \rxTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
            &[400],
        ),
        hostile("19 HAProxy CVE-2023-25725", post(": x\r\nContent-Length: 5\r\n", "hello"), &[400]),
    ]
}

fn chunks() -> Vec<Hostile> {
    let mut rows = vec![
        hostile("2 hyper CVE-2021-32714", chunked("f0000000000000003\r\nabc\r\n0\r\n\r\n"), &[400]),
        hostile("10 h11 CVE-2025-43859", chunked("5\r\nAAAAAXX2\r\n45\r\n0\r\n\r\n"), &[400]),
        hostile("11 Kestrel CVE-2025-55315", chunked("2;a\nxx\r\nab\r\n0\r\n\r\n"), &[400]),
        hostile("12 Go CVE-2025-22871", chunked("5\nhello\r\n0\r\n\r\n"), &[400]),
        hostile("21 ATS#10580", chunked("1these-bytes\r\na\r\n0\r\n\r\n"), &[400]),
        hostile("22 bun#26931", chunked("100000005\r\nhello\r\n0\r\n\r\n"), &[400, 413]),
        hostile("23 vanilla#110", chunked("5\r\nhello0\r\n\r\n"), &[400]),
        hostile("24 actix-web#4239", chunked("\r\n\r\n"), &[400]),
        hostile("24 bun#27669", chunked(";x\r\n\r\n"), &[400]),
        hostile("26 Node CVE-2024-22019", chunked(&format!("1;{}", "x".repeat(16 * 1024))), &[400]),
    ];
    for size in ["0x5", "+5", "5\x0b", "\x0c5"] {
        let input = chunked(&format!("{size}\r\nhello\r\n0\r\n\r\n"));
        rows.push(hostile("16 twisted CVE-2022-24801", input, &[400]));
    }
    for size in ["0_0", "\r0", "0x1", "-0", " 1", "1 x"] {
        let input = chunked(&format!("{size}\r\na\r\n0\r\n\r\n"));
        rows.push(hostile("20 uhttpd#3, libevent#1542", input, &[400]));
    }
    rows
}

fn beginnings() -> Vec<Hostile> {
    vec![
        hostile("TLS", "\x16\x03\x01\x02", &[400]),
        hostile("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[505]),
        hostile("no host", "GET / HTTP/1.1\r\n\r\n", &[400]),
        hostile("two hosts", "GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", &[400]),
        hostile("a fragment", "GET /#a HTTP/1.1\r\nHost: x\r\n\r\n", &[400]),
        hostile("an unknown method", "BREW / HTTP/1.1\r\nHost: x\r\n\r\n", &[501]),
    ]
}

/// Sends the bytes in pieces of `size`; returns the first response and everything after it.
fn exchange(server: &Server, bytes: &[u8], size: usize) -> (Response, Vec<u8>) {
    let mut client = server.connect();
    for piece in bytes.chunks(size) {
        use std::io::Write;
        // The server may close the connection before the last piece, which is not an error.
        if client.stream.write_all(piece).is_err() {
            break;
        }
    }
    let response = client.receive(false);
    (response, client.rest())
}

fn check(server: &Server, row: &Hostile) {
    let input = row.input.as_bytes();
    let followed = [input, PIPELINED.as_bytes()].concat();
    for (form, bytes, size) in [
        ("in one segment", input, usize::MAX),
        ("byte by byte", input, 1),
        ("followed by a request", &followed[..], usize::MAX),
    ] {
        let (response, rest) = exchange(server, bytes, size);
        let context = format!("{}, {form}, {:?}: {response:?}", row.name, row.input);
        assert!(row.statuses.contains(&response.status), "{context}");
        assert!(response.closes() && !response.detail().is_empty(), "{context}");
        assert!(!response.text().contains("healthy"), "{context}");
        assert_eq!(String::from_utf8_lossy(&rest), "", "{context}: one response, then the close");
        assert_eq!(server.connect().send("GET", "/cluster/health", &[], None).status, 200, "{context}");
    }
}

#[test]
fn hostile_inputs_are_refused_and_nothing_after_them_is_a_request() {
    let server = Server::start();
    let tables = [lengths(), transfer_codings(), header_lines(), chunks(), beginnings()];
    let rows: Vec<Hostile> = tables.into_iter().flatten().collect();
    thread::scope(|scope| {
        for part in rows.chunks(rows.len().div_ceil(THREADS)) {
            let server = &server;
            scope.spawn(move || part.iter().for_each(|row| check(server, row)));
        }
    });
    // None of those bodies was stored as an entry.
    assert_eq!(server.get("/configs").text(), "[]");
    assert!(!server.log().contains("ERROR"), "{}", server.log());
}

/// Row 27: it must not matter where the input is split, even within a line ending.
#[test]
fn chunked_bodies_arrive_whole_wherever_they_are_split() {
    let server = Server::start();
    assert_eq!(server.create("k", "0").status, 201);
    let check = |number: usize, cuts: &[usize]| {
        let value = format!("{{\"value\":{{\"n\":{number}}}}}");
        let (first, second) = value.split_at(5);
        let mut bytes = format!(
            "PUT /configs/k HTTP/1.1\r\nHost: x\r\nX-User-Key: {USER_KEY}\r\nTransfer-Encoding: \t Chunked\t\r\n\r\n\
             {:X}\r\n{first}\r\n00{:x};a=\"b\"\r\n{second}\r\n000\r\nX-User-Key: {OTHER_KEY}\r\nContent-Length: 7\r\n\r\n",
            first.len(),
            second.len(),
        )
        .into_bytes();
        let body_start = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a head") + 4;
        bytes.extend_from_slice(PIPELINED.as_bytes());
        let mut client = server.connect();
        let mut start = 0;
        for &cut in cuts {
            let end = (body_start + cut).min(bytes.len());
            client.write(&bytes[start..end]);
            start = end;
        }
        client.write(&bytes[start..]);
        let response = client.receive(false);
        // Trailers do not become header fields: the first key still decrypts the entry.
        assert_eq!((response.status, response.value()), (200, format!("{{\"n\":{number}}}")), "{cuts:?}");
        let response = client.receive(false);
        assert!(response.status == 200 && response.text().contains("healthy"), "{cuts:?}: {response:?}");
    };
    for cut in 0..110 {
        check(cut, &[cut]);
    }
    let everywhere: Vec<usize> = (0..110).collect();
    check(200, &everywhere);
    check(201, &[3, 4, 50, 51, 52, 90]);
}

/// Each response names the entry of its request, which shows the order.
#[test]
fn pipelined_responses_are_in_request_order() {
    const COUNT: usize = 100;
    let server = Server::start();
    for number in (0..COUNT).step_by(10) {
        assert_eq!(server.create(&format!("k{number}"), "1").status, 201);
    }
    let mut client = server.connect();
    let mut bytes = Vec::new();
    for number in 0..COUNT {
        let target = format!("/configs/k{number}");
        // A new key for an existing entry requires a derivation, which is slow; a 404 is fast.
        let new_key = format!("pipelined-user-key-{number}");
        let user_key = if number % 20 == 0 { new_key.as_str() } else { USER_KEY };
        bytes.extend(request("GET", &target, &[("X-User-Key", user_key)], None));
    }
    client.write(&bytes);
    for number in 0..COUNT {
        let response = client.receive(false);
        let expected = match number {
            _ if number % 20 == 0 => (401, format!("x-user-key does not open configuration 'k{number}'")),
            _ if number % 10 == 0 => {
                assert!(response.status == 200 && response.text().contains(&format!("\"k{number}\"")));
                continue;
            }
            _ => (404, format!("Configuration with key 'k{number}' not found")),
        };
        assert_eq!((response.status, response.detail()), expected);
        assert!(!response.closes());
    }
    assert_eq!(client.send("GET", "/cluster/health", &[], None).status, 200, "the connection stays usable");
}

fn guarded() -> Server {
    Launch::new().set("OSC_API_KEY_REQUIRED", "true").set("OSC_API_KEY", "a-real-api-key").start()
}

fn with_expectation(target: &str, fields: &[(&str, &str)], length: usize) -> Vec<u8> {
    let length = length.to_string();
    let mut all = vec![("Expect", "100-Continue"), ("Content-Length", &length)];
    all.extend_from_slice(fields);
    request("POST", target, &all, None)
}

#[test]
fn continue_is_sent_only_if_the_body_will_be_read() {
    let server = guarded();
    let api_key = ("X-API-Key", "a-real-api-key");
    let user_key = ("X-User-Key", USER_KEY);
    let body = br#"{"key":"k","value":1}"#;

    let mut client = server.connect();
    client.write(&with_expectation("/configs", &[api_key, user_key], body.len()));
    let interim = client.receive(false);
    assert!(interim.status == 100 && interim.headers.is_empty(), "{interim:?}");
    client.write(body);
    let created = client.receive(false);
    assert!(created.status == 201 && !created.closes(), "{created:?}");

    // A client that sends the body immediately, or has none, waits for nothing.
    let mut bytes = with_expectation("/configs", &[api_key, user_key], body.len());
    bytes.extend_from_slice(body);
    client.write(&bytes);
    assert_eq!(client.receive(false).status, 400, "the entry exists");
    client.write(&with_expectation("/configs", &[api_key, user_key], 0));
    assert_eq!(client.receive(false).status, 422, "no body");
    let mut old = server.connect();
    old.write(
        format!(
            "POST /configs HTTP/1.0\r\nX-API-Key: a-real-api-key\r\nX-User-Key: {USER_KEY}\r\n\
             Expect: 100-continue\r\nContent-Length: 21\r\n\r\n"
        )
        .as_bytes(),
    );
    old.write(body);
    assert_eq!(old.receive(false).status, 400, "HTTP/1.0 has no interim responses");

    for (status, fields, length) in [
        (403, &[user_key][..], 10),
        (403, &[user_key, ("X-API-Key", "wrong")], 10),
        (401, &[api_key, ("X-User-Key", "short")], 10),
        (422, &[api_key], 10),
        (415, &[api_key, user_key, ("Content-Encoding", "gzip")], 10),
        (413, &[api_key, user_key], 5 * 1024 * 1024),
    ] {
        let mut client = server.connect();
        client.write(&with_expectation("/configs", fields, length));
        let response = client.receive(false);
        assert!(response.status == status && response.closes(), "{fields:?}: {response:?}");
        assert_eq!(client.rest(), b"", "{fields:?}");
    }
    let mut client = server.connect();
    let response = client.send("POST", "/configs", &[api_key, user_key, ("Expect", "200-ok")], Some(body));
    assert!(response.status == 417 && response.closes(), "{response:?}");
}

#[test]
fn an_early_refusal_reaches_a_client_that_is_still_sending() {
    let server = guarded();
    let body = vec![b' '; 3 * 1024 * 1024];
    for (status, fields) in [(403, ("X-API-Key", "wrong")), (422, ("X-API-Key", "a-real-api-key"))] {
        let mut client = server.connect();
        // The whole body is written before a byte of the response is read.
        let response = client.send("POST", "/configs", &[fields], Some(&body));
        assert!(response.status == status && response.closes() && !response.body.is_empty(), "{response:?}");
        assert_eq!(client.rest(), b"");
    }
}

#[test]
fn head_is_get_without_the_body() {
    let server = Server::start();
    assert_eq!(server.create("k", "{\"a\":1}").status, 201);
    let mut client = server.connect();
    for target in [
        "/",
        "/configs",
        "/configs?limit=1",
        "/configs/k",
        "/configs/k?mode=full",
        "/configs/none",
        "/configs?limit=none",
        "/cluster/status",
        "/cluster/health",
        "/cluster/configs",
        "/cluster/salt",
        "/nowhere",
        "/configs/",
    ] {
        let fields = [("X-User-Key", USER_KEY)];
        let mut head = client.send("HEAD", target, &fields, None);
        let mut get = client.send("GET", target, &fields, None);
        for response in [&mut head, &mut get] {
            for name in ["date", "x-request-id"] {
                response.headers.remove(name).expect("every response has it");
            }
        }
        assert_eq!((head.status, &head.headers), (get.status, &get.headers), "{target}");
        assert_eq!(get.headers["content-length"], get.body.len().to_string(), "{target}");
    }
}

#[test]
fn a_long_list_has_the_same_head_for_head() {
    let server = Server::start();
    let value = format!("\"{}\"", "x".repeat(600 * 1024));
    for key in ["a", "b", "c"] {
        assert_eq!(server.create(key, &value).status, 201);
    }
    let mut client = server.connect();
    let fields = [("X-User-Key", USER_KEY)];
    let head = client.send("HEAD", "/configs", &fields, None);
    let get = client.send("GET", "/configs", &fields, None);
    assert_eq!(head.headers.get("transfer-encoding"), get.headers.get("transfer-encoding"));
    assert_eq!(
        (head.headers.len(), head.headers.get("trailer")),
        (get.headers.len(), get.headers.get("trailer"))
    );
    assert_eq!(get.trailers["x-entries-hidden"], "0");

    // HTTP/1.0 has no chunked coding: closing the connection ends the list.
    let mut old = server.connect();
    old.write(
        format!("GET /configs HTTP/1.0\r\nConnection: keep-alive\r\nX-User-Key: {USER_KEY}\r\n\r\n")
            .as_bytes(),
    );
    let whole = old.rest();
    let start = whole.windows(4).position(|window| window == b"\r\n\r\n").expect("a head") + 4;
    let head = String::from_utf8_lossy(&whole[..start]);
    assert!(head.contains("connection: close") && !head.contains("chunked"), "{head}");
    assert!(whole[start..] == get.body, "the same list");
}

#[test]
fn connection_persistence() {
    let server = Server::start();
    for (version, fields, expected_header, is_kept) in [
        ("1.1", "", None, true),
        ("1.1", "Connection: keep-alive\r\n", None, true),
        ("1.1", "Connection: close\r\n", Some("close"), false),
        ("1.1", "Connection: upgrade,\tClose \r\n", Some("close"), false),
        ("1.1", "Connection: upgrade\r\nConnection: CLOSE\r\n", Some("close"), false),
        ("1.1", "Connection: not-close\r\n", None, true),
        ("1.0", "", Some("close"), false),
        ("1.0", "Connection: Keep-Alive\r\n", Some("keep-alive"), true),
        ("1.0", "Connection: x, keep-alive\r\n", Some("keep-alive"), true),
        ("1.0", "Connection: keep-alive, close\r\n", Some("close"), false),
    ] {
        let mut client = server.connect();
        let one = format!("GET /cluster/health HTTP/{version}\r\nHost: x\r\n{fields}\r\n");
        // Bytes after the last request in the same segment are not a request.
        client.write(one.repeat(2).as_bytes());
        let response = client.receive(false);
        let context = format!("HTTP/{version} {fields:?}: {response:?}");
        assert_eq!(
            (response.status, response.headers.get("connection").map(String::as_str)),
            (200, expected_header),
            "{context}"
        );
        if is_kept {
            assert_eq!(client.receive(false).status, 200, "{context}");
            // The server responds to the end of its input by closing its output.
            client.stream.shutdown(Shutdown::Write).expect("the connection is open");
        }
        assert_eq!(client.rest(), b"", "{context}");
    }
}

#[test]
fn nothing_is_executed_after_the_last_response() {
    let server = Server::start();
    assert_eq!(server.create("k", "1").status, 201);
    let put = request("PUT", "/configs/k", &[("X-User-Key", USER_KEY)], Some(br#"{"value":2}"#));
    let last = request("GET", "/cluster/health", &[("Connection", "close")], None);
    let refused = b"GET / HTTP/1.1\r\n\r\n".to_vec();
    for (what, last) in [("close requested", last), ("refused", refused)] {
        let pipelined = |client: &mut Client| client.write(&[&last[..], &put[..]].concat());
        let one_by_one = |client: &mut Client| client.write(&last);
        for send in [&pipelined as &dyn Fn(&mut Client), &one_by_one] {
            let mut client = server.connect();
            send(&mut client);
            assert!(client.receive(false).closes(), "{what}");
            // The server has closed its side but still reads; this request is discarded.
            client.write(&put);
            assert_eq!(client.rest(), b"", "{what}");
        }
    }
    assert_eq!(server.value("k"), "1");
}

#[test]
fn targets() {
    let server = Server::start();
    for key in ["k", "a/b", "c d", "%"] {
        assert_eq!(server.create(key, "1").status, 201);
    }
    let mut client = server.connect();
    for (target, status, key) in [
        ("http://elsewhere:80/configs/k", 200, "k"),
        ("HTTPS://[::1]/configs/k?mode=short", 200, "k"),
        ("/configs/a%2Fb", 200, "a/b"),
        ("/configs/a%2fb", 200, "a/b"),
        ("/configs/a/b", 200, "a/b"),
        ("/configs/%63%20d", 200, "c d"),
        ("/configs/%25", 200, "%"),
        ("/%63onfigs/k", 200, "k"),
        // Decoded only once, and `+` is not a space in a path.
        ("/configs/a%252Fb", 404, "a%2Fb"),
        ("/configs/c+d", 404, "c+d"),
        // An encoded slash does not start a segment.
        ("/configs%2Fk", 404, ""),
        ("/cluster%2Fhealth", 404, ""),
        // Dots are part of the key, not path traversal.
        ("/configs/../cluster/health", 404, "../cluster/health"),
    ] {
        let response = client.send("GET", target, &[("X-User-Key", USER_KEY)], None);
        assert_eq!(response.status, status, "{target}: {response:?}");
        let expected = if status == 200 { format!("\"key\":\"{key}\"") } else { key.to_owned() };
        assert!(response.text().contains(&expected), "{target}: {response:?}");
    }
    let response = client.send("OPTIONS", "*", &[], None);
    assert_eq!(response.status, 204, "{response:?}");
    // A 405 response lists the allowed methods; the body of a request that needs none is skipped.
    let response =
        client.send("PATCH", "/configs/k", &[("X-User-Key", USER_KEY)], Some(PIPELINED.as_bytes()));
    assert_eq!((response.status, response.headers["allow"].as_str()), (405, "GET, HEAD, PUT, DELETE"));
    let response = client.send("GET", "/configs/k", &[("X-User-Key", USER_KEY)], Some(PIPELINED.as_bytes()));
    assert_eq!(response.value(), "1");
    assert_eq!(client.send("GET", "/cluster/status", &[], None).status, 200, "no response was left over");
}
