//! Tests that cached pages agree with the database, whichever program changes it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use futures_lite::future::block_on;
use proptest::prelude::*;

use super::test_store::{TestStore, WriteResult};
use super::*;
use crate::model::{Ciphertext, OwnerTag};
use crate::storage::Write;

const OWNER: OwnerTag = OwnerTag([1; 32]);

fn open(directory: &Path) -> TestStore {
    TestStore::open(directory, VersioningOptions::new(false))
}

fn write(store: &TestStore, write: Write) -> WriteResult {
    store.write(write, OWNER)
}

fn create(key: String, environment: Option<&str>, category: Option<&str>, sealed: u8) -> Write {
    let id = EntryId { key, environment: environment.map(str::to_owned) };
    Write::create(id, category.map(str::to_owned), Ciphertext::from_bytes(vec![sealed]))
}

fn update(seen: &SealedEntry, environment: Option<&str>, category: Option<&str>, sealed: u8) -> Write {
    let (category, environment) = (category.map(str::to_owned), environment.map(str::to_owned));
    Write::update(seen, category, environment, Ciphertext::from_bytes(vec![sealed]))
}

fn filters() -> Vec<Filter> {
    let text = |text: &str| Some(text.to_owned());
    vec![
        Filter::default(),
        Filter { category: text("a"), ..Filter::default() },
        Filter { environment: text("prod"), ..Filter::default() },
        Filter { environment: text(""), ..Filter::default() },
        Filter { prefix: text("k1"), ..Filter::default() },
        Filter { prefix: text("é"), category: text(""), ..Filter::default() },
        Filter { prefix: text("k1\0"), ..Filter::default() },
    ]
}

/// Returns all properties of a page that a list could show.
fn shown(page: &Page) -> impl PartialEq + std::fmt::Debug {
    let rows = page.rows.iter().map(|row| {
        let sealed = row.ciphertext.as_ref().map(|sealed| sealed.as_bytes().to_vec());
        let names = (row.key.clone(), row.category.clone(), row.environment.clone());
        (row.id, names, sealed, row.created_at, row.updated_at)
    });
    (rows.collect::<Vec<_>>(), page.unreadable_count, page.next_after)
}

