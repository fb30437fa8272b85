//! Client deadlines of a connection, in monotonic milliseconds.

use std::time::Duration;

use super::{connection::Connection, phase::Phase, protocol_error::ProtocolError};
use crate::limits;

impl Connection {
    /// Returns the time to call [`Connection::expire`]; `None` while the next step is up to the application. The
    /// deadline of a client that reads its responses too slowly takes precedence over all others.
    pub fn deadline_ms(&self) -> Option<u64> {
        if !self.write_buffer.is_empty() {
            return Some(self.write_buffer.pace().deadline_ms(limits::WRITE_STALL));
        }
        match self.phase {
            Phase::Head if self.read_buffer.unread().is_empty() => Some(match self.is_closing {
                true => after(self.since_ms, limits::CLOSING_TIMEOUT),
                false => idle(self.since_ms),
            }),
            Phase::Head => Some(head(self.since_ms)),
            Phase::Body(_) => Some(self.body_pace.deadline_ms(limits::BODY_DEADLINE)),
            Phase::Lingering => Some(linger(self.since_ms)),
            Phase::Deciding | Phase::Responding | Phase::Streaming(_) => None,
            Phase::Rejected(_) | Phase::Closed => None,
        }
    }

    /// Acts on a deadline that has passed, and does nothing if none has. The next step shows the consequence.
    pub fn expire(&mut self, now_ms: u64) {
        if self.deadline_ms().is_none_or(|deadline_ms| now_ms < deadline_ms) {
            return;
        }
        if !self.write_buffer.is_empty() {
            self.write_buffer.discard();
            return self.close();
        }
        match self.phase {
            // A response now would be taken for the response to a request that the client is about to send.
            Phase::Head if self.read_buffer.unread().is_empty() => self.linger(now_ms),
            Phase::Head => self.reject(ProtocolError::HeadTimeout),
            Phase::Body(_) => self.reject(ProtocolError::BodyTimeout),
            _ => self.close(),
        }
    }
}

/// Returns when a connection on which no request has begun is closed.
fn idle(since_ms: u64) -> u64 {
    after(since_ms, limits::KEEP_ALIVE_IDLE)
}

/// Returns when a head must be complete. Counted from its first byte and not from its last: otherwise a byte now and
/// then would hold a connection indefinitely.
fn head(since_ms: u64) -> u64 {
    after(since_ms, limits::HEAD_DEADLINE)
}

/// Returns when a closing connection stops reading and discarding.
fn linger(since_ms: u64) -> u64 {
    after(since_ms, limits::LINGER)
}

fn after(since_ms: u64, timeout: Duration) -> u64 {
    since_ms.saturating_add(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX))
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
