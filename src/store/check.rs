//! The check of the database file (`PRAGMA quick_check`): before the start where that is quick,
//! beside the running server where it is not. See `docs/decisions/0011-check-of-large-files.md`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};

use super::error::{Error, OpenError};
use super::open::sibling;
use super::reader;
use super::room::WalIndex;
use crate::limits::{CHECK_AT_START_BYTES_MAX, CHECK_NICE, CHECK_WAL_BYTES_MAX};

/// Steps of SQLite, a page or an instruction each, after which a check looks whether it may go on.
const STEPS_BETWEEN_LOOKS: i32 = 1000;
/// A check that was in the way of the writer is tried again after this, and so often in all.
const PAUSE: Duration = Duration::from_secs(60);
const ATTEMPTS_COUNT_MAX: u32 = 10;

/// Whether the file must be checked before the server listens: it is small, or was found damaged before.
pub(super) fn is_due_at_start(path: &Path) -> bool {
    let bytes = fs::metadata(path).map_or(0, |metadata| metadata.len());
    bytes <= CHECK_AT_START_BYTES_MAX || mark(path).exists()
}

/// What is wrong with the file, if anything is.
pub(super) fn quick(connection: &Connection) -> rusqlite::Result<Option<String>> {
    run_pragma(connection, "PRAGMA quick_check(1)")
}

/// Damage found by a check of the whole file that compares indexes with their tables, too. Slower than [`quick`].
pub(super) fn whole(connection: &Connection) -> rusqlite::Result<Option<String>> {
    run_pragma(connection, "PRAGMA integrity_check(1)")
}

fn run_pragma(connection: &Connection, sql: &str) -> rusqlite::Result<Option<String>> {
    let answer: rusqlite::Result<String> = connection.query_row(sql, [], |row| row.get(0));
    found(answer.map(|answer| (answer != "ok").then_some(answer)))
}

/// Looks at the schema, and at both ends of the table and of its index, which is a few pages however many
/// there are. For a file in the current shape.
pub(super) fn ends(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let sql = r#"SELECT count(*) FROM (
        SELECT * FROM (SELECT id FROM configurations ORDER BY id LIMIT 1) UNION ALL
        SELECT * FROM (SELECT id FROM configurations ORDER BY id DESC LIMIT 1) UNION ALL
        SELECT * FROM (SELECT id FROM configurations ORDER BY "key", ifnull(environment, '') LIMIT 1) UNION ALL
        SELECT * FROM (SELECT id FROM configurations ORDER BY "key" DESC, ifnull(environment, '') DESC LIMIT 1))"#;
    found(connection.query_row(sql, [], |_| Ok(None)))
}

fn found(answer: rusqlite::Result<Option<String>>) -> rusqlite::Result<Option<String>> {
    match answer {
        Err(error) if is_damage(&error) => Ok(Some(error.to_string())),
        other => other,
    }
}

/// Whether SQLite says by this error that the file is damaged.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Remembers that the file was found damaged, so that the next start does not serve it for as long as
/// it takes to find out again. Beside the database, in which nothing should be written any more.
pub(super) fn set_mark(path: &Path) {
    if let Err(error) = File::create(mark(path)) {
        tracing::warn!(%error, "the next start may not know that the database is damaged");
    }
}

/// Forgets the mark: the file has passed, so it is another one by now.
pub(super) fn clear_mark(path: &Path) -> Result<(), OpenError> {
    let mark = mark(path);
    match fs::remove_file(&mark) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(OpenError::access("remove", &mark, error))
        }
        _ => Ok(()),
    }
}

fn mark(path: &Path) -> PathBuf {
    sibling(path, ".damaged")
}

