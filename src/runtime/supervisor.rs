//! The protocol between a service and systemd (`sd_notify`): readiness, reloads, the end, the watchdog.
//!
//! Without `NOTIFY_SOCKET`, that is without such a supervisor, nothing is sent.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use crate::telemetry::Executors;

/// The connection to the supervisor of this process.
#[derive(Debug)]
pub(super) struct Supervisor {
    /// Time between two signs of life; `None` without a watchdog.
    interval: Option<Duration>,
    signed: Instant,
}

impl Supervisor {
    pub(super) fn new() -> Self {
        // Half of the timeout, as sd_watchdog_enabled(3) recommends.
        let interval = sd_notify::watchdog_enabled().map(|timeout| timeout / 2);
        Self { interval, signed: Instant::now() }
    }

    /// Longest wait between two calls of [`Self::sign_of_life`].
    pub(super) fn interval(&self) -> Duration {
        self.interval.unwrap_or(Duration::MAX)
    }

    pub(super) fn ready(&self, status: &str) {
        send(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// A reload begins; it ends with [`Self::ready`].
    pub(super) fn reloading(&self) {
        // With `Type=notify-reload` systemd ignores the message without the time.
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            send(&[NotifyState::Reloading, now]);
        }
    }

    pub(super) fn stopping(&self) {
        send(&[NotifyState::Stopping, NotifyState::Status("draining connections")]);
    }

    /// Resets the watchdog if every executor has run since the last interval but one. A single stalled executor
    /// holds up its connections for good, so the process then has to be restarted.
    pub(super) fn sign_of_life(&mut self, executors: &Executors) {
        let Some(interval) = self.interval.filter(|interval| self.signed.elapsed() >= *interval / 2) else {
            return;
        };
        let stalled = executors.stalled(interval);
        if stalled.is_empty() {
            self.signed = Instant::now();
            send(&[NotifyState::Watchdog]);
        } else {
            tracing::error!(executors = ?stalled, "executors are stalled: the watchdog is not reset");
        }
    }
}

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "cannot notify the supervisor");
    }
}
