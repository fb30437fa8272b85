//! A request head: parsed once when it is complete, then read in place.

use std::mem::MaybeUninit;

use super::{
    fields::{Fields, Framing, trim},
    method::Method,
    protocol_error::ProtocolError,
    target,
};
use crate::limits;

/// A part of the head's bytes.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: usize,
    end: usize,
}

impl Span {
    /// Where `part`, which was sliced out of `whole`, lies in it.
    fn of(part: &[u8], whole: &[u8]) -> Self {
        let start = part.as_ptr().addr().wrapping_sub(whole.as_ptr().addr());
        // What is empty may lie anywhere.
        if part.is_empty() { Self { start: 0, end: 0 } } else { Self { start, end: start + part.len() } }
    }
}

/// What a head says, with places in its bytes instead of copies of them.
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
        // The length first: few names are as long as one of these and none needs a second look.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                fields.host(value)?;
                pick(&mut host, value, bytes);
            }
            6 if name.eq_ignore_ascii_case(b"expect") => fields.expect(value),
            6 if name.eq_ignore_ascii_case(b"origin") => pick(&mut origin, value, bytes),
            8 if name.eq_ignore_ascii_case(b"if-match") => has_if_match = true,
            9 if name.eq_ignore_ascii_case(b"x-api-key") => pick(&mut api_key, value, bytes),
            10 if name.eq_ignore_ascii_case(b"x-user-key") => pick(&mut user_key, value, bytes),
            10 if name.eq_ignore_ascii_case(b"connection") => fields.connection(value),
            12 if name.eq_ignore_ascii_case(b"content-type") => pick(&mut content_type, value, bytes),
            12 if name.eq_ignore_ascii_case(b"x-request-id") => pick(&mut request_id, value, bytes),
            13 if name.eq_ignore_ascii_case(b"if-none-match") => has_if_none_match = true,
            13 if name.eq_ignore_ascii_case(b"content-range") => has_content_range = true,
            14 if name.eq_ignore_ascii_case(b"content-length") => fields.content_length(value)?,
            16 if name.eq_ignore_ascii_case(b"content-encoding") => pick(&mut content_encoding, value, bytes),
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

/// The values of all fields of a name in a head that may be incomplete, in order.
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

/// Checks a request line of which no header has arrived yet; it ends with its CRLF.
pub(super) fn check_request_line(line: &[u8]) -> Result<(), ProtocolError> {
    match httparse::Request::new(&mut []).parse(line) {
        Ok(_) => Ok(()),
        Err(error) => Err(rejection(error, line)),
    }
}