/// A check beside the running server.
#[derive(Debug)]
pub(super) struct Background {
    stopping: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Background {
    /// Starts it; `on_damage` is called on its thread, at most once.
    pub(super) fn start(
        path: PathBuf,
        wal_index: WalIndex,
        on_damage: impl Fn(Error) + Send + 'static,
    ) -> io::Result<Self> {
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopping);
        let thread = thread::Builder::new().name("osc-check".into()).spawn(move || {
            // Nobody waits for it. If that is refused, it takes its share like others.
            rustix::process::setpriority_process(Some(rustix::thread::gettid()), CHECK_NICE).ok();
            run(&path, wal_index, &stop, on_damage);
        })?;
        Ok(Self { stopping, thread })
    }

    /// Ends it, wherever it is.
    pub(super) fn stop(self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        if self.thread.join().is_err() {
            tracing::error!("the check of the database ended by a panic");
        }
    }
}

fn run(path: &Path, wal_index: WalIndex, stop: &Arc<AtomicBool>, on_damage: impl Fn(Error)) {
    for _ in 0..ATTEMPTS_COUNT_MAX {
        let started = Instant::now();
        match attempt(path, wal_index, stop, CHECK_WAL_BYTES_MAX) {
            Ok(None) => {
                let seconds = started.elapsed().as_secs_f32();
                tracing::info!(path = %path.display(), seconds, "the database was checked, and is whole");
                return;
            }
            Ok(Some(what)) => {
                set_mark(path);
                let error = Error::Damaged { path: path.to_owned(), what };
                tracing::error!("{error}");
                return on_damage(error);
            }
            Err(Error::Sqlite(error))
                if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) =>
            {
                wait(stop, PAUSE);
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the database cannot be checked");
                return;
            }
        }
        if stop.load(Ordering::Relaxed) {
            return;
        }
    }
    tracing::warn!(
        path = %path.display(),
        "the database was not checked, because too much is written meanwhile: run `PRAGMA quick_check` on a copy of it"
    );
}

/// One statement over the whole file, and so one snapshot, which keeps the WAL from being emptied: it is
/// given up when the WAL has grown too large by that.
fn attempt(
    path: &Path,
    wal_index: WalIndex,
    stop: &Arc<AtomicBool>,
    wal_bytes_max: u64,
) -> Result<Option<String>, Error> {
    let mut connection = reader::connect(path, wal_index)?;
    let (stop, wal) = (Arc::clone(stop), sibling(path, "-wal"));
    let must_end = move || {
        stop.load(Ordering::Relaxed)
            || fs::metadata(&wal).is_ok_and(|metadata| metadata.len() > wal_bytes_max)
    };
    connection.progress_handler(STEPS_BETWEEN_LOOKS, Some(must_end))?;
    Ok(quick(&connection)?)
}

fn wait(stop: &AtomicBool, pause: Duration) {
    let until = Instant::now() + pause;
    while !stop.load(Ordering::Relaxed) && Instant::now() < until {
        thread::park_timeout(until.saturating_duration_since(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database(directory: &Path) -> PathBuf {
        let path = directory.join("checked.db");
        let connection = Connection::open(&path).expect("a new file");
        connection
            .execute_batch(
                "PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; CREATE TABLE t (x);
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
                 INSERT INTO t SELECT randomblob(500) FROM n;
                 PRAGMA wal_checkpoint(TRUNCATE);",
            )
            .expect("valid");
        path
    }

    fn is_interrupted(result: &Result<Option<String>, Error>) -> bool {
        matches!(result, Err(Error::Sqlite(error))
            if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted))
    }

    #[test]
    fn a_check_gives_way_to_the_writer_and_to_the_end() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = database(directory.path());
        let stop = Arc::new(AtomicBool::new(false));
        let writer = Connection::open(&path).expect("there");
        writer.execute_batch("PRAGMA wal_autocheckpoint=0; INSERT INTO t VALUES (1)").expect("valid");
        assert!(matches!(attempt(&path, WalIndex::Shared, &stop, 1 << 20), Ok(None)));
        assert!(
            is_interrupted(&attempt(&path, WalIndex::Shared, &stop, 1000)),
            "the log is larger than that"
        );
        stop.store(true, Ordering::Relaxed);
        assert!(is_interrupted(&attempt(&path, WalIndex::Shared, &stop, 1 << 20)));
    }
}
