//! Errors of JSON texts, with the messages of CPython, because clients show them to users.

use crate::limits::{JSON_DEPTH_MAX, JSON_INTEGER_DIGITS_MAX};

/// Error of a text that is not JSON, or that not every JSON parser can represent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: char {position}")]
pub struct SyntaxError {
    /// Position in characters (Unicode scalar values) from the start of the text, as Python counts.
    pub position: usize,
    /// Reason of the error.
    pub reason: Reason,
}

/// Reason for rejecting a text. The first nine messages are exactly those of CPython; the remaining ones are specific
/// to this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// No value where one should start.
    #[error("Expecting value")]
    ExpectingValue,
    /// Neither a comma nor the end after an item or a member.
    #[error("Expecting ',' delimiter")]
    ExpectingComma,
    /// No name where one should start.
    #[error("Expecting property name enclosed in double quotes")]
    ExpectingName,
    /// Name without a value.
    #[error("Expecting ':' delimiter")]
    ExpectingColon,
    /// Text after the value.
    #[error("Extra data")]
    ExtraData,
    /// Raw character below U+0020 in a string.
    #[error("Invalid control character at")]
    ControlCharacter,
    /// End of the text within a string.
    #[error("Unterminated string starting at")]
    UnterminatedString,
    /// Backslash before a character that it cannot escape.
    #[error("Invalid \\escape")]
    InvalidEscape,
    /// `\u` without four hexadecimal digits.
    #[error("Invalid \\uXXXX escape")]
    InvalidUnicodeEscape,

    /// `1e400`: most parsers would read infinity, which they cannot write again.
    #[error("Number too large for a double")]
    NumberTooLarge,
    /// `NaN`, `Infinity` or `-Infinity`, which Python reads and writes although JSON does not have them.
    #[error("NaN and Infinity are not allowed")]
    NotFinite,
    /// Surrogate without its other half, which UTF-8 cannot encode.
    #[error("Lone surrogate")]
    LoneSurrogate,
    /// More than [`JSON_DEPTH_MAX`] nested arrays and objects.
    #[error("Nesting deeper than {} levels", JSON_DEPTH_MAX)]
    TooDeep,
    /// Integer of more than [`JSON_INTEGER_DIGITS_MAX`] digits.
    #[error("Integer with more than {} digits", JSON_INTEGER_DIGITS_MAX)]
    IntegerTooLong,
    /// Bytes that are not UTF-8, inside or outside of strings.
    #[error("Not UTF-8")]
    NotUtf8,
}

impl SyntaxError {
    /// Creates an error at the offset `byte`, up to which the text must be UTF-8.
    pub(super) fn at_byte(text: &[u8], byte: usize, reason: Reason) -> Self {
        let continues = |byte: &&u8| **byte & 0xC0 == 0x80;
        let before = &text[..byte];
        Self { position: before.len() - before.iter().filter(continues).count(), reason }
    }
}

/// Error with its position in bytes, which is converted to characters only at the end.
#[derive(Debug)]
pub(super) struct Stop {
    pub(super) at: usize,
    pub(super) reason: Reason,
}

impl Stop {
    pub(super) fn new(at: usize, reason: Reason) -> Self {
        Self { at, reason }
    }
}
