//! Health, metrics, the access log, and request ids.

use std::fs;
use std::io::{BufRead, BufReader};

use crate::support::{Client, Launch, Response, Server, USER_KEY, eventually, listening_at, request};

/// Value of the sample with exactly these labels, in the order in which they are written.
fn sample(text: &str, series: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
    Some(line.parse().expect("a number"))
}

fn metrics(server: &Server) -> String {
    let response = server.connect().send("GET", "/metrics", &[], None);
    assert_eq!(response.status, 200);
    assert_eq!(response.header("content-type"), Some("text/plain; version=0.0.4"));
    response.text().to_owned()
}

#[test]
fn health_needs_no_key_and_names_the_engine() {
    let server = Launch::new()
        .set("OSC_ENGINE", "uring")
        .set("OSC_API_KEY_REQUIRED", "true")
        .set("OSC_API_KEY", "an-api-key")
        .start();
    let response = server.connect().send("GET", "/health", &[], None);
    assert_eq!((response.status, response.text()), (200, r#"{"status":"healthy","engine":"uring"}"#));
    let response = server.connect().send("HEAD", "/health", &[], None);
    assert_eq!((response.status, response.text()), (200, ""));
    assert_eq!(server.connect().send("POST", "/health", &[], None).status, 405);
}

#[test]
fn requests_are_counted_by_template_never_by_path() {
    let server = Server::start();
    assert_eq!(server.create("canary-key", r#"{"a":1}"#).status, 201);
    for _ in 0..3 {
        assert_eq!(server.get("/configs/canary-key").status, 200);
    }
    assert_eq!(server.get("/configs/canary-other").status, 404);
    assert_eq!(server.send("GET", "/configs/canary-key", "another-user-key", None).status, 401);
    assert_eq!(server.get("/canary-nowhere").status, 404);
    assert_eq!(server.get("/configs").status, 200);
    let text = metrics(&server);
    for (series, expected) in [
        (r#"osc_http_requests_total{method="POST",endpoint="/configs",status_code="201"}"#, 1.0),
        (r#"osc_http_requests_total{method="GET",endpoint="/configs/{key}",status_code="200"}"#, 3.0),
        (r#"osc_http_requests_total{method="GET",endpoint="/configs/{key}",status_code="404"}"#, 1.0),
        (r#"osc_http_requests_total{method="GET",endpoint="unmatched",status_code="404"}"#, 1.0),
        (r#"osc_http_request_duration_seconds_count{method="GET",endpoint="/configs/{key}"}"#, 5.0),
        (r#"osc_config_operations_total{operation="read",status="success"}"#, 3.0),
        (r#"osc_config_operations_total{operation="read",status="not_found"}"#, 1.0),
        (r#"osc_config_operations_total{operation="list",status="success"}"#, 1.0),
        (r#"osc_encryption_operations_total{operation="encrypt"}"#, 1.0),
        (r#"osc_api_errors_total{endpoint="/configs/{key}",error_type="authentication"}"#, 1.0),
        ("osc_config_entries_total", 1.0),
        ("osc_key_derivations_completed_total", 2.0),
        (r#"osc_key_cache_keys{tier="pending"}"#, 0.0),
        ("osc_store_writes_total", 1.0),
        ("osc_executors", 1.0),
        ("osc_healthy", 1.0),
        ("osc_ready", 1.0),
        ("osc_connections_limit", 10_240.0),
        (r#"osc_queue_limit{queue="write"}"#, 4096.0),
        (r#"osc_api_errors_total{endpoint="/configs",error_type="no_space"}"#, 0.0),
        ("osc_log_lines_dropped_total", 0.0),
    ] {
        assert_eq!(sample(&text, series), Some(expected), "{series}\n{text}");
    }
    assert!(!text.contains("canary"), "{text}");
}

#[test]
fn process_metrics_have_the_standard_prometheus_names() {
    let server = Server::start();
    let open_clients: Vec<_> = (0..20).map(|_| server.connect()).collect();
    assert_eq!(server.create("k", "1").status, 201);
    eventually("all clients are accepted", || {
        sample(&metrics(&server), "process_open_fds").is_some_and(|count| count > open_clients.len() as f64)
    });
    let text = metrics(&server);
    let value = |name: &str| sample(&text, name).unwrap_or_else(|| panic!("{name} is not in {text}"));
    assert!(value("process_open_fds") <= value("process_max_fds"));
    assert!(value("process_cpu_seconds_total") > 0.0);
    assert!(value("process_resident_memory_bytes") > 1_000_000.0);
    assert!(value("process_resident_memory_bytes") < value("process_virtual_memory_bytes"));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
    // The kernel reports the boot time in whole seconds.
    let age = now.as_secs_f64() - value("process_start_time_seconds");
    assert!((age - value("osc_uptime_seconds")).abs() < 10.0, "{age}");
}

#[test]
fn unsupported_requests_are_not_server_errors() {
    let server = Server::start();
    for head in ["PRI * HTTP/2.0\r\n\r\n", "GET / HTTP/3.7\r\n\r\n", "BREW / HTTP/1.1\r\nHost: a\r\n\r\n"] {
        let mut client = server.connect();
        client.write(head.as_bytes());
        assert!(client.receive(false).status >= 400);
    }
    let series = r#"osc_api_errors_total{endpoint="unmatched",error_type="internal"}"#;
    assert_eq!(sample(&metrics(&server), series), Some(0.0));
}

#[test]
fn metrics_can_be_kept_private() {
    let launch = Launch::new().set("OSC_API_KEY_REQUIRED", "true").set("OSC_API_KEY", "an-api-key");
    let server = launch.set("OSC_METRICS_AUTH", "true").start();
    assert_eq!(server.connect().send("GET", "/metrics", &[], None).status, 403);
    assert_eq!(server.connect().send("GET", "/metrics", &[("X-API-Key", "an-api-key")], None).status, 200);
}

#[test]
fn the_root_can_be_public() {
    let launch = || Launch::new().set("OSC_API_KEY_REQUIRED", "true").set("OSC_API_KEY", "an-api-key");
    let server = launch().start();
    assert_eq!(server.connect().send("GET", "/", &[], None).status, 403);
    let server = launch().set("OSC_PUBLIC_ROOT", "true").start();
    assert_eq!(server.connect().send("GET", "/", &[], None).status, 200);
    assert_eq!(server.connect().send("GET", "/configs", &[("X-User-Key", USER_KEY)], None).status, 403);
}

fn request_id(response: &Response) -> String {
    response.header("x-request-id").expect("every response has one").to_owned()
}

#[test]
fn every_response_has_the_request_id_of_the_client_or_a_new_one() {
    let server = Server::start();
    let send = |id: &str| server.connect().send("GET", "/health", &[("X-Request-ID", id)], None);
    assert_eq!(request_id(&send("7f9c-1")), "7f9c-1");
    for unfit in ["", "a b", &"x".repeat(129)] {
        assert_eq!(request_id(&send(unfit)).len(), 32, "{unfit}");
    }
    let (one, other) = (server.get("/nowhere"), server.get("/nowhere"));
    assert_ne!(request_id(&one), request_id(&other));
    let mut client = server.connect();
    client.write(b"nonsense\r\n\r\n");
    assert_eq!(request_id(&client.receive(false)).len(), 32);
}

#[test]
fn responses_forbid_caching_and_sniffing() {
    let server = Server::start();
    assert_eq!(server.create("k", "1").status, 201);
    for target in ["/configs/k", "/configs", "/nowhere", "/health"] {
        let response = server.get(target);
        assert_eq!(response.header("cache-control"), Some("no-store"), "{target}");
        assert_eq!(response.header("x-content-type-options"), Some("nosniff"), "{target}");
        assert_eq!(response.header("access-control-allow-origin"), None, "{target}");
    }
}

#[test]
fn no_header_is_repeated() {
    let server = Launch::new().set("CORS_ORIGINS", "*").start();
    assert_eq!(server.create("k", "1").status, 201);
    for target in
        ["/configs/k", "/configs", "/nowhere", "/health", "/metrics", "/docs", "/redoc", "/docs/docs.js"]
    {
        let mut client = server.connect();
        let fields = [("X-User-Key", USER_KEY), ("Origin", "https://a.example.org"), ("Connection", "close")];
        client.write(&request("GET", target, &fields, None));
        let response = client.rest();
        let head = response.split(|&byte| byte == b'\n').skip(1).take_while(|line| *line != b"\r");
        let mut names: Vec<&[u8]> =
            head.map(|line| line.split(|&byte| byte == b':').next().expect("a name")).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(
            (names.len(), count > 3),
            (count, true),
            "{target}: {}",
            String::from_utf8_lossy(&response)
        );
    }
}

#[test]
fn pages_of_configured_origins_are_allowed() {
    let server = Launch::new().set("CORS_ORIGINS", "https://admin.example.org,http://localhost:3000").start();
    assert_eq!(server.create("k", "1").status, 201);
    let send = |method: &str, target: &str, origin: &str, more: &[(&str, &str)]| {
        let headers = [&[("Origin", origin), ("X-User-Key", USER_KEY)], more].concat();
        server.connect().send(method, target, &headers, None)
    };
    for target in ["/configs/k", "/configs", "/nowhere"] {
        let response = send("GET", target, "https://admin.example.org", &[]);
        assert_eq!(response.header("access-control-allow-origin"), Some("https://admin.example.org"));
        assert_eq!(response.header("vary"), Some("origin"));
        assert_eq!(
            send("GET", target, "https://evil.example", &[]).header("access-control-allow-origin"),
            None
        );
    }
    let preflight =
        [("Access-Control-Request-Method", "PUT"), ("Access-Control-Request-Headers", "x-user-key")];
    let response = send("OPTIONS", "/configs/k", "http://localhost:3000", &preflight);
    assert_eq!((response.status, response.text()), (204, ""));
    assert_eq!(response.header("access-control-allow-origin"), Some("http://localhost:3000"));
    assert!(
        response.header("access-control-allow-headers").is_some_and(|names| names.contains("x-user-key"))
    );
    assert!(response.header("access-control-allow-methods").is_some_and(|names| names.contains("PUT")));
    assert_eq!(send("OPTIONS", "/configs/k", "https://evil.example", &preflight).status, 403);
    assert_eq!(send("OPTIONS", "/configs/k", "http://localhost:3000", &[]).status, 204);
}

/// Access log lines of a log in JSON.
fn access_lines(log: &str) -> Vec<serde_json::Value> {
    let lines = log.lines().map(|line| serde_json::from_str(line).expect("each line is JSON"));
    lines.filter(|line: &serde_json::Value| line["target"] == "access").collect()
}

#[test]
fn every_request_is_logged_once_without_secrets() {
    let server = Launch::new().set("OSC_LOG_FORMAT", "json").start();
    let send = |method: &str, target: &str, body: Option<&str>| {
        let headers = [("X-User-Key", "canary-user-key"), ("X-Request-ID", "id-7")];
        server.connect().send(method, target, &headers, body.map(str::as_bytes)).status
    };
    assert_eq!(send("POST", "/configs", Some(r#"{"key":"k","value":"canary-value"}"#)), 201);
    assert_eq!(send("GET", "/configs/k?user_key=canary-query", None), 200);
    assert_eq!(send("GET", "/configs/k", None), 200);
    assert_eq!(send("GET", "/nowhere/%0a", None), 404);
    eventually("four lines", || access_lines(&server.log()).len() == 4);
    let lines = access_lines(&server.log());
    let seen: Vec<_> = lines
        .iter()
        .map(|line| {
            assert_eq!(
                (&line["request_id"], &line["client"]),
                (&"id-7".into(), &"127.0.0.1".into()),
                "{line}"
            );
            assert!(line["duration_us"].is_u64() && line["level"] == "INFO", "{line}");
            let text = |name: &str| line[name].as_str().expect("a string").to_owned();
            (text("method"), text("path"), text("endpoint"), line["status"].as_u64().expect("a number"))
        })
        .collect();
    let line = |method: &str, path: &str, endpoint: &str, status| {
        (method.to_owned(), path.to_owned(), endpoint.to_owned(), status)
    };
    assert_eq!(
        seen,
        [
            line("POST", "/configs", "/configs", 201),
            line("GET", "/configs/k", "/configs/{key}", 200),
            line("GET", "/configs/k", "/configs/{key}", 200),
            line("GET", "/nowhere/%0a", "unmatched", 404),
        ]
    );
    assert!(!server.log().contains("canary"), "{}", server.log());
}

#[test]
fn a_flood_of_cached_reads_is_summarised() {
    const READS_COUNT: u64 = 1000;
    let mut server = Launch::new().set("OSC_LOG_FORMAT", "json").start();
    assert_eq!(server.create("k", "1").status, 201);
    assert_eq!(server.get("/configs/k").status, 200);
    let mut client = server.connect();
    for _ in 1..READS_COUNT {
        assert_eq!(client.send("GET", "/configs/k", &[("X-User-Key", USER_KEY)], None).status, 200);
    }
    let counts = |log: &str| -> (u64, u64) {
        let lines = access_lines(log);
        let single = lines.iter().filter(|line| line["method"] == "GET").count() as u64;
        (single, single + lines.iter().filter_map(|line| line["count"].as_u64()).sum::<u64>())
    };
    eventually("all reads are logged", || counts(&server.log()).1 == READS_COUNT);
    assert!(server.stop().success());
    assert!(counts(&server.log()).0 < READS_COUNT, "{}", server.log());
}

/// More lines than the log queue and the pipe hold together.
const LINES_COUNT: usize = 20_000;

#[test]
fn lines_of_a_blocked_log_are_dropped_and_counted() {
    let launch = Launch::new();
    let mut child = launch.command().stderr(std::process::Stdio::piped()).spawn().expect("the server starts");
    let mut log = BufReader::new(child.stderr.take().expect("piped"));
    let address = loop {
        let mut line = String::new();
        assert!(log.read_line(&mut line).expect("readable") > 0, "the server exited");
        if let Some(address) = listening_at(&line) {
            break address;
        }
    };
    let mut client = Client::connect(address);
    let batch = request("GET", "/nowhere", &[], None).repeat(100);
    for _ in 0..LINES_COUNT / 100 {
        client.write(&batch);
        (0..100).for_each(|_| assert_eq!(client.receive(false).status, 404));
    }
    let response = client.send("GET", "/metrics", &[], None);
    child.kill().expect("the server runs");
    child.wait().expect("killed");
    let dropped = sample(response.text(), "osc_log_lines_dropped_total").expect("a number");
    assert!(dropped > 0.0 && dropped < LINES_COUNT as f64, "{dropped}");
}

#[test]
fn check_config_creates_no_files() {
    let launch = Launch::new().set("OSC_LOG_FILE", "logs/osc.log").set("OSC_DATABASE_PATH", "data/c.db");
    let output = launch.command().arg("check-config").output().expect("the command starts");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(fs::read_dir(launch.directory.path()).expect("readable").count(), 0);
}
