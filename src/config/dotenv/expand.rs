//! Expansion of `${NAME}` and `${NAME:-default}` in values, as in python-dotenv's `load_dotenv`.

use std::collections::BTreeMap;
use std::ffi::OsString;

/// Replaces references by the values of their variables: from the environment, otherwise from the preceding lines,
/// otherwise the default, otherwise nothing. A variable that is set but empty, or has no value, expands to nothing.
/// Returns `None` if the result is larger than `bytes_max`.
pub(super) fn expand(
    value: &str,
    environment: &BTreeMap<String, OsString>,
    before: &BTreeMap<String, Option<OsString>>,
    bytes_max: usize,
) -> Option<OsString> {
    // Not a `String`: the reader of the variable reports a value that is not UTF-8.
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

/// Parsed start of a text that starts with `${`.
enum Parsed<'a> {
    Reference {
        name: &'a str,
        default: &'a str,
        after: &'a str,
    },
    /// Text that contains no reference.
    Literal {
        text: &'a str,
        after: &'a str,
    },
}

/// Parses the start of a text, in linear time overall: if no reference starts at the first `${`, none starts before the
/// character that ruled it out, so the search continues there.
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
