//! Locks and atomics of the caches: those of `std`, or those of shuttle in the interleaving tests.
//!
//! Shuttle runs one thread of a test at a time, and chooses at each lock and atomic which one continues. It reaches
//! interleavings that real threads hardly ever do, and repeats the one that failed. Its types panic outside of
//! [`explore`] and [`explore_all`], so they are in a build of their own. See `docs/checks.md`.

#[cfg(not(all(test, feature = "interleavings")))]
pub(crate) use std::sync::{Mutex, MutexGuard, atomic};

#[cfg(all(test, feature = "interleavings"))]
pub(crate) use self::shuttled::{Mutex, MutexGuard, atomic, explore, explore_all};

#[cfg(all(test, feature = "interleavings"))]
mod shuttled {
    use std::sync::Arc;

    use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler, ReplayScheduler, Scheduler};
    pub(crate) use shuttle::sync::{Mutex, MutexGuard, atomic};

    /// Interleavings per kind of sample.
    const SAMPLED_COUNT: usize = 20_000;
    /// Preemptions at places that PCT chooses; few bugs need more.
    const PREEMPTIONS_COUNT: usize = 3;

    /// Runs a test in a sample of its interleavings.
    pub(crate) fn explore(test: impl Fn() + Send + Sync + 'static) {
        run(test, || {
            let few_preemptions = PctScheduler::new(PREEMPTIONS_COUNT, SAMPLED_COUNT);
            vec![Box::new(few_preemptions), Box::new(RandomScheduler::new(SAMPLED_COUNT))]
        });
    }

    /// Runs a test in all of its interleavings, whose number is exponential.
    pub(crate) fn explore_all(test: impl Fn() + Send + Sync + 'static) {
        run(test, || vec![Box::new(DfsScheduler::new(None, false))]);
    }

    fn run(
        test: impl Fn() + Send + Sync + 'static,
        schedulers: impl FnOnce() -> Vec<Box<dyn Scheduler + Send>>,
    ) {
        let schedulers = match std::env::var("OSC_TEST_SCHEDULE") {
            Ok(schedule) => vec![Box::new(ReplayScheduler::new_from_encoded(&schedule)) as _],
            Err(_) => schedulers(),
        };
        let mut config = shuttle::Config::new();
        // It warns of weak memory orderings, which it does not model.
        config.silence_warnings = true;
        let test = Arc::new(test);
        for scheduler in schedulers {
            let test = Arc::clone(&test);
            shuttle::Runner::new(scheduler, config.clone()).run(move || test());
        }
    }
}
