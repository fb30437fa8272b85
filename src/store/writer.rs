//! The one writer: a thread that drains its queue into one transaction, and answers after COMMIT.
//!
//! Invariant: a job's answer is sent only when what it says is durable, or when nothing of it remains.

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use futures_channel::oneshot;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode};

use super::BUSY_TIMEOUT;
use super::batch::{Batch, Effect, execute, prepare};
use super::check;
use super::counts::WriterCounts;
use super::digest_table::Delta;
use super::entry_cache::{EntryCache, with_row};
use super::error::Error;
use super::identity::Identity;
use super::open::sibling;
use super::page_cache::PageCache;
use super::room::{self, Reserve, Shortage};
use super::salt_file::SaltFile;
use super::schema::{self, NullEncoding};
use super::sealed_entry::{OwnerTag, SealedEntry};
use super::versions::Versions;
use super::wal_watch::WalWatch;
use super::write::{AppliedChanges, PeerProgress, Write, WriteError, WriteResult};
use crate::limits::{CHECKPOINT_PATIENCE, WAL_PAGES_MAX, WRITES_PER_COMMIT_MAX, WRITES_QUEUED_MAX};
use crate::model::{Change, Timestamp};

/// How often an idle writer looks whether another process has changed the file.
const IDLE_CHECK: Duration = Duration::from_secs(1);
/// A WAL frame is a page and a header of 24 bytes.
const WAL_BYTES_MAX: u64 = WAL_PAGES_MAX as u64 * (4096 + 24);

/// Where an answer goes. Nobody may be there any more: what was written stays.
type Answer<T> = oneshot::Sender<Result<T, WriteError>>;

enum Job {
    Write { write: Write, owner: Option<OwnerTag>, at: Timestamp, answer: Answer<Arc<SealedEntry>> },
    Apply { changes: Vec<Change>, answer: Answer<AppliedChanges> },
    Note { note: PeerProgress, answer: Answer<()> },
}

/// What a job came to, as long as the transaction is open.
enum Outcome {
    Write(WriteResult),
    Apply(Result<AppliedChanges, WriteError>),
    Note(Result<(), WriteError>),
}

/// The sending end, shared by all executors.
#[derive(Debug)]
pub(super) struct Writer {
    jobs: Sender<Job>,
}

/// Called on a thread of the store when it must give up.
pub type OnFatal = Box<dyn Fn(Error) + Send + Sync>;
/// Called on the writer's thread after a commit that put something into the outbox.
pub type OnOutbox = Box<dyn Fn(i64) + Send>;

/// What the writer thread starts with.
pub(super) struct Start {
    pub(super) connection: Connection,
    pub(super) path: PathBuf,
    pub(super) spelling: NullEncoding,
    pub(super) reserve: Reserve,
    pub(super) identity: Identity,
    pub(super) salt: Arc<SaltFile>,
    /// The database has the tag of the salt.
    pub(super) is_bound_to_salt: bool,
    pub(super) cache: Arc<EntryCache>,
    pub(super) pages: Arc<PageCache>,
    pub(super) versions: Option<Versions>,
    pub(super) on_fatal: Arc<OnFatal>,
    pub(super) on_outbox: OnOutbox,
    pub(super) counts: Arc<WriterCounts>,
}

impl Writer {
    pub(super) fn start(start: Start) -> std::io::Result<(Self, thread::JoinHandle<()>)> {
        let (jobs, queue) = bounded(WRITES_QUEUED_MAX);
        let wal = sibling(&start.path, "-wal");
        let wal_watch = WalWatch::of(&start.path);
        let thread = thread::Builder::new().name("osc-writer".into()).spawn(move || {
            // The WAL is empty unless a checkpoint at the start was impossible; then its cycle goes on.
            let cycle_begun = fs::metadata(&wal).is_ok_and(|metadata| metadata.len() > 0);
            Worker {
                start,
                wal,
                wal_watch,
                wal_bytes_max: WAL_BYTES_MAX,
                cycle_begun,
                data_version: 0,
                adoption_due: None,
            }
            .run(&queue);
        })?;
        Ok((Self { jobs }, thread))
    }

