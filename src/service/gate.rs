//! A gate in front of requests, closed at first.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_channel::oneshot;

use super::Error;

/// Requests that may wait at a time.
const WAITERS_COUNT_MAX: usize = 4096;

/// Requests wait for a limited time until it is open.
#[derive(Debug, Default)]
pub struct Gate {
    is_open: AtomicBool,
    waiting: Mutex<Vec<(Instant, oneshot::Sender<()>)>>,
}

impl Gate {
    /// Whether requests may pass.
    pub fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    /// Lets no more requests pass.
    pub fn close(&self) {
        self.is_open.store(false, Ordering::Release);
    }

    /// Lets all waiting requests pass, and all later ones.
    pub fn open(&self) {
        self.is_open.store(true, Ordering::Release);
        let waiting = std::mem::take(&mut *self.lock());
        for (_, waiter) in waiting {
            // It may be gone.
            waiter.send(()).ok();
        }
    }

    /// Turns away the requests that have waited this long.
    pub fn give_up(&self, patience: Duration) {
        self.lock().retain(|(since, _)| since.elapsed() < patience);
    }

    /// Waits until it is open.
    ///
    /// # Errors
    /// The given one when the request is turned away, [`Error::Busy`] when too many wait.
    pub(super) async fn pass(&self, closed: Error) -> Result<(), Error> {
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
        receiver.await.map_err(|_| closed)
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
    fn requests_pass_once_it_is_open_and_are_turned_away_in_time() {
        let gate = Gate::default();
        let mut waiting = Box::pin(gate.pass(Error::NotJoined));
        let mut late = Box::pin(gate.pass(Error::NoSalt));
        assert!(block_on(poll_once(&mut late)).is_none());
        gate.give_up(Duration::from_secs(3600));
        assert!(block_on(poll_once(&mut late)).is_none());
        gate.give_up(Duration::ZERO);
        assert!(matches!(block_on(late), Err(Error::NoSalt)));
        assert!(block_on(poll_once(&mut waiting)).is_none());
        gate.open();
        assert!(block_on(waiting).is_ok() && gate.is_open());
        assert!(block_on(gate.pass(Error::NotJoined)).is_ok());
        gate.close();
        assert!(block_on(poll_once(&mut Box::pin(gate.pass(Error::NotJoined)))).is_none());
    }
}
