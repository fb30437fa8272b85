//! Engine in memory, for tests and for servers that may forget. It implements the same semantics as the SQLite engine
//! in the simplest way: one lock, and each call is complete when it returns.

mod log;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use self::log::Log;
use crate::limits::{CLOCK_AHEAD_MAX, ENTRY_GROUP_COUNT_MAX, LIST_PAGE_BYTES, LIST_PAGE_ROWS_MAX};
use crate::model::{
    Change, EntryId, Filter, KeyEntries, OwnerTag, ReplicaId, Revision, Revisions, SealedBody, SealedEntry,
    Timestamp, TombstoneHorizon, Version,
};
use crate::storage::counts::EngineCounts;
use crate::storage::digest_table::DigestTable;
use crate::storage::engine::{Engine, NameScan, NameScanPage};
use crate::storage::error::Error;
use crate::storage::feed::{Commit, EntryChange, Feed, Subscriber};
use crate::storage::page_cache::Page;
use crate::storage::replication::{AppliedChanges, LogPage, PeerProgress, ReplicationLog, VersionsPage};
use crate::storage::reply::Reply;
use crate::storage::salt_store::SaltStore;
use crate::storage::versioning::{VersioningOptions, WallClock};
use crate::storage::write::{Write, WriteBatch, WriteError};

/// Store in memory.
pub struct Memory {
    state: Mutex<State>,
    feed: Arc<Feed>,
    salt: Arc<SaltStore>,
    counts: Arc<EngineCounts>,
    digests: Arc<DigestTable>,
    wall_clock: WallClock,
    replica: Option<ReplicaId>,
    is_closed: AtomicBool,
}

/// Entries and versions. Immutable values in ordered maps, so that a failed batch restores what it replaced.
struct State {
    rows: BTreeMap<i64, Arc<SealedEntry>>,
    ids: BTreeMap<EntryId, i64>,
    last_id: i64,
    revisions: Revisions,
    log: Option<Log>,
}

/// Rows that a running batch has replaced, newest last.
type Undo = Vec<(i64, EntryId, Option<Arc<SealedEntry>>)>;

