//! What one client may take, and who it is when proxies stand between.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::lifecycle::with_descriptors;
use crate::support::{Launch, PATIENCE, Response, Server, USER_KEY, eventually};

/// Reads an entry, as a proxy that says these things.
fn read(server: &Server, headers: &[(&str, &str)]) -> Response {
    let headers = [&[("X-User-Key", USER_KEY)], headers].concat();
    server.connect().send("GET", "/configs/k", &headers, None)
}

#[test]
fn more_than_an_address_may_ask_is_refused_until_later() {
    let server = Launch::new().set("OSC_RATE_LIMIT_PER_ADDRESS", "5").start();
    assert_eq!(server.create("k", "1").status, 201);
    let answers: Vec<Response> = (0..50).map(|_| read(&server, &[])).collect();
    let served = answers.iter().filter(|answer| answer.status == 200).count();
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status == 429).collect();
    assert!(served >= 4 && served + refused.len() == 50 && refused.len() > 10, "{served}");
    for answer in refused {
        assert_eq!(answer.text(), r#"{"detail":"Too many requests, try again later"}"#);
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    // What watches over the server is never refused.
    for target in ["/health", "/ready", "/cluster/health", "/metrics"] {
        for _ in 0..20 {
            assert_eq!(server.connect().send("GET", target, &[], None).status, 200, "{target}");
        }
    }
    // What leads nowhere counts, too.
    let nowhere: Vec<u16> = (0..50).map(|_| server.get("/nowhere").status).collect();
    assert!(nowhere.contains(&429), "{nowhere:?}");
    // Somebody who waits is served again.
    eventually("it is served again", || read(&server, &[]).status == 200);
}

#[test]
fn more_than_an_api_key_may_ask_is_refused() {
    let launch = Launch::new().set("OSC_API_KEY_REQUIRED", "true").set("OSC_API_KEY", "an-api-key");
    let server = launch.set("OSC_RATE_LIMIT_PER_API_KEY", "5").start();
    let count = |key: &str| {
        let answers = (0..50).map(|_| read(&server, &[("X-API-Key", key)]).status);
        answers.filter(|status| *status == 429).count()
    };
    assert_eq!(count("wrong"), 0);
    assert!(count("an-api-key") > 10);
}

#[test]
fn a_named_proxy_is_believed_and_nobody_else() {
    let limited = || Launch::new().set("OSC_RATE_LIMIT_PER_ADDRESS", "1");
    let count = |server: &Server, headers: &dyn Fn(usize) -> Vec<(String, String)>| {
        let ask = |number| {
            let headers = headers(number);
            let headers: Vec<(&str, &str)> =
                headers.iter().map(|(name, value)| (&**name, &**value)).collect();
            read(server, &headers).status
        };
        (0..40).map(ask).filter(|status| *status == 429).count()
    };
    let field = |name: &str, value: String| vec![(name.to_owned(), value)];
    let each_another = |number: usize| field("X-Forwarded-For", format!("203.0.113.{number}"));
    assert!(count(&limited().start(), &each_another) > 10, "nobody is believed");
    let trusting = || limited().set("OSC_TRUSTED_PROXIES", "127.0.0.0/8, 10.0.0.0/8").start();
    assert_eq!(count(&trusting(), &each_another), 0, "each is another client");
    let forwarded =
        |number: usize| field("Forwarded", format!("proto=http;for=\"[2001:db8:{number:x}::1]:4711\""));
    let by_forwarded = || {
        let launch = limited().set("OSC_TRUSTED_PROXIES", "127.0.0.0/8, 10.0.0.0/8");
        launch.set("OSC_FORWARDED_HEADER", "forwarded").start()
    };
    assert_eq!(count(&by_forwarded(), &forwarded), 0);
    assert!(count(&trusting(), &forwarded) > 10, "the header of the setting is the one");
    assert!(count(&by_forwarded(), &each_another) > 10, "and the only one");
    // The client's own word stands before what the proxies say.
    let invented =
        |number: usize| field("X-Forwarded-For", format!("198.51.100.{number}, 203.0.113.1, 10.0.0.7"));
    assert!(count(&trusting(), &invented) > 10, "the nearest address that is no proxy counts");
    let in_two_fields = |number: usize| {
        let mut fields = field("X-Forwarded-For", format!("198.51.100.{number}"));
        fields.extend(field("X-Forwarded-For", "203.0.113.1".to_owned()));
        fields
    };
    assert!(count(&trusting(), &in_two_fields) > 10);
    // A proxy writes one of the two, and lets the client's other one pass.
    let both = |forwarded: String, others: String| {
        let mut fields = field("Forwarded", forwarded);
        fields.extend(field("X-Forwarded-For", others));
        fields
    };
    let forged = |number: usize| both(format!("for=198.51.100.{number}"), "203.0.113.1".to_owned());
    assert!(count(&trusting(), &forged) > 10);
    let forged_others = |number: usize| both("for=203.0.113.1".to_owned(), format!("198.51.100.{number}"));
    assert_eq!(count(&trusting(), &forged_others), 0);
    assert!(count(&by_forwarded(), &forged_others) > 10);
    // Longer chains than there are proxies end somewhere that the client did not choose.
    let long =
        |number: usize| field("X-Forwarded-For", format!("198.51.100.{number}{}", ", 10.0.0.7".repeat(40)));
    assert!(count(&trusting(), &long) > 10);
    let nonsense = |number: usize| field("X-Forwarded-For", format!("198.51.100.{number}, unknown"));
    assert!(count(&trusting(), &nonsense) > 10);
    let without_address =
        |number: usize| field("Forwarded", format!("for=198.51.100.{number}, for=_hidden;by=x"));
    assert!(count(&by_forwarded(), &without_address) > 10);
    let mapped = || limited().set("OSC_TRUSTED_PROXIES", "::ffff:127.0.0.1").start();
    assert_eq!(count(&mapped(), &each_another), 0, "another way to write 127.0.0.1");
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
        client.try_receive(false).is_ok_and(|answer| answer.status == 200)
    });
}

