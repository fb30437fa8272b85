//! Rows of the store: read from the cache, from SQLite and in pages, and written in batches.
//!
//! `cache_hit` depends on the lock and the table of a stripe, and is on the path of every read. `group` depends on the
//! statement for a point read and on decoding the text of the token. `page` depends on the cost of a row in a list,
//! without opening it; `page_cached` is the cost for most lists instead. `commit` is dominated by the fsync of the
//! write-ahead log, so it depends on the disk, and on how many writes share one transaction.

use std::hint::black_box;
use std::path::Path;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use futures_lite::future::block_on;
use opensecureconf::crypto::{FernetKey, RawKey};
use opensecureconf::limits::ENTRY_CACHE_BYTES_MIN;
use opensecureconf::model::{Ciphertext, EntryId, Filter, OwnerTag};
use opensecureconf::storage::sqlite::Options;
use opensecureconf::storage::{Storage, Write, WriteBatch};

const ROWS_COUNT: usize = 1000;
const OWNER: OwnerTag = OwnerTag([7; 32]);

fn open(directory: &Path) -> Storage {
    let options = Options::standalone(Box::new(|error| panic!("the writer failed: {error}")));
    let (database, salt) = (directory.join("bench.db"), directory.join("bench.salt"));
    Storage::open_sqlite(&database, &salt, 4 * ENTRY_CACHE_BYTES_MIN, Vec::new(), options)
        .expect("a new store")
}

fn ciphertext() -> Ciphertext {
    Ciphertext::from_bytes(FernetKey::new(&RawKey::new([7; 32])).seal_raw(&[b'x'; 300], 0))
}

fn create(number: usize) -> Write {
    let id = EntryId { key: format!("key-{number}"), environment: None };
    Write::create(id, Some("database".to_owned()), ciphertext())
}

/// Submits all writes before it waits for the first result, so that the writer can batch them into one transaction.
fn write(store: &Storage, changes: Vec<Write>) {
    let batch = |write| WriteBatch { writes: vec![write], owner: Some(OWNER) };
    let results: Vec<_> = changes.into_iter().map(|write| store.commit(batch(write))).collect();
    for result in results {
        block_on(result).expect("the write is valid");
    }
}

fn updates(store: &Storage, count: usize) -> Vec<Write> {
    (0..count)
        .map(|number| {
            let id = EntryId { key: format!("key-{number}"), environment: None };
            let seen = block_on(store.get_exact(&id)).expect("readable").expect("created before");
            Write::update(&seen, None, None, ciphertext())
        })
        .collect()
}

fn rows(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store = open(directory.path());
    write(&store, (0..ROWS_COUNT).map(create).collect());
    let mut group = criterion.benchmark_group("store");

    block_on(store.get("key-500")).expect("readable");
    group.bench_function("cache_hit", |bencher| bencher.iter(|| store.cached(black_box("key-500"))));
    let read = || block_on(store.engine().get(black_box("key-500"))).expect("readable");
    group.bench_function("group", |bencher| bencher.iter(read));

    group.throughput(Throughput::Elements(ROWS_COUNT as u64));
    let page = |after: i64| {
        let page = block_on(store.scan(&Filter::default(), black_box(after))).expect("readable");
        assert_eq!(page.rows.len(), ROWS_COUNT);
        page
    };
    group.bench_function("page", |bencher| {
        // A different cursor each time, so that the page is never cached.
        let mut after = 0;
        bencher.iter(|| {
            after -= 1;
            page(after)
        });
    });
    group.bench_function("page_cached", |bencher| bencher.iter(|| page(0)));

    for count in [1, 16, 64] {
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(BenchmarkId::new("commit", count), |bencher| {
            bencher.iter_batched(
                || updates(&store, count),
                |changes| write(&store, changes),
                criterion::BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, rows);
criterion_main!(benches);