impl Memory {
    /// Creates an empty store.
    pub fn new(mut subscribers: Vec<Arc<dyn Subscriber>>, options: VersioningOptions) -> Self {
        let revisions = Revisions::after(Revision::default(), Timestamp::now().as_milliseconds());
        let replica = options.is_clustered.then(|| options.new_replica());
        let digests = Arc::<DigestTable>::default();
        subscribers.push(Arc::<DigestTable>::clone(&digests));
        let counts = Arc::new(EngineCounts::new(false));
        subscribers.push(Arc::<EngineCounts>::clone(&counts));
        let wall_clock = options.wall_clock;
        let log = replica.map(|replica| Log::new(replica, Arc::clone(&wall_clock)));
        let feed = Arc::new(Feed::new(revisions.last(), log.is_some().then_some(0), subscribers));
        Self {
            state: Mutex::new(State {
                rows: BTreeMap::new(),
                ids: BTreeMap::new(),
                last_id: 0,
                revisions,
                log,
            }),
            feed,
            salt: Arc::new(SaltStore::in_memory()),
            counts,
            digests,
            wall_clock,
            replica,
            is_closed: AtomicBool::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a batch under the lock and publishes its commit. A failed one changes nothing.
    fn transact<T>(
        &self,
        run: impl FnOnce(&mut State, &mut Commit, &mut Undo) -> Result<T, WriteError>,
    ) -> Result<T, WriteError> {
        if self.is_closed.load(Ordering::Acquire) {
            return Err(Error::Stopped.into());
        }
        let began = Instant::now();
        let mut state = self.state();
        let (mut commit, mut undo) = (Commit::default(), Undo::default());
        state.log.iter_mut().for_each(Log::begin);
        let result = run(&mut state, &mut commit, &mut undo);
        if result.is_ok() {
            commit.log_position = state.log.as_ref().and_then(Log::appended);
            // The lock is held: no reader sees the changes before the caches have them.
            self.feed.commit(&commit, || Ok::<_, WriteError>(()))?;
        } else {
            state.restore(undo);
        }
        self.counts.note(1, began, false);
        result
    }

    fn read<T>(&self, read: impl FnOnce(&State) -> T) -> Reply<T> {
        Reply::ready(Ok(read(&self.state())))
    }

    fn read_log<T>(&self, read: impl FnOnce(&State, &Log) -> T) -> Reply<T> {
        let state = self.state();
        Reply::ready(state.log.as_ref().map(|log| read(&state, log)).ok_or(Error::Stopped))
    }
}

impl State {
    fn find(&self, id: &EntryId) -> Option<&Arc<SealedEntry>> {
        self.rows.get(self.ids.get(id)?)
    }

    /// Stores an entry under its id, or removes the entry that has it.
    fn set(&mut self, number: i64, id: EntryId, row: Option<Arc<SealedEntry>>, undo: &mut Undo) {
        undo.push((number, id.clone(), self.find(&id).cloned()));
        match row {
            Some(row) => {
                self.ids.insert(id, number);
                self.rows.insert(number, row);
            }
            None => {
                self.ids.remove(&id);
                self.rows.remove(&number);
            }
        }
    }

    fn restore(&mut self, mut undo: Undo) {
        while let Some((number, id, before)) = undo.pop() {
            self.set(number, id, before, &mut Undo::default());
        }
        self.log.iter_mut().for_each(Log::roll_back);
    }

    fn put(&mut self, mut row: SealedEntry, commit: &mut Commit, undo: &mut Undo) -> Arc<SealedEntry> {
        if row.id == 0 {
            self.last_id += 1;
            row.id = self.last_id;
        }
        row.revision = self.revisions.issue();
        let row = Arc::new(row);
        commit.changes.push(EntryChange::Put(Arc::clone(&row)));
        self.set(row.id, row.entry_id(), Some(Arc::clone(&row)), undo);
        row
    }

    fn remove(&mut self, entry: &Arc<SealedEntry>, commit: &mut Commit, undo: &mut Undo) {
        let revision = self.revisions.issue();
        commit.changes.push(EntryChange::Delete { entry: Arc::clone(entry), revision });
        self.set(entry.id, entry.entry_id(), None, undo);
    }

    fn record_own(
        &mut self,
        id: &EntryId,
        row: Option<&SealedEntry>,
        commit: &mut Commit,
    ) -> Result<(), WriteError> {
        match &mut self.log {
            Some(log) => log.record_own(id, row.and_then(SealedEntry::body).as_ref(), &mut commit.digests),
            None => Ok(()),
        }
    }

    fn write(
        &mut self,
        write: &Write,
        owner: Option<OwnerTag>,
        at: Timestamp,
        commit: &mut Commit,
        undo: &mut Undo,
    ) -> Result<Arc<SealedEntry>, WriteError> {
        let current = self.find(write.id()).cloned();
        let outcome = write.outcome(current.as_ref(), owner, at)?;
        let Some(row) = outcome else {
            let current = current.ok_or(WriteError::Changed)?;
            self.remove(&current, commit, undo);
            self.record_own(write.id(), None, commit)?;
            return Ok(current);
        };
        if let Some(current) = current.filter(|current| current.environment != row.environment) {
            if self.ids.contains_key(&row.entry_id()) {
                return Err(WriteError::AlreadyExists);
            }
            self.record_own(write.id(), None, commit)?;
            self.remove(&current, commit, undo);
        }
        self.record_own(&row.entry_id(), Some(&row), commit)?;
        Ok(self.put(row, commit, undo))
    }

    fn apply(
        &mut self,
        changes: &[Change],
        commit: &mut Commit,
        undo: &mut Undo,
    ) -> Result<AppliedChanges, WriteError> {
        let mut applied = AppliedChanges::default();
        for change in changes {
            let Some(log) = &mut self.log else { return Err(Error::Stopped.into()) };
            if let Some(ahead_ms) = log.ahead_ms(change) {
                applied.ahead.push((change.version.replica, ahead_ms));
                continue;
            }
            if !log.record_if_newer(change, &mut commit.digests) {
                continue;
            }
            applied.won += 1;
            let current = self.find(&change.id).cloned();
            match (&change.body, current) {
                (Some(content), current) => {
                    let EntryId { key, environment } = change.id.clone();
                    let id = current.map_or(0, |current| current.id);
                    let mut row = SealedEntry::new(id, key, environment, Some(content.ciphertext.clone()));
                    row.category.clone_from(&content.category);
                    row.created_at = content.created_at;
                    row.updated_at = content.updated_at;
                    self.put(row, commit, undo);
                }
                (None, Some(current)) => self.remove(&current, commit, undo),
                (None, None) => {}
            }
        }
        Ok(applied)
    }

    fn content_of(&self, id: &EntryId) -> Option<SealedBody> {
        self.find(id).and_then(|row| row.body())
    }
}

impl Engine for Memory {
    fn get(&self, key: &str) -> Reply<Option<KeyEntries>> {
        let first = EntryId { key: key.to_owned(), environment: None };
        self.read(|state| {
            let ids = state.ids.range(first..).take_while(|(id, _)| id.key == key);
            let mut rows: Vec<_> = ids.filter_map(|(_, id)| state.rows.get(id).cloned()).collect();
            rows.sort_by_key(|row| row.id);
            (rows.len() <= ENTRY_GROUP_COUNT_MAX).then_some(KeyEntries { rows })
        })
    }

    fn get_exact(&self, id: &EntryId) -> Reply<Option<Arc<SealedEntry>>> {
        self.read(|state| state.find(id).cloned())
    }

    fn scan(&self, filter: &Filter, after: i64) -> Reply<Page> {
        self.read(|state| {
            let mut page = Page { rows: Vec::new(), bytes: 0, unreadable_count: 0, next_after: None };
            let later = state.rows.range(after.saturating_add(1)..).map(|(_, row)| row);
            for row in later.filter(|row| filter.admits(row)) {
                page.bytes += row.weight();
                page.rows.push(Arc::clone(row));
                if page.bytes >= LIST_PAGE_BYTES || page.rows.len() >= LIST_PAGE_ROWS_MAX {
                    page.next_after = Some(row.id);
                    break;
                }
            }
            page
        })
    }

    fn scan_names(&self, scan: NameScan) -> Reply<NameScanPage> {
        self.read(|state| {
            let (mut page, mut bytes) = (NameScanPage::default(), 0);
            let is_later = |id: &EntryId| scan.after.as_ref().is_none_or(|after| id > after);
            for row in
                state.ids.iter().filter(|(id, _)| is_later(id)).filter_map(|(_, id)| state.rows.get(id))
            {
                if !scan.filter.admits(row) {
                    continue;
                }
                if (bytes >= scan.bytes_max || page.rows.len() >= LIST_PAGE_ROWS_MAX) && !page.rows.is_empty()
                {
                    page.more = true;
                    break;
                }
                let row = match scan.names_only {
                    true => SealedEntry::new(row.id, row.key.clone(), row.environment.clone(), None),
                    false => row.copy_with(row.ciphertext.clone()),
                };
                bytes += row.weight();
                page.rows.push(row);
            }
            page
        })
    }

    fn exist(&self, ids: Vec<EntryId>) -> Reply<Vec<bool>> {
        self.read(|state| ids.iter().map(|id| state.ids.contains_key(id)).collect())
    }

    fn count(&self) -> Reply<u64> {
        self.read(|state| state.rows.len() as u64)
    }

    fn commit(&self, batch: WriteBatch) -> Reply<Vec<Arc<SealedEntry>>, WriteError> {
        let at = Timestamp::now();
        Reply::ready(self.transact(|state, commit, undo| {
            batch.writes.iter().map(|write| state.write(write, batch.owner, at, commit, undo)).collect()
        }))
    }

    fn offload(&self, job: Box<dyn FnOnce() + Send>) -> Reply<()> {
        job();
        Reply::ready(Ok(()))
    }

    fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    fn salt(&self) -> &Arc<SaltStore> {
        &self.salt
    }

    fn replication(&self) -> Option<&dyn ReplicationLog> {
        self.replica.is_some().then_some(self)
    }

    fn counts(&self) -> &EngineCounts {
        // There is no thread that could be stuck.
        self.counts.beat();
        &self.counts
    }

    fn queued_count(&self) -> Option<usize> {
        (!self.is_closed.load(Ordering::Acquire)).then_some(0)
    }

    fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
    }
}

impl ReplicationLog for Memory {
    fn replica(&self) -> ReplicaId {
        self.replica.unwrap_or_default()
    }

