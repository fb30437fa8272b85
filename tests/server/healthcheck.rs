//! `opensecureconf healthcheck`, against servers and against whatever else may listen in their place.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Launch, Server, eventually};

/// Runs the health check; returns its exit code and error text.
fn check(address: SocketAddr, host: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let launch = Launch::new().set("OSC_HOST", host).set("OSC_HOST_PORT", &address.port().to_string());
    let output = launch.command().arg("healthcheck").args(arguments).output().expect("the command starts");
    assert!(output.stdout.is_empty());
    let text = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.success(), text.is_empty(), "{text}");
    (output.status.code(), text)
}

fn refused(address: SocketAddr, arguments: &[&str], word: &str) {
    let (status, text) = check(address, "127.0.0.1", arguments);
    assert_eq!(status, Some(1), "{text}");
    assert!(text.starts_with("opensecureconf: ") && text.contains(word), "{word} is not in: {text}");
}

/// Listens, and runs `act` on each connection until the test ends.
fn listen_with(act: impl Fn(TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || listener.incoming().flatten().for_each(act));
    address
}

/// Reads a request head and responds with these bytes.
fn respond_with(bytes: &'static [u8]) -> SocketAddr {
    listen_with(move |mut stream| {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if stream.read(&mut byte).is_ok_and(|count| count == 0) {
                return;
            }
            head.extend(byte);
        }
        stream.write_all(bytes).ok();
    })
}

#[test]
fn a_running_and_a_stopped_server() {
    let mut server = Server::start();
    // A server that listens on all addresses is probed on the loopback interface.
    for host in ["127.0.0.1", "localhost", "0.0.0.0"] {
        for arguments in [&[][..], &["--ready"], &["--timeout", "60"]] {
            assert_eq!(
                check(server.address, host, arguments),
                (Some(0), String::new()),
                "{host} {arguments:?}"
            );
        }
    }
    let address = server.address;
    server.stop();
    // The kernel closes the listeners of a process that used io_uring shortly after its exit.
    eventually("the port is closed", || TcpStream::connect(address).is_err());
    refused(address, &[], "cannot connect to 127.0.0.1:");
}

#[test]
fn no_api_key_is_needed() {
    let server = Launch::new().set("OSC_API_KEY_REQUIRED", "true").set("OSC_API_KEY", "some-api-key").start();
    for arguments in [&[][..], &["--ready"]] {
        assert_eq!(check(server.address, "127.0.0.1", arguments).0, Some(0));
    }
}

#[test]
fn a_node_that_is_healthy_but_not_ready() {
    // The node is not ready while it waits for the salt of this peer.
    let unresponsive = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let peer = unresponsive.local_addr().expect("bound").to_string();
    let server = Launch::new().set("OSC_CLUSTER_ENABLED", "true").set("OSC_CLUSTER_NODES", &peer).start();
    assert_eq!(check(server.address, "127.0.0.1", &[]).0, Some(0));
    refused(server.address, &["--ready"], "/ready responded with 503: ");
    drop(unresponsive);
    eventually("the node is ready", || check(server.address, "127.0.0.1", &["--ready"]).0 == Some(0));
}

#[test]
fn servers_that_do_not_respond_in_time() {
    let hanging = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let dripping = listen_with(|mut stream| {
        stream.write_all(b"HTTP/1.1 200 ").ok();
        while stream.write_all(b"O").is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
    });
    // The kernel accepts connections for a stopped process, as it does for an overloaded one.
    let stopped = Server::start();
    stopped.signal("STOP");
    for address in [hanging.local_addr().expect("bound"), dripping, stopped.address] {
        let begun = Instant::now();
        refused(address, &["--timeout", "1"], "timed out after 1 s");
        assert!(begun.elapsed() >= Duration::from_secs(1));
    }
}

#[test]
fn other_servers_and_malformed_responses() {
    refused(listen_with(drop), &[], "no valid response");
    for (bytes, word) in [
        (&b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n"[..], "malformed"),
        (&[0xff; 100_000], "malformed"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{", "closed"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99999\r\n\r\n", "too large"),
        (
            b"HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n",
            "/cluster/health responded with 302",
        ),
        (b"HTTP/1.1 500 Oh\r\ncontent-length: 9\r\n\r\na\nb\x1b[1mc ", "responded with 500: ab[1mc"),
    ] {
        refused(respond_with(bytes), &[], word);
    }
}

#[test]
fn invalid_settings_and_arguments() {
    refused(SocketAddr::from(([127, 0, 0, 1], 0)), &[], "the configured port is 0");
    let launch = Launch::new().set("OSC_WORKERS", "none");
    let output = launch.command().arg("healthcheck").output().expect("the command starts");
    // Container runtimes reserve exit code 2.
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("OSC_WORKERS:"));
    for timeout in ["0", "61", "-1", "x"] {
        let output = launch.command().args(["healthcheck", "--timeout", timeout]).output();
        assert!(!output.expect("the command starts").status.success(), "{timeout}");
    }
}

/// Health checks connect to the server directly, not through a proxy.
#[test]
fn direct_connections_send_a_proxy_header_without_addresses() {
    let proxied = || Launch::new().set("OSC_PROXY_PROTOCOL", "true").set("OSC_TRUSTED_PROXIES", "192.0.2.1");
    let server = proxied().start();
    let launch = proxied().set("OSC_HOST_PORT", &server.address.port().to_string());
    for arguments in [&["healthcheck"][..], &["healthcheck", "--ready"]] {
        let output = launch.command().args(arguments).output().expect("the command starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    // Nodes also connect to each other directly.
    let peer = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = peer.local_addr().expect("bound").to_string();
    let _node = proxied().set("OSC_CLUSTER_ENABLED", "true").set("OSC_CLUSTER_NODES", &address).start();
    let mut received = [0; 20];
    peer.accept().expect("the node connects").0.read_exact(&mut received).expect("the node sends data");
    assert_eq!(&received, b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0GET ");
}
