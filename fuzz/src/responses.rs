//! Client connections to peers: the response is that of a strict reference parser, however the input is split.

use opensecureconf::http1::{ClientConnection, ClientFailure, ClientRequest, ClientStep, Method};

use super::grammar::{self, Chunked, Head};
use super::pieces::Pieces;

const BODY_BYTES_MAX: usize = 4096;

/// Result of one request.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Response { status: u16, node: Option<Vec<u8>>, body: Vec<u8>, is_reusable: bool },
    Failed(ClientFailure),
    Waiting,
}

/// Checks the response that is parsed from `data`, with and without a subsequent end of the stream.
pub fn run(data: &[u8]) {
    for method in [Method::Get, Method::Head] {
        for has_end in [false, true] {
            let outcome = call(data, method, has_end, Pieces::Whole);
            for pieces in Pieces::of(data) {
                let text = format!("{method:?}, end: {has_end}, {pieces:?}");
                assert_eq!(call(data, method, has_end, pieces), outcome, "{text}");
            }
            check(data, method, has_end, &outcome);
        }
    }
}

fn call(data: &[u8], method: Method, has_end: bool, mut pieces: Pieces) -> Outcome {
    let mut client = ClientConnection::new(BODY_BYTES_MAX);
    client.call(&ClientRequest { method, target: "/a", host: "x", headers: &[], body: b"" }, 0, 1000);
    client.wrote(client.output().len());
    let mut rest = data;
    while !rest.is_empty() {
        let step = client.step();
        let space = client.read_space();
        let count = space.len().min(rest.len()).min(pieces.next_size());
        if count == 0 {
            assert_ne!(step, ClientStep::Read, "a connection that reads has space");
            break;
        }
        space[..count].copy_from_slice(&rest[..count]);
        client.received(count);
        rest = &rest[count..];
    }
    if has_end {
        client.received_eof();
    }
    let step = client.step();
    assert_eq!(client.step(), step, "a repeated call returns the same step");
    match step {
        ClientStep::Read => Outcome::Waiting,
        ClientStep::Failed(failure) => Outcome::Failed(failure),
        ClientStep::Response => Outcome::Response {
            status: client.status(),
            node: client.header("x-osc-node").map(<[u8]>::to_vec),
            body: client.take_body(),
            is_reusable: client.finish(),
        },
    }
}

fn check(data: &[u8], method: Method, has_end: bool, outcome: &Outcome) {
    let Outcome::Response { status, node, body, is_reusable } = outcome else { return };
    assert!(body.len() <= BODY_BYTES_MAX, "a body of {} bytes", body.len());
    let mut rest = data;
    let head = loop {
        let head = Head::strict(rest);
        rest = &rest[head.len..];
        if !head.line[b"HTTP/1.1 ".len()..].starts_with(b"1") {
            break head;
        }
    };
    assert!(
        head.line.starts_with(format!("HTTP/1.1 {status}").as_bytes())
            || head.line.starts_with(format!("HTTP/1.0 {status}").as_bytes()),
        "the status line"
    );
    assert!((200..600).contains(status), "status {status}");
    assert_eq!(head.all("x-osc-node").first().copied(), node.as_deref(), "the first field with this name");
    let expected = if method == Method::Head || matches!(status, 204 | 304) {
        Vec::new()
    } else if head.is_chunked() {
        let Chunked::Complete(decoded, count) = grammar::chunked(rest, BODY_BYTES_MAX) else {
            panic!("a response whose body is not chunked");
        };
        rest = &rest[count..];
        decoded
    } else if let Some(length) = head.content_length() {
        let (expected, after) = rest.split_at(length);
        rest = after;
        expected.to_vec()
    } else {
        assert!(has_end, "the end of the stream ends the body");
        std::mem::take(&mut rest).to_vec()
    };
    assert_eq!(*body, expected, "the body");
    let may_be_reusable = !has_end && rest.is_empty();
    assert!(!is_reusable || may_be_reusable, "a closed connection, or one with unread bytes, is reused");
}
