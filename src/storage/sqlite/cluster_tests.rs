//! Tests of versions, the replication log and merging, on real files.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_lite::future::block_on;
use proptest::prelude::*;

use super::test_store::TestStore;
use super::versions::Versions;
use super::*;
use crate::limits::{CLOCKS_DIFFER_MS_MAX, SQLITE_BUSY_TIMEOUT, TOMBSTONE_GRACE};
use crate::model::{Ciphertext, Digest, HlcTimestamp, OwnerTag, SealedBody, Timestamp};
use crate::storage::feed::Commit;
use crate::storage::write::Write;

const OWNER: OwnerTag = OwnerTag([1; 32]);

struct Node {
    store: TestStore,
    directory: Arc<tempfile::TempDir>,
}

impl Node {
    fn new() -> Self {
        Self::at(Arc::new(tempfile::tempdir().expect("temporary directory")), true)
    }

    fn at(directory: Arc<tempfile::TempDir>, is_clustered: bool) -> Self {
        Self::with_clock(directory, VersioningOptions::new(is_clustered))
    }

    fn with_clock(directory: Arc<tempfile::TempDir>, versions: VersioningOptions) -> Self {
        Self { store: TestStore::open(directory.path(), versions), directory }
    }

    fn restart(self, is_clustered: bool) -> Self {
        let Self { store, directory } = self;
        drop(store);
        Self::at(directory, is_clustered)
    }

    fn create(&self, key: &str, sealed: &[u8]) -> Arc<SealedEntry> {
        let id = EntryId { key: key.to_owned(), environment: None };
        self.store.write(Write::create(id, None, token(sealed)), OWNER).expect("new")
    }

    fn update(&self, seen: &SealedEntry, sealed: &[u8]) -> Arc<SealedEntry> {
        self.store.write(Write::update(seen, None, None, token(sealed)), OWNER).expect("seen")
    }

    fn delete(&self, seen: &SealedEntry) {
        self.store.write(Write::delete(seen), OWNER).expect("seen");
    }

    fn apply(&self, changes: Vec<Change>) -> usize {
        let applied = self.applied(changes);
        assert_eq!(applied.ahead, []);
        applied.won
    }

    fn applied(&self, changes: Vec<Change>) -> AppliedChanges {
        block_on(self.store.log().apply(changes)).expect("applied")
    }

    /// Returns the version of an entry.
    fn version(&self, key: &str) -> Version {
        let id = EntryId { key: key.to_owned(), environment: None };
        self.store.changes(&[id]).first().expect("there").version
    }

    fn note(&self, progress: PeerProgress) {
        block_on(self.store.log().record_progress(progress)).expect("recorded");
    }

    /// Returns the content of every entry, and the digest of the store.
    fn contents(&self) -> (BTreeMap<String, Vec<u8>>, Digest) {
        let page = self.store.page(&Filter::default(), 0);
        assert!(page.next_after.is_none());
        let rows = page.rows.iter().map(|row| {
            let sealed = row.ciphertext.as_ref().expect("sealed").as_bytes()[1..].to_vec();
            let sealed: Vec<u8> = sealed.into_iter().take_while(|byte| *byte != 0).collect();
            (format!("{}@{:?}", row.key, row.environment), sealed)
        });
        let log = self.store.storage.replication();
        let root = log.map(|log| log.digests().root().expect("a small store"));
        (rows.collect(), root.unwrap_or_default())
    }

    fn pull_changes(&self, from: &Node, after: i64) -> (usize, i64) {
        let page = from.store.log_changes(after);
        (self.apply(page.changes), page.sequence)
    }
}

/// Returns a ciphertext in the format of a token that contains a mark.
fn token(mark: &[u8]) -> Ciphertext {
    let mut bytes = vec![0; 73];
    bytes[0] = 0x80;
    bytes[1..=mark.len()].copy_from_slice(mark);
    Ciphertext::from_bytes(bytes)
}

