//! Coarse clock and deadlines of one executor: one tick checks all connections, so that no connection arms a timer
//! for each read.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::mem;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use crate::limits::CLOSING_TIMEOUT;

/// Coarse clock of one executor, advanced by [`Self::tick`]. Not shared between threads.
#[derive(Debug)]
pub struct Timers {
    started: Instant,
    now_ms: Cell<u64>,
    date: RefCell<String>,
    date_second: Cell<u64>,
    closing: Cell<bool>,
    deadlines: RefCell<Vec<Weak<Deadline>>>,
}

/// The next deadline of one connection.
#[derive(Debug, Default)]
pub struct Deadline {
    due_ms: Cell<Option<u64>>,
    waker: RefCell<Option<Waker>>,
}

impl Timers {
    /// Creates a clock that starts at zero, and runs its first tick.
    pub fn new() -> Rc<Self> {
        let timers = Self {
            started: Instant::now(),
            now_ms: Cell::new(0),
            date: RefCell::new(String::new()),
            date_second: Cell::new(0),
            closing: Cell::new(false),
            deadlines: RefCell::new(Vec::new()),
        };
        timers.tick();
        Rc::new(timers)
    }

    /// Returns the milliseconds since the clock was created, as of the last tick.
    pub fn now_ms(&self) -> u64 {
        self.now_ms.get()
    }

    /// Returns whether the executor is draining: connections close after their current response.
    pub fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// Runs `use_date` on the text for the `Date` header (RFC 9110, 5.6.7), as of the last tick.
    pub fn with_date<T>(&self, use_date: impl FnOnce(&str) -> T) -> T {
        use_date(&self.date.borrow())
    }

    /// Returns a new deadline for a connection; it is unregistered once the connection has dropped it.
    pub fn deadline(&self) -> Rc<Deadline> {
        let deadline = Rc::new(Deadline::default());
        self.deadlines.borrow_mut().push(Rc::downgrade(&deadline));
        deadline
    }

    /// Runs `work` with a timeout, which drops to one second once the drain has begun: clients that have not sent a
    /// request yet must not delay it.
    ///
    /// # Errors
    /// Returns `TimedOut` after the timeout, or the error of `work`.
    pub async fn with_timeout<T, E>(
        &self,
        timeout: Duration,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E>
    where
        E: From<io::Error>,
    {
        let deadline = self.deadline();
        let set = |timeout: Duration| {
            let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
            deadline.set(Some(self.now_ms().saturating_add(timeout_ms)));
        };
        set(timeout);
        let mut is_shortened = false;
        let mut work = pin!(work);
        poll_fn(|context| {
            if let Poll::Ready(result) = work.as_mut().poll(context) {
                return Poll::Ready(result);
            }
            if self.is_closing() && !mem::replace(&mut is_shortened, true) {
                set(timeout.min(CLOSING_TIMEOUT));
            }
            if deadline.is_due(self.now_ms()) {
                return Poll::Ready(Err(io::Error::from(io::ErrorKind::TimedOut).into()));
            }
            deadline.register(context.waker());
            Poll::Pending
        })
        .await
    }

    /// Advances the clock, and wakes every connection whose deadline has passed.
    pub fn tick(&self) {
        let elapsed = self.started.elapsed();
        self.tick_at(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
    }

    /// Advances the clock like [`Self::tick`], to the given time: a test cannot wait a minute for a deadline.
    pub fn tick_at(&self, now_ms: u64) {
        self.now_ms.set(now_ms);
        let now = jiff::Timestamp::now();
        let second = now.as_second().unsigned_abs();
        if self.date_second.replace(second) != second {
            *self.date.borrow_mut() = now.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        }
        self.wake(|deadline| deadline.is_due(self.now_ms()));
    }

    /// Starts the drain: connections close after their current response, and waiting ones are woken to notice.
    pub fn close(&self) {
        self.closing.set(true);
        self.wake(|_| true);
    }

    fn wake(&self, which: impl Fn(&Deadline) -> bool) {
        self.deadlines.borrow_mut().retain(|deadline| {
            let Some(deadline) = deadline.upgrade() else { return false };
            if which(&deadline)
                && let Some(waker) = deadline.waker.borrow_mut().take()
            {
                waker.wake();
            }
            true
        });
    }
}

impl Deadline {
    /// Sets the time of the wake-up; `None` for never.
    pub fn set(&self, due_ms: Option<u64>) {
        self.due_ms.set(due_ms);
    }

    /// Returns whether the deadline has passed.
    pub fn is_due(&self, now_ms: u64) -> bool {
        self.due_ms.get().is_some_and(|due_ms| due_ms <= now_ms)
    }

    /// Makes the deadline pass immediately, and wakes the waiter.
    pub(super) fn fire(&self) {
        self.due_ms.set(Some(0));
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Stores the waker of the connection that waits.
    pub fn register(&self, waker: &Waker) {
        let mut slot = self.waker.borrow_mut();
        if !slot.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
    }
}
