//! Timer of a thread, for code that waits on an executor without knowing its engine.
//!
//! Each executor installs the timer of its engine on its own thread, so a wait ends on the thread that needs it.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use futures_lite::future::or;

/// Future that resolves after a delay, on the thread that has created it.
pub type Sleep = Pin<Box<dyn Future<Output = ()>>>;

/// Function that returns a future for a delay.
type Timer = Box<dyn Fn(Duration) -> Sleep>;

thread_local! {
    static TIMER: RefCell<Option<Timer>> = const { RefCell::new(None) };
}

/// Installs the timer of this thread, a function that returns a future for a delay.
pub fn install(timer: impl Fn(Duration) -> Sleep + 'static) {
    TIMER.set(Some(Box::new(timer)));
}

/// Returns a future that resolves after a delay.
///
/// # Panics
/// Panics on a thread without a timer, where the caller would wait indefinitely.
pub fn sleep(delay: Duration) -> Sleep {
    TIMER.with_borrow(|timer| timer.as_ref().expect("only executors wait, and each has a timer")(delay))
}

/// Runs `work`, but not for longer than `timeout`; returns `None` after that.
///
/// # Panics
/// Panics on a thread without a timer, if `work` has to wait.
pub async fn timeout<T>(timeout: Duration, work: impl Future<Output = T>) -> Option<T> {
    let expiry = async {
        sleep(timeout).await;
        None
    };
    or(async { Some(work.await) }, expiry).await
}

/// Timer that a test advances.
#[cfg(test)]
pub(crate) mod manual {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::rc::Rc;
    use std::task::Poll;
    use std::time::Duration;

    /// Timer of this thread. Wakes no task: a test polls what it expects to have ended.
    #[derive(Default)]
    pub(crate) struct ManualTimer(Rc<Cell<Duration>>);

    impl ManualTimer {
        pub(crate) fn install() -> Self {
            let timer = Self::default();
            let now = Rc::clone(&timer.0);
            super::install(move |delay| {
                let (now, due) = (Rc::clone(&now), now.get() + delay);
                Box::pin(poll_fn(move |_| if now.get() < due { Poll::Pending } else { Poll::Ready(()) }))
            });
            timer
        }

        pub(crate) fn advance(&self, by: Duration) {
            self.0.set(self.0.get() + by);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::pin::pin;
    use std::thread;

    use futures_lite::future::{block_on, poll_once};

    use super::manual::ManualTimer;
    use super::*;

    #[test]
    fn a_timeout_ends_only_work_that_takes_longer() {
        let (timer, limit) = (ManualTimer::install(), Duration::from_secs(5));
        let mut endless = pin!(timeout(limit, pending::<()>()));
        let mut shorter = pin!(timeout(limit, sleep(limit / 2)));
        assert!(block_on(poll_once(&mut endless)).is_none() && block_on(poll_once(&mut shorter)).is_none());
        timer.advance(limit - Duration::from_millis(1));
        assert_eq!(block_on(poll_once(endless.as_mut())), None, "it has not expired yet");
        timer.advance(Duration::from_millis(1));
        assert_eq!(block_on(endless), None);
        assert_eq!(block_on(shorter), Some(()), "its work is polled before its expiry");
    }

    #[test]
    fn a_wait_without_a_timer_panics() {
        let wait = || block_on(timeout(Duration::ZERO, pending::<()>()));
        assert!(thread::spawn(wait).join().is_err());
        let no_wait = || block_on(timeout(Duration::ZERO, ready(7)));
        assert_eq!(thread::spawn(no_wait).join().expect("it does not wait"), Some(7));
    }
}
