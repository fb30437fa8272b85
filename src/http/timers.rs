//! A shard's coarse time and its deadlines: one tick looks after all connections, so that no
//! connection arms a timer for each read.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::mem;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// How long connections that are just being made have when everything ends.
const CLOSING_PATIENCE: Duration = Duration::from_secs(1);

/// Time as one shard sees it, brought forward by [`Self::tick`]. Not shared between threads.
#[derive(Debug)]
pub struct Timers {
    started: Instant,
    now_ms: Cell<u64>,
    date: RefCell<String>,
    date_second: Cell<u64>,
    closing: Cell<bool>,
    alarms: RefCell<Vec<Weak<Deadline>>>,
}

/// The next deadline of one connection.
#[derive(Debug, Default)]
pub struct Deadline {
    due_ms: Cell<Option<u64>>,
    waker: RefCell<Option<Waker>>,
}

impl Timers {
    /// A clock that stands at zero until the first tick.
    pub fn new() -> Rc<Self> {
        let clock = Self {
            started: Instant::now(),
            now_ms: Cell::new(0),
            date: RefCell::new(String::new()),
            date_second: Cell::new(0),
            closing: Cell::new(false),
            alarms: RefCell::new(Vec::new()),
        };
        clock.tick();
        Rc::new(clock)
    }

    /// Milliseconds since the start, as of the last tick.
    pub fn now_ms(&self) -> u64 {
        self.now_ms.get()
    }

    /// Whether connections shall end after their current answer.
    pub fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// Runs `use_date` on the text for the `Date` header (RFC 9110, 5.6.7), as of the last tick.
    pub fn with_date<T>(&self, use_date: impl FnOnce(&str) -> T) -> T {
        use_date(&self.date.borrow())
    }

    /// A new connection's alarm; it is forgotten when the connection drops it.
    pub fn alarm(&self) -> Rc<Deadline> {
        let alarm = Rc::new(Deadline::default());
        self.alarms.borrow_mut().push(Rc::downgrade(&alarm));
        alarm
    }

    /// What comes of `work` within `patience`, or of a second when everything ends: who has not said yet what it
    /// wants is not waited for.
    ///
    /// # Errors
    /// When there was no time, or from `work`.
    pub async fn in_time<T, E>(
        &self,
        patience: Duration,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E>
    where
        E: From<io::Error>,
    {
        let alarm = self.alarm();
        let set = |patience: Duration| {
            let patience_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
            alarm.set(Some(self.now_ms().saturating_add(patience_ms)));
        };
        set(patience);
        let mut is_last_second = false;
        let mut work = pin!(work);
        poll_fn(|context| {
            if let Poll::Ready(result) = work.as_mut().poll(context) {
                return Poll::Ready(result);
            }
            if self.is_closing() && !mem::replace(&mut is_last_second, true) {
                set(patience.min(CLOSING_PATIENCE));
            }
            if alarm.is_due(self.now_ms()) {
                return Poll::Ready(Err(io::Error::from(io::ErrorKind::TimedOut).into()));
            }
            alarm.register(context.waker());
            Poll::Pending
        })
        .await
    }

    /// Moves on, and wakes every connection whose deadline has passed.
    pub fn tick(&self) {
        let elapsed = self.started.elapsed();
        self.tick_at(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
    }

    /// The same, to a time that the caller says: a test cannot wait a minute for a deadline.
    pub fn tick_at(&self, now_ms: u64) {
        self.now_ms.set(now_ms);
        let now = jiff::Timestamp::now();
        let second = now.as_second().unsigned_abs();
        if self.date_second.replace(second) != second {
            *self.date.borrow_mut() = now.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        }
        self.wake(|alarm| alarm.is_due(self.now_ms()));
    }

    /// From now on connections end after their current answer; those that wait are woken to see it.
    pub fn close(&self) {
        self.closing.set(true);
        self.wake(|_| true);
    }

    fn wake(&self, which: impl Fn(&Deadline) -> bool) {
        self.alarms.borrow_mut().retain(|alarm| {
            let Some(alarm) = alarm.upgrade() else { return false };
            if which(&alarm)
                && let Some(waker) = alarm.waker.borrow_mut().take()
            {
                waker.wake();
            }
            true
        });
    }
}

impl Deadline {
    /// Sets the time to be woken at; `None` for never.
    pub fn set(&self, due_ms: Option<u64>) {
        self.due_ms.set(due_ms);
    }

    /// Whether the deadline has passed.
    pub fn is_due(&self, now_ms: u64) -> bool {
        self.due_ms.get().is_some_and(|due_ms| due_ms <= now_ms)
    }

    /// Passes at once, and wakes who waits.
    pub(super) fn ring(&self) {
        self.due_ms.set(Some(0));
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Remembers whom to wake.
    pub fn register(&self, waker: &Waker) {
        let mut slot = self.waker.borrow_mut();
        if !slot.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
    }
}
