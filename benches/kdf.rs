//! Key derivation, single and two interleaved; the `pbkdf2` crate is the baseline and must remain slower.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use opensecureconf::crypto::{Derivation, advance};
use opensecureconf::{crypto, limits};

fn derivation(criterion: &mut Criterion) {
    let (password, salt) = (b"a-user-key-of-usual-length", [0x5A; limits::SALT_BYTES]);
    let mut group = criterion.benchmark_group("kdf");
    group.sample_size(20);
    group.bench_function("own", |bencher| bencher.iter(|| crypto::derive(black_box(password), &salt)));
    group.bench_function("own_two_at_once", |bencher| {
        bencher.iter(|| {
            let [mut one, mut other] =
                [b"one", b"two"].map(|password| Derivation::new(black_box(password), &salt));
            while !one.is_done() {
                advance([&mut one, &mut other]);
            }
            [one.key(), other.key()]
        });
    });
    group.bench_function("pbkdf2_crate", |bencher| {
        bencher.iter(|| {
            let password = black_box(password);
            pbkdf2::pbkdf2_hmac_array::<sha2::Sha256, 32>(password, &salt, limits::KDF_ROUNDS)
        });
    });
    group.finish();
}

criterion_group!(benches, derivation);
criterion_main!(benches);
