//! What a deriving thread does: one derivation, or two side by side, for as long as there are any.
//!
//! Two cost little more than one (see [`advance`]), so a second one that waits is taken beside the
//! first whenever it comes. Either may end, be given up or panic, and the other goes on; alone it is
//! as fast as if there had never been another.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;

use crossbeam_channel::Receiver;

use super::kdf::{Derivation, Salt, advance};
use super::key_cache::Ticket;

/// A derivation that nobody has begun.
pub(super) struct Job {
    pub(super) ticket: Ticket,
    pub(super) salt: Salt,
}

/// The derivations that wait, for the threads that share them.
pub(super) struct Queue {
    jobs: Receiver<Job>,
    idle_threads: AtomicUsize,
    is_stopping: AtomicBool,
}

/// What one thread has begun.
type Seats = [Option<Running>; 2];

impl Queue {
    pub(super) fn new(jobs: Receiver<Job>) -> Self {
        Self { jobs, idle_threads: AtomicUsize::new(0), is_stopping: AtomicBool::new(false) }
    }

    /// From now on what is queued is dropped; what runs is finished.
    pub(super) fn stop(&self) {
        self.is_stopping.store(true, Relaxed);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Relaxed)
    }

    /// Derives until the queue is closed and empty.
    pub(super) fn work(&self) {
        let mut seats = [None, None];
        while self.turn(&mut seats) {}
    }

    /// Takes what there is to take, goes a step on with it, and hands out what is done. False when
    /// there will be nothing any more.
    fn turn(&self, seats: &mut Seats) -> bool {
        if seats.iter().all(Option::is_none) {
            let Some(job) = self.wait() else { return false };
            seats[0] = self.begin(job);
        }
        for seat in seats.iter_mut().filter(|seat| seat.is_none()) {
            *seat = self.spare().and_then(|job| self.begin(job));
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

    fn wait(&self) -> Option<Job> {
        self.idle_threads.fetch_add(1, Relaxed);
        let job = self.jobs.recv().ok();
        self.idle_threads.fetch_sub(1, Relaxed);
        job
    }

    /// A job beside another one, unless a thread that has none is about to take it.
    fn spare(&self) -> Option<Job> {
        let is_spare = self.jobs.len() > self.idle_threads.load(Relaxed);
        if is_spare { self.jobs.try_recv().ok() } else { None }
    }

    fn begin(&self, job: Job) -> Option<Running> {
        if self.is_stopping() {
            return None;
        }
        contain(|| Running::begin(job)).flatten()
    }
}

/// A derivation that has begun.
struct Running {
    ticket: Ticket,
    salt: Salt,
    derivation: Derivation,
}

impl Running {
    fn begin(Job { ticket, salt }: Job) -> Option<Self> {
        let derivation = ticket.begin(&salt)?;
        Some(Self { ticket, salt, derivation })
    }

    fn is_over(&self) -> bool {
        self.derivation.is_done() || !self.ticket.is_wanted()
    }

    fn end(self) {
        if self.derivation.is_done() {
            self.ticket.complete(&self.salt, &self.derivation.into_key());
        }
    }
}

/// Keeps a panic from the other derivation. It has been printed by its hook, and whoever waits learns
/// of it because the ticket is dropped as the stack unwinds.
fn contain<T>(part: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(part)).ok()
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Wake};

    use crossbeam_channel::{Sender, unbounded};
    use futures_lite::future::block_on;

    use super::super::test_data::{salt, start};
    use super::super::{DerivedKey, FernetKey, KeyCache, derive};
    use super::*;
    use crate::model::UserKey;

    fn queue() -> (Sender<Job>, Queue) {
        let (sender, jobs) = unbounded();
        (sender, Queue::new(jobs))
    }

    /// Queues the derivation for `text` and returns who waits for it.
    fn send(sender: &Sender<Job>, cache: &KeyCache, text: &str) -> super::super::Waiter {
        let (ticket, waiter) = start(cache, text);
        assert!(sender.send(Job { ticket, salt: salt() }).is_ok());
        waiter
    }

    fn is_of(key: &DerivedKey, text: &str) -> bool {
        let password = UserKey::from_header(text.as_bytes()).password();
        let expected = FernetKey::new(&derive(&password, salt().as_bytes()));
        key.fernet().verifies_raw(&expected.seal_raw(b"", 0))
    }

    #[test]
    fn everything_that_is_queued_is_derived_two_at_a_time() {
        let (cache, (sender, queue)) = (KeyCache::new(), queue());
        let names = ["one", "two", "three"];
        let waiters = names.map(|name| send(&sender, &cache, name));
        drop(sender);
        let mut seats = [None, None];
        assert!(queue.turn(&mut seats));
        assert_eq!(cache.counts().derivations_started, 2);
        while queue.turn(&mut seats) {}
        for (name, waiter) in names.into_iter().zip(waiters) {
            assert!(is_of(&block_on(waiter).expect("it is derived"), name));
        }
        assert_eq!(cache.counts().derivations_completed, 3);
    }

    #[test]
    fn one_comes_late_and_the_other_is_given_up() {
        let (cache, (sender, queue)) = (KeyCache::new(), queue());
        let first = send(&sender, &cache, "first");
        let mut seats = [None, None];
        assert!(queue.turn(&mut seats));
        let second = send(&sender, &cache, "second");
        assert!(queue.turn(&mut seats));
        assert!(matches!(seats, [Some(_), Some(_)]));
        drop(first);
        assert!(queue.turn(&mut seats));
        assert!(matches!(seats, [None, Some(_)]));
        drop(sender);
        while queue.turn(&mut seats) {}
        assert!(is_of(&block_on(second).expect("it is derived"), "second"));
        assert_eq!(cache.counts().derivations_completed, 1);
    }

    #[test]
    fn a_thread_without_work_gets_the_second() {
        let (cache, (sender, queue)) = (KeyCache::new(), queue());
        let waiters = ["one", "two"].map(|name| send(&sender, &cache, name));
        queue.idle_threads.store(1, Relaxed);
        let mut seats = [None, None];
        assert!(queue.turn(&mut seats));
        assert!(matches!(seats, [Some(_), None]));
        assert_eq!(queue.jobs.len(), 1);
        drop(waiters);
    }

    #[test]
    fn what_nobody_waits_for_is_not_begun() {
        let (cache, (sender, queue)) = (KeyCache::new(), queue());
        drop(send(&sender, &cache, "gone"));
        drop(sender);
        queue.work();
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
        let (cache, (sender, queue)) = (KeyCache::new(), queue());
        let [mut panics, waits] = ["panics", "waits"].map(|name| send(&sender, &cache, name));
        let waker = Arc::new(Panics).into();
        assert!(Pin::new(&mut panics).poll(&mut Context::from_waker(&waker)).is_pending());
        drop(sender);
        queue.work();
        assert!(is_of(&block_on(waits).expect("it is derived"), "waits"));
    }
}
