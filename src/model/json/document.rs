//! Recursive-descent parser of one document, which writes the canonical text.
//!
//! Arrays and objects recurse, but only [`JSON_DEPTH_MAX`] levels, so that no input can exhaust the stack. The checks
//! have the order of CPython (`Modules/_json.c`), so that the errors are the same.

use super::Kind;
use super::edit::{self, Edit};
use super::error::{Reason, Stop};
use super::names::{NameTable, Names};
use super::{number, string};
use crate::limits::JSON_DEPTH_MAX;

/// Parser and writer of one document.
pub(super) struct Document<'a> {
    text: &'a [u8],
    /// Position in `text`; everything before it is validated and written.
    at: usize,
    out: &'a mut Vec<u8>,
    /// Start of this document in `out`.
    start: usize,
    depth: usize,
    names: Names,
    edits: Vec<Edit>,
}

impl<'a> Document<'a> {
    /// Creates a parser of `text`, which must be UTF-8.
    pub(super) fn new(text: &'a [u8], out: &'a mut Vec<u8>) -> Self {
        let start = out.len();
        Self { text, at: 0, out, start, depth: 0, names: Names::default(), edits: Vec::new() }
    }

    /// Writes the canonical text and returns its type.
    pub(super) fn write(mut self) -> Result<Kind, Stop> {
        self.skip_space();
        let kind = self.value()?;
        self.skip_space();
        if self.at < self.text.len() {
            return Err(self.stop(Reason::ExtraData));
        }
        edit::apply(&mut self.edits, self.start, self.out);
        Ok(kind)
    }

    fn value(&mut self) -> Result<Kind, Stop> {
        let rest = &self.text[self.at..];
        match self.next() {
            Some(b'"') => self.string().map(|()| Kind::String),
            Some(b'{') => self.nested(Self::object).map(|()| Kind::Object),
            Some(b'[') => self.nested(Self::array).map(|()| Kind::Array),
            Some(b'n') if rest.starts_with(b"null") => Ok(self.copy(4, Kind::Null)),
            Some(b't') if rest.starts_with(b"true") => Ok(self.copy(4, Kind::True)),
            Some(b'f') if rest.starts_with(b"false") => Ok(self.copy(5, Kind::False)),
            Some(b'N') if rest.starts_with(b"NaN") => Err(self.stop(Reason::NotFinite)),
            Some(b'I') if rest.starts_with(b"Infinity") => Err(self.stop(Reason::NotFinite)),
            Some(b'-') if rest.starts_with(b"-Infinity") => Err(self.stop(Reason::NotFinite)),
            Some(b'-' | b'0'..=b'9') => {
                let len = number::scan(rest).map_err(|reason| self.stop(reason))?;
                Ok(self.copy(len, Kind::Number))
            }
            _ => Err(self.stop(Reason::ExpectingValue)),
        }
    }

    fn nested(&mut self, write: fn(&mut Self) -> Result<(), Stop>) -> Result<(), Stop> {
        if self.depth == JSON_DEPTH_MAX {
            return Err(self.stop(Reason::TooDeep));
        }
        self.depth += 1;
        write(self)?;
        self.depth -= 1;
        Ok(())
    }

    fn array(&mut self) -> Result<(), Stop> {
        self.mark(b'[');
        if self.next() != Some(b']') {
            loop {
                self.value()?;
                self.skip_space();
                match self.next() {
                    Some(b']') => break,
                    Some(b',') => self.mark(b','),
                    _ => return Err(self.stop(Reason::ExpectingComma)),
                }
            }
        }
        self.copy(1, ());
        Ok(())
    }

    fn object(&mut self) -> Result<(), Stop> {
        let first = self.names.open();
        let mut table = NameTable::new();
        let mut member_start = self.out.len();
        self.mark(b'{');
        if self.next() != Some(b'}') {
            loop {
                if self.next() != Some(b'"') {
                    return Err(self.stop(Reason::ExpectingName));
                }
                let name_start = self.out.len();
                self.string()?;
                let name = name_start..self.out.len();
                self.skip_space();
                if self.next() != Some(b':') {
                    return Err(self.stop(Reason::ExpectingColon));
                }
                self.mark(b':');
                self.value()?;
                self.names.add(first, &mut table, self.out, member_start, name, &mut self.edits);
                self.skip_space();
                member_start = self.out.len();
                match self.next() {
                    Some(b'}') => break,
                    Some(b',') => self.mark(b','),
                    _ => return Err(self.stop(Reason::ExpectingComma)),
                }
            }
        }
        self.copy(1, ());
        self.names.close(first);
        Ok(())
    }

    fn string(&mut self) -> Result<(), Stop> {
        self.at = string::copy(self.text, self.at, self.out)?;
        Ok(())
    }

    fn next(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn stop(&self, reason: Reason) -> Stop {
        Stop::new(self.at, reason)
    }

    /// Writes the next `len` bytes unchanged.
    fn copy<T>(&mut self, len: usize, written: T) -> T {
        self.out.extend_from_slice(&self.text[self.at..self.at + len]);
        self.at += len;
        written
    }

    /// Writes the next byte, a punctuation mark, and skips the white space after it.
    fn mark(&mut self, byte: u8) {
        self.out.push(byte);
        self.at += 1;
        self.skip_space();
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.next() {
            self.at += 1;
        }
    }
}
