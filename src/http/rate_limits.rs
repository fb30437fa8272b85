//! Rate limits: requests per second of one client.

use std::net::IpAddr;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::config::ClientLimits;
use crate::model::requester::network;

/// Rate limiters shared by all executors. Each allows a burst of one second's worth of requests.
#[derive(Debug, Default)]
pub struct RateLimits {
    per_address: Option<DefaultKeyedRateLimiter<IpAddr>>,
    per_api_key: Option<DefaultKeyedRateLimiter<usize>>,
}

impl RateLimits {
    /// Creates the limiters that the settings configure.
    pub fn new(limits: &ClientLimits) -> Self {
        Self {
            per_address: limits.rate_per_address.map(|rate| RateLimiter::keyed(Quota::per_second(rate))),
            per_api_key: limits.rate_per_api_key.map(|rate| RateLimiter::keyed(Quota::per_second(rate))),
        }
    }

    /// Counts a request from this address.
    ///
    /// # Errors
    /// Returns the time until a request would be allowed, if the limit is exceeded.
    pub(super) fn check_address(&self, address: Option<IpAddr>) -> Result<(), Duration> {
        match (&self.per_address, address) {
            (Some(limiter), Some(address)) => check(limiter, &network(address)),
            _ => Ok(()),
        }
    }

    /// Counts a request with the API key of this index.
    ///
    /// # Errors
    /// Returns the time until a request would be allowed, if the limit is exceeded.
    pub(super) fn check_api_key(&self, index: usize) -> Result<(), Duration> {
        self.per_api_key.as_ref().map_or(Ok(()), |limiter| check(limiter, &index))
    }

    /// Removes clients without recent requests. To be called periodically.
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
