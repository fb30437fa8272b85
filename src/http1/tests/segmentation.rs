//! Properties: the result does not depend on how the bytes are split, and no input causes a panic.

use proptest::prelude::*;

use super::{Connection, ProtocolError, Response, Step};
use crate::limits;

/// Event of a connection that its application sees.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Event {
    Request { method: String, target: Vec<u8>, user_key: Option<Vec<u8>>, body: Vec<u8> },
    Rejected(ProtocolError),
    Closed,
}

/// Feeds `input` in pieces of the sizes that `next_size` returns, then the end of the input.
fn run(input: &[u8], mut next_size: impl FnMut() -> usize) -> Vec<Event> {
    let mut connection = Connection::new(0);
    let mut events = Vec::new();
    let mut rest = input;
    loop {
        let response = Response { status: 200, content_type: None, headers: &[], body: b"x", date: "" };
        match connection.step(0) {
            Step::Head => connection.accept_body(limits::BODY_BYTES_MAX, 0),
            Step::Body => {
                let head = connection.head();
                events.push(Event::Request {
                    method: head.method().as_str().to_owned(),
                    target: head.target().to_vec(),
                    user_key: head.user_key().map(<[u8]>::to_vec),
                    body: connection.body().to_vec(),
                });
                connection.respond(&response, 0);
            }
            Step::Reject(rejection) => {
                events.push(Event::Rejected(rejection));
                connection.respond_and_close(&response, 0);
            }
            Step::Read | Step::Linger => {
                let written_count = connection.output().len();
                connection.wrote(written_count, 0);
                if rest.is_empty() {
                    connection.received_eof();
                    continue;
                }
                let space = connection.read_space();
                let count = space.len().min(rest.len()).min(next_size().max(1));
                assert!(count > 0, "there is always space to read into");
                space[..count].copy_from_slice(&rest[..count]);
                connection.received(count, 0);
                rest = &rest[count..];
            }
            Step::Close => {
                events.push(Event::Closed);
                return events;
            }
        }
    }
}

/// Generates a valid request: its bytes and the event that it must cause.
fn request() -> impl Strategy<Value = (Vec<u8>, Event)> {
    let body = proptest::collection::vec(any::<u8>(), 0..3000);
    let chunk_sizes = proptest::collection::vec(1_usize..700, 0..6);
    let method = prop_oneof![Just("GET"), Just("POST"), Just("PUT"), Just("DELETE"), Just("HEAD")];
    let fields = ("[ -~]{0,40}", any::<bool>(), any::<bool>());
    (method, "/[!-\"$-~]{0,30}", fields, body, chunk_sizes).prop_map(
        |(method, target, (user_key, has_empty_line, expects), body, chunk_sizes)| {
            let mut bytes = if has_empty_line { b"\r\n".to_vec() } else { Vec::new() };
            bytes.extend_from_slice(format!("{method} {target} HTTP/1.1\r\nhOst: x\r\n").as_bytes());
            bytes.extend_from_slice(format!("X-User-KEY:\t{user_key} \r\n").as_bytes());
            if expects {
                bytes.extend_from_slice(b"Expect: 100-Continue\r\n");
            }
            if chunk_sizes.is_empty() {
                bytes.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
                bytes.extend_from_slice(&body);
            } else {
                bytes.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
                let mut rest = &body[..];
                for size in chunk_sizes.into_iter().chain([body.len()]) {
                    let (chunk, after) = rest.split_at(size.min(rest.len()));
                    rest = after;
                    if !chunk.is_empty() {
                        bytes.extend_from_slice(format!("{:x};a=b\r\n", chunk.len()).as_bytes());
                        bytes.extend_from_slice(chunk);
                        bytes.extend_from_slice(b"\r\n");
                    }
                }
                bytes.extend_from_slice(b"0\r\nTrailer: x\r\n\r\n");
            }
            let event = Event::Request {
                method: method.to_owned(),
                target: target.into_bytes(),
                user_key: Some(user_key.trim_matches(' ').as_bytes().to_vec()),
                body,
            };
            (bytes, event)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn requests_do_not_depend_on_the_segmentation(
        requests in proptest::collection::vec(request(), 1..5),
        sizes in proptest::collection::vec(1_usize..300, 1..20),
    ) {
        let (bytes, mut expected): (Vec<Vec<u8>>, Vec<Event>) = requests.into_iter().unzip();
        let bytes = bytes.concat();
        expected.push(Event::Closed);
        prop_assert_eq!(&run(&bytes, || usize::MAX), &expected, "in one segment");
        prop_assert_eq!(&run(&bytes, || 1), &expected, "byte by byte");
        let mut sizes = sizes.into_iter().cycle();
        prop_assert_eq!(&run(&bytes, || sizes.next().unwrap_or(1)), &expected);
    }
}

/// Small pseudo-random number generator (xorshift), so that failures are reproducible.
pub(in crate::http1) struct Random(pub(in crate::http1) u64);

impl Random {
    /// Returns a number below `bound`.
    pub(in crate::http1) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).expect("31 bits fit") % bound
    }

    /// Returns pieces of requests in any order, with random bytes between them: mostly malformed, but deep enough to
    /// reach every part of the parser.
    fn input(&mut self) -> Vec<u8> {
        const PIECES: [&str; 24] = [
            "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            "POST /a?b HTTP/1.1\r\nHost: x\r\n",
            "HEAD http://x/ HTTP/1.0\r\n",
            "\r\n",
            "\r\n",
            "\r",
            "\n",
            ":",
            " ",
            "Transfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\n\r\n",
            "Content-Length: 3\r\n",
            "Content-Length: 3\r\n\r\nabc",
            "Connection: keep-alive\r\n",
            "Connection: close\r\n",
            "Expect: 100-continue\r\n",
            "X-User-Key: secret\r\n",
            "3\r\nabc\r\n",
            "3;x\r\nabc\r\n",
            "0\r\n\r\n",
            "0\r\na: b\r\n\r\n",
            "ffffffff",
            "HTTP/2.0\r\n",
            "\0",
        ];
        self.input_of(&PIECES)
    }

    /// Returns up to eleven of these pieces, among them some of random bytes.
    pub(in crate::http1) fn input_of(&mut self, pieces: &[&str]) -> Vec<u8> {
        let mut input = Vec::new();
        for _ in 0..self.below(12) {
            if self.below(8) == 0 {
                let count = self.below(6);
                input.extend((0..count).map(|_| u8::try_from(self.below(256)).expect("below 256")));
            } else {
                input.extend_from_slice(pieces[self.below(pieces.len())].as_bytes());
            }
        }
        input
    }
}

