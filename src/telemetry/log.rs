//! The log: lines on standard error or in a file, for people or for machines. A thread of its own writes them, so
//! that a slow terminal or disk holds up nobody; what it cannot keep up with is dropped and counted.

use std::ffi::OsStr;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_appender::rolling::{RollingFileAppender, Rotation};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use crate::config::{LogFormat, LogLevel};

/// Lines that may wait to be written.
const LINES_WAITING_MAX: usize = 16 * 1024;
/// Days of which there is a file; older ones are deleted.
const FILES_COUNT_MAX: usize = 14;

/// What counts the lines that were dropped: like the log, one for the process.
static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// The log of the process; what was logged is written when it is dropped.
pub struct Log {
    _writer: WorkerGuard,
    filter: reload::Handle<LevelFilter, Registry>,
}

/// The file of the log cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot log to {path}: {reason} (see OSC_LOG_FILE)", path = path.display())]
pub struct LogError {
    path: PathBuf,
    reason: String,
}

impl Log {
    /// Starts it. A second one in the same process gets nothing to write.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn start(level: LogLevel, format: LogFormat, file: Option<&Path>) -> Result<Self, LogError> {
        let (writer, guard) = match file {
            Some(path) => non_blocking(open(path)?),
            None => non_blocking(io::stderr()),
        };
        let dropped = writer.error_counter();
        let (filter, handle) = reload::Layer::new(filter(level));
        let lines = fmt::layer().with_writer(writer);
        let lines = match format {
            LogFormat::Console => {
                let is_terminal = file.is_none() && io::stderr().is_terminal();
                lines.with_target(false).with_ansi(is_terminal).boxed()
            }
            LogFormat::Json => lines.json().flatten_event(true).boxed(),
        };
        if tracing_subscriber::registry().with(filter).with(lines).try_init().is_ok() {
            DROPPED.set(dropped).ok();
        }
        Ok(Self { _writer: guard, filter: handle })
    }

    /// Changes what is logged from now on.
    pub fn set_level(&self, level: LogLevel) {
        // It fails when there is no log, and then there is nothing to change.
        self.filter.reload(filter(level)).ok();
    }
}

/// Lines that could not be written as fast as they came, so far.
pub fn dropped_lines_count() -> u64 {
    DROPPED.get().map_or(0, |dropped| dropped.dropped_lines() as u64)
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warning => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
        // Nothing here is more severe than an error, except the message with which the process ends.
        LogLevel::Critical => LevelFilter::OFF,
    }
}

fn non_blocking(writer: impl io::Write + Send + 'static) -> (NonBlocking, WorkerGuard) {
    NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(LINES_WAITING_MAX)
        .thread_name("osc-log")
        .finish(writer)
}

/// A file for each day, `PATH.YYYY-MM-DD`; `PATH` itself leads to the one of today, unless something else is there.
fn open(path: &Path) -> Result<RollingFileAppender, LogError> {
    let failed = |reason: String| LogError { path: path.to_owned(), reason };
    let name =
        path.file_name().and_then(OsStr::to_str).ok_or_else(|| failed("it is no file name".to_owned()))?;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let builder = RollingFileAppender::builder()
        .rotation(Rotation::DAILY)
        .filename_prefix(name)
        .max_log_files(FILES_COUNT_MAX);
    let is_free = path.symlink_metadata().map_or(true, |found| found.is_symlink());
    let builder = if is_free { builder.latest_symlink(name) } else { builder };
    builder.build(directory).map_err(|error| {
        failed(std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string))
    })
}
