//! Batch of jobs in one open transaction: their changes to rows and versions, and their effects on the caches after the
//! commit.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::{Connection, ErrorCode, params};

use super::error;
use super::reader::Readers;
use super::schema::{self, NullEncoding};
use super::versions::Versions;
use crate::model::{Change, EntryId, OwnerTag, Revisions, SealedEntry, Timestamp};
use crate::storage::error::Error;
use crate::storage::feed::{Commit, EntryChange, Feed};
use crate::storage::replication::{AppliedChanges, PeerProgress};
use crate::storage::write::{Write, WriteBatch, WriteError};

/// Rows as changed by the open transaction, by key and environment; `None` if deleted or moved.
type Overlay = HashMap<EntryId, Option<Arc<SealedEntry>>>;

/// Batch of jobs in one transaction.
pub(super) struct Batch<'a> {
    pub(super) connection: &'a Connection,
    pub(super) readers: &'a Readers,
    pub(super) feed: &'a Feed,
    pub(super) spelling: NullEncoding,
    pub(super) versions: Option<&'a mut Versions>,
    /// Source of revisions. Those of a job that is rolled back are skipped.
    pub(super) revisions: Revisions,
    pub(super) commit: Commit,
    overlay: Overlay,
    /// Overlay entries that the running job has replaced, restored if it fails.
    replaced: Vec<(EntryId, Option<Option<Arc<SealedEntry>>>)>,
}

impl<'a> Batch<'a> {
    pub(super) fn new(
        connection: &'a Connection,
        readers: &'a Readers,
        feed: &'a Feed,
        spelling: NullEncoding,
        versions: Option<&'a mut Versions>,
        revisions: Revisions,
    ) -> Self {
        Self {
            connection,
            readers,
            feed,
            spelling,
            versions,
            revisions,
            commit: Commit::default(),
            overlay: Overlay::new(),
            replaced: Vec::new(),
        }
    }

    /// Runs one job in its own savepoint. A failure that concerns only the job (the inner error) rolls back only the
    /// job; the outer error ends the transaction.
    pub(super) fn in_savepoint<T>(
        &mut self,
        job: impl FnOnce(&mut Self) -> Result<T, WriteError>,
    ) -> Result<Result<T, WriteError>, Error> {
        execute(self.connection, "SAVEPOINT job")?;
        let savepoint = (self.commit.changes.len(), self.commit.digests.savepoint());
        self.replaced.clear();
        match job(self) {
            Ok(done) => {
                execute(self.connection, "RELEASE job")?;
                Ok(Ok(done))
            }
            Err(WriteError::Store(error))
                if self.connection.is_autocommit() || !is_statement_error(&error) =>
            {
                Err(error)
            }
            Err(error) => {
                self.commit.changes.truncate(savepoint.0);
                self.restore_overlay();
                self.commit.digests.truncate(savepoint.1);
                execute(self.connection, "ROLLBACK TO job")?;
                execute(self.connection, "RELEASE job")?;
                Ok(Err(error))
            }
        }
    }

    /// Applies the writes of a client, and returns the entries as they are now, or as they were before their deletion.
    pub(super) fn write(
        &mut self,
        batch: &WriteBatch,
        at: Timestamp,
    ) -> Result<Vec<Arc<SealedEntry>>, WriteError> {
        batch.writes.iter().map(|write| self.write_one(write, batch.owner, at)).collect()
    }

    fn write_one(
        &mut self,
        write: &Write,
        owner: Option<OwnerTag>,
        at: Timestamp,
    ) -> Result<Arc<SealedEntry>, WriteError> {
        let current = self.current(write.id())?;
        let outcome = write.outcome(current.as_ref(), owner, at)?;
        match (current, outcome) {
            (Some(current), None) => {
                self.remove(&current)?;
                self.record_own(write.id(), None)?;
                Ok(current)
            }
            (Some(current), Some(mut row)) => {
                if row.environment != current.environment {
                    self.record_own(write.id(), None)?;
                    self.forget(&current);
                }
                self.replace(&mut row)?;
                self.record_own(&row.entry_id(), Some(&row))?;
                Ok(self.put(row))
            }
            (None, Some(mut row)) => {
                self.insert(&mut row)?;
                self.record_own(write.id(), Some(&row))?;
                Ok(self.put(row))
            }
            (None, None) => Err(WriteError::Changed),
        }
    }

