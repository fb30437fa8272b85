//! Incremental decoder of chunked bodies (RFC 9112 7.1).
//!
//! Implemented here, because the usual parsers accept input that a strict server must reject: empty sizes, sizes that
//! overflow, line feeds in extensions. Each of these has made request smuggling possible in some implementation.

use super::{protocol_error::ProtocolError, token::is_token_byte};
use crate::limits;

const MALFORMED: ProtocolError = ProtocolError::BadRequest("chunk is malformed");

/// Expected next byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Size { digits: u8 },
    Extension { count: usize },
    SizeLf,
    Data { remaining: usize },
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    LastLf,
    Nothing,
}

/// Decoder of one chunked body; a few machine words, whatever the body.
#[derive(Clone, Debug)]
pub(super) struct Decoder {
    expect: Expect,
    /// Size of the current chunk, from the digits that have arrived.
    size: usize,
    decoded_count: usize,
    bytes_max: usize,
    extensions_count: usize,
    trailers_count: usize,
}

impl Decoder {
    /// Creates a decoder for a body of at most `bytes_max` bytes.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            expect: Expect::Size { digits: 0 },
            size: 0,
            decoded_count: 0,
            bytes_max,
            extensions_count: 0,
            trailers_count: 0,
        }
    }

    /// Returns whether the body is complete, trailers included.
    pub(super) fn is_done(&self) -> bool {
        self.expect == Expect::Nothing
    }

    /// Returns the number of bytes that are known to follow, to size the next read.
    pub(super) fn wanted(&self) -> usize {
        if let Expect::Data { remaining } = self.expect { remaining } else { 1 }
    }

    /// Returns the size limit of the body, in bytes.
    pub(super) fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// Decodes `input`, passes its data to `sink`, and returns the number of bytes that belong to this body: all of
    /// them unless the body ends.
    pub(super) fn decode(
        &mut self,
        input: &[u8],
        mut sink: impl FnMut(&[u8]),
    ) -> Result<usize, ProtocolError> {
        let mut at = 0;
        while at < input.len() && !self.is_done() {
            if let Expect::Data { remaining } = self.expect {
                let count = remaining.min(input.len() - at);
                sink(&input[at..at + count]);
                at += count;
                self.expect = match remaining - count {
                    0 => Expect::DataCr,
                    remaining => Expect::Data { remaining },
                };
            } else {
                self.expect = self.after(input[at])?;
                at += 1;
            }
        }
        Ok(at)
    }

    /// Returns the next expectation after one byte that is not data.
    fn after(&mut self, byte: u8) -> Result<Expect, ProtocolError> {
        match (self.expect, byte) {
            (Expect::Size { digits: 1.. }, b'\r') => Ok(Expect::SizeLf),
            // RFC 9112 7.1.1 has white space before the semicolon only as something to repair, so it is malformed here.
            (Expect::Size { digits: 1.. }, b';') => self.extension(0),
            (Expect::Size { digits }, _) => self.size_digit(digits, byte),

            (Expect::Extension { .. }, b'\r') => Ok(Expect::SizeLf),
            (Expect::Extension { count }, _) if is_text(byte) => self.extension(count),

            (Expect::SizeLf, b'\n') => self.data(),
            (Expect::DataCr, b'\r') => Ok(Expect::DataLf),
            (Expect::DataLf, b'\n') => {
                self.size = 0;
                Ok(Expect::Size { digits: 0 })
            }

            (Expect::TrailerStart, b'\r') => Ok(Expect::LastLf),
            (Expect::TrailerStart, _) if is_token_byte(byte) => self.trailer(Expect::TrailerName),
            (Expect::TrailerName, b':') => self.trailer(Expect::TrailerValue),
            (Expect::TrailerName, _) if is_token_byte(byte) => self.trailer(Expect::TrailerName),
            (Expect::TrailerValue, b'\r') => self.trailer(Expect::TrailerLf),
            (Expect::TrailerValue, _) if is_text(byte) => self.trailer(Expect::TrailerValue),
            (Expect::TrailerLf, b'\n') => self.trailer(Expect::TrailerStart),
            (Expect::LastLf, b'\n') => Ok(Expect::Nothing),

            (Expect::TrailerStart | Expect::TrailerName | Expect::TrailerValue, _)
            | (Expect::TrailerLf | Expect::LastLf, _) => {
                Err(ProtocolError::BadRequest("trailer is malformed"))
            }
            _ => Err(MALFORMED),
        }
    }

    fn size_digit(&mut self, digits: u8, byte: u8) -> Result<Expect, ProtocolError> {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            _ => return Err(MALFORMED),
        };
        if digits == limits::CHUNK_SIZE_DIGITS_MAX {
            return Err(MALFORMED);
        }
        self.size = self.size * 16 + usize::from(digit);
        Ok(Expect::Size { digits: digits + 1 })
    }

    /// Skips a byte of an extension, up to a limit: no body limit counts these bytes.
    fn extension(&mut self, count: usize) -> Result<Expect, ProtocolError> {
        let count = count + 1;
        self.extensions_count += 1;
        if count > limits::CHUNK_EXTENSION_BYTES_MAX
            || self.extensions_count > limits::CHUNK_EXTENSIONS_BYTES_MAX
        {
            return Err(ProtocolError::BadRequest("chunk extension is too long"));
        }
        Ok(Expect::Extension { count })
    }

    /// Starts the data of a chunk. A size that exceeds the body limit fails before any of its data is read.
    fn data(&mut self) -> Result<Expect, ProtocolError> {
        if self.size == 0 {
            return Ok(Expect::TrailerStart);
        }
        self.decoded_count += self.size;
        if self.decoded_count > self.bytes_max {
            return Err(ProtocolError::BodyTooLarge { bytes_max: self.bytes_max });
        }
        Ok(Expect::Data { remaining: self.size })
    }

    /// Skips a byte of a trailer. Merged into the head, trailers could override what only a head may decide
    /// (RFC 9110 6.5.1).
    fn trailer(&mut self, expect: Expect) -> Result<Expect, ProtocolError> {
        self.trailers_count += 1;
        if self.trailers_count > limits::TRAILERS_BYTES_MAX {
            return Err(ProtocolError::HeadTooLarge);
        }
        Ok(expect)
    }
}

