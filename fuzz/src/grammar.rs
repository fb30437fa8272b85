//! Naive reference parser of HTTP/1.1 messages (RFC 9112) for complete buffers, to which the incremental state machines
//! of the server are compared.

use opensecureconf::limits;

/// A message head: its first line, its fields and its length.
#[derive(Debug)]
pub struct Head<'a> {
    /// The request line or the status line.
    pub line: &'a [u8],
    /// Names and trimmed values, in order.
    pub fields: Vec<(&'a [u8], &'a [u8])>,
    /// Length of the head in bytes, the empty line included.
    pub len: usize,
}

impl<'a> Head<'a> {
    /// Parses a head strictly; panics on everything that a strict parser must reject.
    pub fn strict(data: &'a [u8]) -> Self {
        let end = find(data, b"\r\n\r\n").expect("an accepted head has an end");
        let len = end + 4;
        assert!(len <= limits::HEAD_BYTES_MAX, "an accepted head of {len} bytes");
        let mut lines = split_lines(&data[..end]);
        let line = lines.next().expect("a line");
        assert!(line.len() <= limits::REQUEST_LINE_BYTES_MAX, "an accepted line of {} bytes", line.len());
        let fields: Vec<_> = lines.map(field).collect();
        assert!(fields.len() <= limits::HEADERS_COUNT_MAX, "{} accepted fields", fields.len());
        Self { line, fields, len }
    }

    /// Returns the values of all fields with this name.
    pub fn all(&self, name: &str) -> Vec<&'a [u8]> {
        let is_match = |found: &[u8]| found.eq_ignore_ascii_case(name.as_bytes());
        self.fields.iter().filter(|(found, _)| is_match(found)).map(|(_, value)| *value).collect()
    }

    /// Returns the `Content-Length`, if any; panics if it is repeated or malformed, which a strict parser must reject.
    pub fn content_length(&self) -> Option<usize> {
        let values = self.all("content-length");
        assert!(values.len() <= 1, "accepted lengths: {values:?}");
        let text = std::str::from_utf8(values.first()?).expect("an accepted length is ASCII");
        assert!(text.bytes().all(|byte| byte.is_ascii_digit()), "an accepted length: {text:?}");
        Some(text.parse().expect("an accepted length fits"))
    }

    /// Returns whether the body is chunked; panics on any other coding and on a `Content-Length` beside it.
    pub fn is_chunked(&self) -> bool {
        let values = self.all("transfer-encoding");
        assert!(values.len() <= 1, "accepted codings: {values:?}");
        let Some(value) = values.first() else { return false };
        assert!(value.eq_ignore_ascii_case(b"chunked"), "an accepted coding: {value:?}");
        assert_eq!(self.content_length(), None, "a coding and a length were accepted");
        true
    }
}

fn split_lines(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(data);
    std::iter::from_fn(move || {
        let text = rest.take()?;
        let Some(end) = find(text, b"\r\n") else { return Some(text) };
        rest = Some(&text[end + 2..]);
        Some(&text[..end])
    })
}

fn field(line: &[u8]) -> (&[u8], &[u8]) {
    let colon = line.iter().position(|&byte| byte == b':').expect("an accepted field has a colon");
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    assert!(!name.is_empty() && name.iter().all(|&byte| is_token(byte)), "an accepted name: {name:?}");
    assert!(value.iter().all(|&byte| is_text(byte)), "an accepted value: {value:?}");
    (name, trim(value))
}

/// Returns a value without surrounding white space (RFC 9110 5.6.3).
pub fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Returns whether a byte is a `tchar` (RFC 9110 5.6.2).
pub fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Returns whether a byte is HTAB, SP, VCHAR or obs-text.
pub fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7F)
}

/// Returns the position of `sought` in `data`.
pub fn find(data: &[u8], sought: &[u8]) -> Option<usize> {
    data.windows(sought.len()).position(|window| window == sought)
}

