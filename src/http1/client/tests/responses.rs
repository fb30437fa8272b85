//! Valid and malformed responses, each in one segment and in small pieces: what is delivered, what is rejected, and
//! whether the connection can be reused.

use super::{ClientConnection, ClientFailure, ClientRequest, ClientStep};
use crate::{http1::Method, limits};

pub(super) const BODY_BYTES_MAX: usize = 20;

pub(super) fn call(method: Method) -> ClientRequest<'static> {
    ClientRequest { method, target: "/a", host: "x", headers: &[("x-api-key", "canary")], body: b"" }
}

/// A connection on which a request was written.
pub(super) fn called(method: Method) -> ClientConnection {
    let mut client = ClientConnection::new(BODY_BYTES_MAX);
    client.call(&call(method), 0, 1000);
    client.wrote(client.output().len());
    client
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Response {
        status: u16,
        body: Vec<u8>,
        is_reusable: bool,
    },
    Failed(ClientFailure),
    /// The response is not complete.
    Waiting,
}

/// Feeds `input` in pieces of the sizes that `next_size` returns, as far as it is read.
pub(super) fn receive(client: &mut ClientConnection, input: &[u8], mut next_size: impl FnMut() -> usize) {
    let mut rest = input;
    while !rest.is_empty() {
        let before = client.step();
        assert_eq!(client.step(), before, "a repeated step changes nothing");
        let space = client.read_space();
        let count = space.len().min(rest.len()).min(next_size());
        if count == 0 {
            assert_ne!(before, ClientStep::Read, "there is space to read into");
            return;
        }
        space[..count].copy_from_slice(&rest[..count]);
        client.received(count);
        rest = &rest[count..];
    }
}

pub(super) fn outcome(client: &mut ClientConnection) -> Outcome {
    match client.step() {
        ClientStep::Read => Outcome::Waiting,
        ClientStep::Failed(failure) => Outcome::Failed(failure),
        ClientStep::Response => {
            let (status, body) = (client.status(), client.take_body());
            Outcome::Response { status, body, is_reusable: client.finish() }
        }
    }
}

fn check_outcome(method: Method, input: &[u8], has_eof: bool, expected: &Outcome) {
    for size in [usize::MAX, 1, 3] {
        let mut client = called(method);
        receive(&mut client, input, || size);
        if has_eof {
            client.received_eof();
        }
        let text = String::from_utf8_lossy(&input[..input.len().min(100)]);
        assert_eq!(&outcome(&mut client), expected, "{text:?}, pieces of {size}, EOF: {has_eof}");
    }
}

fn response(status: u16, body: &str, is_reusable: bool) -> Outcome {
    Outcome::Response { status, body: body.into(), is_reusable }
}

/// Checks a response that is delimited by its framing.
fn check(method: Method, input: &str, status: u16, body: &str, is_reusable: bool) {
    check_outcome(method, input.as_bytes(), false, &response(status, body, is_reusable));
    check_outcome(method, input.as_bytes(), true, &response(status, body, false));
    check_outcome(method, format!("{input}H").as_bytes(), false, &response(status, body, false));
    // A truncated response fails, wherever it is cut.
    for end in 0..input.len() {
        check_truncated(method, &input[..end]);
    }
}

fn check_truncated(method: Method, input: &str) {
    let mut client = called(method);
    receive(&mut client, input.as_bytes(), || usize::MAX);
    assert_eq!(client.step(), ClientStep::Read, "{input}");
    client.received_eof();
    assert_eq!(client.step(), ClientStep::Failed(ClientFailure::Closed), "{input}");
}

