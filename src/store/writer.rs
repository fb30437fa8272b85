//! The one writer: a thread that drains its queue into one transaction, and answers after COMMIT.
//!
//! Invariant: a job's answer is sent only when what it says is durable, or when nothing of it remains.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use futures_channel::oneshot;
use rusqlite::{Connection, ErrorCode, params};

use super::entry_cache::{EntryCache, with_row};
use super::error::Error;
use super::open::sibling;
use super::row::{OwnerTag, Row};
use super::{reader, schema};
use crate::limits::{WAL_PAGES_MAX, WRITES_PER_COMMIT_MAX, WRITES_QUEUED_MAX};
use crate::model::{Ciphertext, Timestamp};

/// How often an idle writer looks whether another process has changed the file.
const IDLE_CHECK: Duration = Duration::from_secs(1);
/// A WAL frame is a page and a header of 24 bytes.
const WAL_BYTES_MAX: u64 = WAL_PAGES_MAX as u64 * (4096 + 24);

/// What is to be written.
#[derive(Debug)]
pub enum Change {
    /// A new entry.
    Create {
        /// Its key.
        key: String,
        /// Its environment.
        environment: Option<String>,
        /// Its category.
        category: Option<String>,
        /// Its sealed value.
        ciphertext: Ciphertext,
    },
    /// A new value for an entry that the writer's user key was seen to open.
    Update {
        /// The row that was opened.
        seen: Arc<Row>,
        /// The new category; `None` keeps it.
        category: Option<String>,
        /// The environment to move to; `None` stays.
        environment: Option<String>,
        /// The new sealed value.
        ciphertext: Ciphertext,
    },
    /// The end of an entry that the writer's user key was seen to open.
    Delete {
        /// The row that was opened.
        seen: Arc<Row>,
    },
}

/// Why one change was not made.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The key exists in this environment.
    #[error("the entry exists already")]
    AlreadyExists,
    /// The row is not the one that was seen, or gone: look again.
    #[error("the entry has changed meanwhile")]
    Changed,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] Error),
}

/// What a write leaves behind: the new row, or the one that was deleted.
pub type WriteResult = Result<Arc<Row>, WriteError>;

struct Job {
    change: Change,
    owner: OwnerTag,
    at: Timestamp,
    answer: oneshot::Sender<WriteResult>,
}

/// The sending end, shared by all executors.
#[derive(Debug)]
pub(super) struct Writer {
    jobs: Sender<Job>,
}

/// What the writer thread does when it must give up: it is told why, once.
pub type OnFatal = Box<dyn FnOnce(Error) + Send>;

impl Writer {
    pub(super) fn start(
        connection: Connection,
        path: PathBuf,
        no_environment: Option<&'static str>,
        cache: Arc<EntryCache>,
        on_fatal: OnFatal,
    ) -> std::io::Result<(Self, thread::JoinHandle<()>)> {
        let (jobs, queue) = bounded(WRITES_QUEUED_MAX);
        let wal = sibling(&path, "-wal");
        let thread = thread::Builder::new().name("osc-writer".into()).spawn(move || {
            // The WAL is empty unless a checkpoint at the start was impossible; then its cycle goes on.
            let cycle_begun = fs::metadata(&wal).is_ok_and(|metadata| metadata.len() > 0);
            let worker = Worker { connection, wal, no_environment, cache, cycle_begun, data_version: 0 };
            worker.run(&queue, on_fatal);
        })?;
        Ok((Self { jobs }, thread))
    }

    /// Queues a change; once this has succeeded the change is made even if nobody waits for the answer.
    ///
    /// # Errors
    /// When the queue is full, or the writer has ended.
    pub(super) fn submit(
        &self,
        change: Change,
        owner: OwnerTag,
    ) -> Result<oneshot::Receiver<WriteResult>, Error> {
        let (answer, receiver) = oneshot::channel();
        match self.jobs.try_send(Job { change, owner, at: Timestamp::now(), answer }) {
            Ok(()) => Ok(receiver),
            Err(TrySendError::Full(_)) => Err(Error::Busy),
            Err(TrySendError::Disconnected(_)) => Err(Error::Stopped),
        }
    }
}

