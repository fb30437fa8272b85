//! The single writer: a thread that batches queued jobs into one transaction, and replies after COMMIT.
//!
//! Invariant: the reply to a job is sent only once its changes are durable, or completely rolled back.

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use futures_channel::oneshot;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode};

use super::batch::{Batch, execute, prepare};
use super::check;
use super::error;
use super::identity::Identity;
use super::reader::Readers;
use super::reserve::Reserve;
use super::schema::{self, NullEncoding};
use super::versions::Versions;
use super::wal_watch::WalWatch;
use crate::limits::{
    CHECKPOINT_TIMEOUT, SQLITE_BUSY_TIMEOUT, WAL_BYTES_MAX, WRITER_IDLE_CHECK_INTERVAL,
    WRITES_PER_COMMIT_MAX, WRITES_QUEUED_MAX,
};
use crate::model::{Change, Revision, Revisions, SealedEntry, Timestamp};
use crate::storage::counts::EngineCounts;
use crate::storage::disk_space::{self, Shortage};
use crate::storage::error::Error;
use crate::storage::feed::{Commit, Feed};
use crate::storage::paths::sibling;
use crate::storage::replication::{AppliedChanges, PeerProgress};
use crate::storage::salt_store::SaltStore;
use crate::storage::write::{Write, WriteBatch, WriteError};

/// Result of a batch of writes.
type WriteResult = Result<Vec<Arc<SealedEntry>>, WriteError>;
/// Sender of a reply. The receiver may be gone; the write is kept nevertheless.
type ReplySender<T> = oneshot::Sender<Result<T, WriteError>>;

enum Job {
    Write { batch: WriteBatch, at: Timestamp, reply: ReplySender<Vec<Arc<SealedEntry>>> },
    Apply { changes: Vec<Change>, reply: ReplySender<AppliedChanges> },
    Progress { progress: PeerProgress, reply: ReplySender<()> },
}

/// Outcome of a job whose transaction is still open.
enum Outcome {
    Write(WriteResult),
    Apply(Result<AppliedChanges, WriteError>),
    Progress(Result<(), WriteError>),
}

/// Handle of the writer, shared by all executors.
#[derive(Debug)]
pub(super) struct Writer {
    jobs: Sender<Job>,
}

/// Callback for a fatal error, called on a thread of the store.
pub type OnFatal = Box<dyn Fn(Error) + Send + Sync>;
/// Parameters of the writer thread.
pub(super) struct Start {
    pub(super) connection: Connection,
    pub(super) path: PathBuf,
    pub(super) spelling: NullEncoding,
    pub(super) reserve: Reserve,
    pub(super) identity: Identity,
    pub(super) salt: Arc<SaltStore>,
    /// Whether the database has the tag of the salt.
    pub(super) is_bound_to_salt: bool,
    pub(super) feed: Arc<Feed>,
    pub(super) readers: Arc<Readers>,
    pub(super) revisions: Revisions,
    pub(super) versions: Option<Versions>,
    pub(super) on_fatal: Arc<OnFatal>,
    pub(super) counts: Arc<EngineCounts>,
}

