//! Settings of the application.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::budget::ByteBudget;
use super::rate_limits::RateLimits;
use crate::config::{AllowedHosts, Origins, Proxies};
use crate::telemetry::{Executors, Gauge};

/// The part of the configuration that the handlers need.
#[derive(Debug)]
pub struct Settings {
    /// Shortest accepted user key, in bytes.
    pub user_key_bytes_min: usize,
    /// This node's name.
    pub node_id: String,
    /// The accepted values of `Host`; any if `None`.
    pub allowed_hosts: Option<AllowedHosts>,
    /// Origins whose pages may use the server; none if `None`.
    pub origins: Option<Origins>,
    /// Whether `GET /` needs no API key.
    pub has_public_root: bool,
    /// Whether `GET /metrics` needs the API key.
    pub has_private_metrics: bool,
    /// Proxies that are trusted to report the client's address.
    pub proxies: Proxies,
    /// Rate limits per client.
    pub rates: RateLimits,
    /// Name of the I/O engine.
    pub engine: &'static str,
    /// Limit of concurrent connections.
    pub connections_max: usize,
    /// Budget for responses that wait for their clients.
    pub response_budget: Arc<ByteBudget>,
    /// Counters of the executors.
    pub executors: Arc<Executors>,
    /// Expiry of the listeners' certificate, in seconds since 1970; 0 without TLS.
    pub certificate_expiry: Arc<Gauge>,
    /// Whether the server is about to stop.
    pub is_draining: AtomicBool,
}

impl Settings {
    pub(super) fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }
}
