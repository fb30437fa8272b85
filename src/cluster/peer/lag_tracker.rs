//! Lag of a peer: how long local changes wait for its confirmation.

use std::collections::VecDeque;

use crate::limits::{LAG_RESOLUTION_MS, LAG_SAMPLES_COUNT_MAX};

/// Times at which changes of the replication log began to wait for confirmation. The resolution and the number of
/// samples are bounded.
#[derive(Debug, Default)]
pub(super) struct LagTracker {
    /// Last position of the changes of each sample, and since when the first of them waits.
    samples: VecDeque<(i64, u64)>,
}

impl LagTracker {
    /// Records that the replication log has grown to this position.
    pub(super) fn grew(&mut self, now_ms: u64, sequence: i64) {
        let is_full = self.samples.len() >= LAG_SAMPLES_COUNT_MAX;
        match self.samples.back_mut() {
            Some((last, since_ms)) if is_full || now_ms < *since_ms + LAG_RESOLUTION_MS => *last = sequence,
            _ => self.samples.push_back((sequence, now_ms)),
        }
    }

    /// Records that the peer has confirmed all changes up to this position.
    pub(super) fn confirmed(&mut self, sequence: i64) {
        while self.samples.front().is_some_and(|(last, _)| *last <= sequence) {
            self.samples.pop_front();
        }
    }

    /// Returns since when the oldest change after `cursor` waits, if there is one.
    pub(super) fn oldest_ms(&self, cursor: i64) -> Option<u64> {
        self.samples.iter().find(|(last, _)| *last > cursor).map(|(_, since_ms)| *since_ms)
    }
}
