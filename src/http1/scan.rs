//! Finds the end of a request head as its bytes arrive, looking at each byte once.
//!
//! What can be seen without parsing is refused here and early: a line end that is not CRLF, a line
//! or a head that is too long, and a first line that is none of HTTP.

use memchr::memchr2;

use super::{head, protocol_error::ProtocolError};
use crate::limits;

/// What the bytes so far amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scanned {
    /// The head is not complete.
    Incomplete,
    /// The bytes begin with an empty line.
    EmptyLine,
    /// The head ends after this many bytes.
    Complete(usize),
}

/// Where the search has got to within the bytes of one head.
#[derive(Default)]
pub(super) struct HeadScan {
    line_start: usize,
    scanned: usize,
    lines_count: usize,
    request_line_end: usize,
    is_request_line_checked: bool,
}

impl HeadScan {
    /// Looks at what is new in `bytes`, which begin with the head and only ever get longer.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> Result<Scanned, ProtocolError> {
        let scanned = self.find_end(bytes);
        // The first line speaks first, so that the refusal is the same however the bytes were split.
        match scanned {
            Ok(Scanned::Incomplete) | Err(_) => self.check_request_line(bytes)?,
            Ok(_) => {}
        }
        scanned
    }

    /// Like [`HeadScan::advance`], but any first line will do: that of a response is another.
    pub(super) fn find_end(&mut self, bytes: &[u8]) -> Result<Scanned, ProtocolError> {
        while let Some(offset) = memchr2(b'\r', b'\n', &bytes[self.scanned..]) {
            let at = self.scanned + offset;
            // RFC 9112 2.2 lets a recipient take a bare LF as a line end. Those in front of us may
            // not, and a bare CR is read differently by each, so only CRLF ends a line here.
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

    /// `line_end` is how far the last, incomplete line has come.
    fn check_length(&self, bytes: &[u8], line_end: usize) -> Result<Scanned, ProtocolError> {
        if self.lines_count == 0 && line_end > limits::REQUEST_LINE_BYTES_MAX {
            return Err(ProtocolError::RequestLineTooLong);
        }
        // Not complete with this many bytes, so longer than allowed.
        if bytes.len() >= limits::HEAD_BYTES_MAX {
            return Err(ProtocolError::HeadTooLarge);
        }
        Ok(Scanned::Incomplete)
    }

    /// Refuses what cannot become a request before the rest of the head is there, such as the
    /// greeting of TLS: those clients wait for us and would never send the end of a head.
    fn check_request_line(&mut self, bytes: &[u8]) -> Result<(), ProtocolError> {
        if self.lines_count == 0 {
            // Longer than any method that is known, and few bytes to look at again each time.
            const LOOKED_AT: usize = 24;
            let begin = &bytes[..bytes.len().min(LOOKED_AT)];
            let method = begin.split(|&byte| byte == b' ').next().unwrap_or_default();
            // A first CR may be that of an empty line.
            let is_empty_line = begin.first() == Some(&b'\r');
            if (method.is_empty() && !begin.is_empty()) || !method.iter().all(|&byte| is_token_byte(byte)) {
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

/// `tchar` of RFC 9110 5.6.2: what methods and field names consist of.
pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answer must be the same for all bytes at once and for one at a time, where it may only
    /// come earlier.
    fn check(bytes: &[u8], expected: Result<Scanned, ProtocolError>) {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        assert_eq!(HeadScan::default().advance(bytes), expected, "{text}");
        let mut scan = HeadScan::default();
        for end in 1..=bytes.len() {
            match scan.advance(&bytes[..end]) {
                Ok(Scanned::Incomplete) => {}
                ended => return assert_eq!(ended, expected, "{text} byte by byte"),
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
    fn what_is_no_request_is_seen_early() {
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
    fn limits_hold_before_the_head_is_complete() {
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
