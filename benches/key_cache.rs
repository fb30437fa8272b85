//! Cache of derived keys: a hit is on the path of every request.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use criterion::{Criterion, criterion_group, criterion_main};
use opensecureconf::crypto::{KeyCache, Lookup, RawKey, Salt};
use opensecureconf::model::UserKey;

fn fill(cache: &KeyCache, user_key: &UserKey) {
    if let Lookup::Derive(claim, _waiter) = cache.lookup(user_key, 0) {
        claim.complete(&Salt::new(&[1; 64]).expect("not empty"), &RawKey::new([7; 32]));
    }
}

fn lookups(criterion: &mut Criterion) {
    let cache = KeyCache::new();
    let user_key = UserKey::from_header(b"a-user-key-of-usual-length");
    let mut group = criterion.benchmark_group("key_cache");
    fill(&cache, &user_key);
    group.bench_function("hit", |bencher| bencher.iter(|| cache.lookup(black_box(&user_key), 0)));
    let running = AtomicBool::new(true);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while running.load(Relaxed) {
                black_box(cache.lookup(black_box(&user_key), 0));
            }
        });
        // The worst case: another core does nothing but look up the same key.
        group.bench_function("hit_contended", |bencher| {
            bencher.iter(|| cache.lookup(black_box(&user_key), 0))
        });
        running.store(false, Relaxed);
    });
    let mut number = 0_u64;
    group.bench_function("miss_insert_evict", |bencher| {
        bencher.iter(|| {
            number += 1;
            fill(&cache, &UserKey::from_header(&number.to_be_bytes()));
        });
    });
    group.finish();
}

criterion_group!(benches, lookups);
criterion_main!(benches);
