//! Inputs of real request smuggling bugs, named after them. Each is rejected with the expected status, however its
//! bytes are split, and the bytes after it are never parsed as a request.

use super::{Connection, ProtocolError, Response, Step};
use crate::limits;

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";

/// Result of an input: the targets and bodies of the delivered requests, and the status of the rejection that
/// followed them.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    requests: Vec<(String, Vec<u8>)>,
    rejected_with: Option<u16>,
}

fn status(rejection: ProtocolError) -> u16 {
    match rejection {
        ProtocolError::BadRequest(_) => 400,
        ProtocolError::HeadTimeout | ProtocolError::BodyTimeout => 408,
        ProtocolError::BodyTooLarge { .. } => 413,
        ProtocolError::RequestLineTooLong => 414,
        ProtocolError::ExpectationFailed => 417,
        ProtocolError::HeadTooLarge => 431,
        ProtocolError::MethodNotImplemented | ProtocolError::TransferCodingNotImplemented => 501,
        ProtocolError::VersionNotSupported => 505,
    }
}

/// Feeds `input` in pieces of `size` bytes to an application that accepts every body.
fn run(input: &[u8], size: usize) -> Outcome {
    let mut connection = Connection::new(0);
    let mut outcome = Outcome { requests: Vec::new(), rejected_with: None };
    let mut rest = input;
    loop {
        let response = |status| Response { status, content_type: None, headers: &[], body: b"", date: "" };
        match connection.step(0) {
            Step::Head => connection.accept_body(limits::BODY_BYTES_MAX, 0),
            Step::Body => {
                let target = String::from_utf8_lossy(connection.head().target()).into_owned();
                outcome.requests.push((target, connection.take_body().to_vec()));
                connection.respond(&response(200), 0);
            }
            Step::Reject(rejection) => {
                assert_eq!(outcome.rejected_with, None, "rejected once");
                outcome.rejected_with = Some(status(rejection));
                connection.respond_and_close(&response(status(rejection)), 0);
                let output = String::from_utf8_lossy(connection.output()).into_owned();
                assert!(output.ends_with("connection: close\r\n\r\n"), "{output}");
            }
            Step::Read | Step::Linger if rest.is_empty() => return outcome,
            Step::Read | Step::Linger => {
                let space = connection.read_space();
                let count = space.len().min(size).min(rest.len());
                assert!(count > 0, "there is always space to read into");
                space[..count].copy_from_slice(&rest[..count]);
                connection.received(count, 0);
                rest = &rest[count..];
            }
            Step::Close => return outcome,
        }
    }
}

fn check(name: &str, input: &str, statuses: &[u16]) {
    let input = input.as_bytes();
    let followed = [input, SMUGGLED.as_bytes()].concat();
    let forms = [("one segment", input, usize::MAX), ("byte by byte", input, 1)];
    let followed_forms = [("followed", &followed[..], usize::MAX), ("followed, byte by byte", &followed, 1)];
    for (form, bytes, size) in forms.into_iter().chain(followed_forms) {
        let outcome = run(bytes, size);
        assert!(outcome.requests.is_empty(), "{name}, {form}: {outcome:?}");
        let status = outcome.rejected_with.unwrap_or_default();
        assert!(statuses.contains(&status), "{name}, {form}: {outcome:?}");
    }
}

/// A request with a `Host`, these header lines and this body.
fn post(fields: &str, body: &str) -> String {
    format!("POST /hostile HTTP/1.1\r\nHost: x\r\n{fields}\r\n{body}")
}

/// A request with this chunked body, in its encoded form.
fn chunked(body: &str) -> String {
    post("Transfer-Encoding: chunked\r\n", body)
}

#[test]
fn malformed_lengths() {
    check("1 hyper CVE-2021-32715", &post("Content-Length: +3\r\n", "abc"), &[400]);
    check("5 several lengths", &post("Content-Length: 3\r\nContent-Length: 3\r\n", "abc"), &[400]);
    for value in ["+5", "-5", "0x5", "\x0b5", "5\x0c"] {
        check("16 twisted CVE-2022-24801", &post(&format!("Content-Length: {value}\r\n"), "hello"), &[400]);
    }
    check("17 twisted CVE-2020-10108", &post("Content-Length: 1\r\nContent-Length: 5\r\n", "hello"), &[400]);
    check("17 cheroot#737", &post("Content-Length: 0\r\nContent-Length: 30\r\n", ""), &[400]);
    check("18 HAProxy CVE-2023-40225", &post("Content-Length:\r\nContent-Length: 5\r\n", "hello"), &[400]);
    for value in ["", "5,", "5,5", "5, 5"] {
        check("18 list or empty", &post(&format!("Content-Length: {value}\r\n"), "hello"), &[400]);
    }
}

#[test]
fn malformed_transfer_codings() {
    for second in ["identity", "cow", "chunked"] {
        let fields = format!("Transfer-Encoding: chunked\r\nTransfer-Encoding: {second}\r\n");
        check("3 hyper CVE-2021-21299", &post(&fields, "0\r\n\r\n"), &[400, 501]);
    }
    let length_first = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n";
    check("4 hyper#4123", &post(length_first, "0\r\n\r\n"), &[400]);
    let coding_first = "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n";
    check("5 actix CVE-2021-38512", &post(coding_first, "0\r\n\r\n"), &[400]);
    let something = "Content-Length: 1\r\nTransfer-Encoding: chunked, something\r\n";
    check("8 Netty CVE-2020-7238", &post(something, "0\r\n\r\n"), &[400, 501]);
    for fields in [
        "Transfer-Encoding: gzip\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: chunked, gzip\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    ] {
        check("9 gunicorn CVE-2024-1135", &post(fields, "hello"), &[400, 501]);
    }
    for value in ["chunked,", "chunked, gzip", ",chunked", "\"chunked\"", "xchunked"] {
        let fields = format!("Transfer-Encoding: {value}\r\n");
        check("25 tinyproxy CVE-2026-54387", &post(&fields, "0\r\n\r\n"), &[400, 501]);
    }
    let fields = "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n";
    let body = format!("{:x}\r\n{SMUGGLED}\r\n0\r\n\r\n", SMUGGLED.len());
    check("28 LiteSpeed#392", &post(fields, &body), &[400]);
}