fn check_failed(input: &str, failure: ClientFailure) {
    check_outcome(Method::Get, input.as_bytes(), false, &Outcome::Failed(failure));
    check_outcome(Method::Get, input.as_bytes(), true, &Outcome::Failed(failure));
    let followed = format!("{input}HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    check_outcome(Method::Get, followed.as_bytes(), false, &Outcome::Failed(failure));
}

/// A 200 response with these header lines and this body.
fn ok(fields: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{fields}\r\n{body}")
}

fn chunked(body: &str) -> String {
    ok("Transfer-Encoding: chunked\r\n", body)
}

#[test]
fn delimited_bodies() {
    use Method::{Get, Put};
    check(Get, &ok("Content-Length: 0\r\n", ""), 200, "", true);
    check(Put, &ok("content-length:\t 005 \r\n", "hello"), 200, "hello", true);
    check(Get, &ok("X: y\r\nContent-Length: 20\r\n", &"x".repeat(20)), 200, &"x".repeat(20), true);
    check(Get, &chunked("0\r\n\r\n"), 200, "", true);
    let chunks = "5;a=b\r\nhello\r\n00f\r\n, world\r\n\r\nHTTP\r\n0\r\nA: b\r\nC:\r\n\r\n";
    check(Get, &chunked(chunks), 200, "hello, world\r\n\r\nHTTP", true);
    check(Get, "HTTP/1.1 404\r\nContent-Length: 1\r\n\r\n!", 404, "!", true);
    check(Get, "HTTP/1.1 599 \r\nContent-Length: 1\r\n\r\n!", 599, "!", true);
}

#[test]
fn responses_without_a_body() {
    use Method::{Get, Head};
    check(Head, &ok("Content-Length: 5\r\n", ""), 200, "", true);
    check(Head, &ok("Content-Length: 99999999999999999999999\r\n", ""), 200, "", true);
    check(Head, &chunked(""), 200, "", true);
    check(Head, &ok("", ""), 200, "", true);
    check(Get, "HTTP/1.1 204 No Content\r\n\r\n", 204, "", true);
    check(Get, "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", 204, "", true);
    check(Get, "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", 204, "", false);
    check(Get, "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", 204, "", false);
    check(Get, "HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n", 304, "", true);
}

#[test]
fn connections_that_close() {
    use Method::Get;
    let length = "Content-Length: 2\r\n";
    check(Get, &ok(&format!("Connection: close\r\n{length}"), "ok"), 200, "ok", false);
    check(Get, &ok(&format!("Connection: x\r\n{length}Connection: y,\tCLOSE\r\n"), "ok"), 200, "ok", false);
    check(Get, &format!("HTTP/1.0 200 OK\r\n{length}\r\nok"), 200, "ok", false);
    check(Get, &format!("HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n{length}\r\nok"), 200, "ok", true);
    check(
        Get,
        &format!("HTTP/1.0 200 OK\r\nConnection: keep-alive, close\r\n{length}\r\nok"),
        200,
        "ok",
        false,
    );
}

#[test]
fn bodies_delimited_by_the_end_of_input() {
    for head in ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n"] {
        for body in ["", "hello", "twenty bytes at most"] {
            let input = format!("{head}{body}");
            check_outcome(Method::Get, input.as_bytes(), false, &Outcome::Waiting);
            check_outcome(Method::Get, input.as_bytes(), true, &response(200, body, false));
        }
        check_failed(&format!("{head}{}", "x".repeat(BODY_BYTES_MAX + 1)), ClientFailure::TooLarge);
    }
}

