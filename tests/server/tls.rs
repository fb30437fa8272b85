//! TLS as clients see it: curl, `openssl s_client`, and rustls where bytes matter.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::certificates::{Authority, Issued, TlsClient, over_tls, put};
use crate::support::{Client, Launch, PATIENCE, Server, USER_KEY, eventually, request};

const ENGINES: [&str; 2] = ["auto", "epoll"];

/// Runs the test on both engines concurrently, because waiting for deadlines takes long.
fn on_both_engines(test: impl Fn(&str) + Sync) {
    thread::scope(|scope| {
        for engine in ENGINES {
            let test = &test;
            scope.spawn(move || test(engine));
        }
    });
}

/// A server with TLS, and the CA of its certificate, which is in its directory, too.
struct Secure {
    authority: Authority,
    server: Server,
}

/// Returns a server configuration with a certificate of this CA.
pub(crate) fn launch_with_tls(authority: &Authority) -> Launch {
    launch(&authority.issue(), authority)
}

fn launch(issued: &Issued, authority: &Authority) -> Launch {
    let launch = Launch::new();
    issued.write(launch.directory.path());
    put(launch.directory.path(), "ca.pem", &authority.certificate);
    let launch = launch.set("OSC_HTTPS_ENABLED", "true").set("OSC_SSL_CERTFILE", "cert.pem");
    launch.set("OSC_SSL_KEYFILE", "key.pem")
}

fn started(settings: &[(&str, &str)]) -> Secure {
    let authority = Authority::new("an authority");
    let launch = launch_with_tls(&authority);
    let server = settings.iter().fold(launch, |launch, (name, value)| launch.set(name, value)).start();
    Secure { authority, server }
}

impl Secure {
    fn connect(&self) -> TlsClient {
        self.connect_as(None)
    }

    fn connect_as(&self, shown: Option<&Issued>) -> TlsClient {
        over_tls(self.server.connect().stream, &self.authority.client(shown))
    }

    /// Returns the certificate that a new connection is presented with.
    fn certificate(&self) -> Vec<u8> {
        let mut client = self.connect();
        assert_eq!(client.send("GET", "/health", &[], None).status, 200);
        client.stream.conn.peer_certificates().expect("a certificate")[0].to_vec()
    }

    fn curl(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--include", "--max-time", "30", "--cacert"]);
        command.arg(self.server.directory.path().join("ca.pem")).args(arguments);
        command.arg(format!("https://localhost:{}/health", self.server.address.port()));
        command.output().expect("curl is installed")
    }

    fn s_client(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &self.server.address.to_string(), "-verify_return_error"]);
        command.arg("-CAfile").arg(self.server.directory.path().join("ca.pem")).args(arguments);
        command.stdin(Stdio::null());
        let Output { stdout, stderr, .. } = command.output().expect("openssl is installed");
        String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned()
    }
}

/// Returns the error of a request over this connection.
fn failure(mut client: TlsClient) -> String {
    client.stream.write_all(&request("GET", "/health", &[], None)).ok();
    client.try_receive(false).expect_err("no response").to_string()
}

