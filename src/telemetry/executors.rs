//! What each executor counts, and the sums over all of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::counters::{Counter, Durations, Gauge, Histogram};

/// Methods by the labels that they get; the last one stands for all others.
pub const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "OTHER"];
/// Status codes that are counted each by itself, the usual ones first; the last one stands for all others. 499 is
/// a client that left before its answer.
const STATUSES: [u16; 28] = [
    200, 201, 404, 401, 403, 400, 422, 204, 304, 307, 405, 408, 409, 412, 413, 414, 415, 417, 421, 429, 431,
    499, 500, 501, 503, 505, 507, 0,
];

/// The counts of one executor: only its own thread adds.
#[derive(Debug)]
pub struct ExecutorCounts {
    endpoints_count: usize,
    /// By endpoint, method and status.
    requests: Box<[Counter]>,
    /// By endpoint and method.
    durations: Box<[Durations]>,
    /// Connections that are open.
    pub connections: Gauge,
    /// Connections refused because there were too many.
    pub refused: Counter,
    /// Connections refused because their address had too many.
    pub refused_of_address: Counter,
    /// TLS handshakes that failed.
    pub failed_handshakes: Counter,
    /// When the executor was last seen to run, in milliseconds after the process began to count.
    beat_ms: Gauge,
    began: Instant,
}

/// Which requests a sum is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestLabels {
    /// The place of the endpoint in the list that the counts were made for.
    pub endpoint: usize,
    /// The place in [`METHODS`].
    pub method: usize,
    /// The status; 0 stands for those that are not counted each by itself.
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

    /// Notes a request that was answered, and how long that took.
    pub fn note(&self, endpoint: usize, method: usize, status: u16, duration: Duration) {
        debug_assert!(endpoint < self.endpoints_count && method < METHODS.len());
        let pair = endpoint * METHODS.len() + method;
        let place = STATUSES.iter().position(|&known| known == status).unwrap_or(STATUSES.len() - 1);
        self.requests[pair * STATUSES.len() + place].add(1);
        self.durations[pair].add(duration);
    }

    /// Says that the executor runs.
    pub fn beat(&self) {
        self.beat_ms.set(milliseconds_since(self.began));
    }
}

/// The counts of all executors of the process.
#[derive(Debug)]
pub struct Executors {
    endpoints: &'static [&'static str],
    began: Instant,
    counts: Mutex<Vec<Arc<ExecutorCounts>>>,
}

impl Executors {
    /// For requests to these endpoints.
    pub fn new(endpoints: &'static [&'static str]) -> Self {
        Self { endpoints, began: Instant::now(), counts: Mutex::default() }
    }

    /// The counts for one more executor.
    pub fn add(&self) -> Arc<ExecutorCounts> {
        let counts = Arc::new(ExecutorCounts::new(self.endpoints.len(), self.began));
        counts.beat();
        self.all().push(Arc::clone(&counts));
        counts
    }

    /// The labels of the endpoints.
    pub fn endpoints(&self) -> &'static [&'static str] {
        self.endpoints
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.all().len()
    }

    /// Those that have not run for so long, by number.
    pub fn stalled(&self, patience: Duration) -> Vec<usize> {
        let now_ms = milliseconds_since(self.began);
        let patience_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        let all = self.all();
        let is_stalled = |counts: &ExecutorCounts| now_ms.saturating_sub(counts.beat_ms.get()) > patience_ms;
        all.iter().enumerate().filter(|(_, counts)| is_stalled(counts)).map(|(index, _)| index).collect()
    }

    /// Connections that are open on each executor.
    pub fn connections(&self) -> Vec<u64> {
        self.all().iter().map(|counts| counts.connections.get()).collect()
    }

    /// Connections refused for the limit of all, and for that of their address.
    pub fn refused_connections(&self) -> (u64, u64) {
        let all = self.all();
        let sum = |count: fn(&ExecutorCounts) -> &Counter| all.iter().map(|counts| count(counts).get()).sum();
        (sum(|counts| &counts.refused), sum(|counts| &counts.refused_of_address))
    }

    /// TLS handshakes that failed.
    pub fn failed_handshakes(&self) -> u64 {
        self.all().iter().map(|counts| counts.failed_handshakes.get()).sum()
    }

    /// Requests of each kind, where there were any.
    pub fn requests(&self) -> BTreeMap<RequestLabels, u64> {
        let mut sums = BTreeMap::new();
        for counts in &*self.all() {
            for (index, count) in counts.requests.iter().enumerate().filter(|(_, count)| count.get() > 0) {
                let (pair, place) = (index / STATUSES.len(), index % STATUSES.len());
                let (endpoint, method) = (pair / METHODS.len(), pair % METHODS.len());
                let requests = RequestLabels { endpoint, method, status: STATUSES[place] };
                *sums.entry(requests).or_default() += count.get();
            }
        }
        sums
    }

    /// How long requests took, by endpoint and method, where there were any.
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
    fn sums_are_over_all_executors() {
        let executors = Executors::new(&["unmatched", "/a"]);
        let (one, other) = (executors.add(), executors.add());
        one.note(1, 0, 200, Duration::ZERO);
        other.note(1, 0, 200, Duration::from_secs(1));
        other.note(0, 6, 599, Duration::ZERO);
        let requests: Vec<_> = executors.requests().into_iter().collect();
        let of = |endpoint, method, status| RequestLabels { endpoint, method, status };
        assert_eq!(requests, [(of(0, 6, 0), 1), (of(1, 0, 200), 2)]);
        assert_eq!(executors.durations()[&(1, 0)].count(), 2);
        assert!(executors.stalled(Duration::from_secs(60)).is_empty());
        assert_eq!(executors.connections(), [0, 0]);
        one.refused.add(1);
        other.refused.add(2);
        other.refused_of_address.add(4);
        assert_eq!(executors.refused_connections(), (3, 4));
    }
}
