//! Gate in front of requests, initially closed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_channel::oneshot;

use super::Error;
use crate::limits::GATE_WAITERS_COUNT_MAX;
use crate::timer;

/// Gate at which requests wait, for a limited time, until it opens.
#[derive(Debug)]
pub struct Gate {
    is_open: AtomicBool,
    waiting: Mutex<Vec<oneshot::Sender<()>>>,
    timeout: Duration,
}

impl Gate {
    /// Creates a closed gate at which requests wait for at most `timeout`.
    pub(super) fn new(timeout: Duration) -> Self {
        Self { is_open: AtomicBool::new(false), waiting: Mutex::default(), timeout }
    }

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
        for waiter in waiting {
            // Fails if the request was cancelled or rejected.
            waiter.send(()).ok();
        }
    }

    /// Waits until the gate is open.
    ///
    /// # Errors
    /// Returns `rejected` after the timeout, and [`Error::Busy`] if too many requests wait.
    pub(super) async fn pass(&self, rejected: Error) -> Result<(), Error> {
        if self.is_open() {
            return Ok(());
        }
        let receiver = {
            let mut waiting = self.lock();
            if self.is_open() {
                return Ok(());
            }
            waiting.retain(|waiter| !waiter.is_canceled());
            if waiting.len() >= GATE_WAITERS_COUNT_MAX {
                return Err(Error::Busy);
            }
            let (sender, receiver) = oneshot::channel();
            waiting.push(sender);
            receiver
        };
        match timer::timeout(self.timeout, receiver).await {
            Some(Ok(())) => Ok(()),
            _ => Err(rejected),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<oneshot::Sender<()>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::{block_on, poll_once};

    use super::*;
    use crate::timer::manual::ManualTimer;

    const TIMEOUT: Duration = Duration::from_secs(5);

    #[test]
    fn requests_wait_until_the_gate_opens_or_are_rejected_after_the_timeout() {
        let (timer, gate) = (ManualTimer::install(), Gate::new(TIMEOUT));
        let mut late = Box::pin(gate.pass(Error::NoSalt));
        assert!(block_on(poll_once(&mut late)).is_none());
        timer.advance(TIMEOUT - Duration::from_millis(1));
        let mut waiting = Box::pin(gate.pass(Error::NotJoined));
        assert!(block_on(poll_once(&mut waiting)).is_none());
        assert!(block_on(poll_once(&mut late)).is_none());
        timer.advance(Duration::from_millis(1));
        assert!(matches!(block_on(late), Err(Error::NoSalt)));
        assert!(block_on(poll_once(&mut waiting)).is_none());
        gate.open();
        assert!(block_on(waiting).is_ok() && gate.is_open());
        assert!(block_on(gate.pass(Error::NotJoined)).is_ok());
        gate.close();
        assert!(block_on(poll_once(&mut Box::pin(gate.pass(Error::NotJoined)))).is_none());
    }

    #[test]
    fn requests_that_no_longer_wait_leave_room() {
        let (timer, gate) = (ManualTimer::install(), Gate::new(TIMEOUT));
        let pass = || Box::pin(gate.pass(Error::NoSalt));
        let mut waiting: Vec<_> = (0..GATE_WAITERS_COUNT_MAX).map(|_| pass()).collect();
        assert!(waiting.iter_mut().all(|waiting| block_on(poll_once(waiting)).is_none()));
        assert!(matches!(block_on(pass()), Err(Error::Busy)));
        timer.advance(TIMEOUT);
        assert!(waiting.into_iter().all(|waiting| matches!(block_on(waiting), Err(Error::NoSalt))));
        assert!(block_on(poll_once(&mut pass())).is_none());
    }
}
