//! Encoding of responses, directly into the write buffer.

use super::write_buffer::WriteBuffer;

/// Response as the application supplies it. The encoder writes the framing, `date` and `connection`; they must not be
/// among the headers.
#[derive(Clone, Copy, Debug)]
pub struct Response<'a> {
    /// Status code, 200 to 599.
    pub status: u16,
    /// Media type of the body, if it has one.
    pub content_type: Option<&'a str>,
    /// Further fields; names in lower case.
    pub headers: &'a [(&'a str, &'a str)],
    /// Complete body; ignored by streams.
    pub body: &'a [u8],
    /// Date in the format of RFC 9110 5.6.7.
    pub date: &'a str,
}

/// Framing of a response body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyFraming<'a> {
    /// `content-length`, followed by the body.
    Length,
    /// `content-length` of this many bytes, without the body: the response to HEAD, or a body that follows in pieces.
    LengthOnly(usize),
    /// Chunks, with the names of the trailers.
    Chunked(&'a [&'a str]),
    /// Until the connection closes: a stream to an HTTP/1.0 client.
    UntilClose,
}

/// The `connection` field of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionField {
    Absent,
    Close,
    KeepAlive,
}

/// Returns whether a response with this status has no body, whatever the request (RFC 9110 6.4.1).
pub(super) fn is_bodiless(status: u16) -> bool {
    matches!(status, 204 | 304)
}

/// Writes the head of a response and, for [`BodyFraming::Length`], its body.
pub(super) fn encode(
    buffer: &mut WriteBuffer,
    response: &Response<'_>,
    framing: BodyFraming<'_>,
    connection: ConnectionField,
    now_ms: u64,
) {
    debug_assert!((200..=599).contains(&response.status), "interim responses have their own encoder");
    // Upper bound for the names and values that do not depend on the response.
    const FIXED_BYTES_MAX: usize = 256;
    let headers_bytes: usize =
        response.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
    let trailers_bytes = match framing {
        BodyFraming::Chunked(names) => names.iter().map(|name| name.len() + 2).sum(),
        _ => 0,
    };
    let texts_bytes = response.date.len() + response.content_type.unwrap_or_default().len();
    let body: &[u8] = if framing == BodyFraming::Length { response.body } else { b"" };
    buffer.reserve(FIXED_BYTES_MAX + headers_bytes + trailers_bytes + texts_bytes + body.len(), now_ms);

    put_status_line(buffer, response.status);
    put_field(buffer, "date", response.date);
    if let Some(content_type) = response.content_type {
        put_field(buffer, "content-type", content_type);
    }
    match framing {
        _ if is_bodiless(response.status) => {}
        BodyFraming::Length => {
            put_field(buffer, "content-length", itoa::Buffer::new().format(response.body.len()));
        }
        BodyFraming::LengthOnly(length) => {
            put_field(buffer, "content-length", itoa::Buffer::new().format(length));
        }
        BodyFraming::Chunked(names) => {
            put_field(buffer, "transfer-encoding", "chunked");
            put_trailer_names(buffer, names);
        }
        BodyFraming::UntilClose => {}
    }
    for (name, value) in response.headers {
        put_field(buffer, name, value);
    }
    match connection {
        ConnectionField::Absent => {}
        ConnectionField::Close => put_field(buffer, "connection", "close"),
        ConnectionField::KeepAlive => put_field(buffer, "connection", "keep-alive"),
    }
    buffer.put(b"\r\n");
    if !is_bodiless(response.status) {
        buffer.put(body);
    }
}

/// Writes one chunk; an empty one would end the body and is not written.
pub(super) fn encode_chunk(buffer: &mut WriteBuffer, bytes: &[u8], now_ms: u64) {
    const SIZE_BYTES_MAX: usize = 16;
    if bytes.is_empty() {
        return;
    }
    let mut size = [0; SIZE_BYTES_MAX];
    let mut start = SIZE_BYTES_MAX;
    let mut rest = bytes.len();
    while rest > 0 {
        start -= 1;
        size[start] = b"0123456789abcdef"[rest % 16];
        rest /= 16;
    }
    buffer.reserve(SIZE_BYTES_MAX + 4 + bytes.len(), now_ms);
    buffer.put(&size[start..]);
    buffer.put(b"\r\n");
    buffer.put(bytes);
    buffer.put(b"\r\n");
}

/// Writes the last chunk and the trailers after it.
pub(super) fn encode_end(buffer: &mut WriteBuffer, trailers: &[(&str, &str)], now_ms: u64) {
    let trailers_bytes: usize = trailers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
    buffer.reserve(trailers_bytes + 5, now_ms);
    buffer.put(b"0\r\n");
    for (name, value) in trailers {
        put_field(buffer, name, value);
    }
    buffer.put(b"\r\n");
}

/// Writes `100 Continue`.
pub(super) fn encode_continue(buffer: &mut WriteBuffer, now_ms: u64) {
    const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
    buffer.reserve(CONTINUE.len(), now_ms);
    buffer.put(CONTINUE);
}

