//! Request accounting of one executor: counts, request ids, and the access log.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::endpoint::{Audience, EndpointLabel};
use super::request_id::{RequestId, RequestIds};
use crate::http1::{Method, RequestHead};
use crate::limits::ACCESS_LINES_PER_SECOND;
use crate::telemetry::{ExecutorCounts, METHODS};

/// Access log and request counts of one executor. Not shared between threads.
pub(super) struct AccessLog {
    counts: Arc<ExecutorCounts>,
    ids: RefCell<RequestIds>,
    /// Cached reads that may still be logged during this second.
    lines_left: Cell<u32>,
    unlogged_count: Cell<u64>,
    second: Cell<u64>,
}

/// The remote end of a connection, and the listener that accepted it.
#[derive(Clone, Debug, Default)]
pub struct Client {
    /// The client's address; `None` if it has no network address.
    pub address: Option<IpAddr>,
    /// The endpoints that the listener serves.
    pub audience: Audience,
    /// Node certificates are required, and the client has not presented one.
    pub lacks_node_certificate: bool,
}

/// The log record of one request, from its head to its response.
pub struct RequestLog {
    /// The endpoint of the path.
    pub(super) endpoint: EndpointLabel,
    /// Origin of the cross-site page that may read the response.
    pub(super) allowed_origin: Option<String>,
    method: Option<Method>,
    id: RequestId,
    path: Option<String>,
    /// The client's address, if known; behind a trusted proxy, the one that the proxy reported.
    pub(super) client: Option<IpAddr>,
    /// The endpoints that the listener serves.
    pub(super) audience: Audience,
    /// Node certificates are required, and the client has not presented one.
    pub(super) lacks_node_certificate: bool,
    /// The sender authenticates itself as a node. Its connection stays open during a drain, because it begins with
    /// several requests.
    pub(super) is_of_node: bool,
    /// Time of the head; `None` for a request served without waiting: reading the clock would take longer than the
    /// request.
    started: Option<Instant>,
}

impl AccessLog {
    /// Creates an access log that counts requests in `counts`.
    pub(super) fn new(counts: Arc<ExecutorCounts>) -> Self {
        Self {
            counts,
            ids: RefCell::new(RequestIds::new()),
            lines_left: Cell::new(ACCESS_LINES_PER_SECOND),
            unlogged_count: Cell::new(0),
            second: Cell::new(0),
        }
    }

    /// Records that the executor is alive, and starts a new second of the log limit. To be called several times per
    /// second.
    pub(super) fn tick(&self, now_ms: u64, connections: usize) {
        self.counts.beat();
        self.counts.connections.set(connections as u64);
        if self.second.replace(now_ms / 1000) != now_ms / 1000 {
            self.lines_left.set(ACCESS_LINES_PER_SECOND);
            let count = self.unlogged_count.replace(0);
            if count > 0 {
                tracing::info!(target: "access", count, "cached reads not logged individually");
            }
        }
    }

    /// Starts the record of a request whose head has arrived.
    pub(super) fn begin(&self, head: &RequestHead<'_>, client: &Client) -> RequestLog {
        let client_id = head.request_id().and_then(RequestId::from_header);
        self.request_log(Some(head.method()), client_id, client)
    }

    /// Starts the record of input that is rejected before it is a request.
    pub(super) fn begin_rejected(&self, client: &Client) -> RequestLog {
        self.request_log(None, None, client)
    }

    fn request_log(
        &self,
        method: Option<Method>,
        client_id: Option<RequestId>,
        client: &Client,
    ) -> RequestLog {
        let id = client_id.unwrap_or_else(|| self.ids.borrow_mut().next());
        let &Client { address: client, audience, lacks_node_certificate } = client;
        RequestLog {
            endpoint: EndpointLabel::UNMATCHED,
            allowed_origin: None,
            method,
            id,
            path: None,
            client,
            audience,
            lacks_node_certificate,
            is_of_node: false,
            started: None,
        }
    }

    /// Records a response from memory, status 200.
    pub(super) fn record_cached(&self, request_log: &RequestLog, head: &RequestHead<'_>) {
        self.counts.note(request_log.endpoint.index, index(request_log.method), 200, Duration::ZERO);
        if !is_logged() {
            return;
        }
        match self.lines_left.get() {
            0 => self.unlogged_count.set(self.unlogged_count.get() + 1),
            left => {
                self.lines_left.set(left - 1);
                request_log.log(200, Duration::ZERO, &String::from_utf8_lossy(head.path()));
            }
        }
    }

    /// Records a response, or (499) that the client disconnected before it.
    pub(super) fn record(&self, request_log: &RequestLog, status: u16) {
        let duration = request_log.started.map_or(Duration::ZERO, |started| started.elapsed());
        self.counts.note(request_log.endpoint.index, index(request_log.method), status, duration);
        if is_logged() {
            request_log.log(status, duration, request_log.path.as_deref().unwrap_or("-"));
        }
    }
}

impl RequestLog {
    /// Starts the clock of a request that has to wait, and keeps its path, because its head may be dropped.
    pub(super) fn wait(&mut self, head: &RequestHead<'_>) {
        self.started = Some(Instant::now());
        self.keep_path(head);
    }

    /// Keeps the path for the access log, if that is enabled.
    pub(super) fn keep_path(&mut self, head: &RequestHead<'_>) {
        if is_logged() {
            self.path = Some(String::from_utf8_lossy(head.path()).into_owned());
        }
    }

    pub(super) fn id(&self) -> &str {
        self.id.as_str()
    }

    /// Logs the request without its query, because clients may put secrets into it.
    fn log(&self, status: u16, duration: Duration, path: &str) {
        tracing::info!(
            target: "access",
            request_id = self.id.as_str(),
            client = self.client.map(tracing::field::display),
            method = self.method.map_or("-", Method::as_str),
            path,
            endpoint = self.endpoint.text,
            status,
            duration_us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX),
            "request"
        );
    }
}

fn is_logged() -> bool {
    tracing::enabled!(target: "access", tracing::Level::INFO)
}

/// Returns the index of a method in [`METHODS`].
fn index(method: Option<Method>) -> usize {
    let name = method.map_or("", Method::as_str);
    METHODS.iter().position(|&known| known == name).unwrap_or(METHODS.len() - 1)
}
