//! Thread pool for work that would block an executor: derivations, and reads of the database.
//!
//! One rayon pool whose threads each drain one of two bounded queues for as long as the pool lives,
//! so that a read never waits behind a flood of derivations. Submitting to a full queue fails
//! ([`Busy`]) and never blocks. Derivations are shared fairly between requesters.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};
use futures_channel::oneshot;
use rayon::{ThreadBuilder, ThreadPool, ThreadPoolBuilder};

use super::completion_queue::{CompletionBatch, Delivery, QueueState};
use super::fair_queue::Busy;
use super::kdf::Salt;
use super::kdf_worker;
use super::key_cache::DerivationClaim;
use crate::limits;
use crate::model::Requester;

/// Read of the database, and the destination of its result.
struct Read {
    /// Whether the read is short, so that results of earlier reads may wait for it.
    is_batched: bool,
    completions: Option<Arc<QueueState>>,
    /// Performs the read; returns `None` if its caller has been cancelled.
    perform: Box<dyn FnOnce() -> Option<Delivery> + Send>,
}

/// Number of threads that drain each queue; zero counts as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolConfig {
    /// Threads for [`Pool::derive`].
    pub derive_threads: usize,
    /// Threads for [`Pool::submit`].
    pub read_threads: usize,
}

/// Error for threads that could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the thread pool")]
pub struct StartError(#[from] rayon::ThreadPoolBuildError);

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (derivations, reads) = self.queued_counts();
        let queued = [derivations, reads];
        f.debug_struct("Pool").field("queued", &queued).finish_non_exhaustive()
    }
}

/// Thread pool. If it is dropped without [`Pool::stop`], its threads exit on their own and are not joined.
pub struct Pool {
    derivations: kdf_worker::Handle,
    reads: Sender<Read>,
    threads: ThreadPool,
    thread_handles: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts the threads, niced, with queues of these lengths.
    ///
    /// # Errors
    /// Returns [`StartError`] if the operating system refuses a thread.
    pub fn start(
        config: PoolConfig,
        derive_queue_max: usize,
        read_queue_max: usize,
    ) -> Result<Self, StartError> {
        let derive_threads = config.derive_threads.max(1);
        let read_threads = config.read_threads.max(1);
        let derivations = kdf_worker::Handle::new(derive_queue_max);
        let (reads, read_queue) = bounded(read_queue_max);
        let mut thread_handles = Vec::new();
        let threads = ThreadPoolBuilder::new()
            .num_threads(derive_threads + read_threads)
            .thread_name(move |index| thread_name(index, derive_threads))
            .start_handler(|_index| lower_priority())
            // Rayon does not join its threads, so they are started by this code, which keeps their handles.
            .spawn_handler(|thread| {
                thread_handles.push(spawn(thread)?);
                Ok(())
            })
            .build()?;
        threads.spawn_broadcast({
            let derive_queue = derivations.queue();
            move |context| {
                if context.index() < derive_threads {
                    derive_queue.work();
                } else {
                    drain(&read_queue);
                }
            }
        });
        Ok(Self { derivations, reads, threads, thread_handles })
    }

    /// Queues a derivation; its claim delivers the result. The derivation is dropped if it is still queued
    /// when the pool stops, or if the job of another requester displaces it from a full queue.
    ///
    /// # Errors
    /// Returns [`Busy`] if the queue is full; the claim is dropped.
    pub fn derive(&self, claim: DerivationClaim, salt: Salt, requester: Requester) -> Result<(), Busy> {
        self.derivations.push(requester, kdf_worker::Job { claim, salt })
    }

    /// Queues a read of the database, or a job that blocks for a similar time, and returns the receiver
    /// of its result: `Canceled` if the job panicked. The job is skipped if the receiver has been dropped;
    /// jobs that are still queued when the pool stops are completed.
    ///
    /// # Errors
    /// Returns [`Busy`] if the queue is full; the job is dropped.
    pub fn submit<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<oneshot::Receiver<T>, Busy> {
        self.enqueue(job, None, false)
    }

    /// Queues a job like [`Self::submit`], for frequent jobs of a few microseconds: the result may wait
    /// for those of other jobs for up to [`limits::READ_BATCH_WINDOW`], and is delivered through the
    /// [`super::CompletionQueue`] of this thread, if it has one.
    ///
    /// # Errors
    /// Returns [`Busy`] if the queue is full; the job is dropped.
    pub fn submit_batched<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<oneshot::Receiver<T>, Busy> {
        self.enqueue(job, QueueState::of_this_thread(), true)
    }