    /// Applies the changes of other nodes that supersede the local state. A change ahead of this node's clock is
    /// skipped; anti-entropy delivers it again.
    pub(super) fn apply(&mut self, changes: &[Change]) -> Result<AppliedChanges, WriteError> {
        let mut applied = AppliedChanges::default();
        for change in changes {
            let Some(versions) = self.versions.as_deref_mut() else { return Err(Error::Stopped.into()) };
            if let Some(ahead_ms) = versions.ahead_ms(change) {
                applied.ahead.push((change.version.replica, ahead_ms));
                continue;
            }
            if versions
                .record_if_newer(self.connection, &mut self.commit.digests, change)
                .map_err(Error::from)?
            {
                self.apply_one(change)?;
                applied.won += 1;
            }
        }
        Ok(applied)
    }

    /// Records the progress of peers.
    pub(super) fn note(&mut self, progress: &PeerProgress) -> Result<(), WriteError> {
        let Some(versions) = self.versions.as_deref_mut() else { return Err(Error::Stopped.into()) };
        let recorded = match progress {
            PeerProgress::Acknowledged { peer, sequence } => {
                versions.acknowledge(self.connection, *peer, *sequence)
            }
            PeerProgress::Synced { peer, stamp, forgotten } => {
                versions.note_synced(self.connection, *peer, *stamp, *forgotten)
            }
            PeerProgress::Members { peers, before } => {
                versions.drop_removed_peers(self.connection, peers, *before)
            }
            PeerProgress::Collect { before } => versions.collect(self.connection, *before).map(|_| ()),
        };
        recorded.map_err(|error| Error::from(error).into())
    }

    fn apply_one(&mut self, change: &Change) -> Result<(), WriteError> {
        let current = self.current(&change.id)?;
        match (&change.body, current) {
            (Some(content), current) => {
                let EntryId { key, environment } = change.id.clone();
                let mut row = SealedEntry::new(0, key, environment, Some(content.ciphertext.clone()));
                row.category.clone_from(&content.category);
                row.created_at = content.created_at;
                row.updated_at = content.updated_at;
                match current {
                    Some(current) => {
                        row.id = current.id;
                        self.replace(&mut row)?;
                    }
                    None => self.insert(&mut row)?,
                }
                self.put(row);
            }
            (None, Some(current)) => self.remove(&current)?,
            (None, None) => {}
        }
        Ok(())
    }

    fn record_own(&mut self, id: &EntryId, row: Option<&SealedEntry>) -> Result<(), WriteError> {
        let Some(versions) = self.versions.as_deref_mut() else { return Ok(()) };
        let content = row.and_then(SealedEntry::body);
        versions.record_own(self.connection, &mut self.commit.digests, id, content.as_ref())
    }

    fn insert(&mut self, row: &mut SealedEntry) -> Result<(), WriteError> {
        let sql = r#"INSERT INTO configurations
                         ("key", encrypted_value, category, environment, created_at, updated_at, id, osc_revision)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"#;
        // SQLite would reuse the id of the last entry once it is deleted, and cursors would skip the new entry. After
        // the highest possible id, SQLite chooses the id itself.
        let id = schema::last_id(self.connection).map_err(Error::from)?.checked_add(1);
        row.revision = self.revisions.issue();
        let values = params![
            row.key,
            sealed_text(row),
            row.category,
            row.environment.as_deref().or(self.spelling.no_environment),
            self.time(row.created_at),
            self.time(row.updated_at),
            id,
            row.revision.number()
        ];
        prepare(self.connection, sql)?.execute(values).map_err(unique)?;
        row.id = self.connection.last_insert_rowid();
        Ok(())
    }

