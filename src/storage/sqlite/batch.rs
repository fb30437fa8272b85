//! Batch of jobs in one open transaction: their changes to rows and versions, and their effects on the caches after the
//! commit.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::{Connection, ErrorCode, params};

use super::error;
use super::reader::{self, content_of};
use super::schema::{self, NullEncoding};
use super::versions::Versions;
use crate::model::{Change, EntryId, Timestamp};
use crate::model::{OwnerTag, SealedEntry};
use crate::storage::digest_table::Delta;
use crate::storage::entry_cache::EntryCache;
use crate::storage::error::Error;
use crate::storage::page_cache::Effect;
use crate::storage::write::{AppliedChanges, PeerProgress, Write, WriteError, WriteResult};

/// Rows as changed by the open transaction, by key and environment; `None` if deleted or moved.
type Overlay = HashMap<EntryId, Option<Arc<SealedEntry>>>;

/// Batch of jobs in one transaction.
pub(super) struct Batch<'a> {
    pub(super) connection: &'a Connection,
    pub(super) cache: &'a EntryCache,
    pub(super) spelling: NullEncoding,
    pub(super) versions: Option<&'a mut Versions>,
    pub(super) effects: Vec<Effect>,
    pub(super) delta: Delta,
    overlay: Overlay,
    /// Overlay entries that the running job has replaced, restored if it fails.
    replaced: Vec<(EntryId, Option<Option<Arc<SealedEntry>>>)>,
}

