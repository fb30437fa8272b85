//! The bytes read from a client: the held head of the current request, then what is not yet
//! consumed. Whatever leaves it is wiped.

use zeroize::Zeroize;

use crate::limits;

/// A read buffer laid out as `held head | gap | unread | free`.
///
/// The gap is a consumed body; it is closed when the free part has run out. Everything outside the
/// held head and the unread bytes is zero at all times.
pub(super) struct ReadBuffer {
    bytes: Box<[u8]>,
    held_start: usize,
    held_end: usize,
    unread_start: usize,
    unread_end: usize,
}

impl ReadBuffer {
    /// Without a buffer until it is needed.
    pub(super) fn new() -> Self {
        Self { bytes: Box::default(), held_start: 0, held_end: 0, unread_start: 0, unread_end: 0 }
    }

    /// Takes a buffer that [`Self::return_buffer`] gave, if there is none.
    pub(super) fn borrow_buffer(&mut self, spare: impl FnOnce() -> Option<Box<[u8]>>) {
        if self.bytes.is_empty() {
            self.bytes = spare().unwrap_or_default();
        }
    }

    /// Gives the buffer away, which is all zero; nothing is in it.
    pub(super) fn return_buffer(&mut self) -> Box<[u8]> {
        debug_assert!(self.held_start == self.unread_end, "something is in it");
        (self.held_start, self.held_end, self.unread_start, self.unread_end) = (0, 0, 0, 0);
        let bytes = std::mem::take(&mut self.bytes);
        if bytes.len() == limits::INBOX_BYTES { bytes } else { Box::default() }
    }

    /// Where the next bytes go; `wanted` is how many are known to come. Empty once a whole
    /// [`limits::HEAD_BYTES_MAX`] is unread: this bounds how far a client can run ahead.
    pub(super) fn space(&mut self, wanted: usize) -> &mut [u8] {
        if self.held_start == self.unread_end && self.bytes.len() > limits::INBOX_BYTES {
            self.replace_with(limits::INBOX_BYTES);
        }
        if self.bytes.is_empty() {
            self.bytes = zeroed(limits::INBOX_BYTES);
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

    /// Takes over `count` bytes that were written to the space.
    pub(super) fn received(&mut self, count: usize) {
        assert!(count <= self.bytes.len() - self.unread_end, "more bytes than the space had");
        self.unread_end += count;
    }

    /// What has arrived and is not yet consumed.
    pub(super) fn unread(&self) -> &[u8] {
        &self.bytes[self.unread_start..self.unread_end]
    }

    /// Wipes the first `count` unread bytes.
    pub(super) fn consume(&mut self, count: usize) {
        let end = self.unread_start + count;
        assert!(end <= self.unread_end, "only what is unread can be consumed");
        self.bytes[self.unread_start..end].zeroize();
        self.unread_start = end;
        self.settle();
    }

    /// Wipes everything unread.
    pub(super) fn discard(&mut self) {
        self.consume(self.unread_end - self.unread_start);
    }

    /// Keeps the first `count` unread bytes as the head of the current request.
    pub(super) fn hold(&mut self, count: usize) {
        debug_assert_eq!(self.held_start, self.held_end, "one head at a time");
        self.held_start = self.unread_start;
        self.held_end = self.unread_start + count;
        self.unread_start = self.held_end;
    }

    /// The head of the current request.
    pub(super) fn held(&self) -> &[u8] {
        &self.bytes[self.held_start..self.held_end]
    }

    /// Wipes the head of the current request.
    pub(super) fn release(&mut self) {
        self.bytes[self.held_start..self.held_end].zeroize();
        self.held_start = self.unread_start;
        self.held_end = self.unread_start;
        self.settle();
    }

    /// Moves the ends back where nothing lies behind them, so that most connections never move a
    /// byte and never grow.
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

    /// Moves the held head and the unread bytes to the front and wipes where they were.
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

    /// Every byte of the buffer, to search it for what should be gone.
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

    fn put(inbox: &mut ReadBuffer, bytes: &[u8]) {
        for piece in bytes.chunks(100) {
            inbox.space(1)[..piece.len()].copy_from_slice(piece);
            inbox.received(piece.len());
        }
    }

    fn is_clean(inbox: &ReadBuffer) -> bool {
        let live = inbox.held().len() + inbox.unread().len();
        inbox.everything().iter().filter(|&&byte| byte != 0).count() == live
    }

    #[test]
    fn what_leaves_is_wiped() {
        let mut inbox = ReadBuffer::new();
        put(&mut inbox, b"headbodynext");
        inbox.hold(4);
        inbox.consume(4);
        assert_eq!((inbox.held(), inbox.unread()), (&b"head"[..], &b"next"[..]));
        assert!(is_clean(&inbox));
        inbox.release();
        assert_eq!((inbox.held(), inbox.unread()), (&b""[..], &b"next"[..]));
        assert!(is_clean(&inbox));
        inbox.discard();
        assert!(is_clean(&inbox));
        assert_eq!(inbox.space(1).len(), limits::INBOX_BYTES);
    }

    #[test]
    fn read_ahead_is_bounded_and_shrinks_back() {
        let mut inbox = ReadBuffer::new();
        put(&mut inbox, &[1; 1000]);
        inbox.hold(1000);
        while !inbox.space(1).is_empty() {
            let count = inbox.space(1).len();
            inbox.space(1).fill(2);
            inbox.received(count);
        }
        assert_eq!(inbox.held(), [1; 1000]);
        assert_eq!(inbox.unread(), [2; limits::HEAD_BYTES_MAX]);
        inbox.release();
        assert!(inbox.space(1).is_empty());
        inbox.consume(1);
        assert_eq!(inbox.space(1).len(), 1);
        assert!(is_clean(&inbox));
        inbox.discard();
        assert_eq!(inbox.space(1).len(), limits::INBOX_BYTES);
        assert_eq!(inbox.everything().len(), limits::INBOX_BYTES);
    }

    #[test]
    fn growth_serves_what_is_known_to_come() {
        let mut inbox = ReadBuffer::new();
        put(&mut inbox, b"head");
        inbox.hold(4);
        assert_eq!(inbox.space(1_000_000).len(), limits::HEAD_BYTES_MAX);
        assert_eq!(inbox.held(), b"head");
    }
}
