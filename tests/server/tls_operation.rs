//! TLS diagnostics for operators: certificate expiry and failed handshakes.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::admin::admin_address;
use crate::certificates::{Authority, Issued, over_tls, put};
use crate::support::{Client, Launch, Server, eventually, request};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn issue(authority: &Authority, ends: SystemTime) -> Issued {
    authority.issue_with(|params| params.not_after = ends.into())
}

fn launch(issued: &Issued) -> Launch {
    let launch = Launch::new().set("OSC_ADMIN_LISTEN", "127.0.0.1:0").set("OSC_HTTPS_ENABLED", "true");
    issued.write(launch.directory.path());
    launch.set("OSC_SSL_CERTFILE", "cert.pem").set("OSC_SSL_KEYFILE", "key.pem")
}

/// A metric without labels.
fn metric(server: &Server, name: &str) -> f64 {
    let mut client = Client::connect(admin_address(server));
    let text = client.send("GET", "/metrics", &[], None).text().to_owned();
    let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    found.expect("exists").parse().expect("a number")
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).expect("after 1970").as_secs() as f64
}

/// Number of warnings in a log that the certificate in a setting expires soon.
fn expiry_warnings(log: &str, setting: &str) -> usize {
    log.lines().filter(|line| line.contains("certificate expires soon") && line.contains(setting)).count()
}

#[test]
fn certificate_expiry_is_a_metric_and_a_warning_when_near() {
    let authority = Authority::new("an authority");
    let begun = SystemTime::now();
    for (days, is_near) in [(1, true), (13, true), (16, false)] {
        let ends = begun + days * DAY + Duration::from_secs(3600);
        let mut server = launch(&issue(&authority, ends)).start();
        assert_eq!(metric(&server, "osc_tls_certificate_expiry_seconds"), seconds(ends));
        let warnings_count = || expiry_warnings(&server.log(), "OSC_SSL_CERTFILE");
        let log = server.log();
        assert!(warnings_count() == usize::from(is_near), "{days}: {log}");
        assert!(!is_near || log.contains(&format!("days={days}")), "{days}: {log}");
        // A replaced certificate is checked, too.
        let ends = begun + 2 * DAY + Duration::from_secs(3600);
        issue(&authority, ends).write(server.directory.path());
        eventually("it is logged", || server.log().contains("days=2"));
        assert_eq!(metric(&server, "osc_tls_certificate_expiry_seconds"), seconds(ends));
        assert_eq!(warnings_count(), 1 + usize::from(is_near));
        assert!(server.stop().success());
    }
}

/// Once the CA has expired, every client is refused.
#[test]
fn the_expiry_of_a_ca_causes_a_warning() {
    let server_authority = Authority::new("an authority");
    let soon = SystemTime::now() + 3 * DAY + Duration::from_secs(3600);
    let clients = Authority::until("clients", soon);
    let old = Authority::until("clients, before", SystemTime::now() - DAY);
    for (bundle, is_reported) in [
        (clients.certificate.clone(), true),
        // Bundles contain expired CAs, too.
        (format!("{}{}", old.certificate, clients.certificate), true),
        (format!("{}{}", clients.certificate, Authority::new("clients, next").certificate), false),
    ] {
        let launch = launch(&server_authority.issue()).set("OSC_SSL_CA_CERTS", "clients.pem");
        put(launch.directory.path(), "clients.pem", &bundle);
        let server = launch.start();
        let log = server.log();
        assert_eq!(expiry_warnings(&log, "OSC_SSL_CA_CERTS"), usize::from(is_reported), "{log}");
        assert_eq!(expiry_warnings(&log, "OSC_SSL_CERTFILE"), 0, "{log}");
    }
}

#[test]
fn a_certificate_that_expires_while_the_server_runs_is_an_error() {
    let authority = Authority::new("an authority");
    let server = launch(&issue(&authority, SystemTime::now() + Duration::from_secs(8))).start();
    assert!(server.log().contains("days=0"), "{}", server.log());
    eventually("it is logged", || {
        server.log().lines().any(|line| line.contains("ERROR") && line.contains("has expired"))
    });
}

#[test]
fn failed_handshakes_are_counted_and_logged_at_a_limited_rate() {
    let (authority, clients) = (Authority::new("an authority"), Authority::new("clients"));
    let launch = launch(&authority.issue()).set("OSC_SSL_CA_CERTS", "clients.pem").set("OSC_WORKERS", "1");
    put(launch.directory.path(), "clients.pem", &clients.certificate);
    let server = launch.start();
    let failed = || metric(&server, "osc_tls_handshakes_failed_total");
    assert_eq!(failed(), 0.0);
    // A connection without data, such as the check of a load balancer, does not count.
    drop(server.connect());
    for _ in 0..20 {
        let mut stranger = over_tls(server.connect().stream, &authority.client(None));
        stranger.stream.write_all(&request("GET", "/health", &[], None)).ok();
        stranger.try_receive(false).expect_err("no response");
    }
    eventually("all are counted", || failed() == 20.0);
    let mut plain = TcpStream::connect(server.address).expect("the server listens");
    plain.write_all(&request("GET", "/health", &[], None)).expect("written");
    let mut response = String::new();
    plain.read_to_string(&mut response).expect("a response");
    assert!(response.starts_with("HTTP/1.1 400"), "{response}");
    eventually("it is counted", || failed() == 21.0);
    let log = server.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("TLS handshake failed")).collect();
    let words = ["INFO", "address=127.0.0.1", "error=peer sent no certificates"];
    assert!(words.iter().all(|word| lines[0].contains(word)), "{lines:?}");
    // This takes longer on a busy machine, and one line is logged every ten seconds.
    assert!(lines.len() < 10, "{lines:?}");
    let mut known = over_tls(server.connect().stream, &authority.client(Some(&clients.issue())));
    assert_eq!(known.send("GET", "/health", &[], None).status, 200);
    assert_eq!(failed(), 21.0);
}
