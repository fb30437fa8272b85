//! Encodes answers straight into the outbox.

use super::write_buffer::WriteBuffer;

/// An answer as the application gives it. Framing, `date` and `connection` are written here and
/// must not be among the headers.
#[derive(Clone, Copy, Debug)]
pub struct Response<'a> {
    /// 200 to 599.
    pub status: u16,
    /// The media type of the body, if it has one.
    pub content_type: Option<&'a str>,
    /// More fields, names in lower case.
    pub headers: &'a [(&'a str, &'a str)],
    /// The whole body; a stream ignores it.
    pub body: &'a [u8],
    /// The date as RFC 9110 5.6.7 writes it.
    pub date: &'a str,
}

/// How the body of an answer is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyFraming<'a> {
    /// `content-length`, and the body follows.
    Length,
    /// `content-length` of so many bytes, but no body here: the answer to HEAD, or a body that follows in pieces.
    LengthOnly(usize),
    /// Chunks; the names are those of the trailers.
    Chunked(&'a [&'a str]),
    /// Until the connection closes: a stream to a 1.0 client.
    UntilClose,
}

/// What the answer says about the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionField {
    Absent,
    Close,
    KeepAlive,
}

/// Whether an answer of this status has no body, whatever the request (RFC 9110 6.4.1).
pub(super) fn is_bodiless(status: u16) -> bool {
    matches!(status, 204 | 304)
}

/// Writes the head of an answer and, for [`BodyFraming::Length`], its body.
pub(super) fn encode(
    outbox: &mut WriteBuffer,
    answer: &Response<'_>,
    framing: BodyFraming<'_>,
    connection: ConnectionField,
    now_ms: u64,
) {
    debug_assert!((200..=599).contains(&answer.status), "interim answers are written elsewhere");
    // The names and values that are written below whatever the answer has, rounded up.
    const FIXED_BYTES_MAX: usize = 256;
    let headers_bytes: usize = answer.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
    let trailers_bytes = match framing {
        BodyFraming::Chunked(names) => names.iter().map(|name| name.len() + 2).sum(),
        _ => 0,
    };
    let texts_bytes = answer.date.len() + answer.content_type.unwrap_or_default().len();
    let body: &[u8] = if framing == BodyFraming::Length { answer.body } else { b"" };
    outbox.reserve(FIXED_BYTES_MAX + headers_bytes + trailers_bytes + texts_bytes + body.len(), now_ms);

    put_status_line(outbox, answer.status);
    put_field(outbox, "date", answer.date);
    if let Some(content_type) = answer.content_type {
        put_field(outbox, "content-type", content_type);
    }
    match framing {
        _ if is_bodiless(answer.status) => {}
        BodyFraming::Length => {
            put_field(outbox, "content-length", itoa::Buffer::new().format(answer.body.len()));
        }
        BodyFraming::LengthOnly(length) => {
            put_field(outbox, "content-length", itoa::Buffer::new().format(length));
        }
        BodyFraming::Chunked(names) => {
            put_field(outbox, "transfer-encoding", "chunked");
            put_trailer_names(outbox, names);
        }
        BodyFraming::UntilClose => {}
    }
    for (name, value) in answer.headers {
        put_field(outbox, name, value);
    }
    match connection {
        ConnectionField::Absent => {}
        ConnectionField::Close => put_field(outbox, "connection", "close"),
        ConnectionField::KeepAlive => put_field(outbox, "connection", "keep-alive"),
    }
    outbox.put(b"\r\n");
    if !is_bodiless(answer.status) {
        outbox.put(body);
    }
}

/// Writes one chunk; an empty one would end the body and is not written.
pub(super) fn encode_chunk(outbox: &mut WriteBuffer, bytes: &[u8], now_ms: u64) {
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
    outbox.reserve(SIZE_BYTES_MAX + 4 + bytes.len(), now_ms);
    outbox.put(&size[start..]);
    outbox.put(b"\r\n");
    outbox.put(bytes);
    outbox.put(b"\r\n");
}

/// Writes the last chunk and the trailers after it.
pub(super) fn encode_end(outbox: &mut WriteBuffer, trailers: &[(&str, &str)], now_ms: u64) {
    let trailers_bytes: usize = trailers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
    outbox.reserve(trailers_bytes + 5, now_ms);
    outbox.put(b"0\r\n");
    for (name, value) in trailers {
        put_field(outbox, name, value);
    }
    outbox.put(b"\r\n");
}

/// Writes `100 Continue`.
pub(super) fn encode_continue(outbox: &mut WriteBuffer, now_ms: u64) {
    const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
    outbox.reserve(CONTINUE.len(), now_ms);
    outbox.put(CONTINUE);
}

