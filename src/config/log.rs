//! What is logged, and in which form.

use std::fmt;

/// The least severe events that are logged; the names are Python's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Everything.
    Debug,
    /// What happens once in a while.
    Info,
    /// What may need attention.
    Warning,
    /// What needs attention.
    Error,
    /// Only what ends the process.
    Critical,
}

impl LogLevel {
    /// The first name of a level is the one that is shown.
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

/// Whether a terminal may get colours: not with `NO_COLOR`, and not with `TERM=dumb`.
pub fn allows_color() -> bool {
    let is_set = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !is_set && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// How an event is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object on each line, for machines.
    Json,
    /// Plain lines, for people.
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
