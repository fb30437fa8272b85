//! JSON as text: checked once, written in one canonical form, never turned into a tree.
//!
//! A value is stored and answered as the text that the client sent, apart from white space, the
//! spelling of strings and repeated names. So a number comes back digit for digit (2^64, `0.1000`,
//! `1E+2`), which no number type between reading and writing would allow.
//!
//! **Canonical** text has no white space; its strings are raw UTF-8 with only `"`, `\` and the
//! control characters below U+0020 escaped (`\b \f \n \r \t`, else `\u00` and two lower-case
//! digits); its numbers are as sent; its names keep their order and are unique: a repeated name
//! keeps its first place and gets its last value, as in a Python `dict`.
//!
//! What is refused beyond bad syntax is what some JSON reader could not hold, see [`Reason`].

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

/// What a JSON text is.
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

/// Checks one JSON text, which may have white space around it but no byte order mark, and appends
/// its canonical form to `out`.
///
/// The canonical form is never longer than the text and room for it is made once, at the start. So
/// an `out` that is empty, or large enough, is never moved, and its wiping leaves no copy behind.
///
/// # Errors
/// When the text is not JSON, or holds what [`Reason`] lists; `out` then ends where it did before.
pub fn canonicalize(text: &[u8], out: &mut Vec<u8>) -> Result<Kind, SyntaxError> {
    // CPython takes these for the start of UTF-16 and finds nothing behind it.
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
            assert!(out.len() - start <= text.len(), "canonical text never grows");
            Ok(kind)
        }
        Err(stop) => {
            out.truncate(start);
            Err(SyntaxError::at_byte(text, stop.at, stop.reason))
        }
    }
}

/// What a canonical text is, by its first byte.
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
