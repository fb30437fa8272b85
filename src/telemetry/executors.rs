//! Metrics of each executor, and their sums.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::counters::{Counter, Durations, Gauge, Histogram};

/// Labels of the request methods; the last one stands for all other methods.
pub const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "OTHER"];
/// Status codes that are counted individually, common ones first; the last one stands for all other codes. 499 means
/// that the client disconnected before its response.
const STATUSES: [u16; 28] = [
    200, 201, 404, 401, 403, 400, 422, 204, 304, 307, 405, 408, 409, 412, 413, 414, 415, 417, 421, 429, 431,
    499, 500, 501, 503, 505, 507, 0,
];

/// Metrics of one executor, written only by its thread.
#[derive(Debug)]
pub struct ExecutorCounts {
    endpoints_count: usize,
    /// Requests by endpoint, method and status.
    requests: Box<[Counter]>,
    /// Request durations by endpoint and method.
    durations: Box<[Durations]>,
    /// Open connections.
    pub connections: Gauge,
    /// Connections refused because of the limit of the server.
    pub refused: Counter,
    /// Connections refused because of the limit of their address.
    pub refused_of_address: Counter,
    /// Failed TLS handshakes.
    pub failed_handshakes: Counter,
    /// Time of the last heartbeat, in milliseconds since `began`.
    beat_ms: Gauge,
    began: Instant,
}

/// Labels of a request count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestLabels {
    /// Index of the endpoint in [`Executors::endpoints`].
    pub endpoint: usize,
    /// Index of the method in [`METHODS`].
    pub method: usize,
    /// Status code; 0 stands for those that are not counted individually.
    pub status: u16,
}

impl ExecutorCounts {
    fn new(endpoints_count: usize, began: Instant) -> Self {
        let pairs_count = endpoints_count * METHODS.len();
        Self {
            endpoints_count,
            requests: (0..pairs_count * STATUSES.len()).map(|_| Counter::default()).collect(),
            durations: (0..pairs_count).map(|_| Durations::default()).collect(),
            connections: Gauge::default(),
            refused: Counter::default(),
            refused_of_address: Counter::default(),
            failed_handshakes: Counter::default(),
            beat_ms: Gauge::default(),
            began,
        }
    }

    /// Records a completed request and its duration.
    pub fn note(&self, endpoint: usize, method: usize, status: u16, duration: Duration) {
        debug_assert!(endpoint < self.endpoints_count && method < METHODS.len());
        let pair = endpoint * METHODS.len() + method;
        let index = STATUSES.iter().position(|&code| code == status).unwrap_or(STATUSES.len() - 1);
        self.requests[pair * STATUSES.len() + index].add(1);
        self.durations[pair].add(duration);
    }

    /// Records a heartbeat of the executor.
    pub fn beat(&self) {
        self.beat_ms.set(milliseconds_since(self.began));
    }
}

/// Metrics of all executors of the process.
#[derive(Debug)]
pub struct Executors {
    endpoints: &'static [&'static str],
    began: Instant,
    counts: Mutex<Vec<Arc<ExecutorCounts>>>,
}

impl Executors {
    /// Creates the metrics for these endpoint labels.
    pub fn new(endpoints: &'static [&'static str]) -> Self {
        Self { endpoints, began: Instant::now(), counts: Mutex::default() }
    }

    /// Adds an executor and returns its metrics.
    pub fn add(&self) -> Arc<ExecutorCounts> {
        let counts = Arc::new(ExecutorCounts::new(self.endpoints.len(), self.began));
        counts.beat();
        self.all().push(Arc::clone(&counts));
        counts
    }

    /// Returns the labels of the endpoints.
    pub fn endpoints(&self) -> &'static [&'static str] {
        self.endpoints
    }

    /// Returns the number of executors.
    pub fn count(&self) -> usize {
        self.all().len()
    }

    /// Returns the indices of the executors without a heartbeat within `timeout`.
    pub fn stalled(&self, timeout: Duration) -> Vec<usize> {
        let now_ms = milliseconds_since(self.began);
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let all = self.all();
        let is_stalled = |counts: &ExecutorCounts| now_ms.saturating_sub(counts.beat_ms.get()) > timeout_ms;
        all.iter().enumerate().filter(|(_, counts)| is_stalled(counts)).map(|(index, _)| index).collect()
    }

    /// Returns the number of open connections of each executor.
    pub fn connections(&self) -> Vec<u64> {
        self.all().iter().map(|counts| counts.connections.get()).collect()
    }

    /// Returns the numbers of connections refused because of the limit of the server, and of that of their address.
    pub fn refused_connections(&self) -> (u64, u64) {
        let all = self.all();
        let sum = |count: fn(&ExecutorCounts) -> &Counter| all.iter().map(|counts| count(counts).get()).sum();
        (sum(|counts| &counts.refused), sum(|counts| &counts.refused_of_address))
    }

    /// Returns the number of failed TLS handshakes.
    pub fn failed_handshakes(&self) -> u64 {
        self.all().iter().map(|counts| counts.failed_handshakes.get()).sum()
    }

    /// Returns the nonzero request counts by label.
    pub fn requests(&self) -> BTreeMap<RequestLabels, u64> {
        let mut sums = BTreeMap::new();
        for counts in &*self.all() {
            for (index, count) in counts.requests.iter().enumerate().filter(|(_, count)| count.get() > 0) {
                let (pair, status) = (index / STATUSES.len(), STATUSES[index % STATUSES.len()]);
                let (endpoint, method) = (pair / METHODS.len(), pair % METHODS.len());
                let labels = RequestLabels { endpoint, method, status };
                *sums.entry(labels).or_default() += count.get();
            }
        }
        sums
    }

    /// Returns the non-empty histograms of request durations by endpoint and method.
    pub fn durations(&self) -> BTreeMap<(usize, usize), Histogram> {
        let mut sums: BTreeMap<_, Histogram> = BTreeMap::new();
        for counts in &*self.all() {
            for (pair, durations) in counts.durations.iter().enumerate() {
                sums.entry((pair / METHODS.len(), pair % METHODS.len())).or_default().include(durations);
            }
        }
        sums.retain(|_, histogram| histogram.count() > 0);
        sums
    }

    fn all(&self) -> std::sync::MutexGuard<'_, Vec<Arc<ExecutorCounts>>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn milliseconds_since(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_cover_all_executors() {
        let executors = Executors::new(&["unmatched", "/a"]);
        let (one, other) = (executors.add(), executors.add());
        one.note(1, 0, 200, Duration::ZERO);
        other.note(1, 0, 200, Duration::from_secs(1));
        other.note(0, 6, 599, Duration::ZERO);
        let requests: Vec<_> = executors.requests().into_iter().collect();
        let labels = |endpoint, method, status| RequestLabels { endpoint, method, status };
        assert_eq!(requests, [(labels(0, 6, 0), 1), (labels(1, 0, 200), 2)]);
        assert_eq!(executors.durations()[&(1, 0)].count(), 2);
        assert!(executors.stalled(Duration::from_secs(60)).is_empty());
        assert_eq!(executors.connections(), [0, 0]);
        one.refused.add(1);
        other.refused.add(2);
        other.refused_of_address.add(4);
        assert_eq!(executors.refused_connections(), (3, 4));
    }
}