#[test]
fn interim_responses_are_skipped() {
    let last = ok("Content-Length: 2\r\n", "ok");
    let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n";
    check(Method::Get, &format!("{interim}{last}"), 200, "ok", true);
    check(Method::Head, &format!("{interim}{}", ok("Content-Length: 2\r\n", "")), 200, "", true);
    let most = "HTTP/1.1 102 \r\n\r\n".repeat(limits::INTERIM_RESPONSES_COUNT_MAX);
    check(Method::Get, &format!("{most}{last}"), 200, "ok", true);

    let malformed = |text, input: &str| check_failed(input, ClientFailure::Malformed(text));
    malformed("too many interim responses", &format!("{most}HTTP/1.1 102 \r\n\r\n"));
    malformed("protocol switch", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n");
    malformed("protocol switch", &format!("{interim}HTTP/1.1 101 \r\n\r\n"));
    malformed("interim response with a body", "HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\n");
    malformed("interim response with a body", "HTTP/1.1 100 \r\nTransfer-Encoding: chunked\r\n\r\n");
    malformed("status line is malformed", "HTTP/1.1 100 Continue\r\n\r\n\r\n");
}

#[test]
fn malformed_status_lines() {
    let malformed = |text, line: &str| {
        check_failed(&format!("{line}\r\nContent-Length: 0\r\n\r\n"), ClientFailure::Malformed(text));
    };
    for line in [
        "",
        "\r\n",
        " HTTP/1.1 200 OK",
        "http/1.1 200 OK",
        "HTTP/2.0 200 OK",
        "HTTP/11 200 OK",
        "HTTP/1.1  200 OK",
        "HTTP/1.1 20 OK",
        "HTTP/1.1 2000 OK",
        "HTTP/1.1 +20 OK",
        "HTTP/1.1 2x0 OK",
        "HTTP/1.1 200\tOK",
        "HTTP/1.1 200 O\0K",
        "HTTP/1.1 200 O\x7fK",
        "ICY 200 OK",
        "GET / HTTP/1.1",
        "SSH-2.0-OpenSSH_9.2",
        "\x15\x03\x03\0\x02\x02P",
    ] {
        malformed("status line is malformed", line);
    }
    for line in ["HTTP/1.1", "HTTP/1.1\t200 OK", "HTTP/1.2 200 OK", "HTTP/1.10 200 OK"] {
        malformed("version is not supported", line);
    }
    for status in ["000", "099", "600", "999"] {
        malformed("status is malformed", &format!("HTTP/1.1 {status} OK"));
    }
}

#[test]
fn malformed_heads() {
    let malformed = |text, fields: &str| check_failed(&ok(fields, "hello"), ClientFailure::Malformed(text));
    for fields in ["a: b\n", "a: b\rc: d\r\n", "a: b\r\r\n", "a: b\r\nContent-Length: 5\n"] {
        malformed("line end is not CRLF", fields);
    }
    check_failed("HTTP/1.1 200 OK\nContent-Length: 0\n\n", ClientFailure::Malformed("line end is not CRLF"));
    check_failed("HTTP/1.1 200 OK\r\n\n", ClientFailure::Malformed("line end is not CRLF"));
    for fields in [" a: b\r\n", "a : b\r\n", ": b\r\n", "a\r\n", "a\0: b\r\n"] {
        malformed("header name is malformed", fields);
    }
    for fields in ["a: b\0\r\n", "a: \x0b\r\n"] {
        malformed("header value is malformed", fields);
    }
    malformed("header name is malformed", "Transfer-Encoding:\r\n chunked\r\n");
    for value in ["", "+5", "-5", "0x5", "5,", "5,5", "5, 5", "5 5", "5.0"] {
        malformed("content-length is malformed", &format!("Content-Length: {value}\r\n"));
    }
    malformed("content-length is malformed", "Content-Length: 5\r\ncontent-length: 5\r\n");
    malformed("content-length is malformed", "Content-Length: 5\r\nContent-Length: 6\r\n");
    for value in ["", "chunked,", "chunked, gzip", "gzip, chunked", "\"chunked\"", "chunked;q=1"] {
        malformed("transfer-encoding is malformed", &format!("Transfer-Encoding: {value}\r\n"));
    }
    let chunked = "Transfer-Encoding: chunked\r\n";
    malformed("transfer-encoding is malformed", &chunked.repeat(2));
    malformed("transfer coding is not chunked", "Transfer-Encoding: gzip\r\n");
    malformed("both transfer-encoding and content-length", &format!("{chunked}Content-Length: 5\r\n"));
    malformed("both transfer-encoding and content-length", &format!("Content-Length: 5\r\n{chunked}"));
    let old = format!("HTTP/1.0 200 OK\r\n{chunked}\r\n");
    check_failed(&old, ClientFailure::Malformed("transfer-encoding in HTTP/1.0"));
}

#[test]
fn malformed_chunks() {
    for body in ["\r\n\r\n", ";x\r\n", " 5\r\n", "5 \r\n", "+5\r\n", "0x5\r\n", "5\n", "2;a\nxx\r\n"] {
        check_failed(&chunked(body), ClientFailure::Malformed("chunk is malformed"));
    }
    for body in ["5\r\nhelloXX0\r\n\r\n", "5\r\nhello0\r\n\r\n", "f0000000000000003\r\n", "100000005\r\n"] {
        check_failed(&chunked(body), ClientFailure::Malformed("chunk is malformed"));
    }
    for trailer in ["a\r\n", "a : b\r\n", " a: b\r\n", "a: b\n", "a: \0\r\n"] {
        check_failed(
            &chunked(&format!("0\r\n{trailer}\r\n")),
            ClientFailure::Malformed("trailer is malformed"),
        );
    }
}

#[test]
fn limits_are_enforced() {
    let too_large = |input: &str| check_failed(input, ClientFailure::TooLarge);
    // Rejected as soon as the size is known: no byte of these bodies has arrived.
    too_large(&ok(&format!("Content-Length: {}\r\n", BODY_BYTES_MAX + 1), ""));
    too_large(&ok("Content-Length: 99999999999999999999999\r\n", ""));
    too_large(&chunked(&format!("{:x}\r\n", BODY_BYTES_MAX + 1)));
    too_large(&chunked("5\r\nhello\r\n10\r\n"));
    too_large(&chunked(&format!("0\r\na: {}", "b".repeat(limits::TRAILERS_BYTES_MAX))));

    let head = |size: usize| {
        let fixed = ok("Content-Length: 0\r\na: \r\n", "").len();
        ok(&format!("Content-Length: 0\r\na: {}\r\n", "b".repeat(size - fixed)), "")
    };
    let whole = response(200, "", true);
    check_outcome(Method::Get, head(limits::HEAD_BYTES_MAX).as_bytes(), false, &whole);
    too_large(&head(limits::HEAD_BYTES_MAX + 1));
    let fields = |count: usize| ok(&format!("{}Content-Length: 0\r\n", "a: b\r\n".repeat(count - 1)), "");
    check_outcome(Method::Get, fields(limits::HEADERS_COUNT_MAX).as_bytes(), false, &whole);
    too_large(&fields(limits::HEADERS_COUNT_MAX + 1));
    too_large(&format!("HTTP/1.1 200 {}", "x".repeat(limits::REQUEST_LINE_BYTES_MAX)));
}
