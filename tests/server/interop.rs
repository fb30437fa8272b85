//! HTTP as real clients, proxies and load balancers speak it.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use opensecureconf::limits::{HEAD_BYTES_MAX, LIST_PAGE_BYTES, REQUEST_LINE_BYTES_MAX};
use rustls::{ClientConnection, StreamOwned};

use crate::certificates::{Authority, over_tls};
use crate::support::{Client, Launch, Response, Server, USER_KEY, request};
use crate::tls::launch_with_tls;

const KEY_HEADER: (&str, &str) = ("X-User-Key", USER_KEY);
const NEW_KEY_HEADER: (&str, &str) = ("X-User-Key", "a-key-that-was-never-sent-before");
const ORIGIN: &str = "https://admin.example.org";

/// Sends all requests, half-closes the connection, and reads the responses.
fn half_closed<S: Read + Write>(
    mut client: Client<S>,
    end: impl FnOnce(&mut S),
    requests: &[Vec<u8>],
) -> Vec<Response> {
    client.write(&requests.concat());
    end(&mut client.stream);
    let responses = requests.iter().map(|_| client.receive(false)).collect();
    assert_eq!(client.rest(), b"", "then the close");
    responses
}

fn check_half_closed(mut send: impl FnMut(&[Vec<u8>]) -> Vec<Response>) {
    let body = |value: &str| format!(r#"{{"key":"k","value":{value}}}"#).into_bytes();
    let post = request("POST", "/configs", &[KEY_HEADER], Some(&body("1")));
    let put = request("PUT", "/configs/k", &[KEY_HEADER], Some(&body("2")));
    let get = request("GET", "/configs/k", &[KEY_HEADER], None);
    let list = request("GET", "/configs", &[KEY_HEADER], None);
    let delete = request("DELETE", "/configs/k", &[KEY_HEADER], None);
    // The first request derives the key.
    for (requests, statuses) in [
        (vec![post.clone()], vec![201]),
        (vec![get.clone()], vec![200]),
        (vec![list.clone()], vec![200]),
        (vec![request("GET", "/configs/k", &[NEW_KEY_HEADER], None)], vec![401]),
        (vec![put, get, list, delete, post], vec![200, 200, 200, 200, 201]),
        (vec![request("GET", "/metrics", &[], None)], vec![200]),
    ] {
        let responses = send(&requests);
        assert_eq!(
            responses.iter().map(|response| response.status).collect::<Vec<_>>(),
            statuses,
            "{responses:?}"
        );
    }
}

#[test]
fn half_closed_connections_get_all_responses() {
    let server = Server::start();
    check_half_closed(|requests| {
        let end = |stream: &mut TcpStream| stream.shutdown(Shutdown::Write).expect("the connection is open");
        half_closed(server.connect(), end, requests)
    });
    let authority = Authority::new("an authority");
    let server = launch_with_tls(&authority).start();
    check_half_closed(|requests| {
        let client = over_tls(server.connect().stream, &authority.client(None));
        let end = |stream: &mut StreamOwned<ClientConnection, TcpStream>| {
            stream.conn.send_close_notify();
            stream.flush().expect("the connection is open");
            stream.sock.shutdown(Shutdown::Write).expect("the connection is open");
        };
        half_closed(client, end, requests)
    });
}

/// Trailers do not reach applications: `http.client`, `fetch` and nginx drop them.
#[test]
fn cursor_pagination_needs_no_trailers() {
    let server = Server::start();
    let large = format!("\"{}\"", "x".repeat(LIST_PAGE_BYTES / 10));
    for number in 0..30 {
        assert_eq!(server.create(&format!("large{number}"), &large).status, 201);
    }
    for number in 0..10 {
        assert_eq!(server.create(&format!("small{number}"), "1").status, 201);
    }
    for limit in [1, 7, 25, 800] {
        let (mut after, mut seen) = (String::new(), Vec::new());
        loop {
            let list = server.get(&format!("/configs?limit={limit}&after={after}"));
            assert_eq!(list.status, 200);
            assert!(
                list.trailers.is_empty() && list.header("content-length").is_some(),
                "{:?}",
                list.headers
            );
            let entries: Vec<serde_json::Value> = serde_json::from_slice(&list.body).expect("a list");
            assert!(entries.len() <= limit && (!entries.is_empty() || seen.len() == 40));
            seen.extend(entries.iter().map(|entry| entry["id"].as_i64().expect("an id")));
            match list.header("x-next-after") {
                Some(next) => after = next.to_owned(),
                None => break,
            }
        }
        assert_eq!(seen, (1..=40).collect::<Vec<_>>(), "limit {limit}");
    }
}

/// Clients resolve `.` and `..` in a `Location` before they follow it.
#[test]
fn no_redirect_leads_to_another_resource() {
    let server = Server::start();
    for key in ["keep", "a.b"] {
        assert_eq!(server.create(key, "1").status, 201);
    }
    for path in [
        "/configs/a/../../cluster/salt/",
        "/configs/x/../keep/",
        "/configs/x/%2e%2e/keep/",
        "/configs/x/.%2E/keep/",
        "/configs/x/..%5c../keep/",
        "/configs/x\\..\\keep/",
        "/configs/./keep/",
        "/configs/../",
    ] {
        for method in ["GET", "PUT", "DELETE", "HEAD"] {
            let body = (method == "PUT").then_some(&br#"{"value":2}"#[..]);
            let response = server.connect().send(method, path, &[KEY_HEADER], body);
            if path.contains("%5c") {
                // An encoded separator does not separate, so the segment is not `..`.
                assert!([307, 404].contains(&response.status), "{method} {path}: {response:?}");
                continue;
            }
            assert_eq!(response.status, 404, "{method} {path}: {response:?}");
            assert!(response.header("location").is_none(), "{method} {path}");
        }
    }
    let response = server.get("/configs/a.b/");
    assert_eq!((response.status, response.header("location")), (307, Some("/configs/a.b")));
    assert_eq!(server.value("keep"), "1");
}

/// HAProxy's health check is `OPTIONS /` of HTTP/1.0 without a host.
#[test]
fn options_lists_the_methods_of_every_path() {
    let server = Launch::new().set("OSC_API_KEY", "an-api-key").set("OSC_RATE_LIMIT_PER_IP", "1").start();
    let document: serde_json::Value =
        serde_json::from_slice(&server.get("/openapi.json").body).expect("the description");
    let paths = document["paths"].as_object().expect("paths");
    let methods = |text: &str| text.split(", ").map(str::to_owned).collect::<BTreeSet<_>>();
    for (path, operations) in paths {
        let response = server.connect().send("OPTIONS", &path.replace("{key}", "k"), &[], None);
        assert_eq!((response.status, response.header("content-length")), (204, None), "{path}: {response:?}");
        let mut expected: BTreeSet<String> = operations
            .as_object()
            .expect("operations")
            .keys()
            .map(|name| name.to_ascii_uppercase())
            .collect();
        expected.retain(|name| ["GET", "POST", "PUT", "DELETE"].contains(&name.as_str()));
        if expected.contains("GET") {
            expected.insert("HEAD".to_owned());
        }
        expected.insert("OPTIONS".to_owned());
        assert_eq!(methods(response.header("allow").expect("methods")), expected, "{path}");
    }
    let mut all = server.connect().send("OPTIONS", "*", &[], None);
    assert_eq!(all.status, 204, "{all:?}");
    assert!(all.headers.remove("allow").is_some_and(|allow| allow.contains("DELETE")), "{all:?}");
    let mut haproxy = server.connect();
    haproxy.write(b"OPTIONS / HTTP/1.0\r\n\r\n");
    assert!(haproxy.rest().starts_with(b"HTTP/1.1 204 "));
    assert_eq!(server.connect().send("OPTIONS", "/nowhere", &[], None).status, 404);
}

#[test]
fn an_allowed_origin_can_read_every_response() {
    let server = Launch::new().set("CORS_ORIGINS", ORIGIN).start();
    let head =
        |line: &str, more: &str| format!("{line}\r\nHost: x\r\nOrigin: {ORIGIN}\r\n{more}\r\n").into_bytes();
    let length = |count: usize| format!("X-User-Key: {USER_KEY}\r\nContent-Length: {count}\r\n");
    for (what, bytes, status) in [
        ("a large head", head("GET / HTTP/1.1", &format!("A: {}\r\n", "x".repeat(HEAD_BYTES_MAX))), 431),
        ("many fields", head("GET / HTTP/1.1", &"A: b\r\n".repeat(2000)), 431),
        ("a bad field", head("GET / HTTP/1.1", "A b: c\r\n"), 400),
        ("a bad length", head("POST /configs HTTP/1.1", "Content-Length: x\r\n"), 400),
        ("an expectation", head("PUT /configs/k HTTP/1.1", "Expect: more\r\n"), 417),
        ("a version", head("GET / HTTP/3.0", ""), 505),
        ("a method", head("BREW / HTTP/1.1", ""), 501),
        ("a coding", head("POST /configs HTTP/1.1", "Transfer-Encoding: gzip\r\n"), 501),
        ("a large body", head("POST /configs HTTP/1.1", &length(1 << 30)), 413),
        (
            "a bad chunk",
            [
                head(
                    "POST /configs HTTP/1.1",
                    &format!("X-User-Key: {USER_KEY}\r\nTransfer-Encoding: chunked\r\n"),
                ),
                b"zz\r\n".to_vec(),
            ]
            .concat(),
            400,
        ),
        ("no route", head("GET /nowhere HTTP/1.1", ""), 404),
        ("no method", head("PATCH /configs HTTP/1.1", ""), 405),
        ("no key", head("GET /configs HTTP/1.1", ""), 422),
    ] {
        let mut client = server.connect();
        // The response may arrive before everything is sent.
        client.stream.write_all(&bytes).ok();
        let response = client.receive(false);
        assert_eq!(response.status, status, "{what}: {response:?}");
        assert_eq!(response.header("access-control-allow-origin"), Some(ORIGIN), "{what}: {response:?}");
    }
    // An overlong request line is refused before the origin is read.
    let mut client = server.connect();
    client.stream.write_all(&[b'G'; REQUEST_LINE_BYTES_MAX + 1]).ok();
    assert_eq!(client.receive(false).status, 414);
    let other = [
        b"GET / HTTP/1.1\r\nHost: x\r\nOrigin: https://other.example\r\n".to_vec(),
        b"A b: c\r\n\r\n".to_vec(),
    ];
    let mut client = server.connect();
    client.write(&other.concat());
    assert_eq!(client.receive(false).header("access-control-allow-origin"), None);
}

/// Entries have no ETags yet, so a condition cannot hold and nothing is executed.
#[test]
fn conditional_requests_are_not_ignored() {
    let server = Server::start();
    assert_eq!(server.create("k", "1").status, 201);
    for condition in
        [("If-Match", "\"x\""), ("If-Match", "*"), ("If-Unmodified-Since", "Sun, 29 Nov 2026 00:00:00 GMT")]
    {
        for (method, target, body) in [
            ("PUT", "/configs/k", Some(&br#"{"value":2}"#[..])),
            ("DELETE", "/configs/k", None),
            ("POST", "/configs", Some(br#"{"key":"n","value":2}"#)),
            ("GET", "/configs/k", None),
        ] {
            let response = server.connect().send(method, target, &[KEY_HEADER, condition], body);
            assert_eq!(response.status, 412, "{method} {condition:?}: {response:?}");
        }
    }
    let new = ("If-None-Match", "*");
    assert_eq!(
        server.connect().send("PUT", "/configs/k", &[KEY_HEADER, new], Some(br#"{"value":2}"#)).status,
        412
    );
    // No ETag matches, so the entry is sent.
    assert_eq!(
        server.connect().send("GET", "/configs/k", &[KEY_HEADER, ("If-None-Match", "\"x\"")], None).status,
        200
    );
    assert_eq!(server.value("k"), "1");
    assert_eq!(server.get("/configs/n").status, 404);
}

/// If ignored, each of these would store something other than the client intended.
#[test]
fn content_range_and_environment_of_a_write_are_not_ignored() {
    let server = Server::start();
    assert_eq!(server.create("k", "1").status, 201);
    let part = ("Content-Range", "bytes 0-12/100");
    for (method, target, body) in
        [("PUT", "/configs/k", &br#"{"value":2}"#[..]), ("POST", "/configs", br#"{"key":"n","value":2}"#)]
    {
        let response = server.connect().send(method, target, &[KEY_HEADER, part], Some(body));
        assert_eq!(
            (response.status, &*response.detail()),
            (400, "Content-Range is not supported: the body is the whole")
        );
    }
    for (target, environment, status) in [
        ("/configs?environment=production", "", 422),
        ("/configs?environment=production", r#","environment":"staging""#, 422),
        ("/configs?environment=production", r#","environment":"production""#, 201),
        ("/configs?environment=", "", 201),
    ] {
        let body = format!(r#"{{"key":"n","value":2{environment}}}"#);
        let response = server.send("POST", target, crate::support::USER_KEY, Some(&body));
        assert_eq!(response.status, status, "{target} {body}: {response:?}");
        assert!(
            status == 201 || response.text().contains(r#""loc":["query","environment"]"#),
            "{response:?}"
        );
    }
    assert_eq!(server.value("k"), "1");
}

#[test]
fn the_error_of_a_null_value_names_the_allowed_types() {
    let server = Server::start();
    let response = server.create("k", "null");
    assert_eq!(response.status, 422);
    assert!(response.text().contains("Input should be any JSON value but null"), "{response:?}");
}

#[test]
fn requests_are_counted_by_method_and_endpoint() {
    let server = Server::start();
    assert_eq!(server.connect().send("PATCH", "/configs/k", &[], None).status, 405);
    assert_eq!(server.get("/redoc").status, 200);
    assert_eq!(server.connect().send("OPTIONS", "/health", &[], None).status, 204);
    let metrics = server.get("/metrics");
    let metrics = metrics.text();
    for labels in [
        r#"method="PATCH",endpoint="/configs/{key}",status_code="405""#,
        r#"method="GET",endpoint="/redoc",status_code="200""#,
        r#"method="OPTIONS",endpoint="/health",status_code="204""#,
    ] {
        assert!(metrics.contains(labels), "{labels}: {metrics}");
    }
}
