//! Input of a connection: the held head of the current message, then the bytes that are not consumed yet. Bytes that
//! leave it are wiped.

use zeroize::Zeroize;

use crate::limits;

/// Read buffer with the layout `held head | gap | unread | free`.
///
/// The gap is a consumed body; it is closed when the free part runs out. Everything outside the held head and the
/// unread bytes is zero at all times.
pub(super) struct ReadBuffer {
    bytes: Box<[u8]>,
    held_start: usize,
    held_end: usize,
    unread_start: usize,
    unread_end: usize,
}

impl ReadBuffer {
    /// Creates a read buffer that takes no memory until it is needed.
    pub(super) fn new() -> Self {
        Self { bytes: Box::default(), held_start: 0, held_end: 0, unread_start: 0, unread_end: 0 }
    }

    /// Adopts a buffer of [`Self::return_buffer`], if this one has none.
    pub(super) fn borrow_buffer(&mut self, spare: impl FnOnce() -> Option<Box<[u8]>>) {
        if self.bytes.is_empty() {
            self.bytes = spare().unwrap_or_default();
        }
    }

    /// Gives up the buffer, which is all zero and holds no bytes. One that has grown is dropped.
    pub(super) fn return_buffer(&mut self) -> Box<[u8]> {
        debug_assert!(self.held_start == self.unread_end, "the buffer is empty");
        (self.held_start, self.held_end, self.unread_start, self.unread_end) = (0, 0, 0, 0);
        let bytes = std::mem::take(&mut self.bytes);
        if bytes.len() == limits::READ_BUFFER_BYTES { bytes } else { Box::default() }
    }

    /// Returns the space for the next bytes; `wanted` is the number that is known to follow. Empty once
    /// [`limits::HEAD_BYTES_MAX`] bytes are unread, which bounds how far a client can send ahead.
    pub(super) fn space(&mut self, wanted: usize) -> &mut [u8] {
        if self.held_start == self.unread_end && self.bytes.len() > limits::READ_BUFFER_BYTES {
            self.replace_with(limits::READ_BUFFER_BYTES);
        }
        if self.bytes.is_empty() {
            self.bytes = zeroed(limits::READ_BUFFER_BYTES);
        }
        let held_count = self.held_end - self.held_start;
        let capacity_max = held_count + limits::HEAD_BYTES_MAX;
        let wanted = wanted.clamp(1, limits::HEAD_BYTES_MAX);
        if self.unread_end >= self.bytes.len().min(capacity_max) {
            self.close_gaps();
        }
        let room = self.bytes.len() - self.unread_end;
        if room < wanted && self.bytes.len() < capacity_max {
            let doubled = (self.bytes.len() * 2).max(self.unread_end + wanted);
            self.replace_with(doubled.min(capacity_max));
        }
        let end = self.bytes.len().min(capacity_max).max(self.unread_end);
        &mut self.bytes[self.unread_end..end]
    }

    /// Records that `count` bytes were written to the space.
    pub(super) fn received(&mut self, count: usize) {
        assert!(count <= self.bytes.len() - self.unread_end, "more bytes than the space had");
        self.unread_end += count;
    }

    /// Returns the bytes that have arrived and are not consumed yet.
    pub(super) fn unread(&self) -> &[u8] {
        &self.bytes[self.unread_start..self.unread_end]
    }

    /// Wipes the first `count` unread bytes.
    pub(super) fn consume(&mut self, count: usize) {
        let end = self.unread_start + count;
        assert!(end <= self.unread_end, "only unread bytes can be consumed");
        self.bytes[self.unread_start..end].zeroize();
        self.unread_start = end;
        self.settle();
    }

    /// Wipes everything unread.
    pub(super) fn discard(&mut self) {
        self.consume(self.unread_end - self.unread_start);
    }

    /// Holds the first `count` unread bytes as the head of the current message.
    pub(super) fn hold(&mut self, count: usize) {
        debug_assert_eq!(self.held_start, self.held_end, "only one head is held");
        self.held_start = self.unread_start;
        self.held_end = self.unread_start + count;
        self.unread_start = self.held_end;
    }

    /// Returns the head of the current message.
    pub(super) fn held(&self) -> &[u8] {
        &self.bytes[self.held_start..self.held_end]
    }