fn change(key: &str, milliseconds: u64, node: u64, sealed: Option<&[u8]>) -> Change {
    let version = Version {
        timestamp: HlcTimestamp::from_milliseconds(milliseconds),
        replica: ReplicaId::from_random(node << 1),
    };
    let content = sealed.map(|sealed| SealedBody {
        category: None,
        ciphertext: token(sealed),
        created_at: None,
        updated_at: None,
    });
    Change { id: EntryId { key: key.to_owned(), environment: None }, version, body: content }
}

#[test]
fn local_changes_reach_another_store_through_the_log() {
    let (one, two) = (Node::new(), Node::new());
    let kept = one.create("kept", b"1");
    let deleted = one.create("deleted", b"2");
    one.update(&kept, b"3");
    let (applied, position) = two.pull_changes(&one, 0);
    assert_eq!((applied, position), (2, 3), "each entry once, in its current state");
    assert_eq!(two.contents(), one.contents());
    one.delete(&deleted);
    assert_eq!(two.pull_changes(&one, position), (1, 4));
    assert_eq!(two.contents(), one.contents());
    // Repetition is harmless, and changes from a peer are not passed on.
    assert_eq!(two.pull_changes(&one, 0).0, 0);
    assert!(two.store.log_changes(0).changes.is_empty());
}

/// Returns options with a clock that the test sets.
fn set_clock(offset_ms: &Arc<std::sync::atomic::AtomicI64>) -> VersioningOptions {
    let offset_ms = Arc::clone(offset_ms);
    let wall_clock = Arc::new(move || {
        Timestamp::now()
            .as_milliseconds()
            .saturating_add_signed(offset_ms.load(std::sync::atomic::Ordering::SeqCst))
    });
    VersioningOptions { wall_clock, ..VersioningOptions::new(true) }
}

fn directory() -> Arc<tempfile::TempDir> {
    Arc::new(tempfile::tempdir().expect("temporary directory"))
}

const MINUTE_MS: i64 = 60 * 1000;

#[test]
fn a_later_write_wins_although_its_clock_is_behind() {
    let behind = Arc::new(std::sync::atomic::AtomicI64::new(-4 * MINUTE_MS));
    let (one, two) = (Node::new(), Node::with_clock(directory(), set_clock(&behind)));
    one.create("k", b"first");
    assert_eq!(two.pull_changes(&one, 0).0, 1);
    let seen = two.store.exact("k").expect("there");
    two.update(&seen, b"second");
    two.create("other", b"o");
    assert!(two.version("k").timestamp > one.version("k").timestamp);
    assert!(two.version("other").timestamp < one.version("k").timestamp, "other entries are not affected");
    assert_eq!(one.pull_changes(&two, 0).0, 2);
    assert_eq!(one.contents(), two.contents());
    assert_eq!(one.contents().0["k@None"], b"second");
}

/// Such a change would win indefinitely, and an entry with a saturated timestamp could never be replaced.
#[test]
fn only_changes_ahead_of_the_clock_are_refused() {
    let node = Node::new();
    let now = Timestamp::now().as_milliseconds();
    let minute = MINUTE_MS.unsigned_abs();
    let saturated = change("poison", u64::MAX, u64::MAX >> 2, Some(b"p"));
    let mut future_times = change("late", now, 6, Some(b"l"));
    let content = future_times.body.as_mut().expect("content");
    content.updated_at = Some(Timestamp::now().later(Duration::from_secs(3600)));
    let changes = vec![
        change("before", now, 5, Some(b"b")),
        saturated.clone(),
        change("ahead", now + 6 * minute, 5, Some(b"a")),
        future_times,
        change("within", now + 4 * minute, 5, Some(b"w")),
    ];
    let applied = node.applied(changes);
    assert_eq!(applied.won, 2);
    let ahead: Vec<_> = applied.ahead.iter().map(|(node, ahead_ms)| (*node, ahead_ms / minute)).collect();
    let number = |bits: u64| ReplicaId::from_random(bits << 1);
    assert_eq!(ahead.len(), 3);
    assert_eq!(ahead[0].0, saturated.version.replica);
    assert!((5..=6).contains(&ahead[1].1) && ahead[1].0 == number(5), "{ahead:?}");
    assert!((59..=60).contains(&ahead[2].1) && ahead[2].0 == number(6), "{ahead:?}");
    let keys: Vec<String> = node.contents().0.into_keys().collect();
    assert_eq!(keys, ["before@None", "within@None"]);
    // After a restart, timestamps follow this node's own clock, whatever it has received.
    let node = node.restart(true);
    node.create("new", b"n");
    assert!(node.version("new").timestamp.milliseconds() < now + minute);
}

