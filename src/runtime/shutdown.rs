//! Stopping as a type: who asks for it, and who waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, unbounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Tells the shards to stop. Cheap to clone, read once a tick.
#[derive(Clone, Debug, Default)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(super) fn request(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub(super) fn is_requested(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Why the server ends.
#[derive(Debug)]
pub(super) enum ControlEvent {
    /// SIGTERM or SIGINT.
    Signal,
    /// SIGHUP: no reason to end, but to read the settings again.
    Reload,
    /// A part that it cannot do without has failed.
    Fatal(String),
}

/// Receives the reasons to end, and those to read the settings again.
pub(super) fn control_events() -> (Sender<ControlEvent>, Receiver<ControlEvent>) {
    unbounded()
}

/// Watches for SIGHUP, SIGTERM and SIGINT. The second one of the latter two ends the process at once.
///
/// # Errors
/// When the handlers cannot be installed.
pub(super) fn watch_signals(reasons: Sender<ControlEvent>) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGTERM, SIGINT])?;
    std::thread::Builder::new().name("osc-signals".into()).spawn(move || {
        let mut is_ending = false;
        for signal in signals.forever() {
            if signal == SIGHUP {
                reasons.send(ControlEvent::Reload).ok();
                continue;
            }
            if is_ending {
                tracing::warn!("second signal: ending at once");
                std::process::exit(130);
            }
            is_ending = true;
            reasons.send(ControlEvent::Signal).ok();
        }
    })?;
    Ok(())
}