    /// Jobs that wait.
    pub(super) fn queued_count(&self) -> usize {
        self.jobs.len()
    }

    /// Queues a write; once this has succeeded it is made even if nobody waits for the answer.
    ///
    /// # Errors
    /// When the queue is full, or the writer has ended.
    pub(super) fn write(
        &self,
        write: Write,
        owner: Option<OwnerTag>,
    ) -> Result<oneshot::Receiver<WriteResult>, Error> {
        self.queue(|answer| Job::Write { write, owner, at: Timestamp::now(), answer })
    }

    /// Queues changes of other nodes; answers what became of them.
    pub(super) fn apply(
        &self,
        changes: Vec<Change>,
    ) -> Result<oneshot::Receiver<Result<AppliedChanges, WriteError>>, Error> {
        self.queue(|answer| Job::Apply { changes, answer })
    }

    /// Queues a note about a peer.
    pub(super) fn note(
        &self,
        note: PeerProgress,
    ) -> Result<oneshot::Receiver<Result<(), WriteError>>, Error> {
        self.queue(|answer| Job::Note { note, answer })
    }

    fn queue<T>(
        &self,
        job: impl FnOnce(Answer<T>) -> Job,
    ) -> Result<oneshot::Receiver<Result<T, WriteError>>, Error> {
        let (answer, receiver) = oneshot::channel();
        match self.jobs.try_send(job(answer)) {
            Ok(()) => Ok(receiver),
            Err(TrySendError::Full(_)) => Err(Error::Busy),
            Err(TrySendError::Disconnected(_)) => Err(Error::Stopped),
        }
    }
}

impl Job {
    /// Whether the reserve may be used for it.
    fn frees_room(&self) -> bool {
        matches!(self, Self::Write { write: Write::Delete { .. }, .. })
    }

    fn run(&self, batch: &mut Batch<'_>) -> Result<Outcome, Error> {
        Ok(match self {
            Self::Write { write, owner, at, .. } => {
                Outcome::Write(batch.in_savepoint(|batch| batch.write(write, *owner, *at))?)
            }
            Self::Apply { changes, .. } => Outcome::Apply(batch.in_savepoint(|batch| batch.apply(changes))?),
            Self::Note { note, .. } => Outcome::Note(batch.in_savepoint(|batch| batch.note(note))?),
        })
    }

    fn answer(self, outcome: Outcome) {
        match (self, outcome) {
            (Self::Write { answer, .. }, Outcome::Write(result)) => drop(answer.send(result)),
            (Self::Apply { answer, .. }, Outcome::Apply(result)) => drop(answer.send(result)),
            (Self::Note { answer, .. }, Outcome::Note(result)) => drop(answer.send(result)),
            _ => unreachable!("a job's outcome is of its own kind"),
        }
    }

    fn fail(self, error: Error) {
        match self {
            Self::Write { answer, .. } => drop(answer.send(Err(error.into()))),
            Self::Apply { answer, .. } => drop(answer.send(Err(error.into()))),
            Self::Note { answer, .. } => drop(answer.send(Err(error.into()))),
        }
    }
}

/// State of the writer thread.
struct Worker {
    start: Start,
    wal: PathBuf,
    wal_watch: WalWatch,
    /// The size of the WAL at which it is to be emptied: larger after a reader was in the way, so that not
    /// every commit waits for that reader again.
    wal_bytes_max: u64,
    /// The WAL already says on which checkpoint cycle it builds.
    cycle_begun: bool,
    data_version: i64,
    /// When changes by another program are to be noted as own ones, if there may be any.
    adoption_due: Option<Instant>,
}

/// What a transaction leaves to be done after its commit.
struct Applied {
    outcomes: Vec<Outcome>,
    effects: Vec<Effect>,
    delta: Delta,
    binds_to_salt: bool,
}

