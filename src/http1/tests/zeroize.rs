//! No byte of a request is kept after its response.

use super::{
    Connection, Step,
    pipelining::{ANSWER, GET, connection, send, step},
};
use crate::limits;

/// Returns whether the read buffer or the output contains a secret that a client sent or received.
fn keeps_canary(connection: &Connection) -> bool {
    let has_canary = |bytes: &[u8]| memchr::memmem::find(bytes, b"canary").is_some();
    has_canary(connection.read_buffer.everything()) || has_canary(connection.output())
}

#[test]
fn requests_and_responses_are_wiped() {
    let put = "PUT / HTTP/1.1\r\nHost: x\r\nX-User-Key: canary\r\nContent-Length: 6\r\n\r\ncanary";
    let ways: [fn(&mut Connection); 4] = [
        |connection| connection.respond(&ANSWER, 0),
        |connection| connection.respond_and_close(&ANSWER, 0),
        |connection| connection.abort(),
        |connection| {
            connection.begin_stream(&ANSWER, &[], 0);
            connection.end_stream(&[], 0);
        },
    ];
    for (index, way) in ways.into_iter().enumerate() {
        for accepts in [false, true] {
            let mut connection = connection();
            send(&mut connection, put, 0);
            assert_eq!(step(&mut connection), Step::Head);
            assert!(keeps_canary(&connection));
            if accepts {
                connection.accept_body(limits::BODY_BYTES_MAX, 0);
                assert_eq!(step(&mut connection), Step::Body);
            }
            way(&mut connection);
            assert!(!keeps_canary(&connection), "way {index}, accepts: {accepts}");
            assert_eq!(connection.buffered_body_bytes(), 0);
        }
    }

    let mut rejected = connection();
    send(&mut rejected, &GET.replace("Host: x", "Host x"), 0);
    assert!(matches!(step(&mut rejected), Step::Reject(_)));
    assert!(!keeps_canary(&rejected));
    send(&mut rejected, GET, 0);
    assert!(!keeps_canary(&rejected));

    let mut late = connection();
    send(&mut late, GET.trim_end(), 0);
    late.step(0);
    late.expire(10_000);
    assert!(!keeps_canary(&late));
}