    fn digests(&self) -> &DigestTable {
        &self.digests
    }

    fn horizon(&self) -> TombstoneHorizon {
        self.state().log.as_ref().map_or(TombstoneHorizon::default(), Log::horizon)
    }

    fn ahead_ms(&self, version: Version) -> Option<u64> {
        version.timestamp.ahead_of((self.wall_clock)(), CLOCK_AHEAD_MAX)
    }

    fn apply(&self, changes: Vec<Change>) -> Reply<AppliedChanges, WriteError> {
        Reply::ready(self.transact(|state, commit, undo| state.apply(&changes, commit, undo)))
    }

    fn record_progress(&self, progress: PeerProgress) -> Reply<(), WriteError> {
        Reply::ready(self.transact(|state, _, _| {
            state.log.as_mut().ok_or(Error::Stopped)?.record_progress(&progress);
            Ok(())
        }))
    }

    fn log_changes(&self, after: i64) -> Reply<LogPage> {
        self.read_log(|state, log| log.page(after, |id| state.content_of(id)))
    }

    fn log_range(&self) -> Reply<(i64, i64)> {
        self.read_log(|_, log| log.range())
    }

    fn acknowledged(&self) -> Reply<Vec<(ReplicaId, i64)>> {
        self.read_log(|_, log| log.acknowledged())
    }

    fn versions(&self, buckets: Vec<usize>, bytes_max: usize) -> Reply<VersionsPage> {
        self.read_log(|_, log| log.versions(&buckets, bytes_max))
    }

    fn changes(&self, ids: Vec<EntryId>) -> Reply<Vec<Change>> {
        self.read_log(|state, log| log.changes(&ids, |id| state.content_of(id)))
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").finish_non_exhaustive()
    }
}
