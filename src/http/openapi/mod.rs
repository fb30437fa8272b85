//! The API description as an OpenAPI 3.1 document. Its parts are files next to this one, one per path. Tests check them
//! against the routes and the error texts, and CI checks them against the server's responses.

#[cfg(test)]
mod tests;

use std::sync::LazyLock;

use crate::model::json;

/// The description of each path, in display order.
const PATHS: [(&str, &str); 22] = [
    ("/configs", include_str!("paths/configs.json")),
    ("/configs/{key}", include_str!("paths/config.json")),
    ("/", include_str!("paths/root.json")),
    ("/ready", include_str!("paths/ready.json")),
    ("/health", include_str!("paths/health.json")),
    ("/metrics", include_str!("paths/metrics.json")),
    ("/cluster/health", include_str!("paths/cluster-health.json")),
    ("/cluster/status", include_str!("paths/cluster-status.json")),
    ("/cluster/configs", include_str!("paths/cluster-configs.json")),
    ("/cluster/salt", include_str!("paths/cluster-salt.json")),
    ("/v1/cluster/members", include_str!("paths/members.json")),
    ("/v1/federation/duplicates", include_str!("paths/duplicates.json")),
    ("/openapi.json", include_str!("paths/openapi.json")),
    ("/docs", include_str!("paths/docs.json")),
    ("/redoc", include_str!("paths/redoc.json")),
    ("/cluster/changes", include_str!("paths/changes.json")),
    ("/cluster/digests", include_str!("paths/digests.json")),
    ("/cluster/versions", include_str!("paths/versions.json")),
    ("/cluster/entries", include_str!("paths/entries.json")),
    ("/cluster/find", include_str!("paths/find.json")),
    ("/cluster/page", include_str!("paths/page.json")),
    ("/cluster/write", include_str!("paths/write.json")),
];

const COMPONENTS: [(&str, &[&str]); 5] = [
    ("securitySchemes", &[include_str!("components/security.json")]),
    ("parameters", &[include_str!("components/parameters.json")]),
    ("headers", &[include_str!("components/headers.json")]),
    ("responses", &[include_str!("components/responses.json")]),
    ("schemas", &[include_str!("components/schemas.json"), include_str!("components/messages.json")]),
];

/// Placeholder in the responses of each operation for those of `every.json`.
const EVERY_REQUEST: &str = r#""and": "what every request can get""#;

/// Returns the document as compact JSON.
pub(super) fn document() -> &'static [u8] {
    static DOCUMENT: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut compact = Vec::new();
        json::canonicalize(assemble().as_bytes(), &mut compact)
            .expect("a test checks that the document is JSON");
        compact
    });
    &DOCUMENT
}

fn assemble() -> String {
    let paths = object(PATHS.iter().map(|(path, text)| (*path, (*text).to_owned())));
    let components = object(COMPONENTS.iter().map(|(kind, texts)| {
        let all: Vec<&str> = texts.iter().map(|text| members(text)).collect();
        (*kind, format!("{{{}}}", all.join(",")))
    }));
    let document = object(
        [
            ("openapi", r#""3.1.0""#),
            ("info", include_str!("info.json")),
            // Relative to the document, so that it is also correct behind a proxy.
            ("servers", r#"[{"url":"."}]"#),
            ("tags", include_str!("tags.json")),
            ("paths", &paths),
            ("components", &components),
        ]
        .map(|(name, text)| (name, text.to_owned()))
        .into_iter(),
    );
    document.replace(EVERY_REQUEST, members(include_str!("every.json")))
}

fn object<'a>(named: impl Iterator<Item = (&'a str, String)>) -> String {
    let members: Vec<String> = named.map(|(name, text)| format!(r#""{name}":{text}"#)).collect();
    format!("{{{}}}", members.join(","))
}

/// Returns the members of a JSON object, without its braces.
fn members(object: &str) -> &str {
    let inside = object.trim().strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
    inside.expect("a test checks that each part is an object")
}
