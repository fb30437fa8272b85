//! Integrity check of the database file (`PRAGMA quick_check`): at startup for small files, in the background for
//! large ones. See `docs/decisions/0011-check-of-large-files.md`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};

use super::error;
use super::reader;
use super::wal_index::WalIndex;
use crate::limits::{
    CHECK_AT_START_BYTES_MAX, CHECK_ATTEMPTS_COUNT_MAX, CHECK_NICE, CHECK_RETRY_PAUSE,
    CHECK_STEPS_BETWEEN_POLLS, CHECK_WAL_BYTES_MAX,
};
use crate::storage::error::{Error, OpenError};
use crate::storage::paths::sibling;

/// Returns whether the file must be checked before the server listens: it is small, or was found damaged before.
pub(super) fn is_due_at_start(path: &Path) -> bool {
    let bytes = fs::metadata(path).map_or(0, |metadata| metadata.len());
    bytes <= CHECK_AT_START_BYTES_MAX || marker(path).exists()
}

/// Runs the quick check and returns the first damage it finds.
pub(super) fn quick(connection: &Connection) -> rusqlite::Result<Option<String>> {
    run_pragma(connection, "PRAGMA quick_check(1)")
}

/// Runs the full check, which also compares indexes with their tables, and returns the first damage it finds. Slower
/// than [`quick`].
pub(super) fn whole(connection: &Connection) -> rusqlite::Result<Option<String>> {
    run_pragma(connection, "PRAGMA integrity_check(1)")
}

fn run_pragma(connection: &Connection, sql: &str) -> rusqlite::Result<Option<String>> {
    let result: rusqlite::Result<String> = connection.query_row(sql, [], |row| row.get(0));
    damage_in(result.map(|text| (text != "ok").then_some(text)))
}

/// Reads the schema and both ends of the table and of its index, a few pages in a file of any size, and returns damage
/// that this reveals. For a file with the current schema.
pub(super) fn ends(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let sql = r#"SELECT count(*) FROM (
        SELECT * FROM (SELECT id FROM configurations ORDER BY id LIMIT 1) UNION ALL
        SELECT * FROM (SELECT id FROM configurations ORDER BY id DESC LIMIT 1) UNION ALL
        SELECT * FROM (SELECT id FROM configurations ORDER BY "key", ifnull(environment, '') LIMIT 1) UNION ALL
        SELECT * FROM (SELECT id FROM configurations ORDER BY "key" DESC, ifnull(environment, '') DESC LIMIT 1))"#;
    damage_in(connection.query_row(sql, [], |_| Ok(None)))
}

fn damage_in(result: rusqlite::Result<Option<String>>) -> rusqlite::Result<Option<String>> {
    match result {
        Err(error) if error::reports_damage(&error) => Ok(Some(error.to_string())),
        other => other,
    }
}

/// Persists that the file was found damaged, so that the next startup checks it first instead of serving it until the
/// damage is found again. The marker is a file beside the database, which should not be written to any more.
pub(super) fn set_mark(path: &Path) {
    if let Err(error) = File::create(marker(path)) {
        tracing::warn!(%error, "cannot write the damage marker; the next startup may serve the damaged database");
    }
}

/// Removes the damage marker: the file has passed the check, so it was replaced.
pub(super) fn clear_mark(path: &Path) -> Result<(), OpenError> {
    let marker = marker(path);
    match fs::remove_file(&marker) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(OpenError::access("remove", &marker, error))
        }
        _ => Ok(()),
    }
}

fn marker(path: &Path) -> PathBuf {
    sibling(path, ".damaged")
}

/// Background check of the database of a running server.
#[derive(Debug)]
pub(super) struct Background {
    stopping: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Background {
    /// Starts the check. `on_damage` is called on its thread, at most once.
    pub(super) fn start(
        path: PathBuf,
        wal_index: WalIndex,
        on_damage: impl Fn(Error) + Send + 'static,
    ) -> io::Result<Self> {
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopping);
        let thread = thread::Builder::new().name("osc-check".into()).spawn(move || {
            // No request waits for the check. If the priority cannot be lowered, it competes like any other thread.
            rustix::process::setpriority_process(Some(rustix::thread::gettid()), CHECK_NICE).ok();
            run(&path, wal_index, &stop, on_damage);
        })?;
        Ok(Self { stopping, thread })
    }

    /// Stops the check, at whatever point it is.
    pub(super) fn stop(self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        if self.thread.join().is_err() {
            tracing::error!("the database check panicked");
        }
    }
}

fn run(path: &Path, wal_index: WalIndex, stop: &Arc<AtomicBool>, on_damage: impl Fn(Error)) {
    for _ in 0..CHECK_ATTEMPTS_COUNT_MAX {
        let started = Instant::now();
        match attempt(path, wal_index, stop, CHECK_WAL_BYTES_MAX) {
            Ok(None) => {
                let seconds = started.elapsed().as_secs_f32();
                tracing::info!(path = %path.display(), seconds, "database check passed");
                return;
            }
            Ok(Some(what)) => {
                set_mark(path);
                let error = Error::Damaged { path: path.to_owned(), what };
                tracing::error!(%error, "database check found damage");
                return on_damage(error);
            }
            Err(error) if error::code(&error) == Some(ErrorCode::OperationInterrupted) => {
                wait(stop, CHECK_RETRY_PAUSE);
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot check the database");
                return;
            }
        }
        if stop.load(Ordering::Relaxed) {
            return;
        }
    }
    tracing::warn!(
        path = %path.display(),
        "database check abandoned because of concurrent writes: run `PRAGMA quick_check` on a copy of the database"
    );
}

/// Runs the quick check once. It is one statement over the whole file, and therefore one snapshot, which keeps the WAL
/// from being emptied; the check is interrupted once the WAL has grown too large because of it.
fn attempt(
    path: &Path,
    wal_index: WalIndex,
    stop: &Arc<AtomicBool>,
    wal_bytes_max: u64,
) -> Result<Option<String>, Error> {
    let mut connection = reader::connect(path, wal_index)?;
    let (stop, wal) = (Arc::clone(stop), sibling(path, "-wal"));
    let must_stop = move || {
        stop.load(Ordering::Relaxed)
            || fs::metadata(&wal).is_ok_and(|metadata| metadata.len() > wal_bytes_max)
    };
    connection.progress_handler(CHECK_STEPS_BETWEEN_POLLS, Some(must_stop))?;
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
        matches!(result, Err(error) if error::code(error) == Some(ErrorCode::OperationInterrupted))
    }

    #[test]
    fn a_check_is_interrupted_by_wal_growth_and_by_shutdown() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = database(directory.path());
        let stop = Arc::new(AtomicBool::new(false));
        let writer = Connection::open(&path).expect("there");
        writer.execute_batch("PRAGMA wal_autocheckpoint=0; INSERT INTO t VALUES (1)").expect("valid");
        assert!(matches!(attempt(&path, WalIndex::Shared, &stop, 1 << 20), Ok(None)));
        assert!(is_interrupted(&attempt(&path, WalIndex::Shared, &stop, 1000)), "the WAL exceeds the limit");
        stop.store(true, Ordering::Relaxed);
        assert!(is_interrupted(&attempt(&path, WalIndex::Shared, &stop, 1 << 20)));
    }
}
