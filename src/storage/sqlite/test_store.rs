//! Storage on an SQLite engine that reads on the calling thread, with calls that wait, for tests.

use futures_lite::future::block_on;

use super::*;
use crate::limits::ENTRY_CACHE_BYTES_MIN;
use crate::model::OwnerTag;
use crate::storage::{Storage, Write};

/// Salt for tests that do not encrypt anything with it.
const PROPER_SALT: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Store in a directory.
pub(super) struct TestStore {
    pub(super) storage: Storage,
}

/// Result of a write.
pub(super) type WriteResult = Result<Arc<SealedEntry>, WriteError>;

impl TestStore {
    pub(super) fn open(directory: &Path, versions: VersioningOptions) -> Self {
        let (database, salt) = (directory.join("c.db"), directory.join("c.salt"));
        // The store refuses entries without a salt.
        fs::write(&salt, PROPER_SALT).expect("writable");
        let on_fatal = Box::new(|error| panic!("fatal error of the writer: {error}"));
        let options = Options { versions, ..Options::standalone(on_fatal) };
        let cache_bytes_max = 4 * ENTRY_CACHE_BYTES_MIN;
        let storage = Storage::open_sqlite(&database, &salt, cache_bytes_max, Vec::new(), options);
        Self { storage: storage.expect("the files open") }
    }

    pub(super) fn write(&self, write: Write, owner: OwnerTag) -> WriteResult {
        block_on(self.storage.commit_one(write, Some(owner)))
    }

    pub(super) fn queue(&self, write: Write, owner: OwnerTag) -> Reply<Vec<Arc<SealedEntry>>, WriteError> {
        self.storage.commit(WriteBatch { writes: vec![write], owner: Some(owner) })
    }

    pub(super) fn entries(&self, key: &str) -> Arc<KeyEntries> {
        block_on(self.storage.get(key)).expect("readable").expect("not too many")
    }

    pub(super) fn exact(&self, key: &str) -> Option<Arc<SealedEntry>> {
        let id = EntryId { key: key.to_owned(), environment: None };
        block_on(self.storage.get_exact(&id)).expect("readable")
    }

    pub(super) fn page(&self, filter: &Filter, after: i64) -> Arc<Page> {
        block_on(self.storage.scan(filter, after)).expect("readable")
    }

    pub(super) fn log(&self) -> &dyn ReplicationLog {
        self.storage.replication().expect("a store with versions")
    }

    pub(super) fn log_changes(&self, after: i64) -> LogPage {
        block_on(self.log().log_changes(after)).expect("readable")
    }

    pub(super) fn log_range(&self) -> (i64, i64) {
        block_on(self.log().log_range()).expect("readable")
    }

    pub(super) fn acknowledged(&self) -> Vec<(ReplicaId, i64)> {
        block_on(self.log().acknowledged()).expect("readable")
    }

    pub(super) fn changes(&self, ids: &[EntryId]) -> Vec<Change> {
        block_on(self.log().changes(ids.to_vec())).expect("readable")
    }

    pub(super) fn versions(&self, buckets: &[usize], bytes_max: usize) -> VersionsPage {
        block_on(self.log().versions(buckets.to_vec(), bytes_max)).expect("readable")
    }
}
