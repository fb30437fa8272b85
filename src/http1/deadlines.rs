//! When the patience with a client ends, in monotonic milliseconds.

use std::time::Duration;

use super::{connection::Connection, phase::Phase, rejection::Rejection};
use crate::limits;

impl Connection {
    /// When to call [`Connection::expire`]; `None` while the application owes the next move.
    /// A client that takes its answers too slowly comes before everything else.
    pub fn deadline_ms(&self) -> Option<u64> {
        if !self.outbox.is_empty() {
            return Some(stall(self.outbox.progress_ms()));
        }
        match self.phase {
            Phase::Head if self.inbox.unread().is_empty() => Some(idle(self.since_ms)),
            Phase::Head => Some(head(self.since_ms)),
            Phase::Body(_) => Some(body(self.since_ms, self.body.len())),
            Phase::Lingering => Some(linger(self.since_ms)),
            Phase::Deciding | Phase::Answering | Phase::Streaming(_) => None,
            Phase::Refused(_) | Phase::Closed => None,
        }
    }

    /// Acts on a deadline that has passed, and does nothing where none has. The next step tells
    /// what follows.
    pub fn expire(&mut self, now_ms: u64) {
        if self.deadline_ms().is_none_or(|deadline_ms| now_ms < deadline_ms) {
            return;
        }
        if !self.outbox.is_empty() {
            self.outbox.discard();
            return self.close();
        }
        match self.phase {
            // An answer here would be taken for that to a request the client is about to send.
            Phase::Head if self.inbox.unread().is_empty() => self.linger(now_ms),
            Phase::Head => self.refuse(Rejection::HeadTimeout),
            Phase::Body(_) => self.refuse(Rejection::BodyTimeout),
            _ => self.close(),
        }
    }
}

/// When a connection on which no request has begun is closed.
fn idle(since_ms: u64) -> u64 {
    after(since_ms, limits::KEEP_ALIVE_IDLE)
}

/// When a head must be complete. Counted from its first byte and not from its last, or one byte now
/// and then would hold a connection for ever.
fn head(since_ms: u64) -> u64 {
    after(since_ms, limits::HEAD_DEADLINE)
}

/// When a body must be complete; grows with what has arrived, so that size alone is no fault.
fn body(since_ms: u64, bytes_count: usize) -> u64 {
    let bytes_count = u64::try_from(bytes_count).unwrap_or(u64::MAX);
    let earned_ms = bytes_count.saturating_mul(1000) / limits::BODY_BYTES_PER_SECOND_MIN;
    after(since_ms, limits::BODY_DEADLINE).saturating_add(earned_ms)
}

/// When a client that takes no byte of an answer is dropped.
fn stall(progress_ms: u64) -> u64 {
    after(progress_ms, limits::WRITE_STALL)
}

/// When a closing connection stops to read and discard.
fn linger(since_ms: u64) -> u64 {
    after(since_ms, limits::LINGER)
}

fn after(since_ms: u64, patience: Duration) -> u64 {
    since_ms.saturating_add(u64::try_from(patience.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_counted_from_their_start() {
        assert_eq!(idle(5), 60_005);
        assert_eq!(head(5), 10_005);
        assert_eq!(stall(5), 10_005);
        assert_eq!(linger(5), 2_005);
        assert_eq!(linger(u64::MAX), u64::MAX);
    }

    #[test]
    fn a_body_earns_a_second_for_each_kibibyte() {
        assert_eq!(body(5, 0), 10_005);
        assert_eq!(body(5, 512), 10_505);
        assert_eq!(body(5, 1024 * 1024), 10_005 + 1_024_000);
    }
}
