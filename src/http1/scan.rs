//! Incremental search for the end of a head, which examines each byte once.
//!
//! Errors that need no parsing are detected here, early: a line end that is not CRLF, a line or a head that is too
//! long, and a first line that is not HTTP.

use memchr::memchr2;

use super::{head, protocol_error::ProtocolError, token::is_token_byte};
use crate::limits;

/// Result of scanning the bytes so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scanned {
    /// The head is not complete.
    Incomplete,
    /// The bytes begin with an empty line.
    EmptyLine,
    /// The head ends after this many bytes.
    Complete(usize),
}

/// Progress of the search within the bytes of one head.
#[derive(Default)]
pub(super) struct HeadScan {
    line_start: usize,
    scanned: usize,
    lines_count: usize,
    request_line_end: usize,
    is_request_line_checked: bool,
}

impl HeadScan {
    /// Scans the new part of `bytes`, which start with the head and only ever grow.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> Result<Scanned, ProtocolError> {
        let scanned = self.find_end(bytes);
        // An error in the first line takes precedence, so that the result does not depend on how the bytes were split.
        match scanned {
            Ok(Scanned::Incomplete) | Err(_) => self.check_request_line(bytes)?,
            Ok(_) => {}
        }
        scanned
    }

    /// Like [`HeadScan::advance`], but accepts any first line: a response begins with a status line.
    pub(super) fn find_end(&mut self, bytes: &[u8]) -> Result<Scanned, ProtocolError> {
        while let Some(offset) = memchr2(b'\r', b'\n', &bytes[self.scanned..]) {
            let at = self.scanned + offset;
            // RFC 9112 2.2 lets a recipient accept a bare LF as a line end. A proxy in front of this server may not,
            // and implementations disagree on a bare CR, so only CRLF ends a line here.
            if bytes[at] == b'\n' {
                return Err(ProtocolError::BadRequest("line end is not CRLF"));
            }
            match bytes.get(at + 1) {
                Some(b'\n') => {}
                Some(_) => return Err(ProtocolError::BadRequest("line end is not CRLF")),
                None => {
                    self.scanned = at;
                    return self.check_length(bytes, at);
                }
            }
            if at == self.line_start {
                return Ok(if self.lines_count == 0 {
                    Scanned::EmptyLine
                } else {
                    Scanned::Complete(at + 2)
                });
            }
            self.lines_count += 1;
            self.line_start = at + 2;
            self.scanned = at + 2;
            if self.lines_count == 1 {
                self.request_line_end = at + 2;
                if at > limits::REQUEST_LINE_BYTES_MAX {
                    return Err(ProtocolError::RequestLineTooLong);
                }
            }
            if self.lines_count > 1 + limits::HEADERS_COUNT_MAX {
                return Err(ProtocolError::HeadTooLarge);
            }
        }
        self.scanned = bytes.len();
        self.check_length(bytes, bytes.len())
    }

    /// Checks the limits of an incomplete head; `line_end` is the end of its last, incomplete line so far.
    fn check_length(&self, bytes: &[u8], line_end: usize) -> Result<Scanned, ProtocolError> {
        if self.lines_count == 0 && line_end > limits::REQUEST_LINE_BYTES_MAX {
            return Err(ProtocolError::RequestLineTooLong);
        }
        // Still incomplete at this size, so longer than allowed.
        if bytes.len() >= limits::HEAD_BYTES_MAX {
            return Err(ProtocolError::HeadTooLarge);
        }
        Ok(Scanned::Incomplete)
    }

    /// Rejects bytes that cannot become a request before the rest of the head arrives, such as a TLS ClientHello: such
    /// clients wait for a reply and never complete a request head.
    fn check_request_line(&mut self, bytes: &[u8]) -> Result<(), ProtocolError> {
        if self.lines_count == 0 {
            // Longer than any known method, and few enough bytes to examine again each time.
            const PREFIX_BYTES: usize = 24;
            let prefix = &bytes[..bytes.len().min(PREFIX_BYTES)];
            let method = prefix.split(|&byte| byte == b' ').next().unwrap_or_default();
            // A leading CR may belong to an empty line.
            let is_empty_line = prefix.first() == Some(&b'\r');
            if (method.is_empty() && !prefix.is_empty()) || !method.iter().all(|&byte| is_token_byte(byte)) {
                if is_empty_line {
                    return Ok(());
                }
                return Err(ProtocolError::BadRequest("request line is malformed"));
            }
            return Ok(());
        }
        if self.is_request_line_checked {
            return Ok(());
        }
        self.is_request_line_checked = true;
        head::check_request_line(&bytes[..self.request_line_end])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that the result is the same for all bytes at once and byte by byte, where it may only come earlier.
    fn check(bytes: &[u8], expected: Result<Scanned, ProtocolError>) {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        assert_eq!(HeadScan::default().advance(bytes), expected, "{text}");
        let mut scan = HeadScan::default();
        for end in 1..=bytes.len() {
            match scan.advance(&bytes[..end]) {
                Ok(Scanned::Incomplete) => {}
                result => return assert_eq!(result, expected, "{text} byte by byte"),
            }
        }
        assert_eq!(expected, Ok(Scanned::Incomplete), "{text} byte by byte");
    }

    #[test]
    fn heads_end_with_an_empty_line() {
        check(b"", Ok(Scanned::Incomplete));
        check(b"\r", Ok(Scanned::Incomplete));
        check(b"\r\n", Ok(Scanned::EmptyLine));
        check(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", Ok(Scanned::Complete(27)));
        check(b"GET / HTTP/1.1\r\nhost: x\r\n\r", Ok(Scanned::Incomplete));
    }

    #[test]
    fn only_crlf_ends_a_line() {
        let rejection = Err(ProtocolError::BadRequest("line end is not CRLF"));
        check(b"\n", Err(ProtocolError::BadRequest("request line is malformed")));
        check(b"GET / HTTP/1.1\n", rejection);
        check(b"GET / HTTP/1.1\rhost: x\r\n\r\n", rejection);
        check(b"GET / HTTP/1.1\r\nhost: x\n\r\n", rejection);
        check(b"GET / HTTP/1.1\r\nhost: x\r\r\n\r\n", rejection);
        check(b"GET / HTTP/1.1\r\nhost: x\r\n\n", rejection);
    }

    #[test]
    fn invalid_first_lines_are_rejected_early() {
        let rejection = Err(ProtocolError::BadRequest("request line is malformed"));
        check(b"\x16\x03\x01\x02\x00\x01", rejection);
        check(b"\xff", rejection);
        check(b" GET / HTTP/1.1", rejection);
        check(b"SSH-2.0-OpenSSH_9.2\r\n", rejection);
        check(b"GET /\r\n", rejection);
        check(b"GET / HTTP/1.1 \r\n", rejection);
        check(b"GET / HTTP/2.0\r\n", Err(ProtocolError::VersionNotSupported));
        check(b"GET / HTTP/2.0\r\na\nb", Err(ProtocolError::VersionNotSupported));
    }

    #[test]
    fn limits_are_enforced_before_the_head_is_complete() {
        let target = |length: usize| format!("GET /{} HTTP/1.1", "a".repeat(length - 14));
        let longest = target(limits::REQUEST_LINE_BYTES_MAX);
        check(longest.as_bytes(), Ok(Scanned::Incomplete));
        check(format!("{longest}\r\n").as_bytes(), Ok(Scanned::Incomplete));
        let longer = target(limits::REQUEST_LINE_BYTES_MAX + 1);
        check(longer.as_bytes(), Err(ProtocolError::RequestLineTooLong));
        check(format!("{longer}\r\n\r\n").as_bytes(), Err(ProtocolError::RequestLineTooLong));

        let head = |size: usize| format!("GET / HTTP/1.1\r\na: {}\r\n\r\n", "b".repeat(size - 23));
        let largest = head(limits::HEAD_BYTES_MAX);
        check(largest.as_bytes(), Ok(Scanned::Complete(limits::HEAD_BYTES_MAX)));
        let larger = &head(limits::HEAD_BYTES_MAX + 1).into_bytes()[..limits::HEAD_BYTES_MAX];
        check(larger, Err(ProtocolError::HeadTooLarge));

        let fields = |count: usize| format!("GET / HTTP/1.1\r\n{}", "a: b\r\n".repeat(count));
        check(fields(limits::HEADERS_COUNT_MAX).as_bytes(), Ok(Scanned::Incomplete));
        check(fields(limits::HEADERS_COUNT_MAX + 1).as_bytes(), Err(ProtocolError::HeadTooLarge));
    }
}
