//! `X-Request-ID`: one identifier for a request in the logs of every hop.

use std::fmt;

use crate::limits::REQUEST_ID_BYTES_MAX;

/// Length of a generated id, in hexadecimal digits.
const GENERATED_BYTES: usize = 32;

/// A request id of visible ASCII. Stored inline, because every request has one.
#[derive(Clone)]
pub(super) struct RequestId {
    bytes: [u8; REQUEST_ID_BYTES_MAX],
    len: usize,
}

/// Generator of ids that are unique across executors and processes: random bytes, and a counter.
pub(super) struct RequestIds {
    prefix: u64,
    next: u64,
}

impl RequestId {
    /// Returns the client's id if it is safe in a header and in a log.
    pub(super) fn from_header(value: &[u8]) -> Option<Self> {
        let is_valid =
            (1..=REQUEST_ID_BYTES_MAX).contains(&value.len()) && value.iter().all(u8::is_ascii_graphic);
        is_valid.then(|| Self::new(value))
    }

    pub(super) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).expect("request ids are ASCII")
    }

    fn new(value: &[u8]) -> Self {
        let mut bytes = [0; REQUEST_ID_BYTES_MAX];
        bytes[..value.len()].copy_from_slice(value);
        Self { bytes, len: value.len() }
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl RequestIds {
    /// Creates a generator with a random prefix.
    ///
    /// # Panics
    /// Panics if the operating system has no random bytes: Linux has them once it has booted.
    pub(super) fn new() -> Self {
        let mut prefix = [0; 8];
        getrandom::fill(&mut prefix).expect("Linux has random bytes once it has booted");
        Self { prefix: u64::from_ne_bytes(prefix), next: 0 }
    }

    pub(super) fn next(&mut self) -> RequestId {
        self.next += 1;
        let number = u128::from(self.prefix) << 64 | u128::from(self.next);
        let mut digits = [0; GENERATED_BYTES];
        for (index, digit) in digits.iter_mut().enumerate() {
            let nibble = number >> (4 * (GENERATED_BYTES - 1 - index)) & 0xF;
            *digit = b"0123456789abcdef"[usize::try_from(nibble).unwrap_or_default()];
        }
        RequestId::new(&digits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_ids_are_validated() {
        let accepted = |value: &[u8]| RequestId::from_header(value).map(|id| id.as_str().to_owned());
        assert_eq!(accepted(b"a-1"), Some("a-1".to_owned()));
        assert_eq!(
            accepted(&[b'x'; REQUEST_ID_BYTES_MAX]).map(|text| text.len()),
            Some(REQUEST_ID_BYTES_MAX)
        );
        for invalid in [&b""[..], b"a b", b"a\x7f", b"\xc3\xa9", b"a\r\nb", &[b'x'; REQUEST_ID_BYTES_MAX + 1]]
        {
            assert_eq!(accepted(invalid), None, "{invalid:?}");
        }
    }

    #[test]
    fn generated_ids_are_unique() {
        let (mut one, mut other) = (RequestIds::new(), RequestIds::new());
        let ids: std::collections::HashSet<String> =
            (0..1000).flat_map(|_| [one.next(), other.next()]).map(|id| id.as_str().to_owned()).collect();
        assert_eq!(ids.len(), 2000);
        assert!(ids.iter().all(|id| id.len() == GENERATED_BYTES));
    }
}
