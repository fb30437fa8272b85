//! Thread pool for work that would block an executor, such as reads of the database.
//!
//! Its threads drain one bounded queue for as long as the pool lives. Submitting to a full queue fails
//! ([`Busy`]) and never blocks.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};
use futures_channel::oneshot;

use super::completion_queue::{CompletionBatch, Delivery, QueueState};
use crate::limits;
use crate::threads::NicedThreads;

/// Error for a queue that is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the queue is full")]
pub struct Busy;

/// Blocking job, and the destination of its result.
struct Job {
    /// Whether the job is short, so that results of earlier jobs may wait for it.
    is_batched: bool,
    completions: Option<Arc<QueueState>>,
    /// Performs the job; returns `None` if its caller has been cancelled.
    perform: Box<dyn FnOnce() -> Option<Delivery> + Send>,
}

/// Thread pool. If it is dropped without [`Self::stop`], its threads exit on their own and are not joined.
pub struct BlockingPool {
    jobs: Sender<Job>,
    threads: NicedThreads,
}

impl fmt::Debug for BlockingPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockingPool").field("queued", &self.queued_count()).finish_non_exhaustive()
    }
}

impl BlockingPool {
    /// Starts the threads (zero counts as one), named `osc-read-N` and niced, with a queue of this length.
    ///
    /// # Errors
    /// Fails if the operating system refuses a thread.
    pub fn start(threads: usize, queue_max: usize) -> io::Result<Self> {
        let (jobs, queue) = bounded(queue_max);
        let threads = NicedThreads::start("osc-read", threads, move || drain(&queue))?;
        Ok(Self { jobs, threads })
    }

    /// Queues a job that blocks for no longer than a read of the database, and returns the receiver
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
        let job = Job { is_batched, completions, perform: Box::new(perform) };
        self.jobs.try_send(job).map_err(|_| Busy)?;
        Ok(receiver)
    }

    /// Returns the number of queued jobs.
    pub fn queued_count(&self) -> usize {
        self.jobs.len()
    }

    /// Returns the capacity of the queue.
    pub fn queue_max(&self) -> usize {
        self.jobs.capacity().expect("the queue is bounded")
    }

    /// Closes the queue, and waits until the threads have performed the jobs in it.
    pub fn stop(self) {
        drop(self.jobs);
        self.threads.join();
    }
}

/// Performs jobs until the queue is closed and empty.
fn drain(queue: &Receiver<Job>) {
    let mut batch = CompletionBatch::default();
    for first in queue {
        let began = Instant::now();
        let mut next = Some(first);
        while let Some(job) = next {
            if !job.is_batched {
                batch.send();
            }
            perform(job, &mut batch);
            let is_over = began.elapsed() >= limits::READ_BATCH_WINDOW;
            next = if is_over { None } else { queue.try_recv().ok() };
        }
        batch.send();
    }
}

fn perform(job: Job, batch: &mut CompletionBatch) {
    // The panic hook has printed a panic, and the caller learns of it because the job's sender is
    // dropped while the stack unwinds.
    if let Ok(Some(delivery)) = catch_unwind(AssertUnwindSafe(job.perform)) {
        batch.add(job.completions, delivery);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::sync::mpsc;
    use std::thread;

    use futures_lite::future::block_on;

    use super::*;

    fn pool(queue_max: usize) -> BlockingPool {
        BlockingPool::start(1, queue_max).expect("threads can be started")
    }

    /// Occupies the thread until the returned sender is dropped.
    fn occupy(pool: &BlockingPool) -> mpsc::Sender<()> {
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

    #[test]
    fn jobs_run_on_named_threads() {
        let pool = pool(8);
        let name = || thread::current().name().map(str::to_owned);
        let name = block_on(pool.submit(name).expect("there is room")).expect("it runs");
        assert_eq!(name.as_deref(), Some("osc-read-0"));
        pool.stop();
    }

    #[test]
    fn a_full_queue_refuses_jobs() {
        let pool = pool(2);
        let release = occupy(&pool);
        let queued = [1, 2].map(|result| pool.submit(move || result).expect("there is room"));
        assert_eq!(pool.submit(|| 3).err(), Some(Busy));
        assert_eq!((pool.queued_count(), pool.queue_max()), (2, 2));
        drop(release);
        assert_eq!(queued.map(block_on), [Ok(1), Ok(2)]);
        pool.stop();
    }

    #[test]
    fn batched_results_do_not_wait_for_a_long_job() {
        let pool = pool(4);
        let release = occupy(&pool);
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
        let release = occupy(&pool);
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
    fn stop_completes_queued_jobs() {
        let pool = pool(4);
        let release = occupy(&pool);
        let queued = pool.submit(|| 2).expect("there is room");
        let stopper = thread::spawn(move || pool.stop());
        drop(release);
        stopper.join().expect("stop does not panic");
        assert_eq!(block_on(queued), Ok(2));
    }
}
