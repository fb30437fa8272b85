//! Thread counts and CPU placement.

use std::num::NonZeroUsize;
use std::thread;

/// Executors with their cores, and the numbers of background threads.
#[derive(Debug)]
pub(super) struct Plan {
    /// Core of each executor; `None` if it is not pinned.
    pub(super) cores: Vec<Option<usize>>,
    /// Number of threads that derive keys.
    pub(super) derive_threads: usize,
    /// Number of pool threads that read the database.
    pub(super) read_threads: usize,
}

impl Plan {
    /// Plans for the cores that this process may use; in a container, these are fewer than the machine has.
    pub(super) fn new(workers: Option<NonZeroUsize>) -> Self {
        // The affinity mask of this process. glommio's own presets use the topology of the host.
        let allowed: Vec<usize> =
            core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect();
        // Also respects the CPU quota of the control group.
        let usable = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self::from_facts(workers, &allowed, usable)
    }

    /// Returns the number of threads of the process without the main thread. An executor on io_uring has a second
    /// thread for blocking calls.
    pub(super) fn threads_count(&self, is_clustered: bool) -> usize {
        let (log, signals, writer) = (1, 1, 1);
        let executors = self.cores.len() + usize::from(is_clustered);
        log + signals + writer + self.derive_threads + self.read_threads + 2 * executors
    }

    fn from_facts(workers: Option<NonZeroUsize>, allowed: &[usize], usable: usize) -> Self {
        let executors = workers.map_or(usable, NonZeroUsize::get);
        // With a quota below the number of cores, or more executors than cores, the scheduler balances better than
        // pinning.
        let pinned = usable >= allowed.len() && executors <= allowed.len();
        let cores = (0..executors).map(|index| pinned.then(|| allowed[index])).collect();
        Self { cores, derive_threads: usable.max(1), read_threads: usable.clamp(1, 8) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executors_are_pinned_only_where_that_helps() {
        let plan = |workers, allowed: &[usize], usable| {
            Plan::from_facts(NonZeroUsize::new(workers), allowed, usable).cores
        };
        assert_eq!(plan(0, &[2, 4], 2), [Some(2), Some(4)]);
        assert_eq!(plan(1, &[2, 4], 2), [Some(2)]);
        assert_eq!(plan(3, &[2, 4], 2), [None, None, None]);
        // A quota of one core on a machine of four.
        assert_eq!(plan(0, &[0, 1, 2, 3], 1), [None]);
        assert_eq!(plan(2, &[0, 1, 2, 3], 1), [None, None]);
        // The mask cannot be read.
        assert_eq!(plan(0, &[], 2), [None, None]);
    }
}
