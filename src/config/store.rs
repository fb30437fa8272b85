//! `OSC_STORE`: where entries are stored.

use std::fmt;

/// Storage engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreChoice {
    /// SQLite database, with a salt file.
    Sqlite,
    /// Memory of the server, for tests: entries and salt are lost when it stops.
    Memory,
}

impl StoreChoice {
    pub(super) const NAMES: [(&'static str, Self); 2] = [("sqlite", Self::Sqlite), ("memory", Self::Memory)];
}

impl fmt::Display for StoreChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        super::log::show(self, &Self::NAMES, f)
    }
}
