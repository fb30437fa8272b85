//! Change feed: every commit of a store, in commit order, for the caches and for any other subscriber.
//!
//! An engine commits through [`Feed::commit`]. Subscribers on the committing thread are up to date when it returns, and
//! so when the commit is acknowledged. All others read the last changes from a bounded buffer, and learn explicitly
//! when it no longer has the ones that they need.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, PoisonError};

use super::digest::Delta;
use crate::limits::{FEED_BYTES_MAX, FEED_CHANGES_MAX};
use crate::model::{KeyEntries, Revision, SealedEntry};
use crate::sync::{Mutex, MutexGuard};

/// Committed change of one entry.
#[derive(Clone, Debug)]
pub enum EntryChange {
    /// The entry was created or replaced, and now is this. Its revision is that of the change.
    Put(Arc<SealedEntry>),
    /// The entry was deleted, or moved to another environment.
    Delete {
        /// Entry as it was.
        entry: Arc<SealedEntry>,
        /// Revision of the deletion.
        revision: Revision,
    },
}

impl EntryChange {
    /// Returns the revision of the change.
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put(entry) => entry.revision,
            Self::Delete { revision, .. } => *revision,
        }
    }

    /// Returns the entry as it is, or as it was before its deletion.
    pub fn entry(&self) -> &Arc<SealedEntry> {
        match self {
            Self::Put(entry) | Self::Delete { entry, .. } => entry,
        }
    }

    /// Returns the entry as it is; `None` if it was deleted.
    pub fn after(&self) -> Option<&Arc<SealedEntry>> {
        match self {
            Self::Put(entry) => Some(entry),
            Self::Delete { .. } => None,
        }
    }
}

/// Changes of one transaction.
#[derive(Debug, Default)]
pub struct Commit {
    /// Changes in the order of their revisions.
    pub changes: Vec<EntryChange>,
    /// Changes of the digests, in a store with versions.
    pub digests: Delta,
    /// Last position in the replication log, if the commit appended to it.
    pub log_position: Option<i64>,
}

/// Subscriber on the committing thread. It must not block.
pub trait Subscriber: Send + Sync {
    /// Called once, when the store is opened, with the last position in the replication log of a store that has one.
    fn opened(&self, _log_position: Option<i64>) {}

    /// Called before a transaction is committed. Until [`Self::settle`], a reader of the store may see the state before
    /// or after the changes.
    fn prepare(&self, _changes: &[EntryChange]) {}

    /// Called after the commit, before it is acknowledged.
    fn publish(&self, commit: &Commit);

    /// Called last, after the commit or its failure.
    fn settle(&self, _changes: &[EntryChange]) {}

    /// Returns the entries of a key as of the last commit, if the subscriber has them: the committing thread then need not
    /// read them from the store.
    fn known(&self, _key: &str) -> Option<Arc<KeyEntries>> {
        None
    }

    /// Called when another program has changed the store: anything may have changed.
    fn reset(&self) {}
}

/// Error of a reader that is too slow: the buffer no longer has all changes that it lacks. The reader must read the
/// store instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("changes after this revision are no longer buffered")]
pub struct Lagged;

/// Change feed of one store.
pub struct Feed {
    subscribers: Vec<Arc<dyn Subscriber>>,
    buffer: Mutex<Buffer>,
}

struct Buffer {
    changes: VecDeque<EntryChange>,
    bytes: usize,
    /// Revision before the first buffered change: readers that have not seen it lag.
    floor: Revision,
    last: Revision,
}

impl Feed {
    /// Creates the feed of a store with this last revision and this last position in the replication log, if it has one.
    /// Subscribers are called in this order.
    pub fn new(last: Revision, log_position: Option<i64>, subscribers: Vec<Arc<dyn Subscriber>>) -> Self {
        subscribers.iter().for_each(|subscriber| subscriber.opened(log_position));
        let buffer = Buffer { changes: VecDeque::new(), bytes: 0, floor: last, last };
        Self { subscribers, buffer: Mutex::new(buffer) }
    }

    /// Commits a transaction by `commit_durably`, and publishes its changes if that succeeds.
    ///
    /// # Errors
    /// Returns the error of `commit_durably`; nothing is published then.
    pub fn commit<E>(
        &self,
        commit: &Commit,
        commit_durably: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        self.subscribers.iter().for_each(|subscriber| subscriber.prepare(&commit.changes));
        let committed = commit_durably();
        if committed.is_ok() {
            // First: a subscriber that reads the buffer under its own lock then sees each change there or is told of it
            // afterwards.
            self.buffer().append(&commit.changes);
            self.subscribers.iter().for_each(|subscriber| subscriber.publish(commit));
        }
        self.subscribers.iter().for_each(|subscriber| subscriber.settle(&commit.changes));
        committed
    }

    /// Voids everything that subscribers and readers know, because another program has changed the store. `revision` is
    /// that of its changes.
    pub fn reset(&self, revision: Revision) {
        self.buffer().clear(revision);
        self.subscribers.iter().for_each(|subscriber| subscriber.reset());
    }

    /// Returns the entries of a key as of the last commit, if a subscriber has them. For the committing thread.
    pub fn known(&self, key: &str) -> Option<Arc<KeyEntries>> {
        self.subscribers.iter().find_map(|subscriber| subscriber.known(key))
    }

