//! Log files, one per day, of which the most recent ones are kept. Other existing files are never replaced.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use jiff::civil::Date;
use jiff::{Timestamp, tz::Offset};
use tracing_appender::rolling::{InitError, RollingFileAppender, Rotation};

use crate::limits::{LOG_FILE_RETRY_INTERVAL, LOG_FILES_COUNT_MAX};

/// Lines that could not be written, for example because the disk was full.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Failure to open the log file.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    /// The path is a directory.
    #[error("is a directory")]
    Directory,
    /// The path has no file name in UTF-8.
    #[error("has no file name in UTF-8")]
    NoName,
    /// The operating system returned an error.
    #[error(transparent)]
    Io(io::Error),
}

impl OpenError {
    /// Returns whether the error is a lack of disk space.
    fn is_out_of_space(&self) -> bool {
        let Self::Io(error) = self else { return false };
        matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

/// Log file of `OSC_LOG_FILE`. As long as it cannot be opened for lack of space, lines go to standard error.
pub(super) struct LogFile {
    path: PathBuf,
    sink: Option<Sink>,
    /// Time of the last attempt to open the sink.
    attempted: Instant,
    is_failing: bool,
}

/// Destination of log lines.
enum Sink {
    /// One file per day.
    Daily(Box<DailyFiles>),
    /// An existing device or pipe, or the target of a symbolic link that the log has not created.
    Existing(Box<dyn Write + Send>),
}

impl LogFile {
    /// Opens the log file.
    ///
    /// # Errors
    /// Fails if the file cannot be opened for another reason than a lack of space.
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        let sink = match Sink::open(path) {
            Ok(sink) => Some(sink),
            Err(error) if error.is_out_of_space() => None,
            Err(error) => return Err(error),
        };
        let mut file = Self { path: path.to_owned(), attempted: Instant::now(), is_failing: false, sink };
        if file.sink.is_none() {
            file.report_error("no space left, logging to standard error");
        }
        Ok(file)
    }

    /// Returns the sink; tries to open it again if that has failed.
    fn sink(&mut self) -> Option<&mut Sink> {
        if self.sink.is_none() && self.attempted.elapsed() >= LOG_FILE_RETRY_INTERVAL {
            self.attempted = Instant::now();
            self.sink = Sink::open(&self.path).ok();
        }
        self.sink.as_mut()
    }

    /// Reports the first of consecutive errors on standard error, since the log cannot.
    fn report_error(&mut self, reason: &str) {
        if !std::mem::replace(&mut self.is_failing, true) {
            let path = self.path.display();
            writeln!(io::stderr(), "opensecureconf: cannot write to the log file {path}: {reason}").ok();
        }
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        let written = match self.sink() {
            Some(Sink::Daily(files)) => files.write_all(line),
            Some(Sink::Existing(file)) => file.write_all(line),
            None => return io::stderr().write_all(line),
        };
        match &written {
            Ok(()) => self.is_failing = false,
            Err(error) => {
                LOST.fetch_add(1, Relaxed);
                self.report_error(&error.to_string());
            }
        }
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.sink {
            Some(Sink::Daily(files)) => files.appender.flush(),
            Some(Sink::Existing(file)) => file.flush(),
            None => Ok(()),
        }
    }
}

impl Sink {
    fn open(path: &Path) -> Result<Self, OpenError> {
        // Matched by name: under systemd these are sockets, which cannot be opened by path.
        match path.to_str() {
            Some("/dev/stdout" | "/dev/fd/1" | "/proc/self/fd/1") => {
                return Ok(Self::Existing(Box::new(io::stdout())));
            }
            Some("/dev/stderr" | "/dev/fd/2" | "/proc/self/fd/2") => {
                return Ok(Self::Existing(Box::new(io::stderr())));
            }
            _ => {}
        }
        if path.metadata().is_ok_and(|found| found.is_dir()) {
            return Err(OpenError::Directory);
        }
        match path.symlink_metadata() {
            Ok(found) if !found.is_file() && !owns_link(path) => {
                let is_pipe = path.metadata().is_ok_and(|target| target.file_type().is_fifo());
                // Opening a pipe for writing only would wait for a reader.
                let mut options = OpenOptions::new();
                options.read(is_pipe).append(true).create(true);
                Ok(Self::Existing(Box::new(options.open(path).map_err(OpenError::Io)?)))
            }
            _ => DailyFiles::open(path).map(|files| Self::Daily(Box::new(files))),
        }
    }
}

/// Daily files `PATH.YYYY-MM-DD`, by UTC days; `PATH` itself is a link to the current one, unless another file has that
/// name.
struct DailyFiles {
    appender: RollingFileAppender,
    directory: PathBuf,
    name: String,
    /// Day on which old files were last deleted and the link was updated.
    tidied: Option<Date>,
}

impl DailyFiles {
    fn open(path: &Path) -> Result<Self, OpenError> {
        let (directory, name) = directory_and_name(path)?;
        let builder = RollingFileAppender::builder().rotation(Rotation::DAILY).filename_prefix(name);
        let appender = builder.build(directory).map_err(|error| OpenError::Io(io_error(&error)))?;
        let mut files =
            Self { appender, directory: directory.to_owned(), name: name.to_owned(), tidied: None };
        files.tidy();
        Ok(files)
    }

    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        self.tidy();
        self.appender.write_all(line)
    }

