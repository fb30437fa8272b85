//! What a deriving thread does: one derivation, or two side by side, for as long as there are any.
//!
//! Two cost little more than one (see [`advance`]), so a second one that waits is taken beside the
//! first whenever it comes. Either may end, be given up or panic, and the other goes on; alone it is
//! as fast as if there had never been another.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::fair_queue::FairQueue;
use super::kdf::{Derivation, Salt, advance};
use super::key_cache::DerivationClaim;
use super::pool::Busy;
use crate::model::{Requester, wipe_stack};

/// A derivation that nobody has begun.
pub(super) struct Job {
    pub(super) ticket: DerivationClaim,
    pub(super) salt: Salt,
}

/// The derivations that wait, for the threads that share them.
pub(super) struct Queue {
    state: Mutex<State>,
    /// Signalled when a job comes, and when the queue closes.
    changed: Condvar,
}

struct State {
    jobs: FairQueue<Job>,
    idle_threads: usize,
    is_closed: bool,
}

/// Closes the queue when it is dropped.
pub(super) struct Handle(Arc<Queue>);

/// What one thread has begun.
type Lanes = [Option<Running>; 2];

impl Handle {
    /// A queue for at most this many jobs.
    pub(super) fn new(len_max: usize) -> Self {
        Self(Arc::new(Queue::new(len_max)))
    }

    /// The queue, for the threads.
    pub(super) fn queue(&self) -> Arc<Queue> {
        Arc::clone(&self.0)
    }

    /// Queues a job. Jobs that were cancelled, then a displaced one, make room in a full queue; their
    /// waiters learn of it.
    ///
    /// # Errors
    /// [`Busy`] when there is no room for this requester; the job is dropped.
    pub(super) fn push(&self, requester: Requester, job: Job) -> Result<(), Busy> {
        let mut state = self.0.lock();
        let cancelled = match state.jobs.is_full() {
            true => state.jobs.take_if(|job| !job.ticket.is_wanted()),
            false => Vec::new(),
        };
        let pushed = state.jobs.push(requester, job);
        drop(state);
        self.0.changed.notify_one();
        // The lock is free again while waiters wake.
        drop(cancelled);
        pushed.map(drop).map_err(|_refused| Busy)
    }

    /// How many jobs wait, and how many may.
    pub(super) fn len_and_max(&self) -> (usize, usize) {
        let state = self.0.lock();
        (state.jobs.len(), state.jobs.len_max())
    }
}

impl Drop for Handle {
    /// What is queued is dropped; what runs is finished.
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_closed = true;
        let abandoned = state.jobs.take_if(|_| true);
        drop(state);
        self.0.changed.notify_all();
        drop(abandoned);
    }
}

