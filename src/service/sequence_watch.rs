//! A number that only grows, and a way to wait for it to grow, from any thread and any executor.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

/// The number and those who wait.
#[derive(Debug, Default)]
pub struct SequenceWatch {
    value: AtomicI64,
    waiting: Mutex<Vec<Waker>>,
}

impl SequenceWatch {
    /// The number now.
    pub fn value(&self) -> i64 {
        self.value.load(Ordering::Acquire)
    }

    /// Raises the number and wakes all who wait.
    pub fn advance(&self, value: i64) {
        self.value.fetch_max(value, Ordering::AcqRel);
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        for waker in waiting {
            waker.wake();
        }
    }

    /// Ready once the number is larger than `seen`.
    pub fn poll_past(&self, seen: i64, context: &Context<'_>) -> Poll<i64> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // Looked at under the lock, so that a raise between the look and the wait is not missed.
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
