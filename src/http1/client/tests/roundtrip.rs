//! Client and server connection in one process: requests and responses arrive unchanged, however the bytes between
//! them are split.

use proptest::prelude::*;

use super::{ClientConnection, ClientRequest, ClientStep};
use crate::http1::{Connection, Method, Response, Step};

const BODY_BYTES_MAX: usize = 8 * 1024;

#[derive(Clone, Debug)]
struct Exchange {
    method: Method,
    target: String,
    user_key: String,
    body: Vec<u8>,
    reply: Reply,
}

#[derive(Clone, Debug)]
struct Reply {
    status: u16,
    etag: String,
    /// Pieces of the body; a response that is not a stream has all of them at once.
    pieces: Vec<Vec<u8>>,
    trailer: Option<String>,
    is_stream: bool,
    has_interim: bool,
}

fn exchange() -> impl Strategy<Value = Exchange> {
    use Method::{Delete, Get, Head, Patch, Post, Put};
    let method = prop_oneof![Just(Get), Just(Head), Just(Post), Just(Put), Just(Delete), Just(Patch)];
    let body = prop_oneof![Just(Vec::new()), proptest::collection::vec(any::<u8>(), 0..3000)];
    let pieces = proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..900), 0..5);
    let status = prop_oneof![Just(200), Just(204), Just(304), Just(409), 200_u16..600];
    let reply = (status, "[!-~]{1,30}", pieces, proptest::option::of("[!-~]{0,30}"), any::<[bool; 2]>());
    (method, "/[!-\"$-~]{0,30}", "[!-~]{1,40}", body, reply).prop_map(
        |(method, target, user_key, body, (status, etag, pieces, trailer, [is_stream, has_interim]))| {
            let reply = Reply { status, etag, pieces, trailer, is_stream, has_interim };
            Exchange { method, target, user_key, body, reply }
        },
    )
}

/// Advances the server as far as possible; it must receive the request of the client.
fn serve(server: &mut Connection, exchange: &Exchange) {
    loop {
        match server.step(0) {
            Step::Head => server.accept_body(BODY_BYTES_MAX, 0),
            Step::Body => {
                assert_eq!(server.head().method(), exchange.method);
                assert_eq!(server.head().target(), exchange.target.as_bytes());
                assert_eq!(server.head().user_key(), Some(exchange.user_key.as_bytes()));
                assert_eq!(server.body(), exchange.body);
                reply(server, &exchange.reply);
            }
            Step::Read => return,
            step => panic!("{step:?} in {exchange:?}"),
        }
    }
}

fn reply(server: &mut Connection, reply: &Reply) {
    let body = reply.pieces.concat();
    let headers = &[("etag", &reply.etag[..])];
    let response = Response { status: reply.status, content_type: None, headers, body: &body, date: "D" };
    if !reply.is_stream {
        return server.respond(&response, 0);
    }
    server.begin_stream(&response, &["x-count"], 0);
    for piece in &reply.pieces {
        server.stream_chunk(piece, 0);
    }
    let trailers = reply.trailer.as_ref().map(|value| ("x-count", &value[..]));
    server.end_stream(trailers.as_slice(), 0);
}

/// Carries some bytes each way, and the interim response first, if there is one.
fn carry(client: &mut ClientConnection, server: &mut Connection, size: usize, interim: &mut &[u8]) {
    let output = client.output();
    let space = server.read_space();
    let count = output.len().min(space.len()).min(size);
    space[..count].copy_from_slice(&output[..count]);
    server.received(count, 0);
    client.wrote(count);

    let is_interim = !interim.is_empty();
    let output = if is_interim { *interim } else { server.output() };
    let space = client.read_space();
    let count = output.len().min(space.len()).min(size);
    space[..count].copy_from_slice(&output[..count]);
    client.received(count);
    if is_interim {
        *interim = &interim[count..];
    } else {
        server.wrote(count, 0);
    }
}

fn check(exchanges: &[Exchange], mut next_size: impl FnMut() -> usize) {
    let mut client = ClientConnection::new(BODY_BYTES_MAX);
    let mut server = Connection::new(0);
    for exchange in exchanges {
        let headers = &[("x-user-key", &exchange.user_key[..]), ("x-api-key", "k")];
        let Exchange { method, target, body, reply, .. } = exchange;
        client.call(&ClientRequest { method: *method, target, host: "node-1:9000", headers, body }, 0, 1000);
        let mut interim: &[u8] = if reply.has_interim { b"HTTP/1.1 103 Hints\r\nA: b\r\n\r\n" } else { b"" };
        loop {
            match client.step() {
                ClientStep::Response => break,
                ClientStep::Read => carry(&mut client, &mut server, next_size(), &mut interim),
                ClientStep::Failed(failure) => panic!("{failure} in {exchange:?}"),
            }
            serve(&mut server, exchange);
        }
        let has_body = *method != Method::Head && !matches!(reply.status, 204 | 304);
        let expected = if has_body { reply.pieces.concat() } else { Vec::new() };
        assert_eq!(client.status(), reply.status);
        assert_eq!(client.header("ETag"), Some(reply.etag.as_bytes()));
        assert_eq!(client.take_body(), expected);
        assert!(server.is_idle(), "both sides agree on the end");
        assert!(client.finish(), "{exchange:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn requests_and_responses_do_not_depend_on_the_segmentation(
        exchanges in proptest::collection::vec(exchange(), 1..6),
        sizes in proptest::collection::vec(1_usize..300, 1..20),
    ) {
        check(&exchanges, || usize::MAX);
        check(&exchanges, || 1);
        let mut sizes = sizes.into_iter().cycle();
        check(&exchanges, || sizes.next().unwrap_or(1));
    }
}

#[test]
fn an_aborted_stream_is_not_a_response() {
    let mut client = ClientConnection::new(BODY_BYTES_MAX);
    let mut server = Connection::new(0);
    let request = ClientRequest { method: Method::Get, target: "/", host: "x", headers: &[], body: b"" };
    client.call(&request, 0, 1000);
    carry(&mut client, &mut server, usize::MAX, &mut &b""[..]);
    assert_eq!(server.step(0), Step::Head);
    let response = Response { status: 200, content_type: None, headers: &[], body: b"", date: "D" };
    server.begin_stream(&response, &[], 0);
    server.stream_chunk(b"[1,", 0);
    server.abort();
    carry(&mut client, &mut server, usize::MAX, &mut &b""[..]);
    assert_eq!((server.step(0), server.output()), (Step::Close, &b""[..]));
    assert_eq!(client.step(), ClientStep::Read);
    client.received_eof();
    assert_eq!(client.step(), ClientStep::Failed(super::ClientFailure::Closed));
}

#[test]
fn an_early_rejection_is_delivered_while_the_body_is_still_written() {
    let mut client = ClientConnection::new(BODY_BYTES_MAX);
    let mut server = Connection::new(0);
    let body = vec![b'x'; 5000];
    let request = ClientRequest { method: Method::Put, target: "/", host: "x", headers: &[], body: &body };
    client.call(&request, 0, 1000);
    carry(&mut client, &mut server, 100, &mut &b""[..]);
    assert_eq!(server.step(0), Step::Head);
    let response = Response { status: 413, content_type: None, headers: &[], body: b"no", date: "D" };
    server.respond(&response, 0);
    carry(&mut client, &mut server, 500, &mut &b""[..]);
    assert_eq!((client.step(), client.status()), (ClientStep::Response, 413));
    assert_eq!(client.header("connection"), Some(&b"close"[..]));
    assert!(!client.finish());
    assert!(client.output().is_empty());
}
