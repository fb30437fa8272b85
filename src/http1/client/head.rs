//! Response heads: parsed once when complete, then read in place.

use super::step::ClientFailure;
use crate::http1::{
    fields::{Fields, Framing, trim},
    scan::{HeadScan, Scanned},
};
use crate::limits;

/// Status and framing of a parsed head, and the persistence of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Status code, 100 to 599.
    pub(super) status: u16,
    pub(super) framing: ResponseFraming,
    pub(super) keeps_alive: bool,
}

/// Body framing of a response that may have a body (RFC 9112 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResponseFraming {
    Length(u64),
    Chunked,
    UntilEof,
}

/// Returns the length of the head in bytes, once it is complete. Examines each byte once.
pub(super) fn find_end(scan: &mut HeadScan, bytes: &[u8]) -> Result<Option<usize>, ClientFailure> {
    // An error in the first bytes takes precedence, so that the failure does not depend on how they were split. A
    // server of another protocol may wait for the client and never complete a head.
    const PREFIX: &[u8] = b"HTTP/1.";
    let count = bytes.len().min(PREFIX.len());
    if bytes[..count] != PREFIX[..count] {
        return Err(ClientFailure::Malformed("status line is malformed"));
    }
    match scan.find_end(bytes)? {
        Scanned::Incomplete => Ok(None),
        Scanned::Complete(count) => Ok(Some(count)),
        Scanned::EmptyLine => Err(ClientFailure::Malformed("status line is malformed")),
    }
}

/// Parses a head that [`find_end`] has found complete.
pub(super) fn parse(bytes: &[u8]) -> Result<Head, ClientFailure> {
    const MALFORMED: ClientFailure = ClientFailure::Malformed("head is malformed");
    let mut storage = [httparse::EMPTY_HEADER; limits::HEADERS_COUNT_MAX];
    let mut response = httparse::Response::new(&mut storage);
    match response.parse(bytes).map_err(failure)? {
        httparse::Status::Complete(count) if count == bytes.len() => {}
        _ => return Err(MALFORMED),
    }
    let (Some(version), Some(status)) = (response.version, response.code) else { return Err(MALFORMED) };
    // RFC 9110 15: other status codes are invalid.
    if !(100..=599).contains(&status) {
        return Err(ClientFailure::Malformed("status is malformed"));
    }
    let is_http_11 = version == 1;
    let mut fields = Fields::default();
    for field in &*response.headers {
        let value = trim(field.value);
        match field.name.len() {
            10 if field.name.eq_ignore_ascii_case("connection") => fields.connection(value),
            14 if field.name.eq_ignore_ascii_case("content-length") => fields.content_length(value)?,
            17 if field.name.eq_ignore_ascii_case("transfer-encoding") => fields.transfer_encoding(value)?,
            _ => {}
        }
    }
    let framing = match fields.framing(is_http_11)? {
        Framing::Empty if !fields.has_length() => ResponseFraming::UntilEof,
        Framing::Empty => ResponseFraming::Length(0),
        Framing::Length(length) => ResponseFraming::Length(length),
        Framing::Chunked => ResponseFraming::Chunked,
    };
    Ok(Head { status, framing, keeps_alive: fields.keeps_alive(is_http_11) })
}

impl Head {
    /// Returns whether this is an interim response, which another one follows (RFC 9110 15.2).
    pub(super) fn is_interim(&self) -> bool {
        self.status < 200
    }

    /// Returns whether a body is announced, including an empty one in chunks.
    pub(super) fn announces_body(&self) -> bool {
        !matches!(self.framing, ResponseFraming::Length(0) | ResponseFraming::UntilEof)
    }
}

/// Returns the first field with this name in a parsed head.
pub(super) fn field<'a>(head: &'a [u8], name: &str) -> Option<&'a [u8]> {
    head.split(|&byte| byte == b'\n').skip(1).find_map(|line| {
        let (found, value) = line.strip_suffix(b"\r")?.split_at(memchr::memchr(b':', line)?);
        found.eq_ignore_ascii_case(name.as_bytes()).then(|| trim(&value[1..]))
    })
}

fn failure(error: httparse::Error) -> ClientFailure {
    match error {
        httparse::Error::TooManyHeaders => ClientFailure::TooLarge,
        httparse::Error::HeaderName => ClientFailure::Malformed("header name is malformed"),
        httparse::Error::HeaderValue => ClientFailure::Malformed("header value is malformed"),
        httparse::Error::Version => ClientFailure::Malformed("version is not supported"),
        _ => ClientFailure::Malformed("status line is malformed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, status: u16, framing: ResponseFraming, keeps_alive: bool) {
        let expected = Head { status, framing, keeps_alive };
        assert_eq!(parse(text.as_bytes()), Ok(expected), "{text}");
    }

    #[test]
    fn response_heads() {
        use ResponseFraming::{Chunked, Length, UntilEof};
        check("HTTP/1.1 200 OK\r\n\r\n", 200, UntilEof, true);
        check("HTTP/1.1 599\r\nContent-Length: 0\r\n\r\n", 599, Length(0), true);
        check("HTTP/1.1 200 \r\ncontent-LENGTH:\t7 \r\n\r\n", 200, Length(7), true);
        check("HTTP/1.1 200 aé\tb\r\nTransfer-Encoding: CHUNKED\r\n\r\n", 200, Chunked, true);
        check("HTTP/1.1 100 Continue\r\nConnection: x, Close\r\n\r\n", 100, UntilEof, false);
        check("HTTP/1.0 404 Not Found\r\n\r\n", 404, UntilEof, false);
        check("HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n\r\n", 200, UntilEof, true);
    }

    #[test]
    fn fields_are_found_by_name() {
        let head =
            b"HTTP/1.1 200 OK: no\r\nx-a: \t one two \t\r\nX-A: second\r\nempty:\r\nb: c:d\xff\r\n\r\n";
        assert!(parse(head).is_ok());
        assert_eq!(field(head, "X-a"), Some(&b"one two"[..]));
        assert_eq!(field(head, "empty"), Some(&b""[..]));
        assert_eq!(field(head, "B"), Some(&b"c:d\xff"[..]));
        for absent in ["x", "x-a ", "", "HTTP/1.1 200 OK", "second"] {
            assert_eq!(field(head, absent), None, "{absent}");
        }
    }
}