/// Checks that the store returns the pages that are in the database.
fn check(store: &TestStore) {
    for filter in filters() {
        for after in [i64::MIN, 3] {
            let stored = block_on(store.storage.engine().scan(&filter, after)).expect("readable");
            let returned = store.page(&filter, after);
            assert_eq!(shown(&returned), shown(&stored), "{filter:?} after {after}");
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Create(usize, Option<&'static str>, Option<&'static str>, u8),
    Update(usize, Option<&'static str>, Option<&'static str>, u8),
    Delete(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let environment = || prop_oneof![Just(None), Just(Some("prod")), Just(Some("dev"))];
    let category = || prop_oneof![Just(None), Just(Some("a")), Just(Some("")), Just(Some("b"))];
    let step = prop_oneof![
        (0..6_usize, environment(), category(), any::<u8>()).prop_map(
            |(key, environment, category, sealed)| Step::Create(key, environment, category, sealed)
        ),
        (0..12_usize, environment(), category(), any::<u8>()).prop_map(
            |(row, environment, category, sealed)| Step::Update(row, environment, category, sealed)
        ),
        (0..12_usize).prop_map(Step::Delete),
    ];
    prop::collection::vec(step, 1..24)
}

const KEYS: [&str; 6] = ["k1", "k10", "k1\0", "k2", "éa", "e"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn pages_and_database_agree_after_each_write(steps in steps()) {
        let directory = tempfile::tempdir().expect("temporary directory");
        let store = open(directory.path());
        check(&store);
        for step in steps {
            let page = store.page(&Filter::default(), i64::MIN);
            let row = |index: usize| page.rows.get(index % page.rows.len().max(1)).map(Arc::clone);
            // Some writes are refused, and must not change anything.
            let _: Option<WriteResult> = match step {
                Step::Create(key, environment, category, sealed) => {
                    Some(write(&store, create(KEYS[key].to_owned(), environment, category, sealed)))
                }
                Step::Update(index, environment, category, sealed) => {
                    row(index).map(|row| write(&store, update(&row, environment, category, sealed)))
                }
                Step::Delete(index) => row(index).map(|row| write(&store, Write::delete(&row))),
            };
            check(&store);
        }
        prop_assert!(store.storage.cached_page(&Filter::default(), i64::MIN).is_some());
    }
}

#[test]
fn a_page_that_grows_is_split() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let store = open(directory.path());
    let all = Filter::default();
    for number in 0..30_u8 {
        let mut new = create(format!("k{number}"), None, None, number);
        if let Write::Put { ciphertext, .. } = &mut new {
            *ciphertext = Ciphertext::from_bytes(vec![number; 100_000]);
        }
        write(&store, new).expect("new");
        let (mut ids, mut after) = (Vec::new(), Some(i64::MIN));
        while let Some(begin) = after {
            let page = store.page(&all, begin);
            assert!(page.bytes < 3 << 20, "{}", page.bytes);
            ids.extend(page.rows.iter().map(|row| row.id));
            after = page.next_after;
        }
        assert_eq!(ids, (1..=i64::from(number) + 1).collect::<Vec<_>>());
    }
}

#[test]
fn external_changes_invalidate_cached_pages() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let store = open(directory.path());
    write(&store, create("k1".into(), None, None, 1)).expect("new");
    write(&store, create("k2".into(), None, None, 2)).expect("new");
    check(&store);
    let other = rusqlite::Connection::open(directory.path().join("c.db")).expect("there");
    other
        .execute_batch(
            r#"UPDATE configurations SET category = 'a' WHERE "key" = 'k1';
               INSERT INTO configurations ("key", encrypted_value, environment) VALUES ('k10', 'gAAA', 'prod');
               INSERT INTO configurations ("key", encrypted_value) VALUES (CAST(x'ff' AS TEXT), 'gAAA');"#,
        )
        .expect("valid");
    // A write detects the change immediately.
    write(&store, create("k3".into(), None, None, 3)).expect("new");
    check(&store);
    assert_eq!(store.page(&Filter::default(), 0).unreadable_count, 1);
    other.execute(r#"DELETE FROM configurations WHERE "key" = 'k2'"#, []).expect("valid");
    let deadline = Instant::now() + Duration::from_secs(60);
    while store.page(&Filter::default(), 0).rows.iter().any(|row| row.key == "k2") {
        assert!(Instant::now() < deadline, "an idle writer checks every second");
        thread::sleep(Duration::from_millis(10));
    }
    check(&store);
}

/// Several threads write and see their own writes in the next page, while another one reads pages that come and go.
#[test]
fn pages_are_coherent_under_concurrent_writes() {
    const WRITERS: usize = 4;
    const WRITES: u8 = 60;
    let directory = tempfile::tempdir().expect("temporary directory");
    let store = open(directory.path());
    // Enough entries that commits often occur while a page is being read.
    for number in 0..300 {
        let write = create(format!("other {number}"), None, None, 0);
        drop(store.queue(write, OWNER));
    }
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let store = &store;
                scope.spawn(move || {
                    let key = format!("k{writer}");
                    let mut row = write(store, create(key.clone(), None, None, 0)).expect("new");
                    for sealed in 1..=WRITES {
                        row = write(store, update(&row, None, None, sealed)).expect("the only writer");
                        let page = store.page(&Filter::default(), i64::MIN);
                        let row_in_page = page.rows.iter().find(|row| row.key == key).expect("there");
                        assert_eq!(row_in_page.ciphertext, row.ciphertext);
                        if sealed % 7 == 0 {
                            write(store, Write::delete(&row)).expect("the only writer");
                            let page = store.page(&Filter::default(), i64::MIN);
                            assert!(page.rows.iter().all(|row| row.key != key));
                            row = write(store, create(key.clone(), None, None, sealed)).expect("gone");
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                store.storage.clear_pages();
                store.page(&Filter::default(), i64::MIN);
                // The writers need time to use the cached page.
                thread::sleep(Duration::from_micros(300));
            }
        });
        for writer in writers {
            if let Err(panic) = writer.join() {
                done.store(true, Ordering::Relaxed);
                std::panic::resume_unwind(panic);
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    check(&store);
}