#[test]
fn malformed_header_lines() {
    check("6 tiny_http, Netty CVE-2019-16869", &post("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"), &[400]);
    check("7 Netty CVE-2019-20444", &post("Content-Length:\r\n6\r\n", "hello!"), &[400]);
    check("13 Node CVE-2022-32213", &post("Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n"), &[400]);
    check("13 Node CVE-2024-27982", &post(" Content-Length: 5\r\n", "hello"), &[400]);
    let first = "POST / HTTP/1.1\r\n Content-Length: 5\r\nHost: x\r\n\r\nhello";
    check("13 space before the first field", first, &[400]);
    check("14 Node CVE-2022-32214, LF", &post("X: y\nContent-Length: 5\r\n", "hello"), &[400]);
    check("14 Node CVE-2022-35256, CR", &post("X: y\rContent-Length: 5\r\n", "hello"), &[400]);
    check("14 LF only", "GET / HTTP/1.1\nHost: x\n\n", &[400]);
    check("14 CR only", "GET / HTTP/1.1\rHost: x\r\r", &[400]);
    check("15 Node CVE-2023-30589", &post("X-Abc: \rxTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), &[400]);
    check("19 HAProxy CVE-2023-25725", &post(": x\r\nContent-Length: 5\r\n", "hello"), &[400]);
}

#[test]
fn malformed_chunks() {
    check("2 hyper CVE-2021-32714", &chunked("f0000000000000003\r\nabc\r\n0\r\n\r\n"), &[400]);
    check("10 h11 CVE-2025-43859", &chunked("5\r\nAAAAAXX2\r\n45\r\n0\r\n\r\n"), &[400]);
    check("11 Kestrel CVE-2025-55315", &chunked("2;a\nxx\r\nab\r\n0\r\n\r\n"), &[400]);
    check("12 Go CVE-2025-22871", &chunked("5\nhello\r\n0\r\n\r\n"), &[400]);
    for size in ["0x5", "+5", "5\x0b", "\x0c5"] {
        check("16 twisted CVE-2022-24801", &chunked(&format!("{size}\r\nhello\r\n0\r\n\r\n")), &[400]);
    }
    for size in ["0_0", "\r0", "0x1", "-0", " 1", "1 x"] {
        check("20 uhttpd#3, libevent#1542", &chunked(&format!("{size}\r\na\r\n0\r\n\r\n")), &[400]);
    }
    check("21 ATS#10580", &chunked("1these-bytes\r\na\r\n0\r\n\r\n"), &[400]);
    check("22 bun#26931", &chunked("100000005\r\nhello\r\n0\r\n\r\n"), &[400, 413]);
    check("23 vanilla#110", &chunked("5\r\nhello0\r\n\r\n"), &[400]);
    check("24 actix-web#4239", &chunked("\r\n\r\n"), &[400]);
    check("24 bun#27669", &chunked(";x\r\n\r\n"), &[400]);
    let longest = "x".repeat(limits::CHUNK_EXTENSIONS_BYTES_MAX);
    check("26 Node CVE-2024-22019", &chunked(&format!("1;{longest}")), &[400]);
    let many = format!("1;{}\r\na\r\n", "x".repeat(limits::CHUNK_EXTENSION_BYTES_MAX - 1)).repeat(65);
    check("26 hyper#3495", &chunked(&many), &[400]);
}

#[test]
fn malformed_first_lines() {
    check("TLS", "\x16\x03\x01\x02", &[400]);
    check("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[505]);
    check("two empty lines", "\r\n\r\n", &[400]);
    check("empty line of LF", "\n", &[400]);
    check("HTTP/0.9", "GET /\r\n", &[400]);
    check("fragment", "GET /#a HTTP/1.1\r\nHost: x\r\n\r\n", &[400]);
    check("no host", "GET / HTTP/1.1\r\n\r\n", &[400]);
    check("unknown method", "BREW / HTTP/1.1\r\nHost: x\r\n\r\n", &[501]);
}

#[test]
fn hackney_912_a_line_end_may_be_split_between_segments() {
    let input = chunked("5\r\nhello\r\n6;a=b\r\n world\r\n0\r\nA: b\r\n\r\n") + SMUGGLED;
    let expected = Outcome {
        requests: vec![
            ("/hostile".to_owned(), b"hello world".to_vec()),
            ("/smuggled".to_owned(), Vec::new()),
        ],
        rejected_with: None,
    };
    for size in 1..=input.len() {
        assert_eq!(run(input.as_bytes(), size), expected, "in pieces of {size}");
    }
    // Row 25: white space around the coding is valid.
    let padded = post("Transfer-Encoding: \t chunked\t\r\n", "0\r\n\r\n");
    assert_eq!(run(padded.as_bytes(), 1).requests, [("/hostile".to_owned(), Vec::new())]);
}
