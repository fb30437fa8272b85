//! Per-client limits, and the client address behind proxies.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::lifecycle::with_descriptors;
use crate::support::{Launch, PATIENCE, Response, Server, USER_KEY, eventually};

/// Reads an entry with these additional header fields, as a proxy would send them.
fn read(server: &Server, headers: &[(&str, &str)]) -> Response {
    let headers = [&[("X-User-Key", USER_KEY)], headers].concat();
    server.connect().send("GET", "/configs/k", &headers, None)
}

#[test]
fn requests_above_the_rate_of_an_address_are_refused() {
    let server = Launch::new().set("OSC_RATE_LIMIT_PER_ADDRESS", "5").start();
    assert_eq!(server.create("k", "1").status, 201);
    let responses: Vec<Response> = (0..50).map(|_| read(&server, &[])).collect();
    let served = responses.iter().filter(|response| response.status == 200).count();
    let refused: Vec<_> = responses.iter().filter(|response| response.status == 429).collect();
    assert!(served >= 4 && served + refused.len() == 50 && refused.len() > 10, "{served}");
    for response in refused {
        assert_eq!(response.text(), r#"{"detail":"Too many requests, try again later"}"#);
        assert_eq!(response.header("retry-after"), Some("1"));
    }
    // Monitoring endpoints are never rate limited.
    for target in ["/health", "/ready", "/cluster/health", "/metrics"] {
        for _ in 0..20 {
            assert_eq!(server.connect().send("GET", target, &[], None).status, 200, "{target}");
        }
    }
    // Requests without a matching route count, too.
    let nowhere: Vec<u16> = (0..50).map(|_| server.get("/nowhere").status).collect();
    assert!(nowhere.contains(&429), "{nowhere:?}");
    // A client that waits is served again.
    eventually("the client is served again", || read(&server, &[]).status == 200);
}

#[test]
fn requests_above_the_rate_of_an_api_key_are_refused() {
    let launch = Launch::new().set("OSC_API_KEY_REQUIRED", "true").set("OSC_API_KEY", "an-api-key");
    let server = launch.set("OSC_RATE_LIMIT_PER_API_KEY", "5").start();
    let count = |key: &str| {
        let responses = (0..50).map(|_| read(&server, &[("X-API-Key", key)]).status);
        responses.filter(|status| *status == 429).count()
    };
    assert_eq!(count("wrong"), 0);
    assert!(count("an-api-key") > 10);
}

#[test]
fn only_trusted_proxies_are_believed() {
    let limited = || Launch::new().set("OSC_RATE_LIMIT_PER_ADDRESS", "1");
    let count = |server: &Server, headers: &dyn Fn(usize) -> Vec<(String, String)>| {
        let status_of = |number| {
            let headers = headers(number);
            let headers: Vec<(&str, &str)> =
                headers.iter().map(|(name, value)| (&**name, &**value)).collect();
            read(server, &headers).status
        };
        (0..40).map(status_of).filter(|status| *status == 429).count()
    };
    let field = |name: &str, value: String| vec![(name.to_owned(), value)];
    let distinct_clients = |number: usize| field("X-Forwarded-For", format!("203.0.113.{number}"));
    assert!(count(&limited().start(), &distinct_clients) > 10, "no proxy is trusted");
    let trusting = || limited().set("OSC_TRUSTED_PROXIES", "127.0.0.0/8, 10.0.0.0/8").start();
    assert_eq!(count(&trusting(), &distinct_clients), 0, "each request has another client");
    let forwarded =
        |number: usize| field("Forwarded", format!("proto=http;for=\"[2001:db8:{number:x}::1]:4711\""));
    let by_forwarded = || {
        let launch = limited().set("OSC_TRUSTED_PROXIES", "127.0.0.0/8, 10.0.0.0/8");
        launch.set("OSC_FORWARDED_HEADER", "forwarded").start()
    };
    assert_eq!(count(&by_forwarded(), &forwarded), 0);
    assert!(count(&trusting(), &forwarded) > 10, "the configured header counts");
    assert!(count(&by_forwarded(), &distinct_clients) > 10, "the other header does not count");
    // What the client claims comes before what the proxies append.
    let invented =
        |number: usize| field("X-Forwarded-For", format!("198.51.100.{number}, 203.0.113.1, 10.0.0.7"));
    assert!(count(&trusting(), &invented) > 10, "the nearest address that is not a proxy counts");
    let in_two_fields = |number: usize| {
        let mut fields = field("X-Forwarded-For", format!("198.51.100.{number}"));
        fields.extend(field("X-Forwarded-For", "203.0.113.1".to_owned()));
        fields
    };
    assert!(count(&trusting(), &in_two_fields) > 10);
    // A proxy sets one of the two headers and passes on what the client sent in the other.
    let both = |forwarded: String, forwarded_for: String| {
        let mut fields = field("Forwarded", forwarded);
        fields.extend(field("X-Forwarded-For", forwarded_for));
        fields
    };
    let forged = |number: usize| both(format!("for=198.51.100.{number}"), "203.0.113.1".to_owned());
    assert!(count(&trusting(), &forged) > 10);
    let forged_forwarded_for =
        |number: usize| both("for=203.0.113.1".to_owned(), format!("198.51.100.{number}"));
    assert_eq!(count(&trusting(), &forged_forwarded_for), 0);
    assert!(count(&by_forwarded(), &forged_forwarded_for) > 10);
    // A chain above the hop limit ends at an address that the client did not choose.
    let long =
        |number: usize| field("X-Forwarded-For", format!("198.51.100.{number}{}", ", 10.0.0.7".repeat(40)));
    assert!(count(&trusting(), &long) > 10);
    let nonsense = |number: usize| field("X-Forwarded-For", format!("198.51.100.{number}, unknown"));
    assert!(count(&trusting(), &nonsense) > 10);
    let without_address =
        |number: usize| field("Forwarded", format!("for=198.51.100.{number}, for=_hidden;by=x"));
    assert!(count(&by_forwarded(), &without_address) > 10);
    let mapped = || limited().set("OSC_TRUSTED_PROXIES", "::ffff:127.0.0.1").start();
    assert_eq!(count(&mapped(), &distinct_clients), 0, "another spelling of 127.0.0.1");
    let neighbours = |number: usize| field("X-Forwarded-For", format!("2001:db8::{number:x}"));
    assert!(count(&trusting(), &neighbours) > 10, "a /64 is one client");
}

#[test]
fn connections_of_one_address_are_bounded() {
    let server = Launch::new().set("OSC_CONNECTIONS_PER_ADDRESS", "3").start();
    let mut kept: Vec<_> = (0..3).map(|_| server.connect()).collect();
    for client in &mut kept {
        assert_eq!(client.send("GET", "/health", &[], None).status, 200);
    }
    let refused = server.connect().receive(false);
    assert_eq!(refused.status, 503);
    assert!(refused.closes() && refused.header("retry-after").is_some());
    kept.pop();
    eventually("there is room again", || {
        let mut client = server.connect();
        client.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        client.try_receive(false).is_ok_and(|response| response.status == 200)
    });
}

/// By default, one address can take three quarters of all connections and no more.
#[test]
fn one_address_cannot_use_up_all_connections() {
    let launch = Launch::new().set("OSC_PROXY_PROTOCOL", "true").set("OSC_TRUSTED_PROXIES", "127.0.0.1");
    let mut limited = with_descriptors(&launch, 160);
    let server = Server::spawn(&mut limited, std::sync::Arc::clone(&launch.directory))
        .unwrap_or_else(|refused| panic!("{}: {}", refused.status, refused.log));
    let open = |source| {
        let mut client = server.connect();
        client.write(&proxy_header(source));
        client.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        let response = client.receive(false);
        (client, response)
    };
    let (first, response) = open([192, 0, 2, 1]);
    let number = |response: &Response, name: &str| -> usize {
        let line = response.text().lines().find_map(|line| line.strip_prefix(name)).expect("the metric");
        line.trim().parse().expect("a number")
    };
    let limit = number(&response, "osc_connections_limit ");
    assert!((20..160).contains(&limit), "{limit}");
    let mut kept = vec![first];
    for _ in 1..limit * 3 / 4 {
        let (client, response) = open([192, 0, 2, 1]);
        assert_eq!(response.status, 200, "{} of {limit}", kept.len());
        kept.push(client);
    }
    for _ in 0..3 {
        let (_, refused) = open([192, 0, 2, 1]);
        assert!(refused.status == 503 && refused.closes() && refused.header("retry-after").is_some());
    }
    let (_, response) = open([192, 0, 2, 2]);
    assert_eq!(response.status, 200, "another address");
    assert_eq!(number(&response, "osc_connections_refused_total{limit=\"address\"}"), 3);
    eventually("it is logged", || server.log().contains("connections refused"));
}

/// A header of the PROXY protocol (version 2) for a client with this address.
fn proxy_header(source: [u8; 4]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend(source);
    header.extend([127, 0, 0, 1, 0x11, 0x22, 0x23, 0x28]);
    header
}

#[test]
fn the_proxy_protocol_supplies_the_client_address() {
    let launch = || Launch::new().set("OSC_PROXY_PROTOCOL", "true").set("OSC_LOG_FORMAT", "json");
    let refused = launch().try_start().err().expect("the start must fail");
    assert!(refused.log.contains("OSC_TRUSTED_PROXIES: is empty"), "{}", refused.log);
    let server = launch().set("OSC_TRUSTED_PROXIES", "127.0.0.0/8").start();
    let talk_to = |server: &Server, beginning: &[u8]| {
        let mut stream = TcpStream::connect(server.address).expect("the server listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("the timeout can be set");
        stream.write_all(beginning).expect("sent");
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok();
        let mut response = Vec::new();
        stream.read_to_end(&mut response).ok();
        String::from_utf8(response).expect("text")
    };
    let talk = |beginning: &[u8]| talk_to(&server, beginning);
    assert!(talk(&proxy_header([203, 0, 113, 9])).starts_with("HTTP/1.1 200 "));
    eventually("the log names the client", || server.log().contains(r#""client":"203.0.113.9""#));
    // A health check of the proxy: the LOCAL command, without addresses.
    assert!(talk(b"\r\n\r\n\0\r\nQUIT\n\x20\x00\0\0").starts_with("HTTP/1.1 200 "));
    for other in
        [&b""[..], b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff", &[0; 100]]
    {
        assert_eq!(talk(other), "", "{other:?}");
    }
    let began = Instant::now();
    let mut idle = TcpStream::connect(server.address).expect("the server listens");
    idle.set_read_timeout(Some(PATIENCE)).expect("the timeout can be set");
    assert_eq!(idle.read(&mut [0]).expect("the server closes the connection"), 0);
    assert!(began.elapsed() > Duration::from_secs(5), "a slow proxy gets some time");
}

/// The header determines the client address, so only trusted proxies may send one.
#[test]
fn a_proxy_header_is_accepted_from_trusted_proxies_only() {
    for engine in ["auto", "epoll"] {
        let launch = Launch::new().set("OSC_ENGINE", engine).set("OSC_LOG_FORMAT", "json");
        let server = launch.set("OSC_PROXY_PROTOCOL", "true").set("OSC_TRUSTED_PROXIES", "192.0.2.1").start();
        let talk = |beginning: &[u8]| {
            let mut client = server.connect();
            client.write(beginning);
            client.stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok();
            client.try_receive(false).ok().map(|response| response.status)
        };
        for _ in 0..20 {
            assert_eq!(talk(&proxy_header([203, 0, 113, 9])), None);
        }
        eventually("it is logged with the sender", || {
            server.log().contains("not in OSC_TRUSTED_PROXIES")
                && server.log().contains(r#""sender":"127.0.0.1""#)
        });
        assert!(
            server.log().matches("not in OSC_TRUSTED_PROXIES").count() <= 2,
            "the warning is rate limited"
        );
        assert!(!server.log().contains("203.0.113.9"));
        // Any sender may use the LOCAL command.
        assert_eq!(talk(b"\r\n\r\n\0\r\nQUIT\n\x20\x00\0\0"), Some(200));
    }
}
