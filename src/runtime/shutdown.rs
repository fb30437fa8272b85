//! Shutdown flag and control events.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, unbounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Flag that asks the executors to stop. Cheap to clone; read once per tick.
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

/// Event that the main thread acts on.
#[derive(Debug)]
pub(super) enum ControlEvent {
    /// SIGTERM or SIGINT.
    Signal,
    /// SIGHUP: reload the settings.
    Reload,
    /// An essential component has failed.
    Fatal(String),
}

/// Creates the channel of control events.
pub(super) fn control_events() -> (Sender<ControlEvent>, Receiver<ControlEvent>) {
    unbounded()
}

/// Handles SIGHUP, SIGTERM and SIGINT on a new thread. A second SIGTERM or SIGINT ends the drain, if there is one. Once
/// the executors stop, a further one exits immediately.
///
/// # Errors
/// Fails if the handlers cannot be installed.
pub(super) fn watch_signals(
    events: Sender<ControlEvent>,
    stop: Stop,
    has_drain: bool,
) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGTERM, SIGINT])?;
    std::thread::Builder::new().name("osc-signals".into()).spawn(move || {
        let (mut is_draining, mut is_stopping) = (false, false);
        for signal in signals.forever() {
            if signal == SIGHUP {
                events.send(ControlEvent::Reload).ok();
                continue;
            }
            if is_stopping || stop.is_requested() {
                tracing::warn!("further signal, exiting immediately");
                std::process::exit(130);
            }
            is_stopping = is_draining || !has_drain;
            is_draining = true;
            events.send(ControlEvent::Signal).ok();
        }
    })?;
    Ok(())
}
