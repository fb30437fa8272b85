//! The cost of one request in the state machine of a connection: receiving, parsing, answering, wiping.
//!
//! `head` moves with the scan for the end of the head, httparse and the checks of the fields (more
//! fields show them), and with what is copied or wiped afterwards. `pipelined` moves with the handling
//! of a buffer that holds several requests. `chunked` moves with the decoder of chunked bodies, and
//! with how often a growing body is copied.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use opensecureconf::http1::{Connection, Response, Step};
use opensecureconf::limits::BODY_BYTES_MAX;

const BODY: &[u8] =
    br#"{"id":1,"key":"database_prod","category":"database","value":{"host":"localhost","port":5432}}"#;
const ANSWER: Response<'static> = Response {
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

/// Goes on as the driver does until the connection wants more bytes; tells how many it answered.
fn serve_what_is_there(connection: &mut Connection) -> usize {
    let mut answered_count = 0;
    loop {
        match connection.step(0) {
            Step::Head => connection.accept_body(BODY_BYTES_MAX, 0),
            Step::Body => {
                black_box((connection.head().path(), connection.head().user_key(), connection.body()));
                connection.respond(&ANSWER, 0);
                answered_count += 1;
            }
            Step::Read => return answered_count,
            other => panic!("a well-formed request leads to {other:?}"),
        }
    }
}

/// Hands all bytes over, and takes all output, as a socket does that never blocks.
fn exchange(connection: &mut Connection, request: &[u8]) -> usize {
    let mut rest = request;
    let mut answered_count = 0;
    while !rest.is_empty() {
        let space = connection.read_space();
        let count = space.len().min(rest.len());
        space[..count].copy_from_slice(&rest[..count]);
        connection.received(count, 0);
        rest = &rest[count..];
        answered_count += serve_what_is_there(connection);
    }
    let written_bytes = black_box(connection.output()).len();
    connection.wrote(written_bytes, 0);
    answered_count
}

/// A connection that is new for each measurement, because one has an end after a million requests.
fn bench(criterion: &mut Criterion, name: &str, parameter: usize, request: &[u8], answered_count: usize) {
    const REQUESTS_COUNT: usize = 64;
    let mut group = criterion.benchmark_group("http1");
    group.throughput(Throughput::Elements((REQUESTS_COUNT * answered_count) as u64));
    group.bench_function(BenchmarkId::new(name, parameter), |bencher| {
        bencher.iter(|| {
            let mut connection = Connection::new(0);
            for _ in 0..REQUESTS_COUNT {
                assert_eq!(exchange(&mut connection, black_box(request)), answered_count);
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
