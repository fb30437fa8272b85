//! `OSC_ENGINE`: I/O engine of the executors.

use std::fmt;

/// Requested engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineChoice {
    /// io_uring, or epoll where io_uring is unavailable.
    Auto,
    /// io_uring; a startup error where it is unavailable.
    Uring,
    /// epoll.
    Epoll,
}

impl EngineChoice {
    pub(super) const NAMES: [(&'static str, Self); 3] =
        [("auto", Self::Auto), ("uring", Self::Uring), ("epoll", Self::Epoll)];
}

impl fmt::Display for EngineChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        super::log::show(self, &Self::NAMES, f)
    }
}
