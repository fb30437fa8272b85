//! The entry key in a path, and percent-encoding of paths.

use std::borrow::Cow;

/// The entry key in a path: everything after `/configs/`, percent-decoded once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyPath<'a> {
    /// The decoded text; bytes that are not UTF-8 appear as U+FFFD.
    pub text: Cow<'a, str>,
    /// Whether the decoded bytes are UTF-8; otherwise no entry can have this key.
    pub is_text: bool,
    /// The redirect target if no entry has this key, for a path that ends in an unencoded `/`. `None` if a client
    /// would resolve it to another resource.
    pub without_slash: Option<String>,
}

impl<'a> KeyPath<'a> {
    pub(super) fn parse(raw: &'a [u8], path: &[u8]) -> Self {
        let without_slash = path.strip_suffix(b"/").filter(|path| !has_dot_segments(path)).map(header_text);
        let (text, is_text) = match percent_decode(raw) {
            Cow::Borrowed(bytes) => (String::from_utf8_lossy(bytes), std::str::from_utf8(bytes).is_ok()),
            Cow::Owned(bytes) => match String::from_utf8(bytes) {
                Ok(text) => (Cow::Owned(text), true),
                Err(error) => (Cow::Owned(String::from_utf8_lossy(error.as_bytes()).into_owned()), false),
            },
        };
        Self { text, is_text, without_slash }
    }

    pub(super) fn into_owned(self) -> KeyPath<'static> {
        let Self { text, is_text, without_slash } = self;
        KeyPath { text: Cow::Owned(text.into_owned()), is_text, without_slash }
    }
}

/// Decodes `%XX`, once. A `%` without two hexadecimal digits is literal, as in the Python server.
pub(super) fn percent_decode(raw: &[u8]) -> Cow<'_, [u8]> {
    let Some(first) = memchr::memchr(b'%', raw) else { return Cow::Borrowed(raw) };
    let mut decoded = Vec::with_capacity(raw.len());
    decoded.extend_from_slice(&raw[..first]);
    let mut rest = &raw[first..];
    while let Some((&byte, after)) = rest.split_first() {
        let hex = |at: usize| after.get(at).and_then(|&digit| char::from(digit).to_digit(16));
        match (byte, hex(0), hex(1)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push(u8::try_from(high * 16 + low).expect("two hexadecimal digits fit a byte"));
                rest = &after[2..];
            }
            _ => {
                decoded.push(byte);
                rest = after;
            }
        }
    }
    Cow::Owned(decoded)
}

/// Returns whether a client that resolves this path, as in a `Location`, would remove dot segments and request another
/// path (RFC 3986, 5.2.4). Browsers decode the dots first (<https://url.spec.whatwg.org/#single-dot-path-segment>), and
/// some clients treat `\` as `/`.
fn has_dot_segments(path: &[u8]) -> bool {
    let is_dots = |segment| matches!(&*percent_decode(segment), b"." | b"..");
    path.split(|&byte| byte == b'/' || byte == b'\\').any(is_dots)
}

/// Encodes a raw path or query for a `Location`: visible ASCII stays, everything else is percent-encoded, so no byte
/// can break out of the header.
pub(super) fn header_text(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for &byte in path {
        if byte.is_ascii_graphic() {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}
