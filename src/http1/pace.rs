//! The minimum rate of a transfer, measured over a recent window: bytes of long ago earn no time.

use std::time::Duration;

use crate::limits::TRANSFER_BYTES_MIN;

/// Progress of one transfer. A window ends, and the next one begins, once [`TRANSFER_BYTES_MIN`] have passed in it.
pub(super) struct Pace {
    window_since_ms: u64,
    window_bytes: usize,
}

impl Pace {
    /// A transfer that begins now.
    pub(super) fn new(now_ms: u64) -> Self {
        Self { window_since_ms: now_ms, window_bytes: 0 }
    }

    /// Counts bytes that have just passed.
    pub(super) fn advance(&mut self, bytes: usize, now_ms: u64) {
        self.window_bytes = self.window_bytes.saturating_add(bytes);
        if self.window_bytes >= TRANSFER_BYTES_MIN {
            *self = Self::new(now_ms);
        }
    }

    /// Start of the window: the older, the slower the transfer.
    pub(super) fn window_since_ms(&self) -> u64 {
        self.window_since_ms
    }

    /// When the transfer is too slow, unless the window ends before.
    pub(super) fn deadline_ms(&self, window: Duration) -> u64 {
        self.window_since_ms.saturating_add(u64::try_from(window.as_millis()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(10);

    #[test]
    fn a_window_ends_with_enough_bytes_and_not_with_any() {
        let mut pace = Pace::new(5);
        assert_eq!(pace.deadline_ms(WINDOW), 10_005);
        pace.advance(TRANSFER_BYTES_MIN - 1, 9000);
        assert_eq!(pace.deadline_ms(WINDOW), 10_005);
        pace.advance(1, 10_000);
        assert_eq!(pace.deadline_ms(WINDOW), 20_000);
        // The bytes of the window before do not count again, however many they were.
        pace.advance(100 * TRANSFER_BYTES_MIN, 11_000);
        pace.advance(TRANSFER_BYTES_MIN - 1, 12_000);
        assert_eq!(pace.deadline_ms(WINDOW), 21_000);
        assert_eq!(Pace::new(u64::MAX).deadline_ms(WINDOW), u64::MAX);
    }
}
