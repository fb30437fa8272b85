//! Log level and format.

use std::fmt;

/// Lowest level that is logged; the names are Python's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// All events.
    Debug,
    /// Routine events, such as requests and startup.
    Info,
    /// Events that may need attention.
    Warning,
    /// Events that need attention.
    Error,
    /// Only fatal errors.
    Critical,
}

impl LogLevel {
    /// Names of the levels; the first one of a level is displayed.
    pub(super) const NAMES: [(&'static str, Self); 6] = [
        ("DEBUG", Self::Debug),
        ("INFO", Self::Info),
        ("WARNING", Self::Warning),
        ("WARN", Self::Warning),
        ("ERROR", Self::Error),
        ("CRITICAL", Self::Critical),
    ];
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(self, &Self::NAMES, f)
    }
}

/// Returns whether colours are allowed on a terminal: neither with `NO_COLOR` nor with `TERM=dumb`.
pub fn allows_color() -> bool {
    let is_set = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !is_set && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// Plain text lines.
    Console,
}

impl LogFormat {
    pub(super) const NAMES: [(&'static str, Self); 2] = [("json", Self::Json), ("console", Self::Console)];
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(self, &Self::NAMES, f)
    }
}

pub(super) fn show<T: PartialEq>(
    choice: &T,
    names: &[(&'static str, T)],
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    let name = names.iter().find(|(_, named)| named == choice).map_or("", |(name, _)| name);
    f.write_str(name)
}
