//! Why a text is not JSON, in the words of CPython: its clients show them to people.

use crate::limits::{JSON_DEPTH_MAX, JSON_INTEGER_DIGITS_MAX};

/// A text that is not JSON, or not JSON that every reader can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: char {position}")]
pub struct SyntaxError {
    /// Where, in characters (Unicode scalar values) from the start of the text, as Python counts.
    pub position: usize,
    /// What is wrong there.
    pub reason: Reason,
}

/// What is wrong with a text. The first nine are CPython's, to the letter; the others are ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Something else, or nothing, where a value should start.
    #[error("Expecting value")]
    ExpectingValue,
    /// After an item or a member comes neither a comma nor the end.
    #[error("Expecting ',' delimiter")]
    ExpectingComma,
    /// Something else, or nothing, where a name should start.
    #[error("Expecting property name enclosed in double quotes")]
    ExpectingName,
    /// A name without a value.
    #[error("Expecting ':' delimiter")]
    ExpectingColon,
    /// Something follows the value.
    #[error("Extra data")]
    ExtraData,
    /// A raw character below U+0020 in a string.
    #[error("Invalid control character at")]
    ControlCharacter,
    /// The text ends in a string.
    #[error("Unterminated string starting at")]
    UnterminatedString,
    /// A backslash before a character that it cannot escape.
    #[error("Invalid \\escape")]
    InvalidEscape,
    /// A `\u` without four hexadecimal digits.
    #[error("Invalid \\uXXXX escape")]
    InvalidUnicodeEscape,

    /// `1e400`: most readers would make it infinite, which they then cannot write.
    #[error("Number too large for a double")]
    NumberTooLarge,
    /// `NaN`, `Infinity` or `-Infinity`, which Python reads and writes although JSON has no such thing.
    #[error("NaN and Infinity are not allowed")]
    NotFinite,
    /// A surrogate without its other half, which UTF-8 cannot hold.
    #[error("Lone surrogate")]
    LoneSurrogate,
    /// More than [`JSON_DEPTH_MAX`] arrays and objects in each other.
    #[error("Nesting deeper than {} levels", JSON_DEPTH_MAX)]
    TooDeep,
    /// An integer of more than [`JSON_INTEGER_DIGITS_MAX`] digits.
    #[error("Integer with more than {} digits", JSON_INTEGER_DIGITS_MAX)]
    IntegerTooLong,
    /// Bytes that are not UTF-8, inside or outside of strings.
    #[error("Not UTF-8")]
    NotUtf8,
}

impl SyntaxError {
    /// `byte` counts bytes, and all of the text before it is UTF-8.
    pub(super) fn at_byte(text: &[u8], byte: usize, reason: Reason) -> Self {
        let continues = |byte: &&u8| **byte & 0xC0 == 0x80;
        let before = &text[..byte];
        Self { position: before.len() - before.iter().filter(continues).count(), reason }
    }
}

/// Where a scan stopped, in bytes, which are turned into characters only once there is an error.
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
