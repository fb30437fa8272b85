//! Splitting of an input into reads of different sizes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_lite::AsyncRead;

/// Sizes of reads.
#[derive(Clone, Debug)]
pub enum Pieces {
    /// The whole input in one read.
    Whole,
    /// One byte per read.
    Bytes,
    /// Pseudo-random sizes of up to 32 bytes (xorshift).
    Random(u64),
}

impl Pieces {
    /// Returns the splittings that a target tries: byte by byte only for short inputs, because it is slow.
    pub fn of(data: &[u8]) -> Vec<Self> {
        // FNV-1a: the sizes depend only on the input, so failures are reproducible.
        let hash = data.iter().fold(0xCBF2_9CE4_8422_2325_u64, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
        });
        let mut pieces = vec![Self::Random(hash | 1)];
        if data.len() <= 8 * 1024 {
            pieces.push(Self::Bytes);
        }
        pieces
    }

    /// Returns the size of the next read, at least 1.
    pub fn next_size(&mut self) -> usize {
        match self {
            Self::Whole => usize::MAX,
            Self::Bytes => 1,
            Self::Random(state) => {
                *state ^= *state << 13;
                *state ^= *state >> 7;
                *state ^= *state << 17;
                1 + usize::try_from((*state >> 33) % 32).expect("below 32")
            }
        }
    }
}

/// A stream that yields an input in pieces and is ready at every second poll.
pub struct Stream<'a> {
    /// The unread bytes.
    pub rest: &'a [u8],
    pieces: Pieces,
    is_ready: bool,
}

impl<'a> Stream<'a> {
    /// Creates a stream that ends after `data`.
    pub fn new(data: &'a [u8], pieces: Pieces) -> Self {
        Self { rest: data, pieces, is_ready: false }
    }
}

impl AsyncRead for Stream<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.is_ready = !self.is_ready;
        if !self.is_ready {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let count = self.pieces.next_size().min(buffer.len()).min(self.rest.len());
        let (taken, rest) = self.rest.split_at(count);
        buffer[..count].copy_from_slice(taken);
        self.rest = rest;
        Poll::Ready(Ok(count))
    }
}
