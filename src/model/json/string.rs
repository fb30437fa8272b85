//! Strings: conversion from any escapes to the canonical ones, and to plain text.

use std::borrow::Cow;

use memchr::{memchr, memchr2};

use super::error::{Reason, Stop};

/// Returns the text of a canonical string; `None` if it is not a string.
pub fn string(canonical: &[u8]) -> Option<Cow<'_, str>> {
    let body = canonical.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if memchr(b'\\', body).is_none() {
        return std::str::from_utf8(body).ok().map(Cow::Borrowed);
    }
    let mut text = String::with_capacity(body.len());
    let mut at = 0;
    while at < body.len() {
        let end = at + memchr(b'\\', &body[at..]).unwrap_or(body.len() - at);
        text.push_str(std::str::from_utf8(&body[at..end]).ok()?);
        at = end;
        if at < body.len() {
            // A `\u` needs a byte after its digits, so this reads the text with the final quote.
            let (character, next) = unescape(canonical, at + 1).ok()?;
            text.push(character);
            at = next - 1;
        }
    }
    // If an escape includes the final quote, the string is unterminated.
    (at == body.len()).then_some(Cow::Owned(text))
}

/// Appends `text` as a canonical string, quotes included.
pub fn write_string(text: &str, out: &mut Vec<u8>) {
    let bytes = text.as_bytes();
    let mut written = 0;
    out.push(b'"');
    for (at, &byte) in bytes.iter().enumerate() {
        if is_escaped(byte) {
            out.extend_from_slice(&bytes[written..at]);
            write_escaped(byte, out);
            written = at + 1;
        }
    }
    out.extend_from_slice(&bytes[written..]);
    out.push(b'"');
}

/// Writes the string that starts with the quote at `start`, and returns its end.
pub(super) fn copy(text: &[u8], start: usize, out: &mut Vec<u8>) -> Result<usize, Stop> {
    out.push(b'"');
    let mut at = start + 1;
    loop {
        // Most of a string needs no change and is copied in runs.
        let run = memchr2(b'"', b'\\', &text[at..]);
        let end = at + run.unwrap_or(text.len() - at);
        if let Some(offset) = control_character(&text[at..end]) {
            return Err(Stop::new(at + offset, Reason::ControlCharacter));
        }
        out.extend_from_slice(&text[at..end]);
        match text.get(end) {
            Some(b'"') => {
                out.push(b'"');
                return Ok(end + 1);
            }
            Some(_) if end + 1 < text.len() => {
                let (character, next) = unescape(text, end)?;
                write_character(character, out);
                at = next;
            }
            _ => return Err(Stop::new(start, Reason::UnterminatedString)),
        }
    }
}

fn control_character(run: &[u8]) -> Option<usize> {
    // Without an early exit within a block, the compiler reduces its check to a few instructions.
    let clean = run.chunks(64).all(|block| !block.iter().fold(false, |found, &byte| found | (byte < 0x20)));
    if clean { None } else { run.iter().position(|&byte| byte < 0x20) }
}

/// Returns the character of the escape whose backslash is at `at`, and the end of the escape.
fn unescape(text: &[u8], at: usize) -> Result<(char, usize), Stop> {
    let character = match text.get(at + 1) {
        Some(b'u') => return unescape_unicode(text, at),
        Some(&byte @ (b'"' | b'\\' | b'/')) => char::from(byte),
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'n') => '\n',
        Some(b'r') => '\r',
        Some(b't') => '\t',
        _ => return Err(Stop::new(at, Reason::InvalidEscape)),
    };
    Ok((character, at + 2))
}

fn unescape_unicode(text: &[u8], at: usize) -> Result<(char, usize), Stop> {
    let unit = hex(text, at + 2)?;
    let lone = || Stop::new(at, Reason::LoneSurrogate);
    match unit {
        0xD800..=0xDBFF if text[at + 6..].starts_with(b"\\u") => {
            let low = hex(text, at + 8)?;
            if !(0xDC00..=0xDFFF).contains(&low) {
                return Err(lone());
            }
            let joined = 0x1_0000 + ((unit - 0xD800) << 10) + (low - 0xDC00);
            let character = char::from_u32(joined).expect("a surrogate pair encodes a scalar value");
            Ok((character, at + 12))
        }
        _ => char::from_u32(unit).map(|character| (character, at + 6)).ok_or_else(lone),
    }
}

/// Returns the value of the four digits at `at`. CPython requires a character after them before it reads them, so a
/// text that ends there has an invalid escape, not an unterminated string.
fn hex(text: &[u8], at: usize) -> Result<u32, Stop> {
    let bad = || Stop::new(at - 1, Reason::InvalidUnicodeEscape);
    let digits = text.get(at..at + 4).filter(|_| at + 4 < text.len()).ok_or_else(bad)?;
    let mut unit = 0;
    for &digit in digits {
        unit = unit << 4 | char::from(digit).to_digit(16).ok_or_else(bad)?;
    }
    Ok(unit)
}

fn is_escaped(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

fn write_character(character: char, out: &mut Vec<u8>) {
    match u8::try_from(character) {
        Ok(byte) if is_escaped(byte) => write_escaped(byte, out),
        _ => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
    }
}

fn write_escaped(byte: u8, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let short = match byte {
        b'"' | b'\\' => byte,
        0x08 => b'b',
        0x0C => b'f',
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        _ => {
            let [high, low] = [byte >> 4, byte & 0xF].map(|digit| DIGITS[usize::from(digit)]);
            out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_round_trips() {
        let all: String = ('\0'..='\u{300}').chain(['\u{2028}', '鍵', '🔑', '\u{10FFFF}']).collect();
        let mut out = Vec::new();
        write_string(&all, &mut out);
        assert_eq!(string(&out).expect("a string"), all);
        let read: String = serde_json::from_slice(&out).expect("JSON");
        assert_eq!(read, all);
        // Responses from both writers must not differ.
        assert_eq!(serde_json::to_vec(&all).expect("a string serializes"), out);
        assert!(out.starts_with(br#""\u0000\u0001"#) && out.contains(&0x7F));
        let mut again = Vec::new();
        assert_eq!(copy(&out, 0, &mut again).expect("a string"), out.len());
        assert_eq!(again, out);
    }

    #[test]
    fn only_strings_have_a_text() {
        for canonical in ["", "\"", "1", "null", "{}", "[\"a\"]", "\"a", "a\"", "\"\\\"", "\"\\u12\""] {
            assert_eq!(string(canonical.as_bytes()), None, "{canonical}");
        }
        assert!(matches!(string(b"\"plain\""), Some(Cow::Borrowed("plain"))));
    }
}
