//! Life cycle of a client connection: successive calls, deadlines, failures, and wiping.

use super::{
    ClientConnection, ClientFailure, ClientRequest, ClientStep,
    responses::{BODY_BYTES_MAX, Outcome, call, called, outcome, receive},
};
use crate::http1::Method;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nX-A: canary\r\nContent-Length: 6\r\n\r\ncanary";

fn check_failed(client: &mut ClientConnection, failure: ClientFailure) {
    assert_eq!(client.step(), ClientStep::Failed(failure));
    assert!(client.output().is_empty());
    assert_eq!(client.deadline_ms(), None);
    assert!(!client.finish());
    client.expire();
    client.call(&call(Method::Get), 0, 1000);
    assert_eq!(client.step(), ClientStep::Failed(failure), "a failure is permanent");
    assert!(client.output().is_empty(), "no output after a failure");
}

fn keeps_canary(client: &ClientConnection) -> bool {
    memchr::memmem::find(&client.everything(), b"canary").is_some()
}

#[test]
fn a_connection_carries_many_calls() {
    let mut client = ClientConnection::new(BODY_BYTES_MAX);
    for index in 0..1000_u64 {
        assert_eq!(client.step(), ClientStep::Read);
        assert_eq!((client.deadline_ms(), client.header("x-a")), (None, None));
        client.call(&call(Method::Get), index, index + 5);
        assert_eq!(client.deadline_ms(), Some(index + 5));
        let expected = b"GET /a HTTP/1.1\r\nhost: x\r\nx-api-key: canary\r\n\r\n";
        assert_eq!(client.output(), expected);
        client.wrote(10);
        assert_eq!(client.output(), &expected[10..]);
        client.wrote(client.output().len());
        receive(&mut client, b"HTTP/1.1 100 \r\n\r\n", || usize::MAX);
        receive(&mut client, OK, || 7);
        assert_eq!(client.step(), ClientStep::Response);
        assert_eq!((client.status(), client.deadline_ms()), (200, None));
        assert_eq!(client.header("x-a"), Some(&b"canary"[..]));
        assert_eq!(client.header("x-b"), None);
        client.expire();
        assert_eq!(client.step(), ClientStep::Response, "no response is pending");
        assert_eq!(client.take_body(), b"canary");
        assert!(client.finish());
    }
    assert!(client.finish(), "also without a call in between");
}