/// Returns whether a byte is HTAB, SP, VCHAR or obs-text, which extensions and field values consist of.
pub(super) fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7F)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The body and the rest of the input; `None` if the input ends before the body does.
    type Expected<'a> = Option<(&'a [u8], &'a [u8])>;

    /// Decodes `input` in pieces of several sizes.
    fn check(input: &[u8], expected: Result<Expected<'_>, ProtocolError>) {
        for size in [1, 2, 3, 7, input.len().max(1)] {
            let text = String::from_utf8_lossy(&input[..input.len().min(60)]);
            assert_eq!(decode(input, size).as_ref().map(as_slices), expected.as_ref().map(|e| *e), "{text}");
        }
    }

    type Decoded = Option<(Vec<u8>, Vec<u8>)>;

    fn as_slices(decoded: &Decoded) -> Option<(&[u8], &[u8])> {
        decoded.as_ref().map(|(body, rest)| (&body[..], &rest[..]))
    }

    fn decode(input: &[u8], size: usize) -> Result<Decoded, ProtocolError> {
        let mut decoder = Decoder::new(limits::BODY_BYTES_MAX);
        let mut body = Vec::new();
        let mut at = 0;
        while at < input.len() && !decoder.is_done() {
            let end = input.len().min(at + size);
            at += decoder.decode(&input[at..end], |data| body.extend_from_slice(data))?;
        }
        Ok(decoder.is_done().then(|| (body, input[at..].to_vec())))
    }

    #[test]
    fn well_formed_bodies() {
        check(b"0\r\n\r\n", Ok(Some((b"", b""))));
        check(b"5\r\nhello\r\n0\r\n\r\nGET", Ok(Some((b"hello", b"GET"))));
        check(
            b"00000005;a=\"b\"\r\nhello\r\nA\r\n, world\r\n!\r\n0;x\r\n\r\n",
            Ok(Some((b"hello, world\r\n!", b""))),
        );
        check(b"1;\t\xff\r\na\r\n000\r\nName: value\r\nb:\r\n\r\n", Ok(Some((b"a", b""))));
        check(b"1\r\n\r\r\n1\r\n\n\r\n0\r\n\r\n", Ok(Some((b"\r\n", b""))));
        for incomplete in
            [&b""[..], b"5", b"5\r", b"5\r\nhell", b"5\r\nhello", b"0\r\n", b"0\r\n\r", b"0\r\na:b\r\n"]
        {
            check(incomplete, Ok(None));
        }
    }

    #[test]
    fn malformed_chunks() {
        let inputs: [&[u8]; 26] = [
            b"f0000000000000003\r\n",
            b"100000005\r\n",
            b"000000000\r\n",
            b"\r\n\r\n",
            b";x\r\n",
            b" 1\r\n",
            b"1 \r\n",
            b"1 ;x\r\n",
            b"1\t\r\n",
            b"1 x\r\n",
            b"1these-bytes\r\n",
            b"+5\r\n",
            b"-0\r\n",
            b"0x5\r\n",
            b"0_0\r\n",
            b"\r0\r\n",
            b"g\r\n",
            b"5\n",
            b"5\r\r\n",
            b"5\rx",
            b"2;a\nxx\r\n",
            b"2;a\0\r\n",
            b"2;a\x7f\r\n",
            b"5\r\nAAAAAXX2\r\n",
            b"5\r\nhello0\r\n\r\n",
            b"5\r\nhello\n0\r\n\r\n",
        ];
        for input in inputs {
            check(input, Err(MALFORMED));
        }
    }

    #[test]
    fn malformed_trailers() {
        for trailer in
            ["a\r\n", ": b\r\n", "a : b\r\n", " a: b\r\n", "a: b\n", "a: b\r\n c\r\n", "a: \0\r\n", "\n"]
        {
            let input = format!("0\r\n{trailer}\r\n");
            check(input.as_bytes(), Err(ProtocolError::BadRequest("trailer is malformed")));
        }
    }

    #[test]
    fn limits_are_enforced() {
        let extension = |count: usize| format!("1;{}\r\na\r\n", "x".repeat(count - 1));
        let longest = extension(limits::CHUNK_EXTENSION_BYTES_MAX);
        let too_long = Err(ProtocolError::BadRequest("chunk extension is too long"));
        check(format!("{longest}0\r\n\r\n").as_bytes(), Ok(Some((b"a", b""))));
        check(extension(limits::CHUNK_EXTENSION_BYTES_MAX + 1).as_bytes(), too_long);
        let count = limits::CHUNK_EXTENSIONS_BYTES_MAX / limits::CHUNK_EXTENSION_BYTES_MAX;
        check(longest.repeat(count).as_bytes(), Ok(None));
        check(format!("{}1;", longest.repeat(count)).as_bytes(), too_long);

        let trailers = |count: usize| format!("0\r\na:{}\r\n\r\n", "b".repeat(count - 4));
        check(trailers(limits::TRAILERS_BYTES_MAX).as_bytes(), Ok(Some((b"", b""))));
        check(trailers(limits::TRAILERS_BYTES_MAX + 1).as_bytes(), Err(ProtocolError::HeadTooLarge));

        let too_large = ProtocolError::BodyTooLarge { bytes_max: limits::BODY_BYTES_MAX };
        check(format!("{:x}\r\n", limits::BODY_BYTES_MAX).as_bytes(), Ok(None));
        check(format!("{:x}\r\n", limits::BODY_BYTES_MAX + 1).as_bytes(), Err(too_large));
        check(format!("1\r\na\r\n{:x}\r\n", limits::BODY_BYTES_MAX).as_bytes(), Err(too_large));
        check(b"ffffffff\r\n", Err(too_large));
    }
}
