//! Sealing and opening of Fernet tokens, by plaintext size.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use opensecureconf::crypto::{FernetKey, RawKey, encode};

fn tokens(criterion: &mut Criterion) {
    let key = FernetKey::new(&RawKey::new([7; 32]));
    let mut group = criterion.benchmark_group("fernet");
    for size in [64_usize, 300, 4096, 65_536] {
        let plaintext = vec![b'x'; size];
        let raw = key.seal_raw(&plaintext, 0);
        let token = encode(&raw);
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_with_input(BenchmarkId::new("seal", size), &plaintext, |bencher, plaintext| {
            bencher.iter(|| key.seal(black_box(plaintext), 0));
        });
        group.bench_with_input(BenchmarkId::new("open", size), &token, |bencher, token| {
            bencher.iter(|| key.open(black_box(token.as_bytes())));
        });
        group.bench_with_input(BenchmarkId::new("open_raw", size), &raw, |bencher, raw| {
            let mut out = Vec::new();
            bencher.iter(|| {
                out.clear();
                key.open_raw(black_box(raw), &mut out)
            });
        });
        group.bench_with_input(BenchmarkId::new("verifies_raw", size), &raw, |bencher, raw| {
            bencher.iter(|| key.verifies_raw(black_box(raw)));
        });
    }
    group.finish();
}

criterion_group!(benches, tokens);
criterion_main!(benches);