fn pick(first: &mut Option<Span>, value: &[u8], bytes: &[u8]) {
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

/// Whether the request line ends in a well-formed version (RFC 9112 2.3) that is not ours.
fn has_other_version(bytes: &[u8]) -> bool {
    let line = &bytes[..memchr::memchr(b'\r', bytes).unwrap_or(bytes.len())];
    // The method and the target were read before the version was, so two spaces are all there are.
    let is_three_words = line.iter().filter(|&&byte| byte == b' ').count() == 2;
    matches!(line, [.., b' ', b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
        if is_three_words && major.is_ascii_digit() && minor.is_ascii_digit())
}

/// The head of the current request, read in the buffer of its connection.
#[derive(Clone, Copy)]
pub struct RequestHead<'a> {
    pub(super) head: &'a Head,
    pub(super) bytes: &'a [u8],
}

impl<'a> RequestHead<'a> {
    /// The method.
    pub fn method(&self) -> Method {
        self.head.method
    }

    /// The whole target as it came.
    pub fn target(&self) -> &'a [u8] {
        self.part(self.head.target)
    }

    /// The host that the request is for: that of a target in absolute form, or the `Host` field, which is empty or
    /// missing in some requests.
    pub fn host(&self) -> Option<&'a [u8]> {
        self.optional(self.head.host)
    }

    /// The path, still percent-encoded. `*` for OPTIONS of the server, `host:port` for CONNECT, and
    /// begins with `/` otherwise.
    pub fn path(&self) -> &'a [u8] {
        self.optional(self.head.path).unwrap_or(b"/")
    }

    /// What follows the first `?`, if there is one.
    pub fn query(&self) -> Option<&'a [u8]> {
        self.optional(self.head.query)
    }

    /// Whether the client speaks HTTP/1.1, not 1.0.
    pub fn is_http_11(&self) -> bool {
        self.head.is_http_11
    }

    /// The first `X-User-Key`.
    pub fn user_key(&self) -> Option<&'a [u8]> {
        self.optional(self.head.user_key)
    }

    /// The first `X-API-Key`.
    pub fn api_key(&self) -> Option<&'a [u8]> {
        self.optional(self.head.api_key)
    }

    /// The first `Content-Type`.
    pub fn content_type(&self) -> Option<&'a [u8]> {
        self.optional(self.head.content_type)
    }

    /// The first `Content-Encoding`.
    pub fn content_encoding(&self) -> Option<&'a [u8]> {
        self.optional(self.head.content_encoding)
    }

    /// Whether a body is announced that is not certainly empty.
    pub fn has_body(&self) -> bool {
        self.head.framing != Framing::Empty
    }

    /// The announced length of the body; `None` for chunks, which announce none.
    pub fn content_length(&self) -> Option<u64> {
        match self.head.framing {
            Framing::Empty => Some(0),
            Framing::Length(length) => Some(length),
            Framing::Chunked => None,
        }
    }

    /// The first `X-Request-ID`.
    pub fn request_id(&self) -> Option<&'a [u8]> {
        self.optional(self.head.request_id)
    }

    /// The first `Origin`.
    pub fn origin(&self) -> Option<&'a [u8]> {
        self.optional(self.head.origin)
    }

    /// Whether the body is said to be a part of something: `Content-Range`.
    pub fn has_content_range(&self) -> bool {
        self.head.has_content_range
    }

    /// Whether the request depends on what is stored: `If-Match`, `If-Unmodified-Since`.
    pub fn has_if_match(&self) -> bool {
        self.head.has_if_match
    }

    /// Whether the request depends on what is not stored: `If-None-Match`.
    pub fn has_if_none_match(&self) -> bool {
        self.head.has_if_none_match
    }

    /// The values of all fields of a name, in order; searched for, so for those that are rarely wanted.
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

    fn check(text: &str, look: impl Fn(RequestHead<'_>)) {
        let head = parse(text.as_bytes()).expect(text);
        look(RequestHead { head: &head, bytes: text.as_bytes() });
    }

    fn check_refused(text: &str, expected: ProtocolError) {
        assert_eq!(parse(text.as_bytes()).map(|_| ()), Err(expected), "{text}");
    }

    #[test]
    fn fields_are_picked_by_name() {
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
            assert_eq!((head.has_body(), head.content_length()), (true, Some(12)));
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
            assert_eq!((head.has_body(), head.content_length()), (false, Some(0)));
            assert!(!head.is_http_11());
        });
    }

    #[test]
    fn the_host_of_the_target_goes_before_the_field() {
        for (text, expected) in [
            ("GET / HTTP/1.1\r\nHost: a:1\r\n\r\n", Some("a:1")),
            ("GET http://b:2/ HTTP/1.1\r\nHost: a:1\r\n\r\n", Some("b:2")),
            ("GET / HTTP/1.0\r\n\r\n", None),
        ] {
            check(text, |head| assert_eq!(head.host(), expected.map(str::as_bytes), "{text}"));
        }
    }

    #[test]
    fn refusals() {
        let bad = ProtocolError::BadRequest;
        check_refused("GET / HTTP/1.1\r\n\r\n", bad("host is missing"));
        check_refused("GET http://x/ HTTP/1.1\r\n\r\n", bad("host is missing"));
        for host in ["a b", "a/b", "u@h", "x\r\nHost: x"] {
            check_refused(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"), bad("host is malformed"));
        }
        check_refused("GET / HTTP/1.0\r\nHost: x\r\nHost: x\r\n\r\n", bad("host is malformed"));
        check_refused("GET /#a HTTP/1.1\r\nHost: x\r\n\r\n", bad("request target is malformed"));
        check_refused("get / HTTP/1.1\r\nHost: x\r\n\r\n", ProtocolError::MethodNotImplemented);
        check_refused("get / HTTP/1.1\r\n\r\n", bad("host is missing"));
        let expectation = "PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nExpect: more\r\n\r\n";
        check_refused(expectation, ProtocolError::ExpectationFailed);
        let coding = "PUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
        check_refused(coding, bad("transfer-encoding in HTTP/1.0"));
    }

    #[test]
    fn versions() {
        for version in ["HTTP/2.0", "HTTP/9.9", "HTTP/1.2", "HTTP/0.9"] {
            check_refused(&format!("GET / {version}\r\n\r\n"), ProtocolError::VersionNotSupported);
        }
        for version in ["HTTP/1.11", "HTTP/2", "http/1.1", "HTTP/1.1 ", " HTTP/2.0", "x HTTP/2.0", "HTTP/1,1"]
        {
            let expected = ProtocolError::BadRequest("request line is malformed");
            check_refused(&format!("GET / {version}\r\n\r\n"), expected);
        }
    }
}