#[test]
fn rejections_do_not_depend_on_the_segmentation() {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    for _ in 0..20_000 {
        let input = random.input();
        let expected = run(&input, || usize::MAX);
        let text = String::from_utf8_lossy(&input).into_owned();
        assert_eq!(run(&input, || 1), expected, "byte by byte: {text:?}");
        assert_eq!(run(&input, || 1 + random.below(20)), expected, "in random pieces: {text:?}");
    }
}

#[test]
fn random_calls_do_not_panic() {
    let mut random = Random(0x2545_F491_4F6C_DD1D);
    let response = Response { status: 200, content_type: None, headers: &[], body: b"x", date: "" };
    for _ in 0..2000 {
        let mut connection = Connection::new(0);
        let mut now_ms = 0;
        for _ in 0..40 {
            now_ms += if random.below(10) == 0 { 11_000 } else { 1 };
            connection.expire(now_ms);
            match connection.step(now_ms) {
                Step::Head if random.below(3) == 0 => connection.respond(&response, now_ms),
                Step::Head if random.below(3) > 0 => connection.accept_body(limits::BODY_BYTES_MAX, now_ms),
                Step::Head | Step::Body if random.below(2) == 0 => {
                    connection.begin_stream(&response, &["a"], now_ms);
                    connection.stream_chunk(b"abc", now_ms);
                }
                Step::Head | Step::Body => connection.respond(&response, now_ms),
                Step::Reject(_) => connection.respond_and_close(&response, now_ms),
                Step::Read | Step::Linger | Step::Close => {}
            }
            match random.below(10) {
                0 => connection.end_stream(&[("a", "b")], now_ms),
                1 if random.below(2) == 0 => connection.close_after_response(),
                1 => connection.close_when_idle(),
                2 if random.below(20) == 0 => connection.abort(),
                3 if random.below(20) == 0 => connection.received_eof(),
                _ => {}
            }
            let count = random.below(connection.output().len() + 1);
            connection.wrote(count, now_ms);
            let input = random.input();
            let space = connection.read_space();
            let count = space.len().min(input.len());
            space[..count].copy_from_slice(&input[..count]);
            connection.received(count, now_ms);
        }
    }
}
