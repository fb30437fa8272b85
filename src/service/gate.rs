//! Gate in front of requests, initially closed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_channel::oneshot;

use super::Error;

/// Maximum number of waiting requests.
const WAITERS_COUNT_MAX: usize = 4096;

/// Gate at which requests wait, for a limited time, until it opens.
#[derive(Debug, Default)]
pub struct Gate {
    is_open: AtomicBool,
    waiting: Mutex<Vec<(Instant, oneshot::Sender<()>)>>,
}

impl Gate {
    /// Returns whether requests may pass.
    pub fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    /// Closes the gate: later requests wait.
    pub fn close(&self) {
        self.is_open.store(false, Ordering::Release);
    }

    /// Opens the gate: all waiting and later requests pass.
    pub fn open(&self) {
        self.is_open.store(true, Ordering::Release);
        let waiting = std::mem::take(&mut *self.lock());
        for (_, waiter) in waiting {
            // Fails if the request was cancelled.
            waiter.send(()).ok();
        }
    }

    /// Rejects the requests that have waited for longer than `timeout`.
    pub fn expire(&self, timeout: Duration) {
        self.lock().retain(|(since, _)| since.elapsed() < timeout);
    }

    /// Waits until the gate is open.
    ///
    /// # Errors
    /// Returns `rejected` if the request is rejected after the timeout, and [`Error::Busy`] if too many requests wait.
    pub(super) async fn pass(&self, rejected: Error) -> Result<(), Error> {
        if self.is_open() {
            return Ok(());
        }
        let receiver = {
            let mut waiting = self.lock();
            if self.is_open() {
                return Ok(());
            }
            if waiting.len() >= WAITERS_COUNT_MAX {
                return Err(Error::Busy);
            }
            let (sender, receiver) = oneshot::channel();
            waiting.retain(|(_, waiter)| !waiter.is_canceled());
            waiting.push((Instant::now(), sender));
            receiver
        };
        receiver.await.map_err(|_| rejected)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Instant, oneshot::Sender<()>)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::{block_on, poll_once};

    use super::*;

    #[test]
    fn requests_wait_until_the_gate_opens_or_are_rejected_after_the_timeout() {
        let gate = Gate::default();
        let mut waiting = Box::pin(gate.pass(Error::NotJoined));
        let mut late = Box::pin(gate.pass(Error::NoSalt));
        assert!(block_on(poll_once(&mut late)).is_none());
        gate.expire(Duration::from_secs(3600));
        assert!(block_on(poll_once(&mut late)).is_none());
        gate.expire(Duration::ZERO);
        assert!(matches!(block_on(late), Err(Error::NoSalt)));
        assert!(block_on(poll_once(&mut waiting)).is_none());
        gate.open();
        assert!(block_on(waiting).is_ok() && gate.is_open());
        assert!(block_on(gate.pass(Error::NotJoined)).is_ok());
        gate.close();
        assert!(block_on(poll_once(&mut Box::pin(gate.pass(Error::NotJoined)))).is_none());
    }
}
