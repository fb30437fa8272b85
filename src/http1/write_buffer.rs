//! The bytes that wait to be written to a client. Answers carry secrets: what was written is wiped.

use zeroize::Zeroize;

use super::pace::Pace;
use crate::limits;

/// Capacity that an empty outbox keeps, so that most answers allocate nothing.
const KEPT_BYTES: usize = 4 * limits::INBOX_BYTES;

/// Encoded answers in the order of their requests.
pub(super) struct WriteBuffer {
    bytes: Vec<u8>,
    written_count: usize,
    /// From the first byte that was laid down.
    pace: Pace,
}

impl WriteBuffer {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::new(), written_count: 0, pace: Pace::new(0) }
    }

    /// Takes a buffer that [`Self::return_buffer`] gave, if there is none.
    pub(super) fn borrow_buffer(&mut self, spare: impl FnOnce() -> Option<Vec<u8>>) {
        if self.bytes.capacity() == 0 {
            self.bytes = spare().unwrap_or_default();
        }
    }

    /// Gives the buffer away, which was wiped; nothing is in it.
    pub(super) fn return_buffer(&mut self) -> Vec<u8> {
        debug_assert!(self.bytes.is_empty(), "something is in it");
        std::mem::take(&mut self.bytes)
    }

    /// Room for `count` more bytes. The vector never reallocates by itself: that would leave a copy
    /// of what it holds in freed memory.
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

    /// Appends within what was reserved.
    #[inline]
    pub(super) fn put(&mut self, bytes: &[u8]) {
        debug_assert!(self.bytes.len() + bytes.len() <= self.bytes.capacity(), "reserve first");
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends `count` bytes that `write` appends.
    pub(super) fn put_with(&mut self, count: usize, write: impl FnOnce(&mut Vec<u8>)) {
        let end = self.bytes.len() + count;
        debug_assert!(end <= self.bytes.capacity(), "reserve first");
        write(&mut self.bytes);
        assert_eq!(self.bytes.len(), end, "as many bytes as were announced");
    }

    pub(super) fn unwritten(&self) -> &[u8] {
        &self.bytes[self.written_count..]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.written_count == self.bytes.len()
    }

    /// Memory of the buffer.
    pub(super) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    pub(super) fn pace(&self) -> &Pace {
        &self.pace
    }

    /// Wipes the first `count` bytes, which the client has taken.
    pub(super) fn wrote(&mut self, count: usize, now_ms: u64) {
        let end = self.written_count + count;
        assert!(end <= self.bytes.len(), "more bytes written than there were");
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
        if self.bytes.capacity() > KEPT_BYTES {
            self.bytes = Vec::new();
        }
    }

    /// Every byte of the buffer, to search it for what should be gone.
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
    fn bytes_leave_in_order_and_progress_is_noted() {
        let mut outbox = WriteBuffer::new();
        outbox.reserve(5, 10);
        outbox.put(b"first");
        outbox.wrote(2, 20);
        outbox.reserve(20_000, 30);
        outbox.put(&[b'x'; 20_000]);
        assert_eq!(outbox.pace().window_since_ms(), 10, "two bytes earn no time");
        assert!(outbox.unwritten().starts_with(b"rstxxx"));
        outbox.wrote(limits::TRANSFER_BYTES_MIN, 40);
        assert_eq!(outbox.pace().window_since_ms(), 40);
        outbox.wrote(20_003 - limits::TRANSFER_BYTES_MIN, 50);
        assert!(outbox.is_empty());
        outbox.reserve(1, 60);
        assert_eq!(outbox.pace().window_since_ms(), 60);
    }

    #[test]
    fn an_empty_outbox_keeps_little() {
        let mut outbox = WriteBuffer::new();
        outbox.reserve(KEPT_BYTES + 1, 0);
        outbox.put(b"x");
        outbox.wrote(1, 0);
        assert_eq!(outbox.bytes.capacity(), 0);
    }
}