#[test]
fn calls_fail_at_their_deadline() {
    let parts = [&b""[..], b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\n\r\n", &OK[..OK.len() - 1]];
    for part in parts {
        let mut client = called(Method::Get);
        receive(&mut client, part, || usize::MAX);
        assert_eq!(client.step(), ClientStep::Read);
        assert_eq!(client.deadline_ms(), Some(1000), "the deadline does not move");
        client.expire();
        check_failed(&mut client, ClientFailure::TimedOut);
    }
    for now_ms in [1000, 1001] {
        let mut late = ClientConnection::new(BODY_BYTES_MAX);
        late.call(&call(Method::Get), now_ms, 1000);
        check_failed(&mut late, ClientFailure::TimedOut);
    }
    let mut idle = ClientConnection::new(BODY_BYTES_MAX);
    idle.expire();
    assert_eq!(idle.step(), ClientStep::Read);
}

#[test]
fn unsolicited_bytes_fail_the_connection() {
    let unsolicited = ClientFailure::Malformed("unsolicited bytes");
    for steps_before_call in [false, true] {
        let mut client = ClientConnection::new(BODY_BYTES_MAX);
        receive(&mut client, OK, || usize::MAX);
        if steps_before_call {
            assert_eq!(client.step(), ClientStep::Failed(unsolicited));
        }
        client.call(&call(Method::Get), 0, 1000);
        check_failed(&mut client, unsolicited);
    }
    let mut idle = ClientConnection::new(BODY_BYTES_MAX);
    receive(&mut idle, b"H", || usize::MAX);
    assert!(!idle.finish());
    check_failed(&mut idle, unsolicited);

    let mut after = called(Method::Get);
    receive(&mut after, &[OK, OK].concat(), || usize::MAX);
    assert_eq!(after.step(), ClientStep::Response);
    assert!(!after.finish());
    check_failed(&mut after, ClientFailure::Closed);

    let mut between = called(Method::Get);
    receive(&mut between, OK, || usize::MAX);
    assert_eq!(between.step(), ClientStep::Response);
    assert!(between.finish());
    receive(&mut between, OK, || usize::MAX);
    check_failed(&mut between, unsolicited);
}

#[test]
fn end_of_input() {
    let mut idle = ClientConnection::new(BODY_BYTES_MAX);
    idle.received_eof();
    idle.call(&call(Method::Get), 0, 1000);
    check_failed(&mut idle, ClientFailure::Closed);

    let mut after = called(Method::Get);
    receive(&mut after, OK, || usize::MAX);
    assert_eq!(after.step(), ClientStep::Response);
    after.received_eof();
    assert_eq!(after.step(), ClientStep::Response);
    let expected = Outcome::Response { status: 200, body: b"canary".to_vec(), is_reusable: false };
    assert_eq!(outcome(&mut after), expected);
    check_failed(&mut after, ClientFailure::Closed);
}

#[test]
fn a_response_to_an_incomplete_request_ends_the_connection() {
    let mut client = ClientConnection::new(BODY_BYTES_MAX);
    client.call(&ClientRequest { body: b"0123456789", ..call(Method::Put) }, 0, 1000);
    client.wrote(client.output().len() - 1);
    receive(&mut client, OK, || usize::MAX);
    assert_eq!(client.step(), ClientStep::Response);
    assert_eq!(client.output(), b"9");
    assert!(!client.finish());
    check_failed(&mut client, ClientFailure::Closed);
    client.wrote(1);
}

#[test]
fn a_request_with_an_injected_one_is_not_written() {
    let mut client = ClientConnection::new(BODY_BYTES_MAX);
    let headers = &[("x-a", "b\r\nGET / HTTP/1.1\r\nx: y")];
    client.call(&ClientRequest { headers, ..call(Method::Get) }, 0, 1000);
    check_failed(&mut client, ClientFailure::Malformed("request header is malformed"));
}

#[test]
fn a_call_can_be_abandoned() {
    for part in [&b""[..], &OK[..20], &OK[..OK.len() - 1]] {
        let mut client = called(Method::Get);
        receive(&mut client, part, || usize::MAX);
        assert!(!client.finish());
        check_failed(&mut client, ClientFailure::Closed);
    }
}

#[test]
#[cfg_attr(debug_assertions, should_panic(expected = "another call is in flight"))]
fn a_call_during_another_fails_both() {
    let mut client = called(Method::Get);
    client.call(&call(Method::Get), 0, 1000);
    check_failed(&mut client, ClientFailure::Closed);
}

#[test]
fn keys_and_secrets_are_wiped() {
    let mut written = ClientConnection::new(BODY_BYTES_MAX);
    written.call(&ClientRequest { body: b"rest", ..call(Method::Put) }, 0, 1000);
    assert!(keeps_canary(&written));
    written.wrote(written.output().len() - 4);
    assert!(!keeps_canary(&written));

    let ways: [fn(&mut ClientConnection); 5] = [
        |client| assert!(client.finish()),
        ClientConnection::expire,
        |client| {
            client.received_eof();
            client.step();
        },
        |client| receive(client, b"HTTP/1.1 200 OK\r\n\n", || usize::MAX),
        |client| assert!(!client.finish()),
    ];
    for (index, way) in ways.into_iter().enumerate() {
        let is_whole = index == 0;
        let mut client = ClientConnection::new(BODY_BYTES_MAX);
        client.call(&call(Method::Get), 0, 1000);
        if is_whole {
            client.wrote(client.output().len());
        }
        let count = if is_whole { OK.len() } else { 30 };
        if index != 3 {
            receive(&mut client, &OK[..count], || usize::MAX);
        }
        client.step();
        assert!(keeps_canary(&client), "way {index}");
        way(&mut client);
        client.step();
        assert!(!keeps_canary(&client), "way {index}");
    }
    let mut failed = called(Method::Get);
    failed.expire();
    receive(&mut failed, OK, || usize::MAX);
    assert!(!keeps_canary(&failed), "input after a failure");
}
