//! How much the process works for other nodes at a time: their limits are not those of clients, so without this
//! a few messages of the largest size would fill the memory, and the threads of the pool.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Error, Service};
use crate::limits::{PEER_INLINE_BYTES, PEER_WORK_BYTES_MAX};

/// Bytes of large messages, and of answers to them, that are under way.
#[derive(Debug, Default)]
pub(super) struct PeerWork(AtomicUsize);

/// What one request has of it, until it is answered.
#[derive(Debug)]
pub struct PeerShare<'a> {
    work: &'a PeerWork,
    bytes: usize,
}

impl PeerWork {
    fn share(&self, bytes: usize) -> Option<PeerShare<'_>> {
        let bytes = if bytes > PEER_INLINE_BYTES { bytes } else { 0 };
        let share = PeerShare { work: self, bytes };
        let before = self.0.fetch_add(bytes, Ordering::Relaxed);
        // Dropped, it gives back what it took too much.
        (before + bytes <= PEER_WORK_BYTES_MAX || bytes == 0).then_some(share)
    }
}

impl Drop for PeerShare<'_> {
    fn drop(&mut self) {
        self.work.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Service {
    /// Room for a message of a peer and the answer to it; short ones need none.
    ///
    /// # Errors
    /// [`Error::Busy`] when there is none.
    pub fn share_for_peer(&self, bytes: usize) -> Result<PeerShare<'_>, Error> {
        self.peer_work.share(bytes).ok_or(Error::Busy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_comes_back_and_short_messages_need_none() {
        let work = PeerWork::default();
        let half = PEER_WORK_BYTES_MAX / 2;
        let first = work.share(half).expect("room");
        let second = work.share(half).expect("room");
        assert!(work.share(PEER_INLINE_BYTES + 1).is_none());
        assert!(work.share(PEER_INLINE_BYTES).is_some());
        drop(first);
        assert!(work.share(half + 1).is_none());
        let third = work.share(half).expect("room again");
        drop((second, third));
        assert!(work.share(PEER_WORK_BYTES_MAX).is_some());
    }
}
