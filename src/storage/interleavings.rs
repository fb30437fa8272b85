//! The caches and the feed in the interleavings of readers and the writer.

use std::collections::BTreeMap;

use shuttle::future::block_on;
use shuttle::thread;

use super::memory::Memory;
use super::*;
use crate::limits::{ENTRY_CACHE_STRIPES_COUNT, FEED_BYTES_MAX};
use crate::model::{Ciphertext, Revision};
use crate::sync::atomic::{AtomicI64, Ordering::SeqCst};
use crate::sync::{Mutex, explore};

/// Engine with the visibility of SQLite: readers do not wait for the writer, and see a commit before it is published.
/// Rows are their revisions.
#[derive(Clone, Debug)]
struct Model(Arc<State>);

#[derive(Debug)]
struct State {
    rows: Mutex<BTreeMap<i64, Arc<SealedEntry>>>,
    feed: Arc<Feed>,
    /// Answers what the caches do not ask.
    rest: Memory,
}

impl Model {
    fn new(subscribers: Vec<Arc<dyn Subscriber>>) -> Self {
        let feed = Arc::new(Feed::new(Revision::default(), None, subscribers));
        let rest = Memory::new(Vec::new(), VersioningOptions::new(false));
        Self(Arc::new(State { rows: Mutex::default(), feed, rest }))
    }

    fn rows(&self) -> Vec<Arc<SealedEntry>> {
        self.0.rows.lock().expect("no panic").values().cloned().collect()
    }

    /// Makes a change visible to readers.
    fn apply(&self, change: &EntryChange) {
        let mut rows = self.0.rows.lock().expect("no panic");
        match change.after() {
            Some(row) => rows.insert(row.id, Arc::clone(row)),
            None => rows.remove(&change.entry().id),
        };
    }
}

impl Engine for Model {
    fn get(&self, key: &str) -> Reply<Option<KeyEntries>> {
        let rows = self.rows().into_iter().filter(|row| row.key == key).collect();
        Reply::ready(Ok(Some(KeyEntries { rows })))
    }

    fn scan(&self, _filter: &Filter, _after: i64) -> Reply<Page> {
        let rows = self.rows();
        let bytes = rows.iter().map(|row| row.weight()).sum();
        Reply::ready(Ok(Page { rows, bytes, unreadable_count: 0, next_after: None }))
    }

    fn feed(&self) -> &Arc<Feed> {
        &self.0.feed
    }

    fn get_exact(&self, id: &EntryId) -> Reply<Option<Arc<SealedEntry>>> {
        self.0.rest.get_exact(id)
    }

    fn scan_names(&self, scan: NameScan) -> Reply<NameScanPage> {
        self.0.rest.scan_names(scan)
    }

    fn exist(&self, ids: Vec<EntryId>) -> Reply<Vec<bool>> {
        self.0.rest.exist(ids)
    }

    fn count(&self) -> Reply<u64> {
        self.0.rest.count()
    }

    fn commit(&self, batch: WriteBatch) -> Reply<Vec<Arc<SealedEntry>>, WriteError> {
        self.0.rest.commit(batch)
    }

    fn offload(&self, job: Box<dyn FnOnce() + Send>) -> Reply<()> {
        self.0.rest.offload(job)
    }

    fn salt(&self) -> &Arc<SaltStore> {
        self.0.rest.salt()
    }

    fn replication(&self) -> Option<&dyn ReplicationLog> {
        None
    }

    fn counts(&self) -> &EngineCounts {
        self.0.rest.counts()
    }

    fn queued_count(&self) -> Option<usize> {
        None
    }

    fn close(&self) {}
}

/// Store whose writer changes the entry `k`, and never to an older revision.
struct Fixture {
    storage: Storage,
    model: Model,
    acknowledged: AtomicI64,
}

/// Revision of an entry that was deleted, which no write follows.
const DELETED: i64 = i64::MAX;
/// Revision of the write that fails.
const FAILED: i64 = -1;

fn row(id: i64, key: &str, revision: i64) -> Arc<SealedEntry> {
    let mut row = SealedEntry::new(id, key.to_owned(), None, None);
    row.revision = Revision::from_number(revision);
    Arc::new(row)
}

fn put(revision: i64) -> EntryChange {
    EntryChange::Put(row(1, "k", revision))
}

impl Fixture {
    fn new(cache_bytes_max: usize) -> Self {
        let mut model = None;
        let open = |subscribers| Ok(model.insert(Model::new(subscribers)).clone());
        let storage = Storage::open(cache_bytes_max, Vec::new(), open).expect("no file is opened");
        let fixture = Self { storage, model: model.expect("opened"), acknowledged: AtomicI64::new(0) };
        fixture.write(&put(1));
        fixture
    }

    /// Commits a change and acknowledges it.
    fn write(&self, change: &EntryChange) {
        let commit = Commit { changes: vec![change.clone()], ..Commit::default() };
        let commit_durably = || {
            self.model.apply(change);
            Ok::<_, ()>(())
        };
        self.storage.feed().commit(&commit, commit_durably).expect("committed");
        self.acknowledge(change);
    }

    fn fail_to_write(&self) {
        let commit = Commit { changes: vec![put(FAILED)], ..Commit::default() };
        self.storage.feed().commit(&commit, || Err(())).expect_err("failed");
    }

