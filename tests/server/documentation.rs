//! The OpenAPI document and the documentation pages as the server serves them, and a check that its responses match the
//! documented ones to the letter.

use std::fs;

use serde_json::Value;

use crate::support::{Client, Launch, OTHER_KEY, Response, Server, USER_KEY, eventually, request};

const API_KEY: &str = "an-api-key-for-tests";

fn document(server: &Server) -> Value {
    let response = server.get("/openapi.json");
    assert_eq!((response.status, response.headers["content-type"].as_str()), (200, "application/json"));
    serde_json::from_slice(&response.body).expect("JSON")
}

/// The documented response with this status.
fn described<'a>(document: &'a Value, method: &str, path: &str, status: u16) -> &'a Value {
    let operation = &document["paths"][path][method.to_ascii_lowercase()];
    let response = &operation["responses"][status.to_string()];
    assert!(!response.is_null(), "{method} {path} has no documented response with status {status}");
    match response["$ref"].as_str().and_then(|reference| reference.strip_prefix('#')) {
        Some(pointer) => document.pointer(pointer).expect("a response"),
        None => response,
    }
}

/// Checks that the response is one of the documented ones and has the header fields that the document promises.
fn check_documented(document: &Value, method: &str, path: &str, response: &Response) {
    let expected = described(document, method, path, response.status);
    let what = format!("{method} {path}: {response:?}");
    if let Some(headers) = expected["headers"].as_object() {
        for (name, header) in headers {
            let pointer = header["$ref"].as_str().unwrap_or_default().trim_start_matches('#').to_owned();
            let is_required = document.pointer(&pointer).is_some_and(|header| header["required"] == true);
            assert!(!is_required || response.headers.contains_key(&name.to_lowercase()), "{name}: {what}");
        }
    }
    let Some(content) = expected["content"].as_object() else {
        assert!(response.body.is_empty(), "{what}");
        return;
    };
    let documented = content.get(&response.headers["content-type"]).unwrap_or_else(|| panic!("{what}"));
    let Some(examples) = documented["examples"].as_object() else { return };
    let body: Value = serde_json::from_slice(&response.body).expect("JSON");
    let is_documented = examples.values().any(|example| timeless(&example["value"]) == timeless(&body));
    assert!(is_documented, "{what} {:?}", String::from_utf8_lossy(&response.body));
}

/// Masks times, which never equal those of the document.
fn timeless(body: &Value) -> Value {
    let mut body = body.clone();
    for name in ["created_at", "updated_at"] {
        if let Some(time) = body.get_mut(name) {
            *time = Value::Bool(time.as_str().is_some_and(|time| time.len() == 27 && time.ends_with('Z')));
        }
    }
    body
}

/// Method, target, documented path, body, status.
type Exchange<'a> = (&'a str, &'a str, &'a str, &'a str, u16);

