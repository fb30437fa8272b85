//! Every deadline: nothing happens one millisecond before it, and the expected step follows at it.

use super::{
    Connection, ProtocolError, Step,
    pipelining::{ANSWER, GET, OK_CLOSE, connection, send, step, take_output},
};
use crate::limits;

/// Expires a connection just before its deadline, which does nothing, and then at it.
fn check_expiry(connection: &mut Connection, deadline_ms: u64, expected: Step) {
    let before = connection.step(deadline_ms - 1);
    assert_eq!(connection.deadline_ms(), Some(deadline_ms));
    connection.expire(deadline_ms - 1);
    assert_eq!(connection.step(deadline_ms - 1), before);
    connection.expire(deadline_ms);
    assert_eq!(connection.step(deadline_ms), expected);
}

#[test]
fn deadlines_of_requests() {
    let idle_ms = 60_000;
    let head_ms = 10_000;
    let mut fresh = Connection::new(7);
    check_expiry(&mut fresh, 7 + idle_ms, Step::Linger);
    assert!(fresh.output().is_empty());

    let mut slow = Connection::new(7);
    for now_ms in [1000, 2000, 9000] {
        send(&mut slow, "G", now_ms);
        slow.step(now_ms);
    }
    check_expiry(&mut slow, 1000 + head_ms, Step::Reject(ProtocolError::HeadTimeout));

    // An empty line does not begin a request.
    let mut empty_line = Connection::new(7);
    send(&mut empty_line, "\r\n", 1000);
    empty_line.step(1000);
    assert!(empty_line.is_idle());
    check_expiry(&mut empty_line, 1000 + idle_ms, Step::Linger);

    // The head timeout of a pipelined request counts from the response to the previous one.
    let mut ahead = connection();
    send(&mut ahead, &format!("{GET}GET"), 0);
    assert_eq!(step(&mut ahead), Step::Head);
    assert_eq!(ahead.deadline_ms(), None);
    ahead.expire(u64::MAX);
    ahead.respond(&ANSWER, 50_000);
    take_output(&mut ahead, 50_000);
    check_expiry(&mut ahead, 50_000 + head_ms, Step::Reject(ProtocolError::HeadTimeout));

    let mut again = connection();
    send(&mut again, GET, 0);
    assert_eq!(step(&mut again), Step::Head);
    again.respond(&ANSWER, 50_000);
    take_output(&mut again, 50_000);
    check_expiry(&mut again, 50_000 + idle_ms, Step::Linger);
}

#[test]
fn deadlines_of_bodies() {
    let mut connection = connection();
    send(&mut connection, "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 4194304\r\n\r\n", 0);
    assert_eq!(step(&mut connection), Step::Head);
    connection.accept_body(limits::BODY_BYTES_MAX, 20_000);
    assert_eq!(connection.deadline_ms(), Some(30_000));
    let mut send_at = |bytes_count: usize, now_ms| {
        for piece in vec![b'x'; bytes_count].chunks(1000) {
            send(&mut connection, std::str::from_utf8(piece).expect("letters"), now_ms);
            assert_eq!(connection.step(now_ms), Step::Read);
        }
        connection.deadline_ms()
    };
    assert_eq!(send_at(limits::TRANSFER_BYTES_MIN - 1, 25_000), Some(30_000));
    assert_eq!(send_at(1, 26_000), Some(36_000));
    // Bytes of earlier windows earn no time: neither a burst of a megabyte nor a byte now and then.
    assert_eq!(send_at(1024 * 1024, 27_000), Some(37_000));
    for now_ms in 28..37 {
        assert_eq!(send_at(1, now_ms * 1000), Some(37_000));
    }
    check_expiry(&mut connection, 37_000, Step::Reject(ProtocolError::BodyTimeout));
    connection.respond_and_close(&ANSWER, 37_000);
    assert_eq!(take_output(&mut connection, 37_000), OK_CLOSE);
}

#[test]
fn deadlines_of_chunked_bodies() {
    let mut connection = connection();
    send(&mut connection, "PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", 0);
    assert_eq!(step(&mut connection), Step::Head);
    connection.accept_body(limits::BODY_BYTES_MAX, 0);
    // The framing around the data earns no time.
    for now_ms in [1000, 2000, 9000] {
        send(&mut connection, "1;a=b\r\nx\r\n", now_ms);
        assert_eq!(connection.step(now_ms), Step::Read);
    }
    check_expiry(&mut connection, 10_000, Step::Reject(ProtocolError::BodyTimeout));
}

#[test]
fn deadlines_of_writing_and_lingering() {
    let mut stalled = connection();
    send(&mut stalled, &format!("{GET}G"), 0);
    assert_eq!(step(&mut stalled), Step::Head);
    stalled.respond(&ANSWER, 3000);
    assert_eq!(stalled.deadline_ms(), Some(13_000));
    stalled.wrote(1, 5000);
    stalled.wrote(0, 6000);
    // A byte now and then does not count as progress.
    check_expiry(&mut stalled, 13_000, Step::Close);
    assert!(stalled.output().is_empty());
    stalled.wrote(1, 15_000);
    stalled.respond(&ANSWER, 15_000);
    assert!(stalled.output().is_empty(), "no output after the client was dropped");

    let mut lingering = connection();
    lingering.respond_and_close(&ANSWER, 0);
    assert_eq!(lingering.deadline_ms(), Some(10_000));
    take_output(&mut lingering, 5000);
    send(&mut lingering, GET, 6000);
    check_expiry(&mut lingering, 7000, Step::Close);
    assert_eq!(lingering.deadline_ms(), None);
}
