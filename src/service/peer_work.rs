//! Budget for requests of other nodes. Their size limits are higher than those of clients, so without a budget a few
//! messages of maximum size would exhaust the memory and occupy all pool threads.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::Error;
use crate::limits::{PEER_INLINE_BYTES, PEER_WORK_BYTES_MAX};

/// Bytes of large messages and their responses that are in flight.
#[derive(Debug, Default)]
pub struct PeerWork(AtomicUsize);

/// Share of the budget that one request holds until its response is complete.
#[derive(Debug)]
pub struct PeerShare<'a> {
    work: &'a PeerWork,
    bytes: usize,
}

impl PeerWork {
    /// Reserves budget for a message of a peer and the response; short ones need none.
    ///
    /// # Errors
    /// Returns [`Error::Busy`] if the budget is exhausted.
    pub fn share(&self, bytes: usize) -> Result<PeerShare<'_>, Error> {
        let bytes = if bytes > PEER_INLINE_BYTES { bytes } else { 0 };
        let share = PeerShare { work: self, bytes };
        let before = self.0.fetch_add(bytes, Ordering::Relaxed);
        // If the budget is exceeded, dropping the share returns its bytes.
        (before + bytes <= PEER_WORK_BYTES_MAX || bytes == 0).then_some(share).ok_or(Error::Busy)
    }
}

impl Drop for PeerShare<'_> {
    fn drop(&mut self) {
        self.work.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_shares_are_returned_and_short_messages_need_none() {
        let work = PeerWork::default();
        let half = PEER_WORK_BYTES_MAX / 2;
        let first = work.share(half).expect("room");
        let second = work.share(half).expect("room");
        assert!(work.share(PEER_INLINE_BYTES + 1).is_err());
        assert!(work.share(PEER_INLINE_BYTES).is_ok());
        drop(first);
        assert!(work.share(half + 1).is_err());
        let third = work.share(half).expect("room again");
        drop((second, third));
        assert!(work.share(PEER_WORK_BYTES_MAX).is_ok());
    }
}
