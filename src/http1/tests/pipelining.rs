//! Request and response sequences: the input of a client, its output, and the steps of the driver.

use super::{Connection, ProtocolError, Response, Step};
use crate::limits;

pub(super) const GET: &str = "GET /a HTTP/1.1\r\nHost: x\r\nX-User-Key: canary\r\n\r\n";
pub(super) const OK: &str = "HTTP/1.1 200 OK\r\ndate: D\r\ncontent-length: 2\r\n\r\nok";
pub(super) const OK_CLOSE: &str =
    "HTTP/1.1 200 OK\r\ndate: D\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
pub(super) const ANSWER: Response<'static> =
    Response { status: 200, content_type: None, headers: &[], body: b"ok", date: "D" };

pub(super) fn connection() -> Connection {
    Connection::new(0)
}

pub(super) fn send(connection: &mut Connection, text: &str, now_ms: u64) {
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let space = connection.read_space();
        let count = space.len().min(rest.len());
        assert!(count > 0, "no space for {} more bytes", rest.len());
        space[..count].copy_from_slice(&rest[..count]);
        connection.received(count, now_ms);
        rest = &rest[count..];
    }
}

/// Takes all output, like a client that reads immediately.
pub(super) fn take_output(connection: &mut Connection, now_ms: u64) -> String {
    let output = String::from_utf8_lossy(connection.output()).into_owned();
    connection.wrote(output.len(), now_ms);
    output
}

pub(super) fn step(connection: &mut Connection) -> Step {
    connection.step(0)
}

/// Checks the output and the next step after a response that is written as soon as the head is complete.
fn check_early_response(request: &str, expected_output: &str, expected_step: Step) {
    let mut connection = connection();
    send(&mut connection, request, 0);
    assert_eq!(step(&mut connection), Step::Head, "{request}");
    connection.respond(&ANSWER, 0);
    assert_eq!(take_output(&mut connection, 0), expected_output, "{request}");
    assert_eq!(step(&mut connection), expected_step, "{request}");
}

#[test]
fn responses_to_pipelined_requests_are_in_order() {
    let mut connection = connection();
    let second = "PUT /b HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody";
    send(&mut connection, &format!("{GET}{second}{GET}"), 0);
    assert_eq!(step(&mut connection), Step::Head);
    assert_eq!(step(&mut connection), Step::Head, "a repeated step changes nothing");
    assert_eq!(connection.head().path(), b"/a");
    connection.respond(&ANSWER, 0);
    assert_eq!(step(&mut connection), Step::Head);
    assert_eq!(connection.head().path(), b"/b");
    connection.accept_body(limits::BODY_BYTES_MAX, 0);
    assert_eq!(step(&mut connection), Step::Body);
    assert_eq!((connection.body(), connection.head().path()), (&b"body"[..], &b"/b"[..]));
    connection.respond(&ANSWER, 0);
    assert_eq!(step(&mut connection), Step::Head);
    connection.respond(&ANSWER, 0);
    assert_eq!(take_output(&mut connection, 0), OK.repeat(3));
    assert_eq!(step(&mut connection), Step::Read);
    assert!(connection.is_idle());
}

#[test]
fn a_connection_persists_if_both_sides_agree() {
    let request = |version: &str, connection: &str| {
        format!("GET / HTTP/{version}\r\nHost: x\r\nConnection: {connection}\r\n\r\n")
    };
    check_early_response(&request("1.1", "x"), OK, Step::Read);
    check_early_response(&request("1.1", "x, Close"), OK_CLOSE, Step::Linger);
    check_early_response(&request("1.0", "x"), OK_CLOSE, Step::Linger);
    let keep_alive = OK.replace("\r\n\r\n", "\r\nconnection: keep-alive\r\n\r\n");
    check_early_response(&request("1.0", "Keep-Alive"), &keep_alive, Step::Read);

    let mut last = connection();
    last.requests_count = limits::REQUESTS_COUNT_MAX_PER_CONNECTION - 2;
    send(&mut last, &GET.repeat(3), 0);
    for expected in [OK, OK_CLOSE] {
        assert_eq!(step(&mut last), Step::Head);
        last.respond(&ANSWER, 0);
        assert_eq!(take_output(&mut last, 0), expected);
    }
    assert_eq!(step(&mut last), Step::Linger);
}

