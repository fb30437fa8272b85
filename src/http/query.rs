//! The query string, parsed as `application/x-www-form-urlencoded`, like the Python server does.

use std::borrow::Cow;

use super::key_path::percent_decode;

/// Returns the value of a parameter; the last one if it is repeated. `+` decodes to a space; bytes that are not UTF-8
/// become U+FFFD.
pub(super) fn parameter<'a>(query: Option<&'a [u8]>, name: &str) -> Option<Cow<'a, str>> {
    let mut found = None;
    for pair in query?.split(|&byte| byte == b'&') {
        let (raw_name, raw_value) = match memchr::memchr(b'=', pair) {
            Some(at) => (&pair[..at], &pair[at + 1..]),
            None => (pair, &[][..]),
        };
        if decode(raw_name) == name {
            found = Some(raw_value);
        }
    }
    found.map(decode)
}

fn decode(raw: &[u8]) -> Cow<'_, str> {
    if !raw.iter().any(|byte| matches!(byte, b'%' | b'+')) {
        return String::from_utf8_lossy(raw);
    }
    let spaced: Vec<u8> = raw.iter().map(|&byte| if byte == b'+' { b' ' } else { byte }).collect();
    Cow::Owned(String::from_utf8_lossy(&percent_decode(&spaced)).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters() {
        for (query, expected) in [
            ("category=x", Some("x")),
            ("category=x&category=y", Some("y")),
            ("a=1&category=a+b&z", Some("a b")),
            ("category=a%2Bb", Some("a+b")),
            ("category=50%", Some("50%")),
            ("category=%ff", Some("\u{fffd}")),
            ("c%61tegory=1=2", Some("1=2")),
            ("category", Some("")),
            ("Category=x", None),
            ("", None),
        ] {
            assert_eq!(parameter(Some(query.as_bytes()), "category").as_deref(), expected, "{query}");
        }
        assert_eq!(parameter(None, "category"), None);
    }
}