impl Writer {
    pub(super) fn start(start: Start) -> std::io::Result<(Self, thread::JoinHandle<()>)> {
        let (jobs, queue) = bounded(WRITES_QUEUED_MAX);
        let wal = sibling(&start.path, "-wal");
        let wal_watch = WalWatch::of(&start.path);
        let thread = thread::Builder::new().name("osc-writer".into()).spawn(move || {
            // The WAL is empty unless the checkpoint at startup was impossible; then its cycle continues.
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

    /// Returns the number of queued jobs.
    pub(super) fn queued_count(&self) -> usize {
        self.jobs.len()
    }

    /// Queues a write. Once queued, the write is made even if the receiver is dropped.
    ///
    /// # Errors
    /// Fails if the queue is full, or the writer has stopped.
    pub(super) fn write(&self, batch: WriteBatch) -> Result<oneshot::Receiver<WriteResult>, Error> {
        self.queue(|reply| Job::Write { batch, at: Timestamp::now(), reply })
    }

    /// Queues changes of other nodes. The receiver gets their outcome.
    pub(super) fn apply(
        &self,
        changes: Vec<Change>,
    ) -> Result<oneshot::Receiver<Result<AppliedChanges, WriteError>>, Error> {
        self.queue(|reply| Job::Apply { changes, reply })
    }

    /// Queues an update of the recorded peer progress.
    pub(super) fn note(
        &self,
        progress: PeerProgress,
    ) -> Result<oneshot::Receiver<Result<(), WriteError>>, Error> {
        self.queue(|reply| Job::Progress { progress, reply })
    }

    fn queue<T>(
        &self,
        job: impl FnOnce(ReplySender<T>) -> Job,
    ) -> Result<oneshot::Receiver<Result<T, WriteError>>, Error> {
        let (reply, receiver) = oneshot::channel();
        match self.jobs.try_send(job(reply)) {
            Ok(()) => Ok(receiver),
            Err(TrySendError::Full(_)) => Err(Error::Busy),
            Err(TrySendError::Disconnected(_)) => Err(Error::Stopped),
        }
    }
}

impl Job {
    /// Returns whether the job frees disk space, and may use the reserve.
    fn frees_space(&self) -> bool {
        let is_deletion = |write: &Write| matches!(write, Write::Delete { .. });
        matches!(self, Self::Write { batch, .. } if batch.writes.iter().all(is_deletion))
    }

    fn run(&self, batch: &mut Batch<'_>) -> Result<Outcome, Error> {
        Ok(match self {
            Self::Write { batch: writes, at, .. } => {
                Outcome::Write(batch.in_savepoint(|batch| batch.write(writes, *at))?)
            }
            Self::Apply { changes, .. } => Outcome::Apply(batch.in_savepoint(|batch| batch.apply(changes))?),
            Self::Progress { progress, .. } => {
                Outcome::Progress(batch.in_savepoint(|batch| batch.note(progress))?)
            }
        })
    }

    fn reply(self, outcome: Outcome) {
        match (self, outcome) {
            (Self::Write { reply, .. }, Outcome::Write(result)) => drop(reply.send(result)),
            (Self::Apply { reply, .. }, Outcome::Apply(result)) => drop(reply.send(result)),
            (Self::Progress { reply, .. }, Outcome::Progress(result)) => drop(reply.send(result)),
            _ => unreachable!("the outcome is of the same kind as the job"),
        }
    }

    fn fail(self, error: Error) {
        match self {
            Self::Write { reply, .. } => drop(reply.send(Err(error.into()))),
            Self::Apply { reply, .. } => drop(reply.send(Err(error.into()))),
            Self::Progress { reply, .. } => drop(reply.send(Err(error.into()))),
        }
    }
}

/// State of the writer thread.
struct Worker {
    start: Start,
    wal: PathBuf,
    wal_watch: WalWatch,
    /// Size of the WAL at which it is emptied. It is larger after a reader blocked a checkpoint, so that not every
    /// commit waits for that reader.
    wal_bytes_max: u64,
    /// Whether the WAL records the checkpoint cycle that it is based on.
    cycle_begun: bool,
    data_version: i64,
    /// Time at which to record external changes as local ones, if there may be any.
    adoption_due: Option<Instant>,
}

/// Applied transaction, with the effects to publish after its commit.
struct Applied {
    outcomes: Vec<Outcome>,
    commit: Commit,
    revisions: Revisions,
    reserved: Option<Revision>,
    binds_to_salt: bool,
}

impl Worker {
    fn run(mut self, queue: &Receiver<Job>) {
        self.data_version = self.read_data_version();
        self.reserve_revisions();
        // External programs may have changed entries while no server was running.
        self.adopt_external_changes();
        self.start.reserve.keep();
        loop {
            self.start.counts.beat();
            let timeout = if self.load_next_bucket() { Duration::ZERO } else { WRITER_IDLE_CHECK_INTERVAL };
            let first = match queue.recv_timeout(timeout) {
                Ok(job) => job,
                Err(RecvTimeoutError::Timeout) if timeout.is_zero() => continue,
                Err(RecvTimeoutError::Timeout) => {
                    if self.is_displaced() {
                        continue;
                    }
                    self.detect_external_changes();
                    self.probe_space();
                    if self.wal_bytes_max > WAL_BYTES_MAX {
                        // The reader that blocked a checkpoint may be gone.
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
                // After a failed fsync the state on disk is unknown, and a retry would report success wrongly
                // (<https://wiki.postgresql.org/wiki/Fsync_Errors>). Recovery runs at the next startup.
                if matches!(&fatal, Error::Engine(source) if error::is_damage(source)) {
                    check::set_mark(&self.start.path);
                }
                (self.start.on_fatal)(fatal);
                return;
            }
            self.bound_wal();
        }
        if self.is_displaced() {
            // A checkpoint would delete the WAL by its name, which now refers to another file.
            let connection = &self.start.connection;
            if let Err(error) = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true) {
                tracing::error!(%error, "cannot preserve the -wal file");
            }
            return;
        }
        self.checkpoint();
    }

    /// Returns whether a file was removed, replaced or overwritten, and logs changes of that state. Checked before each
    /// transaction, because data written to an unlinked file is lost.
    fn is_displaced(&mut self) -> bool {
        let change = self.start.identity.fault();
        let spoils_reads = change.as_ref().is_some_and(|change| change.affects_reads);
        let cause = change.map(|change| change.text);
        let before = self.start.counts.displaced();
        if cause != before {
            match &cause {
                Some(cause) => tracing::error!(
                    database = %self.start.path.display(),
                    salt = %self.start.salt.path().display(),
                    %cause,
                    "refusing writes"
                ),
                None => tracing::info!("data files are in place again"),
            }
            self.start.counts.note_displaced(cause.clone(), spoils_reads);
        }
        cause.is_some()
    }

    /// Commits a batch of jobs in one transaction, and sends their replies. Returns only fatal errors.
    fn commit(&mut self, jobs: Vec<Job>) -> Result<(), Error> {
        let began = Instant::now();
        let mut attempt = self.attempt(&jobs);
        if matches!(attempt, Err(Error::Full)) {
            // A checkpoint may free the required space.
            self.checkpoint();
            attempt = self.attempt(&jobs);
        }
        let is_full = matches!(attempt, Err(Error::Full));
        if is_full && !self.start.counts.is_full() {
            tracing::warn!(cause = %Shortage::of(&self.start.path), "no space for writes, serving reads only");
        }
        self.start.counts.note(jobs.len(), began, is_full);
        if is_full && jobs.iter().any(Job::frees_space) {
            return self.commit_within_reserve(jobs);
        }
        self.send_replies(jobs, attempt)
    }

    fn attempt(&mut self, jobs: &[Job]) -> Result<Vec<Outcome>, Error> {
        self.transact(|batch| jobs.iter().map(|job| job.run(batch)).collect())
    }

    /// Commits only the jobs that free space, within the reserve, which is recreated after the next checkpoint.
    fn commit_within_reserve(&mut self, jobs: Vec<Job>) -> Result<(), Error> {
        let (freeing, rest) = jobs.into_iter().partition(Job::frees_space);
        self.send_replies(rest, Err(Error::Full))?;
        self.start.reserve.give_up();
        let attempt = self.attempt(&freeing);
        self.checkpoint();
        self.start.reserve.keep();
        self.send_replies(freeing, attempt)
    }

    fn send_replies(&self, jobs: Vec<Job>, attempt: Result<Vec<Outcome>, Error>) -> Result<(), Error> {
        match attempt {
            Ok(outcomes) => {
                for (job, outcome) in jobs.into_iter().zip(outcomes) {
                    job.reply(outcome);
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
                        Error::Stopped | Error::Damaged { .. } | Error::Engine(_) => Error::Stopped,
                    });
                }
                if fatal { Err(error) } else { Ok(()) }
            }
        }
    }

    /// Runs jobs in one transaction. When this returns, either everything or nothing is committed; after a commit the
    /// caches, the digests and the consumer of the replication log are up to date.
    fn transact(
        &mut self,
        run: impl FnOnce(&mut Batch<'_>) -> Result<Vec<Outcome>, Error>,
    ) -> Result<Vec<Outcome>, Error> {
        let Applied { outcomes, mut commit, revisions, reserved, binds_to_salt } = match self.apply(run) {
            Ok(applied) => applied,
            Err(error) => {
                self.roll_back();
                return Err(error);
            }
        };
        commit.log_position = commit.digests.state().outbox_line;
        let Start { connection, feed, .. } = &self.start;
        let committed =
            feed.commit(&commit, || execute(connection, "COMMIT").inspect_err(|_| roll_back(connection)));
        // Revisions of a transaction that may have been committed are not issued again.
        self.start.revisions = revisions;
        committed?;
        self.cycle_begun = true;
        self.start.is_bound_to_salt |= binds_to_salt;
        if let Some(reserved) = reserved {
            self.start.revisions.note_reserved(reserved);
        }
        if let Some(versions) = &mut self.start.versions {
            versions.note_committed(&commit.digests);
        }
        Ok(outcomes)
    }

    fn apply(
        &mut self,
        run: impl FnOnce(&mut Batch<'_>) -> Result<Vec<Outcome>, Error>,
    ) -> Result<Applied, Error> {
        let Start {
            connection, readers, feed, spelling, revisions, versions, salt, is_bound_to_salt, ..
        } = &mut self.start;
        let connection = &*connection;
        execute(connection, "BEGIN IMMEDIATE")?;
        if !self.cycle_begun {
            schema::begin_cycle(connection)?;
        }
        // The tag is written in the transaction of the first write encrypted with the salt, so that no entry is ever
        // stored without it.
        let binds_to_salt = !*is_bound_to_salt && salt.is_pinned();
        if binds_to_salt {
            schema::set_salt_tag(connection, salt.tag())?;
        }
        let mut batch = Batch::new(connection, readers, feed, *spelling, versions.as_mut(), *revisions);
        let outcomes = run(&mut batch)?;
        let Batch { commit, revisions, .. } = batch;
        let reserved = revisions.due_reservation();
        if let Some(reserved) = reserved {
            schema::reserve_revision(connection, reserved)?;
        }
        Ok(Applied { outcomes, commit, revisions, reserved, binds_to_salt })
    }

    /// Probes between two transactions whether writes work again.
    fn probe_space(&mut self) {
        let had_space = !self.start.counts.is_full();
        if self.start.reserve.keep() && had_space {
            return;
        }
        if had_space || self.transact(|batch| schema::touch(batch.connection).map(|()| Vec::new())).is_err() {
            return;
        }
        self.start.counts.note_room();
        tracing::info!("space for writes is available again");
    }

    /// Empties the WAL before it outgrows its bound or the free disk space, which its pages may need in the database.
    fn bound_wal(&mut self) {
        let bytes = fs::metadata(&self.wal).map_or(0, |metadata| metadata.len());
        self.start.counts.set_wal_bytes(bytes);
        // A failed checkpoint is not retried after every commit.
        let bytes_max = match self.wal_bytes_max > WAL_BYTES_MAX {
            true => self.wal_bytes_max,
            false => self.wal_bytes_max.min(disk_space::available_bytes(&self.wal)),
        };
        if bytes > bytes_max {
            let is_empty = self.checkpoint();
            self.wal_bytes_max = if is_empty { WAL_BYTES_MAX } else { bytes + WAL_BYTES_MAX / 4 };
        }
    }

    /// Checkpoints the WAL and empties it; returns false if that was impossible. If a reader blocks the checkpoint, or
    /// the disk is full, the WAL stays as it is and a later commit retries.
    fn checkpoint(&mut self) -> bool {
        let completed = self.complete_cycle();
        self.start.identity.note_checkpoint();
        match completed {
            Ok(true) => {
                self.cycle_begun = false;
                self.wal_watch.note_emptied(&self.start.counts);
            }
            Ok(false) => {
                // The checkpointed pages are still in the WAL, which must look newer than the database.
                let touched = File::open(&self.wal).and_then(|wal| wal.set_modified(SystemTime::now()));
                tracing::debug!(?touched, "checkpoint postponed: a reader is active");
                if self.start.counts.wal_bytes() > WAL_BYTES_MAX {
                    self.wal_watch.note_blocked(&self.start.counts);
                }
            }
            Err(error) => {
                self.roll_back();
                tracing::warn!(%error, "checkpoint failed");
            }
        }
        !self.cycle_begun
    }

    fn complete_cycle(&mut self) -> Result<bool, Error> {
        let connection = &self.start.connection;
        if self.cycle_begun {
            schema::end_cycle(connection)?;
        }
        connection.busy_timeout(CHECKPOINT_TIMEOUT)?;
        let busy = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0));
        connection.busy_timeout(SQLITE_BUSY_TIMEOUT)?;
        Ok(busy? == 0)
    }

    /// Loads one digest bucket of a large store between two transactions; returns false if there is nothing to do now.
    fn load_next_bucket(&mut self) -> bool {
        let Some(versions) = &mut self.start.versions else { return false };
        versions.load_next_bucket(&self.start.connection).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot load a digest bucket; will retry");
            false
        })
    }