#[test]
fn an_unaccepted_body_is_skipped_only_if_all_of_it_has_arrived() {
    let length = |body: &str| format!("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n{body}");
    check_early_response(&length("body"), OK, Step::Read);
    check_early_response(&length(&format!("body{GET}")), OK, Step::Head);
    check_early_response(&length("bod"), OK_CLOSE, Step::Linger);
    let chunked =
        |body: &str| format!("PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
    check_early_response(&chunked(&format!("1\r\na\r\n0\r\n\r\n{GET}")), OK, Step::Head);
    check_early_response(&chunked("1\r\na\r\n0\r\n"), OK_CLOSE, Step::Linger);
    check_early_response(&chunked(&format!("1\r\na\n0\r\n\r\n{GET}")), OK_CLOSE, Step::Linger);
    let large = limits::BODY_BYTES_MAX + 1;
    let large = format!("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: {large}\r\n\r\n");
    check_early_response(&large, OK_CLOSE, Step::Linger);
}

#[test]
fn input_after_the_last_response_is_discarded() {
    let mut connection = connection();
    send(&mut connection, &format!("{GET}{GET}"), 0);
    assert_eq!(step(&mut connection), Step::Head);
    connection.respond_and_close(&ANSWER, 0);
    assert_eq!(step(&mut connection), Step::Linger);
    for _ in 0..1000 {
        send(&mut connection, GET, 0);
        assert_eq!(step(&mut connection), Step::Linger);
    }
    assert_eq!(take_output(&mut connection, 0), OK_CLOSE);
    connection.received_eof();
    assert_eq!(step(&mut connection), Step::Close);
}

#[test]
fn responses_to_head_have_no_body() {
    let request = GET.replace("GET", "HEAD");
    check_early_response(&request, OK.trim_end_matches("ok"), Step::Read);
    check_early_response(&format!("{request}{GET}"), OK.trim_end_matches("ok"), Step::Head);

    let mut connection = connection();
    send(&mut connection, "HEAD / HTTP/1.1\r\n\r\n", 0);
    assert_eq!(step(&mut connection), Step::Reject(ProtocolError::BadRequest("host is missing")));
    connection.respond_and_close(&ANSWER, 0);
    assert_eq!(take_output(&mut connection, 0), OK_CLOSE.trim_end_matches("ok"));
}

#[test]
fn expectations() {
    const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";
    let check = |version: &str, framing: &str, body: &str, expected: &str| {
        let mut connection = connection();
        let head = format!("PUT / HTTP/{version}\r\nHost: x\r\nExpect: 100-Continue\r\n{framing}\r\n\r\n");
        send(&mut connection, &format!("{head}{body}"), 0);
        assert_eq!(step(&mut connection), Step::Head);
        connection.accept_body(limits::BODY_BYTES_MAX, 0);
        assert_eq!(take_output(&mut connection, 0), expected, "{version} {framing} {body}");
    };
    check("1.1", "Content-Length: 4", "", CONTINUE);
    check("1.1", "Content-Length: 4", "bod", CONTINUE);
    check("1.1", "Content-Length: 4", "body", "");
    check("1.1", "Content-Length: 0", "", "");
    check("1.1", "Transfer-Encoding: chunked", "", CONTINUE);
    check("1.1", "Transfer-Encoding: chunked", "0\r\n\r\n", "");
    check("1.1", "Content-Length: 99999999999999999999", "", "");
    check("1.0", "Content-Length: 4", "", "");

    let mut other = connection();
    send(&mut other, "PUT / HTTP/1.1\r\nHost: x\r\nExpect: tea\r\n\r\n", 0);
    assert_eq!(step(&mut other), Step::Reject(ProtocolError::ExpectationFailed));
    check_early_response("PUT / HTTP/1.0\r\nExpect: tea\r\n\r\n", OK_CLOSE, Step::Linger);
}

#[test]
fn bodies_that_are_too_large_are_rejected_after_the_application_has_seen_the_head() {
    let check = |bytes_max: usize, framing: String, body: &str| {
        let mut connection = connection();
        send(&mut connection, &format!("PUT /a HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n{body}"), 0);
        assert_eq!(step(&mut connection), Step::Head);
        connection.accept_body(bytes_max, 0);
        assert_eq!(
            step(&mut connection),
            Step::Reject(ProtocolError::BodyTooLarge { bytes_max }),
            "{framing}"
        );
        assert!(connection.has_head() && connection.head().path() == b"/a");
        connection.respond_and_close(&ANSWER, 0);
        assert_eq!(take_output(&mut connection, 0), OK_CLOSE);
        assert!(!connection.has_head());
    };
    for bytes_max in [10, limits::BODY_BYTES_MAX, limits::PEER_BODY_BYTES_MAX] {
        let too_large = bytes_max + 1;
        check(bytes_max, format!("Content-Length: {too_large}"), "");
        check(bytes_max, format!("Content-Length: {}", "9".repeat(100)), "");
        check(bytes_max, "Transfer-Encoding: chunked".to_owned(), &format!("{too_large:x}\r\n"));
    }
}

#[test]
fn the_memory_for_the_largest_body_grows_with_it() {
    let mut connection = connection();
    let length = limits::BODY_BYTES_MAX;
    send(&mut connection, &format!("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"), 0);
    assert_eq!(step(&mut connection), Step::Head);
    connection.accept_body(limits::BODY_BYTES_MAX, 0);
    assert_eq!(connection.buffered_body_bytes(), 0, "announcing a length takes no memory");
    let piece = "x".repeat(limits::HEAD_BYTES_MAX);
    for sent in 1..=length / piece.len() {
        assert_eq!(step(&mut connection), Step::Read);
        assert!(connection.read_space().len() >= piece.len());
        send(&mut connection, &piece, 0);
        step(&mut connection);
        assert!(connection.buffered_body_bytes() <= 2 * sent * piece.len());
    }
    assert_eq!(step(&mut connection), Step::Body);
    assert_eq!(connection.buffered_body_bytes(), length);
    let body = connection.take_body();
    assert!(body.len() == length && body.iter().all(|&byte| byte == b'x'));
    assert_eq!(connection.buffered_body_bytes(), 0);
    connection.respond(&ANSWER, 0);
    assert_eq!(step(&mut connection), Step::Read);
    assert_eq!(connection.read_space().len(), limits::READ_BUFFER_BYTES, "the idle buffer is small again");
}

#[test]
fn limits_of_the_head_are_enforced() {
    let check = |text: String, expected: ProtocolError| {
        let mut connection = connection();
        for piece in text.as_bytes().chunks(1000) {
            send(&mut connection, std::str::from_utf8(piece).expect("ASCII"), 0);
            if let Step::Reject(rejection) = step(&mut connection) {
                return assert_eq!(rejection, expected);
            }
        }
        panic!("no rejection, expected {expected:?}");
    };
    check(format!("GET /{}", "a".repeat(limits::REQUEST_LINE_BYTES_MAX)), ProtocolError::RequestLineTooLong);
    let large_field = format!("GET / HTTP/1.1\r\na: {}", "a".repeat(limits::HEAD_BYTES_MAX - 19));
    check(large_field, ProtocolError::HeadTooLarge);
    let many_fields = "a: b\r\n".repeat(limits::HEADERS_COUNT_MAX + 1);
    check(format!("GET / HTTP/1.1\r\n{many_fields}"), ProtocolError::HeadTooLarge);
    let most_fields = "a: b\r\n".repeat(limits::HEADERS_COUNT_MAX - 1);
    check_early_response(&format!("GET / HTTP/1.1\r\nHost: x\r\n{most_fields}\r\n"), OK, Step::Read);
}

#[test]
fn reading_ahead_is_bounded() {
    let mut connection = connection();
    send(&mut connection, GET, 0);
    assert_eq!(step(&mut connection), Step::Head);
    let mut ahead = 0;
    while !connection.read_space().is_empty() {
        let count = connection.read_space().len();
        connection.read_space().fill(b'x');
        connection.received(count, 0);
        ahead += count;
    }
    assert_eq!(ahead, limits::HEAD_BYTES_MAX);
    assert_eq!(connection.head().path(), b"/a");
}

#[test]
fn output_is_bounded() {
    let mut connection = connection();
    let body = vec![b'x'; limits::PIPELINED_OUTPUT_BYTES_MAX / 2];
    send(&mut connection, &GET.repeat(2), 0);
    for is_full in [false, true] {
        assert_eq!(step(&mut connection), Step::Head);
        connection.respond(&Response { body: &body, ..ANSWER }, 0);
        assert_eq!(connection.output_is_full(), is_full);
    }
    take_output(&mut connection, 0);
    assert!(!connection.output_is_full());
}

#[test]
fn streams_are_delimited() {
    const HEAD: &str = "HTTP/1.1 200 OK\r\ndate: D\r\ntransfer-encoding: chunked\r\ntrailer: sum\r\n\r\n";
    let check = |request: &str, expected: &str, expected_step: Step| {
        let mut connection = connection();
        send(&mut connection, request, 0);
        assert_eq!(step(&mut connection), Step::Head);
        connection.begin_stream(&ANSWER, &["sum"], 0);
        assert_eq!(step(&mut connection), Step::Read);
        for piece in ["[1,", "", "2]"] {
            connection.stream_chunk(piece.as_bytes(), 0);
        }
        connection.end_stream(&[("sum", "3")], 0);
        assert_eq!(take_output(&mut connection, 0), expected, "{request}");
        assert_eq!(step(&mut connection), expected_step, "{request}");
    };
    let body = "3\r\n[1,\r\n2\r\n2]\r\n0\r\nsum: 3\r\n\r\n";
    check(GET, &format!("{HEAD}{body}"), Step::Read);
    check(&format!("{GET}{GET}"), &format!("{HEAD}{body}"), Step::Head);
    check(&GET.replace("GET", "HEAD"), HEAD, Step::Read);
    let until_close = "HTTP/1.1 200 OK\r\ndate: D\r\nconnection: close\r\n\r\n[1,2]";
    check("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", until_close, Step::Linger);
    let unread = "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n";
    let closing = HEAD.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
    check(unread, &format!("{closing}{body}"), Step::Linger);

    let mut aborted = connection();
    send(&mut aborted, &GET.repeat(2), 0);
    assert_eq!(step(&mut aborted), Step::Head);
    aborted.begin_stream(&ANSWER, &[], 0);
    aborted.stream_chunk(b"[1,", 0);
    aborted.abort();
    aborted.stream_chunk(b"2]", 0);
    aborted.end_stream(&[], 0);
    assert!(take_output(&mut aborted, 0).ends_with("\r\n\r\n3\r\n[1,\r\n"));
    assert_eq!(step(&mut aborted), Step::Close);
}

#[test]
fn draining_closes_after_the_current_response() {
    // The first request may arrive after its connection.
    let mut silent = connection();
    silent.close_when_idle();
    assert_eq!((step(&mut silent), silent.deadline_ms()), (Step::Read, Some(1000)));
    silent.expire(1000);
    assert_eq!(silent.step(1000), Step::Linger);

    // The linger timeout counts from the last response.
    let mut responded = connection();
    send(&mut responded, GET, 1000);
    assert_eq!(responded.step(1000), Step::Head);
    responded.respond(&ANSWER, 1000);
    take_output(&mut responded, 1000);
    responded.close_after_response();
    assert_eq!(responded.step(2500), Step::Read, "an idle connection stays open during the drain");
    responded.close_when_idle();
    assert_eq!(responded.step(2500), Step::Linger);
    assert_eq!(responded.deadline_ms(), Some(3000));

    let mut busy = connection();
    send(&mut busy, &format!("{GET}{GET}"), 0);
    assert_eq!(step(&mut busy), Step::Head);
    busy.close_after_response();
    busy.respond(&ANSWER, 0);
    assert_eq!(take_output(&mut busy, 0), OK_CLOSE);
    assert_eq!(step(&mut busy), Step::Linger);

    let mut half_way = connection();
    send(&mut half_way, &GET[..20], 0);
    half_way.close_after_response();
    assert_eq!(step(&mut half_way), Step::Read);
    send(&mut half_way, &GET[20..], 0);
    assert_eq!(step(&mut half_way), Step::Head);
}

#[test]
fn end_of_input() {
    for text in ["", "GET", "\r\n", "GET / HTTP/1.1\r\nHost: x\r\n"] {
        let mut connection = connection();
        send(&mut connection, text, 0);
        connection.received_eof();
        assert_eq!(step(&mut connection), Step::Close, "{text}");
    }
    let mut in_body = connection();
    send(&mut in_body, "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbod", 0);
    assert_eq!(step(&mut in_body), Step::Head);
    in_body.accept_body(limits::BODY_BYTES_MAX, 0);
    in_body.received_eof();
    assert_eq!(step(&mut in_body), Step::Close);

    let mut responding = connection();
    send(&mut responding, &GET.repeat(2), 0);
    responding.received_eof();
    assert!(responding.saw_eof());
    for _ in 0..2 {
        assert_eq!(step(&mut responding), Step::Head);
        responding.respond(&ANSWER, 0);
    }
    assert_eq!(take_output(&mut responding, 0), OK.repeat(2));
    assert_eq!(step(&mut responding), Step::Close);
}

#[test]
fn a_client_can_be_rejected_before_its_request() {
    let mut connection = connection();
    connection.respond_and_close(&ANSWER, 0);
    assert_eq!(take_output(&mut connection, 0), OK_CLOSE);
    assert_eq!(step(&mut connection), Step::Linger);
}