/// Such a version comes from an older release, which accepted it, or from a clock that was ahead.
#[test]
fn a_version_ahead_of_the_clock_is_not_replaced_by_one_that_peers_refuse() {
    let offset = Arc::new(std::sync::atomic::AtomicI64::new(60 * MINUTE_MS));
    let node = Node::with_clock(directory(), set_clock(&offset));
    let other = Node::new();
    let early = node.create("early", b"1");
    let page = node.store.log_changes(0);
    assert_eq!(other.applied(page.changes).ahead.len(), 1);
    // Once the clock is correct, new entries are accepted, and the old one is refused until its time has come.
    offset.store(0, std::sync::atomic::Ordering::SeqCst);
    node.create("new", b"2");
    let page = node.store.log_changes(1);
    assert_eq!(other.applied(page.changes).won, 1);
    let write = |seen: &SealedEntry| Write::update(seen, None, None, token(b"3"));
    let refused = node.store.write(write(&early), OWNER);
    assert!(matches!(refused, Err(WriteError::Ahead { ahead_ms }) if ahead_ms > 50 * 60_000), "{refused:?}");
    assert_eq!(node.contents().0["early@None"], b"1", "the write is rolled back");
    let Node { store, directory } = node;
    drop(store);
    // The same holds after a restart. A standalone node accepts the write.
    let node = Node::at(directory, true);
    node.create("newer", b"4");
    assert!(node.version("newer").timestamp < node.version("early").timestamp);
    let node = node.restart(false);
    let seen = node.store.exact("early").expect("there");
    node.store.write(write(&seen), OWNER).expect("a standalone node");
    let Node { store, directory } = node;
    drop(store);
    let database = rusqlite::Connection::open(directory.path().join("c.db")).expect("there");
    database.execute("UPDATE osc_versions SET stamp = ?1", [i64::MAX]).expect("valid");
    drop(database);
    let node = Node::at(directory, false);
    let seen = node.store.exact("early").expect("there");
    let refused = node.store.write(Write::delete(&seen), OWNER);
    assert!(matches!(refused, Err(WriteError::Ahead { .. })), "no later version exists: {refused:?}");
}

#[test]
fn a_store_that_joins_a_cluster_contributes_its_entries() {
    let standalone = Node::at(Arc::new(tempfile::tempdir().expect("temporary directory")), false);
    assert_eq!(standalone.store.storage.replication().map(ReplicationLog::replica), None);
    standalone.create("old", b"1");
    assert_eq!(standalone.contents().1, Digest::default());
    let joined = standalone.restart(true);
    let (_, root) = joined.contents();
    assert_ne!(root, Digest::default());
    assert_eq!(joined.store.log().digests().entries_count(), 1);
    let all: Vec<usize> = (0..crate::limits::BUCKETS_COUNT).collect();
    let known = joined.store.versions(&all, usize::MAX).known;
    assert_eq!(known.len(), 1);
    let other = Node::new();
    let ids: Vec<EntryId> = known.into_iter().map(|known| known.id).collect();
    assert_eq!(other.apply(joined.store.changes(&ids)), 1);
    assert_eq!(other.contents(), joined.contents());
    // A node that leaves the cluster for a while keeps maintaining versions: deleted entries must not reappear.
    let node = joined.store.log().replica();
    let left = joined.restart(false);
    assert_eq!(left.store.log().replica(), node);
    let seen = left.store.exact("old").expect("there");
    left.delete(&seen);
    let back = left.restart(true);
    assert_eq!(other.pull_changes(&back, 0).0, 1);
    assert_eq!(other.contents(), back.contents());
    assert!(other.contents().0.is_empty());
}