    fn enqueue<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
        completions: Option<Arc<QueueState>>,
        is_batched: bool,
    ) -> Result<oneshot::Receiver<T>, Busy> {
        let (sender, receiver) = oneshot::channel();
        let perform = move || -> Option<Delivery> {
            if sender.is_canceled() {
                return None;
            }
            let result = job();
            // `send` returns the result if the caller has been cancelled in the meantime.
            Some(Box::new(move || drop(sender.send(result))))
        };
        let read = Read { is_batched, completions, perform: Box::new(perform) };
        self.reads.try_send(read).map_err(|_| Busy)?;
        Ok(receiver)
    }

    /// Returns the numbers of queued derivations and of queued reads.
    pub fn queued_counts(&self) -> (usize, usize) {
        (self.derivations.len_and_max().0, self.reads.len())
    }

    /// Returns the capacities of the queue of derivations and of the queue of reads.
    pub fn queues_max(&self) -> (usize, usize) {
        (self.derivations.len_and_max().1, self.reads.capacity().expect("the queue is bounded"))
    }

    /// Closes the queues, and waits until the threads have finished.
    pub fn stop(self) {
        let Self { derivations, reads, threads, thread_handles } = self;
        drop((derivations, reads, threads));
        for handle in thread_handles {
            // A job cannot end its thread, and the panic hook has printed a panic of rayon itself.
            drop(handle.join());
        }
    }
}

/// Performs reads until the queue is closed and empty.
fn drain(queue: &Receiver<Read>) {
    let mut batch = CompletionBatch::default();
    for first in queue {
        let began = Instant::now();
        let mut next = Some(first);
        while let Some(read) = next {
            if !read.is_batched {
                batch.send();
            }
            perform(read, &mut batch);
            let is_over = began.elapsed() >= limits::READ_BATCH_WINDOW;
            next = if is_over { None } else { queue.try_recv().ok() };
        }
        batch.send();
    }
}

fn perform(read: Read, batch: &mut CompletionBatch) {
    // The panic hook has printed a panic, and the caller learns of it because the job's sender is
    // dropped while the stack unwinds.
    if let Ok(Some(delivery)) = catch_unwind(AssertUnwindSafe(read.perform)) {
        batch.add(read.completions, delivery);
    }
}

/// Returns the name of a thread: at most 15 bytes, the limit of Linux.
fn thread_name(index: usize, derive_threads: usize) -> String {
    if index < derive_threads {
        format!("osc-derive-{index}")
    } else {
        format!("osc-read-{}", index - derive_threads)
    }
}

/// Raises the nice value of this thread, so that the executors on its core take precedence. If that is
/// refused, they share the core.
fn lower_priority() {
    let this_thread = Some(rustix::thread::gettid());
    rustix::process::setpriority_process(this_thread, limits::POOL_NICE).ok();
}

