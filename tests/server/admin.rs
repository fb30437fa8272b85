//! The admin listener: its endpoints, its access rules, and the health check that uses it.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::certificates::{Authority, put};
use crate::support::{Client, Launch, Server, eventually, listening_at};
use crate::tls::launch_with_tls;

/// The address of the admin listener, from the log.
pub(crate) fn admin_address(server: &Server) -> SocketAddr {
    let mut found = None;
    eventually("the admin listener is logged", || {
        let log = server.log();
        found = log.lines().find(|line| line.contains("probes and metrics")).and_then(listening_at);
        found.is_some()
    });
    found.expect("set by the loop above")
}

fn healthcheck(launch: &Launch, arguments: &[&str]) -> (Option<i32>, String) {
    let output = launch.command().arg("healthcheck").args(arguments).output().expect("the command starts");
    (output.status.code(), String::from_utf8(output.stderr).expect("UTF-8"))
}

#[test]
fn serves_probes_and_metrics_only() {
    let server = Launch::new()
        .set("OSC_ADMIN_LISTEN", "0")
        .set("OSC_API_KEY_REQUIRED", "true")
        .set("OSC_API_KEY", "some-api-key-of-clients")
        .set("OSC_PROXY_PROTOCOL", "true")
        .set("OSC_TRUSTED_PROXIES", "192.0.2.1")
        .start();
    let address = admin_address(&server);
    assert!(address.ip().is_loopback());
    // Neither a PROXY header nor an API key is needed.
    let mut client = Client::connect(address);
    for target in ["/health", "/ready", "/cluster/health", "/metrics"] {
        assert_eq!(client.send("GET", target, &[], None).status, 200, "{target}");
        assert_eq!(client.send("POST", target, &[], Some(b"{}")).status, 405, "{target}");
    }
    let keys = [("X-API-Key", "some-api-key-of-clients"), ("X-User-Key", "correct-horse-battery")];
    for target in
        ["/", "/configs", "/configs/a", "/cluster/salt", "/cluster/status", "/docs", "/openapi.json"]
    {
        assert_eq!(client.send("GET", target, &keys, None).status, 404, "{target}");
    }
    assert_eq!(client.send("DELETE", "/configs/a", &keys, None).status, 404);
}

#[test]
fn the_health_check_works_under_mutual_tls() {
    let (servers, clients) = (Authority::new("of servers"), Authority::new("of clients"));
    let launch = launch_with_tls(&servers);
    let directory = Arc::clone(&launch.directory);
    put(directory.path(), "clients.pem", &clients.certificate);
    let server = launch.set("OSC_SSL_CA_CERTS", "clients.pem").set("OSC_ADMIN_LISTEN", "127.0.0.1:0").start();
    let with_tls = |launch: Launch| {
        launch
            .set("OSC_HOST_PORT", &server.address.port().to_string())
            .set("OSC_HTTPS_ENABLED", "true")
            .set("OSC_SSL_CERTFILE", "cert.pem")
            .set("OSC_SSL_KEYFILE", "key.pem")
            .set("OSC_SSL_CA_CERTS", "clients.pem")
    };
    let without = with_tls(Launch::at(Arc::clone(&directory)));
    let (status, text) = healthcheck(&without, &[]);
    assert_eq!(status, Some(1));
    assert!(text.contains("set OSC_ADMIN_LISTEN"), "{text}");
    let admin = admin_address(&server).to_string();
    let with = with_tls(Launch::at(Arc::clone(&directory))).set("OSC_ADMIN_LISTEN", &admin);
    for arguments in [&[][..], &["--ready"]] {
        assert_eq!(healthcheck(&with, arguments), (Some(0), String::new()), "{arguments:?}");
    }
    // The check depends on no other setting and on no file.
    std::fs::write(directory.path().join("key.pem"), "damaged").expect("written");
    assert_eq!(healthcheck(&with, &[]), (Some(0), String::new()));
}

#[test]
fn invalid_addresses_are_refused() {
    for (listen, part) in [
        ("localhost", "has no port"),
        ("99999", "has no port"),
        ("two words:1", "is neither an address nor a name"),
    ] {
        let refused =
            Launch::new().set("OSC_ADMIN_LISTEN", listen).try_start().err().expect("the start must fail");
        assert_eq!(refused.status.code(), Some(2), "{}", refused.log);
        assert!(refused.log.contains("OSC_ADMIN_LISTEN: ") && refused.log.contains(part), "{}", refused.log);
    }
    let other = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = other.local_addr().expect("bound").port().to_string();
    let same = Launch::new().set("OSC_HOST_PORT", &port).set("OSC_ADMIN_LISTEN", &port);
    let refused = same.try_start().err().expect("the start must fail");
    assert!(refused.log.contains("overlaps with OSC_HOST and OSC_HOST_PORT"), "{}", refused.log);
    let taken = Launch::new().set("OSC_ADMIN_LISTEN", &port).try_start().err().expect("the start must fail");
    let message = format!("cannot listen on 127.0.0.1:{port}: another process is listening on this port");
    assert!(taken.log.contains(&message), "{}", taken.log);
}
