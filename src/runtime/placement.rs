//! Which thread runs where.

use std::num::NonZeroUsize;
use std::thread;

/// How many executors there are, where they run, and how large the pool is.
#[derive(Debug)]
pub(super) struct Plan {
    /// One for each executor: the core that it is pinned to, if it is.
    pub(super) cores: Vec<Option<usize>>,
    /// Threads of the pool that derive keys.
    pub(super) derive_threads: usize,
    /// Threads of the pool that read the database.
    pub(super) read_threads: usize,
}

impl Plan {
    /// From what this process may use, which in a container is less than what the machine has.
    pub(super) fn new(workers: Option<NonZeroUsize>) -> Self {
        // The affinity mask of this process (glommio's own presets take the topology of the host).
        let allowed: Vec<usize> =
            core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect();
        // This also honours the quota of the control group.
        let usable = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self::from_facts(workers, &allowed, usable)
    }

    /// Threads of the whole process, the main one not counted; each executor of io_uring has another one for calls
    /// that block.
    pub(super) fn threads_count(&self, is_clustered: bool) -> usize {
        let (log, signals, writer) = (1, 1, 1);
        let executors = self.cores.len() + usize::from(is_clustered);
        log + signals + writer + self.derive_threads + self.read_threads + 2 * executors
    }

    fn from_facts(workers: Option<NonZeroUsize>, allowed: &[usize], usable: usize) -> Self {
        let executors = workers.map_or(usable, NonZeroUsize::get);
        // With a quota below the number of cores, or more executors than cores, the scheduler
        // balances better than a fixed place does.
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