#[test]
fn curl_and_openssl_connect_with_both_tls_versions() {
    for engine in ENGINES {
        let secure = started(&[("OSC_ENGINE", engine)]);
        for arguments in [&[][..], &["--tlsv1.2", "--tls-max", "1.2"], &["--tlsv1.3"], &["--http1.1"]] {
            let Output { status, stdout, stderr } = secure.curl(arguments);
            let text = String::from_utf8_lossy(&stdout);
            assert!(status.success() && text.starts_with("HTTP/1.1 200"), "{text}{stderr:?}");
            assert!(!text.to_lowercase().contains("strict-transport-security"), "{text}");
        }
        for (version, name) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
            let text = secure.s_client(&[version, "-alpn", "h2,http/1.1"]);
            for part in [&*format!("New, {name}"), "Verify return code: 0 (ok)", "ALPN protocol: http/1.1"] {
                assert!(text.contains(part), "{part}: {text}");
            }
            assert!(secure.s_client(&[version]).contains("No ALPN negotiated"));
        }
        for version in ["-tls1", "-tls1_1"] {
            let text = secure.s_client(&[version, "-cipher", "ALL:@SECLEVEL=0"]);
            let refused = ["alert protocol version", "alert handshake failure"];
            assert!(refused.iter().any(|alert| text.contains(alert)), "{text}");
        }
        let text = secure.s_client(&["-alpn", "h2"]);
        assert!(text.contains("alert no application protocol"), "{text}");
        let text = secure.s_client(&["-verify_hostname", "other.example.org"]);
        assert!(text.contains("hostname mismatch"), "{text}");
    }
}

