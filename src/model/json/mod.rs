//! Canonical JSON text: validated once, rewritten in one canonical form, never parsed into a tree.
//!
//! A value is stored and returned as the text that the client sent, apart from white space, string escapes and repeated
//! names. A number therefore keeps every digit (2^64, `0.1000`, `1E+2`), which no number type would preserve.
//!
//! **Canonical** text has no white space; its strings are raw UTF-8 with only `"`, `\` and the
//! control characters below U+0020 escaped (`\b \f \n \r \t`, else `\u00` and two lower-case
//! digits); its numbers are as sent; its names keep their order and are unique: a repeated name
//! keeps its first position and gets its last value, as in a Python `dict`.
//!
//! Apart from syntax errors, texts are rejected if some JSON parser could not represent them, see [`Reason`].

mod document;
mod edit;
mod error;
mod members;
mod names;
mod number;
mod string;
#[cfg(test)]
mod tests;

pub use error::{Reason, SyntaxError};
pub use members::{Members, members};
pub use string::{string, write_string};

use document::Document;

/// Type of a JSON value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `{…}`
    Object,
    /// `[…]`
    Array,
    /// `"…"`
    String,
    /// An integer of any size, or a number that a double can hold.
    Number,
    /// `true`
    True,
    /// `false`
    False,
    /// `null`
    Null,
}

/// Validates a JSON text, which may have white space around it but no byte order mark, and appends its canonical form
/// to `out`.
///
/// The canonical form is never longer than the text, and room for it is reserved once, at the start. An `out` that is
/// empty or large enough is therefore never moved, so wiping it leaves no copy behind.
///
/// # Errors
/// Fails if the text is not JSON, or contains anything that [`Reason`] lists; the content of `out` is then unchanged.
pub fn canonicalize(text: &[u8], out: &mut Vec<u8>) -> Result<Kind, SyntaxError> {
    // CPython takes these bytes for the start of UTF-16, and finds no value after them.
    if text.starts_with(&[0xFF, 0xFE]) || text.starts_with(&[0xFE, 0xFF]) {
        return Err(SyntaxError { position: 0, reason: Reason::ExpectingValue });
    }
    if let Err(error) = std::str::from_utf8(text) {
        return Err(SyntaxError::at_byte(text, error.valid_up_to(), Reason::NotUtf8));
    }
    let start = out.len();
    out.reserve(text.len());
    match Document::new(text, out).write() {
        Ok(kind) => {
            assert!(out.len() - start <= text.len(), "canonical text is not longer than its source");
            Ok(kind)
        }
        Err(stop) => {
            out.truncate(start);
            Err(SyntaxError::at_byte(text, stop.at, stop.reason))
        }
    }
}

/// Returns the type of a canonical value, from its first byte.
pub fn kind(canonical: &[u8]) -> Kind {
    match canonical.first() {
        Some(b'{') => Kind::Object,
        Some(b'[') => Kind::Array,
        Some(b'"') => Kind::String,
        Some(b't') => Kind::True,
        Some(b'f') => Kind::False,
        Some(b'n') => Kind::Null,
        _ => Kind::Number,
    }
}