fn put_status_line(buffer: &mut WriteBuffer, status: u16) {
    // The status line of almost every response, in one piece.
    if status == 200 {
        return buffer.put(b"HTTP/1.1 200 OK\r\n");
    }
    buffer.put(b"HTTP/1.1 ");
    buffer.put(itoa::Buffer::new().format(status).as_bytes());
    buffer.put(b" ");
    buffer.put(reason(status).as_bytes());
    buffer.put(b"\r\n");
}

/// Writes a field, or nothing if its text could end the field: data that a client supplied must never split a
/// response.
fn put_field(buffer: &mut WriteBuffer, name: &str, value: &str) {
    let is_safe = is_safe(name) && is_safe(value);
    debug_assert!(is_safe, "header field contains a line end: {name:?}");
    if is_safe {
        buffer.put(name.as_bytes());
        buffer.put(b": ");
        buffer.put(value.as_bytes());
        buffer.put(b"\r\n");
    }
}

fn put_trailer_names(buffer: &mut WriteBuffer, names: &[&str]) {
    if names.is_empty() || !names.iter().all(|name| is_safe(name)) {
        return;
    }
    buffer.put(b"trailer: ");
    for (index, name) in names.iter().enumerate() {
        if index > 0 {
            buffer.put(b", ");
        }
        buffer.put(name.as_bytes());
    }
    buffer.put(b"\r\n");
}

fn is_safe(text: &str) -> bool {
    memchr::memchr3(b'\r', b'\n', 0, text.as_bytes()).is_none()
}

/// Returns the reason phrase of RFC 9110 15 or RFC 6585, or an empty one, which RFC 9112 4 allows, for other statuses.
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

    fn check(response: Response<'_>, framing: BodyFraming<'_>, connection: ConnectionField, expected: &str) {
        let mut buffer = WriteBuffer::new();
        encode(&mut buffer, &response, framing, connection, 0);
        let expected = expected.replace('\n', "\r\n").replace("DATE", DATE);
        assert_eq!(String::from_utf8_lossy(buffer.unwritten()), expected);
    }

    fn response(status: u16) -> Response<'static> {
        let headers = &[("x-a", "b"), ("allow", "GET")];
        Response { status, content_type: Some("text/plain"), headers, body: b"hello", date: DATE }
    }

    #[test]
    fn response_heads() {
        use BodyFraming::{Chunked, Length, LengthOnly, UntilClose};
        use ConnectionField::{Absent, Close, KeepAlive};
        check(
            response(200),
            Length,
            Absent,
            "HTTP/1.1 200 OK\ndate: DATE\ncontent-type: text/plain\ncontent-length: 5\nx-a: b\n\
            allow: GET\n\nhello",
        );
        check(
            response(404),
            LengthOnly(5),
            Close,
            "HTTP/1.1 404 Not Found\ndate: DATE\ncontent-type: text/plain\ncontent-length: 5\nx-a: b\n\
            allow: GET\nconnection: close\n\n",
        );
        let plain = Response { content_type: None, headers: &[], ..response(204) };
        check(plain, Length, KeepAlive, "HTTP/1.1 204 No Content\ndate: DATE\nconnection: keep-alive\n\n");
        let plain = Response { status: 599, ..plain };
        check(plain, UntilClose, Close, "HTTP/1.1 599 \ndate: DATE\nconnection: close\n\n");
        let chunked = "HTTP/1.1 599 \ndate: DATE\ntransfer-encoding: chunked\n";
        check(plain, Chunked(&[]), Absent, &format!("{chunked}\n"));
        check(plain, Chunked(&["a", "b"]), Absent, &format!("{chunked}trailer: a, b\n\n"));
    }

    #[test]
    fn chunks() {
        let mut buffer = WriteBuffer::new();
        encode_chunk(&mut buffer, b"", 0);
        encode_chunk(&mut buffer, &[b'x'; 26], 0);
        encode_end(&mut buffer, &[("a", "b")], 0);
        let expected = format!("1a\r\n{}\r\n0\r\na: b\r\n\r\n", "x".repeat(26));
        assert_eq!(String::from_utf8_lossy(buffer.unwritten()), expected);
    }

    #[test]
    #[cfg_attr(debug_assertions, should_panic(expected = "header field contains a line end"))]
    fn a_header_value_cannot_split_the_response() {
        let headers = &[("x-a", "b\r\nset-cookie: c")];
        let plain = Response { content_type: None, headers, ..response(200) };
        let expected = "HTTP/1.1 200 OK\ndate: DATE\ncontent-length: 5\n\nhello";
        check(plain, BodyFraming::Length, ConnectionField::Absent, expected);
    }

    #[test]
    fn line_ends_and_nul_are_unsafe() {
        assert!(is_safe("") && is_safe("a\tb é"));
        assert!(!is_safe("a\r") && !is_safe("\na") && !is_safe("a\0b"));
    }
}
