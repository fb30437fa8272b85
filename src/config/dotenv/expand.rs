//! `${NAME}` and `${NAME:-default}` in a value, as python-dotenv's `load_dotenv` expands them.

use std::collections::BTreeMap;
use std::ffi::OsString;

/// Replaces references by the values of their variables: the environment's, else the one that the lines before gave
/// it, else the default, else nothing. A variable that is there but empty, or has no value, stays empty.
/// `None` when the result is larger than `bytes_max`.
pub(super) fn expand(
    value: &str,
    environment: &BTreeMap<String, OsString>,
    before: &BTreeMap<String, Option<OsString>>,
    bytes_max: usize,
) -> Option<OsString> {
    // Not a `String`: a value that is not UTF-8 is the reader's fault to report.
    let mut expanded = OsString::with_capacity(value.len());
    let mut rest = value;
    while let Some(dollar) = rest.find("${") {
        let (literal, reference) = rest.split_at(dollar);
        expanded.push(literal);
        match parse(reference) {
            Parsed::Reference { name, default, after } => {
                match (environment.get(name), before.get(name)) {
                    (Some(found), _) | (None, Some(Some(found))) => expanded.push(found),
                    (None, Some(None)) => {}
                    (None, None) => expanded.push(default),
                }
                rest = after;
            }
            Parsed::Literal { text, after } => {
                expanded.push(text);
                rest = after;
            }
        }
        if expanded.len() > bytes_max {
            return None;
        }
    }
    expanded.push(rest);
    (expanded.len() <= bytes_max).then_some(expanded)
}

/// The front of a text that starts with `${`.
enum Parsed<'a> {
    Reference {
        name: &'a str,
        default: &'a str,
        after: &'a str,
    },
    /// Text in which no reference starts.
    Literal {
        text: &'a str,
        after: &'a str,
    },
}

/// Looks at each byte once: where no reference starts at the first `${`, none starts before the character that it
/// lacked, so that the search goes on there.
fn parse(text: &str) -> Parsed<'_> {
    let Some(end) = text.find(['}', ':']) else { return Parsed::Literal { text, after: "" } };
    let name = &text[2..end];
    if let Some(after) = text[end..].strip_prefix('}') {
        return Parsed::Reference { name, default: "", after };
    }
    match text[end..].strip_prefix(":-") {
        Some(rest) => match rest.split_once('}') {
            Some((default, after)) => Parsed::Reference { name, default, after },
            None => Parsed::Literal { text, after: "" },
        },
        None => Parsed::Literal { text: &text[..end], after: &text[end..] },
    }
}