    /// Returns the revision of the last change.
    pub fn last(&self) -> Revision {
        self.buffer().last
    }

    /// Returns the changes after `revision`, in commit order.
    ///
    /// # Errors
    /// Returns [`Lagged`] if the buffer no longer has all of them.
    pub fn changes_since(&self, revision: Revision) -> Result<Vec<EntryChange>, Lagged> {
        let buffer = self.buffer();
        if revision < buffer.floor {
            return Err(Lagged);
        }
        let first = buffer.changes.partition_point(|change| change.revision() <= revision);
        Ok(buffer.changes.range(first..).cloned().collect())
    }

    fn buffer(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed").field("last", &self.last()).finish_non_exhaustive()
    }
}

impl Buffer {
    fn append(&mut self, changes: &[EntryChange]) {
        for change in changes {
            self.bytes += change.entry().weight();
            self.last = change.revision();
            self.changes.push_back(change.clone());
        }
        while (self.bytes > FEED_BYTES_MAX || self.changes.len() > FEED_CHANGES_MAX)
            && let Some(oldest) = self.changes.pop_front()
        {
            self.bytes -= oldest.entry().weight();
            self.floor = oldest.revision();
        }
    }

    fn clear(&mut self, revision: Revision) {
        *self = Self { changes: VecDeque::new(), bytes: 0, floor: revision, last: revision };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Ciphertext;

    fn put(revision: i64, bytes: usize) -> EntryChange {
        let mut entry =
            SealedEntry::new(revision, "k".into(), None, Some(Ciphertext::from_bytes(vec![7; bytes])));
        entry.revision = Revision::from_number(revision);
        EntryChange::Put(Arc::new(entry))
    }

    fn commit(feed: &Feed, changes: Vec<EntryChange>) {
        feed.commit(&Commit { changes, ..Commit::default() }, || Ok::<_, ()>(())).expect("committed");
    }

    fn since(feed: &Feed, revision: i64) -> Result<Vec<i64>, Lagged> {
        let changes = feed.changes_since(Revision::from_number(revision))?;
        Ok(changes.iter().map(|change| change.revision().number()).collect())
    }

    #[derive(Default)]
    struct Recorder(Mutex<Vec<String>>);

    impl Recorder {
        fn note(&self, what: String) {
            self.0.lock().expect("no panic").push(what);
        }
    }

    impl Subscriber for Recorder {
        fn opened(&self, log_position: Option<i64>) {
            self.note(format!("opened {log_position:?}"));
        }

        fn prepare(&self, changes: &[EntryChange]) {
            self.note(format!("prepare {}", changes.len()));
        }

        fn publish(&self, commit: &Commit) {
            self.note(format!("publish {}", commit.changes.len()));
        }

        fn settle(&self, changes: &[EntryChange]) {
            self.note(format!("settle {}", changes.len()));
        }

        fn reset(&self) {
            self.note("reset".into());
        }
    }

    #[test]
    fn readers_get_later_changes_or_learn_that_they_lag() {
        let feed = Feed::new(Revision::from_number(10), None, Vec::new());
        assert_eq!((since(&feed, 10), since(&feed, 9)), (Ok(vec![]), Err(Lagged)));
        commit(&feed, vec![put(11, 1), put(12, 1)]);
        commit(&feed, vec![put(15, 1)]);
        assert_eq!(feed.last().number(), 15);
        assert_eq!(since(&feed, 10), Ok(vec![11, 12, 15]));
        assert_eq!((since(&feed, 11), since(&feed, 13)), (Ok(vec![12, 15]), Ok(vec![15])));
        for revision in 16..=i64::try_from(FEED_CHANGES_MAX).expect("few") + 15 {
            commit(&feed, vec![put(revision, 1)]);
        }
        assert_eq!(since(&feed, 14), Err(Lagged), "bounded by number");
        assert_eq!(since(&feed, 15).map(|found| found.len()), Ok(FEED_CHANGES_MAX));
        commit(&feed, vec![put(1 << 20, FEED_BYTES_MAX)]);
        assert_eq!(since(&feed, (1 << 20) - 1), Err(Lagged), "bounded by bytes");
        assert_eq!(since(&feed, 1 << 20), Ok(vec![]));
        feed.reset(Revision::from_number(1 << 21));
        assert_eq!((since(&feed, 1 << 20), since(&feed, 1 << 21)), (Err(Lagged), Ok(vec![])));
    }

    #[test]
    fn subscribers_are_told_around_the_commit_and_nothing_of_a_failed_one() {
        let recorder = Arc::new(Recorder::default());
        let feed =
            Feed::new(Revision::default(), Some(7), vec![Arc::clone(&recorder) as Arc<dyn Subscriber>]);
        let changes = || Commit { changes: vec![put(1, 1)], ..Commit::default() };
        let during = Arc::clone(&recorder);
        feed.commit(&changes(), || {
            during.note("commit".into());
            Ok::<_, ()>(())
        })
        .expect("committed");
        feed.commit(&changes(), || Err(())).expect_err("failed");
        feed.reset(Revision::from_number(2));
        assert_eq!(
            *recorder.0.lock().expect("no panic"),
            [
                "opened Some(7)",
                "prepare 1",
                "commit",
                "publish 1",
                "settle 1",
                "prepare 1",
                "settle 1",
                "reset"
            ]
        );
    }
}
