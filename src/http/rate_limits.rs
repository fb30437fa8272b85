//! How many requests a second one client may make.

use std::net::IpAddr;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::config::ClientLimits;
use crate::model::requester::network;

/// Shared by all executors. Each limit allows one second's worth at once.
#[derive(Debug, Default)]
pub struct RateLimits {
    per_address: Option<DefaultKeyedRateLimiter<IpAddr>>,
    per_api_key: Option<DefaultKeyedRateLimiter<usize>>,
}

impl RateLimits {
    /// As in the settings.
    pub fn new(limits: &ClientLimits) -> Self {
        Self {
            per_address: limits.rate_per_address.map(|rate| RateLimiter::keyed(Quota::per_second(rate))),
            per_api_key: limits.rate_per_api_key.map(|rate| RateLimiter::keyed(Quota::per_second(rate))),
        }
    }

    /// Counts a request from this address.
    ///
    /// # Errors
    /// How long it should have waited.
    pub(super) fn check_address(&self, address: Option<IpAddr>) -> Result<(), Duration> {
        match (&self.per_address, address) {
            (Some(limiter), Some(address)) => check(limiter, &network(address)),
            _ => Ok(()),
        }
    }

    /// Counts a request with the API key of this number.
    ///
    /// # Errors
    /// How long it should have waited.
    pub(super) fn check_api_key(&self, number: usize) -> Result<(), Duration> {
        self.per_api_key.as_ref().map_or(Ok(()), |limiter| check(limiter, &number))
    }

    /// Forgets clients that have not come for a while. To be called now and then.
    pub fn sweep(&self) {
        if let Some(limiter) = &self.per_address {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
    }
}

fn check<K: std::hash::Hash + Eq + Clone>(
    limiter: &DefaultKeyedRateLimiter<K>,
    key: &K,
) -> Result<(), Duration> {
    limiter.check_key(key).map_err(|early| early.wait_time_from(DefaultClock::default().now()))
}
