//! The threads for what would keep a shard from its other connections: derivations, and reads of
//! the database.
//!
//! One rayon pool whose threads each drain one of two bounded queues for as long as the pool lives,
//! so that a flood of derivations never stands before a read. A full queue is an answer
//! ([`Busy`]), never a wait.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};
use futures_channel::oneshot;
use rayon::{ThreadBuilder, ThreadPool, ThreadPoolBuilder};

use crate::limits;

type Job = Box<dyn FnOnce() + Send>;

/// How many threads drain each queue; at least one does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolConfig {
    /// Threads for [`Lane::Derive`].
    pub derive_threads: usize,
    /// Threads for [`Lane::Read`].
    pub read_threads: usize,
}

/// A queue with its own threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Tens of milliseconds of computing; what is still queued at the end is dropped.
    Derive,
    /// Reads of the database; what is still queued at the end is done.
    Read,
}

/// The queue is full, or closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the queue is full")]
pub struct Busy;

/// The threads could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the pool")]
pub struct StartError(#[from] rayon::ThreadPoolBuildError);

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queued = [self.derive_jobs.len(), self.read_jobs.len()];
        f.debug_struct("Pool").field("queued", &queued).finish_non_exhaustive()
    }
}

/// The pool. Dropped without [`Pool::stop`], its threads end by themselves and nobody waits for them.
pub struct Pool {
    derive_jobs: Sender<Job>,
    read_jobs: Sender<Job>,
    stopping: Arc<AtomicBool>,
    threads: ThreadPool,
    thread_handles: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts the threads, niced, with queues of these lengths.
    ///
    /// # Errors
    /// [`StartError`] when the operating system refuses a thread.
    pub fn start(
        config: PoolConfig,
        derive_queue_max: usize,
        read_queue_max: usize,
    ) -> Result<Self, StartError> {
        let derive_threads = config.derive_threads.max(1);
        let read_threads = config.read_threads.max(1);
        let (derive_jobs, derive_queue) = bounded(derive_queue_max);
        let (read_jobs, read_queue) = bounded(read_queue_max);
        let stopping = Arc::new(AtomicBool::new(false));
        let mut thread_handles = Vec::new();
        let threads = ThreadPoolBuilder::new()
            .num_threads(derive_threads + read_threads)
            .thread_name(move |index| thread_name(index, derive_threads))
            .start_handler(|_index| give_way())
            // Rayon does not join its threads, so they are started here, where their handles are kept.
            .spawn_handler(|thread| {
                thread_handles.push(spawn(thread)?);
                Ok(())
            })
            .build()?;
        threads.spawn_broadcast({
            let stopping = Arc::clone(&stopping);
            move |context| {
                if context.index() < derive_threads {
                    drain(&derive_queue, &stopping);
                } else {
                    drain(&read_queue, &AtomicBool::new(false));
                }
            }
        });
        Ok(Self { derive_jobs, read_jobs, stopping, threads, thread_handles })
    }

    /// Queues a job and returns where its result will be: `Canceled` if it panicked or was dropped.
    /// It is skipped when nobody waits for the result any more.
    ///
    /// # Errors
    /// [`Busy`]; the job is dropped.
    pub fn submit<T: Send + 'static>(
        &self,
        lane: Lane,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<oneshot::Receiver<T>, Busy> {
        let (sender, receiver) = oneshot::channel();
        self.spawn(lane, move || {
            if !sender.is_canceled() {
                // The result comes back when the caller left meanwhile: nobody is there to tell.
                drop(sender.send(job()));
            }
        })?;
        Ok(receiver)
    }

    /// Queues a job that hands out its result itself.
    ///
    /// # Errors
    /// [`Busy`]; the job is dropped.
    pub fn spawn(&self, lane: Lane, job: impl FnOnce() + Send + 'static) -> Result<(), Busy> {
        let jobs = match lane {
            Lane::Derive => &self.derive_jobs,
            Lane::Read => &self.read_jobs,
        };
        jobs.try_send(Box::new(job)).map_err(|_| Busy)
    }

    /// Jobs that wait for a thread.
    pub fn queued_count(&self, lane: Lane) -> usize {
        match lane {
            Lane::Derive => self.derive_jobs.len(),
            Lane::Read => self.read_jobs.len(),
        }
    }

    /// Closes the queues, lets the threads finish (see [`Lane`]) and waits for them.
    pub fn stop(self) {
        let Self { derive_jobs, read_jobs, stopping, threads, thread_handles } = self;
        stopping.store(true, Relaxed);
        drop((derive_jobs, read_jobs, threads));
        for handle in thread_handles {
            // A job can't end its thread, and what rayon itself panics with has been printed.
            drop(handle.join());
        }
    }
}

