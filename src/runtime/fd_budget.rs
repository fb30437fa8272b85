//! File descriptor budget: limits the connections, so that enough descriptors are left to open the database.

use rustix::process::{Resource, getrlimit};

use crate::limits::{
    CONNECTIONS_COUNT_MAX, CONNECTIONS_COUNT_MIN, DESCRIPTORS_FIXED, DESCRIPTORS_FIXED_MIN,
    DESCRIPTORS_PER_EXECUTOR, DESCRIPTORS_PER_EXECUTOR_MIN, DESCRIPTORS_PER_PEER,
};

/// Descriptor limit, and the numbers of its consumers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptors {
    /// Descriptor limit of the process.
    pub(super) available: usize,
    /// Number of executors.
    pub(super) executors: usize,
    /// Number of peers in the cluster.
    pub(super) peers: usize,
}

impl Descriptors {
    /// Creates the budget from the limit of this process.
    pub(super) fn new(executors: usize, peers: usize) -> Self {
        let limit = getrlimit(Resource::Nofile).current;
        let available = limit.map_or(usize::MAX, |count| usize::try_from(count).unwrap_or(usize::MAX));
        Self { available, executors, peers }
    }

    /// Returns the smallest limit with which the server can run reliably.
    pub(super) fn needed(self) -> usize {
        DESCRIPTORS_FIXED_MIN
            + DESCRIPTORS_PER_EXECUTOR_MIN * self.executors
            + self.peers
            + CONNECTIONS_COUNT_MIN
    }

    /// Returns the limit of concurrent connections. Logs a warning if it is lower than [`CONNECTIONS_COUNT_MAX`].
    pub(super) fn connections_max(self) -> usize {
        let connections = self.connections();
        if connections < CONNECTIONS_COUNT_MAX {
            tracing::warn!(
                connections,
                maximum = CONNECTIONS_COUNT_MAX,
                descriptors = self.available,
                "the limit on open files (ulimit -n, LimitNOFILE=) allows fewer connections than the maximum"
            );
        }
        connections
    }

    fn connections(self) -> usize {
        let reserved =
            DESCRIPTORS_FIXED + DESCRIPTORS_PER_EXECUTOR * self.executors + DESCRIPTORS_PER_PEER * self.peers;
        // A smaller reserve if the limit is low.
        let spare = self.available.saturating_sub(self.needed() - CONNECTIONS_COUNT_MIN);
        let at_least = CONNECTIONS_COUNT_MIN.max(self.available / 4).min(spare);
        self.available.saturating_sub(reserved).max(at_least).min(CONNECTIONS_COUNT_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_left_for_connections() {
        for (available, executors, peers, expected) in [
            (usize::MAX, 64, 10, CONNECTIONS_COUNT_MAX),
            (20_000, 2, 0, CONNECTIONS_COUNT_MAX),
            (1024, 2, 0, 928),
            (1024, 2, 2, 856),
            (152, 8, 0, 16),
            (1024, 64, 0, 256),
        ] {
            let descriptors = Descriptors { available, executors, peers };
            assert_eq!(descriptors.connections(), expected, "{descriptors:?}");
            assert!(descriptors.needed() <= available, "{descriptors:?}");
        }
    }
}
