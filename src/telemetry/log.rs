//! Log to standard error or a file, as text or JSON. A dedicated thread writes it, so that a slow terminal or disk does
//! not delay requests; lines beyond a full queue are dropped and counted.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;

use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use super::log_file::{LogFile, OpenError, lost_lines_count};
use crate::config::{LogFormat, LogLevel, allows_color};
use crate::limits::LOG_LINES_WAITING_MAX;

/// Counter of dropped lines; one per process, like the log.
static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// Log of the process; queued lines are written when it is dropped.
pub struct Log {
    _writer: WorkerGuard,
    filter: reload::Handle<LevelFilter, Registry>,
}

/// Failure to start the log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The log file cannot be opened.
    #[error("cannot log to {path}: {reason} (see OSC_LOG_FILE)", path = path.display())]
    File {
        /// Path of the log file.
        path: PathBuf,
        /// Reason of the failure.
        reason: String,
        /// Whether the setting must be changed; otherwise the error may be transient.
        is_lasting: bool,
    },
    /// The log thread cannot be started.
    #[error(
        "cannot start the log thread ({0}): raise the process limit (`ulimit -u`, `--pids-limit`, systemd's \
         TasksMax= or LimitNPROC=)"
    )]
    Thread(#[source] io::Error),
}

impl Log {
    /// Starts the log. A second log in the same process receives no lines.
    ///
    /// # Errors
    /// Fails if the file cannot be opened, or the thread cannot be started.
    pub fn start(level: LogLevel, format: LogFormat, file: Option<&Path>) -> Result<Self, LogError> {
        can_start_thread()?;
        let (writer, guard) = match file {
            Some(path) => {
                let failed = |error: OpenError| LogError::File {
                    path: path.to_owned(),
                    reason: error.to_string(),
                    is_lasting: !matches!(error, OpenError::Io(_)),
                };
                non_blocking(LogFile::open(path).map_err(failed)?)
            }
            None => non_blocking(io::stderr()),
        };
        let dropped = writer.error_counter();
        let (filter, handle) = reload::Layer::new(filter(level));
        let lines = fmt::layer().with_writer(writer);
        let lines = match format {
            LogFormat::Console => {
                let has_color = file.is_none() && io::stderr().is_terminal() && allows_color();
                lines.with_target(false).with_ansi(has_color).boxed()
            }
            LogFormat::Json => lines.json().flatten_event(true).boxed(),
        };
        if tracing_subscriber::registry().with(filter).with(lines).try_init().is_ok() {
            DROPPED.set(dropped).ok();
        }
        if let Some(path) = file
            && path.symlink_metadata().is_ok_and(|found| found.is_file())
        {
            tracing::warn!(path = %path.display(), "existing file kept instead of a link to the current log file");
        }
        Ok(Self { _writer: guard, filter: handle })
    }

    /// Changes the log level.
    pub fn set_level(&self, level: LogLevel) {
        // Fails only if the log is not installed, and then there is no level to change.
        self.filter.reload(filter(level)).ok();
    }
}

/// Returns the number of lines lost so far because the queue was full or the file could not be written.
pub fn dropped_lines_count() -> u64 {
    DROPPED.get().map_or(0, |dropped| dropped.dropped_lines() as u64) + lost_lines_count()
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warning => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
        // No event is more severe than an error, except the fatal error, which is not logged but printed.
        LogLevel::Critical => LevelFilter::OFF,
    }
}

/// Checks that a thread can be started; tracing-appender panics if it cannot start its own.
fn can_start_thread() -> Result<(), LogError> {
    let thread = thread::Builder::new().spawn(|| ()).map_err(LogError::Thread)?;
    thread.join().ok();
    Ok(())
}

fn non_blocking(writer: impl io::Write + Send + 'static) -> (NonBlocking, WorkerGuard) {
    NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(LOG_LINES_WAITING_MAX)
        .thread_name("osc-log")
        .finish(writer)
}
