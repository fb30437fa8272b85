//! Routing of method and path, which is on the path of every request.
//!
//! `config` depends on percent-decoding and on the allocation of the key, `config_encoded` on decoding alone,
//! `cluster_health` and `miss` on the order in which the fixed paths are compared.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use opensecureconf::http::Route;
use opensecureconf::http1::Method;

fn paths(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route");
    let cases: [(&str, &[u8]); 5] = [
        ("list", b"/configs"),
        ("config", b"/configs/database_prod"),
        ("config_encoded", b"/configs/%D0%BA%D0%BB%D1%8E%D1%87%2Fprod"),
        ("cluster_health", b"/cluster/health"),
        ("miss", b"/favicon.ico"),
    ];
    for (name, path) in cases {
        group.bench_function(name, |bencher| {
            bencher.iter(|| Route::find(black_box(Method::Get), black_box(path)));
        });
    }
    group.finish();
}

criterion_group!(benches, paths);
criterion_main!(benches);