fn put_status_line(outbox: &mut WriteBuffer, status: u16) {
    // What almost every answer begins with goes in one piece.
    if status == 200 {
        return outbox.put(b"HTTP/1.1 200 OK\r\n");
    }
    outbox.put(b"HTTP/1.1 ");
    outbox.put(itoa::Buffer::new().format(status).as_bytes());
    outbox.put(b" ");
    outbox.put(reason(status).as_bytes());
    outbox.put(b"\r\n");
}

/// Writes a field, or nothing when its value could end the field: an answer must never be split
/// by something that a client has chosen.
fn put_field(outbox: &mut WriteBuffer, name: &str, value: &str) {
    let is_safe = is_safe(name) && is_safe(value);
    debug_assert!(is_safe, "a header field with a line end: {name:?}");
    if is_safe {
        outbox.put(name.as_bytes());
        outbox.put(b": ");
        outbox.put(value.as_bytes());
        outbox.put(b"\r\n");
    }
}

fn put_trailer_names(outbox: &mut WriteBuffer, names: &[&str]) {
    if names.is_empty() || !names.iter().all(|name| is_safe(name)) {
        return;
    }
    outbox.put(b"trailer: ");
    for (index, name) in names.iter().enumerate() {
        if index > 0 {
            outbox.put(b", ");
        }
        outbox.put(name.as_bytes());
    }
    outbox.put(b"\r\n");
}

fn is_safe(text: &str) -> bool {
    memchr::memchr3(b'\r', b'\n', 0, text.as_bytes()).is_none()
}

/// The reason phrases of RFC 9110 15 and RFC 6585; one that is not known is left empty, which
/// RFC 9112 4 allows.
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

    fn check(answer: Response<'_>, framing: BodyFraming<'_>, connection: ConnectionField, expected: &str) {
        let mut outbox = WriteBuffer::new();
        encode(&mut outbox, &answer, framing, connection, 0);
        let expected = expected.replace('\n', "\r\n").replace("DATE", DATE);
        assert_eq!(String::from_utf8_lossy(outbox.unwritten()), expected);
    }

    fn answer(status: u16) -> Response<'static> {
        let headers = &[("x-a", "b"), ("allow", "GET")];
        Response { status, content_type: Some("text/plain"), headers, body: b"hello", date: DATE }
    }

    #[test]
    fn heads() {
        use BodyFraming::{Chunked, Length, LengthOnly, UntilClose};
        use ConnectionField::{Absent, Close, KeepAlive};
        check(
            answer(200),
            Length,
            Absent,
            "HTTP/1.1 200 OK\ndate: DATE\ncontent-type: text/plain\ncontent-length: 5\nx-a: b\n\
            allow: GET\n\nhello",
        );
        check(
            answer(404),
            LengthOnly(5),
            Close,
            "HTTP/1.1 404 Not Found\ndate: DATE\ncontent-type: text/plain\ncontent-length: 5\nx-a: b\n\
            allow: GET\nconnection: close\n\n",
        );
        let plain = Response { content_type: None, headers: &[], ..answer(204) };
        check(plain, Length, KeepAlive, "HTTP/1.1 204 No Content\ndate: DATE\nconnection: keep-alive\n\n");
        let plain = Response { status: 599, ..plain };
        check(plain, UntilClose, Close, "HTTP/1.1 599 \ndate: DATE\nconnection: close\n\n");
        let chunked = "HTTP/1.1 599 \ndate: DATE\ntransfer-encoding: chunked\n";
        check(plain, Chunked(&[]), Absent, &format!("{chunked}\n"));
        check(plain, Chunked(&["a", "b"]), Absent, &format!("{chunked}trailer: a, b\n\n"));
    }

    #[test]
    fn chunks() {
        let mut outbox = WriteBuffer::new();
        encode_chunk(&mut outbox, b"", 0);
        encode_chunk(&mut outbox, &[b'x'; 26], 0);
        encode_end(&mut outbox, &[("a", "b")], 0);
        let expected = format!("1a\r\n{}\r\n0\r\na: b\r\n\r\n", "x".repeat(26));
        assert_eq!(String::from_utf8_lossy(outbox.unwritten()), expected);
    }

    #[test]
    #[cfg_attr(debug_assertions, should_panic(expected = "a header field with a line end"))]
    fn a_value_cannot_split_the_answer() {
        let headers = &[("x-a", "b\r\nset-cookie: c")];
        let plain = Response { content_type: None, headers, ..answer(200) };
        let expected = "HTTP/1.1 200 OK\ndate: DATE\ncontent-length: 5\n\nhello";
        check(plain, BodyFraming::Length, ConnectionField::Absent, expected);
    }

    #[test]
    fn line_ends_and_nul_are_unsafe() {
        assert!(is_safe("") && is_safe("a\tb é"));
        assert!(!is_safe("a\r") && !is_safe("\na") && !is_safe("a\0b"));
    }
}
