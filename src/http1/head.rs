//! Request heads: parsed once when complete, then read in place.

use std::mem::MaybeUninit;

use super::{
    fields::{Fields, Framing, trim},
    method::Method,
    protocol_error::ProtocolError,
    target,
};
use crate::limits;

/// Range within the bytes of a head.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: usize,
    end: usize,
}

impl Span {
    /// Returns the range of `part`, which was sliced out of `whole`.
    fn of(part: &[u8], whole: &[u8]) -> Self {
        let start = part.as_ptr().addr().wrapping_sub(whole.as_ptr().addr());
        // An empty slice may have any address.
        if part.is_empty() { Self { start: 0, end: 0 } } else { Self { start, end: start + part.len() } }
    }
}

/// Parsed head, with ranges of its bytes instead of copies.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) method: Method,
    pub(super) is_http_11: bool,
    pub(super) framing: Framing,
    pub(super) keeps_alive: bool,
    pub(super) expects_continue: bool,
    target: Span,
    host: Option<Span>,
    path: Option<Span>,
    query: Option<Span>,
    user_key: Option<Span>,
    api_key: Option<Span>,
    content_type: Option<Span>,
    content_encoding: Option<Span>,
    request_id: Option<Span>,
    origin: Option<Span>,
    has_if_match: bool,
    has_content_range: bool,
    has_if_none_match: bool,
}

/// Parses a head that [`super::scan::HeadScan`] has found complete.
pub(super) fn parse(bytes: &[u8]) -> Result<Head, ProtocolError> {
    let mut storage = [const { MaybeUninit::uninit() }; limits::HEADERS_COUNT_MAX];
    let mut request = httparse::Request::new(&mut []);
    let status = request.parse_with_uninit_headers(bytes, &mut storage);
    match status.map_err(|error| rejection(error, bytes))? {
        httparse::Status::Complete(count) if count == bytes.len() => {}
        _ => return Err(ProtocolError::BadRequest("head is malformed")),
    }
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(ProtocolError::BadRequest("head is malformed"));
    };
    let is_http_11 = version == 1;
    let mut fields = Fields::default();
    let (mut user_key, mut api_key) = (None, None);
    let (mut content_type, mut content_encoding) = (None, None);
    let (mut request_id, mut origin, mut host) = (None, None, None);
    let (mut has_if_match, mut has_if_none_match, mut has_content_range) = (false, false, false);
    for field in &*request.headers {
        let name = field.name.as_bytes();
        let value = trim(field.value);
        // Compares the length first: few other names have one of these lengths.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                fields.host(value)?;
                keep(&mut host, value, bytes);
            }
            6 if name.eq_ignore_ascii_case(b"expect") => fields.expect(value),
            6 if name.eq_ignore_ascii_case(b"origin") => keep(&mut origin, value, bytes),
            8 if name.eq_ignore_ascii_case(b"if-match") => has_if_match = true,
            9 if name.eq_ignore_ascii_case(b"x-api-key") => keep(&mut api_key, value, bytes),
            10 if name.eq_ignore_ascii_case(b"x-user-key") => keep(&mut user_key, value, bytes),
            10 if name.eq_ignore_ascii_case(b"connection") => fields.connection(value),
            12 if name.eq_ignore_ascii_case(b"content-type") => keep(&mut content_type, value, bytes),
            12 if name.eq_ignore_ascii_case(b"x-request-id") => keep(&mut request_id, value, bytes),
            13 if name.eq_ignore_ascii_case(b"if-none-match") => has_if_none_match = true,
            13 if name.eq_ignore_ascii_case(b"content-range") => has_content_range = true,
            14 if name.eq_ignore_ascii_case(b"content-length") => fields.content_length(value)?,
            16 if name.eq_ignore_ascii_case(b"content-encoding") => keep(&mut content_encoding, value, bytes),
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => fields.transfer_encoding(value)?,
            19 if name.eq_ignore_ascii_case(b"if-unmodified-since") => has_if_match = true,
            _ => {}
        }
    }
    let known = Method::parse(method);
    let parts = target::parse(known, target.as_bytes())?;
    let framing = fields.framing(is_http_11)?;
    fields.check_host(is_http_11)?;
    Ok(Head {
        method: known.ok_or(ProtocolError::MethodNotImplemented)?,
        is_http_11,
        framing,
        keeps_alive: fields.keeps_alive(is_http_11),
        expects_continue: fields.expects_continue(is_http_11)?,
        target: Span::of(target.as_bytes(), bytes),
        host: parts.authority.map(|part| Span::of(part, bytes)).or(host),
        path: parts.path.map(|part| Span::of(part, bytes)),
        query: parts.query.map(|part| Span::of(part, bytes)),
        user_key,
        api_key,
        content_type,
        content_encoding,
        request_id,
        origin,
        has_if_match,
        has_content_range,
        has_if_none_match,
    })
}