    /// Wipes the head of the current message.
    pub(super) fn release(&mut self) {
        self.bytes[self.held_start..self.held_end].zeroize();
        self.held_start = self.unread_start;
        self.held_end = self.unread_start;
        self.settle();
    }

    /// Moves the positions back if no bytes follow them, so that most connections never move a byte and never grow.
    fn settle(&mut self) {
        if self.held_start == self.held_end {
            self.held_start = self.unread_start;
            self.held_end = self.unread_start;
        }
        if self.unread_start == self.unread_end {
            if self.held_start == self.held_end {
                self.held_start = 0;
                self.held_end = 0;
            }
            self.unread_start = self.held_end;
            self.unread_end = self.held_end;
        }
    }

    /// Moves the held head and the unread bytes to the front and wipes their former place.
    fn close_gaps(&mut self) {
        let held_count = self.held_end - self.held_start;
        let unread_count = self.unread_end - self.unread_start;
        let end = held_count + unread_count;
        self.bytes.copy_within(self.held_start..self.held_end, 0);
        self.bytes.copy_within(self.unread_start..self.unread_end, held_count);
        self.bytes[end..self.unread_end].zeroize();
        (self.held_start, self.held_end) = (0, held_count);
        (self.unread_start, self.unread_end) = (held_count, end);
    }

    /// Moves to a buffer of another size and wipes the old one.
    fn replace_with(&mut self, size: usize) {
        self.close_gaps();
        let mut old = std::mem::replace(&mut self.bytes, zeroed(size));
        self.bytes[..self.unread_end].copy_from_slice(&old[..self.unread_end]);
        old[..].zeroize();
    }

    /// Returns every byte of the buffer, to search it for data that should be wiped.
    #[cfg(test)]
    pub(super) fn everything(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for ReadBuffer {
    fn drop(&mut self) {
        self.bytes[..].zeroize();
    }
}

fn zeroed(size: usize) -> Box<[u8]> {
    vec![0; size].into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(buffer: &mut ReadBuffer, bytes: &[u8]) {
        for piece in bytes.chunks(100) {
            buffer.space(1)[..piece.len()].copy_from_slice(piece);
            buffer.received(piece.len());
        }
    }

    fn is_clean(buffer: &ReadBuffer) -> bool {
        let live = buffer.held().len() + buffer.unread().len();
        buffer.everything().iter().filter(|&&byte| byte != 0).count() == live
    }

    #[test]
    fn consumed_and_released_bytes_are_wiped() {
        let mut buffer = ReadBuffer::new();
        put(&mut buffer, b"headbodynext");
        buffer.hold(4);
        buffer.consume(4);
        assert_eq!((buffer.held(), buffer.unread()), (&b"head"[..], &b"next"[..]));
        assert!(is_clean(&buffer));
        buffer.release();
        assert_eq!((buffer.held(), buffer.unread()), (&b""[..], &b"next"[..]));
        assert!(is_clean(&buffer));
        buffer.discard();
        assert!(is_clean(&buffer));
        assert_eq!(buffer.space(1).len(), limits::READ_BUFFER_BYTES);
    }

    #[test]
    fn reading_ahead_is_bounded_and_the_buffer_shrinks_again() {
        let mut buffer = ReadBuffer::new();
        put(&mut buffer, &[1; 1000]);
        buffer.hold(1000);
        while !buffer.space(1).is_empty() {
            let count = buffer.space(1).len();
            buffer.space(1).fill(2);
            buffer.received(count);
        }
        assert_eq!(buffer.held(), [1; 1000]);
        assert_eq!(buffer.unread(), [2; limits::HEAD_BYTES_MAX]);
        buffer.release();
        assert!(buffer.space(1).is_empty());
        buffer.consume(1);
        assert_eq!(buffer.space(1).len(), 1);
        assert!(is_clean(&buffer));
        buffer.discard();
        assert_eq!(buffer.space(1).len(), limits::READ_BUFFER_BYTES);
        assert_eq!(buffer.everything().len(), limits::READ_BUFFER_BYTES);
    }

    #[test]
    fn the_buffer_grows_to_the_bytes_that_are_known_to_follow() {
        let mut buffer = ReadBuffer::new();
        put(&mut buffer, b"head");
        buffer.hold(4);
        assert_eq!(buffer.space(1_000_000).len(), limits::HEAD_BYTES_MAX);
        assert_eq!(buffer.held(), b"head");
    }
}
