//! The grammar of HTTP/1.1 messages (RFC 9112), read naively from a whole buffer: the reference for the state machines
//! of the server, which see their input in pieces.

use opensecureconf::limits;

/// A message head: its first line, its fields, and where it ends.
#[derive(Debug)]
pub struct Head<'a> {
    /// The request line or the status line.
    pub line: &'a [u8],
    /// Names and trimmed values, in order.
    pub fields: Vec<(&'a [u8], &'a [u8])>,
    /// Bytes of the head, the empty line included.
    pub len: usize,
}

impl<'a> Head<'a> {
    /// Reads a head strictly; panics on everything that a strict parser must not accept.
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

    /// The values of all fields of a name.
    pub fn all(&self, name: &str) -> Vec<&'a [u8]> {
        let is_meant = |found: &[u8]| found.eq_ignore_ascii_case(name.as_bytes());
        self.fields.iter().filter(|(found, _)| is_meant(found)).map(|(_, value)| *value).collect()
    }

    /// The only length, if there is one; a strict parser accepts no second one and no twisted one.
    pub fn content_length(&self) -> Option<usize> {
        let values = self.all("content-length");
        assert!(values.len() <= 1, "accepted lengths: {values:?}");
        let text = std::str::from_utf8(values.first()?).expect("an accepted length is ASCII");
        assert!(text.bytes().all(|byte| byte.is_ascii_digit()), "an accepted length: {text:?}");
        Some(text.parse().expect("an accepted length fits"))
    }

    /// Whether the body is chunked; a strict parser accepts no other coding, and no length beside it.
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

/// A value without the white space around it (RFC 9110 5.6.3).
pub fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// `tchar` (RFC 9110 5.6.2).
pub fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// HTAB, SP, VCHAR and obs-text.
pub fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7F)
}

/// Where `sought` begins in `data`.
pub fn find(data: &[u8], sought: &[u8]) -> Option<usize> {
    data.windows(sought.len()).position(|window| window == sought)
}

/// A chunked body.
#[derive(Debug, PartialEq, Eq)]
pub enum Chunked {
    /// The body, and how many bytes it took with its chunks and trailers.
    Complete(Vec<u8>, usize),
    /// The input ends before the body does.
    Incomplete,
    /// Not a chunked body, or beyond a limit.
    Malformed,
}

/// Why reading stopped.
enum Stop {
    Incomplete,
    Malformed,
}

/// Reads `data` from the front.
struct Reader<'a> {
    data: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Result<u8, Stop> {
        self.data.get(self.at).copied().ok_or(Stop::Incomplete)
    }

    fn take_while(&mut self, belongs: impl Fn(u8) -> bool) -> Result<&[u8], Stop> {
        let start = self.at;
        while belongs(self.peek()?) {
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
            // The semicolon counts.
            let (left, extension_max) =
                (limits::CHUNK_EXTENSIONS_BYTES_MAX - extensions_count, limits::CHUNK_EXTENSION_BYTES_MAX);
            let mut count = 0;
            while is_text(reader.peek()?) {
                count += 1;
                reader.at += 1;
                if count > left.min(extension_max) {
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