/// By default one address takes three quarters of all connections and no more.
#[test]
fn one_address_leaves_connections_for_others() {
    let launch = Launch::new().set("OSC_PROXY_PROTOCOL", "true").set("OSC_TRUSTED_PROXIES", "127.0.0.1");
    let mut limited = with_descriptors(&launch, 160);
    let server = Server::spawn(&mut limited, std::sync::Arc::clone(&launch.directory))
        .unwrap_or_else(|refused| panic!("{}: {}", refused.status, refused.log));
    let open = |source| {
        let mut client = server.connect();
        client.write(&proxy_header(source));
        client.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        let answer = client.receive(false);
        (client, answer)
    };
    let (first, answer) = open([192, 0, 2, 1]);
    let number = |answer: &Response, name: &str| -> usize {
        let line = answer.text().lines().find_map(|line| line.strip_prefix(name)).expect("the metric");
        line.trim().parse().expect("a number")
    };
    let limit = number(&answer, "osc_connections_limit ");
    assert!((20..160).contains(&limit), "{limit}");
    let mut kept = vec![first];
    for _ in 1..limit * 3 / 4 {
        let (client, answer) = open([192, 0, 2, 1]);
        assert_eq!(answer.status, 200, "{} of {limit}", kept.len());
        kept.push(client);
    }
    for _ in 0..3 {
        let (_, refused) = open([192, 0, 2, 1]);
        assert!(refused.status == 503 && refused.closes() && refused.header("retry-after").is_some());
    }
    let (_, answer) = open([192, 0, 2, 2]);
    assert_eq!(answer.status, 200, "another address");
    assert_eq!(number(&answer, "osc_connections_refused_total{limit=\"address\"}"), 3);
    eventually("it is logged", || server.log().contains("connections refused"));
}

/// A header of the PROXY protocol for a client with this address.
fn proxy_header(source: [u8; 4]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend(source);
    header.extend([127, 0, 0, 1, 0x11, 0x22, 0x23, 0x28]);
    header
}

#[test]
fn the_proxy_protocol_tells_who_the_client_is() {
    let launch = || Launch::new().set("OSC_PROXY_PROTOCOL", "true").set("OSC_LOG_FORMAT", "json");
    let refused = launch().try_start().err().expect("it must not start");
    assert!(refused.log.contains("OSC_TRUSTED_PROXIES: is empty"), "{}", refused.log);
    let server = launch().set("OSC_TRUSTED_PROXIES", "127.0.0.0/8").start();
    let talk_to = |server: &Server, beginning: &[u8]| {
        let mut stream = TcpStream::connect(server.address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(beginning).expect("sent");
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok();
        String::from_utf8(answer).expect("text")
    };
    let talk = |beginning: &[u8]| talk_to(&server, beginning);
    assert!(talk(&proxy_header([203, 0, 113, 9])).starts_with("HTTP/1.1 200 "));
    eventually("the log names the client", || server.log().contains(r#""client":"203.0.113.9""#));
    // A health check of the proxy: no addresses, the connection is its own.
    assert!(talk(b"\r\n\r\n\0\r\nQUIT\n\x20\x00\0\0").starts_with("HTTP/1.1 200 "));
    for other in
        [&b""[..], b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff", &[0; 100]]
    {
        assert_eq!(talk(other), "", "{other:?}");
    }
    let began = Instant::now();
    let mut silent = TcpStream::connect(server.address).expect("it listens");
    silent.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    assert_eq!(silent.read(&mut [0]).expect("it is closed"), 0);
    assert!(began.elapsed() > Duration::from_secs(5), "a slow proxy has some time");
}

/// The client is taken to be the one that the header names, so only proxies may send one.
#[test]
fn a_proxy_header_is_believed_from_proxies_only() {
    for engine in ["auto", "epoll"] {
        let launch = Launch::new().set("OSC_ENGINE", engine).set("OSC_LOG_FORMAT", "json");
        let server = launch.set("OSC_PROXY_PROTOCOL", "true").set("OSC_TRUSTED_PROXIES", "192.0.2.1").start();
        let talk = |beginning: &[u8]| {
            let mut client = server.connect();
            client.write(beginning);
            client.stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok();
            client.try_receive(false).ok().map(|answer| answer.status)
        };
        for _ in 0..20 {
            assert_eq!(talk(&proxy_header([203, 0, 113, 9])), None);
        }
        eventually("it is logged with the sender", || {
            server.log().contains("not in OSC_TRUSTED_PROXIES")
                && server.log().contains(r#""sender":"127.0.0.1""#)
        });
        assert!(server.log().matches("not in OSC_TRUSTED_PROXIES").count() <= 2, "not each one is");
        assert!(!server.log().contains("203.0.113.9"));
        // Every sender may say that the connection is its own.
        assert_eq!(talk(b"\r\n\r\n\0\r\nQUIT\n\x20\x00\0\0"), Some(200));
    }
}