/// State of the writer thread.
struct Worker {
    connection: Connection,
    wal: PathBuf,
    no_environment: Option<&'static str>,
    cache: Arc<EntryCache>,
    /// The WAL already says on which checkpoint cycle it builds.
    cycle_begun: bool,
    data_version: i64,
}

/// What an applied change does to the cache once it is committed.
struct Effect {
    key: String,
    id: i64,
    after: Option<Arc<Row>>,
}

/// Rows as the open transaction sees them, by key and environment; `None` was deleted or moved away.
type Overlay = HashMap<(String, Option<String>), Option<Arc<Row>>>;

impl Worker {
    fn run(mut self, queue: &Receiver<Job>, on_fatal: OnFatal) {
        self.data_version = self.read_data_version();
        loop {
            let first = match queue.recv_timeout(IDLE_CHECK) {
                Ok(job) => job,
                Err(RecvTimeoutError::Timeout) => {
                    self.notice_foreign_changes();
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let mut jobs = vec![first];
            jobs.extend(queue.try_iter().take(WRITES_PER_COMMIT_MAX - 1));
            self.notice_foreign_changes();
            if let Err(fatal) = self.commit(jobs) {
                // After a failed fsync nobody knows what is on the disk; trying again would lie
                // (<https://wiki.postgresql.org/wiki/Fsync_Errors>). The next start recovers.
                on_fatal(fatal);
                return;
            }
            if fs::metadata(&self.wal).is_ok_and(|metadata| metadata.len() > WAL_BYTES_MAX) {
                self.checkpoint();
            }
        }
        self.checkpoint();
    }

    /// One group of jobs, one transaction. Returns an error only when the store must not go on.
    fn commit(&mut self, jobs: Vec<Job>) -> Result<(), Error> {
        let mut attempt = self.transact(&jobs);
        if matches!(attempt, Err(Error::Full)) {
            // Emptying the WAL into the database may free the space that is needed, for a DELETE say.
            self.checkpoint();
            attempt = self.transact(&jobs);
        }
        match attempt {
            Ok(results) => {
                for (job, result) in jobs.into_iter().zip(results) {
                    // The client may be gone; its change stays.
                    job.answer.send(result).ok();
                }
                Ok(())
            }
            Err(error) => {
                let fatal = is_fatal(&error);
                for job in jobs {
                    let told = match error {
                        Error::Full => Error::Full,
                        Error::Busy => Error::Busy,
                        Error::Stopped | Error::Sqlite(_) => Error::Stopped,
                    };
                    job.answer.send(Err(told.into())).ok();
                }
                if fatal { Err(error) } else { Ok(()) }
            }
        }
    }

    /// All jobs or none are committed when this returns; the cache has been told.
    fn transact(&mut self, jobs: &[Job]) -> Result<Vec<WriteResult>, Error> {
        let result = self.apply_all(jobs);
        match result {
            Ok((results, effects)) => {
                let keys = || effects.iter().map(|effect| effect.key.as_str());
                self.cache.close(keys());
                let committed = self.execute("COMMIT");
                if committed.is_ok() {
                    for effect in &effects {
                        self.cache
                            .publish(&effect.key, |group| with_row(group, effect.id, effect.after.as_ref()));
                    }
                } else {
                    self.roll_back();
                }
                self.cache.reopen(keys());
                committed?;
                self.cycle_begun = true;
                Ok(results)
            }
            Err(error) => {
                self.roll_back();
                Err(error)
            }
        }
    }

    fn apply_all(&self, jobs: &[Job]) -> Result<(Vec<WriteResult>, Vec<Effect>), Error> {
        self.execute("BEGIN IMMEDIATE")?;
        if !self.cycle_begun {
            schema::begin_cycle(&self.connection)?;
        }
        let mut overlay = Overlay::new();
        let mut results = Vec::with_capacity(jobs.len());
        let mut effects = Vec::with_capacity(jobs.len());
        for job in jobs {
            results.push(self.apply_one(job, &mut overlay, &mut effects)?);
        }
        Ok((results, effects))
    }

    /// A job that fails alone is undone alone. The outer error ends the transaction.
    fn apply_one(
        &self,
        job: &Job,
        overlay: &mut Overlay,
        effects: &mut Vec<Effect>,
    ) -> Result<WriteResult, Error> {
        self.execute("SAVEPOINT job")?;
        let before = effects.len();
        match self.apply(job, overlay, effects) {
            Ok(row) => {
                self.execute("RELEASE job")?;
                Ok(Ok(row))
            }
            Err(WriteError::Store(error)) if self.connection.is_autocommit() || !is_of_one_job(&error) => {
                Err(error)
            }
            Err(error) => {
                effects.truncate(before);
                self.execute("ROLLBACK TO job")?;
                self.execute("RELEASE job")?;
                Ok(Err(error))
            }
        }
    }

    fn apply(&self, job: &Job, overlay: &mut Overlay, effects: &mut Vec<Effect>) -> WriteResult {
        match &job.change {
            Change::Create { key, environment, category, ciphertext } => {
                if self.current(overlay, key, environment.as_deref())?.is_some() {
                    return Err(WriteError::AlreadyExists);
                }
                let at = job.at.to_database();
                let mut insert = self.prepare(
                    r#"INSERT INTO configurations ("key", encrypted_value, category, environment, created_at, updated_at)
                       VALUES (?1, ?2, ?3, ?4, ?5, ?5)"#,
                )?;
                let spelled = environment.as_deref().or(self.no_environment);
                insert.execute(params![key, ciphertext.to_text(), category, spelled, at]).map_err(unique)?;
                let id = self.connection.last_insert_rowid();
                let mut row = Row::new(id, key.clone(), environment.clone(), Some(ciphertext.clone()));
                row.category.clone_from(category);
                row.created_at = Some(job.at);
                row.updated_at = Some(job.at);
                Ok(record(overlay, effects, row, job.owner))
            }
            Change::Update { seen, category, environment, ciphertext } => {
                let current = self.unchanged(overlay, seen, job.owner)?;
                let category = category.as_ref().or(current.category.as_ref());
                let environment = environment.as_ref().or(current.environment.as_ref());
                let spelled = environment.map(String::as_str).or(self.no_environment);
                let mut update = self.prepare(
                    "UPDATE configurations SET encrypted_value = ?2, category = ?3, environment = ?4, updated_at = ?5
                     WHERE id = ?1",
                )?;
                let at = job.at.to_database();
                update
                    .execute(params![current.id, ciphertext.to_text(), category, spelled, at])
                    .map_err(unique)?;
                if environment != current.environment.as_ref() {
                    overlay.insert((current.key.clone(), current.environment.clone()), None);
                }
                let mut row =
                    Row::new(current.id, current.key.clone(), environment.cloned(), Some(ciphertext.clone()));
                row.category = category.cloned();
                row.created_at = current.created_at;
                row.updated_at = Some(job.at);
                Ok(record(overlay, effects, row, job.owner))
            }
            Change::Delete { seen } => {
                let current = self.unchanged(overlay, seen, job.owner)?;
                self.prepare("DELETE FROM configurations WHERE id = ?1")?
                    .execute([current.id])
                    .map_err(Error::from)?;
                overlay.insert((current.key.clone(), current.environment.clone()), None);
                effects.push(Effect { key: current.key.clone(), id: current.id, after: None });
                Ok(current)
            }
        }
    }

    /// The row as it is now, if it is still the one that was seen, or was since written by the same owner.
    fn unchanged(&self, overlay: &Overlay, seen: &Arc<Row>, owner: OwnerTag) -> WriteResult {
        match self.current(overlay, &seen.key, seen.environment.as_deref())? {
            Some(row)
                if row.id == seen.id
                    && (row.ciphertext == seen.ciphertext || row.written_by == Some(owner)) =>
            {
                Ok(row)
            }
            _ => Err(WriteError::Changed),
        }
    }

    fn current(
        &self,
        overlay: &Overlay,
        key: &str,
        environment: Option<&str>,
    ) -> Result<Option<Arc<Row>>, Error> {
        if !overlay.is_empty()
            && let Some(row) = overlay.get(&(key.to_owned(), environment.map(str::to_owned)))
        {
            return Ok(row.clone());
        }
        if let Some(group) = self.cache.get(key) {
            return Ok(group.exact(environment).cloned());
        }
        Ok(reader::exact(&self.connection, key, environment)?.map(Arc::new))
    }

    /// Moves the WAL into the database and empties it. When a reader stands in the way, or the disk
    /// is full, the WAL stays as it is and the next commit tries again.
    fn checkpoint(&mut self) {
        let moved = self.complete_cycle();
        match moved {
            Ok(true) => self.cycle_begun = false,
            Ok(false) => tracing::debug!("checkpoint left to a later time: a reader is at work"),
            Err(error) => {
                self.roll_back();
                tracing::warn!(%error, "cannot empty the write-ahead log into the database");
            }
        }
    }

    fn complete_cycle(&mut self) -> Result<bool, Error> {
        if self.cycle_begun {
            schema::end_cycle(&self.connection)?;
        }
        let busy: i64 = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        Ok(busy == 0)
    }

    fn read_data_version(&self) -> i64 {
        self.prepare("PRAGMA data_version")
            .and_then(|mut statement| Ok(statement.query_row([], |row| row.get(0))?))
            .unwrap_or(self.data_version)
    }

    /// An operator may repair entries with sqlite3 while the server runs; the cache must not hide that.
    fn notice_foreign_changes(&mut self) {
        let version = self.read_data_version();
        if version != self.data_version {
            self.data_version = version;
            self.cache.clear();
        }
    }

    fn prepare(&self, sql: &str) -> Result<rusqlite::CachedStatement<'_>, Error> {
        Ok(self.connection.prepare_cached(sql)?)
    }

    fn execute(&self, sql: &str) -> Result<(), Error> {
        self.prepare(sql)?.execute([])?;
        Ok(())
    }

    fn roll_back(&self) {
        if !self.connection.is_autocommit()
            && let Err(error) = self.execute("ROLLBACK")
        {
            tracing::error!(%error, "cannot roll back");
        }
    }
}

fn record(overlay: &mut Overlay, effects: &mut Vec<Effect>, mut row: Row, owner: OwnerTag) -> Arc<Row> {
    row.written_by = Some(owner);
    // What the service seals is canonical.
    row.set_canonical();
    let row = Arc::new(row);
    overlay.insert((row.key.clone(), row.environment.clone()), Some(Arc::clone(&row)));
    effects.push(Effect { key: row.key.clone(), id: row.id, after: Some(Arc::clone(&row)) });
    row
}

fn unique(error: rusqlite::Error) -> WriteError {
    match error.sqlite_error_code() {
        Some(ErrorCode::ConstraintViolation) => WriteError::AlreadyExists,
        _ => WriteError::Store(error.into()),
    }
}

/// An error of one statement, after which the others in the transaction are still good.
fn is_of_one_job(error: &Error) -> bool {
    matches!(error, Error::Sqlite(source)
        if matches!(source.sqlite_error_code(),
            Some(ErrorCode::TooBig | ErrorCode::TypeMismatch | ErrorCode::ConstraintViolation)))
}

fn is_fatal(error: &Error) -> bool {
    match error {
        Error::Sqlite(source) => matches!(
            source.sqlite_error_code(),
            Some(
                ErrorCode::SystemIoFailure
                    | ErrorCode::DatabaseCorrupt
                    | ErrorCode::NotADatabase
                    | ErrorCode::ReadOnly
            )
        ),
        Error::Full | Error::Busy | Error::Stopped => false,
    }
}
