//! Complete requests on in-memory buffers: everything in a cached read except the kernel and the executor.
//!
//! `read` depends on everything on the path of a cached read: the head, the route, the hash of the user key, the row
//! cache, the opening of the token, and the response. `read_4096` also depends on opening and copying a larger value;
//! `health` is the minimum cost of a request, without key, row and token.

use criterion::{Criterion, criterion_group, criterion_main};

mod whole;

fn requests(criterion: &mut Criterion) {
    let mut connection = whole::Connection::new();
    connection.create("small", r#"{"host":"db.example.org","port":5432,"password":"correct"}"#);
    connection.create("large", &format!("\"{}\"", "x".repeat(4096)));
    let mut group = criterion.benchmark_group("request");
    let cases = [
        ("read", whole::read("small")),
        ("read_4096", whole::read("large")),
        ("health", b"GET /cluster/health HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
    ];
    for (name, request) in cases {
        assert!(connection.exchange(&request).starts_with(b"HTTP/1.1 200"), "{name}");
        group.bench_function(name, |bencher| bencher.iter(|| connection.exchange(&request).len()));
    }
    group.finish();
}

criterion_group!(benches, requests);
criterion_main!(benches);
