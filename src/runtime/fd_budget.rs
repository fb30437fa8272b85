//! How many connections the descriptors of the process allow. If connections could take all of them, there would be
//! none left to open the database with.

use rustix::process::{Resource, getrlimit};

use crate::limits::{CONNECTIONS_COUNT_MAX, QUESTIONS_COUNT_MAX_PER_PEER};

/// The database and its readers, the salt, the log, certificates that are read again, connections that are turned away.
const OTHERS: usize = 64;
/// Rings, listeners, and what wakes an executor.
const PER_EXECUTOR: usize = 16;
/// Questions, and what replication and health checks need.
const PER_PEER: usize = QUESTIONS_COUNT_MAX_PER_PEER + 4;

/// Of [`OTHERS`] and [`PER_EXECUTOR`], without any reserve.
const OTHERS_MIN: usize = 56;
const PER_EXECUTOR_MIN: usize = 10;
/// With fewer, clients are in each other's way.
const CONNECTIONS_MIN: usize = 16;

/// The limit of descriptors, and what needs some.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptors {
    /// The limit.
    pub(super) available: usize,
    /// Executors that serve clients.
    pub(super) executors: usize,
    /// Peers of the cluster.
    pub(super) peers: usize,
}

impl Descriptors {
    /// With the limit of this process.
    pub(super) fn new(executors: usize, peers: usize) -> Self {
        let limit = getrlimit(Resource::Nofile).current;
        let available = limit.map_or(usize::MAX, |count| usize::try_from(count).unwrap_or(usize::MAX));
        Self { available, executors, peers }
    }

    /// Without so many the server would fail at something sooner or later.
    pub(super) fn needed(self) -> usize {
        OTHERS_MIN + PER_EXECUTOR_MIN * self.executors + self.peers + CONNECTIONS_MIN
    }

    /// Connections that there may be at a time; logs when that is less than there may be anyway.
    pub(super) fn connections_max(self) -> usize {
        let connections = self.connections();
        if connections < CONNECTIONS_COUNT_MAX {
            tracing::warn!(
                connections,
                descriptors = self.available,
                "the limit of open files (ulimit -n, LimitNOFILE=) allows fewer connections than {CONNECTIONS_COUNT_MAX}"
            );
        }
        connections
    }

    fn connections(self) -> usize {
        let kept = OTHERS + PER_EXECUTOR * self.executors + PER_PEER * self.peers;
        // Less of a reserve where the limit is low.
        let spare = self.available.saturating_sub(self.needed() - CONNECTIONS_MIN);
        let least = CONNECTIONS_MIN.max(self.available / 4).min(spare);
        self.available.saturating_sub(kept).max(least).min(CONNECTIONS_COUNT_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_for_connections() {
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
