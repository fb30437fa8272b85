//! The file of the log: one for each day, of which some are kept. What is there already is never replaced.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use jiff::civil::Date;
use jiff::{Timestamp, tz::Offset};
use tracing_appender::rolling::{InitError, RollingFileAppender, Rotation};

/// Days of which there is a file; older ones are deleted.
const FILES_COUNT_MAX: usize = 14;

/// Lines that could not be written, on a full disk say.
static LOST: AtomicU64 = AtomicU64::new(0);

/// A log file that cannot be opened, on a full disk say, is tried again so often.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Why there is no log file.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    /// The path does not name a file.
    #[error("it is a directory")]
    Directory,
    /// The path has no last part in UTF-8.
    #[error("it is no file name")]
    NoName,
    /// The system refuses.
    #[error(transparent)]
    Io(io::Error),
}

impl OpenError {
    fn is_about_room(&self) -> bool {
        let Self::Io(error) = self else { return false };
        matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

/// The file of `OSC_LOG_FILE`. While it has no room to be opened, lines go to standard error.
pub(super) struct LogFile {
    path: PathBuf,
    sink: Option<Sink>,
    opened: Instant,
    is_failing: bool,
}

/// Where lines go.
enum Sink {
    /// A file for each day.
    Daily(Box<DailyFiles>),
    /// What is there already: a device, a pipe, or the target of a foreign symbolic link.
    Existing(Box<dyn Write + Send>),
}

impl LogFile {
    /// # Errors
    /// When there can be no such file, unless there is only no room for it.
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        let sink = match Sink::open(path) {
            Ok(sink) => Some(sink),
            Err(error) if error.is_about_room() => None,
            Err(error) => return Err(error),
        };
        let mut file = Self { path: path.to_owned(), opened: Instant::now(), is_failing: false, sink };
        if file.sink.is_none() {
            file.report_error("there is no room, so the log goes to standard error");
        }
        Ok(file)
    }

    /// The sink, if it can be opened by now.
    fn sink(&mut self) -> Option<&mut Sink> {
        if self.sink.is_none() && self.opened.elapsed() >= RETRY_INTERVAL {
            self.opened = Instant::now();
            self.sink = Sink::open(&self.path).ok();
        }
        self.sink.as_mut()
    }

    /// Says on standard error what the log cannot, when it begins.
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
        // By their names: the system opens no socket again, which these are under systemd.
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
                // Opened for writing only, a pipe makes this thread wait for a reader.
                let mut options = OpenOptions::new();
                options.read(is_pipe).append(true).create(true);
                Ok(Self::Existing(Box::new(options.open(path).map_err(OpenError::Io)?)))
            }
            _ => DailyFiles::open(path).map(|files| Self::Daily(Box::new(files))),
        }
    }
}

/// `PATH.YYYY-MM-DD`, by the days of UTC; `PATH` itself is a link to the one of today, unless something else is there.
struct DailyFiles {
    appender: RollingFileAppender,
    directory: PathBuf,
    name: String,
    /// The day for which old files were deleted and the link was made.
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

    /// Deletes the oldest files and moves the link on, once a day. Nothing but what this log has made is deleted: other
    /// names may begin as it does.
    fn tidy(&mut self) {
        let today = Offset::UTC.to_datetime(Timestamp::now()).date();
        if self.tidied == Some(today) {
            return;
        }
        self.tidied = Some(today);
        // Without it the log is as good.
        self.link(today).ok();
        let Ok(entries) = fs::read_dir(&self.directory) else { return };
        let mut days: Vec<(Date, PathBuf)> = entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
            .filter_map(|entry| Some((day_of(&self.name, entry.file_name().to_str()?)?, entry.path())))
            .collect();
        days.sort();
        let spare = days.len().saturating_sub(FILES_COUNT_MAX);
        for (_, path) in &days[..spare] {
            // It is tried again tomorrow.
            fs::remove_file(path).ok();
        }
    }

    /// Leads `PATH` to the file of this day. Replaces only a link of this log.
    fn link(&self, day: Date) -> io::Result<()> {
        let (link, target) = (self.directory.join(&self.name), format!("{}.{day}", self.name));
        match symlink(&target, &link) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && owns_link(&link) => {
                let new = self.directory.join(format!(".{target}.link"));
                // One that was left behind leads to the same file.
                match symlink(&target, &new) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                    _ => {}
                }
                fs::rename(&new, &link)
            }
            made => made,
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

/// Whether this log has made the link: it leads to the file of a day beside it.
fn owns_link(link: &Path) -> bool {
    let Ok((directory, name)) = directory_and_name(link) else { return false };
    let Ok(target) = fs::read_link(link) else { return false };
    let is_of_a_day =
        target.file_name().and_then(OsStr::to_str).is_some_and(|target| day_of(name, target).is_some());
    // Earlier versions named the directory, too.
    let is_beside = match target.parent() {
        None => false,
        Some(parent) if parent.as_os_str().is_empty() => true,
        Some(parent) => {
            parent == directory || fs::canonicalize(parent).ok() == fs::canonicalize(directory).ok()
        }
    };
    is_of_a_day && is_beside
}

/// What the library was told by the system.
fn io_error(error: &InitError) -> io::Error {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    match source.and_then(io::Error::raw_os_error) {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::other(source.map_or_else(|| error.to_string(), ToString::to_string)),
    }
}

/// Lines that could not be written, so far.
pub(super) fn lost_lines_count() -> u64 {
    LOST.load(Relaxed)
}

/// The day in the name of a file of this log.
fn day_of(name: &str, file_name: &str) -> Option<Date> {
    let day = file_name.strip_prefix(name)?.strip_prefix('.')?;
    // Dates have more than one spelling; the files have this one.
    day.parse::<Date>().ok().filter(|date| date.to_string() == day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_old_files_of_the_log_go() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let days = (1..=20).map(|day| format!("osc.2020-10-{day:02}"));
        let others =
            ["osc.db", "osc.salt", "osc.key", "osc2020-10-01", "osc.2020-10-01.gz", "osc.1", "osc.20201001"];
        let others = others.map(str::to_owned);
        for name in days.chain(others.clone()) {
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
        let mut file = LogFile::open(&directory.path().join("osc")).expect("it opens");
        file.write_all(b"a line\n").expect("written");
        let after = names();
        // With today's there are 21, and a link to it.
        assert_eq!(after.len(), before + 2 - 7, "{after:?}");
        assert!(others.iter().all(|name| after.contains(name)), "{after:?}");
        assert!(
            !after.contains(&"osc.2020-10-07".to_owned()) && after.contains(&"osc.2020-10-08".to_owned())
        );
        assert_eq!(fs::read(directory.path().join("osc")).expect("a link to today's"), b"a line\n");
    }
}