fn exchange(document: &Value, client: &mut Client, headers: &[(&str, &str)], exchanges: &[Exchange<'_>]) {
    for &(method, target, path, body, status) in exchanges {
        let body = Some(body.as_bytes()).filter(|body| !body.is_empty());
        let response = client.send(method, target, headers, body);
        assert_eq!(response.status, status, "{method} {target}: {response:?}");
        check_documented(document, method, path, &response);
    }
}

const PLAIN: &str = r#"{"key":"database","value":{"host":"localhost","port":5432},"category":"production"}"#;
const PRODUCTION: &str =
    r#"{"key":"database","value":{"host":"db.example.org","port":5432},"environment":"production"}"#;
const STAGING: &str = r#"{"key":"database","value":1,"environment":"staging"}"#;
const CONFIG: &str = "/configs/{key}";

#[test]
fn entry_responses_match_the_document() {
    let server = Server::start();
    let document = document(&server);
    let mut client = server.connect();
    let (own, other) = ([("X-User-Key", USER_KEY)], [("X-User-Key", OTHER_KEY)]);
    let production = "/configs/database?environment=production";
    exchange(
        &document,
        &mut client,
        &own,
        &[
            ("GET", "/configs", "/configs", "", 200),
            ("GET", "/configs/database", CONFIG, "", 404),
            ("GET", production, CONFIG, "", 404),
            ("POST", "/configs", "/configs", PLAIN, 201),
            ("POST", "/configs", "/configs", PLAIN, 400),
            ("POST", "/configs", "/configs", PRODUCTION, 201),
            ("POST", "/configs", "/configs", PRODUCTION, 400),
            ("GET", "/configs", "/configs", "", 200),
            ("GET", "/configs/database", CONFIG, "", 200),
            ("GET", production, CONFIG, "", 200),
            ("GET", &format!("{production}&mode=full"), CONFIG, "", 200),
            ("GET", "/configs/database?mode=long", CONFIG, "", 422),
            ("GET", "/configs/database/", CONFIG, "", 307),
            ("GET", "/configs?limit=0", "/configs", "", 422),
            ("GET", "/configs?after=x", "/configs", "", 422),
            ("GET", "/cluster/configs", "/cluster/configs", "", 200),
            ("PUT", "/configs/database", CONFIG, r#"{"value":1,"environment":"production"}"#, 400),
            ("PUT", "/configs/database", CONFIG, r#"{"category":"production"}"#, 422),
            ("PUT", "/configs/database", CONFIG, PLAIN, 200),
            ("PUT", "/configs/database", CONFIG, "[]", 422),
            ("POST", "/configs", "/configs", "[]", 422),
            ("POST", "/configs", "/configs", r#"{"value":NaN}"#, 422),
            ("POST", "/configs", "/configs", r#"{"key":7,"value":null}"#, 422),
            ("POST", "/configs", "/configs", r#"{"key":"","value":1}"#, 422),
            ("POST", "/configs", "/configs", "", 422),
        ],
    );
    let wrong_key: Vec<Exchange<'_>> = ["GET", "DELETE"]
        .map(|method| (method, "/configs/database", CONFIG, "", 401))
        .into_iter()
        .chain([("PUT", "/configs/database", CONFIG, PLAIN, 401)])
        .collect();
    exchange(&document, &mut client, &other, &wrong_key);
    exchange(&document, &mut client, &own, &[("DELETE", "/configs/database", CONFIG, "", 200)]);
    assert_eq!(client.send("POST", "/configs", &own, Some(STAGING.as_bytes())).status, 201);
    let ambiguous: Vec<Exchange<'_>> = ["GET", "DELETE"]
        .map(|method| (method, "/configs/database", CONFIG, "", 400))
        .into_iter()
        .chain([("PUT", "/configs/database", CONFIG, PLAIN, 400)])
        .collect();
    exchange(&document, &mut client, &own, &ambiguous);
}

#[test]
fn credential_errors_match_the_document() {
    let launch = Launch::new().set("OSC_API_KEY_REQUIRED", "true").set("OSC_API_KEY", API_KEY);
    let server = launch.set("OSC_METRICS_AUTH", "true").start();
    let document = document(&server);
    let api_key = ("X-API-Key", API_KEY);
    let cases: [(&[(&str, &str)], u16); 4] = [
        (&[], 403),
        (&[("X-API-Key", "wrong"), ("X-User-Key", USER_KEY)], 403),
        (&[api_key], 422),
        (&[api_key, ("X-User-Key", "short")], 401),
    ];
    let paths = document["paths"].as_object().expect("an object");
    for (path, item) in paths {
        for method in ["GET", "PUT", "POST", "DELETE"] {
            let operation = &item[method.to_ascii_lowercase()];
            let security = operation["security"].to_string();
            let target = path.replace("{key}", "database");
            for (headers, status) in cases {
                let needed = if status == 403 { "apiKey" } else { "userKey" };
                if operation.is_null() || !security.contains(needed) {
                    continue;
                }
                let response = server.connect().send(method, &target, headers, None);
                assert_eq!(response.status, status, "{method} {path} {headers:?}");
                check_documented(&document, method, path, &response);
            }
        }
    }
}

#[test]
fn cluster_responses_match_the_document() {
    let standalone = Server::start();
    let document = document(&standalone);
    let replica = Launch::new().set("OSC_CLUSTER_ENABLED", "true").start();
    let federated =
        Launch::new().set("OSC_CLUSTER_ENABLED", "true").set("OSC_CLUSTER_MODE", "federated").start();
    let salt = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    exchange(
        &document,
        &mut standalone.connect(),
        &[],
        &[
            ("GET", "/", "/", "", 200),
            ("GET", "/ready", "/ready", "", 200),
            ("GET", "/cluster/status", "/cluster/status", "", 200),
            ("GET", "/cluster/salt", "/cluster/salt", "", 404),
            ("POST", "/cluster/salt", "/cluster/salt", "short", 400),
            ("POST", "/cluster/salt", "/cluster/salt", &"s".repeat(64), 400),
            ("POST", "/cluster/salt", "/cluster/salt", salt, 200),
            ("POST", "/cluster/salt", "/cluster/salt", salt, 200),
            ("POST", "/cluster/salt", "/cluster/salt", "short", 409),
            ("GET", "/cluster/salt", "/cluster/salt", "", 200),
            ("GET", "/v1/cluster/members", "/v1/cluster/members", "", 404),
        ],
    );
    let changes = r#"{"salt":"0000000000000000","changes":[]}"#;
    exchange(
        &document,
        &mut replica.connect(),
        &[],
        &[
            ("POST", "/cluster/changes", "/cluster/changes", "", 422),
            ("POST", "/cluster/changes", "/cluster/changes", changes, 409),
            ("POST", "/cluster/find", "/cluster/find", r#"{"k":"database"}"#, 404),
        ],
    );
    let remote_write = r#"{"salt":0,"id":{"k":"database"},"seen":"00000000000000000000000000000000"}"#;
    exchange(
        &document,
        &mut federated.connect(),
        &[],
        &[
            ("POST", "/cluster/find", "/cluster/find", r#"{"k":"database"}"#, 200),
            ("POST", "/cluster/find", "/cluster/find", "", 422),
            ("POST", "/cluster/write", "/cluster/write", remote_write, 409),
            ("POST", "/cluster/changes", "/cluster/changes", changes, 404),
            ("GET", "/v1/federation/duplicates?after=x", "/v1/federation/duplicates", "", 422),
        ],
    );
}

#[test]
fn pages_and_their_assets() {
    let server = Launch::new().set("OSC_API_KEY_REQUIRED", "true").set("OSC_API_KEY", API_KEY).start();
    let document = document(&server);
    let mut client = server.connect();
    for page in ["/docs", "/redoc"] {
        let response = client.send("GET", page, &[], None);
        check_documented(&document, "GET", page, &response);
        let text = response.text();
        let loaded: Vec<&str> = [" src=\"", " href=\"docs/"]
            .iter()
            .flat_map(|marker| text.split(marker).skip(1))
            .filter_map(|rest| rest.split('"').next())
            .map(|target| target.trim_start_matches("docs/"))
            .collect();
        assert!(loaded.len() >= 2, "{text}");
        for name in loaded {
            let target = format!("/docs/{name}");
            let response = client.send("GET", &target, &[], None);
            assert_eq!(response.status, 200, "{target}");
            let is_packed = response.headers.get("content-encoding").is_some_and(|coding| coding == "gzip");
            assert_eq!(response.body.starts_with(b"\x1f\x8b"), is_packed, "{target}");
            assert_eq!(response.headers["x-content-type-options"], "nosniff", "{target}");
            // The connection stays in sync after both methods.
            let head = client.send("HEAD", &target, &[], None);
            assert_eq!(
                (head.status, &head.headers["content-type"]),
                (200, &response.headers["content-type"])
            );
        }
    }
    for target in ["/docs", "/redoc", "/openapi.json"] {
        assert_eq!(client.send("HEAD", target, &[], None).status, 200);
        let refused = client.send("POST", target, &[], None);
        assert_eq!((refused.status, refused.headers["allow"].as_str()), (405, "GET, HEAD"));
    }
    assert_eq!(client.send("GET", "/docs/", &[], None).headers["location"], "/docs");
    for target in ["/docs/x", "/docs/../docs", "/redoc/redoc.js", "/openapi.json/x", "/docsx"] {
        assert_eq!(client.send("GET", target, &[], None).status, 404, "{target}");
    }
}

/// Resident memory of the server, in KiB.
fn resident_kib(server: &Server) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("the server runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("reported for every process");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

/// The pages need no key, so many clients that request them without reading must not cost the memory of all requested
/// data.
#[test]
fn clients_that_do_not_read_cost_little() {
    const READERS: usize = 200;
    let server = Server::start();
    let page = server.get("/docs");
    let script =
        page.text().split("src=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a script");
    let target = format!("/{script}");
    let whole = server.get(&target).body.len();
    let before = resident_kib(&server);
    // Pipelined, so that the socket buffers cannot hold everything.
    let requests = request("GET", &target, &[], None).repeat(20);
    let mut readers: Vec<Client> = (0..READERS).map(|_| server.connect()).collect();
    for reader in &mut readers {
        reader.write(&requests);
    }
    eventually("a response is on its way to each", || {
        readers.iter().all(|reader| reader.stream.peek(&mut [0]).is_ok_and(|count| count == 1))
    });
    let grown = resident_kib(&server).saturating_sub(before);
    let all = READERS * whole / 1024;
    assert!(grown < all / 2, "{grown} KiB more, of {all} KiB that were requested");
}