    fn replace(&mut self, row: &mut SealedEntry) -> Result<(), WriteError> {
        let sql = "UPDATE configurations SET encrypted_value = ?2, category = ?3, environment = ?4, \
                   created_at = ?5, updated_at = ?6, osc_revision = ?7 WHERE id = ?1";
        row.revision = self.revisions.issue();
        let values = params![
            row.id,
            sealed_text(row),
            row.category,
            row.environment.as_deref().or(self.spelling.no_environment),
            self.time(row.created_at),
            self.time(row.updated_at),
            row.revision.number()
        ];
        prepare(self.connection, sql)?.execute(values).map_err(unique)?;
        Ok(())
    }

    fn remove(&mut self, row: &Arc<SealedEntry>) -> Result<(), WriteError> {
        schema::retire_id(self.connection, row.id).map_err(Error::from)?;
        prepare(self.connection, "DELETE FROM configurations WHERE id = ?1")?
            .execute([row.id])
            .map_err(Error::from)?;
        self.forget(row);
        Ok(())
    }

    /// Records that an entry is deleted, or moved to another environment.
    fn forget(&mut self, entry: &Arc<SealedEntry>) {
        self.set_overlay(entry.entry_id(), None);
        let revision = self.revisions.issue();
        self.commit.changes.push(EntryChange::Delete { entry: Arc::clone(entry), revision });
    }

    fn put(&mut self, row: SealedEntry) -> Arc<SealedEntry> {
        let row = Arc::new(row);
        self.set_overlay(row.entry_id(), Some(Arc::clone(&row)));
        self.commit.changes.push(EntryChange::Put(Arc::clone(&row)));
        row
    }

    fn time(&self, time: Option<Timestamp>) -> Option<String> {
        time.map(Timestamp::to_database).or_else(|| self.spelling.no_time.map(str::to_owned))
    }

    fn current(&self, id: &EntryId) -> Result<Option<Arc<SealedEntry>>, Error> {
        if let Some(row) = self.overlay.get(id) {
            return Ok(row.clone());
        }
        if let Some(entries) = self.feed.known(&id.key) {
            return Ok(entries.exact(id.environment.as_deref()).cloned());
        }
        Ok(self.readers.exact_on(self.connection, &id.key, id.environment.as_deref())?.map(Arc::new))
    }

    fn set_overlay(&mut self, id: EntryId, row: Option<Arc<SealedEntry>>) {
        let before = self.overlay.insert(id.clone(), row);
        self.replaced.push((id, before));
    }

    fn restore_overlay(&mut self) {
        while let Some((id, before)) = self.replaced.pop() {
            match before {
                Some(row) => self.overlay.insert(id, row),
                None => self.overlay.remove(&id),
            };
        }
    }
}

fn sealed_text(row: &SealedEntry) -> String {
    row.ciphertext.as_ref().map(crate::model::Ciphertext::to_text).unwrap_or_default()
}

pub(super) fn prepare<'a>(
    connection: &'a Connection,
    sql: &str,
) -> Result<rusqlite::CachedStatement<'a>, Error> {
    Ok(connection.prepare_cached(sql)?)
}

pub(super) fn execute(connection: &Connection, sql: &str) -> Result<(), Error> {
    prepare(connection, sql)?.execute([])?;
    Ok(())
}

fn unique(error: rusqlite::Error) -> WriteError {
    match error.sqlite_error_code() {
        Some(ErrorCode::ConstraintViolation) => WriteError::AlreadyExists,
        _ => WriteError::Store(error.into()),
    }
}

/// Returns whether an error affects only its statement, and the rest of the transaction is still valid.
fn is_statement_error(error: &Error) -> bool {
    let code = error::code(error);
    matches!(code, Some(ErrorCode::TooBig | ErrorCode::TypeMismatch | ErrorCode::ConstraintViolation))
}
