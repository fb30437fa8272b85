//! Service notifications to systemd (`sd_notify`): readiness, reloads, shutdown and the watchdog.
//!
//! Without `NOTIFY_SOCKET`, that is without such a supervisor, nothing is sent.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use crate::telemetry::Executors;

/// Supervisor of this process.
#[derive(Debug)]
pub(super) struct Supervisor {
    /// Interval at which the watchdog is reset; `None` without a watchdog.
    interval: Option<Duration>,
    last_reset: Instant,
}

impl Supervisor {
    pub(super) fn new() -> Self {
        // Half of the timeout, as sd_watchdog_enabled(3) recommends.
        let interval = sd_notify::watchdog_enabled().map(|timeout| timeout / 2);
        Self { interval, last_reset: Instant::now() }
    }

    /// Returns the longest allowed interval between two calls of [`Self::sign_of_life`].
    pub(super) fn interval(&self) -> Duration {
        self.interval.unwrap_or(Duration::MAX)
    }

    pub(super) fn ready(&self, status: &str) {
        send(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// Reports the start of a reload, whose end [`Self::ready`] reports.
    pub(super) fn reloading(&self) {
        // With `Type=notify-reload`, systemd ignores the message if it lacks the time.
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            send(&[NotifyState::Reloading, now]);
        }
    }

    /// Reports that the server is about to stop: it drains its clients, or closes their connections.
    pub(super) fn stopping(&self) {
        send(&[NotifyState::Stopping, NotifyState::Status("draining connections")]);
    }

    /// Resets the watchdog if every executor has run within the last interval. A single stalled executor blocks its
    /// connections indefinitely, so the process must then be restarted.
    pub(super) fn sign_of_life(&mut self, executors: &Executors) {
        let Some(interval) = self.interval.filter(|interval| self.last_reset.elapsed() >= *interval / 2)
        else {
            return;
        };
        let stalled = executors.stalled(interval);
        if stalled.is_empty() {
            self.last_reset = Instant::now();
            send(&[NotifyState::Watchdog]);
        } else {
            tracing::error!(executors = ?stalled, "executors stalled, watchdog not reset");
        }
    }
}

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "cannot notify the supervisor");
    }
}
