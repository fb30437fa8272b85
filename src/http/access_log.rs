//! What one executor notes of its requests: counts, names, and lines of the access log.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::request_id::{RequestId, RequestIds};
use super::route::{self, Audience};
use crate::http1::{Method, RequestHead};
use crate::limits::ACCESS_LINES_PER_SECOND;
use crate::telemetry::{ExecutorCounts, METHODS};

/// Of one executor; not shared between threads.
pub(super) struct AccessLog {
    counts: Arc<ExecutorCounts>,
    ids: RefCell<RequestIds>,
    /// Cached reads that may still be logged in this second.
    lines_left: Cell<u32>,
    unlogged_count: Cell<u64>,
    second: Cell<u64>,
}

/// Who is at the other end of a connection, and by which listener it came.
#[derive(Clone, Debug, Default)]
pub struct Client {
    /// Its address, unless it is not on a network.
    pub address: Option<IpAddr>,
    /// The endpoints that the listener serves.
    pub audience: Audience,
    /// Nodes must present a certificate of a node, and it has presented none.
    pub lacks_node_certificate: bool,
}

/// What is noted of one request, from its head to its answer.
pub struct RequestLog {
    /// The place of its endpoint in [`route::ENDPOINTS`].
    pub(super) endpoint: usize,
    /// The origin of a page of another site that may see the answer.
    pub(super) allowed_origin: Option<String>,
    method: Option<Method>,
    id: RequestId,
    path: Option<String>,
    /// Its address, as far as is known.
    pub(super) client: Option<IpAddr>,
    /// The endpoints that the listener serves.
    pub(super) audience: Audience,
    /// Nodes must present a certificate of a node, and it has presented none.
    pub(super) lacks_node_certificate: bool,
    /// `None` for one that needs no waiting: looking at the clock would take longer than the request.
    began: Option<Instant>,
}

impl AccessLog {
    /// Notes in these counts.
    pub(super) fn new(counts: Arc<ExecutorCounts>) -> Self {
        Self {
            counts,
            ids: RefCell::new(RequestIds::new()),
            lines_left: Cell::new(ACCESS_LINES_PER_SECOND),
            unlogged_count: Cell::new(0),
            second: Cell::new(0),
        }
    }

    /// To be called some times a second, as long as the executor runs.
    pub(super) fn tick(&self, now_ms: u64, connections: usize) {
        self.counts.beat();
        self.counts.connections.set(connections as u64);
        if self.second.replace(now_ms / 1000) != now_ms / 1000 {
            self.lines_left.set(ACCESS_LINES_PER_SECOND);
            let count = self.unlogged_count.replace(0);
            if count > 0 {
                tracing::info!(target: "access", count, "more cached reads were answered, without a line for each");
            }
        }
    }

    /// A request begins whose head is there.
    pub(super) fn begin(&self, head: &RequestHead<'_>, client: &Client) -> RequestLog {
        let sent = head.request_id().and_then(RequestId::from_header);
        self.exchange(Some(head.method()), sent, client)
    }

    /// Something begins that will never be a request.
    pub(super) fn begin_refusal(&self, client: &Client) -> RequestLog {
        self.exchange(None, None, client)
    }

    fn exchange(&self, method: Option<Method>, sent: Option<RequestId>, client: &Client) -> RequestLog {
        let id = sent.unwrap_or_else(|| self.ids.borrow_mut().next());
        let &Client { address: client, audience, lacks_node_certificate } = client;
        RequestLog {
            endpoint: 0,
            allowed_origin: None,
            method,
            id,
            path: None,
            client,
            audience,
            lacks_node_certificate,
            began: None,
        }
    }

    /// An answer that was at hand has been given.
    pub(super) fn note_at_hand(&self, exchange: &RequestLog, head: &RequestHead<'_>) {
        self.counts.note(exchange.endpoint, index(exchange.method), 200, Duration::ZERO);
        if !is_logged() {
            return;
        }
        match self.lines_left.get() {
            0 => self.unlogged_count.set(self.unlogged_count.get() + 1),
            left => {
                self.lines_left.set(left - 1);
                exchange.log(200, Duration::ZERO, &String::from_utf8_lossy(head.path()));
            }
        }
    }

    /// An answer has been given, or (499) nobody was there any more to take it.
    pub(super) fn note(&self, exchange: &RequestLog, status: u16) {
        let duration = exchange.began.map_or(Duration::ZERO, |began| began.elapsed());
        self.counts.note(exchange.endpoint, index(exchange.method), status, duration);
        if is_logged() {
            exchange.log(status, duration, exchange.path.as_deref().unwrap_or("-"));
        }
    }
}

impl RequestLog {
    /// From now on it takes time, and its head may go.
    pub(super) fn wait(&mut self, head: &RequestHead<'_>) {
        self.began = Some(Instant::now());
        self.keep_path(head);
    }

    /// For the log, if there is one.
    pub(super) fn keep_path(&mut self, head: &RequestHead<'_>) {
        if is_logged() {
            self.path = Some(String::from_utf8_lossy(head.path()).into_owned());
        }
    }

    pub(super) fn id(&self) -> &str {
        self.id.as_str()
    }

    /// Without the query: clients put into it what does not belong there.
    fn log(&self, status: u16, duration: Duration, path: &str) {
        tracing::info!(
            target: "access",
            request_id = self.id.as_str(),
            client = self.client.map(tracing::field::display),
            method = self.method.map_or("-", Method::as_str),
            path,
            endpoint = route::ENDPOINTS[self.endpoint],
            status,
            duration_us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX),
            "request"
        );
    }
}

fn is_logged() -> bool {
    tracing::enabled!(target: "access", tracing::Level::INFO)
}

/// The place of a method in [`METHODS`].
fn index(method: Option<Method>) -> usize {
    let name = method.map_or("", Method::as_str);
    METHODS.iter().position(|&known| known == name).unwrap_or(METHODS.len() - 1)
}
