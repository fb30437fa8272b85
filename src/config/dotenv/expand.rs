//! `${NAME}` and `${NAME:-default}` in a value, as python-dotenv's `load_dotenv` expands them.

use std::collections::BTreeMap;
use std::ffi::OsString;

/// Puts in the values of variables: the environment's, else the one that the lines before gave it, else
/// the default, else nothing. A variable that is there but empty, or has no value, stays empty.
pub(super) fn expand(
    value: &str,
    environment: &BTreeMap<String, OsString>,
    before: &BTreeMap<String, Option<OsString>>,
) -> OsString {
    // Not a `String`, so that a value that is no text is found out by whoever uses it.
    let mut expanded = OsString::with_capacity(value.len());
    let mut rest = value;
    while let Some(dollar) = rest.find("${") {
        expanded.push(&rest[..dollar]);
        let Some((name, default, after)) = reference(&rest[dollar + 2..]) else {
            expanded.push("$");
            rest = &rest[dollar + 1..];
            continue;
        };
        match (environment.get(name), before.get(name)) {
            (Some(found), _) | (None, Some(Some(found))) => expanded.push(found),
            (None, Some(None)) => {}
            (None, None) => expanded.push(default),
        }
        rest = after;
    }
    expanded.push(rest);
    expanded
}

/// What follows `${`: the name, the default, and the text after the brace.
fn reference(text: &str) -> Option<(&str, &str, &str)> {
    let (name, rest) = text.split_at(text.find(['}', ':'])?);
    if let Some(after) = rest.strip_prefix('}') {
        return Some((name, "", after));
    }
    let (default, after) = rest.strip_prefix(":-")?.split_once('}')?;
    Some((name, default, after))
}
