//! The API description as an OpenAPI 3.1 document. Its parts are files next to this one, one per path. Tests check them
//! against the routes and the error texts, and CI checks them against the server's responses.

#[cfg(test)]
mod tests;

use crate::model::json;

const COMPONENTS: [(&str, &[&str]); 5] = [
    ("securitySchemes", &[include_str!("components/security.json")]),
    ("parameters", &[include_str!("components/parameters.json")]),
    ("headers", &[include_str!("components/headers.json")]),
    ("responses", &[include_str!("components/responses.json")]),
    ("schemas", &[include_str!("components/schemas.json"), include_str!("components/messages.json")]),
];

/// Placeholder in the responses of each operation for those of `every.json`.
const EVERY_REQUEST: &str = r#""and": "what every request can get""#;

/// Assembles the document, as compact JSON, from the paths and their path items.
pub(super) fn document<'a>(paths: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<u8> {
    let mut compact = Vec::new();
    json::canonicalize(assemble(paths).as_bytes(), &mut compact).expect("a test ensures that it is JSON");
    compact
}

fn assemble<'a>(paths: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let paths = object(paths.map(|(path, text)| (path, text.to_owned())));
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
