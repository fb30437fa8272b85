//! The threads that derive keys.

use std::fmt;
use std::io;

use super::fair_queue::Busy;
use super::kdf::Salt;
use super::kdf_worker;
use super::key_cache::DerivationClaim;
use crate::model::Requester;
use crate::threads::NicedThreads;

/// Threads that derive keys, and their bounded queue, which is shared fairly between requesters. If it is dropped
/// without [`Self::stop`], the threads exit on their own and are not joined.
pub struct KeyDeriver {
    jobs: kdf_worker::Handle,
    threads: NicedThreads,
}

impl fmt::Debug for KeyDeriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyDeriver").field("queued", &self.queued_count()).finish_non_exhaustive()
    }
}

impl KeyDeriver {
    /// Starts the threads (zero counts as one), named `osc-derive-N` and niced, with a queue of this length.
    ///
    /// # Errors
    /// Fails if the operating system refuses a thread.
    pub fn start(threads: usize, queue_max: usize) -> io::Result<Self> {
        let jobs = kdf_worker::Handle::new(queue_max);
        let queue = jobs.queue();
        let threads = NicedThreads::start("osc-derive", threads, move || queue.work())?;
        Ok(Self { jobs, threads })
    }

    /// Queues a derivation; its claim delivers the result. The derivation is dropped if it is still queued
    /// at the stop, or if the job of another requester displaces it from a full queue.
    ///
    /// # Errors
    /// Returns [`Busy`] if the queue is full; the claim is dropped.
    pub fn derive(&self, claim: DerivationClaim, salt: Salt, requester: Requester) -> Result<(), Busy> {
        self.jobs.push(requester, kdf_worker::Job { claim, salt })
    }

    /// Returns the number of queued derivations.
    pub fn queued_count(&self) -> usize {
        self.jobs.len_and_max().0
    }

    /// Returns the capacity of the queue.
    pub fn queue_max(&self) -> usize {
        self.jobs.len_and_max().1
    }

    /// Closes the queue, and waits until the threads have completed the running derivations.
    pub fn stop(self) {
        drop(self.jobs);
        self.threads.join();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::{Arc, Mutex, mpsc};
    use std::task::{Context, Wake};
    use std::thread;

    use futures_lite::future::block_on;

    use super::super::test_data::{salt, start};
    use super::super::{KeyCache, Waiter};
    use super::*;

    fn deriver(queue_max: usize) -> KeyDeriver {
        KeyDeriver::start(1, queue_max).expect("threads can be started")
    }

    /// Waker that runs a closure on the thread that has derived a key.
    struct Then<F>(Mutex<Option<F>>);

    impl<F: FnOnce() + Send + 'static> Wake for Then<F> {
        fn wake(self: Arc<Self>) {
            let then = self.0.lock().expect("no thread panics").take();
            then.expect("the waker is woken once")();
        }
    }

    /// Derives a key and calls `then` on the thread that has derived it.
    fn derive_then(deriver: &KeyDeriver, text: &str, then: impl FnOnce() + Send + 'static) -> Waiter {
        let (claim, mut waiter) = start(&KeyCache::new(), text);
        let waker = Arc::new(Then(Mutex::new(Some(then)))).into();
        assert!(Pin::new(&mut waiter).poll(&mut Context::from_waker(&waker)).is_pending());
        deriver.derive(claim, salt(), Requester::default()).expect("there is room");
        waiter
    }

    /// Occupies the thread until the returned sender is dropped.
    fn occupy(deriver: &KeyDeriver) -> (mpsc::Sender<()>, Waiter) {
        let (release, released) = mpsc::channel::<()>();
        let (derived, is_derived) = mpsc::channel();
        let waiter = derive_then(deriver, "occupies", move || {
            derived.send(()).expect("the test waits for it");
            released.recv().ok();
        });
        is_derived.recv().expect("it is derived");
        (release, waiter)
    }

    #[test]
    fn keys_are_derived_on_named_threads() {
        let deriver = deriver(8);
        let (sender, names) = mpsc::channel();
        let _waiter = derive_then(&deriver, "key", move || {
            sender.send(thread::current().name().map(str::to_owned)).expect("the test waits for it");
        });
        assert_eq!(names.recv().expect("it is derived").as_deref(), Some("osc-derive-0"));
        deriver.stop();
    }

    #[test]
    fn a_full_queue_refuses_derivations() {
        let (deriver, cache) = (deriver(2), KeyCache::new());
        let (release, _occupies) = occupy(&deriver);
        let queued = ["one", "two"].map(|text| {
            let (claim, waiter) = start(&cache, text);
            deriver.derive(claim, salt(), Requester::default()).expect("there is room");
            waiter
        });
        let (claim, refused) = start(&cache, "three");
        assert_eq!(deriver.derive(claim, salt(), Requester::default()), Err(Busy));
        assert!(block_on(refused).is_err());
        assert_eq!((deriver.queued_count(), deriver.queue_max()), (2, 2));
        drop(release);
        assert!(queued.into_iter().all(|waiter| block_on(waiter).is_ok()));
        deriver.stop();
    }

    #[test]
    fn another_requester_displaces_the_newest_job_of_a_flood() {
        let (deriver, cache) = (deriver(4), KeyCache::new());
        let (release, _occupies) = occupy(&deriver);
        let flood = Requester { network: None, api_key: Some(7) };
        let derive = |text: &str, requester| {
            let (claim, waiter) = start(&cache, text);
            (deriver.derive(claim, salt(), requester), waiter)
        };
        let mut flooding: Vec<Waiter> = Vec::new();
        for text in ["1", "2", "3", "4"] {
            let (queued, waiter) = derive(text, flood);
            assert_eq!(queued, Ok(()));
            flooding.push(waiter);
        }
        assert_eq!(derive("5", flood).0, Err(Busy));
        let (queued, honest) = derive("honest", Requester::default());
        assert_eq!(queued, Ok(()));
        let displaced = flooding.pop().expect("there are four");
        assert!(block_on(displaced).is_err());
        // A cancelled job is removed before any job is displaced.
        drop(flooding.pop());
        let (queued, also_honest) = derive("also honest", Requester::default());
        assert_eq!((queued, deriver.queued_count()), (Ok(()), 4));
        drop(release);
        assert!(block_on(honest).is_ok() && block_on(also_honest).is_ok());
        assert!(flooding.into_iter().all(|waiter| block_on(waiter).is_ok()));
        deriver.stop();
    }

    #[test]
    fn stop_drops_queued_derivations() {
        let (deriver, cache) = (deriver(4), KeyCache::new());
        let (release, _occupies) = occupy(&deriver);
        let (claim, queued) = start(&cache, "queued");
        deriver.derive(claim, salt(), Requester::default()).expect("there is room");
        let queue = deriver.jobs.queue();
        let stopper = thread::spawn(move || deriver.stop());
        while !queue.is_closed() {
            thread::yield_now();
        }
        drop(release);
        stopper.join().expect("stop does not panic");
        assert!(block_on(queued).is_err());
    }
}