/// Returns the values of all fields with this name in a head that may be incomplete, in order.
pub(super) fn field_values<'a>(
    bytes: &'a [u8],
    name: &'static str,
) -> impl Iterator<Item = &'a [u8]> + use<'a> {
    let lines = memchr::memmem::find_iter(bytes, b"\r\n").map(move |at| &bytes[at + 2..]);
    lines.filter_map(move |line| {
        let (found, rest) = line.split_at_checked(name.len())?;
        let value = rest.strip_prefix(b":").filter(|_| found.eq_ignore_ascii_case(name.as_bytes()))?;
        let end = memchr::memmem::find(value, b"\r\n").unwrap_or(value.len());
        Some(trim(&value[..end]))
    })
}

/// Checks a request line before any header has arrived; `line` ends with its CRLF.
pub(super) fn check_request_line(line: &[u8]) -> Result<(), ProtocolError> {
    match httparse::Request::new(&mut []).parse(line) {
        Ok(_) => Ok(()),
        Err(error) => Err(rejection(error, line)),
    }
}

/// Keeps the value of the first field with a name in `first`.
fn keep(first: &mut Option<Span>, value: &[u8], bytes: &[u8]) {
    if first.is_none() {
        *first = Some(Span::of(value, bytes));
    }
}

fn rejection(error: httparse::Error, bytes: &[u8]) -> ProtocolError {
    match error {
        httparse::Error::TooManyHeaders => ProtocolError::HeadTooLarge,
        httparse::Error::HeaderName => ProtocolError::BadRequest("header name is malformed"),
        httparse::Error::HeaderValue => ProtocolError::BadRequest("header value is malformed"),
        httparse::Error::Version if has_other_version(bytes) => ProtocolError::VersionNotSupported,
        _ => ProtocolError::BadRequest("request line is malformed"),
    }
}

/// Returns whether the request line ends in a well-formed version (RFC 9112 2.3). Called for one that is unsupported.
fn has_other_version(bytes: &[u8]) -> bool {
    let line = &bytes[..memchr::memchr(b'\r', bytes).unwrap_or(bytes.len())];
    // The method and the target were parsed before the version, so a valid line has exactly two spaces.
    let is_three_words = line.iter().filter(|&&byte| byte == b' ').count() == 2;
    matches!(line, [.., b' ', b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
        if is_three_words && major.is_ascii_digit() && minor.is_ascii_digit())
}

/// Head of the current request, read in the buffer of its connection.
#[derive(Clone, Copy)]
pub struct RequestHead<'a> {
    pub(super) head: &'a Head,
    pub(super) bytes: &'a [u8],
}

impl<'a> RequestHead<'a> {
    /// Returns the method.
    pub fn method(&self) -> Method {
        self.head.method
    }

