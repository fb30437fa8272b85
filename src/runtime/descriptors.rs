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

/// Connections that there may be at a time; says so when that is less than there may be anyway.
pub(super) fn connections_max(executors: usize, peers: usize) -> usize {
    let descriptors = getrlimit(Resource::Nofile).current;
    let available = descriptors.map_or(usize::MAX, |count| usize::try_from(count).unwrap_or(usize::MAX));
    let connections = connections_of(available, executors, peers);
    if connections < CONNECTIONS_COUNT_MAX {
        tracing::warn!(
            connections,
            descriptors = available,
            "the limit of open files (ulimit -n, LimitNOFILE=) allows fewer connections than {CONNECTIONS_COUNT_MAX}"
        );
    }
    connections
}

fn connections_of(available: usize, executors: usize, peers: usize) -> usize {
    let kept = OTHERS + PER_EXECUTOR * executors + PER_PEER * peers;
    available.saturating_sub(kept).max(available / 4).min(CONNECTIONS_COUNT_MAX)
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
            (64, 8, 0, 16),
        ] {
            assert_eq!(
                connections_of(available, executors, peers),
                expected,
                "{available} {executors} {peers}"
            );
        }
    }
}
