//! Monotonic counter that any thread or executor can wait on.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::storage::{Commit, Subscriber};

/// Monotonic counter and its waiters.
#[derive(Debug, Default)]
pub struct SequenceWatch {
    value: AtomicI64,
    waiting: Mutex<Vec<Waker>>,
}

impl SequenceWatch {
    /// Returns the current value.
    pub fn value(&self) -> i64 {
        self.value.load(Ordering::Acquire)
    }

    /// Advances the counter to `value`, unless it is already higher, and wakes all waiters.
    pub fn advance(&self, value: i64) {
        self.value.fetch_max(value, Ordering::AcqRel);
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        for waker in waiting {
            waker.wake();
        }
    }

    /// Returns the value once it is larger than `seen`; until then, registers the waker.
    pub fn poll_past(&self, seen: i64, context: &Context<'_>) -> Poll<i64> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // Read under the lock, so that an advance between the read and the registration is not missed.
        let value = self.value();
        if value > seen {
            return Poll::Ready(value);
        }
        if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            waiting.push(context.waker().clone());
        }
        Poll::Pending
    }
}

/// Watches the last position in the replication log.
impl Subscriber for SequenceWatch {
    fn opened(&self, log_position: Option<i64>) {
        log_position.into_iter().for_each(|position| self.advance(position));
    }

    fn publish(&self, commit: &Commit) {
        commit.log_position.into_iter().for_each(|position| self.advance(position));
    }
}