fn spawn(thread: ThreadBuilder) -> io::Result<JoinHandle<()>> {
    let mut builder = thread::Builder::new();
    if let Some(name) = thread.name() {
        builder = builder.name(name.to_owned());
    }
    builder.spawn(|| thread.run())
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::sync::{Mutex, mpsc};
    use std::task::{Context, Wake};

    use futures_lite::future::block_on;

    use super::super::test_data::{salt, start};
    use super::super::{KeyCache, Waiter};
    use super::*;

    fn pool(queue_max: usize) -> Pool {
        let config = PoolConfig { derive_threads: 1, read_threads: 1 };
        Pool::start(config, queue_max, queue_max).expect("threads can be started")
    }

    /// Occupies a reading thread until the returned sender is dropped.
    fn occupy_reader(pool: &Pool) -> mpsc::Sender<()> {
        let (release, released) = mpsc::channel::<()>();
        let (started, has_started) = mpsc::channel();
        let job = move || {
            started.send(()).expect("the test waits for it");
            released.recv().ok();
        };
        // The job is not skipped when the receiver is dropped, because it has started by then.
        let _receiver = pool.submit(job).expect("the queue has room");
        has_started.recv().expect("the job starts");
        release
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
    fn derive_then(pool: &Pool, text: &str, then: impl FnOnce() + Send + 'static) -> Waiter {
        let (claim, mut waiter) = start(&KeyCache::new(), text);
        let waker = Arc::new(Then(Mutex::new(Some(then)))).into();
        assert!(Pin::new(&mut waiter).poll(&mut Context::from_waker(&waker)).is_pending());
        pool.derive(claim, salt(), Requester::default()).expect("there is room");
        waiter
    }

    /// Occupies a deriving thread until the returned sender is dropped.
    fn occupy_deriver(pool: &Pool) -> (mpsc::Sender<()>, Waiter) {
        let (release, released) = mpsc::channel::<()>();
        let (derived, is_derived) = mpsc::channel();
        let waiter = derive_then(pool, "occupies", move || {
            derived.send(()).expect("the test waits for it");
            released.recv().ok();
        });
        is_derived.recv().expect("it is derived");
        (release, waiter)
    }

    #[test]
    fn jobs_run_on_named_and_niced_threads() {
        let pool = Pool::start(PoolConfig { derive_threads: 2, read_threads: 2 }, 8, 8).expect("it starts");
        let about_thread = || {
            let nice = rustix::process::getpriority_process(Some(rustix::thread::gettid()));
            (thread::current().name().map(str::to_owned), nice.expect("a thread may read its priority"))
        };
        let (sender, derived) = mpsc::channel();
        let _waiter = derive_then(&pool, "key", move || {
            sender.send(about_thread()).expect("the test waits for it");
        });
        let read = block_on(pool.submit(about_thread).expect("there is room")).expect("it runs");
        for ((name, nice), prefix) in
            [(derived.recv().expect("it is derived"), "osc-derive-"), (read, "osc-read-")]
        {
            assert!(name.expect("pool threads have names").starts_with(prefix));
            assert!(nice >= limits::POOL_NICE);
        }
        pool.stop();
    }

    #[test]
    fn a_full_queue_does_not_affect_the_other_queue() {
        let (pool, cache) = (pool(2), KeyCache::new());
        let (release, _occupies) = occupy_deriver(&pool);
        let queued = ["one", "two"].map(|text| {
            let (claim, waiter) = start(&cache, text);
            pool.derive(claim, salt(), Requester::default()).expect("there is room");
            waiter
        });
        let (claim, refused) = start(&cache, "three");
        assert_eq!(pool.derive(claim, salt(), Requester::default()), Err(Busy));
        assert!(block_on(refused).is_err());
        assert_eq!(block_on(pool.submit(|| 7).expect("there is room")), Ok(7));
        drop(release);
        assert!(queued.into_iter().all(|waiter| block_on(waiter).is_ok()));
        pool.stop();
    }

    #[test]
    fn another_requester_displaces_the_newest_job_of_a_flood() {
        let (pool, cache) = (pool(4), KeyCache::new());
        let (release, _occupies) = occupy_deriver(&pool);
        let flood = Requester { network: None, api_key: Some(7) };
        let derive = |text: &str, requester| {
            let (claim, waiter) = start(&cache, text);
            (pool.derive(claim, salt(), requester), waiter)
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
        assert_eq!((queued, pool.queued_counts().0), (Ok(()), 4));
        drop(release);
        assert!(block_on(honest).is_ok() && block_on(also_honest).is_ok());
        assert!(flooding.into_iter().all(|waiter| block_on(waiter).is_ok()));
        pool.stop();
    }

    #[test]
    fn batched_results_do_not_wait_for_a_long_job() {
        let pool = pool(4);
        let release = occupy_reader(&pool);
        let short = pool.submit_batched(|| 7).expect("there is room");
        let (release_long, released) = mpsc::channel::<()>();
        let long = pool.submit(move || released.recv().ok()).expect("there is room");
        drop(release);
        assert_eq!(block_on(short), Ok(7), "while the long job runs");
        drop(release_long);
        assert!(block_on(long).is_ok());
        pool.stop();
    }

    #[test]
    fn a_panic_cancels_only_its_own_job() {
        let pool = pool(2);
        let panics = pool.submit(|| -> () { panic!("on purpose") }).expect("there is room");
        assert!(block_on(panics).is_err());
        assert_eq!(block_on(pool.submit(|| 7).expect("there is room")), Ok(7));
        pool.stop();
    }

    #[test]
    fn a_cancelled_job_is_skipped() {
        let pool = pool(4);
        let release = occupy_reader(&pool);
        let runs = Arc::new(AtomicUsize::new(0));
        let job = || {
            let runs = Arc::clone(&runs);
            move || runs.fetch_add(1, Relaxed)
        };
        drop(pool.submit(job()).expect("there is room"));
        let kept = pool.submit(job()).expect("there is room");
        drop(release);
        assert_eq!(block_on(kept), Ok(0));
        assert_eq!(runs.load(Relaxed), 1);
        pool.stop();
    }

    #[test]
    fn stop_completes_queued_reads_and_drops_queued_derivations() {
        let (pool, cache) = (pool(4), KeyCache::new());
        let (release_deriver, _occupies) = occupy_deriver(&pool);
        let release_reader = occupy_reader(&pool);
        let (claim, derivation) = start(&cache, "queued");
        pool.derive(claim, salt(), Requester::default()).expect("there is room");
        let read = pool.submit(|| 2).expect("there is room");
        let derive_queue = pool.derivations.queue();
        let stopper = thread::spawn(move || pool.stop());
        while !derive_queue.is_closed() {
            thread::yield_now();
        }
        drop((release_deriver, release_reader));
        stopper.join().expect("stop does not panic");
        assert!(block_on(derivation).is_err());
        assert_eq!(block_on(read), Ok(2));
    }
}