/// A chunked body.
#[derive(Debug, PartialEq, Eq)]
pub enum Chunked {
    /// The body, and the number of input bytes, chunk framing and trailers included.
    Complete(Vec<u8>, usize),
    /// The input ends before the body does.
    Incomplete,
    /// Not a chunked body, or above a limit.
    Malformed,
}

/// Why parsing stopped.
enum Stop {
    Incomplete,
    Malformed,
}

/// A cursor over `data`.
struct Reader<'a> {
    data: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Result<u8, Stop> {
        self.data.get(self.at).copied().ok_or(Stop::Incomplete)
    }

    fn take_while(&mut self, is_accepted: impl Fn(u8) -> bool) -> Result<&[u8], Stop> {
        let start = self.at;
        while is_accepted(self.peek()?) {
            self.at += 1;
        }
        Ok(&self.data[start..self.at])
    }

    fn expect(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        for &byte in bytes {
            if self.peek()? != byte {
                return Err(Stop::Malformed);
            }
            self.at += 1;
        }
        Ok(())
    }
}

/// Decodes a chunked body (RFC 9112 7.1) of at most `bytes_max` bytes, with the limits of the server.
pub fn chunked(data: &[u8], bytes_max: usize) -> Chunked {
    let mut reader = Reader { data, at: 0 };
    match read_chunked(&mut reader, bytes_max) {
        Ok(body) => Chunked::Complete(body, reader.at),
        Err(Stop::Incomplete) => Chunked::Incomplete,
        Err(Stop::Malformed) => Chunked::Malformed,
    }
}

fn read_chunked(reader: &mut Reader<'_>, bytes_max: usize) -> Result<Vec<u8>, Stop> {
    let mut body = Vec::new();
    let mut announced_count = 0;
    let mut extensions_count = 0;
    loop {
        let mut size = 0_usize;
        let mut digits_count = 0;
        while let Some(digit) = char::from(reader.peek()?).to_digit(16) {
            digits_count += 1;
            if digits_count > 8 {
                return Err(Stop::Malformed);
            }
            size = size * 16 + usize::try_from(digit).expect("a digit");
            reader.at += 1;
        }
        if digits_count == 0 {
            return Err(Stop::Malformed);
        }
        if reader.peek()? == b';' {
            // The semicolon counts towards the limits.
            let (remaining, extension_max) =
                (limits::CHUNK_EXTENSIONS_BYTES_MAX - extensions_count, limits::CHUNK_EXTENSION_BYTES_MAX);
            let mut count = 0;
            while is_text(reader.peek()?) {
                count += 1;
                reader.at += 1;
                if count > remaining.min(extension_max) {
                    return Err(Stop::Malformed);
                }
            }
            extensions_count += count;
        }
        reader.expect(b"\r\n")?;
        if size == 0 {
            break;
        }
        announced_count += size;
        if announced_count > bytes_max {
            return Err(Stop::Malformed);
        }
        let end = reader.at + size;
        body.extend_from_slice(reader.data.get(reader.at..end).ok_or(Stop::Incomplete)?);
        reader.at = end;
        reader.expect(b"\r\n")?;
    }
    read_trailers(reader)?;
    Ok(body)
}

fn read_trailers(reader: &mut Reader<'_>) -> Result<(), Stop> {
    let start = reader.at;
    while reader.peek()? != b'\r' {
        let result = read_trailer(reader);
        if reader.at - start > limits::TRAILERS_BYTES_MAX {
            return Err(Stop::Malformed);
        }
        result?;
    }
    reader.expect(b"\r\n")
}

fn read_trailer(reader: &mut Reader<'_>) -> Result<(), Stop> {
    if reader.take_while(is_token)?.is_empty() {
        return Err(Stop::Malformed);
    }
    reader.expect(b":")?;
    reader.take_while(is_text)?;
    reader.expect(b"\r\n")
}