    /// Changes the store as another program does, which the writer notices.
    fn write_from_outside(&self, change: &EntryChange) {
        self.model.apply(change);
        self.storage.feed().reset(change.revision());
        self.acknowledge(change);
    }

    fn acknowledge(&self, change: &EntryChange) {
        let revision = change.after().map_or(DELETED, |row| row.revision.number());
        self.acknowledged.store(revision, SeqCst);
    }

    fn get(&self, key: &str) -> i64 {
        let entries = block_on(self.storage.get(key)).expect("it can be read").expect("it is one entry");
        entries.rows.first().map_or(DELETED, |row| row.revision.number())
    }

    fn scan(&self) -> i64 {
        let page = block_on(self.storage.scan(&Filter::default(), 0)).expect("it can be read");
        page.rows.first().map_or(DELETED, |row| row.revision.number())
    }

    /// Reads twice, because only the second read may find what the first one cached.
    fn check(&self, read: impl Fn() -> i64) {
        for _ in 0..2 {
            let acknowledged = self.acknowledged.load(SeqCst);
            let seen = read();
            assert!(seen >= acknowledged, "revision {seen} after {acknowledged} was acknowledged");
        }
    }

    fn check_all(&self) {
        self.check(|| self.get("k"));
        self.check(|| self.scan());
    }
}

#[test]
fn no_reader_misses_an_acknowledged_write() {
    explore(|| {
        let fixture = Fixture::new(1 << 20);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| fixture.check(|| fixture.get("k")));
                scope.spawn(|| fixture.check(|| fixture.scan()));
            }
            fixture.write(&put(2));
            fixture.fail_to_write();
            fixture.write(&EntryChange::Delete { entry: row(1, "k", 2), revision: Revision::from_number(3) });
        });
        fixture.check_all();
        fixture.write(&put(4));
        fixture.fail_to_write();
        fixture.check_all();
        assert!(fixture.storage.cached("k").is_some(), "the stripe accepts fills");
        assert!(fixture.storage.cached_page(&Filter::default(), 0).is_some());
    });
}

#[test]
fn no_reader_misses_an_acknowledged_write_of_an_evicted_entry() {
    explore(|| {
        // Two entries per stripe.
        let fixture = Fixture::new(ENTRY_CACHE_STRIPES_COUNT * 1000);
        let others: Vec<String> = fixture.storage.entries.neighbours_of("k").take(2).collect();
        for (id, key) in (2..).zip(&others) {
            fixture.write(&EntryChange::Put(row(id, key, 1)));
        }
        thread::scope(|scope| {
            scope.spawn(|| others.iter().for_each(|key| assert_eq!(fixture.get(key), 1)));
            scope.spawn(|| fixture.check(|| fixture.get("k")));
            scope.spawn(|| fixture.check(|| fixture.get("k")));
            fixture.write(&put(2));
            fixture.write(&put(3));
        });
        fixture.check(|| fixture.get("k"));
        others.iter().for_each(|key| assert_eq!(fixture.get(key), 1));
        assert_eq!(fixture.storage.entries_usage().1, 2, "the third one is evicted");
    });
}

#[test]
fn no_reader_misses_a_change_by_another_program_once_it_is_noticed() {
    explore(|| {
        let fixture = Fixture::new(1 << 20);
        thread::scope(|scope| {
            scope.spawn(|| fixture.check(|| fixture.get("k")));
            scope.spawn(|| fixture.check(|| fixture.scan()));
            fixture.write_from_outside(&put(2));
        });
        fixture.check_all();
    });
}

#[test]
fn a_reader_of_the_feed_sees_each_change_in_turn_or_lags() {
    let large = Some(Ciphertext::from_bytes(vec![0; FEED_BYTES_MAX / 2]));
    let large = Arc::new(SealedEntry::new(1, "k".into(), None, large));
    explore(move || {
        let feed = Feed::new(Revision::default(), None, Vec::new());
        let stored = AtomicI64::new(0);
        let acknowledged = AtomicI64::new(0);
        let follow = || {
            let (mut seen, mut state) = (Revision::default(), 0);
            for _ in 0..3 {
                let acknowledged = acknowledged.load(SeqCst);
                match feed.changes_since(seen) {
                    Ok(changes) => {
                        for change in changes {
                            assert_eq!(change.revision().number(), seen.number() + 1);
                            seen = change.revision();
                            state = state.max(seen.number());
                        }
                    }
                    Err(Lagged) => {
                        seen = feed.last();
                        state = stored.load(SeqCst);
                    }
                }
                assert!(state >= acknowledged, "{state} after {acknowledged} was acknowledged");
            }
        };
        thread::scope(|scope| {
            scope.spawn(follow);
            scope.spawn(follow);
            for number in 1..=3 {
                let revision = Revision::from_number(number);
                let changes = vec![EntryChange::Delete { entry: Arc::clone(&large), revision }];
                let commit = Commit { changes, ..Commit::default() };
                let commit_durably = || {
                    stored.store(number, SeqCst);
                    Ok::<_, ()>(())
                };
                feed.commit(&commit, commit_durably).expect("committed");
                acknowledged.store(number, SeqCst);
            }
        });
        assert_eq!(feed.last().number(), 3);
        assert_eq!(feed.changes_since(Revision::default()).err(), Some(Lagged), "it holds one change");
    });
}