    /// Deletes the oldest files and updates the link, once per day. Deletes only files with the exact name pattern of
    /// this log: other names may have the same prefix.
    fn tidy(&mut self) {
        let today = Offset::UTC.to_datetime(Timestamp::now()).date();
        if self.tidied == Some(today) {
            return;
        }
        self.tidied = Some(today);
        // The link is not essential.
        self.link(today).ok();
        let Ok(entries) = fs::read_dir(&self.directory) else { return };
        let mut days: Vec<(Date, PathBuf)> = entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
            .filter_map(|entry| Some((day_of(&self.name, entry.file_name().to_str()?)?, entry.path())))
            .collect();
        days.sort();
        let excess = days.len().saturating_sub(LOG_FILES_COUNT_MAX);
        for (_, path) in &days[..excess] {
            // A failure is retried the next day.
            fs::remove_file(path).ok();
        }
    }

    /// Points `PATH` to the file of this day. Replaces only a link of this log.
    fn link(&self, day: Date) -> io::Result<()> {
        let (link, target) = (self.directory.join(&self.name), format!("{}.{day}", self.name));
        match symlink(&target, &link) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && owns_link(&link) => {
                let new = self.directory.join(format!(".{target}.link"));
                // A leftover link points to the same file.
                match symlink(&target, &new) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                    _ => {}
                }
                fs::rename(&new, &link)
            }
            result => result,
        }
    }
}

fn directory_and_name(path: &Path) -> Result<(&Path, &str), OpenError> {
    let name = path.file_name().and_then(OsStr::to_str).ok_or(OpenError::NoName)?;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    Ok((directory, name))
}

/// Returns whether this log has created the link: it points to a daily file in the same directory.
fn owns_link(link: &Path) -> bool {
    let Ok((directory, name)) = directory_and_name(link) else { return false };
    let Ok(target) = fs::read_link(link) else { return false };
    let is_daily_file =
        target.file_name().and_then(OsStr::to_str).is_some_and(|target| day_of(name, target).is_some());
    // Earlier releases included the directory in the target.
    let is_same_directory = match target.parent() {
        None => false,
        Some(parent) if parent.as_os_str().is_empty() => true,
        Some(parent) => {
            parent == directory || fs::canonicalize(parent).ok() == fs::canonicalize(directory).ok()
        }
    };
    is_daily_file && is_same_directory
}

/// Returns the underlying error of the operating system.
fn io_error(error: &InitError) -> io::Error {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    match source.and_then(io::Error::raw_os_error) {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::other(source.map_or_else(|| error.to_string(), ToString::to_string)),
    }
}

/// Returns the number of lines that could not be written so far.
pub(super) fn lost_lines_count() -> u64 {
    LOST.load(Relaxed)
}

/// Returns the day in the name of a daily file; `None` for other names.
fn day_of(name: &str, file_name: &str) -> Option<Date> {
    let day = file_name.strip_prefix(name)?.strip_prefix('.')?;
    // Dates have several notations; the files use only this one.
    day.parse::<Date>().ok().filter(|date| date.to_string() == day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_old_files_of_the_log_are_deleted() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let days = (1..=20).map(|day| format!("osc.2020-10-{day:02}"));
        let unrelated =
            ["osc.db", "osc.salt", "osc.key", "osc2020-10-01", "osc.2020-10-01.gz", "osc.1", "osc.20201001"];
        let unrelated = unrelated.map(str::to_owned);
        for name in days.chain(unrelated.clone()) {
            fs::write(directory.path().join(name), "x").expect("writable");
        }
        let names = || {
            let entries = fs::read_dir(directory.path()).expect("readable");
            let mut names: Vec<String> = entries
                .map(|entry| entry.expect("readable").file_name().into_string().expect("UTF-8"))
                .collect();
            names.sort();
            names
        };
        let before = names().len();
        let mut file = LogFile::open(&directory.path().join("osc")).expect("opened");
        file.write_all(b"a line\n").expect("written");
        let after = names();
        // Today's file is the 21st, and there is a link to it.
        assert_eq!(after.len(), before + 2 - 7, "{after:?}");
        assert!(unrelated.iter().all(|name| after.contains(name)), "{after:?}");
        assert!(
            !after.contains(&"osc.2020-10-07".to_owned()) && after.contains(&"osc.2020-10-08".to_owned())
        );
        assert_eq!(fs::read(directory.path().join("osc")).expect("a link to today's"), b"a line\n");
    }
}
