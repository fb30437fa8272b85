//! The log: lines on standard error, for people or for machines.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;

use crate::config::{LogFormat, LogLevel};

/// Starts the log of the process. A second call changes nothing.
pub fn start(level: LogLevel, format: LogFormat) {
    let filter = match level {
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warning => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
        // Nothing here is more severe than an error, except the message with which the process ends.
        LogLevel::Critical => LevelFilter::OFF,
    };
    let builder = tracing_subscriber::fmt().with_max_level(filter).with_writer(std::io::stderr);
    // It fails when the process has a log already, as the second server of a test has.
    let _already_started = match format {
        LogFormat::Console => {
            builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).try_init()
        }
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}