#[test]
fn external_changes_are_recorded_as_local_changes() {
    let (one, two) = (Node::new(), Node::new());
    one.create("removed", b"1");
    one.create("kept", b"2");
    let after = two.pull_changes(&one, 0).1;
    let database = rusqlite::Connection::open(one.directory.path().join("c.db")).expect("there");
    database.execute(r#"DELETE FROM configurations WHERE "key" = 'removed'"#, []).expect("valid");
    // A client could have created only the first of these.
    let (long, sealed) = ("k".repeat(256), token(b"n").to_text());
    for (key, environment, category, sealed) in [
        ("new", "", "", &*sealed),
        (&*long, "", "", &*sealed),
        ("k", &*long, "", &*sealed),
        ("k", "", &*long, &*sealed),
        ("k", "e", "", "gAAA"),
    ] {
        database
            .execute(
                r#"INSERT INTO configurations ("key", environment, category, encrypted_value)
                   VALUES (?1, nullif(?2, ''), ?3, ?4)"#,
                [key, environment, category, sealed],
            )
            .expect("valid");
    }
    drop(database);
    // The changes are detected by the next commit at the latest.
    one.create("another", b"3");
    two.pull_changes(&one, after);
    assert_eq!(two.contents().1, one.contents().1);
    let keys: Vec<String> = two.contents().0.into_keys().collect();
    assert_eq!(keys, ["another@None", "kept@None", "new@None"]);
}

#[test]
fn tombstones_are_collected_once_all_peers_have_had_them_for_the_grace_period() {
    let day_ms = 24 * 60 * 60 * 1000;
    let offset = Arc::new(std::sync::atomic::AtomicI64::new(-11 * day_ms));
    let node = Node::with_clock(directory(), set_clock(&offset));
    let peers = [ReplicaId::from_random(2), ReplicaId::from_random(4)];
    let all: Vec<usize> = (0..crate::limits::BUCKETS_COUNT).collect();
    let tombstones = || node.store.versions(&all, usize::MAX).known.len();
    let zero = HlcTimestamp::default();
    let now = HlcTimestamp::from_milliseconds(Timestamp::now().as_milliseconds());
    let before = now.earlier(TOMBSTONE_GRACE);
    let row = node.create("k", b"1");
    node.delete(&row);
    offset.store(0, std::sync::atomic::Ordering::SeqCst);
    node.note(PeerProgress::Collect { before });
    assert_eq!(tombstones(), 1, "no peer is known yet");
    node.note(PeerProgress::Synced { peer: peers[0], stamp: now, forgotten: zero });
    node.note(PeerProgress::Acknowledged { peer: peers[1], sequence: 1 });
    node.note(PeerProgress::Collect { before });
    assert_eq!(tombstones(), 1, "one peer was never in sync");
    // A clock that is 12 days ahead, on this node or on the one whose response has this time.
    offset.store(12 * day_ms, std::sync::atomic::Ordering::SeqCst);
    node.note(PeerProgress::Synced { peer: peers[1], stamp: before, forgotten: zero });
    node.note(PeerProgress::Collect { before: now });
    assert_eq!(tombstones(), 1, "the peer has been in sync for less than the grace period");
    offset.store(0, std::sync::atomic::Ordering::SeqCst);
    node.note(PeerProgress::Synced { peer: peers[1], stamp: now, forgotten: zero });
    node.note(PeerProgress::Collect { before: zero });
    assert_eq!(tombstones(), 1, "the tombstone is too recent");
    let root = node.store.log().digests().root();
    node.note(PeerProgress::Collect { before });
    assert_eq!((tombstones(), node.store.log().digests().root()), (0, root), "collection changes no digest");
    assert_eq!(node.store.log().horizon(), TombstoneHorizon { synced: now, forgotten: before });
    // The horizon is persisted, never moves back, and includes that of peers.
    let node = node.restart(true);
    for (stamp, forgotten) in [(zero, zero), (zero, before.next())] {
        node.note(PeerProgress::Synced { peer: peers[0], stamp, forgotten });
        assert_eq!(
            node.store.log().horizon(),
            TombstoneHorizon { synced: now, forgotten: before.max(forgotten) }
        );
    }
}

/// A clock that was days ahead has left a horizon that would make correct nodes look outdated.
#[test]
fn a_horizon_from_the_future_is_ignored_once_the_clock_is_correct() {
    let offset = Arc::new(std::sync::atomic::AtomicI64::new(12 * 24 * 60 * 60 * 1000));
    let node = Node::with_clock(directory(), set_clock(&offset));
    let now = HlcTimestamp::from_milliseconds(Timestamp::now().as_milliseconds());
    let ahead = now.later(Duration::from_secs(12 * 24 * 60 * 60));
    let progress = PeerProgress::Synced { peer: ReplicaId::from_random(2), stamp: ahead, forgotten: ahead };
    node.note(progress);
    let correct = TombstoneHorizon { synced: now, forgotten: HlcTimestamp::default() };
    assert!(node.store.log().horizon().has_outrun(&correct, CLOCKS_DIFFER_MS_MAX), "while it is wrong");
    offset.store(0, std::sync::atomic::Ordering::SeqCst);
    assert!(!node.store.log().horizon().has_outrun(&correct, CLOCKS_DIFFER_MS_MAX));
    let node = node.restart(true);
    assert!(!node.store.log().horizon().has_outrun(&correct, CLOCKS_DIFFER_MS_MAX), "after a restart");
}

#[test]
fn the_progress_of_removed_peers_is_dropped() {
    let node = Node::new();
    let [remaining, removed] = [ReplicaId::from_random(2), ReplicaId::from_random(4)];
    let (early, late) = (HlcTimestamp::from_milliseconds(1000), HlcTimestamp::from_milliseconds(2000));
    for (peer, stamp) in [(remaining, early), (removed, late)] {
        node.note(PeerProgress::Acknowledged { peer, sequence: 0 });
        node.note(PeerProgress::Synced { peer, stamp, forgotten: HlcTimestamp::default() });
    }
    let known = || {
        let mut known: Vec<_> = node.store.acknowledged();
        known.sort();
        known.into_iter().map(|(peer, _)| peer).collect::<Vec<_>>()
    };
    node.note(PeerProgress::Members { peers: vec![remaining], before: late });
    assert_eq!(known(), [remaining, removed], "the peer may return");
    node.note(PeerProgress::Members { peers: vec![remaining], before: late.next() });
    assert_eq!(known(), [remaining]);
}

#[test]
fn versions_come_in_whole_buckets() {
    let node = Node::new();
    for number in 0..40 {
        node.create(&format!("k{number}"), b"1");
    }
    let all: Vec<usize> = (0..crate::limits::BUCKETS_COUNT).collect();
    let everything = node.store.versions(&all, usize::MAX);
    assert_eq!((everything.known.len(), everything.buckets_count), (40, all.len()));
    // In pages of at least one bucket each.
    let (mut known, mut rest, mut pages) = (Vec::new(), &all[..], 0);
    while !rest.is_empty() {
        let page = node.store.versions(rest, 500);
        assert!(page.buckets_count > 0);
        rest = &rest[page.buckets_count..];
        known.extend(page.known);
        pages += 1;
    }
    assert!((8..=40).contains(&pages), "{pages}");
    assert_eq!(known, everything.known);
}

#[test]
fn the_log_is_trimmed_to_the_changes_that_a_peer_lacks() {
    let node = Node::new();
    let peer = |number: u64| ReplicaId::from_random(number);
    for number in 0..5 {
        node.create(&format!("k{number}"), b"1");
    }
    node.note(PeerProgress::Acknowledged { peer: peer(2), sequence: 5 });
    assert_eq!(node.store.log_range(), (0, 5));
    node.create("k5", b"1");
    node.note(PeerProgress::Acknowledged { peer: peer(4), sequence: 0 });
    node.note(PeerProgress::Acknowledged { peer: peer(2), sequence: 6 });
    assert_eq!(node.store.log_range(), (6, 6), "the other peer lacks the change");
    node.note(PeerProgress::Acknowledged { peer: peer(4), sequence: 3 });
    let mut acknowledged = node.store.acknowledged();
    acknowledged.sort();
    assert_eq!(acknowledged, [(peer(2), 6), (peer(4), 3)]);
    // A page for trimmed positions reports the last one, so that the peer does not request them again.
    node.note(PeerProgress::Acknowledged { peer: peer(4), sequence: 6 });
    let page = node.store.log_changes(4);
    assert_eq!((page.changes.len(), page.sequence, page.more), (0, 6, false));
    // Positions are never reused, even after everything was trimmed.
    node.note(PeerProgress::Acknowledged { peer: peer(4), sequence: 6 });
    let node = node.restart(true);
    node.create("k6", b"1");
    assert_eq!(node.store.log_range(), (7, 7));
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let one = (0_u8..4, 0_u64..6, 1_u64..4, proptest::option::of(0_u8..3)).prop_map(
        |(key, milliseconds, node, sealed)| {
            let sealed = sealed.map(|byte| [byte]);
            change(&format!("k{key}"), milliseconds, node, sealed.as_ref().map(<[u8; 1]>::as_slice))
        },
    );
    proptest::collection::vec(one, 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The same changes in any order and grouping, some of them repeated, result in the same store.
    #[test]
    fn merging_is_commutative_associative_and_idempotent(
        changes in changes(),
        order in any::<prop::sample::Index>(),
        size in 1_usize..6,
    ) {
        let (one, two) = (Node::new(), Node::new());
        one.apply(changes.clone());
        let mut shuffled = changes.clone();
        shuffled.rotate_left(order.index(changes.len()));
        shuffled.reverse();
        for group in shuffled.chunks(size) {
            two.apply(group.to_vec());
            two.apply(group.to_vec());
        }
        prop_assert_eq!(one.contents(), two.contents());
    }
}

/// The digests of a large store are loaded bucket by bucket between transactions, whatever those change.
#[test]
fn commits_between_two_bucket_loads_count_once() {
    let node = Node::new();
    let rows: Vec<_> = (0..300).map(|number| node.create(&format!("k{number}"), b"1")).collect();
    let expected =
        |node: &Node| (node.store.log().digests().root(), node.store.log().digests().entries_count());
    let (before, count) = expected(&node);
    let Node { store, directory } = node;
    drop(store);

    let path = directory.path().join("c.db");
    let mut connection =
        open::open(&path, &SaltStore::open(&directory.path().join("c.salt"), None).expect("there"))
            .expect("it opens")
            .connection;
    let buckets = Arc::new(DigestTable::default());
    let (options, horizon) = (VersioningOptions::new(true), Arc::default());
    let mut versions =
        Versions::open(&mut connection, options, Arc::clone(&buckets), horizon).expect("it opens");
    let change = |versions: &mut Versions, number: usize, key: &str| {
        let ciphertext = Ciphertext::from_bytes(number.to_be_bytes().to_vec());
        let content = (!number.is_multiple_of(3)).then_some(SealedBody {
            category: None,
            ciphertext,
            created_at: None,
            updated_at: None,
        });
        let id = EntryId { key: key.to_owned(), environment: None };
        let mut delta = crate::storage::digest::Delta::default();
        versions.record_own(&connection, &mut delta, &id, content.as_ref()).expect("recorded");
        let commit = Commit { digests: delta, ..Commit::default() };
        buckets.publish(&commit);
        versions.note_committed(&commit.digests);
    };
    for (number, row) in rows.iter().enumerate().take(200) {
        assert_eq!(buckets.root(), None, "not all buckets are loaded");
        change(&mut versions, number, &row.key);
        change(&mut versions, number + 1, &format!("new-{number}"));
        for _ in 0..3 {
            assert!(versions.load_next_bucket(&connection).expect("readable"));
        }
    }
    while versions.load_next_bucket(&connection).expect("readable") {}
    let found = (buckets.root(), buckets.entries_count());
    assert!(found.0.is_some() && found != (before, count));
    buckets.forget();
    assert_eq!(buckets.root(), None);
    while versions.load_next_bucket(&connection).expect("readable") {}
    assert_eq!((buckets.root(), buckets.entries_count()), found);
}

/// The state noted by a transaction is rolled back with it: otherwise a position that it did not append would count as
/// received by peers.
#[test]
fn a_rollback_discards_the_noted_state() {
    let Node { store, directory } = Node::new();
    drop(store);
    let path = directory.path().join("c.db");
    let mut connection =
        open::open(&path, &SaltStore::open(&directory.path().join("c.salt"), None).expect("there"))
            .expect("it opens")
            .connection;
    let mut versions =
        Versions::open(&mut connection, VersioningOptions::new(true), Arc::default(), Arc::default())
            .expect("it opens");
    let id = EntryId { key: "k".to_owned(), environment: None };
    let mut write = |end: &str| {
        let mut delta = crate::storage::digest::Delta::default();
        connection.execute_batch("BEGIN IMMEDIATE").expect("begun");
        versions.record_own(&connection, &mut delta, &id, None).expect("recorded");
        connection.execute_batch(end).expect("ended");
        let sequence = delta.state().outbox_line;
        if end == "COMMIT" {
            versions.note_committed(&delta);
        }
        (sequence, versions.last_sequence())
    };
    assert_eq!(write("ROLLBACK"), (Some(1), 0));
    assert_eq!(write("COMMIT"), (Some(1), 1));
    assert_eq!(write("ROLLBACK"), (Some(2), 1));
    assert_eq!(write("COMMIT"), (Some(2), 2));
    let mut delta = crate::storage::digest::Delta::default();
    let savepoint = delta.savepoint();
    versions.record_own(&connection, &mut delta, &id, None).expect("recorded");
    assert!(delta.state().outbox_line.is_some());
    delta.truncate(savepoint);
    assert_eq!(delta.state().outbox_line, None, "rolled back to the savepoint");
}

/// An operator's change that cannot be recorded immediately is recorded later.
#[test]
fn an_external_change_is_recorded_once_the_database_is_unlocked() {
    let node = Node::new();
    node.create("local", b"1");
    let before = node.store.log().digests().root();
    let other = rusqlite::Connection::open(node.directory.path().join("c.db")).expect("it opens");
    other
        .execute_batch("UPDATE configurations SET category = 'repaired'; BEGIN IMMEDIATE")
        .expect("an operator locks the database");
    // The writer checks every second, and gives up after the busy timeout.
    std::thread::sleep(SQLITE_BUSY_TIMEOUT + Duration::from_secs(2));
    assert_eq!(node.store.log().digests().root(), before);
    other.execute_batch("ROLLBACK").expect("unlocked");
    let began = std::time::Instant::now();
    while node.store.log().digests().root() == before {
        assert!(began.elapsed() < Duration::from_secs(10), "the change was not recorded");
        std::thread::sleep(Duration::from_millis(10));
    }
}