    fn read_data_version(&self) -> i64 {
        prepare(&self.start.connection, "PRAGMA data_version")
            .and_then(|mut statement| Ok(statement.query_row([], |row| row.get(0))?))
            .unwrap_or(self.data_version)
    }

    /// Detects changes by external programs, such as repairs with sqlite3, so that the caches and the peers follow
    /// them.
    fn detect_external_changes(&mut self) {
        let version = self.read_data_version();
        if version != self.data_version {
            self.data_version = version;
            let revision = self.start.revisions.issue();
            self.start.readers.set_foreign_revision(revision);
            self.start.feed.reset(revision);
            self.adoption_due = Some(Instant::now());
        }
        if self.adoption_due.is_some_and(|due| due <= Instant::now()) {
            self.adopt_external_changes();
        }
    }

    /// Records external changes as local ones. A failure is retried later.
    fn adopt_external_changes(&mut self) {
        if self.start.versions.is_none() {
            self.adoption_due = None;
            return;
        }
        let adopted = self.transact(|batch| {
            if let Some(versions) = batch.versions.as_deref_mut() {
                versions.adopt_external_changes(batch.connection, &mut batch.commit.digests)?;
            }
            Ok(Vec::new())
        });
        match adopted {
            Ok(_) => self.adoption_due = None,
            Err(error) => {
                self.adoption_due = Some(Instant::now() + WRITER_IDLE_CHECK_INTERVAL);
                tracing::warn!(%error, "cannot replicate external changes yet; will retry");
            }
        }
    }

    /// Reserves revisions, so that rows of other programs, which have the first one, do not get an earlier one at the
    /// next startup. Without disk space, the first write does.
    fn reserve_revisions(&mut self) {
        if let Err(error) = self.transact(|_| Ok(Vec::new())) {
            tracing::warn!(%error, "cannot reserve revisions yet");
        }
    }

    fn roll_back(&self) {
        roll_back(&self.start.connection);
    }
}

fn roll_back(connection: &Connection) {
    if !connection.is_autocommit()
        && let Err(error) = execute(connection, "ROLLBACK")
    {
        tracing::error!(%error, "rollback failed");
    }
}

fn is_fatal(error: &Error) -> bool {
    match error {
        Error::Engine(_) => matches!(
            error::code(error),
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