    /// Returns the whole target, as it was sent.
    pub fn target(&self) -> &'a [u8] {
        self.part(self.head.target)
    }

    /// Returns the host of the request: that of a target in absolute form, otherwise the `Host` field, which is empty
    /// or missing in some requests.
    pub fn host(&self) -> Option<&'a [u8]> {
        self.optional(self.head.host)
    }

    /// Returns the path, still percent-encoded: `*` for OPTIONS of the server, `host:port` for CONNECT, otherwise
    /// a text that begins with `/`.
    pub fn path(&self) -> &'a [u8] {
        self.optional(self.head.path).unwrap_or(b"/")
    }

    /// Returns the part after the first `?`, if there is one.
    pub fn query(&self) -> Option<&'a [u8]> {
        self.optional(self.head.query)
    }

    /// Returns whether the version is HTTP/1.1, not HTTP/1.0.
    pub fn is_http_11(&self) -> bool {
        self.head.is_http_11
    }

    /// Returns the first `X-User-Key`.
    pub fn user_key(&self) -> Option<&'a [u8]> {
        self.optional(self.head.user_key)
    }

    /// Returns the first `X-API-Key`.
    pub fn api_key(&self) -> Option<&'a [u8]> {
        self.optional(self.head.api_key)
    }

    /// Returns the first `Content-Type`.
    pub fn content_type(&self) -> Option<&'a [u8]> {
        self.optional(self.head.content_type)
    }

    /// Returns the first `Content-Encoding`.
    pub fn content_encoding(&self) -> Option<&'a [u8]> {
        self.optional(self.head.content_encoding)
    }

    /// Returns the announced length of the body, in bytes; `None` for chunks, which announce none.
    pub fn content_length(&self) -> Option<u64> {
        match self.head.framing {
            Framing::Empty => Some(0),
            Framing::Length(length) => Some(length),
            Framing::Chunked => None,
        }
    }

    /// Returns the first `X-Request-ID`.
    pub fn request_id(&self) -> Option<&'a [u8]> {
        self.optional(self.head.request_id)
    }

    /// Returns the first `Origin`.
    pub fn origin(&self) -> Option<&'a [u8]> {
        self.optional(self.head.origin)
    }

    /// Returns whether the body is declared to be a part of a representation: `Content-Range`.
    pub fn has_content_range(&self) -> bool {
        self.head.has_content_range
    }

    /// Returns whether the request requires a certain current state: `If-Match`, `If-Unmodified-Since`.
    pub fn has_if_match(&self) -> bool {
        self.head.has_if_match
    }

    /// Returns whether the request excludes a certain current state: `If-None-Match`.
    pub fn has_if_none_match(&self) -> bool {
        self.head.has_if_none_match
    }

    /// Returns the values of all fields with this name, in order. Searches the head, so only for fields that are rarely
    /// needed.
    pub fn fields(&self, name: &'static str) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        field_values(self.bytes, name)
    }

    fn optional(&self, span: Option<Span>) -> Option<&'a [u8]> {
        span.map(|span| self.part(span))
    }

    fn part(&self, span: Span) -> &'a [u8] {
        &self.bytes[span.start..span.end]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, inspect: impl Fn(RequestHead<'_>)) {
        let head = parse(text.as_bytes()).expect(text);
        inspect(RequestHead { head: &head, bytes: text.as_bytes() });
    }

    fn check_rejected(text: &str, expected: ProtocolError) {
        assert_eq!(parse(text.as_bytes()).map(|_| ()), Err(expected), "{text}");
    }

    #[test]
    fn fields_are_found_by_name() {
        let text = "PUT /configs/a?b HTTP/1.1\r\nHost:\r\nX_User_Key: no\r\nx-USER-key: \t one two\t \r\n\
            X-User-Key: second\r\nX-API-Key:\r\nContent-Type: text/plain\r\ncontent-encoding: br\r\n\
            Content-Length: 12\r\n\r\n";
        check(text, |head| {
            assert_eq!(head.method(), Method::Put);
            assert_eq!(head.target(), b"/configs/a?b");
            assert_eq!(head.path(), b"/configs/a");
            assert_eq!(head.query(), Some(&b"b"[..]));
            assert_eq!(head.user_key(), Some(&b"one two"[..]));
            assert_eq!(head.api_key(), Some(&b""[..]));
            assert_eq!(head.content_type(), Some(&b"text/plain"[..]));
            assert_eq!(head.content_encoding(), Some(&b"br"[..]));
            assert_eq!(head.content_length(), Some(12));
            assert_eq!(head.fields("x-user-key").collect::<Vec<_>>(), [&b"one two"[..], b"second"]);
            assert_eq!(head.fields("x-api-key").collect::<Vec<_>>(), [b""]);
            assert_eq!(
                (head.fields("user-key").count(), head.fields("put /configs/a?b http/1.1").count()),
                (0, 0)
            );
            assert_eq!((head.origin(), head.request_id()), (None, None));
            assert_eq!(head.host(), Some(&b""[..]));
            assert!(head.is_http_11());
        });
        check("GET http://x HTTP/1.0\r\n\r\n", |head| {
            assert_eq!((head.path(), head.query(), head.user_key()), (&b"/"[..], None, None));
            assert_eq!(head.host(), Some(&b"x"[..]));
            assert_eq!(head.content_length(), Some(0));
            assert!(!head.is_http_11());
        });
    }

    #[test]
    fn the_host_of_the_target_overrides_the_host_field() {
        for (text, expected) in [
            ("GET / HTTP/1.1\r\nHost: a:1\r\n\r\n", Some("a:1")),
            ("GET http://b:2/ HTTP/1.1\r\nHost: a:1\r\n\r\n", Some("b:2")),
            ("GET / HTTP/1.0\r\n\r\n", None),
        ] {
            check(text, |head| assert_eq!(head.host(), expected.map(str::as_bytes), "{text}"));
        }
    }

    #[test]
    fn rejected_heads() {
        let bad = ProtocolError::BadRequest;
        check_rejected("GET / HTTP/1.1\r\n\r\n", bad("host is missing"));
        check_rejected("GET http://x/ HTTP/1.1\r\n\r\n", bad("host is missing"));
        for host in ["a b", "a/b", "u@h", "x\r\nHost: x"] {
            check_rejected(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"), bad("host is malformed"));
        }
        check_rejected("GET / HTTP/1.0\r\nHost: x\r\nHost: x\r\n\r\n", bad("host is malformed"));
        check_rejected("GET /#a HTTP/1.1\r\nHost: x\r\n\r\n", bad("request target is malformed"));
        check_rejected("get / HTTP/1.1\r\nHost: x\r\n\r\n", ProtocolError::MethodNotImplemented);
        check_rejected("get / HTTP/1.1\r\n\r\n", bad("host is missing"));
        let expectation = "PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nExpect: more\r\n\r\n";
        check_rejected(expectation, ProtocolError::ExpectationFailed);
        let coding = "PUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
        check_rejected(coding, bad("transfer-encoding in HTTP/1.0"));
    }

    #[test]
    fn unsupported_and_malformed_versions() {
        for version in ["HTTP/2.0", "HTTP/9.9", "HTTP/1.2", "HTTP/0.9"] {
            check_rejected(&format!("GET / {version}\r\n\r\n"), ProtocolError::VersionNotSupported);
        }
        for version in ["HTTP/1.11", "HTTP/2", "http/1.1", "HTTP/1.1 ", " HTTP/2.0", "x HTTP/2.0", "HTTP/1,1"]
        {
            let expected = ProtocolError::BadRequest("request line is malformed");
            check_rejected(&format!("GET / {version}\r\n\r\n"), expected);
        }
    }
}