/// Runs jobs until the queue is closed and empty; once `stopping`, drops them instead.
fn drain(queue: &Receiver<Job>, stopping: &AtomicBool) {
    for job in queue {
        if !stopping.load(Relaxed) {
            // A panic has been printed by its hook, and whoever waits for the job learns of it
            // because the job's sender is dropped as the stack unwinds.
            drop(catch_unwind(AssertUnwindSafe(job)));
        }
    }
}

/// At most 15 bytes, as Linux has it.
fn thread_name(index: usize, derive_threads: usize) -> String {
    if index < derive_threads {
        format!("osc-derive-{index}")
    } else {
        format!("osc-read-{}", index - derive_threads)
    }
}

/// Lets the shards go first on their cores. If that is refused, they share them.
fn give_way() {
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
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc;

    use futures_lite::future::block_on;

    use super::*;

    fn pool(queue_max: usize) -> Pool {
        let config = PoolConfig { derive_threads: 1, read_threads: 1 };
        Pool::start(config, queue_max, queue_max).expect("threads can be started")
    }

    /// Occupies the thread of a lane until the returned sender is dropped.
    fn occupy(pool: &Pool, lane: Lane) -> mpsc::Sender<()> {
        let (release, released) = mpsc::channel::<()>();
        let (running, runs) = mpsc::channel();
        pool.spawn(lane, move || {
            running.send(()).expect("the test waits for it");
            released.recv().ok();
        })
        .expect("the queue has room");
        runs.recv().expect("the job starts");
        release
    }

    #[test]
    fn results_come_back_from_named_and_niced_threads() {
        let pool = Pool::start(PoolConfig { derive_threads: 2, read_threads: 2 }, 8, 8).expect("it starts");
        for (lane, prefix) in [(Lane::Derive, "osc-derive-"), (Lane::Read, "osc-read-")] {
            let about_thread = || {
                let nice = rustix::process::getpriority_process(Some(rustix::thread::gettid()));
                (thread::current().name().map(str::to_owned), nice)
            };
            let (name, nice) =
                block_on(pool.submit(lane, about_thread).expect("there is room")).expect("it runs");
            assert!(name.expect("pool threads have names").starts_with(prefix));
            assert!(nice.expect("a thread may ask") >= limits::POOL_NICE);
        }
        pool.stop();
    }

    #[test]
    fn a_full_queue_is_busy_and_the_other_lane_is_not() {
        let pool = pool(2);
        let release = occupy(&pool, Lane::Derive);
        let queued: Vec<_> =
            (0..2).map(|n| pool.submit(Lane::Derive, move || n).expect("there is room")).collect();
        assert!(matches!(pool.submit(Lane::Derive, || ()), Err(Busy)));
        assert_eq!(block_on(pool.submit(Lane::Read, || 7).expect("there is room")), Ok(7));
        drop(release);
        let results: Vec<_> = queued.into_iter().map(block_on).collect();
        assert_eq!(results, [Ok(0), Ok(1)]);
        pool.stop();
    }

    #[test]
    fn a_panic_cancels_its_job_only() {
        let pool = pool(2);
        for lane in [Lane::Derive, Lane::Read] {
            let panics = pool.submit(lane, || -> () { panic!("on purpose") }).expect("there is room");
            assert!(block_on(panics).is_err());
            assert_eq!(block_on(pool.submit(lane, || 7).expect("there is room")), Ok(7));
        }
        pool.stop();
    }

    #[test]
    fn a_job_nobody_waits_for_is_skipped() {
        let pool = pool(4);
        let release = occupy(&pool, Lane::Read);
        let runs = Arc::new(AtomicUsize::new(0));
        let job = || {
            let runs = Arc::clone(&runs);
            move || runs.fetch_add(1, Relaxed)
        };
        drop(pool.submit(Lane::Read, job()).expect("there is room"));
        let kept = pool.submit(Lane::Read, job()).expect("there is room");
        drop(release);
        assert_eq!(block_on(kept), Ok(0));
        assert_eq!(runs.load(Relaxed), 1);
        pool.stop();
    }

    #[test]
    fn stop_does_queued_reads_and_drops_queued_derivations() {
        let pool = pool(4);
        let releases = [occupy(&pool, Lane::Derive), occupy(&pool, Lane::Read)];
        let derivation = pool.submit(Lane::Derive, || 1).expect("there is room");
        let read = pool.submit(Lane::Read, || 2).expect("there is room");
        let stopping = Arc::clone(&pool.stopping);
        let stopper = thread::spawn(move || pool.stop());
        while !stopping.load(Relaxed) {
            thread::yield_now();
        }
        drop(releases);
        stopper.join().expect("stop does not panic");
        assert!(block_on(derivation).is_err());
        assert_eq!(block_on(read), Ok(2));
    }
}
