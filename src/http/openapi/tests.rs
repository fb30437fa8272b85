//! Checks of the document against the routes and the error table. `tests/server/documentation.rs` and
//! `.ci/check-openapi` check it against the server's responses.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use super::{COMPONENTS, members};
use crate::http::body::{self, ValidationError};
use crate::http::endpoint::Audience;
use crate::http::endpoints::{DESCRIPTION, ENDPOINTS, LABELS};
use crate::http::error::{self, RequestError};
use crate::http::response::Response;
use crate::http::route::Route;
use crate::http1::{Method, ProtocolError};
use crate::limits::{ENTRY_KEY_CHARS_MAX, LIST_LIMIT_MAX};
use crate::service::AuthError;
use crate::service::Error;

const METHODS: [(&str, Method); 5] = [
    ("get", Method::Get),
    ("put", Method::Put),
    ("post", Method::Post),
    ("delete", Method::Delete),
    ("patch", Method::Patch),
];

fn parsed() -> Value {
    serde_json::from_slice(&DESCRIPTION).expect("JSON")
}

/// Returns (method, path, operation) of every described operation.
fn operations(document: &Value) -> Vec<(&'static str, String, &Value)> {
    let paths = document["paths"].as_object().expect("an object");
    let of_path = |(path, item): (&String, &'_ Value)| -> Vec<(&'static str, String)> {
        let described = METHODS.iter().filter(|(method, _)| item.get(method).is_some());
        described.map(|(method, _)| (*method, path.clone())).collect()
    };
    let named = paths.iter().flat_map(of_path);
    named.map(|(method, path)| (method, path.clone(), &document["paths"][&path][method])).collect()
}

#[test]
fn operations_and_descriptions_correspond() {
    let document = parsed();
    let described: BTreeSet<(String, String)> =
        operations(&document).into_iter().map(|(method, path, _)| (method.to_owned(), path)).collect();
    let served: BTreeSet<(String, String)> = ENDPOINTS
        .iter()
        .flat_map(|endpoint| endpoint.operations.iter().map(|operation| (operation.method, endpoint.path)))
        .map(|(method, path)| (method.as_str().to_ascii_lowercase(), path.to_owned()))
        .collect();
    let unmatched: Vec<_> = described.symmetric_difference(&served).collect();
    assert!(unmatched.is_empty(), "served or described only: {unmatched:?}");
    for (method, path) in served {
        let (_, method) = METHODS.iter().find(|(name, _)| *name == method).expect("a known method");
        let example = path.replace("{key}", "k");
        let route = Route::find_for(Audience::Everyone, *method, example.as_bytes()).expect("a route");
        assert_eq!((route.operation.method, route.endpoint.path), (*method, &*path));
        assert_eq!((route.label.text, LABELS[route.label.index]), (&*path, &*path));
    }
}

#[test]
fn requirements_of_routes_are_described() {
    let document = parsed();
    for (method, path, operation) in operations(&document) {
        let (_, method) = METHODS.iter().find(|(name, _)| *name == method).expect("a known method");
        let path_of_one = path.replace("{key}", "k");
        let route = Route::find(*method, path_of_one.as_bytes()).expect("a route");
        let access = route.operation.access;
        let security = operation["security"].to_string();
        assert_eq!(security.contains("apiKey"), access.needs_api_key(), "{path}");
        assert_eq!(security.contains("userKey"), access.needs_user_key(), "{path}");
        assert_eq!(
            operation.get("requestBody").is_some(),
            route.operation.body_bytes_max.is_some(),
            "{path}"
        );
        let responses = operation["responses"].as_object().expect("an object");
        let has = |status: &str| responses.contains_key(status);
        // The health check accepts requests without credentials, but refuses wrong node credentials.
        let checks_nodes = access.checks_nodes();
        assert_eq!(security.contains("nodeToken"), checks_nodes, "{path}");
        assert_eq!(has("403"), access.needs_api_key() || checks_nodes, "{path}");
        let parameters = operation["parameters"].to_string();
        assert_eq!(parameters.contains("parameters/NodeProtocol"), access.needs_node(), "{path}");
        assert_eq!(has("401"), access.needs_user_key(), "{path}");
        assert_eq!(has("429"), route.endpoint.counts_for_limits() || access.needs_api_key(), "{path}");
        assert_eq!(has("412"), access.needs_user_key(), "{path}");
        assert_eq!(has("413") && has("415"), route.operation.body_bytes_max.is_some(), "{path}");
        for status in ["400", "408", "414", "417", "421", "431", "500", "501", "503", "505"] {
            assert!(has(status), "{path}: {status}");
        }
        assert!(!has("and"), "{path}");
    }
}