#[test]
fn requests_work_as_without_tls() {
    for engine in ENGINES {
        let secure = started(&[("OSC_ENGINE", engine)]);
        let mut client = secure.connect();
        let headers = [("X-User-Key", USER_KEY), ("Content-Type", "application/json")];
        let value = format!("\"{}\"", "0123456789abcdef".repeat(60_000));
        for index in 0..12 {
            let body = format!(r#"{{"key":"k{index}","value":{value}}}"#);
            let response = client.send("POST", "/configs", &headers, Some(body.as_bytes()));
            assert_eq!(response.status, 201);
        }
        assert_eq!(client.send("GET", "/configs/k3", &headers, None).value(), value);
        let list = client.send("GET", "/configs", &headers, None);
        assert_eq!(list.trailers.get("x-entries-hidden").map(String::as_str), Some("0"));
        let list: Vec<serde_json::Value> = serde_json::from_slice(&list.body).expect("JSON");
        assert!(list.len() == 12 && list.iter().all(|entry| entry["value"] == value[1..value.len() - 1]));

        // Many pipelined requests, whose responses exceed what the sockets take while the client does not read.
        let one = request("GET", "/configs/k5", &headers, None);
        client.write(&one.repeat(20));
        for _ in 0..20 {
            assert_eq!(client.receive(false).value(), value);
        }
        // In pieces that do not match TLS records.
        for byte in request("GET", "/health", &[], None) {
            client.write(&[byte]);
        }
        assert_eq!(client.receive(false).status, 200);
        // Refused by its head, while the body is still being sent.
        client.write(b"POST /configs HTTP/1.1\r\nHost: x\r\nX-User-Key: correct-horse-battery\r\n");
        client.write(b"Content-Length: 99999999\r\n\r\n");
        client.write(&[b'x'; 300_000]);
        assert_eq!(client.receive(false).status, 413);
    }
}

/// Without `close_notify` a client could not tell whether the response was truncated (RFC 8446, 6.1).
#[test]
fn connections_end_with_close_notify() {
    for engine in ENGINES {
        let mut secure = started(&[("OSC_ENGINE", engine)]);
        let mut closing = secure.connect();
        closing.write(&request("GET", "/health", &[("Connection", "close")], None));
        assert_eq!(closing.receive(false).status, 200);
        assert_eq!(closing.stream.read(&mut [0]).expect("close_notify"), 0);

        // A client that ends its side and waits for the server to do the same.
        let mut ending = secure.connect();
        assert_eq!(ending.send("GET", "/health", &[], None).status, 200);
        ending.stream.conn.send_close_notify();
        ending.stream.flush().expect("sent");
        assert_eq!(ending.stream.read(&mut [0]).expect("close_notify"), 0);

        // A connection that is cut off is not an error.
        let mut cut = secure.connect();
        assert_eq!(cut.send("GET", "/health", &[], None).status, 200);
        cut.stream.sock.shutdown(Shutdown::Both).expect("closed");

        let mut idle = secure.connect();
        assert_eq!(idle.send("GET", "/health", &[], None).status, 200);
        // The shutdown does not wait for a client that is stuck in the handshake.
        let mut stalled = secure.server.connect();
        stalled.write(&[22, 3, 1]);
        let begun = Instant::now();
        assert!(secure.server.stop().success(), "{}", secure.server.log());
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        assert_eq!(idle.stream.read(&mut [0]).expect("close_notify"), 0);
        assert!(!secure.server.log().contains("ERROR"), "{}", secure.server.log());
    }
}

#[test]
fn plain_http_gets_an_error_response() {
    for engine in ENGINES {
        let secure = started(&[("OSC_ENGINE", engine)]);
        let mut plain = secure.server.connect();
        let body = b"x".repeat(100_000);
        let response = plain.send("POST", "/configs", &[("X-User-Key", USER_KEY)], Some(&body));
        assert_eq!(
            (response.status, response.text()),
            (400, r#"{"detail":"This port speaks TLS only, use https://"}"#)
        );
        assert!(response.closes());
        assert_eq!(plain.rest(), b"");
        for junk in [&b"\0\0\0\0"[..], b"ssh", b"\x16\x03\x01\xff\xff\xff", b"\x16GET / HTTP/1.1\r\n\r\n"] {
            let mut client = secure.server.connect();
            client.write(junk);
            // The server may have closed the connection before.
            client.stream.shutdown(Shutdown::Write).ok();
            let rest = client.rest();
            // Nothing, or an alert.
            assert!(rest.is_empty() || (rest[0] == 21 && rest.len() == 7), "{junk:?}: {rest:?}");
        }
        assert_eq!(secure.connect().send("GET", "/health", &[], None).status, 200);
    }
}

#[test]
fn stalled_handshakes_time_out_and_delay_no_other_client() {
    on_both_engines(|engine| {
        let secure = started(&[("OSC_ENGINE", engine)]);
        let begun = Instant::now();
        // One client sends nothing, the others the beginning of a record.
        let beginnings = [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"];
        let mut stalled: Vec<Client> = beginnings.iter().map(|_| secure.server.connect()).collect();
        for (client, beginning) in stalled.iter_mut().zip(beginnings) {
            client.write(beginning);
        }
        let dripping = thread::spawn({
            let mut client = secure.server.connect();
            // A record of 512 bytes that is never completed.
            client.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc");
            move || {
                while client.stream.write_all(&[3]).is_ok() {
                    assert!(begun.elapsed() < PATIENCE, "the connection is dropped");
                    thread::sleep(Duration::from_millis(200));
                }
                begun.elapsed()
            }
        });
        while begun.elapsed() < Duration::from_secs(8) {
            assert_eq!(secure.connect().send("GET", "/health", &[], None).status, 200);
            thread::sleep(Duration::from_millis(100));
        }
        for client in &mut stalled {
            assert_eq!(client.rest(), b"");
            assert!((9..16).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
        }
        assert!(dripping.join().expect("no panic") < Duration::from_secs(16));
    });
}

#[test]
fn clients_need_a_certificate_if_a_ca_is_configured() {
    let trusted = Authority::new("of clients");
    let other = Authority::new("another");
    for engine in ENGINES {
        let secure = Authority::new("an authority");
        let launch = launch(&secure.issue(), &secure).set("OSC_ENGINE", engine);
        put(launch.directory.path(), "clients.pem", &trusted.certificate);
        let server = launch.set("OSC_SSL_CA_CERTS", "clients.pem").start();
        let secure = Secure { authority: secure, server };

        let mut client = secure.connect_as(Some(&trusted.issue()));
        assert_eq!(client.send("GET", "/health", &[], None).status, 200);

        let expired = trusted.issue_with(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
        let for_servers = trusted.issue_with(|params| {
            params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        });
        for (shown, alert) in [
            (None, "CertificateRequired"),
            (Some(other.issue()), "UnknownCA"),
            (Some(expired), "CertificateExpired"),
            (Some(for_servers), "UnsupportedCertificate"),
        ] {
            let failure = failure(secure.connect_as(shown.as_ref()));
            assert!(failure.contains(alert), "{alert}: {failure}");
        }
        // With the tools that operators use.
        let issued = trusted.issue();
        put(secure.server.directory.path(), "client.pem", &issued.certificate);
        put(secure.server.directory.path(), "client.key", &issued.key);
        let path = |name| secure.server.directory.path().join(name).to_str().expect("UTF-8").to_owned();
        assert!(!secure.curl(&[]).status.success());
        let Output { status, stderr, .. } =
            secure.curl(&["--cert", &path("client.pem"), "--key", &path("client.key")]);
        assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    }
}

#[test]
fn certificates_are_reloaded_while_connections_are_open() {
    on_both_engines(|engine| {
        let secure = started(&[("OSC_ENGINE", engine)]);
        let directory = secure.server.directory.path();
        let mut open = secure.connect();
        let mut check_open = || assert_eq!(open.send("GET", "/health", &[], None).status, 200);
        check_open();
        let before = secure.certificate();

        // The certificate without its key is not loaded, which is logged once.
        let next = secure.authority.issue();
        put(directory, "cert.pem", &next.certificate);
        eventually("the error is logged", || {
            secure.server.log().contains("invalid certificates, keeping the previous ones")
        });
        assert_eq!(secure.certificate(), before);
        thread::sleep(Duration::from_secs(7));
        let log = secure.server.log();
        let errors: Vec<&str> = log.lines().filter(|line| line.contains("ERROR")).collect();
        assert!(
            errors.len() == 1 && errors[0].contains("does not match the first certificate"),
            "{errors:?}"
        );
        check_open();

        let begun = Instant::now();
        put(directory, "key.pem", &next.key);
        eventually("the new certificate is presented", || secure.certificate() == *next.der());
        assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
        check_open();
        assert!(secure.server.log().contains("certificates reloaded"));

        std::fs::remove_file(directory.join("key.pem")).expect("removed");
        eventually("the error is logged", || secure.server.log().contains("cannot be read: No such file"));
        assert_eq!(secure.certificate(), *next.der());

        // As in Kubernetes: a link leads to another directory.
        let last = secure.authority.issue();
        std::fs::create_dir(directory.join("v2")).expect("created");
        last.write(&directory.join("v2"));
        for name in ["cert.pem", "key.pem"] {
            std::fs::remove_file(directory.join(name)).ok();
            std::os::unix::fs::symlink(format!("v2/{name}"), directory.join(name)).expect("linked");
        }
        eventually("the last certificate is presented", || secure.certificate() == *last.der());
        check_open();

        // A certificate that is not valid yet is loaded once it is, without another change of the files.
        let begins = SystemTime::now() + Duration::from_secs(12);
        let early = secure.authority.issue_with(|parameters| parameters.not_before = begins.into());
        early.write(&directory.join("v2"));
        eventually("the error is logged", || secure.server.log().contains("is not valid before"));
        assert_eq!(secure.certificate(), *last.der());
        eventually("the certificate has become valid", || secure.certificate() == *early.der());
        check_open();
    });
}

#[test]
fn the_proxy_header_precedes_tls() {
    for engine in ENGINES {
        let secure = started(&[
            ("OSC_ENGINE", engine),
            ("OSC_PROXY_PROTOCOL", "true"),
            ("OSC_TRUSTED_PROXIES", "127.0.0.1"),
            ("OSC_LOG_FORMAT", "json"),
        ]);
        let mut socket = secure.server.connect().stream;
        socket
            .write_all(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xcb\x00\x71\x09\x7f\0\0\x01\x11\x22\x23\x28")
            .expect("sent");
        let mut client = over_tls(socket, &secure.authority.client(None));
        assert_eq!(client.send("GET", "/health", &[], None).status, 200);
        eventually("the log names the client", || secure.server.log().contains(r#""client":"203.0.113.9""#));
        assert!(failure(secure.connect()).len() > 1, "a connection without it fails");
    }
}

#[test]
fn sessions_are_resumed_without_early_data() {
    let secure = started(&[]);
    let config = secure.authority.client(None);
    for kind in [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed] {
        let mut client = over_tls(secure.server.connect().stream, &config);
        assert_eq!(client.send("GET", "/health", &[], None).status, 200);
        assert_eq!(client.stream.conn.handshake_kind(), Some(kind));
    }
    let text = secure.s_client(&["-tls1_3"]);
    assert!(!text.contains("Max Early Data: 1"), "{text}");
}

#[test]
fn connections_above_the_limit_of_an_address_are_closed() {
    let secure = started(&[("OSC_CONNECTIONS_PER_ADDRESS", "1")]);
    let mut first = secure.connect();
    assert_eq!(first.send("GET", "/health", &[], None).status, 200);
    let mut second = secure.server.connect();
    assert_eq!(second.rest(), b"", "no plain text to a client that expects TLS");
    drop(first);
    eventually("there is room again", || {
        let mut client = secure.connect();
        client.stream.write_all(&request("GET", "/health", &[], None)).is_ok()
            && client.try_receive(false).is_ok_and(|response| response.status == 200)
    });
}

/// The health check connects to the server on its own machine.
#[test]
fn the_server_can_connect_to_itself() {
    for with_client_ca in [false, true] {
        let authority = Authority::new("an authority");
        let elsewhere = authority.issue_with(|params| {
            params.subject_alt_names =
                vec![rcgen::SanType::DnsName("conf.example.org".try_into().expect("a name"))];
        });
        let mut launch = launch(&elsewhere, &authority);
        if with_client_ca {
            launch = launch.set("OSC_SSL_CA_CERTS", "ca.pem");
        }
        let directory = launch.directory.path().to_owned();
        let server = launch.start();
        let path = |name: &str| directory.join(name).into_os_string();
        let mut environment = std::collections::BTreeMap::from([
            ("OSC_HTTPS_ENABLED".to_owned(), "true".into()),
            ("OSC_SSL_CERTFILE".to_owned(), path("cert.pem")),
            ("OSC_SSL_KEYFILE".to_owned(), path("key.pem")),
        ]);
        if with_client_ca {
            environment.insert("OSC_SSL_CA_CERTS".to_owned(), path("ca.pem"));
        }
        let to_self = || {
            let (config, _) =
                opensecureconf::config::from_sources(&environment, None).expect("valid settings");
            config.certificates.to_self().expect("a certificate")
        };
        let get_health = |config| -> io::Result<String> {
            let mut stream =
                opensecureconf::tls::connect_to_self(TcpStream::connect(server.address)?, config)?;
            stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
            let mut response = String::new();
            stream.read_to_string(&mut response).map(|_| response)
        };
        assert!(get_health(to_self()).expect("a response").starts_with("HTTP/1.1 200"));
        // Another server in its place is not trusted.
        authority.issue().write(&directory);
        assert!(get_health(to_self()).is_err());
    }
}

#[test]
fn sighup_reloads_certificates_immediately_and_from_other_files() {
    let authority = Authority::new("an authority");
    let launch = Launch::new();
    let directory = std::sync::Arc::clone(&launch.directory);
    let settings = |name: &str| {
        format!("OSC_HTTPS_ENABLED=true\nOSC_SSL_CERTFILE={name}/cert.pem\nOSC_SSL_KEYFILE={name}/key.pem\n")
    };
    let mut issued = Vec::new();
    for name in ["one", "two"] {
        std::fs::create_dir(directory.path().join(name)).expect("created");
        issued.push(authority.issue());
        issued[issued.len() - 1].write(&directory.path().join(name));
    }
    put(directory.path(), ".env", &settings("one"));
    let secure = Secure { authority, server: launch.start() };
    assert_eq!(secure.certificate(), *issued[0].der());
    put(directory.path(), ".env", &settings("two"));
    secure.server.signal("HUP");
    eventually("the configuration is reloaded", || secure.server.log().contains("configuration reloaded"));
    assert_eq!(secure.certificate(), *issued[1].der());
    assert!(!secure.server.log().contains("require a restart"), "{}", secure.server.log());
    // The new files are checked for changes from now on.
    let next = secure.authority.issue();
    next.write(&directory.path().join("two"));
    eventually("the next certificate is presented", || secure.certificate() == *next.der());
    // Whether TLS is used does not change while the server runs.
    put(directory.path(), ".env", "OSC_HTTPS_ENABLED=false\n");
    secure.server.signal("HUP");
    eventually("the setting is logged", || secure.server.log().contains("OSC_HTTPS_ENABLED"));
    assert_eq!(secure.certificate(), *next.der());
}

#[test]
fn the_health_check_needs_no_ca_and_no_name() {
    let authority = Authority::new("an authority");
    for with_client_certificates in [false, true] {
        // A certificate without the name that the check connects to.
        let issued = authority.issue_with(|params| params.subject_alt_names.clear());
        let launch = launch(&issued, &authority);
        let launch = match with_client_certificates {
            true => launch.set("OSC_SSL_CA_CERTS", "ca.pem"),
            false => launch,
        };
        let directory = std::sync::Arc::clone(&launch.directory);
        let mut server = launch.start();
        let check = || {
            let mut again = launch_at(&directory, with_client_certificates);
            again = again.set("OSC_HOST_PORT", &server.address.port().to_string());
            let output = again.command().arg("healthcheck").output().expect("the command starts");
            (output.status.code(), String::from_utf8(output.stderr).expect("UTF-8"))
        };
        assert_eq!(check(), (Some(0), String::new()), "{with_client_certificates}");
        // Another certificate than the server has: another process may have taken its port.
        authority.issue().write(directory.path());
        let (status, text) = check();
        // Unless the server has reloaded the certificate first.
        assert!(status == Some(0) || text.contains("no valid response"), "{text}");
        assert!(server.stop().success());
    }
}

/// The server's own certificate is issued by the CA of the nodes, and clients need one of another CA.
#[test]
fn the_health_check_of_a_node_needs_no_client_certificate() {
    let (nodes, clients) = (Authority::new("of nodes"), Authority::new("of clients"));
    for listen in ["", "127.0.0.1:0"] {
        let launch = launch(&nodes.issue(), &nodes);
        let directory = std::sync::Arc::clone(&launch.directory);
        put(directory.path(), "clients.pem", &clients.certificate);
        let clustered = |launch: Launch| {
            let launch = launch.set("OSC_CLUSTER_ENABLED", "true").set("OSC_CLUSTER_CA_CERTS", "ca.pem");
            launch.set("OSC_SSL_CA_CERTS", "clients.pem").set("OSC_CLUSTER_LISTEN", listen)
        };
        let server = clustered(launch).start();
        let port = server.address.port().to_string();
        let check = clustered(launch_at(&directory, false)).set("OSC_HOST_PORT", &port);
        let output = check.command().arg("healthcheck").output().expect("the command starts");
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Settings of a server whose files are already in place.
fn launch_at(directory: &std::sync::Arc<tempfile::TempDir>, with_client_certificates: bool) -> Launch {
    let launch = Launch::at(std::sync::Arc::clone(directory)).set("OSC_HTTPS_ENABLED", "true");
    let launch = launch.set("OSC_SSL_CERTFILE", "cert.pem").set("OSC_SSL_KEYFILE", "key.pem");
    if with_client_certificates { launch.set("OSC_SSL_CA_CERTS", "ca.pem") } else { launch }
}
