//! The file of the log: one for each day, of which some are kept.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use jiff::civil::Date;
use jiff::{Timestamp, tz::Offset};
use tracing_appender::rolling::{RollingFileAppender, Rotation};

/// Days of which there is a file; older ones are deleted.
const FILES_COUNT_MAX: usize = 14;

/// Lines that could not be written, on a full disk say.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Writes `PATH.YYYY-MM-DD`, by the days of UTC; `PATH` itself leads to the one of today, unless something else is
/// there.
pub(super) struct LogFile {
    appender: RollingFileAppender,
    directory: PathBuf,
    name: String,
    /// The day on which old files were deleted last.
    tidied: Option<Date>,
    is_failing: bool,
}

impl LogFile {
    /// # Errors
    /// With the reason, when there can be no such file.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let name = path.file_name().and_then(OsStr::to_str).ok_or("it is no file name")?;
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let builder = RollingFileAppender::builder().rotation(Rotation::DAILY).filename_prefix(name);
        let is_free = path.symlink_metadata().map_or(true, |found| found.is_symlink());
        let builder = if is_free { builder.latest_symlink(name) } else { builder };
        let appender = builder.build(directory).map_err(|error| {
            std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string)
        })?;
        let (directory, name) = (directory.to_owned(), name.to_owned());
        Ok(Self { appender, directory, name, tidied: None, is_failing: false })
    }

    /// Deletes the oldest files, once a day. Nothing but what this log has made: other names may begin as it does.
    fn tidy(&mut self) {
        let today = Offset::UTC.to_datetime(Timestamp::now()).date();
        if self.tidied == Some(today) {
            return;
        }
        self.tidied = Some(today);
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

    /// Counts what fails, and says so on standard error when that begins: the log cannot.
    fn note<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        match &result {
            Ok(_) => self.is_failing = false,
            Err(error) => {
                LOST.fetch_add(1, Relaxed);
                if !std::mem::replace(&mut self.is_failing, true) {
                    writeln!(io::stderr(), "opensecureconf: cannot write to the log file: {error}").ok();
                }
            }
        }
        result
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        self.tidy();
        let written = self.appender.write_all(line);
        self.note(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.appender.flush()
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
        let mut file = LogFile::open(&directory.path().join("osc")).expect("it opens");
        let names = || {
            let entries = fs::read_dir(directory.path()).expect("readable");
            let mut names: Vec<String> = entries
                .map(|entry| entry.expect("readable").file_name().into_string().expect("UTF-8"))
                .collect();
            names.sort();
            names
        };
        let before = names().len();
        file.write_all(b"a line\n").expect("written");
        let after = names();
        // With today's there are 21.
        assert_eq!(after.len(), before - 7, "{after:?}");
        assert!(others.iter().all(|name| after.contains(name)), "{after:?}");
        assert!(
            !after.contains(&"osc.2020-10-07".to_owned()) && after.contains(&"osc.2020-10-08".to_owned())
        );
        assert_eq!(fs::read(directory.path().join("osc")).expect("a link to today's"), b"a line\n");
    }
}
