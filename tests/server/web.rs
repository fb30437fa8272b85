//! Protection against pages of other sites in a browser on this machine.

use std::fs;

use crate::support::{Client, Launch, Response, Server, USER_KEY, proper_salt};

/// The user key. [`Client::send`] sends the `Host` `test`.
const KEY: (&str, &str) = ("X-User-Key", USER_KEY);

/// Sends a read with this `Host`.
fn get_with_host(server: &Server, host: &str, target: &str) -> Response {
    let mut client = server.connect();
    client
        .write(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nX-User-Key: {USER_KEY}\r\n\r\n").as_bytes());
    client.receive(false)
}

fn is_refused(response: &Response) -> bool {
    response.status == 421 && response.detail() == "Host not allowed, add it to OSC_ALLOWED_HOSTS"
}

#[test]
fn a_rebound_name_does_not_reach_a_server_on_loopback() {
    let server = Server::start();
    assert_eq!(server.create("k", "1").status, 201);
    let port = server.address.port();
    let with_port = |name: &str| format!("{name}:{port}");
    for host in ["127.0.0.1", "localhost", "LOCALHOST", "app.localhost", "[::1]", "127.9.9.9", "config", ""] {
        for host in [host.to_owned(), if host.is_empty() { String::new() } else { with_port(host) }] {
            assert_eq!(get_with_host(&server, &host, "/configs/k").status, 200, "{host}");
        }
    }
    for host in
        ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.7", "[2001:db8::1]"]
    {
        for target in ["/configs/k", "/configs", "/", "/metrics", "/cluster/salt", "/docs", "/nowhere"] {
            assert!(is_refused(&get_with_host(&server, &with_port(host), target)), "{host} {target}");
        }
        // Probe endpoints are served: they reveal nothing.
        for target in ["/health", "/ready", "/cluster/health"] {
            assert_eq!(get_with_host(&server, host, target).status, 200, "{host} {target}");
        }
        assert_eq!(get_with_host(&server, host, "/configs/").status, 307, "{host}");
    }
    // The absolute form determines the host, whatever the header field contains.
    let absolute = |target: &str| get_with_host(&server, "localhost", target);
    assert!(is_refused(&absolute("http://evil.example/configs/k")));
    assert_eq!(absolute("http://localhost/configs/k").status, 200);
    // Only very old clients send no host; browsers always do.
    let mut client = server.connect();
    client.write(format!("GET /configs/k HTTP/1.0\r\nX-User-Key: {USER_KEY}\r\n\r\n").as_bytes());
    assert_eq!(client.receive(false).status, 200);
    // A refusal does not close the connection.
    let mut client = server.connect();
    for (host, status) in [("evil.example", 421), ("localhost", 200)] {
        client.write(
            format!("GET /configs/k HTTP/1.1\r\nHost: {host}\r\nX-User-Key: {USER_KEY}\r\n\r\n").as_bytes(),
        );
        assert_eq!(client.receive(false).status, status);
    }
}

#[test]
fn allowed_hosts_are_configurable() {
    let server = Launch::new().set("OSC_ALLOWED_HOSTS", "conf.example.org, *.lan:9000").start();
    for (host, is_allowed) in [
        ("conf.example.org", true),
        ("Conf.Example.Org:1234", true),
        ("a.lan:9000", true),
        ("a.lan", false),
        ("lan:9000", false),
        ("localhost", false),
        ("127.0.0.1", false),
    ] {
        assert_eq!(!is_refused(&get_with_host(&server, host, "/configs")), is_allowed, "{host}");
    }
    for launch in [
        Launch::new().set("OSC_ALLOWED_HOSTS", "*"),
        Launch::new().set("OSC_HOST", "0.0.0.0"),
        Launch::new().set("OSC_API_KEY_REQUIRED", "true").set("OSC_API_KEY", "an-api-key-of-a-test"),
    ] {
        assert!(!is_refused(&get_with_host(&launch.start(), "any.example", "/configs")));
    }
}

/// Sends a write as a page would.
fn write(server: &Server, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
    let mut client = server.connect();
    client.send(method, target, &[&[KEY], headers].concat(), Some(body))
}

#[test]
fn pages_of_other_sites_cannot_write() {
    let server = Server::start();
    assert_eq!(server.create("k", "1").status, 201);
    let salt = fs::read(server.salt()).expect("created");
    let writes: [(&str, &str, &[u8]); 6] = [
        ("POST", "/configs", br#"{"key":"new","value":1}"#),
        ("PUT", "/configs/k", br#"{"value":2}"#),
        ("DELETE", "/configs/k", b""),
        ("POST", "/cluster/salt", &proper_salt(1)),
        ("POST", "/cluster/changes", b"{}"),
        ("POST", "/nowhere", b""),
    ];
    let foreign: [&[(&str, &str)]; 8] = [
        &[("Origin", "http://evil.example")],
        &[("Origin", "https://127.0.0.1:1")],
        &[("Origin", "null")],
        &[("Origin", "")],
        &[("Origin", "x")],
        &[("Origin", "http://evil.example"), ("Sec-Fetch-Site", "cross-site")],
        &[("Sec-Fetch-Site", "cross-site")],
        &[("Sec-Fetch-Site", "same-site")],
    ];
    for headers in foreign {
        for (method, target, body) in writes {
            let response = write(&server, method, target, headers, body);
            assert_eq!(response.status, 403, "{method} {target} {headers:?}");
            assert_eq!(response.text(), r#"{"detail":"Origin not allowed"}"#);
        }
        // Reads are allowed; the browser does not show the response to the page.
        let mut client = server.connect();
        let read = client.send("GET", "/configs/k", &[&[KEY], headers].concat(), None);
        assert_eq!((read.status, read.header("access-control-allow-origin")), (200, None));
    }
    assert_eq!(server.value("k"), "1");
    assert_eq!(server.get("/configs/new").status, 404);
    assert_eq!(fs::read(server.salt()).expect("exists"), salt);
}

#[test]
fn own_and_allowed_pages_can_write() {
    let launch = Launch::new().set("CORS_ORIGINS", "https://admin.example.org");
    let server = launch.start();
    assert_eq!(server.create("k", "1").status, 201);
    let put =
        |headers: &[(&str, &str)]| write(&server, "PUT", "/configs/k", headers, br#"{"value":2}"#).status;
    for headers in [
        &[][..],
        &[("Origin", "http://test")],
        &[("Origin", "https://TEST")],
        &[("Origin", "https://admin.example.org")],
        &[("Origin", "https://admin.example.org"), ("Sec-Fetch-Site", "cross-site")],
        // Behind a proxy that changes the Host.
        &[("Origin", "https://conf.example.org"), ("Sec-Fetch-Site", "same-origin")],
        &[("Sec-Fetch-Site", "none")],
    ] {
        assert_eq!(put(headers), 200, "{headers:?}");
    }
    assert_eq!(put(&[("Origin", "https://admin.example.org.evil.example")]), 403);
    let any = Launch::new().set("CORS_ORIGINS", "*").start();
    let created =
        write(&any, "POST", "/configs", &[("Origin", "https://any.example")], br#"{"key":"k","value":1}"#);
    assert_eq!(created.status, 201);
}

/// Content types that only forms send, without a preflight request. curl labels any body `x-www-form-urlencoded`.
#[test]
fn a_form_cannot_set_the_salt() {
    let server = Server::start();
    for content_type in ["text/plain", "TEXT/plain; charset=utf-8", "multipart/form-data; boundary=x"] {
        let response =
            write(&server, "POST", "/cluster/salt", &[("Content-Type", content_type)], &proper_salt(1));
        assert_eq!(response.status, 415, "{content_type}");
        assert_eq!(response.detail(), "A salt is sent as application/octet-stream");
        assert!(!server.salt().exists());
    }
    let mut client: Client = server.connect();
    for content_type in ["application/octet-stream", "application/x-www-form-urlencoded"] {
        let headers = [("Content-Type", content_type)];
        assert_eq!(client.send("POST", "/cluster/salt", &headers, Some(&proper_salt(1))).status, 200);
    }
}
