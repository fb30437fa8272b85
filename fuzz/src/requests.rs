//! Server connections: the requests are those of a strict reference parser, regardless of how the input is split.

use opensecureconf::http1::{Connection, ProtocolError, RequestHead, Response, Step};
use opensecureconf::limits::BODY_BYTES_MAX;

use super::grammar::{self, Chunked, Head};
use super::pieces::Pieces;

/// A request as the application sees it.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    method: &'static str,
    target: Vec<u8>,
    path: Vec<u8>,
    query: Option<Vec<u8>>,
    is_http_11: bool,
    content_length: Option<u64>,
    /// The header fields that the server reads, by name.
    fields: Vec<(&'static str, Option<Vec<u8>>)>,
    body: Vec<u8>,
}

/// All requests and the rejection that result from one input.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    requests: Vec<Request>,
    rejection: Option<ProtocolError>,
}

/// Checks the requests that are parsed from `data` followed by the end of the stream.
pub fn run(data: &[u8]) {
    let outcome = serve(data, Pieces::Whole);
    for pieces in Pieces::of(data) {
        assert_eq!(serve(data, pieces.clone()), outcome, "{pieces:?}");
    }
    check(data, &outcome.requests);
}

fn serve(data: &[u8], mut pieces: Pieces) -> Outcome {
    let mut connection = Connection::new(0);
    let mut outcome = Outcome { requests: Vec::new(), rejection: None };
    let mut output = Vec::new();
    let mut rest = data;
    let response = Response { status: 204, content_type: None, headers: &[], body: b"", date: "" };
    loop {
        let step = connection.step(0);
        assert_eq!(connection.step(0), step, "a repeated call returns the same step");
        match step {
            Step::Head => {
                assert!(outcome.rejection.is_none(), "a request after a rejection");
                connection.accept_body(BODY_BYTES_MAX, 0);
            }
            Step::Body => {
                let mut request = request(connection.head());
                assert_eq!(
                    connection.body().len() as u64,
                    request.content_length.unwrap_or(connection.body().len() as u64)
                );
                request.body = connection.take_body().to_vec();
                outcome.requests.push(request);
                connection.respond(&response, 0);
            }
            Step::Reject(rejection) => {
                assert_eq!(outcome.rejection.replace(rejection), None, "one rejection");
                connection.respond_and_close(&Response { status: 400, ..response }, 0);
            }
            Step::Read | Step::Linger => {
                let written = connection.output();
                output.extend_from_slice(written);
                let written_count = written.len();
                connection.wrote(written_count, 0);
                if rest.is_empty() {
                    connection.received_eof();
                    continue;
                }
                let space = connection.read_space();
                let count = space.len().min(rest.len()).min(pieces.next_size());
                assert!(count > 0, "a connection that reads has space");
                space[..count].copy_from_slice(&rest[..count]);
                connection.received(count, 0);
                rest = &rest[count..];
            }
            Step::Close => {
                output.extend_from_slice(connection.output());
                let responses = |status: &str| {
                    output
                        .windows(13)
                        .filter(|window| *window == format!("HTTP/1.1 {status} ").as_bytes())
                        .count()
                };
                assert_eq!(responses("204"), outcome.requests.len(), "one response per request");
                assert_eq!(
                    responses("400"),
                    usize::from(outcome.rejection.is_some()),
                    "one response to the rejection"
                );
                return outcome;
            }
        }
    }
}

fn request(head: RequestHead<'_>) -> Request {
    let fields = [
        ("x-user-key", head.user_key()),
        ("x-api-key", head.api_key()),
        ("content-type", head.content_type()),
        ("content-encoding", head.content_encoding()),
        ("x-request-id", head.request_id()),
        ("origin", head.origin()),
    ];
    for (name, value) in fields {
        assert_eq!(head.fields(name).next(), value, "{name}: the first field with this name");
    }
    Request {
        method: head.method().as_str(),
        target: head.target().to_vec(),
        path: head.path().to_vec(),
        query: head.query().map(<[u8]>::to_vec),
        is_http_11: head.is_http_11(),
        content_length: head.content_length(),
        fields: fields.map(|(name, value)| (name, value.map(<[u8]>::to_vec))).to_vec(),
        body: Vec::new(),
    }
}

/// Compares the requests with those of a strict reference parser of the whole input.
fn check(data: &[u8], requests: &[Request]) {
    let mut rest = data;
    let mut is_last = false;
    for request in requests {
        assert!(!is_last, "a request after one that closes the connection");
        rest = rest.strip_prefix(b"\r\n").unwrap_or(rest);
        let head = Head::strict(rest);
        rest = &rest[head.len..];
        let version: &[u8] = if request.is_http_11 { b"HTTP/1.1" } else { b"HTTP/1.0" };
        let line = [request.method.as_bytes(), &request.target, version].join(&b' ');
        assert_eq!(head.line, line, "the request line");
        check_target(request);
        for (name, value) in &request.fields {
            assert_eq!(head.all(name).first().copied(), value.as_deref(), "{name}");
        }
        let hosts = head.all("host");
        assert!(hosts.len() == 1 || (hosts.is_empty() && !request.is_http_11), "accepted hosts: {hosts:?}");

        if head.is_chunked() {
            assert!(request.is_http_11, "chunks in HTTP/1.0");
            assert_eq!(request.content_length, None);
            let Chunked::Complete(body, count) = grammar::chunked(rest, BODY_BYTES_MAX) else {
                panic!("an accepted body that is not chunked");
            };
            assert_eq!(request.body, body, "the chunked body");
            rest = &rest[count..];
        } else {
            let length = head.content_length().unwrap_or(0);
            assert_eq!(request.content_length, Some(length as u64));
            assert_eq!(request.body, rest[..length], "the body");
            rest = &rest[length..];
        }
        let connection = head.all("connection").join(&b',');
        let says = |option: &[u8]| {
            connection
                .split(|&byte| byte == b',')
                .any(|found| grammar::trim(found).eq_ignore_ascii_case(option))
        };
        is_last = says(b"close") || (!request.is_http_11 && !says(b"keep-alive"));
    }
}

fn check_target(request: &Request) {
    let Request { target, path, query, .. } = request;
    assert!(target.iter().all(|&byte| byte > b' ' && byte != 0x7F), "an accepted target: {target:?}");
    assert!(!target.contains(&b'#'), "an accepted fragment");
    assert!(!path.contains(&b'?'), "a query in the path");
    let whole = match query {
        Some(query) => [&path[..], query].join(&b'?'),
        None => path.clone(),
    };
    // An absolute form without a path means "/".
    let is_end = target.ends_with(&whole) || target.ends_with(&whole[1..]);
    assert!(is_end, "path and query are not the end of {target:?}");
    let is_origin = target.starts_with(b"/");
    assert!(!is_origin || *target == whole, "path and query are not all of {target:?}");
    let has_other_path = matches!(request.method, "CONNECT" | "OPTIONS");
    assert!(path.starts_with(b"/") || has_other_path, "a path without a slash: {path:?}");
}
