//! Encodes requests straight into the outbox.

use crate::http1::{
    chunked::is_text, method::Method, scan::is_token_byte, target::is_host, write_buffer::WriteBuffer,
};

/// A request as the application gives it. `host` and `content-length` are written here; they,
/// `transfer-encoding`, `connection` and `expect` must not be among the headers.
#[derive(Clone, Copy)]
pub struct ClientRequest<'a> {
    /// Any method but CONNECT, whose answer would be no message.
    pub method: Method,
    /// Path and query, already encoded; begins with `/`.
    pub target: &'a str,
    /// The server's name and port, as the `host` field has them.
    pub host: &'a str,
    /// More fields, names in lower case.
    pub headers: &'a [(&'a str, &'a str)],
    /// The whole body; empty where there is none.
    pub body: &'a [u8],
}

impl ClientRequest<'_> {
    /// Whether the call can be written as exactly one request. Unlike a field of an answer, one of
    /// a request is never left out: without a condition, say, the server would do something else.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        const WRITTEN_HERE: [&str; 5] =
            ["host", "content-length", "transfer-encoding", "connection", "expect"];
        if self.method == Method::Connect {
            return Err("method of the call has no response");
        }
        let is_visible = self.target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
        if !self.target.starts_with('/') || !is_visible {
            return Err("target of the call is malformed");
        }
        if !is_host(self.host.as_bytes()) {
            return Err("host of the call is malformed");
        }
        for (name, value) in self.headers {
            if name.is_empty() || !name.bytes().all(is_token_byte) || !value.bytes().all(is_text) {
                return Err("header of the call is malformed");
            }
            if WRITTEN_HERE.iter().any(|own| own.eq_ignore_ascii_case(name)) {
                return Err("header of the call is not the caller's to write");
            }
        }
        Ok(())
    }

    /// Writes the request, which must have passed [`Call::check`].
    pub(super) fn encode(&self, outbox: &mut WriteBuffer, now_ms: u64) {
        debug_assert_eq!(self.check(), Ok(()), "check first");
        // The method and all that is written below whatever the call has, rounded up.
        const FIXED_BYTES_MAX: usize = 128;
        let headers_bytes: usize =
            self.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        let texts_bytes = self.target.len() + self.host.len();
        outbox.reserve(FIXED_BYTES_MAX + headers_bytes + texts_bytes + self.body.len(), now_ms);

        for part in [self.method.as_str(), " ", self.target, " HTTP/1.1\r\n"] {
            outbox.put(part.as_bytes());
        }
        put_field(outbox, "host", self.host);
        // RFC 9110 8.6: a body that could be there and is empty is announced, others are not.
        if matches!(self.method, Method::Post | Method::Put) || !self.body.is_empty() {
            put_field(outbox, "content-length", itoa::Buffer::new().format(self.body.len()));
        }
        for (name, value) in self.headers {
            put_field(outbox, name, value);
        }
        outbox.put(b"\r\n");
        outbox.put(self.body);
    }
}

fn put_field(outbox: &mut WriteBuffer, name: &str, value: &str) {
    for part in [name, ": ", value, "\r\n"] {
        outbox.put(part.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: ClientRequest<'static> = ClientRequest {
        method: Method::Get,
        target: "/a%20b?c=d",
        host: "node-1:9000",
        headers: &[],
        body: b"",
    };

    fn check(call: ClientRequest<'_>, expected: &str) {
        let mut outbox = WriteBuffer::new();
        call.encode(&mut outbox, 0);
        assert_eq!(String::from_utf8_lossy(outbox.unwritten()), expected.replace('\n', "\r\n"));
    }

    #[test]
    fn requests() {
        let headers = &[("x-api-key", "a\tb é"), ("x-empty", "")];
        check(CALL, "GET /a%20b?c=d HTTP/1.1\nhost: node-1:9000\n\n");
        check(
            ClientRequest { method: Method::Head, target: "/", host: "[::1]:1", headers, ..CALL },
            "HEAD / HTTP/1.1\nhost: [::1]:1\nx-api-key: a\tb é\nx-empty: \n\n",
        );
        for method in [Method::Post, Method::Put] {
            let name = method.as_str();
            check(
                ClientRequest { method, target: "/", headers, ..CALL },
                &format!(
                    "{name} / HTTP/1.1\nhost: node-1:9000\ncontent-length: 0\nx-api-key: a\tb é\nx-empty: \n\n"
                ),
            );
        }
        check(
            ClientRequest { method: Method::Delete, target: "/", body: b"hello", ..CALL },
            "DELETE / HTTP/1.1\nhost: node-1:9000\ncontent-length: 5\n\nhello",
        );
        let long = "x".repeat(5000);
        check(
            ClientRequest { target: &format!("/{long}"), host: &long, headers: &[("a", &long)], ..CALL },
            &format!("GET /{long} HTTP/1.1\nhost: {long}\na: {long}\n\n"),
        );
    }

    #[test]
    fn what_would_not_be_one_request_is_refused() {
        let refused = |call: ClientRequest<'_>, word: &str| {
            let text = call.check().expect_err(word);
            assert!(text.starts_with(word), "{word}: {text}");
        };
        refused(ClientRequest { method: Method::Connect, ..CALL }, "method");
        for target in ["", "*", "a", "http://x/", "/a b", "/a\r\nb: c", "/é", "/a#b", "/\0"] {
            refused(ClientRequest { target, ..CALL }, "target");
        }
        for host in ["a b", "a\r\nb: c", "u@h", "a/b", "\0"] {
            refused(ClientRequest { host, ..CALL }, "host");
        }
        for header in
            [("a", "\r"), ("a", "b\nc: d"), ("a", "\0"), ("a", "\x7f"), ("", ""), ("a b", ""), ("a:", "")]
        {
            refused(ClientRequest { headers: &[("x", "y"), header], ..CALL }, "header");
        }
        for name in ["Host", "content-length", "Transfer-Encoding", "connection", "expect"] {
            refused(ClientRequest { headers: &[(name, "1")], ..CALL }, "header");
        }
    }
}