impl<'a> Batch<'a> {
    pub(super) fn new(
        connection: &'a Connection,
        cache: &'a EntryCache,
        spelling: NullEncoding,
        versions: Option<&'a mut Versions>,
    ) -> Self {
        Self {
            connection,
            cache,
            spelling,
            versions,
            effects: Vec::new(),
            delta: Delta::default(),
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
        let savepoint = (self.effects.len(), self.delta.savepoint());
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
                self.effects.truncate(savepoint.0);
                self.restore_overlay();
                self.delta.truncate(savepoint.1);
                execute(self.connection, "ROLLBACK TO job")?;
                execute(self.connection, "RELEASE job")?;
                Ok(Err(error))
            }
        }
    }

    /// Applies a write of a client of this node.
    pub(super) fn write(&mut self, write: &Write, owner: Option<OwnerTag>, at: Timestamp) -> WriteResult {
        match write {
            Write::Create { key, environment, category, ciphertext } => {
                let id = EntryId { key: key.clone(), environment: environment.clone() };
                if self.current(&id)?.is_some() {
                    return Err(WriteError::AlreadyExists);
                }
                let mut row = SealedEntry::new(0, key.clone(), environment.clone(), Some(ciphertext.clone()));
                row.category.clone_from(category);
                row.created_at = Some(at);
                row.updated_at = Some(at);
                self.insert(&mut row)?;
                self.record_own(&id, Some(&row))?;
                Ok(self.put(row, owner))
            }
            Write::Update { seen, category, environment, ciphertext } => {
                let current = self.unchanged(seen, owner)?;
                let environment = environment.as_ref().or(current.environment.as_ref()).cloned();
                let mut row =
                    SealedEntry::new(current.id, current.key.clone(), environment, Some(ciphertext.clone()));
                row.category = category.as_ref().or(current.category.as_ref()).cloned();
                row.created_at = current.created_at;
                // The clock may have been set back since the last change.
                row.updated_at = Some(at).max(current.updated_at).max(current.created_at);
                self.replace(&row)?;
                if row.environment != current.environment {
                    self.record_own(&current.entry_id(), None)?;
                    self.set_overlay(current.entry_id(), None);
                }
                self.record_own(&row.entry_id(), Some(&row))?;
                Ok(self.put(row, owner))
            }
            Write::Delete { seen } => {
                let current = self.unchanged(seen, owner)?;
                self.remove(&current)?;
                self.record_own(&current.entry_id(), None)?;
                Ok(current)
            }
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
            if versions.record_if_newer(self.connection, &mut self.delta, change).map_err(Error::from)? {
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
                        self.replace(&row)?;
                    }
                    None => self.insert(&mut row)?,
                }
                self.put(row, None);
            }
            (None, Some(current)) => self.remove(&current)?,
            (None, None) => {}
        }
        Ok(())
    }

    fn record_own(&mut self, id: &EntryId, row: Option<&SealedEntry>) -> Result<(), WriteError> {
        let Some(versions) = self.versions.as_deref_mut() else { return Ok(()) };
        let content = row.and_then(content_of);
        versions.record_own(self.connection, &mut self.delta, id, content.as_ref())
    }

    fn insert(&self, row: &mut SealedEntry) -> Result<(), WriteError> {
        let sql = r#"INSERT INTO configurations ("key", encrypted_value, category, environment, created_at, updated_at, id)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"#;
        // SQLite would reuse the id of the last entry once it is deleted, and cursors would skip the new entry. After
        // the highest possible id, SQLite chooses the id itself.
        let id = schema::last_id(self.connection).map_err(Error::from)?.checked_add(1);
        let values = params![
            row.key,
            sealed_text(row),
            row.category,
            row.environment.as_deref().or(self.spelling.no_environment),
            self.time(row.created_at),
            self.time(row.updated_at),
            id
        ];
        prepare(self.connection, sql)?.execute(values).map_err(unique)?;
        row.id = self.connection.last_insert_rowid();
        Ok(())
    }

    fn replace(&self, row: &SealedEntry) -> Result<(), WriteError> {
        let sql = "UPDATE configurations SET encrypted_value = ?2, category = ?3, environment = ?4, \
                   created_at = ?5, updated_at = ?6 WHERE id = ?1";
        let values = params![
            row.id,
            sealed_text(row),
            row.category,
            row.environment.as_deref().or(self.spelling.no_environment),
            self.time(row.created_at),
            self.time(row.updated_at)
        ];
        prepare(self.connection, sql)?.execute(values).map_err(unique)?;
        Ok(())
    }

    fn remove(&mut self, row: &SealedEntry) -> Result<(), WriteError> {
        schema::retire_id(self.connection, row.id).map_err(Error::from)?;
        prepare(self.connection, "DELETE FROM configurations WHERE id = ?1")?
            .execute([row.id])
            .map_err(Error::from)?;
        self.set_overlay(row.entry_id(), None);
        self.effects.push(Effect { key: row.key.clone(), id: row.id, after: None });
        Ok(())
    }

    fn put(&mut self, mut row: SealedEntry, owner: Option<OwnerTag>) -> Arc<SealedEntry> {
        row.written_by = owner;
        if owner.is_some() {
            // The service encrypts only canonical JSON.
            row.set_canonical();
        }
        let row = Arc::new(row);
        self.set_overlay(row.entry_id(), Some(Arc::clone(&row)));
        self.effects.push(Effect { key: row.key.clone(), id: row.id, after: Some(Arc::clone(&row)) });
        row
    }

    fn time(&self, time: Option<Timestamp>) -> Option<String> {
        time.map(Timestamp::to_database).or_else(|| self.spelling.no_time.map(str::to_owned))
    }

    /// Returns the current row if it is still the one that the caller read, or was since written by the same owner.
    fn unchanged(&self, seen: &Arc<SealedEntry>, owner: Option<OwnerTag>) -> WriteResult {
        match self.current(&seen.entry_id())? {
            Some(row)
                if row.id == seen.id
                    && (row.ciphertext == seen.ciphertext
                        || (owner.is_some() && row.written_by == owner)) =>
            {
                Ok(row)
            }
            _ => Err(WriteError::Changed),
        }
    }

    fn current(&self, id: &EntryId) -> Result<Option<Arc<SealedEntry>>, Error> {
        if let Some(row) = self.overlay.get(id) {
            return Ok(row.clone());
        }
        if let Some(group) = self.cache.get(&id.key) {
            return Ok(group.exact(id.environment.as_deref()).cloned());
        }
        Ok(reader::exact(self.connection, &id.key, id.environment.as_deref())?.map(Arc::new))
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
