//! The log: lines on standard error or in a file, for people or for machines. A thread of its own writes them, so
//! that a slow terminal or disk holds up nobody; what it cannot keep up with is dropped and counted.

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

/// Lines that may wait to be written.
const LINES_WAITING_MAX: usize = 16 * 1024;

/// What counts the lines that were dropped: like the log, one for the process.
static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// The log of the process; what was logged is written when it is dropped.
pub struct Log {
    _writer: WorkerGuard,
    filter: reload::Handle<LevelFilter, Registry>,
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Its file cannot be used.
    #[error("cannot log to {path}: {reason} (see OSC_LOG_FILE)", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
        /// Whether another setting is needed. Otherwise it may be possible later.
        is_lasting: bool,
    },
    /// Its thread cannot be started.
    #[error(
        "cannot start the thread of the log ({0}): raise the limit of processes (`ulimit -u`, `--pids-limit`, \
         systemd's TasksMax= or LimitNPROC=)"
    )]
    Thread(#[source] io::Error),
}

impl Log {
    /// Starts it. A second one in the same process gets nothing to write.
    ///
    /// # Errors
    /// When the file cannot be made, or the thread not started.
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
            tracing::warn!("{} is left as it is, and is no link to the log of today", path.display());
        }
        Ok(Self { _writer: guard, filter: handle })
    }

    /// Changes what is logged from now on.
    pub fn set_level(&self, level: LogLevel) {
        // It fails when there is no log, and then there is nothing to change.
        self.filter.reload(filter(level)).ok();
    }
}

/// Lines that could not be written as fast as they came, or not at all, so far.
pub fn dropped_lines_count() -> u64 {
    DROPPED.get().map_or(0, |dropped| dropped.dropped_lines() as u64) + lost_lines_count()
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

/// tracing-appender panics when it cannot start its own.
fn can_start_thread() -> Result<(), LogError> {
    let thread = thread::Builder::new().spawn(|| ()).map_err(LogError::Thread)?;
    thread.join().ok();
    Ok(())
}

fn non_blocking(writer: impl io::Write + Send + 'static) -> (NonBlocking, WorkerGuard) {
    NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(LINES_WAITING_MAX)
        .thread_name("osc-log")
        .finish(writer)
}
