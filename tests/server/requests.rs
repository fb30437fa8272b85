//! The 2.0 endpoints and the rules that cut across them, where they differ from the Python server or where a client
//! would notice a difference too late.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use opensecureconf::limits::{ENTRY_GROUP_COUNT_MAX, LIST_PAGE_BYTES};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::{
    Client, Launch, OTHER_KEY, Response, Server, USER_KEY, eventually, proper_salt, request,
};

const KEY_HEADER: (&str, &str) = ("X-User-Key", USER_KEY);

/// Time in a response: `2026-01-31T10:00:00.123456Z`.
const TIME_PATTERN: &[u8] = b"0000-00-00T00:00:00.000000Z";

fn is_time(text: &[u8]) -> bool {
    text.len() == TIME_PATTERN.len()
        && text.iter().zip(TIME_PATTERN).all(|(byte, pattern)| match pattern {
            b'0' => byte.is_ascii_digit(),
            _ => byte == pattern,
        })
}

/// Masks every time in the text, so that whole responses can be compared.
fn timeless(text: &str) -> String {
    let mut rest = text;
    let mut masked = String::new();
    while let Some(character) = rest.chars().next() {
        let length = match rest.as_bytes().get(..TIME_PATTERN.len()).is_some_and(is_time) {
            true => {
                masked.push_str("TIME");
                TIME_PATTERN.len()
            }
            false => {
                masked.push(character);
                character.len_utf8()
            }
        };
        rest = &rest[length..];
    }
    masked
}

/// Sends one request and compares the whole response.
fn check(server: &Server, method: &str, target: &str, body: &str, status: u16, text: &str) {
    let body = Some(body).filter(|body| !body.is_empty());
    let response = server.send(method, target, USER_KEY, body);
    assert_eq!(
        (response.status, timeless(response.text()).as_str()),
        (status, text),
        "{method} {target} {body:?}"
    );
}

fn detail(text: &str) -> String {
    format!("{{\"detail\":{}}}", serde_json::to_string(text).expect("a string can be serialised"))
}

fn time(response: &Response, name: &str) -> String {
    let json: serde_json::Value = serde_json::from_slice(&response.body).expect("JSON");
    json[name].as_str().expect("a time").to_owned()
}

/// Ids of the entries of a list.
fn ids(body: &[u8]) -> Vec<i64> {
    let list: serde_json::Value = serde_json::from_slice(body).expect("a list is valid JSON");
    list.as_array().expect("a list").iter().map(|entry| entry["id"].as_i64().expect("an id")).collect()
}