impl Queue {
    fn new(len_max: usize) -> Self {
        let state = State { jobs: FairQueue::new(len_max), idle_threads: 0, is_closed: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in a critical section panics half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// Derives until the queue is closed and empty.
    pub(super) fn work(&self) {
        let mut seats = [None, None];
        while self.turn(&mut seats) {}
    }

    /// Takes what there is to take, goes a step on with it, and hands out what is done. False when
    /// there will be nothing any more.
    fn turn(&self, seats: &mut Lanes) -> bool {
        if seats.iter().all(Option::is_none) {
            let Some(job) = self.wait() else { return false };
            seats[0] = begin(job);
        }
        for seat in seats.iter_mut().filter(|seat| seat.is_none()) {
            *seat = self.take_second().and_then(begin);
        }
        match seats {
            [Some(one), Some(other)] => advance([&mut one.derivation, &mut other.derivation]),
            [Some(one), None] | [None, Some(one)] => advance([&mut one.derivation]),
            [None, None] => {}
        }
        // An executor that became ready meanwhile goes on now. It would wait for the next tick of the
        // scheduler otherwise, up to 4 ms, however nice this thread is.
        thread::yield_now();
        for seat in seats {
            if let Some(over) = seat.take_if(|running| running.is_over()) {
                contain(|| over.end());
            }
        }
        true
    }

    /// The next job; `None` once the queue is closed and empty.
    fn wait(&self) -> Option<Job> {
        let mut state = self.lock();
        state.idle_threads += 1;
        let is_idle = |state: &mut State| state.jobs.len() == 0 && !state.is_closed;
        state = self.changed.wait_while(state, is_idle).unwrap_or_else(PoisonError::into_inner);
        state.idle_threads -= 1;
        state.jobs.pop()
    }

    /// A job beside another one, unless a thread that has none is about to take it.
    fn take_second(&self) -> Option<Job> {
        let mut state = self.lock();
        if state.jobs.len() > state.idle_threads { state.jobs.pop() } else { None }
    }
}

/// A derivation that has begun.
struct Running {
    ticket: DerivationClaim,
    salt: Salt,
    /// In a place of its own, so that moving it leaves no copy behind.
    derivation: Box<Derivation>,
}

impl Running {
    fn begin(Job { ticket, salt }: Job) -> Option<Self> {
        let derivation = Box::new(ticket.begin(&salt)?);
        Some(Self { ticket, salt, derivation })
    }

    fn is_over(&self) -> bool {
        self.derivation.is_done() || !self.ticket.is_wanted()
    }

    fn end(self) {
        if self.derivation.is_done() {
            self.ticket.complete(&self.salt, &self.derivation.key());
        }
    }
}

fn begin(job: Job) -> Option<Running> {
    contain(|| Running::begin(job)).flatten()
}

/// Keeps a panic from the other derivation. It has been printed by its hook, and whoever waits learns
/// of it because the ticket is dropped as the stack unwinds. Keys that were made or moved meanwhile are wiped from
/// the stack.
fn contain<T>(part: impl FnOnce() -> T) -> Option<T> {
    let result = catch_unwind(AssertUnwindSafe(part)).ok();
    wipe_stack::<16384>();
    result
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Wake};

    use futures_lite::future::block_on;

    use super::super::test_data::{salt, start};
    use super::super::{DerivedKey, FernetKey, KeyCache, derive};
    use super::*;
    use crate::model::UserKey;

    /// Queues the derivation for `text` and returns who waits for it.
    fn send(handle: &Handle, cache: &KeyCache, text: &str) -> super::super::Waiter {
        let (ticket, waiter) = start(cache, text);
        assert_eq!(handle.push(Requester::default(), Job { ticket, salt: salt() }), Ok(()));
        waiter
    }

    /// Derives what is queued and what has begun.
    fn run_dry(queue: &Queue, seats: &mut Lanes) {
        while queue.lock().jobs.len() > 0 || seats.iter().any(Option::is_some) {
            assert!(queue.turn(seats));
        }
    }

    fn is_of(key: &DerivedKey, text: &str) -> bool {
        let password = UserKey::from_header(text.as_bytes()).password();
        let expected = FernetKey::new(&derive(&password, salt().as_bytes()));
        key.fernet().verifies_raw(&expected.seal_raw(b"", 0))
    }

    #[test]
    fn everything_that_is_queued_is_derived_two_at_a_time() {
        let (cache, handle) = (KeyCache::new(), Handle::new(8));
        let names = ["one", "two", "three"];
        let waiters = names.map(|name| send(&handle, &cache, name));
        let mut seats = [None, None];
        assert!(handle.0.turn(&mut seats));
        assert_eq!(cache.counts().derivations_started, 2);
        run_dry(&handle.0, &mut seats);
        for (name, waiter) in names.into_iter().zip(waiters) {
            assert!(is_of(&block_on(waiter).expect("it is derived"), name));
        }
        assert_eq!(cache.counts().derivations_completed, 3);
    }

    #[test]
    fn one_comes_late_and_the_other_is_given_up() {
        let (cache, handle) = (KeyCache::new(), Handle::new(8));
        let first = send(&handle, &cache, "first");
        let mut seats = [None, None];
        assert!(handle.0.turn(&mut seats));
        let second = send(&handle, &cache, "second");
        assert!(handle.0.turn(&mut seats));
        assert!(matches!(seats, [Some(_), Some(_)]));
        drop(first);
        assert!(handle.0.turn(&mut seats));
        assert!(matches!(seats, [None, Some(_)]));
        run_dry(&handle.0, &mut seats);
        assert!(is_of(&block_on(second).expect("it is derived"), "second"));
        assert_eq!(cache.counts().derivations_completed, 1);
    }

    #[test]
    fn a_thread_without_work_gets_the_second() {
        let (cache, handle) = (KeyCache::new(), Handle::new(8));
        let waiters = ["one", "two"].map(|name| send(&handle, &cache, name));
        handle.0.lock().idle_threads = 1;
        let mut seats = [None, None];
        assert!(handle.0.turn(&mut seats));
        assert!(matches!(seats, [Some(_), None]));
        assert_eq!(handle.len_and_max().0, 1);
        drop(waiters);
    }

    #[test]
    fn what_nobody_waits_for_is_not_begun() {
        let (cache, handle) = (KeyCache::new(), Handle::new(8));
        drop(send(&handle, &cache, "gone"));
        run_dry(&handle.0, &mut [None, None]);
        assert_eq!(cache.counts().derivations_started, 0);
    }

    #[test]
    fn a_panic_is_not_the_end_of_the_other() {
        struct Panics;
        impl Wake for Panics {
            fn wake(self: Arc<Self>) {
                panic!("on purpose");
            }
        }
        let (cache, handle) = (KeyCache::new(), Handle::new(8));
        let [mut panics, waits] = ["panics", "waits"].map(|name| send(&handle, &cache, name));
        let waker = Arc::new(Panics).into();
        assert!(Pin::new(&mut panics).poll(&mut Context::from_waker(&waker)).is_pending());
        run_dry(&handle.0, &mut [None, None]);
        assert!(is_of(&block_on(waits).expect("it is derived"), "waits"));
    }
}
