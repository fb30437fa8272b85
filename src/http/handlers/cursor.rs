//! List cursors as text for a query and a header: the id of a local entry, or `n` and an entry's name (key and
//! environment) in base64url.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::model::EntryId;
use crate::service::After;

/// Key and environment of an entry.
type Name = (String, Option<String>);

/// Formats a cursor.
pub(super) fn text(after: &After) -> String {
    match after {
        After::Id(id) => id.to_string(),
        After::Name(EntryId { key, environment }) => {
            let name = serde_json::to_vec(&(key, environment)).expect("strings always serialize to memory");
            format!("n{}", URL_SAFE_NO_PAD.encode(name))
        }
    }
}

/// Parses a cursor that [`text`] formatted.
pub(super) fn parse(text: &str) -> Option<After> {
    match text.strip_prefix('n') {
        None => text.parse().ok().map(After::Id),
        Some(name) => {
            let name = URL_SAFE_NO_PAD.decode(name).ok()?;
            let (key, environment): Name = serde_json::from_slice(&name).ok()?;
            Some(After::Name(EntryId { key, environment }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_round_trip() {
        let name = |key: &str, environment: Option<&str>| {
            After::Name(EntryId { key: key.to_owned(), environment: environment.map(str::to_owned) })
        };
        for after in [
            After::Id(0),
            After::Id(i64::MIN),
            After::Id(77),
            name("ключ/\0\"", Some("e")),
            name("k", None),
            name("", None),
        ] {
            let text = text(&after);
            assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{text}");
            assert_eq!(parse(&text), Some(after));
        }
        for text in ["", "x", "n", "n!", "nWzFd", "1.5", "99999999999999999999"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