impl Worker {
    fn run(mut self, queue: &Receiver<Job>) {
        self.data_version = self.read_data_version();
        // What another program has changed while no server ran.
        self.adopt_external_changes();
        self.start.reserve.keep();
        loop {
            self.start.counts.beat();
            let patience = if self.add_up_next() { Duration::ZERO } else { IDLE_CHECK };
            let first = match queue.recv_timeout(patience) {
                Ok(job) => job,
                Err(RecvTimeoutError::Timeout) if patience.is_zero() => continue,
                Err(RecvTimeoutError::Timeout) => {
                    if self.is_displaced() {
                        continue;
                    }
                    self.detect_external_changes();
                    self.look_for_room();
                    if self.wal_bytes_max > WAL_BYTES_MAX {
                        // The reader that was in the way may be gone.
                        self.wal_bytes_max = WAL_BYTES_MAX;
                        self.bound_wal();
                    }
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let mut jobs = vec![first];
            jobs.extend(queue.try_iter().take(WRITES_PER_COMMIT_MAX - 1));
            if self.is_displaced() {
                jobs.into_iter().for_each(|job| job.fail(Error::Displaced));
                continue;
            }
            self.detect_external_changes();
            if let Err(fatal) = self.commit(jobs) {
                // After a failed fsync nobody knows what is on the disk; trying again would lie
                // (<https://wiki.postgresql.org/wiki/Fsync_Errors>). The next start recovers.
                if matches!(&fatal, Error::Sqlite(source) if check::is_damage(source)) {
                    check::set_mark(&self.start.path);
                }
                (self.start.on_fatal)(fatal);
                return;
            }
            self.bound_wal();
        }
        if self.is_displaced() {
            // Emptied, the WAL would be deleted by its name, which leads to another file now.
            let connection = &self.start.connection;
            if let Err(error) = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true) {
                tracing::error!(%error, "cannot leave the -wal file as it is");
            }
            return;
        }
        self.checkpoint();
    }

    /// Looked at before each transaction: what is written to a file without a name is lost. Logs when it changes.
    fn is_displaced(&mut self) -> bool {
        let fault = self.start.identity.fault();
        let spoils_reads = fault.as_ref().is_some_and(|fault| fault.spoils_reads);
        let fault = fault.map(|fault| fault.text);
        let before = self.start.counts.displaced();
        if fault != before {
            match &fault {
                Some(fault) => tracing::error!(
                    database = %self.start.path.display(),
                    salt = %self.start.salt.path().display(),
                    "writes are refused: {fault}"
                ),
                None => tracing::info!("the files are in place again"),
            }
            self.start.counts.note_displaced(fault.clone(), spoils_reads);
        }
        fault.is_some()
    }

    /// One group of jobs, one transaction. Returns an error only when the store must not go on.
    fn commit(&mut self, jobs: Vec<Job>) -> Result<(), Error> {
        let began = Instant::now();
        let mut attempt = self.attempt(&jobs);
        if matches!(attempt, Err(Error::Full)) {
            // Emptying the WAL into the database may free the space that is needed.
            self.checkpoint();
            attempt = self.attempt(&jobs);
        }
        let is_full = matches!(attempt, Err(Error::Full));
        if is_full && !self.start.counts.is_full() {
            tracing::warn!("no room for writes, reading goes on: {}", Shortage::of(&self.start.path));
        }
        self.start.counts.note(jobs.len(), began, is_full);
        if is_full && jobs.iter().any(Job::frees_room) {
            return self.commit_within_reserve(jobs);
        }
        self.answer(jobs, attempt)
    }

    fn attempt(&mut self, jobs: &[Job]) -> Result<Vec<Outcome>, Error> {
        self.transact(|batch| jobs.iter().map(|job| job.run(batch)).collect())
    }

    /// Only what makes room may use the reserve: it is there again after the next checkpoint.
    fn commit_within_reserve(&mut self, jobs: Vec<Job>) -> Result<(), Error> {
        let (freeing, others) = jobs.into_iter().partition(Job::frees_room);
        self.answer(others, Err(Error::Full))?;
        self.start.reserve.give_up();
        let attempt = self.attempt(&freeing);
        self.checkpoint();
        self.start.reserve.keep();
        self.answer(freeing, attempt)
    }

    fn answer(&self, jobs: Vec<Job>, attempt: Result<Vec<Outcome>, Error>) -> Result<(), Error> {
        match attempt {
            Ok(outcomes) => {
                for (job, outcome) in jobs.into_iter().zip(outcomes) {
                    job.answer(outcome);
                }
                Ok(())
            }
            Err(error) => {
                let fatal = is_fatal(&error);
                for job in jobs {
                    job.fail(match error {
                        Error::Full => Error::Full,
                        Error::Busy => Error::Busy,
                        Error::Displaced => Error::Displaced,
                        Error::Stopped | Error::Damaged { .. } | Error::Sqlite(_) => Error::Stopped,
                    });
                }
                if fatal { Err(error) } else { Ok(()) }
            }
        }
    }

    /// Everything or nothing is committed when this returns; the cache, the digests and the outbox's
    /// reader have been told.
    fn transact(
        &mut self,
        run: impl FnOnce(&mut Batch<'_>) -> Result<Vec<Outcome>, Error>,
    ) -> Result<Vec<Outcome>, Error> {
        let Applied { outcomes, effects, delta, binds_to_salt } = match self.apply(run) {
            Ok(applied) => applied,
            Err(error) => {
                self.roll_back();
                return Err(error);
            }
        };
        let cache = &self.start.cache;
        let keys = || effects.iter().map(|effect| effect.key.as_str());
        cache.close(keys());
        let committed = execute(&self.start.connection, "COMMIT");
        if committed.is_ok() {
            for effect in &effects {
                cache.publish(&effect.key, |group| with_row(group, effect.id, effect.after.as_ref()));
            }
            self.start.pages.publish(&effects);
        } else {
            self.roll_back();
        }
        cache.reopen(keys());
        committed?;
        self.cycle_begun = true;
        self.start.is_bound_to_salt |= binds_to_salt;
        if let Some(versions) = &mut self.start.versions {
            versions.publish(&delta);
        }
        if let Some(line) = delta.noted().outbox_line {
            (self.start.on_outbox)(line);
        }
        Ok(outcomes)
    }

    fn apply(
        &mut self,
        run: impl FnOnce(&mut Batch<'_>) -> Result<Vec<Outcome>, Error>,
    ) -> Result<Applied, Error> {
        let connection = &self.start.connection;
        execute(connection, "BEGIN IMMEDIATE")?;
        if !self.cycle_begun {
            schema::begin_cycle(connection)?;
        }
        // In the transaction of the first write that is sealed with it: never an entry without the tag of its salt.
        let binds_to_salt = !self.start.is_bound_to_salt && self.start.salt.is_pinned();
        if binds_to_salt {
            schema::set_salt_tag(connection, self.start.salt.tag())?;
        }
        let versions = self.start.versions.as_mut();
        let mut batch = Batch::new(connection, &self.start.cache, self.start.spelling, versions);
        let outcomes = run(&mut batch)?;
        Ok(Applied { outcomes, effects: batch.effects, delta: batch.delta, binds_to_salt })
    }

    /// Between two transactions: whether writes work again.
    fn look_for_room(&mut self) {
        let had_room = !self.start.counts.is_full();
        if self.start.reserve.keep() && had_room {
            return;
        }
        if had_room || self.transact(|batch| schema::touch(batch.connection).map(|()| Vec::new())).is_err() {
            return;
        }
        self.start.counts.note_room();
        tracing::info!("there is room for writes again");
    }

    /// Empties the WAL while what is in it has room in the database.
    fn bound_wal(&mut self) {
        let bytes = fs::metadata(&self.wal).map_or(0, |metadata| metadata.len());
        self.start.counts.set_wal_bytes(bytes);
        // A checkpoint that failed is not tried again after each commit.
        let bytes_max = match self.wal_bytes_max > WAL_BYTES_MAX {
            true => self.wal_bytes_max,
            false => self.wal_bytes_max.min(room::available_bytes(&self.wal)),
        };
        if bytes > bytes_max {
            let is_empty = self.checkpoint();
            self.wal_bytes_max = if is_empty { WAL_BYTES_MAX } else { bytes + WAL_BYTES_MAX / 4 };
        }
    }

    /// Moves the WAL into the database and empties it; false if it could not be. When a reader stands in the way, or the disk
    /// is full, the WAL stays as it is and the next commit tries again.
    fn checkpoint(&mut self) -> bool {
        let completed = self.complete_cycle();
        self.start.identity.note_checkpoint();
        match completed {
            Ok(true) => {
                self.cycle_begun = false;
                self.wal_watch.note_emptied(&self.start.counts);
            }
            Ok(false) => {
                // What was written to the database is still in the WAL, which must look newer.
                let touched = File::open(&self.wal).and_then(|wal| wal.set_modified(SystemTime::now()));
                tracing::debug!(?touched, "checkpoint left to a later time: a reader is at work");
                if self.start.counts.wal_bytes() > WAL_BYTES_MAX {
                    self.wal_watch.note_blocked(&self.start.counts);
                }
            }
            Err(error) => {
                self.roll_back();
                tracing::warn!(%error, "cannot empty the write-ahead log into the database");
            }
        }
        !self.cycle_begun
    }

    fn complete_cycle(&mut self) -> Result<bool, Error> {
        let connection = &self.start.connection;
        if self.cycle_begun {
            schema::end_cycle(connection)?;
        }
        connection.busy_timeout(CHECKPOINT_PATIENCE)?;
        let busy = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0));
        connection.busy_timeout(BUSY_TIMEOUT)?;
        Ok(busy? == 0)
    }

    /// One more bucket of a large store between two transactions; false when nothing is left to do now.
    fn add_up_next(&mut self) -> bool {
        let Some(versions) = &mut self.start.versions else { return false };
        versions.load_next_bucket(&self.start.connection).unwrap_or_else(|error| {
            tracing::warn!(%error, "the digests of the store cannot be added up yet");
            false
        })
    }

    fn read_data_version(&self) -> i64 {
        prepare(&self.start.connection, "PRAGMA data_version")
            .and_then(|mut statement| Ok(statement.query_row([], |row| row.get(0))?))
            .unwrap_or(self.data_version)
    }

    /// An operator may repair entries with sqlite3 while the server runs; neither the cache nor the
    /// peers must be left behind.
    fn detect_external_changes(&mut self) {
        let version = self.read_data_version();
        if version != self.data_version {
            self.data_version = version;
            self.start.cache.clear();
            self.start.pages.clear();
            self.adoption_due = Some(Instant::now());
        }
        if self.adoption_due.is_some_and(|due| due <= Instant::now()) {
            self.adopt_external_changes();
        }
    }

    /// Tried again a while later when it fails.
    fn adopt_external_changes(&mut self) {
        if self.start.versions.is_none() {
            self.adoption_due = None;
            return;
        }
        let adopted = self.transact(|batch| {
            if let Some(versions) = batch.versions.as_deref_mut() {
                versions.adopt_external_changes(batch.connection, &mut batch.delta)?;
            }
            Ok(Vec::new())
        });
        match adopted {
            Ok(_) => self.adoption_due = None,
            Err(error) => {
                self.adoption_due = Some(Instant::now() + IDLE_CHECK);
                tracing::warn!(%error, "changes by another program are not replicated yet");
            }
        }
    }

    fn roll_back(&self) {
        if !self.start.connection.is_autocommit()
            && let Err(error) = execute(&self.start.connection, "ROLLBACK")
        {
            tracing::error!(%error, "cannot roll back");
        }
    }
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
        Error::Full | Error::Busy | Error::Displaced | Error::Stopped | Error::Damaged { .. } => false,
    }
}
