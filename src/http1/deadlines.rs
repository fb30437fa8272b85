//! When the patience with a client ends, in monotonic milliseconds.

use std::time::Duration;

use super::{connection::Connection, phase::Phase, protocol_error::ProtocolError};
use crate::limits;

impl Connection {
    /// When to call [`Connection::expire`]; `None` while the application owes the next move.
    /// A client that takes its answers too slowly comes before everything else.
    pub fn deadline_ms(&self) -> Option<u64> {
        if !self.outbox.is_empty() {
            return Some(self.outbox.pace().deadline_ms(limits::WRITE_STALL));
        }
        match self.phase {
            Phase::Head if self.inbox.unread().is_empty() => Some(idle(self.since_ms)),
            Phase::Head => Some(head(self.since_ms)),
            Phase::Body(_) => Some(self.body_pace.deadline_ms(limits::BODY_DEADLINE)),
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
            Phase::Head => self.refuse(ProtocolError::HeadTimeout),
            Phase::Body(_) => self.refuse(ProtocolError::BodyTimeout),
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
        assert_eq!(linger(5), 2_005);
        assert_eq!(linger(u64::MAX), u64::MAX);
    }
}
