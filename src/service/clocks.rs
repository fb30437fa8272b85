//! Record of peers' changes that were refused because their versions are ahead of this node's clock.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::limits::{CLOCK_SKEW_LOG_INTERVAL, CLOCK_SKEW_NODES_COUNT_MAX};
use crate::model::ReplicaId;

/// Refused changes: their total number, and the nodes that wrote them.
#[derive(Debug, Default)]
pub struct ClockSkewLog {
    refused_count: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// For each node, by how many milliseconds its last refused change was ahead, and when it was refused.
    ahead: BTreeMap<ReplicaId, (u64, Instant)>,
    logged: Option<Instant>,
}

impl ClockSkewLog {
    /// Records refused changes, each as the node that wrote it and the milliseconds that it is ahead.
    pub(super) fn note(&self, ahead: &[(ReplicaId, u64)]) {
        let Some((node, ahead_ms)) = ahead.iter().max_by_key(|(_, ahead_ms)| *ahead_ms) else { return };
        self.refused_count.fetch_add(ahead.len() as u64, Ordering::Relaxed);
        let now = Instant::now();
        let mut state = self.lock();
        for (node, ahead_ms) in ahead {
            if state.ahead.len() < CLOCK_SKEW_NODES_COUNT_MAX || state.ahead.contains_key(node) {
                state.ahead.insert(*node, (*ahead_ms, now));
            }
        }
        if state.logged.is_none_or(|logged| now.duration_since(logged) >= CLOCK_SKEW_LOG_INTERVAL) {
            state.logged = Some(now);
            tracing::warn!(
                %node, ahead_ms, count = ahead.len(),
                "changes refused: their versions are ahead of this node's clock"
            );
        }
    }

    /// Returns by how many milliseconds the last refused change of a node was ahead, if it was refused within
    /// `max_age`.
    pub fn ahead_ms(&self, node: ReplicaId, max_age: Duration) -> Option<u64> {
        let state = self.lock();
        state.ahead.get(&node).filter(|(_, at)| at.elapsed() <= max_age).map(|(ahead_ms, _)| *ahead_ms)
    }

    /// Removes a node that was found in sync with this one.
    pub fn forget(&self, node: ReplicaId) {
        self.lock().ahead.remove(&node);
    }

    /// Returns the number of changes refused since the start.
    pub fn refused_count(&self) -> u64 {
        self.refused_count.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_changes_are_counted_and_nodes_are_reported_for_a_while() {
        let clocks = ClockSkewLog::default();
        let [one, two] = [ReplicaId::from_random(2), ReplicaId::from_random(4)];
        clocks.note(&[(one, 600_000), (two, 700_000), (one, 650_000)]);
        clocks.note(&[]);
        let hour = Duration::from_secs(3600);
        assert_eq!((clocks.ahead_ms(one, hour), clocks.ahead_ms(two, hour)), (Some(650_000), Some(700_000)));
        assert_eq!(clocks.ahead_ms(ReplicaId::from_random(6), hour), None);
        assert_eq!(clocks.refused_count(), 3);
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(clocks.ahead_ms(one, Duration::from_millis(1)), None, "it was refused too long ago");
        clocks.forget(one);
        assert_eq!(clocks.ahead_ms(one, hour), None);
    }
}