/// Creates `prefix0`, `prefix1` and so on, over several connections because each write waits for the disk.
fn fill(server: &Server, prefix: &str, count: usize, value: &str, user_key: &str) {
    const CONNECTIONS: usize = 8;
    thread::scope(|scope| {
        for first in 0..CONNECTIONS {
            scope.spawn(move || {
                let mut client = server.connect();
                for number in (first..count).step_by(CONNECTIONS) {
                    let body = format!(r#"{{"key":"{prefix}{number}","value":{value}}}"#);
                    let headers = [("X-User-Key", user_key)];
                    assert_eq!(client.send("POST", "/configs", &headers, Some(body.as_bytes())).status, 201);
                }
            });
        }
    });
}

#[test]
fn an_environment_is_part_of_the_identity() {
    let server = Server::start();
    let shown = |id: u32, environment: &str, value: &str| {
        format!(r#"{{"id":{id},"key":"k","category":null,"environment":"{environment}","value":{value}}}"#)
    };
    let timed = |id: u32, environment: &str, value: &str| {
        let short = shown(id, environment, value);
        format!(r#"{},"created_at":"TIME","updated_at":"TIME"}}"#, short.trim_end_matches('}'))
    };
    let missing = |place: &str| detail(&format!("Configuration with key 'k' not found{place}"));
    let several =
        detail("Configuration with key 'k' exists in several environments (a, b); add ?environment=");
    let exists = |environment: &str| {
        detail(&format!("Configuration with key 'k' already exists in environment '{environment}'"))
    };
    let plain = r#"{"id":3,"key":"k","category":null,"value":3}"#;
    let a = r#"{"key":"k","value":1,"environment":"a"}"#;
    let b = r#"{"key":"k","value":2,"environment":"b"}"#;
    for (method, target, body, status, text) in [
        ("GET", "/configs/k?environment=a", "", 404, missing(" in environment 'a'")),
        ("POST", "/configs", a, 201, timed(1, "a", "1")),
        ("POST", "/configs", a, 400, exists("a")),
        // If none is named, every method uses the only entry of the key.
        ("GET", "/configs/k", "", 200, shown(1, "a", "1")),
        ("PUT", "/configs/k", r#"{"value":11}"#, 200, timed(1, "a", "11")),
        // A named environment never falls back to another one.
        ("GET", "/configs/k?environment=b", "", 404, missing(" in environment 'b'")),
        ("GET", "/configs/k?environment=A", "", 404, missing(" in environment 'A'")),
        ("POST", "/configs", b, 201, timed(2, "b", "2")),
        ("GET", "/configs/k", "", 400, several.clone()),
        ("PUT", "/configs/k", r#"{"value":0}"#, 400, several.clone()),
        ("DELETE", "/configs/k", "", 400, several),
        ("GET", "/configs/k?environment=b", "", 200, shown(2, "b", "2")),
        ("POST", "/configs", r#"{"key":"k","value":3,"environment":null}"#, 201, plain.to_owned()),
        // "No environment" is an environment of its own, and an empty name means the same.
        ("GET", "/configs/k", "", 200, plain.to_owned()),
        ("GET", "/configs/k?environment=", "", 200, plain.to_owned()),
        (
            "POST",
            "/configs",
            r#"{"key":"k","value":4,"environment":""}"#,
            400,
            detail("Configuration with key 'k' already exists"),
        ),
        // If the query names the environment, the one in the body does not move the entry.
        ("PUT", "/configs/k?environment=a", r#"{"value":12,"environment":"c"}"#, 200, timed(1, "a", "12")),
        ("GET", "/configs/k?environment=c", "", 404, missing(" in environment 'c'")),
        // Without one in the query it does, but never onto another entry.
        ("PUT", "/configs/k", r#"{"value":5,"environment":"b"}"#, 400, exists("b")),
        ("GET", "/configs/k", "", 200, plain.to_owned()),
        ("GET", "/configs/k?environment=b", "", 200, shown(2, "b", "2")),
        ("PUT", "/configs/k", r#"{"value":5,"environment":""}"#, 200, plain.replace(":3}", ":5}")),
        ("PUT", "/configs/k", r#"{"value":6,"environment":"c"}"#, 200, timed(3, "c", "6")),
        ("GET", "/configs/k?environment=c", "", 200, shown(3, "c", "6")),
        (
            "DELETE",
            "/configs/k?environment=b",
            "",
            200,
            r#"{"message":"Configuration 'k' deleted successfully"}"#.to_owned(),
        ),
        ("DELETE", "/configs/k?environment=b", "", 404, missing(" in environment 'b'")),
        ("GET", "/configs/k?environment=a", "", 200, shown(1, "a", "12")),
        (
            "DELETE",
            "/configs/k?environment=a",
            "",
            200,
            r#"{"message":"Configuration 'k' deleted successfully"}"#.to_owned(),
        ),
        ("PUT", "/configs/k", r#"{"value":7,"environment":"c"}"#, 200, timed(3, "c", "7")),
    ] {
        check(&server, method, target, body, status, &text);
    }
    let server = server.restart();
    check(&server, "GET", "/configs/k", "", 200, &shown(3, "c", "7"));
}

/// A key with more environments than the entry cache keeps together is looked up in another way.
#[test]
fn a_key_may_have_very_many_environments() {
    let server = Server::start();
    let count = ENTRY_GROUP_COUNT_MAX + 2;
    for number in 0..count {
        let body = format!(r#"{{"key":"k","value":{number},"environment":"e{number}"}}"#);
        assert_eq!(server.send("POST", "/configs", USER_KEY, Some(&body)).status, 201);
    }
    let one = |number: usize| format!("/configs/k?environment=e{number}");
    for number in [0, 1, ENTRY_GROUP_COUNT_MAX, count - 1] {
        assert_eq!(server.get(&one(number)).value(), number.to_string());
        let response = server.send("PUT", &one(number), USER_KEY, Some(r#"{"value":"new"}"#));
        assert_eq!(response.status, 200, "{response:?}");
        assert_eq!(server.get(&one(number)).value(), "\"new\"");
        assert_eq!(server.send("GET", &one(number), OTHER_KEY, None).status, 401);
    }
    assert_eq!(server.get("/configs/k").status, 400);
    assert_eq!(server.get("/configs/k?environment=nope").status, 404);
    let again = r#"{"key":"k","value":0,"environment":"e65"}"#;
    assert_eq!(server.send("POST", "/configs", USER_KEY, Some(again)).status, 400);
    let without = server.create("k", "\"none\"");
    assert_eq!(without.status, 201);
    assert_eq!(server.value("k"), "\"none\"");
    // Back to a number that the cache keeps: deleted entries must not reappear from it.
    for number in 0..count - 1 {
        assert_eq!(server.send("DELETE", &one(number), USER_KEY, None).status, 200);
        assert_eq!(server.get(&one(number)).status, 404, "{number}");
    }
    assert_eq!(server.send("DELETE", "/configs/k", USER_KEY, None).status, 200);
    assert_eq!(server.get("/configs/k").text(), server.get(&one(count - 1)).text());
}

#[test]
fn fields_by_mode_and_environment() {
    let server = Server::start();
    let plain = r#"{"id":1,"key":"p","category":"c","value":1}"#;
    let short = r#"{"id":2,"key":"e","category":"c","environment":"x","value":2}"#;
    let full = r#"{"id":2,"key":"e","category":"c","environment":"x","value":2,"created_at":"TIME","updated_at":"TIME"}"#;
    for (method, target, body, status, text) in [
        ("POST", "/configs", r#"{"key":"p","value":1,"category":"c"}"#, 201, plain.to_owned()),
        // Unknown fields are ignored, even those of a response.
        (
            "POST",
            "/configs",
            r#"{"id":99,"key":"e","created_at":0,"value":2,"category":"c","environment":"x","more":null}"#,
            201,
            full.to_owned(),
        ),
        ("GET", "/configs/p", "", 200, plain.to_owned()),
        ("GET", "/configs/p?mode=full", "", 200, plain.to_owned()),
        ("PUT", "/configs/p", r#"{"value":1,"category":null}"#, 200, plain.to_owned()),
        ("GET", "/configs/e", "", 200, short.to_owned()),
        ("GET", "/configs/e?mode=short", "", 200, short.to_owned()),
        ("GET", "/configs/e?mode=full", "", 200, full.to_owned()),
        ("GET", "/configs/e?mode=full&environment=x", "", 200, full.to_owned()),
        ("PUT", "/configs/e?environment=x", r#"{"value":2}"#, 200, full.to_owned()),
        ("GET", "/configs", "", 200, format!("[{plain},{short}]")),
        ("GET", "/configs?mode=full", "", 200, format!("[{plain},{full}]")),
        ("GET", "/configs?environment=x", "", 200, format!("[{short}]")),
        ("GET", "/configs?environment=x&mode=full", "", 200, format!("[{full}]")),
        ("GET", "/cluster/configs", "", 200, format!("[{plain},{short}]")),
        ("GET", "/cluster/configs?mode=full&category=c", "", 200, format!("[{plain},{full}]")),
        ("GET", "/cluster/configs?category=d", "", 200, "[]".to_owned()),
    ] {
        check(&server, method, target, body, status, &text);
    }
}

#[test]
fn times_of_creation_and_last_change() {
    let server = Server::start();
    assert_eq!(server.create("k", "1").status, 201);
    // An entry without an environment has times, too; they are shown once it has one.
    let moved = server.send("PUT", "/configs/k", USER_KEY, Some(r#"{"value":1,"environment":"e"}"#));
    let created = time(&moved, "created_at");
    assert!(created < time(&moved, "updated_at"), "{moved:?}");
    let mut last = time(&moved, "updated_at");
    for step in 0..3 {
        let put = server.update("k", &step.to_string());
        assert_eq!(time(&put, "created_at"), created);
        assert!(time(&put, "updated_at") > last, "{put:?}");
        last = time(&put, "updated_at");
        assert_eq!(time(&server.get("/configs/k?mode=full"), "updated_at"), last, "reading changes nothing");
    }
    let server = server.restart();
    let read = server.get("/configs/k?mode=full");
    assert_eq!((time(&read, "created_at"), time(&read, "updated_at")), (created, last));
}

#[test]
fn filters_of_a_list() {
    let server = Server::start();
    for (key, category, environment) in [
        ("app/a", "x", ""),
        ("app/b", "y", "e"),
        ("app%", "x", "e"),
        ("App/c", "X", ""),
        ("ключ/1", "", "ё"),
        ("ключ/2", "x", ""),
    ] {
        let body = serde_json::json!({
            "key": key, "value": 1, "category": category, "environment": environment
        });
        assert_eq!(server.send("POST", "/configs", USER_KEY, Some(&body.to_string())).status, 201);
    }
    let theirs = r#"{"key":"app/theirs","value":1,"category":"x"}"#;
    assert_eq!(server.send("POST", "/configs", OTHER_KEY, Some(theirs)).status, 201);
    for (query, expected, hidden) in [
        ("", &[1, 2, 3, 4, 5, 6][..], Some("1")),
        ("category=x", &[1, 3, 6], None),
        ("category=X", &[4], None),
        ("category=", &[1, 2, 3, 4, 5, 6], Some("1")),
        ("category=nope", &[], None),
        ("environment=e", &[2, 3], None),
        ("environment=%D1%91", &[5], None),
        ("environment=", &[1, 2, 3, 4, 5, 6], Some("1")),
        ("prefix=app/", &[1, 2], None),
        // No wildcards, no case folding.
        ("prefix=app%25", &[3], None),
        ("prefix=app_", &[], None),
        ("prefix=App", &[4], None),
        ("prefix=%D0%BA%D0%BB", &[5, 6], None),
        ("prefix=%D0%BA%D0%BB%D1%8E%D1%87/1x", &[], None),
        ("category=x&environment=e&prefix=app", &[3], None),
        ("limit=2", &[1, 2], None),
        ("limit=1000000", &[1, 2, 3, 4, 5, 6], None),
        ("after=2", &[3, 4, 5, 6], None),
        ("after=-5", &[1, 2, 3, 4, 5, 6], None),
        ("after=7", &[], None),
        ("after=9223372036854775807", &[], None),
        ("after=1&limit=1&category=x", &[3], None),
        ("limit=&after=&mode=&prefix=", &[1, 2, 3, 4, 5, 6], Some("1")),
        ("LIMIT=1&unknown=1", &[1, 2, 3, 4, 5, 6], Some("1")),
        // Of repeated parameters the last one counts, as in the Python server.
        ("limit=1&limit=2", &[1, 2], None),
    ] {
        for path in ["/configs", "/cluster/configs"] {
            let response = server.get(&format!("{path}?{query}"));
            assert_eq!(response.status, 200, "{query}: {response:?}");
            assert_eq!(ids(&response.body), expected, "{query}");
            // The count for a part would reveal whether it contains foreign names.
            assert_eq!(response.header("x-entries-hidden"), hidden, "{query}");
            assert!(!response.headers.contains_key("trailer"), "it came as a header");
        }
    }
}

#[test]
fn invalid_query_parameters_are_422() {
    let server = Server::start();
    assert_eq!(server.create("k", "1").status, 201);
    let error_body = |kind: &str, name: &str, allowed: &str, found: &str| {
        format!(
            r#"{{"detail":[{{"type":"{kind}","loc":["query","{name}"],"msg":"Input should be {allowed}","input":"{found}","url":"https://errors.pydantic.dev/2.5/v/{kind}"}}]}}"#
        )
    };
    for found in ["0", "-1", "1000001", "x", "1.5", "1e3", "99999999999999999999", "0x10"] {
        let text = error_body("int_parsing", "limit", "an integer from 1 to 1000000", found);
        check(&server, "GET", &format!("/configs?limit={found}"), "", 422, &text);
    }
    for found in ["x", "1.5", "9223372036854775808", "--1"] {
        let text = error_body("int_parsing", "after", "the id of an entry, or what X-Next-After gave", found);
        check(&server, "GET", &format!("/configs?after={found}"), "", 422, &text);
    }
    for path in ["/configs", "/cluster/configs", "/configs/k"] {
        for found in ["FULL", "long", "0"] {
            let text = error_body("literal_error", "mode", "'short' or 'full'", found);
            check(&server, "GET", &format!("{path}?mode={found}"), "", 422, &text);
        }
    }
}

/// More than one page, so the server does not know the number of hidden entries when it begins.
#[test]
fn a_long_list_is_streamed_completely() {
    const COUNT: usize = 36;
    let server = Server::start();
    let filler = format!("\"{}\"", "x".repeat(LIST_PAGE_BYTES / 12));
    fill(&server, "mine", COUNT, &filler, USER_KEY);
    fill(&server, "theirs", 3, "1", OTHER_KEY);
    fill(&server, "late", 1, "1", USER_KEY);
    let mut client = server.connect();
    for path in ["/configs", "/cluster/configs"] {
        let response = client.send("GET", path, &[KEY_HEADER], None);
        assert_eq!((response.status, response.headers["transfer-encoding"].as_str()), (200, "chunked"));
        assert!(response.body.len() > 2 * LIST_PAGE_BYTES, "it is long: {}", response.body.len());
        assert!(!response.headers.contains_key("content-length"));
        assert_eq!(response.headers["trailer"].to_ascii_lowercase(), "x-entries-hidden");
        assert!(!response.headers.contains_key("x-entries-hidden"));
        let hidden = response.trailers.get("x-entries-hidden").map(String::as_str);
        assert_eq!(hidden, Some("3"));
        let ids = ids(&response.body);
        assert_eq!(ids.len(), COUNT + 1);
        assert!(ids.is_sorted_by(|one, other| one < other), "by id, each once: {ids:?}");
    }
    // HEAD has the header of GET and no body, and the connection stays usable.
    let head = client.send("HEAD", "/configs", &[KEY_HEADER], None);
    assert_eq!((head.status, head.headers["content-type"].as_str()), (200, "application/json"));
    assert_eq!(client.send("GET", "/configs/late0", &[KEY_HEADER], None).value(), "1");

    // A user key without entries gets a long list, too: everything is hidden, and it is still a list.
    let stranger = client.send("GET", "/configs", &[("X-User-Key", "nobodys-user-key")], None);
    assert_eq!(stranger.text(), "[]");
    let hidden =
        stranger.trailers.get("x-entries-hidden").or_else(|| stranger.headers.get("x-entries-hidden"));
    assert_eq!(hidden.map(String::as_str), Some("40"));
    let theirs = client.send("GET", "/configs", &[("X-User-Key", OTHER_KEY)], None);
    assert_eq!(ids(&theirs.body).len(), 3);

    // HTTP/1.0 has no chunked coding: closing the connection ends the list.
    let mut old = server.connect();
    old.write(format!("GET /configs HTTP/1.0\r\nX-User-Key: {USER_KEY}\r\n\r\n").as_bytes());
    let whole = String::from_utf8(old.rest()).expect("text");
    let (head, body) = whole.split_once("\r\n\r\n").expect("a head");
    let head = head.to_ascii_lowercase();
    assert!(head.contains("connection: close") && !head.contains("transfer-encoding"), "{head}");
    assert!(!head.contains("content-length"), "{head}");
    assert_eq!(ids(body.as_bytes()).len(), COUNT + 1);

    let mut old = server.connect();
    old.write(format!("HEAD /configs HTTP/1.0\r\nX-User-Key: {USER_KEY}\r\n\r\n").as_bytes());
    assert!(old.rest().ends_with(b"\r\n\r\n"), "no body after HEAD");
}

/// Entries that exist throughout are seen exactly once, whatever is written in the meantime.
#[test]
fn pagination_misses_nothing_during_writes() {
    const COUNT: usize = 120;
    let server = Server::start();
    fill(&server, "stays", COUNT, "1", USER_KEY);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for writer in 0..2 {
            let (server, is_over) = (&server, &is_over);
            scope.spawn(move || {
                let mut client = server.connect();
                for step in 0.. {
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    let key = format!("comes{writer}-{step}");
                    let body = format!(r#"{{"key":"{key}","value":1}}"#);
                    let created = client.send("POST", "/configs", &[KEY_HEADER], Some(body.as_bytes()));
                    assert_eq!(created.status, 201);
                    let deleted = client.send("DELETE", &format!("/configs/{key}"), &[KEY_HEADER], None);
                    assert_eq!(deleted.status, 200);
                }
            });
        }
        let mut client = server.connect();
        for limit in [1, 7, 50, 1000] {
            let mut seen = BTreeSet::new();
            let mut after = 0;
            loop {
                let target = format!("/configs?limit={limit}&after={after}");
                let response = client.send("GET", &target, &[KEY_HEADER], None);
                let list: serde_json::Value = serde_json::from_slice(&response.body).expect("valid");
                let Some(last) = list.as_array().expect("a list").last() else { break };
                after = last["id"].as_i64().expect("an id");
                for entry in list.as_array().expect("a list") {
                    let key = entry["key"].as_str().expect("a key").to_owned();
                    if key.starts_with("stays") {
                        assert!(seen.insert(key), "seen twice with limit {limit}: {entry}");
                    }
                }
            }
            assert_eq!(seen.len(), COUNT, "limit {limit}");
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

/// JSON texts without white space, with every kind of JSON number.
fn json_texts() -> impl Strategy<Value = String> {
    let number = r"-?(0|[1-9][0-9]{0,60})(\.[0-9]{1,30})?([eE][+-]?0{0,3}[0-9]{1,2}|[eE]-[0-9]{3})?";
    let string =
        || "(?s:.){0,6}".prop_map(|text| serde_json::to_string(&text).expect("a string can be serialised"));
    let leaf = prop_oneof![
        4 => number,
        2 => string(),
        1 => prop_oneof![Just("true".to_owned()), Just("false".to_owned()), Just("null".to_owned())],
    ];
    leaf.prop_recursive(5, 40, 6, move |inner| {
        let members = prop::collection::vec((string(), inner.clone()), 0..6);
        prop_oneof![
            prop::collection::vec(inner, 0..6).prop_map(|items| format!("[{}]", items.join(","))),
            members.prop_map(|members| {
                // A number precedes each name, because only the last of equal names survives.
                let members: Vec<String> = members
                    .iter()
                    .enumerate()
                    .map(|(index, (name, value))| format!("\"{index}{}:{value}", &name[1..]))
                    .collect();
                format!("{{{}}}", members.join(","))
            }),
        ]
    })
}

#[test]
fn values_come_back_byte_for_byte() {
    let server = Server::start();
    let mut client = server.connect();
    let headers = [KEY_HEADER];
    let mut number = 0;
    let mut runner = TestRunner::new(Config { cases: 96, failure_persistence: None, ..Config::default() });
    let value = || json_texts().prop_filter("null is not a value", |text| text != "null");
    let property = |(first, second): (String, String)| {
        number += 1;
        let target = format!("/configs/k{number}");
        let shown =
            |value: &str| format!(r#"{{"id":{number},"key":"k{number}","category":null,"value":{value}}}"#);
        let body = format!("\n{{\t\"key\" : \"k{number}\" , \"value\":\r\n {first} }} ");
        let posted = client.send("POST", "/configs", &headers, Some(body.as_bytes()));
        prop_assert_eq!((posted.status, posted.text().to_owned()), (201, shown(&first)));
        let got = client.send("GET", &target, &headers, None);
        prop_assert_eq!(got.text(), shown(&first));
        let body = format!(r#"{{"value":{second}}}"#);
        let put = client.send("PUT", &target, &headers, Some(body.as_bytes()));
        prop_assert_eq!((put.status, put.text().to_owned()), (200, shown(&second)));
        for list in ["/configs", "/cluster/configs"] {
            let list = client.send("GET", list, &headers, None);
            prop_assert_eq!(list.text(), format!("[{}]", shown(&second)));
        }
        prop_assert_eq!(client.send("DELETE", &target, &headers, None).status, 200);
        Ok(())
    };
    let property = std::cell::RefCell::new(property);
    if let Err(error) = runner.run(&(value(), value()), |pair| (property.borrow_mut())(pair)) {
        panic!("{error}");
    }
}

#[test]
fn refused_values_leave_nothing_behind() {
    let server = Server::start();
    assert_eq!(server.create("k", "\"kept\"").status, 201);
    let deep = format!("{}{}", "[".repeat(300), "]".repeat(300));
    let digits = "9".repeat(4301);
    for value in [
        "NaN",
        "Infinity",
        "-Infinity",
        "1e400",
        "-1e309",
        "[1,{\"a\":1e999}]",
        r#""\ud800""#,
        r#"{"\udfff":1}"#,
        r#"["\ud83d\u0041"]"#,
        "01",
        "1.",
        ".5",
        "+1",
        "0x10",
        "'x'",
        "[1,]",
        "{\"a\":1,}",
        "undefined",
        "null",
        "",
        "\"\u{1}\"",
        "1 2",
        &deep,
        &digits,
    ] {
        let short: String = value.chars().take(40).collect();
        let created = server.create("new", value);
        assert_eq!(created.status, 422, "{short}: {created:?}");
        assert_eq!(server.update("k", value).status, 422, "{short}");
        let list = server.get("/configs");
        assert_eq!(list.text(), r#"[{"id":1,"key":"k","category":null,"value":"kept"}]"#, "{short}");
    }
}

/// A client that disconnects cannot know whether its write was committed; it is, and only once.
#[test]
fn a_disconnect_does_not_undo_a_write() {
    let server = Server::start();
    assert_eq!(server.create("k", "0").status, 201);
    for round in 1..=20 {
        // Row and key are cached now, so the write is submitted as soon as the request is read.
        assert_eq!(server.value("k"), (10 * (round - 1)).to_string());
        let body = format!(r#"{{"value":{round}}}"#);
        let mut client = server.connect();
        client.write(&request("PUT", "/configs/k", &[KEY_HEADER], Some(body.as_bytes())));
        drop(client);
        eventually("the write is committed", || server.value("k") == round.to_string());
        // If the write were executed twice, this value would be lost.
        assert_eq!(server.update("k", &(10 * round).to_string()).status, 200);

        let body = format!(r#"{{"key":"new{round}","value":{round}}}"#);
        let mut client = server.connect();
        client.write(&request("POST", "/configs", &[KEY_HEADER], Some(body.as_bytes())));
        drop(client);
        eventually("the entry is created", || server.get(&format!("/configs/new{round}")).status == 200);
    }
    assert_eq!(ids(&server.get("/configs").body), (1..=21).collect::<Vec<_>>());
}

/// The order is: path and method, API key, user key, body, and only then a derivation.
#[test]
fn order_of_checks() {
    const API_KEY: &str = "an-api-key-of-a-test";
    let server = Launch::new().set("OSC_API_KEY_REQUIRED", "true").set("OSC_API_KEY", API_KEY).start();
    let missing = r#"{"detail":"API key required but missing. Provide X-API-Key header."}"#;
    let wrong = r#"{"detail":"Invalid API key"}"#;
    let no_user_key = r#"{"detail":[{"type":"missing","loc":["header","x-user-key"],"msg":"Field required","input":null,"url":"https://errors.pydantic.dev/2.5/v/missing"}]}"#;
    let short = r#"{"detail":"x-user-key header missing or too short (minimum 8 characters)"}"#;
    let not_found = r#"{"detail":"Not Found"}"#;
    let not_allowed = r#"{"detail":"Method Not Allowed"}"#;
    let (api, bad_api, empty_api) = (("X-API-Key", API_KEY), ("X-API-Key", "x"), ("X-API-Key", ""));
    let (short_user, empty_user, user) = (("X-User-Key", "7777777"), ("X-User-Key", ""), KEY_HEADER);
    let coded = ("Content-Encoding", "br");
    let coded_text = r#"{"detail":"Content-Encoding is not supported"}"#;
    for (method, target, headers, status, text) in [
        ("GET", "/nope", &[][..], 404, not_found),
        ("PATCH", "/configs", &[], 405, not_allowed),
        ("POST", "/configs", &[], 403, missing),
        ("POST", "/configs", &[empty_api], 403, missing),
        ("POST", "/configs", &[bad_api], 403, wrong),
        ("POST", "/configs", &[bad_api, user], 403, wrong),
        ("POST", "/configs", &[bad_api, short_user], 403, wrong),
        ("POST", "/configs", &[api], 422, no_user_key),
        ("POST", "/configs", &[api, empty_user], 401, short),
        ("POST", "/configs", &[api, short_user, coded], 401, short),
        ("POST", "/configs", &[api, user, coded], 415, coded_text),
        ("PUT", "/configs/k", &[user], 403, missing),
        ("PUT", "/configs/k", &[api, short_user], 401, short),
        ("GET", "/configs/k", &[api], 422, no_user_key),
        ("DELETE", "/configs/k", &[bad_api], 403, wrong),
        ("GET", "/configs?limit=x", &[api], 422, no_user_key),
        ("GET", "/configs?limit=x", &[], 403, missing),
        ("GET", "/cluster/configs", &[api], 422, no_user_key),
        ("GET", "/cluster/configs", &[user], 403, missing),
        ("GET", "/cluster/status", &[], 403, missing),
        ("GET", "/cluster/salt", &[bad_api], 403, wrong),
        ("POST", "/cluster/salt", &[], 403, missing),
        ("GET", "/", &[], 403, missing),
        ("GET", "/cluster/health", &[bad_api], 200, r#"{"status":"healthy","node_id":"node-0"}"#),
    ] {
        let body = matches!(method, "POST" | "PUT").then_some(&b"{not json"[..]);
        let response = server.connect().send(method, target, headers, body);
        assert_eq!((response.status, response.text()), (status, text), "{method} {target} {headers:?}");
    }
    // An invalid body costs no derivation, which would have created the salt file.
    for body in ["{not json", "{}", "[]", r#"{"key":"","value":1}"#, r#"{"key":"k","value":null}"#] {
        let response = server.connect().send("POST", "/configs", &[api, user], Some(body.as_bytes()));
        assert_eq!(response.status, 422, "{body}");
        let response = server.connect().send("PUT", "/configs/k", &[api, user], Some(b"{}"));
        assert_eq!(response.status, 422);
    }
    // Neither does a missing entry.
    assert_eq!(server.connect().send("GET", "/configs/k", &[api, user], None).status, 404);
    assert!(!server.salt().exists());
}

/// Sends one raw request with a user key of arbitrary bytes.
fn send_raw_key(server: &Server, method: &str, target: &str, user_key: &[u8], body: &str) -> Response {
    let mut bytes = format!("{method} {target} HTTP/1.1\r\nHost: test\r\nX-User-Key: ").into_bytes();
    bytes.extend_from_slice(user_key);
    write!(bytes, "\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        .expect("writing to a vector does not fail");
    let mut client = server.connect();
    client.write(&bytes);
    client.receive(false)
}

#[test]
fn user_keys_are_bytes() {
    let server = Server::start();
    let create = |key: &str, user_key: &[u8]| {
        send_raw_key(&server, "POST", "/configs", user_key, &format!(r#"{{"key":"{key}","value":1}}"#)).status
    };
    let read = |key: &str, user_key: &[u8]| {
        send_raw_key(&server, "GET", &format!("/configs/{key}"), user_key, "").status
    };
    let (utf8, latin1) = ("pässwört".as_bytes(), &b"p\xE4ssw\xF6rt"[..]);
    assert_eq!(create("utf8", utf8), 201);
    assert_eq!(create("latin1", latin1), 201);
    // The same text in two encodings is two keys, as in the Python server.
    assert_eq!([read("utf8", utf8), read("utf8", latin1)], [200, 401]);
    assert_eq!([read("latin1", latin1), read("latin1", utf8)], [200, 401]);
    assert_eq!(create("tab", b"tab\tinside"), 201);
    assert_eq!(read("tab", b"  tab\tinside\t "), 200, "surrounding white space is not part of the key");
    assert_eq!(read("tab", b"tab inside"), 401);
    // The length is that of the header value, in bytes.
    assert_eq!(create("short", "ключ".as_bytes()), 201);
    assert_eq!(create("bytes", "клю\u{e9}".as_bytes()), 201);
    assert_eq!(create("too-short", "клю1".as_bytes()), 401);
    assert_eq!(create("spaces", b"        "), 401);
}

#[test]
fn minimum_length_of_user_keys() {
    for (length_min, short, enough) in [(1, "", "1"), (12, "elevenbytes", "twelve bytes")] {
        let server = Launch::new().set("OSC_MIN_USER_KEY_LENGTH", &length_min.to_string()).start();
        let text = format!("x-user-key header missing or too short (minimum {length_min} characters)");
        for (method, target) in [("GET", "/configs/k"), ("GET", "/configs"), ("DELETE", "/configs/k")] {
            let response = server.send(method, target, short, None);
            assert_eq!((response.status, response.detail()), (401, text.clone()), "{method} {target}");
        }
        let body = r#"{"key":"k","value":1}"#;
        assert_eq!(server.send("POST", "/configs", short, Some(body)).status, 401);
        assert_eq!(server.send("POST", "/configs", enough, Some(body)).status, 201);
        assert_eq!(server.send("GET", "/configs/k", enough, None).value(), "1");
    }
}

#[test]
fn of_two_user_keys_the_first_counts() {
    let server = Server::start();
    assert_eq!(server.create("k", "1").status, 201);
    let (mine, theirs) = (KEY_HEADER, ("x-USER-key", OTHER_KEY));
    for (headers, status) in [([mine, theirs], 200), ([theirs, mine], 401)] {
        assert_eq!(server.connect().send("GET", "/configs/k", &headers, None).status, status);
    }
}

#[test]
fn another_user_key_reads_and_changes_nothing() {
    let server = Server::start();
    for key in ["k", "a/b", "it's"] {
        assert_eq!(server.create(key, "1").status, 201);
        let target = format!("/configs/{key}");
        let refused = detail(&format!("x-user-key does not open configuration '{key}'"));
        for (method, body) in [("GET", None), ("PUT", Some(r#"{"value":2}"#)), ("DELETE", None)] {
            let response = server.send(method, &target, OTHER_KEY, body);
            assert_eq!((response.status, response.text()), (401, refused.as_str()), "{method}");
        }
        let body = format!(r#"{{"key":"{key}","value":3}}"#);
        let response = server.send("POST", "/configs", OTHER_KEY, Some(&body));
        let exists = format!("Configuration with key '{key}' already exists");
        assert_eq!((response.status, response.detail()), (400, exists));
        assert_eq!(server.value(key), "1");
    }
    // A move would be a change, too.
    let moved = server.send("PUT", "/configs/k", OTHER_KEY, Some(r#"{"value":2,"environment":"e"}"#));
    assert_eq!(moved.status, 401);
    assert_eq!(server.get("/configs/k?environment=e").status, 404);
    let list = server.send("GET", "/configs", OTHER_KEY, None);
    assert_eq!((list.text(), list.headers["x-entries-hidden"].as_str()), ("[]", "3"));
}

#[test]
fn redirects_keep_the_query() {
    let server = Server::start();
    for (method, target, location) in [
        ("GET", "/configs/?category=a%20b&mode=full", "/configs?category=a%20b&mode=full"),
        ("POST", "/configs/?x", "/configs?x"),
        ("GET", "/configs/k/?environment=e", "/configs/k?environment=e"),
        ("PUT", "/configs/k/?environment=e", "/configs/k?environment=e"),
        ("DELETE", "/configs/k%20k/?environment=e", "/configs/k%20k?environment=e"),
        ("GET", "/configs/k//", "/configs/k/"),
        ("GET", "/cluster/status/?", "/cluster/status?"),
    ] {
        let body = matches!(method, "POST" | "PUT").then_some(r#"{"key":"k","value":1}"#);
        let response = server.send(method, target, USER_KEY, body);
        assert_eq!((response.status, response.headers["location"].as_str()), (307, location), "{target}");
    }
    assert_eq!(server.get("/configs").text(), "[]", "a redirect has no other effect");
}

#[test]
fn root_document() {
    let text = |required: bool| {
        format!(
            r#"{{"service":"OpenSecureConf API","version":"2.0.0","features":["encryption","multithreading","async","api-key-auth","clustering","environments"],"api_key_required":{required},"cluster_enabled":false,"cluster_mode":null,"endpoints":{{"create":"POST /configs","read":"GET /configs/{{key}}","update":"PUT /configs/{{key}}","delete":"DELETE /configs/{{key}}","list":"GET /configs","cluster_status":"GET /cluster/status"}}}}"#
        )
    };
    let server = Server::start();
    check(&server, "GET", "/", "", 200, &text(false));
    check(&server, "GET", "/?x=1", "", 200, &text(false));
    let locked = Launch::new().set("OSC_API_KEY_REQUIRED", "true").set("OSC_API_KEY", "the-api-key").start();
    let response = locked.connect().send("GET", "/", &[("x-api-key", "the-api-key")], None);
    assert_eq!((response.status, response.text()), (200, text(true).as_str()));
}

#[test]
fn a_standalone_node() {
    let server = Launch::new().set("OSC_CLUSTER_NODE_ID", "knoten \"ä\"").start();
    let status = r#"{"enabled":false,"mode":null,"node_id":null,"total_nodes":null,"healthy_nodes":null}"#;
    check(&server, "GET", "/cluster/status", "", 200, status);
    check(&server, "GET", "/cluster/health", "", 200, r#"{"status":"healthy","node_id":"knoten \"ä\""}"#);
    check(&server, "GET", "/cluster/configs", "", 200, "[]");
    check(&server, "POST", "/cluster/configs", "{}", 405, r#"{"detail":"Method Not Allowed"}"#);
    check(&server, "GET", "/cluster/nope", "", 404, r#"{"detail":"Not Found"}"#);
}

#[test]
fn the_salt_is_exported_and_imported() {
    let server = Server::start();
    let mut client = server.connect();
    let mut send = |method: &str, body: Option<&[u8]>| {
        let response = client.send(method, "/cluster/salt", &[], body);
        (response.status, String::from_utf8_lossy(&response.body).into_owned(), response.headers)
    };
    let [salt, other] = [proper_salt(1), proper_salt(2)];
    let wrong_size = |count: usize| detail(&format!("Invalid salt size: {count} bytes (expected 64)"));
    let created = r#"{"message":"Salt received and saved successfully","status":"created","size_bytes":64}"#;
    let same = r#"{"message":"Salt already present and matches","status":"ok"}"#;
    let differs = detail("Salt file already exists and differs from received salt");
    let missing = detail("Salt file not found on this node");
    for (method, body, status, text) in [
        ("GET", None, 404, missing),
        ("POST", None, 400, wrong_size(0)),
        ("POST", Some(&salt[..63]), 400, wrong_size(63)),
        ("POST", Some(&[1; 65][..]), 400, wrong_size(65)),
        ("POST", Some(&salt[..]), 200, created.to_owned()),
        ("POST", Some(&salt[..]), 200, same.to_owned()),
        ("POST", Some(&other[..]), 409, differs.clone()),
        // A salt is never replaced, so its size no longer matters.
        ("POST", Some(&salt[..63]), 409, differs),
    ] {
        let (found, response, _) = send(method, body);
        assert_eq!((found, response), (status, text), "{method}");
    }
    let (status, _, headers) = send("GET", None);
    assert_eq!((status, headers["content-type"].as_str()), (200, "application/octet-stream"));
    assert_eq!(headers["content-disposition"], "attachment; filename=encryption.salt");
    assert_eq!(server.connect().send("GET", "/cluster/salt", &[], None).body, salt);
    assert_eq!(std::fs::read(server.salt()).expect("saved"), salt);

    // Another node with the same salt decrypts what this one encrypted, so the imported salt is in use.
    assert_eq!(server.create("k", "{\"a\":1}").status, 201);
    let second = Server::start();
    assert_eq!(second.connect().send("POST", "/cluster/salt", &[], Some(&salt)).status, 200);
    let mut server = server;
    let mut second_files = second;
    assert!(server.stop().success() && second_files.stop().success());
    std::fs::copy(server.database(), second_files.database()).expect("the file can be copied");
    assert_eq!(Launch::at(second_files.directory.clone()).start().value("k"), "{\"a\":1}");
}

/// A foreign page in a user's browser must not get anything from a server in the user's network.
#[test]
fn no_response_allows_other_origins() {
    let server = Server::start();
    let foreign = [KEY_HEADER, ("Origin", "https://evil.example"), ("Access-Control-Request-Method", "GET")];
    let create = r#"{"key":"k","value":1}"#;
    for (method, target, body) in [
        ("GET", "/", None),
        ("POST", "/configs", Some(create)),
        ("GET", "/configs/k", None),
        ("GET", "/configs", None),
        ("OPTIONS", "/configs", None),
        ("GET", "/nope", None),
    ] {
        let response = server.connect().send(method, target, &foreign, body.map(str::as_bytes));
        let allows = response.headers.keys().any(|name| name.starts_with("access-control-"));
        assert!(!allows, "{method} {target}: {response:?}");
        assert_eq!(response.status == 204, method == "OPTIONS");
    }
}

/// A body that is only announced as large is refused before it is read.
#[test]
fn large_bodies_are_refused_before_they_are_read() {
    let server = Launch::new().set("OSC_CLUSTER_ENABLED", "true").start();
    let to_clients = [("POST", "/configs"), ("PUT", "/configs/k"), ("POST", "/cluster/salt")];
    let to_nodes =
        ["/cluster/changes", "/cluster/digests", "/cluster/versions"].map(|target| ("POST", target));
    for (length_max, routes) in [(4_194_304, to_clients), (16_777_216, to_nodes)] {
        let too_large = length_max + 1;
        for (method, target) in routes {
            for (framing, body) in [
                (format!("Content-Length: {too_large}"), String::new()),
                ("Transfer-Encoding: chunked".to_owned(), format!("{too_large:x}\r\n")),
            ] {
                let mut client: Client = server.connect();
                let head = format!("{method} {target} HTTP/1.1\r\nHost: x\r\nX-User-Key: {USER_KEY}\r\n");
                client.write(format!("{head}{framing}\r\n\r\n{body}").as_bytes());
                let response = client.receive(false);
                let text = format!("Body too large (at most {length_max} bytes)");
                assert_eq!((response.status, response.detail()), (413, text), "{method} {target} {framing}");
            }
        }
    }
}

/// The response to a client that has closed its connection is lost, so its retry gets the response of the first request.
#[test]
fn a_retry_after_a_lost_response_gets_the_first_response() {
    let server = Launch::new().start();
    let create = br#"{"key":"k","value":1}"#;
    let send_and_leave = |method: &str, target: &str, body: Option<&[u8]>| {
        server.connect().write(&request(method, target, &[KEY_HEADER], body));
    };
    send_and_leave("POST", "/configs", Some(create));
    eventually("the entry exists", || server.get("/configs/k").status == 200);
    eventually("the retry is recognised", || server.create("k", "1").status == 201);
    assert_eq!(server.create("k", "1").status, 400);

    send_and_leave("DELETE", "/configs/k", None);
    eventually("the entry is deleted", || server.get("/configs/k").status == 404);
    eventually("the retry is recognised", || {
        server.send("DELETE", "/configs/k", USER_KEY, None).status == 200
    });
    assert_eq!(server.send("DELETE", "/configs/k", USER_KEY, None).status, 404);
}
