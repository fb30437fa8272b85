//! Cache of sealed rows: a hit is on the path of every read, a fill on that of a read from SQLite.
//!
//! `hit` depends on the lock and the table of a stripe. `hit_of_100000` is the same over more rows than the CPU caches
//! hold, so it depends on the number of cache lines that a lookup touches. `fill_evict` is the cost of caching a row
//! after a miss once the cache is full.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use opensecureconf::limits::{ENTRY_CACHE_BYTES_MAX, ENTRY_CACHE_BYTES_MIN};
use opensecureconf::model::{Ciphertext, KeyEntries, SealedEntry};
use opensecureconf::storage::EntryCache;

const VALUE_BYTES: usize = 200;

fn group(key: &str) -> Arc<KeyEntries> {
    let sealed = Ciphertext::from_bytes(vec![7; VALUE_BYTES]);
    Arc::new(KeyEntries { rows: vec![Arc::new(SealedEntry::new(1, key.to_owned(), None, Some(sealed)))] })
}

fn fill(cache: &EntryCache, key: &str, group: &Arc<KeyEntries>) {
    let ticket = cache.prepare_fill(key);
    cache.fill(&ticket, key, group);
}

/// Steps `index` through all indices below `count`, which 7919 does not divide, in an order that defeats prefetchers.
fn next(index: &mut usize, count: usize) -> usize {
    *index = (*index + 7919 * 31) % count;
    *index
}

fn cache(criterion: &mut Criterion) {
    let mut benches = criterion.benchmark_group("entry_cache");
    let cache = EntryCache::new(ENTRY_CACHE_BYTES_MAX);
    fill(&cache, "key", &group("key"));
    benches.bench_function("hit", |bencher| bencher.iter(|| cache.get(black_box("key"))));
    benches.bench_function("no_hit", |bencher| bencher.iter(|| cache.get(black_box("none"))));

    let keys: Vec<String> = (0..100_000).map(|number| format!("service-{number}/database")).collect();
    for key in &keys {
        fill(&cache, key, &group(key));
    }
    let mut index = 0;
    benches.bench_function("hit_of_100000", |bencher| {
        bencher.iter(|| cache.get(&keys[next(&mut index, keys.len())]).expect("all rows fit in the cache"));
    });

    let cache = EntryCache::new(ENTRY_CACHE_BYTES_MIN);
    let many: Vec<String> = (0..1_000_000).map(|number| format!("service-{number}/database")).collect();
    let shared = group("service-0/database");
    many.iter().for_each(|key| fill(&cache, key, &shared));
    assert!(cache.usage().1 < many.len() / 2, "the cache is full");
    benches.bench_function("fill_evict", |bencher| {
        bencher.iter(|| fill(&cache, &many[next(&mut index, many.len())], &shared));
    });
    benches.finish();
}

criterion_group!(benches, cache);
criterion_main!(benches);
