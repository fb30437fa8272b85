//! Cost of one request in the state machine of a connection: receiving, parsing, responding and wiping.
//!
//! `head` depends on the scan for the end of the head, on httparse and the checks of the fields (visible with more
//! fields), and on the bytes that are copied or wiped afterwards. `pipelined` depends on the handling of a buffer with
//! several requests. `chunked` depends on the decoder of chunked bodies, and on how often a growing body is copied.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use opensecureconf::http1::{Connection, Response, Step};
use opensecureconf::limits::BODY_BYTES_MAX;

const BODY: &[u8] =
    br#"{"id":1,"key":"database_prod","category":"database","value":{"host":"localhost","port":5432}}"#;
const RESPONSE: Response<'static> = Response {
    status: 200,
    content_type: Some("application/json"),
    headers: &[],
    body: BODY,
    date: "Sat, 31 Jan 2026 10:00:00 GMT",
};
const PIPELINED_COUNT: usize = 16;
const CHUNK_BYTES: usize = 1024;

fn get(fields_count: usize) -> Vec<u8> {
    let mut head = String::from(
        "GET /configs/database_prod HTTP/1.1\r\nHost: 127.0.0.1:9000\r\nAccept: */*\r\n\
         X-User-Key: a-user-key-of-usual-length\r\nX-API-Key: an-api-key-of-usual-length\r\n",
    );
    for number in 4..fields_count {
        head.push_str(&format!("X-Forwarded-Field-{number:02}: a value of usual length\r\n"));
    }
    head.push_str("\r\n");
    head.into_bytes()
}

fn chunked_post(chunks_count: usize) -> Vec<u8> {
    let mut request =
        b"POST /configs HTTP/1.1\r\nHost: 127.0.0.1:9000\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..chunks_count {
        request.extend_from_slice(format!("{CHUNK_BYTES:x}\r\n").as_bytes());
        request.resize(request.len() + CHUNK_BYTES, b'x');
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    request
}

/// Serves the buffered requests as the driver does, until the connection needs more input; returns the number of
/// responses.
fn serve_buffered(connection: &mut Connection) -> usize {
    let mut responses_count = 0;
    loop {
        match connection.step(0) {
            Step::Head => connection.accept_body(BODY_BYTES_MAX, 0),
            Step::Body => {
                black_box((connection.head().path(), connection.head().user_key(), connection.body()));
                connection.respond(&RESPONSE, 0);
                responses_count += 1;
            }
            Step::Read => return responses_count,
            other => panic!("unexpected step {other:?} for a well-formed request"),
        }
    }
}

/// Feeds all bytes to the connection and consumes its output, like a socket that never blocks.
fn exchange(connection: &mut Connection, request: &[u8]) -> usize {
    let mut rest = request;
    let mut responses_count = 0;
    while !rest.is_empty() {
        let space = connection.read_space();
        let count = space.len().min(rest.len());
        space[..count].copy_from_slice(&rest[..count]);
        connection.received(count, 0);
        rest = &rest[count..];
        responses_count += serve_buffered(connection);
    }
    let written_bytes = black_box(connection.output()).len();
    connection.wrote(written_bytes, 0);
    responses_count
}

/// Measures a request on a new connection per iteration, because a connection closes after a million requests.
fn bench(criterion: &mut Criterion, name: &str, parameter: usize, request: &[u8], responses_count: usize) {
    const REQUESTS_COUNT: usize = 64;
    let mut group = criterion.benchmark_group("http1");
    group.throughput(Throughput::Elements((REQUESTS_COUNT * responses_count) as u64));
    group.bench_function(BenchmarkId::new(name, parameter), |bencher| {
        bencher.iter(|| {
            let mut connection = Connection::new(0);
            for _ in 0..REQUESTS_COUNT {
                assert_eq!(exchange(&mut connection, black_box(request)), responses_count);
            }
        });
    });
    group.finish();
}

fn requests(criterion: &mut Criterion) {
    for fields_count in [4, 16] {
        bench(criterion, "head", fields_count, &get(fields_count), 1);
    }
    bench(criterion, "pipelined", PIPELINED_COUNT, &get(4).repeat(PIPELINED_COUNT), PIPELINED_COUNT);
    for chunks_count in [1, 64] {
        bench(criterion, "chunked_kib", chunks_count, &chunked_post(chunks_count), 1);
    }
}

criterion_group!(benches, requests);
criterion_main!(benches);
