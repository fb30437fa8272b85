//! Minimum rate of a transfer, measured over a recent window: earlier bytes earn no time.

use std::time::Duration;

use crate::limits::TRANSFER_BYTES_MIN;

/// Progress of one transfer. A window ends, and the next one begins, after [`TRANSFER_BYTES_MIN`] bytes.
pub(super) struct Pace {
    window_since_ms: u64,
    window_bytes: usize,
}

impl Pace {
    /// Starts the first window of a transfer.
    pub(super) fn new(now_ms: u64) -> Self {
        Self { window_since_ms: now_ms, window_bytes: 0 }
    }

    /// Counts bytes that were just transferred.
    pub(super) fn advance(&mut self, bytes: usize, now_ms: u64) {
        self.window_bytes = self.window_bytes.saturating_add(bytes);
        if self.window_bytes >= TRANSFER_BYTES_MIN {
            *self = Self::new(now_ms);
        }
    }

    /// Returns the start of the window: the older, the slower the transfer.
    pub(super) fn window_since_ms(&self) -> u64 {
        self.window_since_ms
    }

    /// Returns the time at which the transfer is too slow, unless the window ends first.
    pub(super) fn deadline_ms(&self, window: Duration) -> u64 {
        self.window_since_ms.saturating_add(u64::try_from(window.as_millis()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(10);

    #[test]
    fn a_window_ends_only_after_enough_bytes() {
        let mut pace = Pace::new(5);
        assert_eq!(pace.deadline_ms(WINDOW), 10_005);
        pace.advance(TRANSFER_BYTES_MIN - 1, 9000);
        assert_eq!(pace.deadline_ms(WINDOW), 10_005);
        pace.advance(1, 10_000);
        assert_eq!(pace.deadline_ms(WINDOW), 20_000);
        // Surplus bytes of the previous window do not count again.
        pace.advance(100 * TRANSFER_BYTES_MIN, 11_000);
        pace.advance(TRANSFER_BYTES_MIN - 1, 12_000);
        assert_eq!(pace.deadline_ms(WINDOW), 21_000);
        assert_eq!(Pace::new(u64::MAX).deadline_ms(WINDOW), u64::MAX);
    }
}
