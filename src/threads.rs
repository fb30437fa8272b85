//! Groups of niced threads.

use std::io;
use std::thread::{self, JoinHandle};

use crate::limits;

/// Niced threads that run the same function. If they are dropped without [`Self::join`], they are not joined.
#[derive(Debug)]
pub struct NicedThreads(Vec<JoinHandle<()>>);

impl NicedThreads {
    /// Starts `count` threads (zero counts as one) that run `work`. Their names are `{prefix}-{index}`, of which Linux
    /// shows 15 bytes.
    ///
    /// # Errors
    /// Fails if the operating system refuses a thread.
    pub fn start(prefix: &str, count: usize, work: impl Fn() + Clone + Send + 'static) -> io::Result<Self> {
        let start = |index| {
            let work = work.clone();
            thread::Builder::new().name(format!("{prefix}-{index}")).spawn(move || {
                lower_priority();
                work();
            })
        };
        (0..count.max(1)).map(start).collect::<io::Result<_>>().map(Self)
    }

    /// Waits until the threads have finished.
    pub fn join(self) {
        for thread in self.0 {
            // The panic hook has printed the panic of a thread.
            drop(thread.join());
        }
    }
}

/// Raises the nice value of this thread, so that the executors on its core take precedence. If that is
/// refused, they share the core.
fn lower_priority() {
    let this_thread = Some(rustix::thread::gettid());
    rustix::process::setpriority_process(this_thread, limits::POOL_NICE).ok();
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn threads_are_named_and_niced() {
        let (sender, started) = mpsc::channel();
        let work = move || {
            let nice = rustix::process::getpriority_process(Some(rustix::thread::gettid()));
            let nice = nice.expect("a thread may read its priority");
            let name = thread::current().name().map(str::to_owned);
            sender.send((name.expect("it has one"), nice)).expect("the test waits for it");
        };
        NicedThreads::start("osc-test", 2, work).expect("threads can be started").join();
        let (mut names, nices): (Vec<_>, Vec<_>) = started.iter().unzip();
        names.sort();
        assert_eq!(names, ["osc-test-0", "osc-test-1"]);
        assert!(nices.into_iter().all(|nice| nice >= limits::POOL_NICE));
    }
}