#[test]
fn parts_are_objects_without_duplicate_names() {
    let count = |text: &str| {
        let part: Value = serde_json::from_str(text).expect("JSON");
        assert!(!members(text).is_empty());
        let count = part.as_object().expect("an object").len();
        // Of two members with the same name, a parser keeps only the last.
        assert_eq!(text.lines().filter(|line| line.starts_with("  \"")).count(), count, "{text}");
        count
    };
    let document = parsed();
    assert_eq!(document["paths"].as_object().map(serde_json::Map::len), Some(ENDPOINTS.len()));
    for (kind, texts) in COMPONENTS {
        let sum: usize = texts.iter().map(|text| count(text)).sum();
        assert_eq!(document["components"][kind].as_object().map(serde_json::Map::len), Some(sum), "{kind}");
    }
}

#[test]
fn references_resolve_and_components_are_used() {
    fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
        match value {
            Value::Object(members) => {
                found.extend(members.get("$ref").and_then(Value::as_str));
                members.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let document = parsed();
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    let mut components = BTreeSet::new();
    for kind in ["parameters", "headers", "responses", "schemas"] {
        let named = document["components"][kind].as_object().expect("an object").keys();
        components.extend(named.map(|name| format!("#/components/{kind}/{name}")));
    }
    let found: BTreeSet<String> = found.into_iter().map(str::to_owned).collect();
    let unmatched: Vec<&String> = found.symmetric_difference(&components).collect();
    assert!(unmatched.is_empty(), "{unmatched:?}");
}

#[test]
fn limits_match_the_server() {
    let document = parsed();
    let components = &document["components"];
    assert_eq!(components["schemas"]["Key"]["maxLength"], ENTRY_KEY_CHARS_MAX);
    assert_eq!(components["parameters"]["Limit"]["schema"]["maximum"], LIST_LIMIT_MAX);
    let description = document["info"]["description"].as_str().expect("a text");
    for limit in [
        crate::limits::BODY_BYTES_MAX,
        crate::limits::REQUEST_LINE_BYTES_MAX,
        crate::limits::HEAD_BYTES_MAX,
        crate::limits::HEADERS_COUNT_MAX,
    ] {
        assert!(description.contains(&limit.to_string()), "{limit}");
    }
}

/// Returns the (status, body) of every response example.
fn examples(document: &Value) -> BTreeSet<(u16, String)> {
    let mut found = BTreeSet::new();
    let mut add = |status: &str, response: &Value| {
        let Some(examples) = response["content"]["application/json"]["examples"].as_object() else { return };
        let status: u16 = status.parse().expect("a status");
        found.extend(examples.values().map(|example| (status, example["value"].to_string())));
    };
    for (_, _, operation) in operations(document) {
        for (status, response) in operation["responses"].as_object().expect("an object") {
            match response["$ref"].as_str().and_then(|reference| reference.rsplit('/').next()) {
                Some(name) => add(status, &document["components"]["responses"][name]),
                None => add(status, response),
            }
        }
    }
    found
}

/// Returns one response for each kind of error in the table, about the entry in the document's examples.
fn table() -> Vec<Response> {
    let key = || "database".to_owned();
    let production = || Some("production".to_owned());
    let two = || vec!["production".to_owned(), "staging".to_owned()];
    let silent = || vec!["node2:9000".to_owned()];
    let mut responses: Vec<Response> = Vec::new();
    responses.extend(
        [
            AuthError::ApiKeyMissing.into(),
            AuthError::ApiKeyWrong { delay: Duration::ZERO }.into(),
            AuthError::ApiKeyOfClients.into(),
            AuthError::ClusterSecretMissing.into(),
            AuthError::ClusterSecretWrong { delay: Duration::ZERO }.into(),
            RequestError::NodeCertificateMissing,
            RequestError::UserKeyTooShort { bytes_min: 8 },
            RequestError::ContentCoded,
            RequestError::Conditional,
            RequestError::PartialContent,
            RequestError::ProtocolNotSupported,
            RequestError::TooManyRequests { wait: Duration::ZERO },
            AuthError::TooManyFailures { wait: Duration::ZERO }.into(),
        ]
        .iter()
        .map(Response::from),
    );
    responses.extend(
        [
            ProtocolError::BadRequest("host is missing"),
            ProtocolError::VersionNotSupported,
            ProtocolError::MethodNotImplemented,
            ProtocolError::TransferCodingNotImplemented,
            ProtocolError::ExpectationFailed,
            ProtocolError::RequestLineTooLong,
            ProtocolError::HeadTooLarge,
            ProtocolError::BodyTooLarge { bytes_max: crate::limits::BODY_BYTES_MAX },
            ProtocolError::HeadTimeout,
            ProtocolError::BodyTimeout,
        ]
        .map(Response::from),
    );
    responses.extend(
        [
            Error::AlreadyExists { key: key(), environment: None, is_foreign: true },
            Error::AlreadyExists { key: key(), environment: production(), is_foreign: true },
            Error::NotFound { key: key(), environment: None, silent: Vec::new() },
            Error::NotFound { key: key(), environment: production(), silent: silent() },
            Error::Incomplete { key: key(), environment: None, silent: silent() },
            Error::Ambiguous { key: key(), environments: two() },
            Error::WrongUserKey { key: key() },
            Error::Unreadable { key: key(), what: "it is not valid JSON" },
            Error::Busy,
            Error::DiskFull,
            Error::Displaced,
            Error::Unavailable,
            Error::NotReplicated { reached: 0, wanted: 1 },
            Error::VersionAhead { key: key(), minutes: 62 },
            Error::SaltDiffers,
            Error::NoSalt,
            Error::NotJoined,
        ]
        .map(Response::from),
    );
    responses.extend([error::internal(), error::not_clustered(), error::overloaded()]);
    responses.extend([error::host_not_allowed(), error::origin_not_allowed(), error::salt_as_form()]);
    responses.push(error::not_ready("the nodes have not agreed on a salt yet"));
    responses.push(error::not_ready(crate::http::handlers::system::NOT_JOINED));
    responses.push(error::not_ready(crate::http::handlers::system::DRAINING));
    responses.push(error::unhealthy(&["no space is left to write; reading goes on".to_owned()]));
    responses.extend(validation_errors());
    responses
}

fn validation_errors() -> Vec<Response> {
    let category = format!(r#"{{"category":"{}"}}"#, "c".repeat(101));
    let entry = |body: &str| body::new_entry(body.as_bytes(), None).map(drop).map_err(Response::from);
    let update = |body: &[u8]| body::update(body, None).map(drop).map_err(Response::from);
    let parameter = |kind, name, allowed: &str, found| {
        Response::from(ValidationError::parameter(kind, name, allowed, found))
    };
    assert!(entry(&category).is_err());
    let mut found: Vec<Response> = [
        entry(""),
        entry(r#"{"value":NaN}"#),
        entry("[]"),
        entry(r#"{"key":7,"value":null}"#),
        entry(r#"{"key":"","value":1}"#),
        update(br#"{"category":"production"}"#),
        update(b"\"\xff\""),
    ]
    .into_iter()
    .map(|result| result.expect_err("an invalid entry"))
    .collect();
    found.push(ValidationError::user_key_missing().into());
    found.push(parameter("literal_error", "mode", "'short' or 'full'", "long"));
    found.push(parameter("int_parsing", "limit", &format!("an integer from 1 to {LIST_LIMIT_MAX}"), "0"));
    let allowed = "the id of an entry, or what X-Next-After gave";
    found.push(parameter("int_parsing", "after", allowed, "x"));
    found.push(parameter("value_error", "after", "what next_after gave", "x"));
    found
}

/// Error texts of the handlers themselves; `tests/server/documentation.rs` checks that they send them.
const HANDLER_ERRORS: [(u16, &str); 6] = [
    (400, "Invalid salt size: 5 bytes (expected 64)"),
    (400, "Invalid salt: it is not random (distinct byte values: 1)"),
    (404, "Salt file not found on this node"),
    (409, "Salt file already exists and differs from received salt"),
    (422, "not a message of a peer: EOF while parsing a value at line 1 column 0"),
    (503, "no replication with node2:9000: its salt differs and both have entries"),
];

#[test]
fn error_examples_match_the_table() {
    let document = parsed();
    let shown: BTreeSet<(u16, String)> =
        examples(&document).into_iter().filter(|(status, _)| *status >= 400).collect();
    let mut expected: BTreeSet<(u16, String)> = table()
        .iter()
        .map(|response| {
            let body: Value = serde_json::from_slice(response.body.in_memory()).expect("JSON");
            (response.status, body.to_string())
        })
        .collect();
    for (status, text) in HANDLER_ERRORS {
        let about_readiness = text.starts_with("no replication");
        let body = match about_readiness {
            true => serde_json::json!({ "ready": false, "detail": text }),
            false => serde_json::json!({ "detail": text }),
        };
        expected.insert((status, body.to_string()));
    }
    let missing: Vec<_> = expected.difference(&shown).collect();
    let invented: Vec<_> = shown.difference(&expected).collect();
    assert!(
        missing.is_empty() && invented.is_empty(),
        "not shown: {missing:#?}\nno such text: {invented:#?}"
    );
}
