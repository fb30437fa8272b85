//! List cursors as text for a query and a header: the name of an entry, which means the same on every node.
//!
//! The text is base64url of a version, the length of the environment in two bytes (0 without an environment), the
//! environment and the key. It is opaque to clients, so its order has no meaning.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::limits::{ENTRY_KEY_CHARS_MAX, ENVIRONMENT_CHARS_MAX};
use crate::model::EntryId;

const VERSION: u8 = 1;

/// Formats a cursor.
///
/// Another program may have created longer names than are valid, which would not fit into a request line. Their cursor is
/// the end of all names that begin like them.
pub(super) fn text(after: &EntryId) -> String {
    let environment = bounded(after.environment.as_deref().unwrap_or_default(), ENVIRONMENT_CHARS_MAX);
    let key = bounded(&after.key, ENTRY_KEY_CHARS_MAX);
    let environment_bytes = u16::try_from(environment.len()).expect("the characters are counted");
    let mut bytes = vec![VERSION];
    bytes.extend(environment_bytes.to_be_bytes());
    bytes.extend(environment.as_bytes());
    bytes.extend(key.as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Parses a cursor that [`text`] formatted.
pub(super) fn parse(text: &str) -> Option<EntryId> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let (&[version, high, low], names) = bytes.split_first_chunk()?;
    let (environment, key) = names.split_at_checked(u16::from_be_bytes([high, low]).into())?;
    let utf8 = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(str::to_owned);
    let (environment, key) = (utf8(environment)?, utf8(key)?);
    let environment = Some(environment).filter(|environment| !environment.is_empty());
    (version == VERSION && !key.is_empty()).then_some(EntryId { key, environment })
}

/// Returns a text of at most one character more than allowed. A longer one is replaced by a text that comes after it.
fn bounded(text: &str, chars_max: usize) -> String {
    let mut bounded: String = text.chars().take(chars_max).collect();
    if bounded.len() < text.len() {
        bounded.push(char::MAX);
    }
    bounded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::REQUEST_LINE_BYTES_MAX;
    use crate::model::NameOrder;

    fn id(key: &str, environment: Option<&str>) -> EntryId {
        EntryId { key: key.to_owned(), environment: environment.map(str::to_owned) }
    }

    #[test]
    fn cursors_round_trip() {
        let (wide_key, wide) = ("𝔎".repeat(ENTRY_KEY_CHARS_MAX), "𝔢".repeat(ENVIRONMENT_CHARS_MAX));
        let names = [
            id("ключ/\0\"", Some("e")),
            id("k", None),
            id(&wide_key, Some(&wide)),
            id(&wide_key, None),
            id("\0", Some("\0")),
            id("k", Some("ek")),
            id("kk", Some("e")),
        ];
        for after in names {
            let text = text(&after);
            assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{text}");
            assert!(text.len() < REQUEST_LINE_BYTES_MAX / 2);
            assert_eq!(parse(&text), Some(after));
        }
    }

    #[test]
    fn a_name_that_is_too_long_has_a_short_cursor_after_it() {
        let order = NameOrder::Environment;
        for long in [
            id(&"k".repeat(100_000), None),
            id(&"k".repeat(ENTRY_KEY_CHARS_MAX + 1), Some("e")),
            id("k", Some(&"𝔢".repeat(ENVIRONMENT_CHARS_MAX + 1))),
        ] {
            let text = text(&long);
            assert!(text.len() < REQUEST_LINE_BYTES_MAX / 2);
            assert!(order.of_id(&parse(&text).expect("valid")) > order.of_id(&long));
        }
    }

    #[test]
    fn other_texts_are_no_cursors() {
        let encoded = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let texts = [
            encoded(b""),
            encoded(b"\x01"),
            encoded(b"\x01\0"),
            encoded(b"\x01\0\0"),
            encoded(b"\x01\0\x01e"),
            encoded(b"\x01\0\x02k"),
            encoded(b"\x01\xff\xffk"),
            encoded(b"\x02\0\0k"),
            encoded(b"\x01\0\0\xff"),
            encoded(b"\x01\0\x01\xffk"),
            // Between two bytes of a character.
            encoded("\x01\0\x01é".as_bytes()),
            format!("{}=", encoded(b"\x01\0\0k")),
        ];
        // Cursors of earlier versions are among them: the id of an entry, or `n` and base64url of JSON.
        let others =
            ["x", "0", "123", "-1", "1.5", "99999999999999999999", "nWyJhIixudWxsXQ", "AQAA!", "AQAAa w"];
        for text in texts.iter().map(String::as_str).chain(others) {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
