//! What executors run on.

use std::fmt;

/// The engine that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineChoice {
    /// io_uring, and epoll where io_uring is not to be had.
    Auto,
    /// io_uring or nothing.
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
