//! `X-Request-ID`: one name for a request in the logs of all that it passes.

use std::fmt;

/// The longest that is taken over from a client.
const BYTES_MAX: usize = 128;
/// Length of those that are made here, in hexadecimal digits.
const OWN_BYTES: usize = 32;

/// Visible ASCII. Held in place, because each request has one.
#[derive(Clone)]
pub(super) struct RequestId {
    bytes: [u8; BYTES_MAX],
    len: usize,
}

/// Makes names that no other executor and no other process makes: random bytes, and a number.
pub(super) struct RequestIds {
    prefix: u64,
    next: u64,
}

impl RequestId {
    /// What a client sent, if it can stand in a header and in a log.
    pub(super) fn from_header(value: &[u8]) -> Option<Self> {
        let is_fit = (1..=BYTES_MAX).contains(&value.len()) && value.iter().all(u8::is_ascii_graphic);
        is_fit.then(|| Self::new(value))
    }

    pub(super) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).expect("it is ASCII")
    }

    fn new(value: &[u8]) -> Self {
        let mut bytes = [0; BYTES_MAX];
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
    /// # Panics
    /// If the operating system has no random bytes: Linux has them once it has booted.
    pub(super) fn new() -> Self {
        let mut prefix = [0; 8];
        getrandom::fill(&mut prefix).expect("Linux has random bytes once it has booted");
        Self { prefix: u64::from_ne_bytes(prefix), next: 0 }
    }

    pub(super) fn next(&mut self) -> RequestId {
        self.next += 1;
        let number = u128::from(self.prefix) << 64 | u128::from(self.next);
        let mut digits = [0; OWN_BYTES];
        for (index, digit) in digits.iter_mut().enumerate() {
            let nibble = number >> (4 * (OWN_BYTES - 1 - index)) & 0xF;
            *digit = b"0123456789abcdef"[usize::try_from(nibble).unwrap_or_default()];
        }
        RequestId::new(&digits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_over() {
        let taken = |value: &[u8]| RequestId::from_header(value).map(|id| id.as_str().to_owned());
        assert_eq!(taken(b"a-1"), Some("a-1".to_owned()));
        assert_eq!(taken(&[b'x'; BYTES_MAX]).map(|text| text.len()), Some(BYTES_MAX));
        for other in [&b""[..], b"a b", b"a\x7f", b"\xc3\xa9", b"a\r\nb", &[b'x'; BYTES_MAX + 1]] {
            assert_eq!(taken(other), None, "{other:?}");
        }
    }

    #[test]
    fn each_is_another() {
        let (mut one, mut other) = (RequestIds::new(), RequestIds::new());
        let made: std::collections::HashSet<String> =
            (0..1000).flat_map(|_| [one.next(), other.next()]).map(|id| id.as_str().to_owned()).collect();
        assert_eq!(made.len(), 2000);
        assert!(made.iter().all(|id| id.len() == OWN_BYTES));
    }
}
