//! Encoding of requests, directly into the write buffer.

use crate::http1::{
    chunked::is_text, method::Method, target::is_host, token::is_token_byte, write_buffer::WriteBuffer,
};

/// Request as the application supplies it. The encoder writes `host` and `content-length`; they, `transfer-encoding`,
/// `connection` and `expect` must not be among the headers.
#[derive(Clone, Copy)]
pub struct ClientRequest<'a> {
    /// Method; not CONNECT, whose response is followed by a tunnel instead of a message.
    pub method: Method,
    /// Path and query, already percent-encoded; begins with `/`.
    pub target: &'a str,
    /// Name and port of the server, in the form of the `host` field.
    pub host: &'a str,
    /// Further fields; names in lower case.
    pub headers: &'a [(&'a str, &'a str)],
    /// Complete body; empty if there is none.
    pub body: &'a [u8],
}

impl ClientRequest<'_> {
    /// Checks that this encodes as exactly one request. Unlike an unsafe field of a response, one of a request is never
    /// left out: without a condition, for instance, the server would do something else.
    ///
    /// # Errors
    /// Returns the reason if it does not.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        const RESERVED: [&str; 5] = ["host", "content-length", "transfer-encoding", "connection", "expect"];
        if self.method == Method::Connect {
            return Err("request method is not supported");
        }
        let is_visible = self.target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
        if !self.target.starts_with('/') || !is_visible {
            return Err("request target is malformed");
        }
        if !is_host(self.host.as_bytes()) {
            return Err("request host is malformed");
        }
        for (name, value) in self.headers {
            if name.is_empty() || !name.bytes().all(is_token_byte) || !value.bytes().all(is_text) {
                return Err("request header is malformed");
            }
            if RESERVED.iter().any(|reserved| reserved.eq_ignore_ascii_case(name)) {
                return Err("request header is reserved");
            }
        }
        Ok(())
    }

    /// Writes the request, which must have passed [`Self::check`].
    pub(super) fn encode(&self, buffer: &mut WriteBuffer, now_ms: u64) {
        debug_assert_eq!(self.check(), Ok(()), "check first");
        // Upper bound for the method and the texts that do not depend on the request.
        const FIXED_BYTES_MAX: usize = 128;
        let headers_bytes: usize =
            self.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        let texts_bytes = self.target.len() + self.host.len();
        buffer.reserve(FIXED_BYTES_MAX + headers_bytes + texts_bytes + self.body.len(), now_ms);

        for part in [self.method.as_str(), " ", self.target, " HTTP/1.1\r\n"] {
            buffer.put(part.as_bytes());
        }
        put_field(buffer, "host", self.host);
        // RFC 9110 8.6: an empty body is announced only for methods that usually have one.
        if matches!(self.method, Method::Post | Method::Put) || !self.body.is_empty() {
            put_field(buffer, "content-length", itoa::Buffer::new().format(self.body.len()));
        }
        for (name, value) in self.headers {
            put_field(buffer, name, value);
        }
        buffer.put(b"\r\n");
        buffer.put(self.body);
    }
}

fn put_field(buffer: &mut WriteBuffer, name: &str, value: &str) {
    for part in [name, ": ", value, "\r\n"] {
        buffer.put(part.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: ClientRequest<'static> = ClientRequest {
        method: Method::Get,
        target: "/a%20b?c=d",
        host: "node-1:9000",
        headers: &[],
        body: b"",
    };

    fn check(request: ClientRequest<'_>, expected: &str) {
        let mut buffer = WriteBuffer::new();
        request.encode(&mut buffer, 0);
        assert_eq!(String::from_utf8_lossy(buffer.unwritten()), expected.replace('\n', "\r\n"));
    }

    #[test]
    fn requests() {
        let headers = &[("x-api-key", "a\tb é"), ("x-empty", "")];
        check(REQUEST, "GET /a%20b?c=d HTTP/1.1\nhost: node-1:9000\n\n");
        check(
            ClientRequest { method: Method::Head, target: "/", host: "[::1]:1", headers, ..REQUEST },
            "HEAD / HTTP/1.1\nhost: [::1]:1\nx-api-key: a\tb é\nx-empty: \n\n",
        );
        for method in [Method::Post, Method::Put] {
            let name = method.as_str();
            check(
                ClientRequest { method, target: "/", headers, ..REQUEST },
                &format!(
                    "{name} / HTTP/1.1\nhost: node-1:9000\ncontent-length: 0\nx-api-key: a\tb é\nx-empty: \n\n"
                ),
            );
        }
        check(
            ClientRequest { method: Method::Delete, target: "/", body: b"hello", ..REQUEST },
            "DELETE / HTTP/1.1\nhost: node-1:9000\ncontent-length: 5\n\nhello",
        );
        let long = "x".repeat(5000);
        check(
            ClientRequest { target: &format!("/{long}"), host: &long, headers: &[("a", &long)], ..REQUEST },
            &format!("GET /{long} HTTP/1.1\nhost: {long}\na: {long}\n\n"),
        );
    }

    #[test]
    fn requests_that_do_not_encode_as_one_are_rejected() {
        let check_rejected = |request: ClientRequest<'_>, part: &str| {
            let text = request.check().expect_err(part);
            assert!(text.starts_with(&format!("request {part} ")), "{part}: {text}");
        };
        check_rejected(ClientRequest { method: Method::Connect, ..REQUEST }, "method");
        for target in ["", "*", "a", "http://x/", "/a b", "/a\r\nb: c", "/é", "/a#b", "/\0"] {
            check_rejected(ClientRequest { target, ..REQUEST }, "target");
        }
        for host in ["a b", "a\r\nb: c", "u@h", "a/b", "\0"] {
            check_rejected(ClientRequest { host, ..REQUEST }, "host");
        }
        for header in
            [("a", "\r"), ("a", "b\nc: d"), ("a", "\0"), ("a", "\x7f"), ("", ""), ("a b", ""), ("a:", "")]
        {
            check_rejected(ClientRequest { headers: &[("x", "y"), header], ..REQUEST }, "header");
        }
        for name in ["Host", "content-length", "Transfer-Encoding", "connection", "expect"] {
            check_rejected(ClientRequest { headers: &[(name, "1")], ..REQUEST }, "header");
        }
    }
}
