//! The body of a large response: written piece by piece as the client reads it, so that a client that does not read
//! costs no more than one piece.

use smallvec::SmallVec;

use super::budget::Held;
use crate::model::SecretBytes;
use crate::service::SealedValue;

/// A body of known length.
#[derive(Debug, Default)]
pub struct Content {
    /// The parts not sent yet, in order.
    parts: SmallVec<[Part; 3]>,
}

#[derive(Debug)]
enum Part {
    Bytes { bytes: SecretBytes, sent: usize },
    Static(&'static [u8]),
    Sealed(SealedValue),
}

impl Content {
    /// Appends bytes.
    pub fn with_bytes(self, bytes: SecretBytes) -> Self {
        self.with(Part::Bytes { bytes, sent: 0 })
    }

    /// Appends static bytes.
    pub fn with_static(self, bytes: &'static [u8]) -> Self {
        self.with(Part::Static(bytes))
    }

    /// Appends a sealed value, which is decrypted as it is sent.
    pub fn with_sealed(self, value: SealedValue) -> Self {
        self.with(Part::Sealed(value))
    }

    /// Encloses the content between two byte strings.
    pub fn between(self, before: Vec<u8>, after: Vec<u8>) -> Self {
        let mut whole = Self::default().with_bytes(before.into());
        whole.parts.extend(self.parts);
        whole.with_bytes(after.into())
    }

    fn with(mut self, part: Part) -> Self {
        self.parts.push(part);
        self
    }

    /// Returns the number of bytes not written yet.
    pub(super) fn remaining(&self) -> usize {
        self.parts.iter().map(Part::remaining).sum()
    }

    /// Returns the length of the next piece in bytes, at most `bytes_max`; zero at the end.
    pub(super) fn next_len(&mut self, bytes_max: usize) -> usize {
        // Sent parts are dropped immediately, to free their memory.
        while self.parts.first().is_some_and(|part| part.remaining() == 0) {
            self.parts.remove(0);
        }
        self.parts.first().map_or(0, |part| part.remaining().min(bytes_max))
    }

    /// Appends the next piece, whose length [`Self::next_len`] returned, to `out`.
    pub(super) fn write_next(&mut self, count: usize, out: &mut Vec<u8>) {
        match self.parts.first_mut() {
            Some(Part::Bytes { bytes, sent }) => {
                out.extend_from_slice(&bytes[*sent..*sent + count]);
                *sent += count;
            }
            Some(Part::Static(bytes)) => {
                let (piece, rest) = bytes.split_at(count);
                out.extend_from_slice(piece);
                *bytes = rest;
            }
            Some(Part::Sealed(value)) => value.open_next(count, out),
            None => {}
        }
    }

    /// Returns the memory that the content holds; static bytes do not count.
    pub(super) fn held(&self) -> Held {
        self.parts.iter().fold(Held::default(), |held, part| match part {
            Part::Bytes { bytes, .. } => Held { bytes: held.bytes + bytes.capacity(), ..held },
            Part::Static(_) => held,
            Part::Sealed(value) => Held { shared: Some(value.row()), ..held },
        })
    }
}

impl Part {
    fn remaining(&self) -> usize {
        match self {
            Self::Bytes { bytes, sent } => bytes.len() - sent,
            Self::Static(bytes) => bytes.len(),
            Self::Sealed(value) => value.remaining(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_concatenate_to_the_whole() {
        for size in [1, 2, 3, 7, 100] {
            let mut content = Content::default()
                .with_bytes(b"{\"value\":".to_vec().into())
                .with_static(b"")
                .with_static(b"12345")
                .with_bytes(b"}".to_vec().into());
            assert_eq!(content.remaining(), 15);
            let mut whole = Vec::new();
            loop {
                let count = content.next_len(size);
                if count == 0 {
                    break;
                }
                assert!(count <= size);
                let before = whole.len();
                content.write_next(count, &mut whole);
                assert_eq!(whole.len(), before + count);
            }
            assert_eq!(whole, b"{\"value\":12345}");
            assert_eq!((content.remaining(), content.parts.len()), (0, 0));
        }
    }
}
