//! Worker of a deriving thread: runs one derivation, or two side by side, as long as any are queued.
//!
//! Two cost little more than one (see [`advance`]), so a queued derivation is started beside a running
//! one at any time. Either may complete, be abandoned or panic while the other continues; alone, a
//! derivation is as fast as if there had never been a second one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::fair_queue::{Busy, FairQueue};
use super::kdf::{Derivation, Salt, advance};
use super::key_cache::DerivationClaim;
use crate::model::{Requester, wipe_stack};

/// Derivation that has not started yet.
pub(super) struct Job {
    pub(super) claim: DerivationClaim,
    pub(super) salt: Salt,
}

/// Queue of derivations, shared by the threads.
pub(super) struct Queue {
    state: Mutex<State>,
    /// Signalled when a job arrives, and when the queue closes.
    changed: Condvar,
}

struct State {
    jobs: FairQueue<Job>,
    idle_threads: usize,
    is_closed: bool,
}

/// Owner of the queue, which closes when the handle is dropped.
pub(super) struct Handle(Arc<Queue>);

/// Running derivations of one thread.
type Lanes = [Option<Running>; 2];

impl Handle {
    /// Creates a queue for at most this many jobs.
    pub(super) fn new(len_max: usize) -> Self {
        Self(Arc::new(Queue::new(len_max)))
    }

    /// Returns the queue, for the threads.
    pub(super) fn queue(&self) -> Arc<Queue> {
        Arc::clone(&self.0)
    }

    /// Queues a job. In a full queue, cancelled jobs are removed to make room, or else one job is
    /// displaced; the waiters of dropped jobs are notified.
    ///
    /// # Errors
    /// Returns [`Busy`] if there is no room for this requester; the job is dropped.
    pub(super) fn push(&self, requester: Requester, job: Job) -> Result<(), Busy> {
        let mut state = self.0.lock();
        let cancelled = match state.jobs.is_full() {
            true => state.jobs.take_if(|job| !job.claim.is_wanted()),
            false => Vec::new(),
        };
        let pushed = state.jobs.push(requester, job);
        drop(state);
        self.0.changed.notify_one();
        // Wakes the waiters, after the lock has been released.
        drop(cancelled);
        pushed.map(drop).map_err(|_refused| Busy)
    }

    /// Returns the number of queued jobs, and the capacity of the queue.
    pub(super) fn len_and_max(&self) -> (usize, usize) {
        let state = self.0.lock();
        (state.jobs.len(), state.jobs.len_max())
    }
}

impl Drop for Handle {
    /// Drops queued jobs; running derivations are completed.
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
        // No critical section panics in the middle of a change, so a poisoned lock is safe to use.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// Derives until the queue is closed and empty.
    pub(super) fn work(&self) {
        let mut lanes = [None, None];
        while self.step(&mut lanes) {}
    }

    /// Starts queued jobs in free lanes, advances the running derivations by one step, and completes those
    /// that are done. Returns false once the queue is closed and all work is done.
    fn step(&self, lanes: &mut Lanes) -> bool {
        if lanes.iter().all(Option::is_none) {
            let Some(job) = self.wait() else { return false };
            lanes[0] = begin(job);
        }
        for lane in lanes.iter_mut().filter(|lane| lane.is_none()) {
            *lane = self.take_second().and_then(begin);
        }
        match lanes {
            [Some(one), Some(other)] => advance([&mut one.derivation, &mut other.derivation]),
            [Some(one), None] | [None, Some(one)] => advance([&mut one.derivation]),
            [None, None] => {}
        }
        // Lets an executor run that has become ready in the meantime. It would otherwise wait for the next
        // tick of the scheduler, up to 4 ms, whatever the nice value of this thread.
        thread::yield_now();
        for lane in lanes {
            if let Some(finished) = lane.take_if(|running| running.is_over()) {
                catch_panic(|| finished.end());
            }
        }
        true
    }

    /// Waits for the next job; returns `None` once the queue is closed and empty.
    fn wait(&self) -> Option<Job> {
        let mut state = self.lock();
        state.idle_threads += 1;
        let is_idle = |state: &mut State| state.jobs.len() == 0 && !state.is_closed;
        state = self.changed.wait_while(state, is_idle).unwrap_or_else(PoisonError::into_inner);
        state.idle_threads -= 1;
        state.jobs.pop()
    }

