//! Output of a connection: the bytes that wait to be written. Messages carry secrets, so written bytes are wiped.

use zeroize::Zeroize;

use super::pace::Pace;
use crate::limits;

/// Write buffer: encoded responses in the order of their requests, or an encoded request.
pub(super) struct WriteBuffer {
    bytes: Vec<u8>,
    written_count: usize,
    /// Progress since the first byte was put into the empty buffer.
    pace: Pace,
}

impl WriteBuffer {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::new(), written_count: 0, pace: Pace::new(0) }
    }

    /// Adopts a buffer of [`Self::return_buffer`], if this one has none.
    pub(super) fn borrow_buffer(&mut self, spare: impl FnOnce() -> Option<Vec<u8>>) {
        if self.bytes.capacity() == 0 {
            self.bytes = spare().unwrap_or_default();
        }
    }

    /// Gives up the buffer, which is wiped and holds no bytes.
    pub(super) fn return_buffer(&mut self) -> Vec<u8> {
        debug_assert!(self.bytes.is_empty(), "the buffer is empty");
        std::mem::take(&mut self.bytes)
    }

    /// Makes room for `count` more bytes. The vector never reallocates by itself, which would leave a copy of its
    /// content in freed memory.
    pub(super) fn reserve(&mut self, count: usize, now_ms: u64) {
        if self.is_empty() {
            self.pace = Pace::new(now_ms);
        }
        let needed = self.bytes.len() + count;
        if needed > self.bytes.capacity() {
            let unwritten = &self.bytes[self.written_count..];
            let mut larger = Vec::with_capacity(needed.max(self.bytes.capacity() * 2).max(512));
            larger.extend_from_slice(unwritten);
            let mut old = std::mem::replace(&mut self.bytes, larger);
            self.written_count = 0;
            old[..].zeroize();
        }
    }

    /// Appends bytes within the reserved room.
    #[inline]
    pub(super) fn put(&mut self, bytes: &[u8]) {
        debug_assert!(self.bytes.len() + bytes.len() <= self.bytes.capacity(), "reserve first");
        self.bytes.extend_from_slice(bytes);
    }

    /// Lets `write` append `count` bytes within the reserved room.
    pub(super) fn put_with(&mut self, count: usize, write: impl FnOnce(&mut Vec<u8>)) {
        let end = self.bytes.len() + count;
        debug_assert!(end <= self.bytes.capacity(), "reserve first");
        write(&mut self.bytes);
        assert_eq!(self.bytes.len(), end, "`write` appends as many bytes as were announced");
    }

    pub(super) fn unwritten(&self) -> &[u8] {
        &self.bytes[self.written_count..]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.written_count == self.bytes.len()
    }

    /// Returns the capacity of the buffer, in bytes.
    pub(super) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    pub(super) fn pace(&self) -> &Pace {
        &self.pace
    }

    /// Wipes the first `count` unwritten bytes, which were now written.
    pub(super) fn wrote(&mut self, count: usize, now_ms: u64) {
        let end = self.written_count + count;
        assert!(end <= self.bytes.len(), "more bytes written than were waiting");
        self.bytes[self.written_count..end].zeroize();
        self.written_count = end;
        self.pace.advance(count, now_ms);
        if self.is_empty() {
            self.discard();
        }
    }

    /// Wipes everything, written or not.
    pub(super) fn discard(&mut self) {
        self.bytes[self.written_count..].zeroize();
        self.written_count = 0;
        self.bytes.clear();
        if self.bytes.capacity() > limits::WRITE_BUFFER_KEPT_BYTES {
            self.bytes = Vec::new();
        }
    }

    /// Returns every byte of the buffer, to search it for data that should be wiped.
    #[cfg(test)]
    pub(super) fn everything(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for WriteBuffer {
    fn drop(&mut self) {
        self.bytes[..].zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_in_order_and_progress_is_recorded() {
        let mut buffer = WriteBuffer::new();
        buffer.reserve(5, 10);
        buffer.put(b"first");
        buffer.wrote(2, 20);
        buffer.reserve(20_000, 30);
        buffer.put(&[b'x'; 20_000]);
        assert_eq!(buffer.pace().window_since_ms(), 10, "two bytes earn no time");
        assert!(buffer.unwritten().starts_with(b"rstxxx"));
        buffer.wrote(limits::TRANSFER_BYTES_MIN, 40);
        assert_eq!(buffer.pace().window_since_ms(), 40);
        buffer.wrote(20_003 - limits::TRANSFER_BYTES_MIN, 50);
        assert!(buffer.is_empty());
        buffer.reserve(1, 60);
        assert_eq!(buffer.pace().window_since_ms(), 60);
    }

    #[test]
    fn an_empty_buffer_keeps_little_memory() {
        let mut buffer = WriteBuffer::new();
        buffer.reserve(limits::WRITE_BUFFER_KEPT_BYTES + 1, 0);
        buffer.put(b"x");
        buffer.wrote(1, 0);
        assert_eq!(buffer.bytes.capacity(), 0);
    }
}
