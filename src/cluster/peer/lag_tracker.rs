//! How long own changes wait for a peer.

use std::collections::VecDeque;

/// How exactly it is known since when a change waits, and for how many such moments at a time.
const WAITING_GRAIN_MS: u64 = 100;
const WAITING_COUNT_MAX: usize = 1024;

/// Since when lines of the outbox wait to be confirmed: up to which line, and since when, in a grain that
/// bounds how many there are.
#[derive(Debug, Default)]
pub(super) struct LagTracker {
    lines: VecDeque<(i64, u64)>,
}

impl LagTracker {
    pub(super) fn grew(&mut self, now_ms: u64, line: i64) {
        let is_full = self.lines.len() >= WAITING_COUNT_MAX;
        match self.lines.back_mut() {
            Some((last, since_ms)) if is_full || now_ms < *since_ms + WAITING_GRAIN_MS => *last = line,
            _ => self.lines.push_back((line, now_ms)),
        }
    }

    pub(super) fn confirmed(&mut self, line: i64) {
        while self.lines.front().is_some_and(|(last, _)| *last <= line) {
            self.lines.pop_front();
        }
    }

    pub(super) fn oldest_ms(&self, cursor: i64) -> Option<u64> {
        self.lines.iter().find(|(last, _)| *last > cursor).map(|(_, since_ms)| *since_ms)
    }
}