    /// Takes a job for the second lane, unless an idle thread is about to take it.
    fn take_second(&self) -> Option<Job> {
        let mut state = self.lock();
        if state.jobs.len() > state.idle_threads { state.jobs.pop() } else { None }
    }
}

/// Derivation that has started.
struct Running {
    claim: DerivationClaim,
    salt: Salt,
    /// Boxed, so that a move leaves no copy of the state behind.
    derivation: Box<Derivation>,
}

impl Running {
    fn begin(Job { claim, salt }: Job) -> Option<Self> {
        let derivation = Box::new(claim.begin(&salt)?);
        Some(Self { claim, salt, derivation })
    }

    fn is_over(&self) -> bool {
        self.derivation.is_done() || !self.claim.is_wanted()
    }

    fn end(self) {
        if self.derivation.is_done() {
            self.claim.complete(&self.salt, &self.derivation.key());
        }
    }
}

fn begin(job: Job) -> Option<Running> {
    catch_panic(|| Running::begin(job)).flatten()
}

/// Runs `part` and catches its panic, so that the other derivation continues. The panic hook has printed
/// the panic, and the waiters learn of it because the claim is dropped while the stack unwinds. Keys that
/// were derived or moved in the meantime are wiped from the stack.
fn catch_panic<T>(part: impl FnOnce() -> T) -> Option<T> {
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

    /// Queues the derivation for `text` and returns its waiter.
    fn send(handle: &Handle, cache: &KeyCache, text: &str) -> super::super::Waiter {
        let (claim, waiter) = start(cache, text);
        assert_eq!(handle.push(Requester::default(), Job { claim, salt: salt() }), Ok(()));
        waiter
    }

    /// Completes all queued and running derivations.
    fn run_dry(queue: &Queue, lanes: &mut Lanes) {
        while queue.lock().jobs.len() > 0 || lanes.iter().any(Option::is_some) {
            assert!(queue.step(lanes));
        }
    }

    fn is_of(key: &DerivedKey, text: &str) -> bool {
        let password = UserKey::from_header(text.as_bytes()).password();
        let expected = FernetKey::new(&derive(&password, salt().as_bytes()));
        key.fernet().verifies_raw(&expected.seal_raw(b"", 0))
    }

    #[test]
    fn queued_jobs_are_derived_two_side_by_side() {
        let (cache, handle) = (KeyCache::new(), Handle::new(8));
        let names = ["one", "two", "three"];
        let waiters = names.map(|name| send(&handle, &cache, name));
        let mut lanes = [None, None];
        assert!(handle.0.step(&mut lanes));
        assert_eq!(cache.counts().derivations_started, 2);
        run_dry(&handle.0, &mut lanes);
        for (name, waiter) in names.into_iter().zip(waiters) {
            assert!(is_of(&block_on(waiter).expect("it is derived"), name));
        }
        assert_eq!(cache.counts().derivations_completed, 3);
    }

    #[test]
    fn a_derivation_joins_another_that_is_then_cancelled() {
        let (cache, handle) = (KeyCache::new(), Handle::new(8));
        let first = send(&handle, &cache, "first");
        let mut lanes = [None, None];
        assert!(handle.0.step(&mut lanes));
        let second = send(&handle, &cache, "second");
        assert!(handle.0.step(&mut lanes));
        assert!(matches!(lanes, [Some(_), Some(_)]));
        drop(first);
        assert!(handle.0.step(&mut lanes));
        assert!(matches!(lanes, [None, Some(_)]));
        run_dry(&handle.0, &mut lanes);
        assert!(is_of(&block_on(second).expect("it is derived"), "second"));
        assert_eq!(cache.counts().derivations_completed, 1);
    }

    #[test]
    fn an_idle_thread_gets_the_second_job() {
        let (cache, handle) = (KeyCache::new(), Handle::new(8));
        let waiters = ["one", "two"].map(|name| send(&handle, &cache, name));
        handle.0.lock().idle_threads = 1;
        let mut lanes = [None, None];
        assert!(handle.0.step(&mut lanes));
        assert!(matches!(lanes, [Some(_), None]));
        assert_eq!(handle.len_and_max().0, 1);
        drop(waiters);
    }

    #[test]
    fn cancelled_jobs_are_not_started() {
        let (cache, handle) = (KeyCache::new(), Handle::new(8));
        drop(send(&handle, &cache, "gone"));
        run_dry(&handle.0, &mut [None, None]);
        assert_eq!(cache.counts().derivations_started, 0);
    }

    #[test]
    fn a_panic_does_not_end_the_other_derivation() {
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
